"""TensorBoard's hparams view over all runs of a study: their settings against what was measured."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter, summary

from experiments.measures import measure
from experiments.runs import RunSpec

MEASURES = (
    *("steps_to_threshold", "final_return", "evaluation_area", "training_area"),
    *("seconds_to_threshold", "steps_per_second"),
)


def write_hparams(runs: Mapping[RunSpec, dict[str, Any]], folder: Path) -> None:
    """Write one session a run into ``folder``, in place of what a former call left there.

    Args:
        runs: The runs' records.
        folder: Where the sessions go; a folder beside the runs' own logs shows both.
    """
    sessions: Any = summary.hparams  # Without types.
    shutil.rmtree(folder, ignore_errors=True)
    for spec, record in runs.items():
        row = measure(record)
        settings = {**record["settings"], **vars(spec), "budget": record["budget"]}
        metrics = {f"final/{name}": float(row[name]) for name in MEASURES}
        # `SummaryWriter.add_hparams` would put each session into a sub-folder named by the time.
        with SummaryWriter(str(folder / spec.stem)) as writer:
            for session in sessions(settings, metrics):
                writer._get_file_writer().add_summary(session)
            for name, value in metrics.items():
                writer.add_scalar(name, value, record["steps"])
