"""STORM+ policy gradient."""

from storm_rl.storm_plus_pg.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from storm_rl.storm_plus_pg.storm_plus_pg import STORMPlusPG

__all__ = ["CnnPolicy", "MlpPolicy", "MultiInputPolicy", "STORMPlusPG"]
