"""A study's runs as they are stored: a file each while it is under way, one compact file when it is published."""

import json
import lzma
from pathlib import Path
from typing import Any

from agents.ablations import RENAMED
from envs import get_task
from experiments.files import write_atomically
from experiments.runs import BrokenRunError, RunSpec, checked, load_run, raw_path, spec_of

# One JSON record a line, xz: a few kB a run, since what runs have in common is stored once.
PACKED = "runs.json.xz"

Record = dict[str, Any]


def load_runs(folder: Path) -> dict[RunSpec, Record]:
    """Every finished run of the study, in the order of task, agent and seed in which names sort.

    A file in ``raw`` is preferred to the packed run of the same name, which is older.

    Raises:
        ValueError: No runs there, or files that are not whole runs of this protocol; the message names each.
    """
    records = _packed(folder)
    problems: list[ValueError] = []
    for path in sorted((folder / "raw").glob("*.json.gz")):
        try:
            record = load_run(path)
        except ValueError as error:
            problems.append(error)
        else:
            records[spec_of(record)] = record
    if problems:
        kind = BrokenRunError if all(isinstance(problem, BrokenRunError) for problem in problems) else ValueError
        raise kind("\n".join(str(problem) for problem in problems))
    if not records:
        raise ValueError(f"{folder} holds no finished runs: neither raw/*.json.gz nor {PACKED}.")
    return {spec: records[spec] for spec in sorted(records, key=lambda spec: (spec.task, spec.agent, spec.seed))}


def load_studies(folders: list[Path]) -> dict[RunSpec, Record]:
    """Every finished run of several studies, as `load_runs` of one.

    Raises:
        ValueError: As `load_runs`; the same run in two of the folders.
    """
    records: dict[RunSpec, Record] = {}
    for folder in folders:
        found = load_runs(folder)
        if twice := records.keys() & found.keys():
            raise ValueError(f"{folder} has runs that another folder has too: {', '.join(spec.stem for spec in twice)}")
        records |= found
    return {spec: records[spec] for spec in sorted(records, key=lambda spec: (spec.task, spec.agent, spec.seed))}


def finished(folder: Path, specs: list[RunSpec], budget: int | None, rerun_broken: bool) -> dict[RunSpec, Record]:
    """Those of ``specs`` that have been run, with their records.

    Args:
        folder: The study's folder.
        specs: The runs in question.
        budget: Env steps asked for, in place of each task's own; runs with another budget are not the same runs.
        rerun_broken: Delete files that are not whole runs, so that their runs count as missing.

    Raises:
        ValueError: A file that is not a whole run, or one of another protocol version or budget.
    """
    records, wanted = _packed(folder), set(specs)
    found = {spec: record for spec, record in records.items() if spec in wanted}
    problems: list[str] = []
    for spec in specs:
        path = raw_path(folder, spec)
        if path.exists():
            try:
                found[spec] = load_run(path)
            except BrokenRunError as error:
                if rerun_broken:
                    path.unlink()
                else:
                    problems.append(str(error))
    for spec, record in found.items():
        if record["budget"] != (expected := budget or get_task(spec.task).budget):
            problems.append(
                f"{spec.stem} in {folder} was run for {record['budget']:,} env steps, not {expected:,}: "
                "use another folder."
            )
    if problems:
        raise ValueError("\n".join(problems))
    return {spec: found[spec] for spec in specs if spec in found}


def failures(folder: Path) -> dict[str, str]:
    """The runs that failed and have not been repeated since: their name and the last line of the traceback."""
    found: dict[str, str] = {}
    for path in sorted((folder / "raw").glob("*.failed.json")):
        try:
            reason = json.loads(path.read_bytes())["traceback"].strip().splitlines()[-1]
        except (ValueError, KeyError, IndexError):
            reason = "unreadable"
        found[path.name.removesuffix(".failed.json")] = reason
    return found


def pack(folder: Path, output: Path) -> Path:
    """Write all runs of the study in ``folder`` as one file into ``output``; nothing is rounded, nothing deleted.

    Raises:
        ValueError: As `load_runs`.
    """
    lines = [json.dumps(record, separators=(",", ":")) for record in load_runs(folder).values()]
    path = output / PACKED
    write_atomically(path, lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))
    return path


def _packed(folder: Path) -> dict[RunSpec, Record]:
    path = folder / PACKED
    if not path.exists():
        return {}
    try:
        lines = lzma.decompress(path.read_bytes()).decode().splitlines()
        records = [json.loads(line) for line in lines]
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): take it from the repository, or delete it and pack again."
        ) from error
    records = [{**record, "agent": RENAMED.get(record.get("agent"), record.get("agent"))} for record in records]
    return {spec_of(record): record for record in (checked(record, path) for record in records)}
