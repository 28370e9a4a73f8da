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
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in PACKAGES:
            for path in sorted(package.rglob("*")):
                if path.suffix in ENDINGS and not any(path.is_relative_to(other) for other in LEFT_OUT):
                    # Without its date.
                    archive.writestr(zipfile.ZipInfo(path.relative_to(package.parent).as_posix()), path.read_bytes())
        archive.writestr(zipfile.ZipInfo(REVISION_FILE), git_revision())
    return written
