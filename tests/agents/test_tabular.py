"""Optimistic Q-learning, vUCQ and UCBMQ: the papers' rules written apart, bounds that hold, regret that flattens."""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from agents.tabular import UCBMQ, VUCQ, Bonus, OptimisticQLearning
from envs.finite_horizon import StepObservedEnv, optimal_action_values, optimal_value, policy_value
from envs.mdps import EnumerableMDP, river_swim, slippery_cliff, two_state

ALGORITHMS = [OptimisticQLearning, VUCQ, UCBMQ]
MDPS = [two_state(horizon=3, gamma=1.0), slippery_cliff(horizon=4, gamma=1.0), river_swim(n_states=3, horizon=4)]
H, S, A, K, DELTA = 3, 2, 2, 400, 0.1

Visit = tuple[float, int, dict[int, float]]
"""Reward, successor, and the values of the next step as they were at the visit."""


def reward_range(mdp: EnumerableMDP) -> tuple[float, float]:
    return min(0.0, float(mdp.rewards.min())), max(0.0, float(mdp.rewards.max()))


def make(cls: type[OptimisticQLearning], mdp: EnumerableMDP, episodes: int, bonus: Bonus, seed: int) -> Any:
    return cls(mdp.horizon, mdp.n_states, mdp.n_actions, episodes, bonus, reward_range(mdp), seed=seed)


def run_episode(agent: OptimisticQLearning, env: StepObservedEnv) -> None:
    observation, step, over = env.reset()[0], 0, False
    while not over:
        state = int(observation) % env.mdp.n_states
        action = agent.act(step, state)
        observation, reward, over, _, _ = env.step(np.int64(action))
        agent.update(step, state, action, reward, int(observation) % env.mdp.n_states, over)
        step += 1


def rates(n: int) -> list[float]:
    """Q-learning's weights of visits 1 to n: ``alpha_i prod_{j > i} (1 - alpha_j)``."""
    alpha = [(H + 1) / (H + i) for i in range(1, n + 1)]
    return [alpha[i] * math.prod(1 - later for later in alpha[i + 1 :]) for i in range(n)]


def simplified(n: int, step: int) -> float:
    return min(math.sqrt(1 / n) + (H - step) / n, H - step)


def naive_q_learning(visits: list[Visit], step: int, bonus: Bonus) -> float:
    """The unrolled form, equation (4.3) of Jin et al."""
    log = math.log(S * A * H * K / DELTA)
    found = 0.0
    for i, (weight, (reward, successor, values)) in enumerate(zip(rates(len(visits)), visits, strict=True), 1):
        found += weight * (reward + values[successor] + (math.sqrt(H**3 * log / i) if bonus == "proved" else 0.0))
    return found + (simplified(len(visits), step) if bonus == "simplified" else 0.0)


def naive_ucbmq(visits: list[Visit], step: int, bonus: Bonus) -> float:
    """The recursion in dicts."""
    q, bias, squares = 0.0, dict.fromkeys(range(S), 0.0), 0.0
    for n, (reward, successor, values) in enumerate(visits, 1):
        alpha, gamma = 1 / n, H / (H + n) * (n - 1) / n
        noisy = [values[s] + n * gamma * (values[s] - bias[s]) for s in range(S)]
        squares += (1 + max(noisy) - min(noisy)) ** 2
        q = alpha * (reward + values[successor]) + gamma * (values[successor] - bias[successor]) + (1 - alpha) * q
        bias = {s: (alpha + gamma) * values[s] + (1 - alpha - gamma) * bias[s] for s in range(S)}
    n = len(visits)
    if bonus == "simplified":
        return q + simplified(n, step)
    doublings = math.ceil(2 * math.log2(1 + H + H * H))
    return q + math.sqrt(squares * (math.log(S * A * H * K / DELTA) + math.log(doublings + 1))) / n


def naive_vucq(visits: list[Visit], step: int, bonus: Bonus) -> float:
    """The least bound over all visits so far, each from the samples of its epoch."""
    log = math.log(2 * S * A * H * K / DELTA)
    doublings = math.ceil(math.log2(2 * H**3 * K**2))
    found = float(H - step)
    for last in range(1, len(visits) + 1):
        begin = 0
        while begin + max(begin, H) < last:
            begin += max(begin, H)
        epoch = visits[begin:last]
        n, reference, weights = len(epoch), epoch[0][2], rates(len(epoch))
        mean = sum(reward + reference[successor] for reward, successor, _ in epoch) / n
        change = sum(w * (values[s] - reference[s]) for w, (_, s, values) in zip(weights, epoch, strict=True))
        if bonus == "simplified":
            width = simplified(n, step)
        else:
            largest = [max(abs(v[s] - reference[s]) for s in range(S)) for _, _, v in epoch]
            spread = 1 + max(reference.values()) - min(reference.values())
            squares = sum((w * max(c, 1 / i)) ** 2 for i, (w, c) in enumerate(zip(weights, largest, strict=True), 1))
            width = spread * math.sqrt(log / n) + math.sqrt((log + math.log(doublings + 1)) * squares)
        found = min(found, mean + change + width)
    return found


@pytest.mark.parametrize("bonus", ["proved", "simplified"])
@pytest.mark.parametrize(
    ("cls", "naive"), [(OptimisticQLearning, naive_q_learning), (VUCQ, naive_vucq), (UCBMQ, naive_ucbmq)]
)
def test_bounds_are_those_of_the_rules_written_apart(cls: Any, naive: Any, bonus: Bonus) -> None:
    """The values that visits saw come from the naive bounds alone, so that the two runs share nothing but samples."""
    rng = np.random.default_rng(0)
    agent = cls(H, S, A, K, bonus, delta=DELTA, seed=0)
    visits: dict[tuple[int, int, int], list[Visit]] = defaultdict(list)
    bounds = {(h, s, a): float(H - h) for h in range(H) for s in range(S) for a in range(A)}
    values = [dict.fromkeys(range(S), float(H - h)) for h in range(H + 1)]
    for _ in range(K // 2):
        state = int(rng.integers(S))
        for h in range(H):
            action, successor, reward = int(rng.integers(A)), int(rng.random() < 0.7), 0.3 * float(rng.random())
            visits[h, state, action].append((reward, successor, dict(values[h + 1])))
            bounds[h, state, action] = naive(visits[h, state, action], h, bonus)
            best = max(bounds[h, state, a] for a in range(A))
            cap = H - h if cls is OptimisticQLearning else values[h][state]
            values[h][state] = min(cap, max(0.0, best))
            agent.update(h, state, action, reward, successor, h == H - 1)
            state = successor
    expected = np.array([[[bounds[h, s, a] for a in range(A)] for s in range(S)] for h in range(H)])
    # Before they are cut off at the largest value, which would hide what differs above it.
    np.testing.assert_allclose(agent._q, expected, rtol=0, atol=1e-9)
    left = np.arange(H, 0, -1)[:, None, None]
    np.testing.assert_allclose(agent.action_values, np.minimum(expected, left), rtol=0, atol=1e-9)
    assert (expected < left - 0.05).any() or (cls, bonus) == (OptimisticQLearning, "proved")


@pytest.mark.parametrize("mdp", MDPS, ids=["two states", "cliff", "river"])
@pytest.mark.parametrize("cls", ALGORITHMS)
def test_no_bound_is_ever_below_the_optimal_value(cls: type[OptimisticQLearning], mdp: EnumerableMDP) -> None:
    optimal, acting = optimal_action_values(mdp), ~mdp.terminal.numpy()
    for seed in range(3):
        agent, env = make(cls, mdp, 400, "proved", seed), StepObservedEnv(mdp)
        env.reset(seed=seed)
        for _ in range(400):
            run_episode(agent, env)
            assert (agent.action_values - optimal)[:, acting].min() > -1e-12


@pytest.mark.parametrize("cls", [VUCQ, UCBMQ])
def test_proved_bounds_come_down_to_the_optimal_value(cls: type[OptimisticQLearning]) -> None:
    """Bounds that hold are easy: those of no use do. Where the MDP is known best these are within .7 of H = 3."""
    mdp = MDPS[0]
    agent, env = make(cls, mdp, 3_000, "proved", 0), StepObservedEnv(mdp)
    env.reset(seed=0)
    for _ in range(3_000):
        run_episode(agent, env)
    excess = agent.action_values - optimal_action_values(mdp)
    assert excess.min() < 0.7


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_regret_is_sublinear(cls: type[OptimisticQLearning]) -> None:
    mdp = MDPS[0]
    best, lost = optimal_value(mdp), []
    for seed in range(3):
        agent, env = make(cls, mdp, 1_200, "simplified", seed), StepObservedEnv(mdp)
        env.reset(seed=seed)
        for _ in range(1_200):
            lost.append(best - policy_value(mdp, agent.policy()))
            run_episode(agent, env)
    thirds = np.array(lost).reshape(3, 3, 400).sum(axis=(0, 2))
    assert thirds.min() >= -1e-9
    # A third of the episodes has the third of a linear regret: 3, 1, 1 times the last are the least fall asked for.
    assert thirds[2] < 0.35 * thirds[0]


def test_momentum_and_reference_are_worth_it_where_bounds_hold() -> None:
    """As theory has it: by the same confidence the variance-reduced bounds are tighter than Q-learning's."""
    mdp, excess = MDPS[0], {}
    for cls in ALGORITHMS:
        agent, env = make(cls, mdp, 1_500, "proved", 0), StepObservedEnv(mdp)
        env.reset(seed=0)
        for _ in range(1_500):
            run_episode(agent, env)
        excess[cls] = (agent.action_values - optimal_action_values(mdp)).mean()
    assert excess[UCBMQ] < excess[VUCQ] < excess[OptimisticQLearning]


def test_an_early_end_is_known_to_earn_nothing_more() -> None:
    agent = OptimisticQLearning(4, 2, 1, 10, reward_range=(-1.0, 1.0))
    agent.update(1, 0, 0, -1.0, 1, terminated=True)
    # Rewards of 0 are one half of the range, for two more steps.
    assert agent._v[2, 1] == pytest.approx(1.0)
    assert agent._v[3, 1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"n_episodes": 0}, "n_episodes must be at least 1, got 0"),
        ({"bonus": "none"}, "got 'none'"),
        ({"reward_range": (0.5, 1.0)}, "hold 0"),
        ({"reward_range": (0.0, math.inf)}, "finite"),
        ({"reward_range": (0.0, math.nan)}, "finite"),
        ({"delta": 1.0}, "between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UCBMQ(**{"horizon": 2, "n_states": 2, "n_actions": 2, "n_episodes": 5, **arguments})


@pytest.mark.parametrize("reward", [1.5, -0.1, math.nan, math.inf])
def test_a_reward_outside_the_range_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="reward"):
        OptimisticQLearning(2, 2, 2, 5).update(0, 0, 0, reward, 1, False)
