"""STORM+ policy gradient with action masks, in the place of sb3-contrib's ``MaskablePPO``."""

from storm_rl.maskable.maskable_storm_plus_pg import MaskableSTORMPlusPG
from storm_rl.maskable.masks import MaskableRolloutBuffer
from storm_rl.maskable.policies import MaskableActorCriticCnnPolicy as CnnPolicy
from storm_rl.maskable.policies import MaskableActorCriticPolicy as MlpPolicy
from storm_rl.maskable.policies import MaskableMultiInputActorCriticPolicy as MultiInputPolicy

__all__ = ["CnnPolicy", "MaskableRolloutBuffer", "MaskableSTORMPlusPG", "MlpPolicy", "MultiInputPolicy"]
