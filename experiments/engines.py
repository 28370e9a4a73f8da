"""Where runs are carried out: processes of this machine, or the machines of a Ray cluster.

Both give a `concurrent.futures` interface. Local processes write into the study's folder themselves, at once; a
cluster's machines may have another disk, so they return their files and the machine that started them writes them.
"""

import errno
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from experiments.mailbox import Mailbox, MailboxReader
from experiments.runs import OnProgress, RunSpec, execute
from experiments.shipping import write_archive

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CONNECT_SECONDS = 10
# Without an answer from a cluster. Ray ends the process after a minute.
LOST_SECONDS = 30
# Of a run, where its process or its machine is lost.
ATTEMPTS = 4


class Outcome(NamedTuple):
    """What came of a run.

    Attributes:
        error: The exception, or None for a finished run.
        files: Contents by path in the study's folder, the run's record last; empty where they are written already.
    """

    error: str | None
    files: dict[str, bytes]


class Reports(Protocol):
    """How far runs are: a run's number and its env steps so far."""

    def get_nowait(self) -> tuple[int, int]:
        """The next one; `queue.Empty` where there is none."""


class Engine(NamedTuple):
    """Where runs are carried out.

    Attributes:
        submit: Called with the run's number, the run, the study's folder and the budget (None: the task's own).
        progress: Where runs report how far they are.
        note: What whoever waits should know; empty as a rule.
    """

    submit: "Callable[[int, RunSpec, Path, int | None], Future[Outcome]]"
    progress: Reports
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


# RAY


@contextmanager
def ray_cluster(address: str) -> Iterator[Engine]:
    """The Ray cluster at that address, as ``"10.0.0.1:6379"``, or ``"auto"`` for that which this machine belongs to.

    This machine must belong to it, also where it lends no CPU. The others get this code from here, and need what it
    imports. A run takes a CPU, and a process does one at a time. The runs of a process or a machine that is lost are
    given to others, until a run has been begun `ATTEMPTS` times.

    Raises:
        ValueError: Ray is not installed, or no cluster answers at the address.
    """
    try:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    except ImportError as error:
        raise ValueError("--ray needs Ray: pip install 'storm-rl[ray]'") from error
    _check_answers(address)
    with tempfile.TemporaryDirectory() as scratch:
        # Ray takes the code to each machine, where it comes before any other of that name.
        there = {"working_dir": str(write_archive(Path(scratch))), "env_vars": dict.fromkeys(THREAD_VARIABLES, "1")}
        try:
            ray.init(address, runtime_env=there, logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:
            reason = " ".join(str(part) for part in (error, error.__cause__) if part)
            raise ValueError(f"no Ray cluster can be joined at {address!r}: {reason}") from error
    under_way: set[Future[Outcome]] = set()
    over = threading.Event()
    try:
        context = ray.get_runtime_context()
        # On this machine, for others come and go.
        here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
        mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
        run = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(run_elsewhere)
        note = "" if ray.cluster_resources().get("CPU") else f"{address} has no CPUs yet; runs start when they come."

        def submit(index: int, spec: RunSpec, folder: Path, budget: int | None) -> Future[Outcome]:
            future: Future[Outcome] = Future()
            under_way.add(future)
            future.add_done_callback(under_way.discard)
            run.remote(mailbox, index, spec, budget).future().add_done_callback(lambda done: _settle(future, done))
            return future

        threading.Thread(target=_watch, args=(context.gcs_address, under_way, over), daemon=True).start()
        yield Engine(submit, MailboxReader(mailbox), note)
    finally:
        over.set()
        # Ends what is still under way there.
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse in seconds what Ray would wait minutes for."""
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise ValueError(f'--ray must be an address as 10.0.0.1:6379, or "auto", got {address!r}')
    try:
        if address != "auto":
            _connect(address)
    except OSError as error:
        raise ValueError(f"no Ray cluster answers at {address!r}: {error}") from error


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


def _settle(future: "Future[Outcome]", done: "Future[Any]") -> None:
    """Pass on what came of a run: Ray's error with the traceback from there, but a full disk as itself."""
    try:
        outcome, error = Outcome(*done.result()), None
    except BaseException as raised:
        cause = getattr(raised, "cause", None)
        error = cause if isinstance(cause, OSError) and is_full_disk(cause) else raised
    with suppress(InvalidStateError):  # Given up already.
        if error is None:
            future.set_result(outcome)
        else:
            future.set_exception(error)


def _watch(address: str, under_way: "set[Future[Outcome]]", over: threading.Event) -> None:
    """Give up all runs once the cluster's head is gone. Ray itself would end this process a little later."""
    answered = time.monotonic()
    while not over.wait(1.0):
        try:
            _connect(address)
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered > LOST_SECONDS:
                for future in list(under_way):
                    with suppress(InvalidStateError):
                        future.set_exception(CancelledError())


def run_elsewhere(mailbox: Any, index: int, spec: RunSpec, budget: int | None) -> Outcome:
    """Carry out a run on a machine of the cluster."""
    import ray

    sent: list[Any] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        error, _ = _attempt(spec, folder, lambda steps: sent.append(mailbox.put.remote(index, steps)), budget)
        # What was reported is there before the run has ended.
        if sent:
            ray.wait(sent, num_returns=len(sent), timeout=10.0)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        # The record says that the run is finished: after everything else.
        paths.sort(key=lambda path: path.parent.name == "raw")
        return Outcome(error, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})
