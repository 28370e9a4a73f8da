import errno
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from experiments.engines import Engine, Outcome, _settle, ray_cluster
from experiments.execution import run_all
from experiments.runs import RunSpec, failed_path, git_revision, load_run, model_path, raw_path
from experiments.shipping import write_archive
from experiments.storage import failures

ROOT = Path(__file__).parents[2]
SMALL = "storm_plus_pg[n_steps=32,critic_steps=2]"
# It can be built, and fails when it learns.
BAD = "ppo_default[n_steps=32,target_kl='x']"
QUIET = Console(quiet=True)


HEAD = "10.0.0.1:6379"


def documented() -> list[list[str]]:
    """The commands of docs/benchmark.md that start a cluster's head and another machine of it."""
    page = (ROOT / "docs/benchmark.md").read_text()
    return [line.split(" #")[0].split() for line in page.splitlines() if line.startswith("ray start ")]


class Cluster:
    """Machines as documented, all on this one, in a folder of their own. Its head lends no CPU, each other one.

    Ray's own ``ray stop`` would end all of Ray that is on this machine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, client_port = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
        self.machines: list[subprocess.Popen[bytes]] = []
        self.head, self.other = documented()
        assert f"--address={HEAD}" in self.other
        self.head += [f"--ray-client-server-port={client_port}", "--include-dashboard=false"]
        self.start(self.head, port=self.port, cpus=0)

    def add(self) -> subprocess.Popen[bytes]:
        """Another machine."""
        return self.start(self.other, cpus=1)

    def start(self, command: list[str], cpus: int, port: int | None = None) -> subprocess.Popen[bytes]:
        changed = {"--port": port, "--address": self.address, "--num-cpus": cpus}
        parts = (part.partition("=") for part in command[1:])
        arguments = [
            name + equals + str(changed.get(name, value) if equals else value) for name, equals, value in parts
        ]
        # As the console script does, which may not be on the path.
        start_ray = [sys.executable, "-P", "-c", "from ray.scripts.scripts import main; main()", *arguments]
        # A folder each: where two share one, the code that the second unpacks replaces what the first works in.
        own = Path(tempfile.mkdtemp(dir=self.folder))
        start_ray += ["--block", "--disable-usage-stats", f"--temp-dir={own}"]
        # Ray gives a start half a minute, which is too little on a busy machine.
        for _ in range(5):
            if (process := self._started(start_ray)).poll() is None:
                return process
        raise AssertionError((self.folder / "log").read_text())

    def _started(self, command: list[str]) -> subprocess.Popen[bytes]:
        log = self.folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=file, stderr=file)
        self.machines.append(process)
        until(lambda: process.poll() is not None or b"Ray runtime started" in log.read_bytes())
        return process

    def run(self, script: str, *arguments: object) -> subprocess.Popen[str]:
        """Python with this repository, on the head."""
        command = [sys.executable, "-c", script, self.address, *map(str, arguments)]
        return self.popen(command)

    def popen(self, command: list[str]) -> subprocess.Popen[str]:
        # Where the tests run in the background, a shell may have told them to ignore Ctrl-C.
        heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, preexec_fn=heed, **pipes)

    def close(self) -> None:
        for machine in self.machines:
            kill(machine)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def kill(machine: subprocess.Popen[bytes]) -> None:
    """As by a power failure."""
    family = psutil.Process(machine.pid).children(recursive=True) if machine.poll() is None else []
    machine.kill()
    machine.wait()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family)


def until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray")
    # Short: sockets are in it, whose names may have a hundred characters.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()


GRID = """
import pathlib, sys
from rich.console import Console
from experiments import engines, execution
from experiments.runs import RunSpec
address, folder, lost, budget, *agents = sys.argv[1:]
engines.LOST_SECONDS = float(lost)
update = execution.Clock.update
def shown(self, name, done, size):
    print("progress", name, done, size)
    update(self, name, done, size)
execution.Clock.update = shown
follow = execution._Follower.follow
def waiting(self):
    print("waiting", flush=True)
    return follow(self)
execution._Follower.follow = waiting
specs = [RunSpec(agent, "CartPole-v1", seed) for seed, agent in enumerate(agents)]
console = Console(width=1_000)
failed = execution.run_all(specs, pathlib.Path(folder), 1, console, int(budget), engines.ray_cluster(address))
print("failed:", [spec.stem for spec in failed])
"""


def until_waiting(process: subprocess.Popen[str]) -> str:
    """What it has said when all runs are submitted."""
    assert process.stdout is not None
    said = ""
    while "waiting" not in said:
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        said += line
    return said


@pytest.mark.slow
def test_grid_survives_a_machine_killed_in_the_middle_and_brings_everything_home(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    specs = [RunSpec(SMALL, "CartPole-v1", seed) for seed in range(6)]
    bad = RunSpec(BAD, "CartPole-v1", 6)
    process = cluster.run(GRID, folder, 300, 2_000, *[SMALL] * 6, BAD)
    # There is nobody yet who could begin.
    assert f"{cluster.address} has no CPUs yet; runs start when they come." in until_waiting(process)
    first, second = cluster.add(), cluster.add()
    # In the middle of a run of its own.
    until(lambda: process.poll() is not None or (any(folder.glob("raw/*.json.gz")) and bool(runs_of(first))))
    kill(first)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert second.poll() is None
    assert f"failed: {[bad.stem]}" in output
    for steps in (0, 1_000, 2_000):
        assert f"progress {specs[0].stem} {steps} 2000" in output
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
    assert not list(cluster.folder.rglob("*.json.gz"))
    kill(second)


@pytest.mark.slow
def test_interrupted_grid_says_how_to_go_on_and_leaves_no_run_under_way(cluster: Cluster, tmp_path: Path) -> None:
    machine = cluster.add()
    command = [sys.executable, "-m", "experiments", "benchmark", "--agent", SMALL, "--task", "CartPole-v1"]
    command += ["--seeds", "30", "--budget", "2000", "--ray", cluster.address, "--output", str(tmp_path)]
    process = cluster.popen(command)
    until(lambda: process.poll() is not None or any((tmp_path / "raw").glob("*.json.gz")))
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "the same command continues" in output
    assert errors == ""
    until(lambda: not runs_of(machine))
    finished = sorted((tmp_path / "raw").iterdir())
    assert 0 < len(finished) < 30
    assert all(load_run(path) for path in finished)
    kill(machine)


def runs_of(machine: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(machine.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "run_elsewhere" in "".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.slow
def test_lost_head_ends_the_grid_with_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    process = cluster.run(GRID, tmp_path, 1, 2_000, SMALL, SMALL)
    until_waiting(process)
    (head,) = [one for one in cluster.machines if one.poll() is None]
    (gcs,) = [one for one in psutil.Process(head.pid).children() if "gcs_server" in one.name()]
    gcs.kill()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "LostRunsError: the cluster is lost, 2 runs are missing; the same command continues with them." in errors


def test_machines_get_all_code_and_no_results(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    names = zipfile.ZipFile(archive).namelist()
    assert {"experiments/engines.py", "agents/zoo.py", "envs/tasks.py", "storm_rl/zoo/tuned_settings.json"} <= {*names}
    assert not [name for name in names if name.startswith(("experiments/results", "agents/trained"))]
    assert archive.stat().st_size < 5e5  # Compressed.
    (tmp_path / "again").mkdir()
    assert write_archive(tmp_path / "again").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", r"no Ray cluster answers at '127.0.0.1:9': .*refused"),
        ("ray://10.0.0.1", r"--ray must be an address as 10.0.0.1:6379, or \"auto\", got 'ray://10.0.0.1'"),
        ("10.0.0.1", "--ray must be an address .*, got '10.0.0.1'"),
    ],
)
def test_cluster_out_of_reach_is_an_error_at_once(address: str, message: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=message):
        run_all([RunSpec(SMALL, "CartPole-v1", 0)], tmp_path, 1, QUIET, engine=ray_cluster(address))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--ray needs Ray: pip install 'storm-rl\[ray\]'"), ray_cluster("auto"):
        pass


def test_full_disk_of_another_machine_is_known_as_such() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    done: Future[Outcome] = Future()
    full = OSError(errno.ENOSPC, "No space left on device")
    done.set_exception(exceptions.RayTaskError("run_elsewhere", "traceback", full).as_instanceof_cause())
    future: Future[Outcome] = Future()
    _settle(future, done)
    assert future.exception() is full
    # A run that was given up stays so.
    _settle(future, done)


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
