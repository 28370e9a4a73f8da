"""STORM+, STORM and META-STORM against SGD and Adam: gradient norms, loss scales, digits, cost."""

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.files import write_atomically
from experiments.studies.optimisers import cost, report, runs

RESULTS = Path("experiments/results/optimisers")


def optimisers(
    output: Annotated[Path, typer.Option(help="Tables, plots, all runs in one compressed file.")] = RESULTS,
    runs_folder: Annotated[
        Path, typer.Option("--runs", help="One file a finished run; what is there is not run again.")
    ] = Path("runs/optimisers"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 .. n-1 of every measured run.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="Runs in parallel; the cost is measured alone.")] = 1,
    quick: Annotated[bool, typer.Option(help="Short runs, to see that everything works.")] = False,
    report_only: Annotated[bool, typer.Option(help="Rebuild from the compressed file, run nothing.")] = False,
) -> None:
    """Compare the optimisers with SGD and Adam: gradient norms, loss scales, digits, cost."""
    main(output, seeds, workers, quick, runs_folder=runs_folder, report_only=report_only)


def main(
    output: Path,
    seeds: int,
    workers: int,
    quick: bool,
    *,
    runs_folder: Path = Path("runs/optimisers"),
    report_only: bool = False,
) -> None:
    """Run what is missing, store it compactly, and write tables and plots.

    Args:
        output: Folder of the results; its ``runs.json.gz`` holds all runs.
        seeds: Number of seeds.
        workers: Parallel runs; each has one thread.
        quick: Short runs and small networks.
        runs_folder: One file for each finished run, and each size of the cost; skipped on restart.
        report_only: Run nothing, rebuild tables and plots from ``output``.
    """
    raw = output / "runs.json.gz"
    if not report_only:
        folder = runs_folder / ("quick" if quick else "full")
        tuning = perform_all("tuning", runs.tuning_jobs(quick), folder, workers)
        ends: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
        for record in tuning:
            key = record["problem"], record["method"], record["steps"]
            ends.setdefault(key, []).append((runs.score(record, quick), record["setting"]))
        best = {key: min(values)[1] for key, values in ends.items()}
        jobs = runs.main_jobs(seeds, quick, lambda *key: best.get(key))
        records = perform_all("measuring", jobs, folder, workers)
        costs = [row for size in cost.sizes(quick) for row in measured_cost(size, quick, folder)]
        report.write_raw(tuning + records, costs, raw)
    records, costs = report.read_raw(raw)
    report.build(records, costs, output)
    Console().print(f"Tables and plots are in {output}")


def perform_all(title: str, jobs: list[runs.Job], folder: Path, workers: int) -> list[dict[str, Any]]:
    """All jobs, in their order."""
    done: dict[runs.Job, dict[str, Any]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(title, total=len(jobs))
        if workers == 1:
            for job in jobs:
                progress.update(task, description=f"{title}: {job.study} {job.problem} {job.method}")
                done[job] = runs.perform(job, folder)
                progress.advance(task)
        else:
            with ProcessPoolExecutor(workers) as pool:
                waiting = {pool.submit(runs.perform, job, folder): job for job in jobs}
                for future in as_completed(waiting):
                    done[waiting[future]] = future.result()
                    progress.advance(task)
    return [done[job] for job in jobs]


def measured_cost(size: int, quick: bool, folder: Path) -> list[dict[str, Any]]:
    """The rows of one network size, measured or as stored."""
    path = folder / f"cost_{size}.json"
    if not path.exists():
        with Console().status(f"cost of a step at {size:,} parameters"):
            rows = cost.measure(size, quick)
        write_atomically(path, json.dumps(rows).encode())
    stored: list[dict[str, Any]] = json.loads(path.read_text())
    return stored
