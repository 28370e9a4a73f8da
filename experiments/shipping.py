"""This repository's code as an archive, for machines that lack it."""

import zipfile
from pathlib import Path

import storm_rl
from experiments.runs import REVISION_FILE, git_revision

HERE = Path(__file__).parent
PACKAGES = (HERE.parent / "agents", HERE.parent / "envs", HERE, Path(storm_rl.__file__).parent)
ENDINGS = (".py", ".json")
# Data, not code.
LEFT_OUT = (HERE / "results", HERE.parent / "agents" / "trained")


def write_archive(folder: Path) -> Path:
    """Write a zip of the code into ``folder``. The same code makes the same file, which Ray sends once."""
    written = folder / "storm-rl.zip"
    contents: dict[str, str | bytes] = {REVISION_FILE: git_revision()}
    for package in PACKAGES:
        for path in sorted(package.rglob("*")):
            if path.suffix in ENDINGS and not any(path.is_relative_to(other) for other in LEFT_OUT):
                contents[path.relative_to(package.parent).as_posix()] = path.read_bytes()
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in contents.items():
            # Without its date.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return written
