"""RL Zoo with this package's algorithms; needs ``pip install "storm-rl[zoo]"``.

Importing this module needs nothing beyond the library: what needs the extra imports it when it is called.
"""

from storm_rl.zoo.algorithms import ALGORITHMS, Range, ZooAlgorithm, get_algorithm, register
from storm_rl.zoo.settings import hyperparameter_file, hyperparameters

__all__ = ["ALGORITHMS", "Range", "ZooAlgorithm", "get_algorithm", "hyperparameter_file", "hyperparameters", "register"]
