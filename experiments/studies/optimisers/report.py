"""Tables, plots and the summary, from the stored curves alone."""

import gzip
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from experiments.files import write_atomically
from experiments.report.page import markdown_table

Record = dict[str, Any]

# Okabe and Ito's colours, with line styles so that colour is not needed to tell methods apart.
STYLES: dict[str, tuple[str, str]] = {
    "STORM+": ("#D55E00", "-"),
    "STORM+ per coord.": ("#D55E00", "--"),
    "STORM+ floor 0.1": ("#000000", "-"),
    "META-STORM": ("#CC79A7", "-"),
    "META-STORM per coord.": ("#CC79A7", "--"),
    "STORM": ("#E69F00", "-."),
    "STORM, default": ("#E69F00", ":"),
    "SGD": ("#0072B2", "-"),
    "SGD, default": ("#0072B2", ":"),
    "SGD 1/sqrt(t)": ("#0072B2", "--"),
    "SGD momentum": ("#56B4E9", "-"),
    "Adam": ("#009E73", "-"),
    "Adam, default": ("#009E73", ":"),
}
THEORY = {"STORM+": "-1/3", "META-STORM": "-1/3", "STORM": "-1/3", "SGD 1/sqrt(t)": "-1/4"}


def digest(value: float) -> float:
    """Six digits: enough for every table, and the file stays small."""
    return float(f"{value:.6g}")


def write_raw(records: list[Record], costs: list[Record], path: Path) -> None:
    """All runs, compactly; the report is rebuilt from this file."""
    short = []
    for record in records:
        curves = {
            key: [digest(v) for v in values] if isinstance(values, list) else values
            for key, values in record["curves"].items()
        }
        # A part of the study was called "study" when the first runs were stored.
        short.append({"study" if key == "part" else key: value for key, value in {**record, "curves": curves}.items()})
    text = json.dumps({"runs": short, "costs": costs}, separators=(",", ":"))
    # No time stamp inside, so that the same runs give the same bytes.
    write_atomically(path, gzip.compress(text.encode(), mtime=0))


def read_raw(path: Path) -> tuple[list[Record], list[Record]]:
    """What :func:`write_raw` stored."""
    stored = json.loads(gzip.decompress(path.read_bytes()))
    return [{"part": run.pop("study"), **run} for run in stored["runs"]], stored["costs"]


def build(records: list[Record], costs: list[Record], folder: Path) -> list[pd.DataFrame]:
    """Write every table and plot; return the tables."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    tables = {
        "gradient_norms": norms_table(records),
        "loss_scale": scale_table(records),
        "digits": digits_table(records),
        "cost": pd.DataFrame(costs),
    }
    plot_norms(records, folder / "gradient_norms.png")
    plot_scale(records, folder / "loss_scale.png")
    plot_digits(records, folder / "digits.png")
    plot_cost(tables["cost"], folder / "cost.png")
    lines = ["# The optimisers: results", "", "Written by `python -m experiments optimisers`.", ""]
    for name, table in tables.items():
        write_atomically(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g").encode())
        lines += [f"## {name.replace('_', ' ').capitalize()}", "", markdown_table(table.map(_cell)), ""]
        lines += [f"![{name}]({name}.png)", ""]
    write_atomically(folder / "README.md", "\n".join(lines).encode())
    return list(tables.values())


def _cell(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def label(record: Record) -> str:
    """The method, with where its setting comes from."""
    return str(record["method"]) + (", default" if record["part"].endswith("-default") else "")


def grouped(records: list[Record], part: str) -> dict[tuple[str, str], list[Record]]:
    """Runs of a part of the study and its defaults by (problem, label), in the order in which they were asked for."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record["part"] in (part, f"{part}-default"):
            groups[record["problem"], label(record)].append(record)
    return groups


def slope(samples: list[float], values: list[float]) -> float:
    """Least squares on logarithms, over the last two decades."""
    x, y = np.array(samples), np.array(values)
    chosen = x >= x[-1] / 100
    return float(np.polyfit(np.log(x[chosen]), np.log(y[chosen]), 1)[0])


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    spread = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan
    return float(np.mean(values)), spread


def at(curves: Record, share: float) -> float:
    """Mean gradient norm so far, at a share of all samples (interpolated on logarithms)."""
    x, y = np.log(curves["samples"]), np.log(curves["mean"])
    return float(np.exp(np.interp(x[-1] + math.log(share), x, y)))


def norms_table(records: list[Record]) -> pd.DataFrame:
    """Slopes of the mean gradient norm since step 1, which theory bounds, and of the current one."""
    rows = []
    for (problem, method), runs in grouped(records, "norms").items():
        finite = [run["curves"] for run in runs if not run["curves"]["diverged"]]
        row: dict[str, Any] = {"problem": problem, "method": method, "setting": runs[0]["setting"]}
        row |= {"runs": len(runs), "diverged": len(runs) - len(finite), "theory": THEORY.get(method, "")}
        if finite:
            for name, key in (("slope of mean", "mean"), ("slope of current", "window")):
                row[name], row[f"{name}, s.e."] = mean_and_error([slope(c["samples"], c[key]) for c in finite])
            row["mean norm"], row["mean norm, s.e."] = mean_and_error([c["mean"][-1] for c in finite])
            # A step of the STORM family takes two gradients, so it gets half the samples.
            share = 0.5 if "STORM" in method else 1.0
            row["mean norm, equal gradients"] = mean_and_error([at(c, share) for c in finite])[0]
            row["last norm"] = mean_and_error([c["window"][-1] for c in finite])[0]
        rows.append(row)
    return pd.DataFrame(rows)


def relative_end(record: Record) -> float:
    """Gradient norm at the end over that at the start; infinite for a diverged run."""
    curves = record["curves"]
    return math.inf if curves["diverged"] else curves["window"][-1] / curves["mean"][0]


SURVIVES = 2.0
"""A method survives a scale where its end is within this factor of its own best, and below half the start."""


def scale_table(records: list[Record]) -> pd.DataFrame:
    """Median over seeds of the unscaled gradient norm at the end over that at the start, for each scale."""
    rows = []
    for (problem, method), runs in grouped(records, "scale").items():
        ends = {
            scale: float(np.median([relative_end(run) for run in runs if run["scale"] == scale]))
            for scale in sorted({run["scale"] for run in runs})
        }
        best = min(ends.values())
        row: dict[str, Any] = {"problem": problem, "method": method, "setting": runs[0]["setting"]}
        row |= {f"{scale:g}": "diverged" if math.isinf(end) else end for scale, end in ends.items()}
        row["scales survived"] = sum(end <= SURVIVES * best and end < 0.5 for end in ends.values())
        rows.append(row)
    return pd.DataFrame(rows)


def digits_table(records: list[Record]) -> pd.DataFrame:
    """Train loss and test accuracy after the last epoch."""
    rows = []
    for (problem, method), runs in grouped(records, "digits").items():
        finite = [run["curves"] for run in runs if not run["curves"]["diverged"]]
        row: dict[str, Any] = {"network": problem, "method": method, "setting": runs[0]["setting"]}
        row |= {"runs": len(runs), "diverged": len(runs) - len(finite)}
        if finite:
            row["train loss"], row["train loss, s.e."] = mean_and_error([c["loss"][-1] for c in finite])
            row["test accuracy"], row["test accuracy, s.e."] = mean_and_error([c["accuracy"][-1] for c in finite])
        rows.append(row)
    return pd.DataFrame(rows)


def plot_norms(records: list[Record], path: Path) -> None:
    """Mean gradient norm since step 1 against samples, with guides of the theory's slopes."""
    groups = grouped(records, "norms")
    problems = list(dict.fromkeys(problem for problem, _ in groups))
    figure, axes = plt.subplots(1, len(problems), figsize=(3.6 * len(problems), 3.9), squeeze=False)
    for axis, problem in zip(axes[0], problems, strict=True):
        for (where, method), runs in groups.items():
            finite = [run["curves"] for run in runs if not run["curves"]["diverged"]]
            if where != problem or not finite:
                continue
            colour, line = STYLES[method]
            x = finite[0]["samples"]
            y = np.array([c["mean"] for c in finite])
            width = 2.2 if method == "STORM+" else 1.3
            axis.plot(x, y.mean(0), line, color=colour, label=method, linewidth=width)
            axis.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.12, linewidth=0)
        ends = np.array(axis.get_xlim())
        low, top = axis.get_ylim()
        x_guide = np.array([ends[1] / 60, ends[1] / 2])
        for power, text in ((-1 / 3, "-1/3"), (-1 / 4, "-1/4")):
            guide = 1.6 * low * (x_guide / x_guide[1]) ** power
            axis.plot(x_guide, guide, color="0.5", linewidth=1)
            axis.annotate(text, (x_guide[0], guide[0]), ha="right", va="center", color="0.4", fontsize=8)
        axis.set(xscale="log", yscale="log", title=problem, xlabel="samples")
        axis.set_ylim(low, top)
    axes[0, 0].set_ylabel("mean of the true gradient norm\nover all steps so far")
    finish(figure, axes[0, 0], path)


def plot_scale(records: list[Record], path: Path) -> None:
    """End over start, against the factor on the loss."""
    groups = grouped(records, "scale")
    problems = list(dict.fromkeys(problem for problem, _ in groups))
    figure, axes = plt.subplots(1, len(problems), figsize=(4.8 * len(problems), 3.9), squeeze=False)
    for axis, problem in zip(axes[0], problems, strict=True):
        for (where, method), runs in groups.items():
            if where != problem:
                continue
            colour, line = STYLES[method]
            scales = sorted({run["scale"] for run in runs})
            ends = [np.median([relative_end(r) for r in runs if r["scale"] == scale]) for scale in scales]
            shown = [min(end, 10.0) for end in ends]
            width = 2.2 if method == "STORM+" else 1.3
            axis.plot(scales, shown, line, marker=".", color=colour, label=method, linewidth=width)
        note: dict[str, Any] = {"color": "0.4", "fontsize": 8, "ha": "center", "va": "bottom"}
        axis.axhline(10, color="0.7", linewidth=0.8)
        axis.text(1, 10.5, "10 times the start, or diverged", **note)
        axis.set(xscale="log", yscale="log", title=problem, xlabel="factor on the loss")
    axes[0, 0].set_ylabel("true gradient norm of the unscaled loss,\nend over start")
    finish(figure, axes[0, 0], path)


def plot_digits(records: list[Record], path: Path) -> None:
    """Train loss and test accuracy by epoch."""
    groups = grouped(records, "digits")
    networks = list(dict.fromkeys(problem for problem, _ in groups))
    figure, axes = plt.subplots(2, len(networks), figsize=(4.8 * len(networks), 6.2), squeeze=False)
    for column, kind in enumerate(networks):
        for (where, method), runs in groups.items():
            finite = [run["curves"] for run in runs if not run["curves"]["diverged"]]
            if where != kind or not finite:
                continue
            colour, line = STYLES[method]
            width = 2.2 if method.startswith("STORM+") else 1.3
            for row, key in enumerate(("loss", "accuracy")):
                y = np.array([c[key] for c in finite]).mean(0)
                axes[row, column].plot(finite[0]["epoch"], y, line, color=colour, label=method, linewidth=width)
        axes[0, column].set(yscale="log", title=kind)
        axes[1, column].set(xlabel="epoch", ylim=(0.5, 1.0))
    axes[0, 0].set_ylabel("train loss (cross-entropy)")
    axes[1, 0].set_ylabel("test accuracy")
    finish(figure, axes[0, 0], path)


def plot_cost(table: pd.DataFrame, path: Path) -> None:
    """Time over the bar, and memory, by number of parameters."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.9))
    colours = ["#D55E00", "#E69F00", "#56B4E9", "#0072B2", "#CC79A7", "#009E73", "#000000"]
    markers = "osv^DxP"
    methods = [m for m in dict.fromkeys(table["method"]) if m not in ("forward-backward",)]
    for method, colour, marker in zip(methods, colours, markers, strict=False):
        rows = table[table["method"] == method]
        style: dict[str, Any] = {"color": colour, "marker": marker, "label": method, "linewidth": 1.3}
        if method != "Adam":
            axes[0].plot(rows["parameters"], rows["ratio"], **style)
        if "memory" in rows:
            axes[1].plot(rows["parameters"], rows["memory"], **style)
    axes[0].axhline(1.3, color="0.4", linewidth=1, linestyle="--")
    axes[0].set(xscale="log", xlabel="parameters", ylim=(0, None))
    axes[0].set_ylabel("time of a step over that of two\nforward-backward passes and Adam's step")
    axes[1].axhline(4, color="0.4", linewidth=1, linestyle="--")
    axes[1].set(xscale="log", xlabel="parameters", ylim=(0, None))
    axes[1].set_ylabel("peak memory beyond forward and\nbackward, in sizes of the parameters")
    finish(figure, axes[1], path)


def finish(figure: Any, axis: Any, path: Path) -> None:
    """One legend below all panels."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    inches = 0.2 * math.ceil(len(labels) / 4) + 0.15
    figure.tight_layout(rect=(0, inches / figure.get_figheight(), 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
