from pathlib import Path

import pandas as pd
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env

from experiments.studies import gradient_error
from storm_rl.gpomdp import GPOMDP


def test_small_study_writes_its_tables_and_its_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LARGE", 6), ("SMALL", 3), ("N_STEPS", 2), ("MEASURED_AT", (2,)), ("EQUAL", 4)):
        monkeypatch.setattr(gradient_error, name, value)
    gradient_error.gradient_error("CartPole-v1", [500], [1e-3], 1, 30, tmp_path)
    errors = pd.read_csv(tmp_path / "errors_CartPole-v1.csv")
    assert set(errors["estimator"]) == {
        "reinforce",
        "gpomdp",
        "gae",
        "svrpg",
        "srvrpg",
        "storm",
        "storm_plus",
        "gpomdp_equal",
    }
    assert errors["cosine"].between(-1, 1).all()
    weights = pd.read_csv(tmp_path / "weights_CartPole-v1.csv")
    assert weights["effective"].between(0, 1 + 1e-6).all()
    assert (tmp_path / "gradient_error_CartPole-v1.png").exists()


def test_a_step_has_the_kl_that_was_asked_for() -> None:
    model = GPOMDP("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), batch_size=5, seed=0).learn(100)
    batch = gradient_error.collect(model, 5)
    point = model._law.point()
    gradient = gradient_error.estimate(model, batch, [point])["gpomdp"]
    before = torch.log_softmax(model.policy.get_distribution(batch.observations).distribution.logits, -1)  # type: ignore
    gradient_error.make_step(model, batch, gradient, 1e-3)
    after = torch.log_softmax(model.policy.get_distribution(batch.observations).distribution.logits, -1)  # type: ignore
    kl = (before.exp() * (before - after)).sum(-1).mean().item()
    assert kl == pytest.approx(1e-3, rel=0.05)
