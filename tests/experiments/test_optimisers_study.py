"""The study of the optimisers: resumable, and rebuilt from its file alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.rows import Rows
from experiments.studies import optimisers as study
from experiments.studies.optimisers import jobs, report
from experiments.studies.optimisers.problems import PROBLEMS


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_true_gradient_is_the_mean_of_the_stochastic_ones(name: str) -> None:
    problem = PROBLEMS[name]()
    generator = torch.Generator().manual_seed(0)
    x = problem.start + 0.3
    samples = torch.stack([problem.value_and_gradient(x, problem.draw(generator))[1] for _ in range(4000)])
    standard_error = samples.std(0) / len(samples) ** 0.5
    # 60 comparisons at 5 standard errors.
    assert ((samples.mean(0) - problem.true_gradient(x)).abs() < 5 * standard_error + 1e-12).all()


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    problem = PROBLEMS[name]()
    sample = problem.draw(torch.Generator().manual_seed(0))
    x = (problem.start + 0.3).requires_grad_()
    value, gradient = problem.value_and_gradient(x, sample)
    (expected,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(gradient.detach(), expected)


def test_a_finished_run_is_read_and_not_repeated(tmp_path: Path) -> None:
    asked = [jobs.Job("norms", "random phase", "STORM+", 0, 50), jobs.Job("norms", "random phase", "SGD", 0, 50, 0.1)]
    first = study.perform_all("", asked, Rows(tmp_path / "runs.csv", study.KEY), 1)
    assert [record["method"] for record in first] == ["STORM+", "SGD"]
    assert [record["setting"] for record in first] == [None, 0.1]
    text = (tmp_path / "runs.csv").read_text()
    (tmp_path / "runs.csv").write_text(text.replace('""diverged"": false', '""diverged"": true'))
    again = study.perform_all("", asked[::-1], Rows(tmp_path / "runs.csv", study.KEY), 1)[::-1]
    assert [record["curves"].pop("diverged") for record in again] == [True, True]
    assert [record["curves"].pop("diverged") for record in first] == [False, False]
    assert again == first


def test_no_two_jobs_are_one_row(tmp_path: Path) -> None:
    asked = jobs.tuning_jobs(False) + jobs.main_jobs(2, False, lambda *key: 0.1)
    rows = Rows(tmp_path / "runs.csv", study.KEY)
    rows.add(vars(job) for job in asked)
    assert len(Rows(tmp_path / "runs.csv", study.KEY).table()) == len(set(asked)) == len(asked)


def test_cost_of_a_size_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.cost, "sizes", lambda _: [100])
    first = study.measured_cost(True, tmp_path / "cost.csv")
    assert first[0]["method"] == "forward-backward"
    assert first[0]["ratio"] is None

    def refuse(*args: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(study.cost, "measure", refuse)
    assert study.measured_cost(True, tmp_path / "cost.csv") == first


def test_a_diverging_run_is_recorded_and_not_raised() -> None:
    record = jobs.run(jobs.Job("scale", "robust regression", "SGD", 0, 200, setting=1e3, scale=1e4))
    assert record["diverged"]


def test_slope_of_a_power_law_is_its_exponent() -> None:
    samples = [float(10 ** (k / 10)) for k in range(10, 41)]
    assert report.slope(samples, [s ** (-1 / 3) for s in samples]) == pytest.approx(-1 / 3)


def test_stored_runs_give_the_same_bytes_again(tmp_path: Path) -> None:
    job = jobs.Job("norms", "random phase", "SGD", 0, 50, setting=0.1)
    record = {**vars(job), "curves": jobs.run(job)}
    report.write_raw([record], [], tmp_path / "a.gz")
    report.write_raw(report.read_raw(tmp_path / "a.gz")[0], [], tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
