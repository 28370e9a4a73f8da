import dataclasses
import itertools

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.finite_horizon import StepObservedEnv, optimal_action_values, optimal_value, policy_value
from envs.mdps import EnumerableMDP, river_swim, slippery_cliff, two_state

MDPS = [two_state(horizon=2), slippery_cliff(horizon=2), river_swim(n_states=2, horizon=3, gamma=0.9)]


@pytest.mark.parametrize("mdp", MDPS, ids=["two states", "cliff", "river"])
def test_the_optimal_value_is_that_of_the_best_of_all_policies(mdp: EnumerableMDP) -> None:
    acting = [s for s in range(mdp.n_states) if not mdp.terminal[s]]
    values = []
    for actions in itertools.product(range(mdp.n_actions), repeat=mdp.horizon * len(acting)):
        policy = np.zeros((mdp.horizon, mdp.n_states, mdp.n_actions))
        policy[:, ~np.isin(np.arange(mdp.n_states), acting), 0] = 1.0
        for (step, state), action in zip(itertools.product(range(mdp.horizon), acting), actions, strict=True):
            policy[step, state, action] = 1.0
        values.append(policy_value(mdp, policy))
    assert optimal_value(mdp) == pytest.approx(max(values), abs=1e-12)
    greedy = np.eye(mdp.n_actions)[optimal_action_values(mdp).argmax(axis=2)]
    assert policy_value(mdp, greedy) == pytest.approx(max(values), abs=1e-12)
    assert min(values) < max(values) - 1e-3


def paid_at_its_foot() -> EnumerableMDP:
    """The cliff with rewards in its terminal state, which nobody gets."""
    mdp = slippery_cliff()
    rewards = mdp.rewards.clone()
    rewards[3] = 7.0
    return dataclasses.replace(mdp, rewards=rewards)


@pytest.mark.parametrize(
    "mdp", [two_state(), paid_at_its_foot(), river_swim(3, 4)], ids=["two states", "cliff", "river"]
)
def test_the_value_of_a_policy_is_that_of_all_its_trajectories(mdp: EnumerableMDP) -> None:
    logits = torch.randn(mdp.n_states, mdp.n_actions, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    policy = np.tile(torch.softmax(logits, dim=-1).numpy(), (mdp.horizon, 1, 1))
    assert policy_value(mdp, policy) == pytest.approx(mdp.objective(logits).item(), abs=1e-12)


def test_a_later_step_has_another_best_action() -> None:
    """What the horizon changes: far from it RiverSwim's swimmer goes up, at the end he takes the small reward."""
    best = optimal_action_values(river_swim(n_states=4, horizon=10)).argmax(axis=2)
    assert best[0, 0] == 1
    assert best[-1, 0] == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_environment_shows_step_and_state() -> None:
    mdp = slippery_cliff(horizon=3)
    check_env(StepObservedEnv(mdp), skip_render_check=True)
    env = StepObservedEnv(mdp)
    assert env.reset(seed=0)[0] == 0
    assert env.step(np.int64(1))[0] == 1 * mdp.n_states + 1
    assert env.step(np.int64(1))[0] == 2 * mdp.n_states + 2
    observation, _, terminated, _, _ = env.step(np.int64(0))
    assert terminated
    assert observation == 2 * mdp.n_states + 2


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (np.ones((3, 2)), r"\(3, 2, 2\), got \(3, 2\)"),
        (np.ones((3, 2, 2)), "sum to 1"),
        (np.full((3, 2, 2), np.nan), "sum to 1"),
        (np.tile([1.5, -0.5], (3, 2, 1)), "0 or more"),
    ],
)
def test_what_is_no_policy_is_refused(policy: np.ndarray, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        policy_value(two_state(), policy)


def test_a_river_of_one_state_is_refused() -> None:
    with pytest.raises(ValueError, match="n_states must be at least 2, got 1"):
        river_swim(n_states=1)
