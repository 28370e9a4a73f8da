"""The study of regret: what a policy gradient's exact regret is, and rows that stay."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stable_baselines3.common.env_util import make_vec_env
from typer.testing import CliRunner

from envs.finite_horizon import StepObservedEnv, optimal_value, policy_value
from experiments.cli import app
from experiments.studies import tabular_regret
from storm_rl import STORMPlusPG

MDP = tabular_regret.MDPS["two states"]
AGENTS = ["UCBMQ", "optimistic Q-learning", "SVRPG"]


def test_a_models_probabilities_are_those_it_acts_by() -> None:
    env = make_vec_env(lambda: StepObservedEnv(MDP), n_envs=2, seed=0)
    model = STORMPlusPG("MlpPolicy", env, n_steps=16, critic_steps=2, gamma=1.0, seed=0, device="cpu").learn(64)
    policy = tabular_regret.action_probabilities(model, MDP)
    actions = [[model.predict(np.full(3_000, h * MDP.n_states + s))[0] for s in range(2)] for h in range(MDP.horizon)]
    error = np.sqrt(policy[:, :, 1] * policy[:, :, 0] / 3_000)
    assert (np.abs(np.mean(actions, axis=2) - policy[:, :, 1]) < 4.5 * error).all()
    assert np.unique(policy[:, :, 1]).size == policy[:, :, 1].size  # Step and state both matter.


def test_the_first_regret_is_that_of_the_first_policy() -> None:
    uniform = np.full((MDP.horizon, MDP.n_states, MDP.n_actions), 0.5)
    regret, _ = tabular_regret.AGENTS["UCBMQ"](MDP, 0, 20, lambda _: None)
    assert regret[0] == pytest.approx(optimal_value(MDP) - policy_value(MDP, uniform))
    regret, _ = tabular_regret.AGENTS["STORM+PG"](MDP, 0, 20, lambda _: None)
    # A policy network starts near equal chances.
    assert regret[0] == pytest.approx(optimal_value(MDP) - policy_value(MDP, uniform), abs=0.05)
    assert len(regret) == 20


def test_rows_table_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["tabular-regret", "--output", str(tmp_path), "--seeds", "2", "--episodes", "40", "--mdp", "two states"]
    command += [part for agent in AGENTS for part in ("--agent", agent)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "tabular_regret.csv")
    assert set(rows["agent"]) == set(AGENTS)
    assert (rows.groupby(["agent", "seed"])["regret"].apply(lambda regret: regret.is_monotonic_increasing)).all()
    assert rows.loc[rows["agent"] == "UCBMQ", "shortfall"].notna().all()
    text = (tmp_path / "tabular_regret.md").read_text()
    assert "| two states | UCBMQ |" in text
    assert (tmp_path / "tabular_regret.png").exists()
    monkeypatch.setattr(tabular_regret, "AGENTS", dict.fromkeys(tabular_regret.AGENTS))
    assert CliRunner().invoke(app, command).exit_code == 0


@pytest.mark.parametrize(("option", "kind"), [("--agent", "agent"), ("--mdp", "mdp")])
def test_an_unknown_name_is_refused(option: str, kind: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tabular-regret", option, "chess", "--output", str(tmp_path)])
    assert isinstance(result.exception, ValueError)
    assert f"unknown {kind} 'chess'; known: " in str(result.exception)
