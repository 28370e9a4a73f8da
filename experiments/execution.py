"""Runs of a study: what is missing is run, with progress; finished runs are skipped, failed ones listed."""

import queue
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from envs import get_task
from experiments.engines import Engine, Outcome, is_full_disk, local_processes
from experiments.files import check_folder, locked, write_atomically
from experiments.progress import Clock
from experiments.runs import RunSpec, check_builds, clear_log, record_failure
from experiments.storage import finished


class LostRunsError(ValueError):
    """What carries runs out is gone; nobody's argument was wrong."""


def run_all(
    specs: Sequence[RunSpec],
    folder: Path,
    workers: int,
    console: Console,
    budget: int | None = None,
    engine: AbstractContextManager[Engine] | None = None,
    rerun_broken: bool = False,
) -> list[RunSpec]:
    """Carry out every run that is not stored yet.

    Ctrl-C stops at once and loses only the runs under way; the same call continues.

    Args:
        specs: The runs.
        folder: The study's folder.
        workers: Local processes at a time, where ``engine`` is None.
        console: Where progress is shown.
        budget: Env steps of each run in place of the task's own.
        engine: Where the runs are carried out; None for processes of this machine.
        rerun_broken: Delete files that are not whole runs, and run those again.

    Returns:
        The runs that failed; each has left a file with its traceback.

    Raises:
        ValueError: Another process at work in the folder, or one that cannot be written into; a stored file that is
            not a whole run of this protocol and budget; a variant or an environment that cannot be built; an engine
            that is out of reach.
        LostRunsError: An engine that was lost on the way.
        OSError: No space left.
    """
    with locked(folder):
        done = finished(folder, list(specs), budget, rerun_broken)
        todo = [spec for spec in specs if spec not in done]
        if done:
            console.print(f"{len(done)} of {len(specs)} runs are already in {folder}.")
        if not todo:
            return []
        # Found now rather than after the training.
        for name in ("raw", "models", "tensorboard"):
            check_folder(folder / name)
        check_builds(todo)
        total = sum(_size(spec, budget) for spec in todo)
        with engine or local_processes(min(workers, len(todo))) as running, Clock(console, len(todo), total) as clock:
            if running.note:
                console.print(running.note)
            return _Follower(running, todo, folder, budget, clock).follow()


def _size(spec: RunSpec, budget: int | None) -> int:
    return budget or get_task(spec.task).budget


class _Follower:
    """Submits runs, shows how far they are, and stores what they return."""

    def __init__(self, engine: Engine, todo: Sequence[RunSpec], folder: Path, budget: int | None, clock: Clock) -> None:
        self.reported = engine.progress
        self.todo = todo
        self.folder = folder
        self.budget = budget
        self.clock = clock
        self.futures: dict[Future[Outcome], int] = {
            engine.submit(index, spec, folder, budget): index for index, spec in enumerate(todo)
        }

    def follow(self) -> list[RunSpec]:
        """Wait for all runs; those that failed."""
        failed: list[RunSpec] = []
        pending = set(self.futures)
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            self._show_progress()
            for future in done:
                index = self.futures.pop(future)
                error = self._store(future, self.todo[index])
                if error is not None:
                    failed.append(self.todo[index])
                self._show_end(index, error)
        return failed

    def _store(self, future: Future[Outcome], spec: RunSpec) -> str | None:
        """Write what the run returned, if that is not done yet; its error."""
        try:
            outcome = Outcome(*future.result())
        except (CancelledError, BrokenExecutor) as lost:
            reason = "a local process was killed" if isinstance(lost, BrokenExecutor) else "the cluster is lost"
            raise LostRunsError(
                f"{reason}, {len(self.futures) + 1} runs are missing; the same command continues with them."
            ) from lost
        except Exception as error:
            if is_full_disk(error):
                raise
            # The run could not speak for itself: its process was killed, or could not start it.
            reason = f"{type(error).__name__}: {error}"
            record_failure(self.folder, spec, reason)
            return reason
        if outcome.files:
            clear_log(self.folder, spec)
        for name, content in outcome.files.items():
            write_atomically(self.folder / name, content)
        return outcome.error

    def _show_progress(self) -> None:
        under_way = set(self.futures.values())
        self.clock.tick()
        while True:
            try:
                index, steps = self.reported.get_nowait()
            except queue.Empty:
                return
            # A number may come after the run's end, by another way than its result.
            if index in under_way:
                self.clock.update(self.todo[index].stem, steps, _size(self.todo[index], self.budget))

    def _show_end(self, index: int, error: str | None) -> None:
        outcome = "finished" if error is None else f"[red]failed[/] ({escape(error)})"
        self.clock.end(self.todo[index].stem, _size(self.todo[index], self.budget), outcome)
