import numpy as np
import pytest
import torch
from gymnasium import spaces

from storm_rl.common.distributions import kept, mean_kl
from storm_rl.common.policies import StandardisedActorCriticPolicy

ACTION_SPACES = (
    spaces.Discrete(3),
    spaces.Box(-1.0, 1.0, (2,), dtype=np.float32),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
)


def policy_for(action_space: spaces.Space) -> StandardisedActorCriticPolicy:
    torch.manual_seed(0)
    return StandardisedActorCriticPolicy(spaces.Box(-1.0, 1.0, (3,)), action_space, lambda _: 1e-3)


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_kept_distribution_survives_the_next_call(action_space: spaces.Space) -> None:
    policy = policy_for(action_space)
    actions = torch.as_tensor(np.stack([action_space.sample()])).float()
    states = torch.ones(1, 3)
    first = kept(policy.get_distribution(states))
    before = first.log_prob(actions).clone()
    with torch.no_grad():
        policy.action_net.weight.mul_(100.0)
    policy.get_distribution(states)
    torch.testing.assert_close(first.log_prob(actions), before)


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=str)
def test_mean_kl_agrees_with_sampled_log_ratios(action_space: spaces.Space) -> None:
    policy = policy_for(action_space)
    states = torch.randn(1, 3).expand(40_000, 3)
    with torch.no_grad():
        old = kept(policy.get_distribution(states))
        policy.action_net.weight.mul_(60.0)
        new = kept(policy.get_distribution(states))
        actions = old.sample()
        ratios = old.log_prob(actions) - new.log_prob(actions)
    error = float(ratios.std()) / len(ratios) ** 0.5
    assert abs(float(mean_kl(old, new)) - float(ratios.mean())) < 4.0 * error
    assert mean_kl(old, old) == 0.0
