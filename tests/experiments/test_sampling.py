"""The study of sampling: fits as they were, replays that are the library's, and figures from rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector
from typer.testing import CliRunner

from experiments.cli import app
from experiments.studies import sampling
from experiments.studies.sampling import replay, report
from experiments.studies.sampling.fits import Fit, RecordingAgent, recorded_fits
from experiments.studies.sampling.replay import METHODS, Method, Replay, first_step, smoothed
from storm_rl import STORMPlusPG
from storm_rl.storm_plus_pg.numpy_actor_critic import mlp_from_modules

FEW: dict[str, Any] = {"n_steps": 32, "critic_steps": 8}


def made_up(n: int = 300, steps: int = 24) -> tuple[Fit, nn.Sequential]:
    """A fit of a small network in double precision, and the network."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    shared = mlp_from_modules(module)
    assert shared is not None
    network = shared.with_parameters(shared.flat())
    rng = np.random.default_rng(0)
    inputs, fresh = rng.standard_normal((2, n, 2))
    group = dict(torch.optim.Adam(module.parameters()).param_groups[0])
    data = inputs, np.sin(3 * inputs[:, 0]) ** 9
    minibatches = [np.arange(128)] * steps
    fit = Fit("critic", 1, *data, network, group, [{}] * 4, fresh, np.sin(3 * fresh[:, 0]) ** 9, minibatches)
    return fit, module


@pytest.mark.parametrize("task_id", ["CartPole-v1", "MountainCarContinuous-v0"])
def test_a_recorded_run_is_the_default_agents_and_its_fits_are_the_librarys(task_id: str) -> None:
    agent = RecordingAgent(task_id, 0, (3,), **FEW).learn(3 * 256)
    plain = STORMPlusPG("MlpPolicy", make_vec_env(task_id, 8, seed=0), seed=0, device="cpu", **FEW).learn(3 * 256)
    pairs = zip(agent.policy.state_dict().items(), plain.policy.state_dict().values(), strict=True)
    assert all(torch.equal(value, other) for (_, value), other in pairs)
    assert [(fit.name, fit.update) for fit in agent.fits] == [("action values", 3), ("critic", 3)]
    assert agent.action_values is not None
    after = [list(agent.action_values.networks[1].parameters()), agent.policy.critic_parameters()]
    for fit, parameters in zip(agent.fits, after, strict=True):
        assert len(fit.minibatches) == 8
        repeated = Replay(fit)
        for rows in fit.minibatches:
            repeated.step(rows, 1.0 / len(rows))
        assert np.abs(repeated.theta - fit.network.flat()).max() > 1e-3
        assert repeated.theta == pytest.approx(parameters_to_vector(parameters).detach().numpy(), abs=1e-6)


def test_fresh_targets_are_discounted_sums_of_rewards_that_the_fit_does_not_see() -> None:
    agent = RecordingAgent("CartPole-v1", 0, (1,), **FEW).learn(256)
    rollout = agent.player.window.newest
    _, fit = agent.fits
    values = agent.player.policy.predict_values(rollout.last_observations).detach().flatten()
    scale = float(agent.policy.value_scale)
    for env in range(8):
        following = float(values[env])
        for step in reversed(range(len(rollout.dones))):
            following = float(rollout.rewards[step, env]) + 0.99 * following * (not rollout.dones[step, env])
            place = env * len(rollout.dones) + step
            assert fit.fresh_targets[place] * scale == pytest.approx(following, rel=1e-4)
    seen = {tuple(row) for row in agent.window.newest.observations.tolist()}
    assert not seen & {tuple(row) for row in rollout.observations.tolist()}


def test_steps_cut_off_by_a_time_limit_are_not_fitted_to() -> None:
    agent = RecordingAgent("Pendulum-v1", 0, (1,), n_steps=210, critic_steps=8).learn(8 * 210)
    fit = agent.fits[0]
    assert (fit.name, len(fit.inputs)) == ("action values", 8 * 210 - 8)


def test_updates_are_evenly_spaced_and_no_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a run of 1000 env steps on CartPole-v1 has 2 updates, not 3"):
        recorded_fits("CartPole-v1", 0, 1_000, 3)
    fits = recorded_fits("CartPole-v1", 0, 1_500, 2)
    assert [(fit.name, fit.update) for fit in fits] == [("critic", 2), ("action values", 3), ("critic", 3)]


def test_a_step_follows_the_weighted_sum_as_autograd_and_torchs_adam_do() -> None:
    fit, module = made_up()
    under_way, optimizer = Replay(fit), torch.optim.Adam(module.parameters())
    rng = np.random.default_rng(1)
    for _ in range(3):
        rows, weights = rng.permutation(300)[:50], rng.random(50) / 50
        x, y = torch.from_numpy(fit.inputs[rows]), torch.from_numpy(fit.targets[rows])
        losses = functional.mse_loss(module(x).flatten(), y, reduction="none")
        expected = []
        for loss in losses:
            gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
            expected.append(float(parameters_to_vector(gradients).norm()))
        optimizer.zero_grad()
        (losses * torch.from_numpy(weights)).sum().backward()
        optimizer.step()
        norms = under_way.step(rows, weights, norms=True)
        assert norms == pytest.approx(expected, rel=1e-9)
        assert under_way.theta == pytest.approx(parameters_to_vector(module.parameters()).detach().numpy(), abs=1e-12)
    assert parameters_to_vector(module.parameters()).detach().numpy() != pytest.approx(fit.network.flat(), abs=1e-4)


def test_every_method_lowers_the_loss_and_the_exact_one_has_the_least_variance() -> None:
    fit, module = made_up()
    for method in METHODS.values():
        curves = replay.replay(fit, method, 80, (0,))
        assert curves.steps.tolist() == list(range(0, 81, 4))
        assert curves.losses[-1] < curves.losses[0]
    # Equal probabilities in passes are the library's minibatches by another way; all samples draw nothing.
    whole = [replay.replay(fit, Method(whole=True), 8, (seed,)).losses for seed in (0, 1)]
    assert (whole[0] == whole[1]).all()
    start, middle, end = replay.variances(fit, 0)
    assert (start["at"], middle["at"], end["at"]) == (0, 12, 24)
    for row in (start, middle, end):
        assert row["least"] < row["uniform"]
        assert all(row[name] >= -1e-12 for name in ("floor", "last layer"))
    assert np.isnan([start["age 1"], middle["age 20"], end["age 80"]]).all()
    assert 0.0 < end["age 1"] < end["age 20"]
    x, y = torch.from_numpy(fit.inputs), torch.from_numpy(fit.targets)
    module.zero_grad()
    gradients = torch.autograd.grad(functional.mse_loss(module(x).flatten(), y), list(module.parameters()))
    assert start["signal"] == pytest.approx(float(parameters_to_vector(gradients).square().sum()), rel=1e-9)


def test_curves_are_smoothed_and_cross_a_target_where_they_do() -> None:
    values = np.array([8.0, 4.0, 6.0, 2.0, 0.0, 0.0])
    assert smoothed(values).tolist() == [8.0, 6.0, 6.0, 5.0, 3.0, 2.0]
    steps = np.arange(0, 24, 4)
    assert first_step(steps, values, 5.0) == 3.0
    assert first_step(steps, values, 9.0) == 0.0
    assert first_step(steps, values, -1.0) == np.inf


def test_a_method_that_does_not_get_there_is_counted_with_all_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, _ = made_up()
    monkeypatch.setattr(replay, "METHODS", {"uniform": METHODS["uniform"], "slow": METHODS["uniform"]})
    original = replay.replay

    def slowed(fit: Fit, method: Method, n_steps: int, seed: tuple[int, ...]) -> replay.Curves:
        curves = original(fit, method, n_steps, seed)
        return curves._replace(losses=curves.losses + (seed[2] == 1))

    monkeypatch.setattr(replay, "replay", slowed)
    ours, slow = replay.replayed(fit, 1, 0)
    assert ours["reached"]
    assert ours["needed"] <= 24
    assert (slow["reached"], slow["needed"]) == (False, 32.0)
    assert slow["loss_0"] == pytest.approx(ours["loss_0"] + 1)


def test_intervals_are_of_seeds_whose_updates_are_averaged() -> None:
    index = pd.MultiIndex.from_product([["a", "b"], [0, 1, 2], [1, 2]], names=["task", "seed", "update"])
    values = pd.Series(np.exp(np.arange(12.0)), index=index)
    # Logarithms of a seed: 0.5 and 6.5 of seed 0 make 3.5, those of the others 5.5 and 7.5.
    found = report.over_seeds(values)
    half = 4.302653 * 2.0 / np.sqrt(3)
    assert np.log(found) == pytest.approx([5.5, 5.5 - half, 5.5 + half], rel=1e-6)
    one = report.over_seeds(values[values.index.get_level_values("seed") == 0])
    assert np.isnan(one.low)
    by_task = report.by_task(values)
    assert list(by_task) == ["a", "b", "all tasks"]
    assert by_task["a"].value == pytest.approx(np.exp(2.5))
    assert by_task["all tasks"] == found


def test_rows_tables_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: METHODS[name] for name in ("uniform", "uniform, once more", "last layer, every 20", "all samples")}
    monkeypatch.setattr(sampling, "ENV_STEPS", {"CartPole-v1": 512})
    for module in (replay, sampling):
        monkeypatch.setattr(module, "METHODS", few)
    monkeypatch.setattr(report, "OTHERS", list(few)[2:])
    few_runs = ["--task", "CartPole-v1", "--seeds", "1", "--updates", "1", "--repeats", "1"]
    command = ["sampling", "--output", str(tmp_path), *few_runs]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "fits.csv")
    assert len(rows) == 2 * len(few)
    # A replay by other draws: its first loss is the same, the others are not.
    first = rows[rows["method"].isin(list(few)[:2]) & (rows["fit"] == "critic")]
    assert first["loss_0"].nunique() == 1
    assert first["loss_10"].nunique() == 2
    text = (tmp_path / "sampling.md").read_text()
    needed = rows[rows["fit"] == "critic"].set_index("method")["needed"]
    assert f"| all samples | {needed['all samples'] / needed['uniform, once more']:.2f} |" in text
    assert (tmp_path / "sampling.png").exists()
    monkeypatch.setattr(sampling, "recorded_fits", lambda *_: pytest.fail("run again"))
    assert CliRunner().invoke(app, command).exit_code == 0
    result = CliRunner().invoke(app, ["sampling", "--output", str(tmp_path), "--task", "FrozenLake-v1"])
    assert "the study has no length of a run on FrozenLake-v1" in str(result.exception)
