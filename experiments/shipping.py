"""This repository's code for machines that lack it: an archive, and a function that imports it there.

The scheduler reads what is submitted and the worker carries it out, and neither can import this package before the
archive is unpacked. So the function is one that pickle takes by value: it stands inside another, and names nothing
around it.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import storm_rl
from experiments.runs import REVISION_FILE, git_revision

HERE = Path(__file__).parent
PACKAGES = (HERE.parent / "agents", HERE.parent / "envs", HERE, Path(storm_rl.__file__).parent)
ENDINGS = (".py", ".json")
# Data, not code.
LEFT_OUT = (HERE / "results", HERE.parent / "agents" / "trained")


def write_archive(folder: Path) -> Path:
    """Write a zip of the code into ``folder``; its name holds a digest, so that other code has another name."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in PACKAGES:
            for path in sorted(package.rglob("*")):
                if path.suffix in ENDINGS and not any(path.is_relative_to(other) for other in LEFT_OUT):
                    # Without its date, which would be in the digest.
                    archive.writestr(zipfile.ZipInfo(path.relative_to(package.parent).as_posix()), path.read_bytes())
        archive.writestr(zipfile.ZipInfo(REVISION_FILE), git_revision())
    path = folder / f"storm-rl-{hashlib.sha256(content.getvalue()).hexdigest()[:16]}.zip"
    path.write_bytes(content.getvalue())
    return path


def unpack_and_run(archive: str) -> Callable[..., Any]:
    """`experiments.engines.run_elsewhere`, from the archive of that name in the Dask worker's folder."""

    def run(topic: str, index: int, spec: tuple[Any, ...], budget: int | None) -> Any:
        import importlib
        import pathlib
        import sys
        import threading
        import zipfile

        from distributed import get_worker

        worker: Any = get_worker()
        path = pathlib.Path(worker.local_directory, archive)
        code = path.with_suffix("")
        # Threads of a worker share its modules.
        with worker.__dict__.setdefault("_unpacking", threading.Lock()):
            if sys.path[0] != str(code):
                zipfile.ZipFile(path).extractall(code)
                sys.path.insert(0, str(code))
                # What an earlier study has left in a worker that goes on.
                for name in list(sys.modules):
                    if name.partition(".")[0] in ("agents", "envs", "experiments", "storm_rl"):
                        del sys.modules[name]
            engines, runs = importlib.import_module("experiments.engines"), importlib.import_module("experiments.runs")
        return engines.run_elsewhere(topic, index, runs.RunSpec(*spec), budget)

    return run
