"""STORM-PG: recursive momentum with a constant weight (Yuan et al., 2020)."""

from storm_rl.stormpg.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from storm_rl.stormpg.stormpg import STORMPG

__all__ = ["STORMPG", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
