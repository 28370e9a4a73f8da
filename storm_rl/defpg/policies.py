"""Policies of DEFPG."""

from storm_rl.common.policies import (
    StandardisedActorCriticCnnPolicy,
    StandardisedActorCriticPolicy,
    StandardisedMultiInputActorCriticPolicy,
)

MlpPolicy = StandardisedActorCriticPolicy
CnnPolicy = StandardisedActorCriticCnnPolicy
MultiInputPolicy = StandardisedMultiInputActorCriticPolicy
