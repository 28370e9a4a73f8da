"""Writing files whole or not at all, and folders by one process at a time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# The results that the repository holds.
PUBLISHED = Path(__file__).resolve().parent / "results"


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` is either whole or as it was, whatever happens in between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Nothing, where files can be written into ``folder``, which need not be there yet.

    Raises:
        ValueError: A file is in the way, or there is no permission.
    """
    path = folder.absolute()
    nearest = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not nearest.is_dir():
        raise ValueError(f"cannot write into {folder}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write into {folder}: no permission for {nearest}")


def own_folder(results: Path) -> Path:
    """Where what is made of a study goes by default: its folder, or ``runs/<study>`` for a published one."""
    return Path("runs") / results.name if results.resolve().is_relative_to(PUBLISHED) else results


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep ``folder`` to this process; the system frees it when the process ends, however it does.

    Raises:
        ValueError: Another process is at work there, or it cannot be written into.
    """
    check_folder(folder)
    owner = folder / ".owner"
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        owner.write_text(f"pid {os.getpid()} on {socket.gethostname()}")
    except Timeout:
        who = owner.read_text() if owner.exists() else "of unknown number"
        raise ValueError(
            f"{folder} is in use by another process ({who}): wait for it, or name another folder"
        ) from None
    except OSError as error:
        lock.release()
        raise ValueError(f"cannot write into {folder}: {error}") from error
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
