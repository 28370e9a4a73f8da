"""The study of momentum under delay: its theory against simulated loops, streaming PCA, and injected delays."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from envs.batched import make_vec
from experiments.cli import app
from experiments.studies.delay import pca, plan, study
from experiments.studies.delay.pca import EIGENVALUES, Memory, gradient, predicted_delay, simulate
from experiments.studies.delay.stability import allowed_delay, lag_floor, loop_gain
from storm_rl import STORMPlusPG
from tests.contract.cases import assert_equal_states


def grows(gain: float, momentum: float, delay: int) -> bool:
    """Whether the heavy ball with a delay leaves the minimum of a parabola."""
    points = [1.0] * (delay + 2)
    for _ in range(6000):
        points.append(points[-1] + momentum * (points[-1] - points[-2]) - gain * points[-1 - delay])
        if abs(points[-1]) > 1e6:
            return True
    return max(map(abs, points[-500:])) > max(map(abs, points[-2500:-2000]))


@pytest.mark.parametrize(("gain", "momentum"), [(0.004, 0.95), (0.004, 0.9), (0.1, 0.5), (0.04, 0.0), (0.9, 0.0)])
def test_loops_are_stable_up_to_the_allowed_delay(gain: float, momentum: float) -> None:
    limit = allowed_delay(gain, momentum)
    assert not grows(gain, momentum, int(limit))
    assert grows(gain, momentum, int(limit) + 1)


def test_allowed_delay_is_the_closed_form_without_momentum_and_falls_with_it() -> None:
    for gain in (0.01, 0.3, 1.0, 1.9):
        closed = np.pi / (4.0 * np.arcsin(gain / 2.0)) - 0.5
        assert allowed_delay(gain) == pytest.approx(max(0.0, closed), rel=1e-9)
    delays = [allowed_delay(0.004, momentum) for momentum in (0.0, 0.7, 0.8, 0.85, 0.9, 0.95)]
    assert delays == sorted(delays, reverse=True)
    # Where the gain is far below (1 - mu)^2, in proportion to 1 - mu.
    assert allowed_delay(1e-6, 0.8) / allowed_delay(1e-6, 0.6) == pytest.approx(0.5, rel=1e-3)
    assert allowed_delay(0.0) == np.inf
    assert allowed_delay(4.5, 0.5) == 0.0
    with pytest.raises(ValueError, match="momentum must be in"):
        allowed_delay(0.1, 1.0)
    with pytest.raises(ValueError, match="gain must be 0 or more, got -1"):
        allowed_delay(-1.0)


def test_floor_of_a_running_mean_lets_lags_add_up_to_what_is_borne_without_memory() -> None:
    for gain, delay in ((0.2, 1.0), (0.2, 7.0), (0.05, 20.0)):
        a = lag_floor(gain, delay)
        assert 0.0 < a < 1.0
        assert delay + (1.0 - a) / a == pytest.approx(allowed_delay(gain))
    assert lag_floor(0.2, 7.4) == lag_floor(2.0, 1.0) == lag_floor(5.0, 0.5) == 1.0
    assert lag_floor(0.5, 0.0) == lag_floor(0.0, 5.0) == 0.0


def test_loop_gain_is_the_share_of_the_direction_by_which_the_gradient_has_changed() -> None:
    hessian, direction = torch.tensor([[0.5, 0.2], [0.2, 0.9]]), torch.tensor([1.0, -2.0])
    expected = float(direction @ hessian @ direction / (direction @ direction))
    assert loop_gain(direction, -0.3 * hessian @ direction) == pytest.approx(0.3 * expected)
    assert loop_gain(direction, direction) == loop_gain(torch.zeros(2), torch.ones(2)) == 0.0


def test_the_rule_is_the_recursions_own() -> None:
    pytest.importorskip("ray")
    from experiments.studies.delay.learning import FlooredRecursion
    from storm_rl.distributed.recursion import DelayedRecursion

    gradients = torch.tensor([[1.0, 0.0], [1.2, 0.1], [0.9, -0.2]], dtype=torch.float64)
    for delay, last_step in ((0.0, 0.5), (1.0, 0.06), (2.0, 0.06), (9.0, 0.5)):
        found = []
        for recursion in (DelayedRecursion(), FlooredRecursion("rule")):
            recursion.direction, recursion.previous_parameters = gradients.mean(dim=0), torch.zeros(2).double()
            recursion.delay, recursion.last_step = delay, last_step
            found.append(recursion.next_momentum(torch.ones(2).double(), gradients, 0.9 * gradients, 0.0))
        assert found[0] == found[1]


def test_solutions_of_streaming_pca_are_where_the_mean_gradient_vanishes() -> None:
    # Samples +- sqrt(4 lambda_i) e_i, each as likely: their covariance is diag(lambda), exactly.
    samples = np.diag(np.sqrt(4.0 * EIGENVALUES))

    def mean(point: Any) -> Any:
        return gradient(np.asarray(point)[None], samples).mean(axis=0)

    for index, vector in enumerate(np.eye(4)):
        np.testing.assert_allclose(mean(vector), 0.0, atol=1e-12)
        # The Jacobian there: lambda_j - lambda_i across, -2 lambda_i along; all negative for the leading one alone.
        jacobian = np.stack([(mean(vector + 1e-6 * e) - mean(vector - 1e-6 * e)) / 2e-6 for e in np.eye(4)])
        expected = EIGENVALUES - EIGENVALUES[index]
        expected[index] = -2.0 * EIGENVALUES[index]
        np.testing.assert_allclose(jacobian, np.diag(expected), atol=1e-6)
        assert (expected.max() < 0.0) == (index == 0)
    assert -2.0 * EIGENVALUES[0] == -pca.CURVATURE


@pytest.mark.parametrize("memory", list(Memory))
def test_without_memory_and_delay_every_rule_is_ojas(memory: Memory) -> None:
    n_steps, n_runs, step_size = 50, 3, 0.01
    _, points = simulate(memory, np.array([1.0]), np.array([0]), step_size, n_steps, n_runs, seed=4)
    rng = np.random.default_rng(4)
    expected = rng.standard_normal((n_runs, 4))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for _ in range(n_steps):
        samples = rng.uniform(-1.0, 1.0, (n_runs, 4)) * np.sqrt(3.0 * EIGENVALUES)
        for run in range(n_runs):
            x, v = samples[run], expected[run]
            expected[run] = v + step_size * (np.outer(x, x) @ v - (v @ np.outer(x, x) @ v) * v)
    np.testing.assert_allclose(points[0], expected, atol=1e-12)


@pytest.mark.parametrize("memory", list(Memory))
def test_each_memory_with_a_delay_is_its_naive_form(memory: Memory) -> None:
    a, delay, n_steps, step_size = 0.3, 3, 40, 0.02
    _, found = simulate(memory, np.array([0.9, a]), np.array([0, delay]), step_size, n_steps, 2, seed=1)
    rng = np.random.default_rng(1)
    start = rng.standard_normal((2, 4))
    points = [start / np.linalg.norm(start, axis=1, keepdims=True)]
    direction = np.zeros((2, 4))
    for step in range(n_steps):
        samples = rng.uniform(-1.0, 1.0, (2, 4)) * np.sqrt(3.0 * EIGENVALUES)
        newest = gradient(points[max(0, step - delay)], samples)
        before = gradient(points[max(0, step - 1 - delay)], samples)
        if memory == Memory.HEAVY_BALL:
            moved = (1.0 - a) * (points[-1] - points[max(0, step - 1)]) + step_size * newest
        else:
            mixed = a * newest + (1.0 - a) * direction
            correction = (1.0 - a) * (newest - before) if memory == Memory.TWO_POINT else 0.0
            direction = newest if step == 0 else mixed + correction
            moved = step_size * direction
        points.append(points[-1] + moved)
    np.testing.assert_allclose(found[1], points[-1], atol=1e-12)


def test_delay_that_a_running_mean_does_not_bear_the_two_point_recursion_does() -> None:
    weight, step_size, delay = 0.05, 0.01, 18
    assert predicted_delay(Memory.MEAN, weight, step_size) < 0.8 * delay
    assert delay < predicted_delay(Memory.TWO_POINT, weight, step_size) < 1.1 * delay
    ratio = {}
    for memory in (Memory.MEAN, Memory.TWO_POINT):
        found, _ = simulate(memory, np.array([weight, weight]), np.array([0, delay]), step_size, 4000)
        without, stale = np.median(found, axis=1)
        ratio[memory] = stale / without
    assert ratio[Memory.MEAN] > pca.BORNE
    assert ratio[Memory.TWO_POINT] < 1.5


def test_borne_delay_is_where_the_error_has_doubled() -> None:
    delays = np.array([0.0, 10.0, 20.0, 30.0])
    assert pca.borne_delay(delays, np.array([0.1, 0.1, 0.4, 0.9])) == pytest.approx(15.0)
    assert np.isnan(pca.borne_delay(delays, np.array([0.1, 0.1, 0.15, 0.19])))


def delayed(task: str, delay: int, **arguments: Any) -> Any:
    from experiments.studies.delay.learning import DelayedSTORMPlusPG

    small = {"n_steps": 16, "critic_steps": 4, "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    return DelayedSTORMPlusPG("MlpPolicy", make_vec(task, 4, seed=0), delay=delay, **{**small, **arguments})


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_without_delay_the_run_is_the_agents_bit_for_bit(task: str) -> None:
    pytest.importorskip("ray")
    small = {"n_steps": 16, "critic_steps": 4, "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    plain = STORMPlusPG("MlpPolicy", make_vec(task, 4, seed=0), **small).learn(320)  # type: ignore[arg-type]
    for floor in ("none", "rule", "lag"):
        model = delayed(task, 0, floor=floor).learn(320)
        assert_equal_states(plain.get_parameters(), model.get_parameters())


@pytest.mark.parametrize("delay", [1, 3])
def test_rollouts_are_of_the_policy_of_so_many_updates_ago(delay: int) -> None:
    pytest.importorskip("ray")
    model = delayed("Pendulum-v1", delay)
    policies, train = [], model.train

    def checked_train() -> None:
        present = {name: part.clone() for name, part in model.policy.state_dict().items()}
        policies.append(present)
        rollout = model.window.newest
        log_prob = {}
        for age in range(min(delay + 2, len(policies))):
            model.policy.load_state_dict(policies[-1 - age])
            actor = model.networks().actor(rollout.observations)
            log_prob[age] = actor.distribution().log_prob(rollout.actions)
        model.policy.load_state_dict(present)
        age = min(delay, len(policies) - 1)
        behaviour = rollout.log_prob.reshape(-1)
        torch.testing.assert_close(log_prob.pop(age), behaviour, atol=1e-5, rtol=1e-5)
        assert not any(torch.allclose(other, behaviour, atol=1e-3) for other in log_prob.values())
        train()
        assert model.recursion.delay == age

    model.train = checked_train
    model.learn(64 * 6)
    assert len(policies) == 6
    # The policy that is left, and evaluated, is the newest.
    assert_equal_states(model.newest, model.policy.state_dict())
    with pytest.raises(ValueError, match="delay must be 0 or more updates, got -1"):
        delayed("Pendulum-v1", -1)


@pytest.mark.slow
def test_floors_that_never_bind_share_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from experiments.studies.delay import learning

    monkeypatch.setitem(learning.BUDGETS, "CartPole-v1", 3_000)
    rows = {row["floor"]: row for row in learning.learned("default", "CartPole-v1", 2, "none", 0)}
    assert {"none", "0.1"} <= set(rows)
    assert "no memory" not in rows
    (own,) = (row for row in learning.learned("default", "CartPole-v1", 2, "0.1", 0) if row["floor"] == "0.1")
    assert own == rows["0.1"]
    assert own["binds"] == 0.0
    assert (own["steps"], own["reached"]) == (3_000, False)
    # Floors below what is measured are no other's run where that one's floor binds.
    rows = {row["floor"]: row for row in learning.learned("default", "CartPole-v1", 8, "no memory", 0)}
    assert not {"none", "0.1", "lag"} & set(rows)
    assert rows["no memory"]["used"] == 1.0
    assert rows["no memory"]["binds"] > 0.5


@pytest.mark.slow
def test_finished_rows_stay_and_all_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from experiments.studies.delay import learning

    def learned(setting: str, task: str, delay: int, floor: str, seed: int) -> list[dict[str, Any]]:
        names = ("none", "0.1") if floor == "none" else (floor,)
        steps = 5_000.0 + 512 * seed + 1_000 * delay * (1.1 if floor == "rule" else 1.0)
        row = {"setting": setting, "task": task, "delay": delay, "seed": seed, "reached": True, "steps": steps}
        row |= {"updates": 9, "binds": 0.25, "measured": 0.9, "used": 0.9, "median_floor": 0.1, "gain": 0.2}
        return [{**row, "floor": name} for name in names]

    monkeypatch.setattr(learning, "learned", learned)
    monkeypatch.setattr(pca, "N_STEPS", 40)
    monkeypatch.setattr(study, "errors", lambda memory, seed: fake_errors(memory, seed))
    command = ["delay", "--seeds", "3", "--output", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "delay.md").read_text()
    assert "| heavy ball | 0.3 | 75.0 | 75.0 to 75.0 | 115.1 | 0.0100 |" in text
    assert "| two-point | 0.98 | 0.98 |" in text
    assert "| default | CartPole-v1 | 3 | 8 | 0.1 | 13512 | 3/3 | 1, equal env steps | 25% |" in text
    assert "| default | Pendulum-v1 | lag | 25% | 1 | 1.0" in text
    assert "| default | Pendulum-v1 | rule | 25% | 1.0" in text
    assert (tmp_path / "pca.png").exists()
    assert (tmp_path / "learning.png").exists()
    monkeypatch.setattr(learning, "learned", lambda *_: pytest.fail("run again"))
    monkeypatch.setattr(study, "errors", lambda *_: pytest.fail("run again"))
    assert CliRunner().invoke(app, command).exit_code == 0
    assert len(pd.read_csv(tmp_path / "learning.csv")) == 3 * 3 * len(plan.DELAYS) * len(plan.FLOORS)
    from experiments.studies.delay.learning import RULES

    assert tuple(RULES) == plan.FLOORS


def fake_errors(memory: Memory, seed: int) -> list[dict[str, Any]]:
    return [
        {"memory": memory.value, "weight": weight, "delay": delay, "seed": seed, "error": error}
        for weight in pca.WEIGHTS[memory]
        for delay, error in ((0, 0.01), (50, 0.01), (100, 0.04))
    ]
