"""RL Zoo and the Hugging Face hub with this package's algorithms; needs ``pip install "storm-rl[zoo]"``.

Importing this module needs nothing beyond the library: what needs the extra imports it when it is called, and says
so where it is missing.
"""

from storm_rl.zoo.hub import model_card, save_for_hub
from storm_rl.zoo.registration import ALGORITHMS, hyperparameter_file, register

__all__ = ["ALGORITHMS", "hyperparameter_file", "model_card", "register", "save_for_hub"]
