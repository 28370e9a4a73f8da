"""Policy gradients over whole trajectories: SVRPG and its siblings."""

from storm_rl.common.policies import StandardisedActorCriticCnnPolicy as CnnPolicy
from storm_rl.common.policies import StandardisedActorCriticPolicy as MlpPolicy
from storm_rl.common.policies import StandardisedMultiInputActorCriticPolicy as MultiInputPolicy
from storm_rl.episodic.algorithms import DEFPG, GPOMDP, PAGEPG, SRVRPG, STORMPG, SVRPG

__all__ = ["DEFPG", "GPOMDP", "PAGEPG", "SRVRPG", "STORMPG", "SVRPG", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
