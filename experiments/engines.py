"""Where runs are carried out: processes of this machine, or the workers of a Dask scheduler.

Both give a `concurrent.futures` interface. Local processes write into the study's folder themselves, at once; Dask's
workers may have another disk, so they return their files and the machine that started them writes them.
"""

import dataclasses
import errno
import multiprocessing
import os
import queue
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runs import OnProgress, RunSpec, execute
from experiments.shipping import unpack_and_run, write_archive

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CONNECT_SECONDS = 10


class Outcome(NamedTuple):
    """What came of a run.

    Attributes:
        error: The exception, or None for a finished run.
        files: Contents by path in the study's folder, the run's record last; empty where they are written already.
    """

    error: str | None
    files: dict[str, bytes]


class Engine(NamedTuple):
    """Where runs are carried out.

    Attributes:
        submit: Called with the run's number, the run, the study's folder and the budget (None: the task's own).
        progress: The run's number and its env steps so far.
        note: What whoever waits should know; empty as a rule.
    """

    submit: "Callable[[int, RunSpec, Path, int | None], Future[Outcome]]"
    progress: "Queue[tuple[int, int]] | queue.Queue[tuple[int, int]]"
    note: str = ""


# LOCAL PROCESSES


@contextmanager
def local_processes(workers: int) -> Iterator[Engine]:
    """``workers`` processes of one torch thread each; an exception in the ``with`` block ends them at once."""
    # Inherited by the workers: one thread each, from the first import on.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    context = multiprocessing.get_context("spawn")
    progress: Queue[tuple[int, int]] = context.Queue()
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(progress,))

    def submit(*run: Any) -> Future[Outcome]:
        with _interrupts_wait():
            return executor.submit(_run_here, *run)

    try:
        yield Engine(submit, progress)
    except BaseException:
        for process in (executor._processes or {}).values():
            process.terminate()
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C comes through after the block, in which a process may be started.

    The process inherits the mask: Ctrl-C in a terminal reaches it too, and this process ends it. The mask alone is not
    enough here, since another thread may take the signal: it would end this one halfway through the start.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if arrived:
        signal.raise_signal(signal.SIGINT)


# In a worker: where its runs report their progress. A queue can only be inherited, not sent with a run.
_progress: "Queue[tuple[int, int]] | None" = None


def _start_worker(progress: "Queue[tuple[int, int]]") -> None:
    """Set up a worker: keep the queue, and end with the process that started it, even if that is killed."""
    global _progress
    _progress = progress
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_here(index: int, spec: RunSpec, folder: Path, budget: int | None) -> Outcome:
    def on_progress(steps: int) -> None:
        if _progress is not None:
            _progress.put((index, steps))

    return _attempt(spec, folder, on_progress, budget)


def _attempt(spec: RunSpec, folder: Path, on_progress: OnProgress, budget: int | None) -> Outcome:
    on_progress(0)
    try:
        execute(spec, folder, on_progress, budget)
    except Exception as error:
        if is_full_disk(error):
            raise
        return Outcome(repr(error), {})
    return Outcome(None, {})


def is_full_disk(error: BaseException) -> bool:
    """Whether ``error`` says that there is no space left: no fault of the run, and the next one would meet it too."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


# DASK


@contextmanager
def dask_workers(scheduler: str) -> Iterator[Engine]:
    """The workers of the Dask scheduler at that address, as ``"tcp://10.0.0.1:8786"``.

    They get this code from here, and need what it imports; the scheduler needs Dask alone. A worker does one run at a
    time. The runs of a worker that is lost are given to others by Dask.

    Raises:
        ValueError: No scheduler answers at the address.
    """
    try:
        import distributed
        from distributed.diagnostics.plugin import UploadFile
    except ImportError as error:
        raise ValueError("--engine dask needs Dask's scheduler: pip install distributed") from error
    # Dask's client has no types.
    connect: Any = distributed.Client
    try:
        client = connect(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler!r}: {error}") from error
    progress: queue.Queue[tuple[int, int]] = queue.Queue()
    topic = f"storm-rl-{uuid.uuid4()}"
    try:
        with tempfile.TemporaryDirectory() as scratch:
            archive = write_archive(Path(scratch))
            # Workers that come later get it too.
            client.register_plugin(UploadFile(str(archive), load=False), name=archive.name)
        client.subscribe_topic(topic, lambda event: progress.put(tuple(event[1])))
        # Not pure: a run that failed must run again, and the scheduler keeps no results for the next time.
        executor = client.get_executor(pure=False)
        note = (
            "" if client.scheduler_info()["workers"] else f"{scheduler} has no workers yet; runs start when they come."
        )
        run = unpack_and_run(archive.name)

        def submit(index: int, spec: RunSpec, folder: Path, budget: int | None) -> Future[Outcome]:
            return executor.submit(run, topic, index, dataclasses.astuple(spec), budget)  # type: ignore[no-any-return]

        yield Engine(submit, progress, note)
    finally:
        # Cancels what is still queued. A run that a worker is in the middle of ends there and is dropped.
        client.close()


# SB3 seeds torch's and numpy's generators, of which a process has one: threads of a worker take turns.
_one_run_at_a_time = threading.Lock()


def run_elsewhere(topic: str, index: int, spec: RunSpec, budget: int | None) -> tuple[str | None, dict[str, bytes]]:
    """Carry out a run on a Dask worker; an `Outcome` in types that the scheduler knows too."""
    from distributed import get_worker

    worker: Any = get_worker()
    with _one_run_at_a_time, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        error, _ = _attempt(spec, folder, lambda steps: worker.log_event(topic, (index, steps)), budget)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        # The record says that the run is finished: after everything else.
        paths.sort(key=lambda path: path.parent.name == "raw")
        return error, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
