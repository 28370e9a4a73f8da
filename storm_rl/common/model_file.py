"""Files of saved models: written whole or not at all, and looked at before anything in them is unpickled."""

import io
import json
import os
import uuid
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

ModelPath = str | Path | io.BufferedIOBase

_HEADER = "storm_rl.json"
# Not ".pth": SB3's own loaders take each of those for parameters of the model.
_RUN_STATE = "run_state.pt"


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``; a crash on the way leaves the old file, or none, and never a part.

    As SB3 does, adds ``.zip`` to a path without suffix, creates missing folders, and evades a folder of that name.
    """
    path = Path(path)
    if path.suffix == "":
        path = Path(f"{path}.zip")
    if path.is_dir():
        warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2", stacklevel=3)
        path = Path(f"{path}_2")
    path.parent.mkdir(exist_ok=True, parents=True)
    target = Path(os.path.realpath(path))  # A link keeps pointing to where it points.
    part = target.with_name(f".{uuid.uuid4().hex}.part")  # The target's own name may be as long as names can be.
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def add_run_state(archive: io.BytesIO, algorithm: str, version: str, run_state: dict[str, Any]) -> None:
    """Add to a model's archive whose it is, and tensors and plain Python beside the parameters."""
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(_HEADER, json.dumps({"algorithm": algorithm, "version": version}))
        with file.open(_RUN_STATE, "w", force_zip64=True) as member:
            torch.save(run_state, member)


def read_model(path: ModelPath, algorithms: list[str], parameters: Iterable[str]) -> tuple[bytes, dict[str, Any]]:
    """A model's whole archive, and what `add_run_state` added; nothing is unpickled but tensors and plain Python.

    For ``ResumableAlgorithm.load``, which says what may be wrong. ``algorithms`` names the classes whose models are
    accepted, the wanted one first, and ``parameters`` the state dicts that it needs.
    """
    if isinstance(path, (str, Path)):
        # As SB3 looks for it: first the name as given.
        content = (Path(path) if Path(path).is_file() else Path(f"{path}.zip")).read_bytes()
    else:
        path.seek(0)
        content = path.read()
    name, wanted = f"file {str(path)!r}" if isinstance(path, (str, Path)) else "the file", algorithms[0]
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"its part {damaged!r} is damaged")
            members = set(archive.namelist())
            header = json.loads(archive.read(_HEADER)) if _HEADER in members else {}
            stored = archive.read(_RUN_STATE) if _RUN_STATE in members else None
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{name} ({len(content)} bytes) is not a whole zip file ({error}); expected one that {wanted}.save() wrote."
        ) from error
    if header.get("algorithm", wanted) not in algorithms:
        raise ValueError(f"{name} is a model of {header['algorithm']}, expected one of {wanted}.")
    if missing := {"data", *(f"{parameter}.pth" for parameter in parameters)} - members:
        raise ValueError(
            f"{name} is not a whole model of {wanted}: {', '.join(sorted(missing))} missing, found "
            f"{', '.join(sorted(members)) or 'nothing'}."
        )
    return content, {} if stored is None else torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
