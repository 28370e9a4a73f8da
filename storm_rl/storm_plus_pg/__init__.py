"""STORM+ policy gradient."""

from storm_rl.common.policies import StandardisedActorCriticCnnPolicy as CnnPolicy
from storm_rl.common.policies import StandardisedActorCriticPolicy as MlpPolicy
from storm_rl.common.policies import StandardisedMultiInputActorCriticPolicy as MultiInputPolicy
from storm_rl.storm_plus_pg.storm_plus_pg import STORMPlusPG

__all__ = ["CnnPolicy", "MlpPolicy", "MultiInputPolicy", "STORMPlusPG"]
