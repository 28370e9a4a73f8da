"""REINFORCE and GPOMDP: the plain policy gradient over whole trajectories."""

from storm_rl.gpomdp.gpomdp import GPOMDP
from storm_rl.gpomdp.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["GPOMDP", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
