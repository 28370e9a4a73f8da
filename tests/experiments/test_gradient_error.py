import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env

from experiments.studies import gradient_error
from storm_rl.common.importance_weights import per_decision_weights
from storm_rl.episodic import GPOMDP
from storm_rl.episodic.episodes import pad
from storm_rl.episodic.returns import gpomdp_advantages
from tests.episodic.surrogates import score_surrogate


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


def test_estimate_at_another_point_is_weighted_from_the_policy_that_sampled_to_it() -> None:
    model = GPOMDP("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), batch_size=2, seed=0).learn(1)
    batch = gradient_error.collect(model, 3)
    here = {name: values.clone() for name, values in model.action_distribution.point().items()}
    there = {name: values + 0.05 * torch.ones_like(values).cumsum(0) for name, values in here.items()}
    found = gradient_error.estimate(model, batch, [here, there])
    leaves = {name: there[name].clone().requires_grad_(True) for name in model.action_distribution.actor_names}
    target = pad(
        model.action_distribution.with_parameters({**there, **leaves}, batch.observations, batch.actions).double(),
        batch.mask,
    )
    behaviour = pad(model.action_distribution(batch.observations, batch.actions).double(), batch.mask)
    weights = per_decision_weights(target, behaviour, batch.mask)
    advantages = gpomdp_advantages(batch.rewards, batch.mask, model.gamma, "leave_one_out", weights)
    expected = torch.autograd.grad(score_surrogate(target, advantages, batch.mask), list(leaves.values()))
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found["weighted"][0][name], gradient, rtol=1e-4, atol=1e-5)


def test_each_recursion_of_the_study_is_corrected_at_its_own_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are numbers here: g_t = 2^t, 0.1 at the step before and 0.01 at the start of the path."""
    times = itertools.count()

    def estimate(model: object, batch: object, points: list[Any], only_gpomdp: bool = False) -> dict[str, Any]:
        time = 0.0 if only_gpomdp else 2.0 ** next(times)
        weighted = [{"w": torch.tensor(value)} for value in (0.1, 0.01)]
        return {**{name: {"w": torch.tensor(time)} for name in ("gpomdp", "reinforce", "gae")}, "weighted": weighted}

    batch = SimpleNamespace(rewards=torch.rand(2, 3), mask=torch.ones(2, 3, dtype=torch.bool))
    model = SimpleNamespace(action_distribution=SimpleNamespace(point=lambda: {"w": torch.zeros(())}), gamma=1.0)
    for name, replacement in (
        ("N_STEPS", 2),
        ("MEASURED_AT", (2,)),
        ("estimate", estimate),
        ("collect", lambda *_: batch),
        ("make_step", lambda *_: None),
        ("weight_rows", lambda *_: []),
        ("weights_of", lambda *_: []),
        ("compare", lambda found, _: {"found": found["w"].item()}),
    ):
        monkeypatch.setattr(gradient_error, name, replacement)
    found = {row["estimator"]: row["found"] for row in gradient_error.walk(model, 1e-3, 20)[0]}  # type: ignore[arg-type]
    assert found["gpomdp"] == 4.0
    assert found["svrpg"] == pytest.approx(1 + 4 - 0.01)
    assert found["srvrpg"] == pytest.approx((1 + 2 - 0.1) + 4 - 0.1)
    assert found["storm"] == pytest.approx(4 + 0.7 * (2 + 0.7 * (1 - 0.1) - 0.1))


def test_a_step_has_the_kl_that_was_asked_for() -> None:
    model = GPOMDP("MlpPolicy", make_vec_env("CartPole-v1", 2, seed=0), batch_size=5, seed=0).learn(100)
    batch = gradient_error.collect(model, 5)
    point = model.action_distribution.point()
    gradient = gradient_error.estimate(model, batch, [point])["gpomdp"]
    before = torch.log_softmax(model.policy.get_distribution(batch.observations).distribution.logits, -1)  # type: ignore
    gradient_error.make_step(model, batch, gradient, 1e-3)
    after = torch.log_softmax(model.policy.get_distribution(batch.observations).distribution.logits, -1)  # type: ignore
    kl = (before.exp() * (before - after)).sum(-1).mean().item()
    assert kl == pytest.approx(1e-3, rel=0.05)
