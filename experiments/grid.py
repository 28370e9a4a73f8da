"""A grid of runs in local processes, one torch thread each, with progress; finished runs are skipped."""

import multiprocessing
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.queues import Queue
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from envs import get_task
from experiments.runs import RunSpec, execute

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_grid(
    specs: Sequence[RunSpec], folder: Path, workers: int, console: Console, budget: int | None = None
) -> list[RunSpec]:
    """Carry out every run that has no file yet, ``workers`` at a time.

    Ctrl-C stops at once and loses only the runs under way; the same call continues.

    Args:
        specs: The runs.
        folder: The study's folder.
        workers: Processes at a time.
        console: Where progress is shown.
        budget: Env steps of each run in place of the task's own.

    Returns:
        The runs that failed; each has left a file with its traceback.
    """
    todo = [spec for spec in specs if not (folder / "raw" / f"{spec.stem}.json.gz").exists()]
    if len(todo) < len(specs):
        console.print(f"{len(specs) - len(todo)} of {len(specs)} runs are already in {folder}.")
    if not todo:
        return []
    # Inherited by the workers: one thread each, from the first import on.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    context = multiprocessing.get_context("spawn")
    reports: Queue[tuple[int, int]] = context.Queue()
    with _progress(console) as progress:
        overall = progress.add_task(f"{len(todo)} runs", total=len(todo), unit="runs")
        bars = [
            progress.add_task(
                escape(spec.stem), total=budget or get_task(spec.task).budget, visible=False, unit="env steps"
            )
            for spec in todo
        ]
        executor = ProcessPoolExecutor(
            min(workers, len(todo)), mp_context=context, initializer=_start_worker, initargs=(reports,)
        )
        try:
            futures = {executor.submit(_run, spec, folder, index, budget): index for index, spec in enumerate(todo)}
            failed = _follow(futures, reports, progress, overall, bars, [spec.stem for spec in todo])
        except BaseException:
            for process in (executor._processes or {}).values():
                process.terminate()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        executor.shutdown()
    return [todo[index] for index in failed]


# In a worker: where its runs report their progress. A queue can only be inherited, not sent with a run.
_reports: "Queue[tuple[int, int]] | None" = None


def _start_worker(reports: "Queue[tuple[int, int]]") -> None:
    """Set up a worker: keep the queue, and end with the process that started it, even if that is killed."""
    global _reports
    _reports = reports
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(spec: RunSpec, folder: Path, index: int, budget: int | None) -> None:
    def report(steps: int) -> None:
        if _reports is not None:
            _reports.put((index, steps))

    report(0)
    execute(spec, folder, report, budget)


def _follow(
    futures: dict[Future[None], int],
    reports: "Queue[tuple[int, int]]",
    progress: Progress,
    overall: TaskID,
    bars: Sequence[TaskID],
    names: Sequence[str],
) -> dict[int, BaseException]:
    failed: dict[int, BaseException] = {}
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
        while True:
            try:
                index, steps = reports.get_nowait()
            except queue.Empty:
                break
            progress.update(bars[index], completed=steps, visible=True)
        for future in done:
            index = futures[future]
            progress.update(bars[index], visible=False)
            progress.advance(overall)
            error = future.exception()
            if error is not None:
                failed[index] = error
            # A line a run, for logs and terminals that show no moving bars.
            outcome = "finished" if error is None else f"[red]failed[/] ({error!r})"
            progress.console.print(f"{progress.tasks[overall].completed:.0f}. {escape(names[index])} {outcome}")
    return failed


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        console=console,
    )
