"""The study of the optimisers: resumable, and rebuilt from its file alone."""

import json
from pathlib import Path

import pytest
import torch

from experiments.studies.optimisers import report, runs
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
    job = runs.Job("norms", "random phase", "STORM+", 0, 50)
    first = runs.perform(job, tmp_path)
    (path,) = tmp_path.iterdir()
    stored = json.loads(path.read_text())
    stored["marker"] = 1
    path.write_text(json.dumps(stored))
    assert runs.perform(job, tmp_path)["marker"] == 1
    assert first["curves"]["mean"] == stored["curves"]["mean"]


def test_job_names_tell_all_jobs_apart() -> None:
    jobs = runs.tuning_jobs(False) + runs.main_jobs(2, False, lambda *key: 0.1)
    assert len({job.name for job in jobs}) == len(set(jobs)) == len(jobs)


def test_a_diverging_run_is_recorded_and_not_raised() -> None:
    record = runs.run(runs.Job("scale", "robust regression", "SGD", 0, 200, setting=1e3, scale=1e4))
    assert record["diverged"]


def test_slope_of_a_power_law_is_its_exponent() -> None:
    samples = [float(10 ** (k / 10)) for k in range(10, 41)]
    assert report.slope(samples, [s ** (-1 / 3) for s in samples]) == pytest.approx(-1 / 3)


def test_stored_runs_give_the_same_bytes_again(tmp_path: Path) -> None:
    record = runs.perform(runs.Job("norms", "random phase", "SGD", 0, 50, setting=0.1), tmp_path / "runs")
    report.write_raw([record], [], tmp_path / "a.gz")
    report.write_raw(report.read_raw(tmp_path / "a.gz")[0], [], tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
