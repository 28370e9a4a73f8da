import errno
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import LocalCluster
from rich.console import Console

from experiments.engines import Engine, Outcome, dask_workers
from experiments.execution import run_all
from experiments.runs import RunSpec, failed_path, git_revision, load_run, model_path, raw_path
from experiments.shipping import write_archive
from experiments.storage import failures

ROOT = Path(__file__).parents[2]
SMALL = "storm_plus_pg[n_steps=32,critic_steps=2]"
# It can be built, and fails when it learns.
BAD = "ppo_default[n_steps=32,target_kl='x']"
QUIET = Console(quiet=True)


ADDRESS = "tcp://10.0.0.1:8786"


def documented() -> list[list[str]]:
    """The commands of docs/benchmark.md that start a scheduler and a worker."""
    page = (ROOT / "docs/benchmark.md").read_text()
    return [line.split(" #")[0].split() for line in page.splitlines() if line.startswith("dask ")]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers as documented, in a folder of their own: its address and the workers."""
    (tmp_path / "elsewhere").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    scheduler, worker = documented()
    log = (tmp_path / "log").open("wb")

    def start(command: list[str], *more: str) -> subprocess.Popen[bytes]:
        # As the console script does, which may not be on the path.
        start_dask = [sys.executable, "-P", "-c", "from dask.__main__ import main; main()", *command[1:], *more]
        return subprocess.Popen(start_dask, cwd=tmp_path / "elsewhere", env=environment, stdout=log, stderr=log)

    file = tmp_path / "file.json"
    processes = [
        start(scheduler, "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    ]
    try:
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline, "no scheduler"
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        assert ADDRESS in worker
        command = [address if part == ADDRESS else part for part in worker]
        command[command.index("--nworkers") + 1] = "1"
        processes += [start(command, "--no-nanny", "--no-dashboard") for _ in range(2)]
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()


@pytest.mark.slow
def test_grid_survives_a_worker_killed_in_the_middle_and_brings_everything_home(
    cluster: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    address, workers = cluster
    folder = tmp_path / "here"
    specs = [RunSpec(SMALL, "CartPole-v1", seed) for seed in range(4)]
    bad = RunSpec(BAD, "CartPole-v1", 0)

    def kill_after_the_first_run() -> None:
        while not list(folder.glob("raw/*.json.gz")):
            time.sleep(0.02)
        workers[0].send_signal(signal.SIGKILL)

    threading.Thread(target=kill_after_the_first_run, daemon=True).start()
    failed = run_all([*specs, bad], folder, 1, QUIET, budget=2_000, engine=dask_workers(address))
    assert workers[0].poll() == -signal.SIGKILL
    assert workers[1].poll() is None
    assert failed == [bad]
    assert (
        "can't multiply sequence by non-int of type 'float'"
        in json.loads(failed_path(folder, bad).read_text())["traceback"]
    )
    for spec in specs:
        run = load_run(raw_path(folder, spec))
        assert run["seed"] == spec.seed
        # Of the code that was sent, which is in no checkout there.
        assert run["versions"]["git"] == git_revision()
        assert model_path(folder, spec).exists()
    assert len(list((folder / "tensorboard").rglob("events*"))) >= len(specs)
    assert not list((tmp_path / "elsewhere").rglob("*.json.gz"))


def test_workers_get_all_code_and_no_results(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    names = zipfile.ZipFile(archive).namelist()
    assert {"experiments/engines.py", "agents/zoo.py", "envs/tasks.py", "storm_rl/zoo/tuned_settings.json"} <= {*names}
    assert not [name for name in names if name.startswith(("experiments/results", "agents/trained"))]
    assert archive.stat().st_size < 1e6
    # The same code has the same name, by which a worker knows that it has it.
    (tmp_path / "again").mkdir()
    assert write_archive(tmp_path / "again").name == archive.name


def test_scheduler_without_workers_is_said_to_have_none() -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        dask_workers(cluster.scheduler_address) as engine,
    ):
        assert "has no workers yet" in engine.note


def test_scheduler_out_of_reach_is_an_error_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.engines.CONNECT_SECONDS", 1)
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'"):
        run_all([RunSpec(SMALL, "CartPole-v1", 0)], tmp_path, 1, QUIET, engine=dask_workers("tcp://127.0.0.1:9"))
    assert time.monotonic() - begin < 15
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@contextmanager
def instant(outcome: Outcome) -> Iterator[Engine]:
    """An engine whose runs are over at once."""
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    yield Engine(lambda *_: future, queue.Queue())


def test_full_disk_stops_the_runs_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    returned = Outcome(None, {"raw/run.json.gz": b"record"})
    with pytest.raises(OSError, match="No space left"):
        run_all([RunSpec(SMALL, "CartPole-v1", 0)], tmp_path, 1, QUIET, engine=instant(returned))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_run_that_could_not_speak_for_itself_is_recorded(tmp_path: Path) -> None:
    @contextmanager
    def deadly() -> Iterator[Engine]:
        future: Future[Outcome] = Future()
        future.set_exception(RuntimeError("the worker died three times"))
        yield Engine(lambda *_: future, queue.Queue())

    spec = RunSpec(SMALL, "CartPole-v1", 0)
    assert run_all([spec], tmp_path, 1, QUIET, engine=deadly()) == [spec]
    assert failures(tmp_path) == {spec.stem: "RuntimeError: the worker died three times"}


def test_killed_local_process_ends_the_runs_with_what_to_do(tmp_path: Path) -> None:
    @contextmanager
    def broken() -> Iterator[Engine]:
        future: Future[Outcome] = Future()
        future.set_exception(BrokenExecutor())
        yield Engine(lambda *_: future, queue.Queue())

    with pytest.raises(ValueError, match="a local process was killed, 1 runs are missing; the same command continues"):
        run_all([RunSpec(SMALL, "CartPole-v1", 0)], tmp_path, 1, QUIET, engine=broken())
