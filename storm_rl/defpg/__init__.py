"""DEF-PG: variance reduction with defensive sampling (Papini, Metelli, Restelli, Machine Learning 2024)."""

from storm_rl.defpg.defpg import DEFPG
from storm_rl.defpg.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["DEFPG", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
