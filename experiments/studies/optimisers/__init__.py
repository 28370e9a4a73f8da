"""STORM+, STORM and META-STORM against SGD and Adam: gradient norms, loss scales, digits, cost."""

import dataclasses
import json
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.console import Console

from experiments.progress import Clock
from experiments.rows import Rows
from experiments.studies.optimisers import cost, jobs, report
from experiments.studies.optimisers.jobs import Job

KEY = tuple(field.name for field in dataclasses.fields(Job))


def optimisers(
    output: Annotated[Path, typer.Option(help="Tables, plots, raw rows; runs that are there are not repeated.")] = Path(
        "runs/optimisers"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 .. n-1 of every measured run.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="Runs in parallel; the cost is measured alone.")] = 1,
    quick: Annotated[bool, typer.Option(help="Short runs, to see that everything works.")] = False,
    report_only: Annotated[bool, typer.Option(help="Rebuild from the compressed file, run nothing.")] = False,
) -> None:
    """Compare the optimisers with SGD and Adam: gradient norms, loss scales, digits, cost."""
    compressed = output / "runs.json.gz"
    if report_only and not compressed.exists():
        raise ValueError(f"--report-only: {output} holds no {compressed.name}")
    if not report_only:
        folder = output / "raw" / ("quick" if quick else "full")
        rows = Rows(folder / "runs.csv", KEY)
        tuning = perform_all("tuning", jobs.tuning_jobs(quick), rows, workers)
        ends: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
        for record in tuning:
            key = record["problem"], record["method"], record["steps"]
            ends.setdefault(key, []).append((jobs.score(record, quick), record["setting"]))
        best = {key: min(values)[1] for key, values in ends.items()}
        measuring = jobs.main_jobs(seeds, quick, lambda *key: best.get(key))
        records = perform_all("measuring", measuring, rows, workers)
        report.write_raw(tuning + records, measured_cost(quick, folder / "cost.csv"), compressed)
    report.build(*report.read_raw(compressed), output)
    typer.echo(f"Tables and plots: {output}")


def perform_all(title: str, asked: Sequence[Job], rows: Rows, workers: int) -> list[dict[str, Any]]:
    """The records of all jobs, in their order, after what ``rows`` lack was run; each run has one thread."""
    missing = [job for job in asked if rows.get(*dataclasses.astuple(job)) is None]
    if missing:
        with get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
            finished = zip(missing, pool.imap(jobs.run, missing), strict=True)
            with Clock(Console(), len(missing), len(missing), f"runs of {title}", a_line_each=False) as clock:
                for job, curves in finished:
                    rows.add([{**dataclasses.asdict(job), "curves": json.dumps(curves)}])
                    clock.end(repr(job), 1)
    stored = {job: rows.get(*dataclasses.astuple(job)) for job in asked}
    return [{**dataclasses.asdict(job), "curves": json.loads(row["curves"])} for job, row in stored.items() if row]


def measured_cost(quick: bool, path: Path) -> list[dict[str, Any]]:
    """The rows of all network sizes, after what ``path`` lacks was measured."""
    rows = Rows(path, ("size", "method"))
    missing = [size for size in cost.sizes(quick) if rows.get(size, "STORM+") is None]
    with Clock(Console(), len(missing), len(missing), "sizes") as clock:
        for size in missing:
            with clock.run(f"cost of a step, {size}"):
                rows.add({"size": size, **row} for row in cost.measure(size, quick))
    records = rows.table().drop(columns="size").to_dict("records")
    return [{str(name): None if pd.isna(value) else value for name, value in row.items()} for row in records]
