from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from stable_baselines3 import A2C
from typer.testing import CliRunner

from experiments.cli import app
from experiments.studies.fuzz import OUTCOMES, draw, is_clear, measure
from storm_rl import GPOMDP
from storm_rl.optim import STORMPlus


def test_samples_are_counted_listed_and_not_repeated(tmp_path: Path) -> None:
    command = ["fuzz", "--output", str(tmp_path), "--samples"]
    for samples in (4, 6):
        assert CliRunner().invoke(app, [*command, str(samples)], catch_exceptions=False).exit_code == 0
    rows = pd.read_csv(tmp_path / "samples.csv")
    assert rows["sample"].tolist() == list(range(6))
    assert set(rows["outcome"]) <= set(OUTCOMES)
    assert pd.read_csv(tmp_path / "counts.csv")[list(OUTCOMES)].to_numpy().sum() == 6
    assert "6 samples" in (tmp_path / "README.md").read_text()


def test_a_sample_can_be_repeated() -> None:
    assert measure(3, 5) == measure(3, 5)


@pytest.mark.parametrize("seed", range(5))
def test_samples_can_be_drawn(seed: int) -> None:
    for sample in range(40):
        assert draw(np.random.default_rng([seed, sample])).subject


def raised(action: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        action()
    return caught.value


def test_only_what_the_package_says_itself_is_clear() -> None:
    env = gymnasium.make("CartPole-v1")
    assert is_clear(raised(lambda: GPOMDP("MlpPolicy", env, gamma=2.0)), ["gamma"])
    assert is_clear(raised(lambda: STORMPlus([torch.zeros(2)], lr=-1.0)), ["lr"])
    assert is_clear(raised(lambda: GPOMDP("MlpPolicy", env, policy_kwargs={"nonsense": 1})), ["policy_kwargs"])
    assert is_clear(raised(lambda: A2C("MlpPolicy", env, use_sde=True)), ["use_sde"])
    assert not is_clear(raised(lambda: GPOMDP("MlpPolicy", env).learn(2, callback=3)), ["callback"])  # type: ignore[arg-type]
    assert not is_clear(raised(lambda: torch.zeros(2) @ torch.zeros(3)), ["lr"])
    assert not is_clear(raised(lambda: STORMPlus(3.0)), ["params"])  # type: ignore[arg-type]
