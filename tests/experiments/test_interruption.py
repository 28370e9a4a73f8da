import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from experiments.files import locked
from experiments.runs import load_run

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_study_leaves_no_process_and_continues_with_what_is_missing(tmp_path: Path) -> None:
    agent = "storm_plus_pg[n_steps=32,critic_steps=2]"
    command = [sys.executable, "-m", "experiments", "benchmark", "--agent", agent, "--task", "CartPole-v1"]
    command += ["--seeds", "2", "--workers", "1", "--budget", "2000", "--output", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finished = tmp_path / "raw" / f"{agent}__CartPole-v1__seed0.json.gz"
    until(finished.exists)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not any(alive(int(child)) for child in children), 20.0)
    before = finished.stat().st_mtime_ns

    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert finished.stat().st_mtime_ns == before
    assert [load_run(path)["seed"] for path in sorted((tmp_path / "raw").iterdir())] == [0, 1]


@pytest.mark.slow
def test_interrupted_study_says_how_to_go_on_and_keeps_what_is_finished(tmp_path: Path) -> None:
    agent = "storm_plus_pg[n_steps=32,critic_steps=2]"
    command = [sys.executable, "-m", "experiments", "benchmark", "--agent", agent, "--task", "CartPole-v1"]
    command += ["--seeds", "3", "--workers", "1", "--budget", "2000", "--output", str(tmp_path)]
    # A group of its own, which Ctrl-C in a terminal reaches as a whole.
    # Where the tests run in the background, a shell may have told them to ignore it.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    arguments: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True, "preexec_fn": heed}
    process = subprocess.Popen(command, cwd=ROOT, **arguments)
    until(lambda: any((tmp_path / "raw").glob("*.json.gz")))
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in output
    assert all(load_run(path) for path in (tmp_path / "raw").glob("*.json.gz"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["imports", "start of the workers"])
def test_interruption_at_the_start_ends_without_a_traceback(tmp_path: Path, moment: str) -> None:
    command = [sys.executable, "-m", "experiments", "benchmark", "--task", "CartPole-v1", "--workers", "2"]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path)], cwd=ROOT, start_new_session=True, preexec_fn=heed, **streams
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if moment == "imports":
        until(lambda: "torch" in Path(f"/proc/{process.pid}/maps").read_text())
    else:
        until(lambda: len(children.read_text().split()) == 3)  # With multiprocessing's own.
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.count("the same command continues") == 1
    assert errors == ""


def test_a_folder_is_kept_to_one_process_until_that_ends(tmp_path: Path) -> None:
    hold = "from pathlib import Path; from experiments.files import locked; "
    hold += f"held = locked(Path({str(tmp_path)!r})); held.__enter__(); print(1, flush=True); input()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], cwd=ROOT, **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ValueError, match=rf"in use by another process \(pid {process.pid} on "), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path):
        pass


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
