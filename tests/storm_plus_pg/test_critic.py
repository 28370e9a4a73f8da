"""Fitting the critic in closed form against autograd and torch's optimizer, step by step."""

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch.nn.utils import parameters_to_vector

from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.storm_plus_pg.actor_critic import ActorCritic
from storm_rl.storm_plus_pg.numpy_actor_critic import NumpyActorCritic, NumpyAdam, has_plain_adam

N = 56
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def make(**arguments: Any) -> StandardisedActorCriticPolicy:
    torch.manual_seed(0)
    return StandardisedActorCriticPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda _: 3e-3, **arguments)


def fit(policy: StandardisedActorCriticPolicy, n_fits: int, by_autograd: bool = False, n_steps: int = 8) -> list[float]:
    torch.manual_seed(1)
    observations, targets = torch.randn(N, 3), torch.randn(N)
    losses = []
    for _ in range(n_fits):
        minibatches = [index for _ in range(2) for index in torch.split(torch.randperm(N), 16)]  # Of two sizes.
        networks = ActorCritic(policy) if by_autograd else NumpyActorCritic.from_policy(policy)
        assert networks is not None
        losses.append(networks.fit_critic(observations, targets, minibatches[:n_steps]))
    return losses


@pytest.mark.parametrize("earlier_fits", [0, 6])
def test_takes_the_step_of_autograd_and_leaves_adams_state(earlier_fits: int) -> None:
    fast, plain = make(), make()
    assert has_plain_adam(fast.optimizer, fast.critic_parameters())
    actor = parameters_to_vector(fast.actor_parameters()).detach().clone()
    losses = [fit(policy, earlier_fits, by_autograd=True) for policy in (fast, plain)]
    assert losses[0] == losses[1]
    # A single step in each way from the same state: in single precision rounding would grow over more of them.
    assert fit(fast, 1, n_steps=1) == pytest.approx(fit(plain, 1, by_autograd=True, n_steps=1), rel=1e-4)
    torch.testing.assert_close(
        parameters_to_vector(fast.critic_parameters()), parameters_to_vector(plain.critic_parameters()), **TOLERANCE
    )
    assert torch.equal(parameters_to_vector(fast.actor_parameters()), actor)
    states = [policy.optimizer.state_dict()["state"] for policy in (fast, plain)]
    for index in range(len(fast.critic_parameters())):
        assert states[0][index]["step"] == states[1][index]["step"] == 8 * earlier_fits + 1
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(states[0][index][name], states[1][index][name], **TOLERANCE)


def test_takes_the_steps_of_torchs_adam_from_any_of_its_states() -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(7, dtype=torch.float64, generator=generator))
    reference = torch.optim.Adam([parameter], lr=0.03, betas=(0.8, 0.95), eps=1e-4)
    theta, adam = parameter.detach().numpy().copy(), None
    for step in range(30):
        gradient = torch.randn(7, dtype=torch.float64, generator=generator)
        parameter.grad = gradient.clone()
        if step % 10 == 0:
            states = [{key: value.clone() for key, value in reference.state[parameter].items()}]
            adam = NumpyAdam(reference.param_groups[0], states, theta)
        assert adam is not None
        reference.step()
        adam.step(theta, gradient.numpy())
        torch.testing.assert_close(torch.from_numpy(theta), parameter.detach(), rtol=1e-10, atol=1e-12)
    assert adam is not None
    assert adam.n_steps == 30


def test_the_loss_falls() -> None:
    losses = fit(make(), 6)
    assert losses[-1] < losses[0]


def test_goes_on_from_a_state_that_was_loaded() -> None:
    policy, other = make(), make()
    fit(policy, 2)
    other.load_state_dict(policy.state_dict())
    other.optimizer.load_state_dict(policy.optimizer.state_dict())
    assert fit(policy, 1) == fit(other, 1)
    assert torch.equal(
        parameters_to_vector(policy.critic_parameters()), parameters_to_vector(other.critic_parameters())
    )


def scheduled(policy: StandardisedActorCriticPolicy) -> None:
    torch.optim.lr_scheduler.StepLR(policy.optimizer, 1)


def hooked(policy: StandardisedActorCriticPolicy) -> None:
    policy.optimizer.register_step_post_hook(lambda *arguments: None)


def grouped(policy: StandardisedActorCriticPolicy) -> None:
    policy.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        ({"optimizer_class": torch.optim.SGD}, None),
        ({"optimizer_class": torch.optim.AdamW}, None),
        ({"optimizer_kwargs": {"amsgrad": True}}, None),
        ({"optimizer_kwargs": {"weight_decay": 0.1}}, None),
        ({}, scheduled),
        ({}, hooked),
        ({}, grouped),
    ],
)
def test_any_other_optimizer_takes_its_own_steps(arguments: dict[str, Any], change: Any) -> None:
    policy = make(**arguments)
    if change is not None:
        change(policy)
    assert not has_plain_adam(policy.optimizer, policy.critic_parameters())
    before = parameters_to_vector(policy.critic_parameters()).detach().clone()
    losses = fit(policy, 6)
    assert losses[-1] < losses[0]
    assert not torch.equal(parameters_to_vector(policy.critic_parameters()), before)
