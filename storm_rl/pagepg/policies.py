"""Policies of PAGEPG."""

from storm_rl.common.policies import (
    StandardisedActorCriticCnnPolicy,
    StandardisedActorCriticPolicy,
    StandardisedMultiInputActorCriticPolicy,
)

MlpPolicy = StandardisedActorCriticPolicy
CnnPolicy = StandardisedActorCriticCnnPolicy
MultiInputPolicy = StandardisedMultiInputActorCriticPolicy
