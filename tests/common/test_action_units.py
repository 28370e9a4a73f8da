"""Means and noise of Box actions: in units of the range, and never without exploration."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from storm_rl import GPOMDP, STORMPlusPG
from storm_rl.common.action_units import action_units
from storm_rl.common.policies import StandardisedActorCriticPolicy

INFINITY = np.inf
BIG = float(np.finfo(np.float32).max)
# A task in [-1, 1], and the bounds in which it is posed.
BOUNDS = {
    "thousand": ([0.0], [1000.0]),
    "hundred": ([-100.0], [100.0]),
    "asymmetric": ([-0.3, 2.0], [1.7, 5.0]),
    "tiny": ([1e-6], [3e-6]),
}


def box(low: Any, high: Any) -> spaces.Box:
    return spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)


@pytest.mark.parametrize(
    ("low", "high", "middle", "unit"),
    [
        (-2.0, 2.0, 0.0, 2.0),
        (0.0, 1000.0, 500.0, 500.0),
        (-0.3, 1.7, 0.7, 1.0),
        (-INFINITY, INFINITY, 0.0, 1.0),
        (-BIG, BIG, 0.0, 1.0),
        (-1e12, 1e12, 0.0, 1.0),
        (5.0, INFINITY, 5.0, 1.0),
        (-INFINITY, -3.0, -3.0, 1.0),
        (2.0, 2.0, 2.0, 1.0),
    ],
)
def test_middle_and_unit_of_a_range(low: float, high: float, middle: float, unit: float) -> None:
    found = action_units(box([low], [high]))
    assert [float(part) for part in found] == pytest.approx([middle, unit])


def test_what_is_squashed_or_no_box_keeps_its_units() -> None:
    for found in (action_units(box([0.0], [9.0]), squashed=True), action_units(spaces.Discrete(3))):
        assert [part.tolist() for part in found] == [[0.0], [1.0]]


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("name", BOUNDS)
def test_the_distribution_scales_with_the_bounds(name: str, use_sde: bool) -> None:
    def distribution(space: spaces.Box) -> Any:
        torch.manual_seed(0)
        policy = StandardisedActorCriticPolicy(spaces.Box(-1, 1, (3,)), space, lambda _: 1e-3, use_sde=use_sde)
        with torch.no_grad():
            found = policy.get_distribution(torch.linspace(-1.0, 1.0, 12).reshape(4, 3))
            torch.manual_seed(1)
            policy.reset_noise(4) if use_sde else None
            return found.distribution, found.sample()

    low, high = (torch.tensor(bound) for bound in BOUNDS[name])
    (normal, sample), (own, own_sample) = (
        distribution(box([-1.0] * len(low), [1.0] * len(low))),
        distribution(box(*BOUNDS[name])),
    )
    middle, unit = (low + high) / 2, (high - low) / 2
    torch.testing.assert_close((own.mean - middle) / unit, normal.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close((own_sample - middle) / unit, sample, rtol=1e-3, atol=1e-3)
    if not use_sde or name != "tiny":  # SB3 adds 1e-6 to gSDE's variance.
        torch.testing.assert_close(own.stddev / unit, normal.stddev, rtol=1e-3, atol=1e-3)


class Constant(gym.Env[Any, Any]):
    """Observations of zeros; keeps the actions."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.step_count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.step_count += 1
        return np.zeros(2, np.float32), -float(abs(action[0] - 0.5)), False, self.step_count >= 8, {}


class Actions(BaseCallback):
    def _on_training_start(self) -> None:
        self.actions: list[Any] = []

    def _on_step(self) -> bool:
        self.actions.append(self.locals["actions"].copy())
        return True


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU])
@pytest.mark.parametrize("squash_output", [False, True])
def test_gsde_explores_where_all_features_are_zero(activation: Any, squash_output: bool) -> None:
    watch = Actions()
    arguments = {"activation_fn": activation, "squash_output": squash_output}
    model = STORMPlusPG("MlpPolicy", Constant(), n_steps=64, sde_sample_freq=4, policy_kwargs=arguments, seed=0)
    model.learn(128, callback=watch)
    actions = np.concatenate(watch.actions)
    assert np.unique(actions).size >= 16
    assert actions.std() > 0.2


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU])
def test_gsdes_noise_is_as_large_in_every_state(activation: Any) -> None:
    kwargs: dict[str, Any] = {"use_sde": True, "activation_fn": activation, "log_std_init": -0.7}
    policy = StandardisedActorCriticPolicy(
        spaces.Box(-1, 1, (3,)), box([0.0, -1.0], [10.0, 1.0]), lambda _: 1e-3, **kwargs
    )
    states = torch.cat([torch.zeros(1, 3), 0.01 * torch.randn(5, 3), 100.0 * torch.randn(5, 3)])
    std = policy.get_distribution(states).distribution.stddev  # type: ignore[union-attr]
    expected = torch.tensor([5.0, 1.0]).mul(float(np.exp(-0.7))).expand(11, 2)
    torch.testing.assert_close(std.detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("n_actions", [1, 2, 9])
def test_the_noise_starts_as_a_vector_of_the_same_length(n_actions: int, use_sde: bool) -> None:
    actions = box([0.0] * n_actions, [10.0] * n_actions)
    policy = StandardisedActorCriticPolicy(spaces.Box(-1, 1, (3,)), actions, lambda _: 1e-3, use_sde=use_sde)
    std = policy.get_distribution(torch.randn(4, 3)).distribution.stddev  # type: ignore[union-attr]
    torch.testing.assert_close(std.detach().norm(dim=1), torch.full((4,), 5.0), rtol=1e-4, atol=1e-4)
    if n_actions == 1:
        assert (policy.log_std == 0.0).all()


@pytest.mark.parametrize(("algorithm", "use_sde"), [(STORMPlusPG, True), (STORMPlusPG, False), (GPOMDP, False)])
def test_the_logged_noise_is_that_of_the_actions(algorithm: Any, use_sde: bool) -> None:
    """At zero observations and bounds of 0 and 8; the policy moves little in one update."""

    class Wide(Constant):
        action_space = spaces.Box(0, 8, (1,), np.float32)

    watch, logged = Actions(), []
    arguments: dict[str, Any] = {"batch_size": 60, "learning_rate": 1e-6}
    if algorithm is STORMPlusPG:
        arguments = {"n_steps": 512, "target_kl": 1e-6, "use_sde": use_sde, "sde_sample_freq": 1}
    model = algorithm("MlpPolicy", Wide(), seed=0, **arguments)
    model.learn(480, callback=watch)
    record = model.logger.record
    model.logger.record = lambda key, value, *rest, **more: (logged.append((key, value)), record(key, value))
    model.train()
    (std,) = [value for key, value in logged if key == "train/std"]
    assert np.concatenate(watch.actions).std() == pytest.approx(std, rel=0.15)


def test_training_does_not_depend_on_the_bounds() -> None:
    """A task posed in [0, 1000] is learned as in [-1, 1], but for rounding."""

    class Scaled(Constant):
        def __init__(self, low: float, high: float) -> None:
            self.action_space = box([low], [high])
            self.low, self.high = low, high

        def step(self, action: Any) -> Any:
            return super().step(2.0 * (action - self.low) / (self.high - self.low) - 1.0)

    parameters = []
    for bounds in ((-1.0, 1.0), (0.0, 1000.0), (-0.3, 1.7)):
        model = STORMPlusPG("MlpPolicy", Scaled(*bounds), n_steps=64, critic_steps=8, seed=0, device="cpu").learn(64)
        parameters.append(torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()]))
    for other in parameters[1:]:
        torch.testing.assert_close(other, parameters[0], rtol=1e-2, atol=1e-3)
