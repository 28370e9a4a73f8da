"""The throughput study's table and plots, from its raw rows alone."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.files import write_atomically
from experiments.plots import new_figure, save
from experiments.report.figures import style
from experiments.report.page import markdown_table
from experiments.report.study import OURS, REFERENCE
from experiments.studies.throughput.configurations import ENVIRONMENTS, KEY, PPO_ON_IMAGES, find_contestant

PARTS = {"environment_us": "environment", "policy_us": "policy", "update_us": "update", "other_us": "other"}
EXPLANATION = (
    "Env steps per second of `learn()`, medians over repeats of rows measured in turns. *Threads*: 1 is one core with "
    "one torch thread; default is a process in which nothing is set. "
    "Microseconds per env step: *environment* with its wrappers; *policy*, the rest of the collection; *update*; "
    "*other*, mostly logging. *Share of raw*: of the rate at which the same environments step under random actions. "
    "Memory: the peak of a fresh process, and in brackets how far it is above that of a small configuration. In bold: "
    "the algorithm's own number of environments and rollout. Environments: *gymnasium* are single ones in SB3's "
    "`DummyVecEnv`, *batched* this repository's, *vector* gymnasium's own vector environments and *envpool* EnvPool's, "
    "both behind `VectorEnvAdapter`; *frames* are pictures that cost nothing, for networks with convolutions."
)


def label(agent: str) -> str:
    """Name in tables and figures."""
    return find_contestant(agent).label


def build(rows: pd.DataFrame, timed: pd.DataFrame | None, output: Path) -> None:
    """Write ``throughput.md``, ``throughput.png`` and ``cost.png`` into ``output``."""
    rows = rows.assign(share_of_raw=rows["steps_per_second"] / rows["raw_steps_per_second"])
    # Own settings are no part of what identifies a row, but always the same for it.
    by = [*KEY, "own_n_envs", "own_n_steps"]
    medians = rows.drop(columns=["run", "git", "length", "machine"]).groupby(by, sort=False).median().reset_index()
    # How cost grows is shown for the task that was measured first and one number of threads.
    first = medians[(medians["task"] == medians["task"].iloc[0]) & (medians["threads"] == medians["threads"].iloc[0])]
    sections = [
        "# Throughput",
        EXPLANATION,
        f"Machine: {', '.join(rows['machine'].unique())}. Revision: {', '.join(map(str, rows['git'].unique()))}. "
        f"Measures of {', '.join(rows['length'].unique())}, {rows['repeat'].max() + 1} repeats.",
        "## Ratios within one run",
        _markdown(ratios(rows)),
        "Default threads over one thread:",
        _markdown(thread_ratios(rows)),
        "## All configurations",
        _markdown(_configurations(medians)),
        "## How the time of one update grows",
        "Exponent of a power law through the medians: 1 is proportional, 0 constant. An update is of one rollout, "
        "whose size grows with the number of environments, or (STORM+PG) of a window of rollouts, whose size stays.",
        _markdown(growth(first)),
    ]
    gradients = medians.dropna(subset=["gradient_ratio"]) if "gradient_ratio" in medians else medians.iloc[:0]
    if len(gradients):
        text = (
            "Forward passes included: the gradient at the present parameters, at these and the previous ones, as the "
            "recursion needs, and at the present ones by autograd, as other policies are differentiated."
        )
        sections += ["## STORM+PG's gradients", text, _markdown(_gradients(gradients))]
    if timed is not None:
        text = (
            "Seconds of `learn()`, evaluations left out; median over seeds. A run that never gets there counts whole."
        )
        sections += ["## Time to the threshold", text, _markdown(to_threshold(timed))]
    write_atomically(output / "throughput.md", ("\n\n".join(sections) + "\n").encode())
    _plot_speed(first, output / "throughput.png")
    _plot_cost(first, output / "cost.png")


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """STORM+PG's env steps per second over those of PPO, each pair of one repeat of one run of the command.

    PPO has RL Zoo's settings and its own number of environments, and as wide networks as STORM+PG; on images, its
    settings for Atari and the same networks. Variants of STORM+PG count on their own number of batched environments.
    """
    pair, speed = ["run", "device", "threads", "task", "width", "repeat"], "steps_per_second"
    plain = rows[rows["own_n_steps"] & rows[speed].notna()]
    on = {environments: plain[plain["environments"] == environments] for environments in (*ENVIRONMENTS, "frames")}
    ppo = pd.concat(
        [
            on["gymnasium"][(on["gymnasium"]["algorithm"] == REFERENCE) & on["gymnasium"]["own_n_envs"]],
            on["frames"][on["frames"]["algorithm"] == PPO_ON_IMAGES],
        ]
    )
    chosen = [
        found[(found["algorithm"] == OURS) & (found["n_envs"] == n_envs)]
        for found, n_envs in ((on["batched"], 64), (on["gymnasium"], 8), (on["frames"], 8))
    ]
    variants = on["batched"]["algorithm"].str.startswith(f"{OURS}[") & on["batched"]["own_n_envs"]
    table = []
    for rows_of_ours in (*chosen, on["batched"][variants]):
        both = rows_of_ours.merge(ppo, on=pair, suffixes=("", "_ppo"))
        for (name, device, threads, task, width), group in both.groupby(["algorithm", *pair[1:5]], sort=False):
            each = group[speed] / group[f"{speed}_ppo"]
            table.append(
                {
                    "STORM+PG": label(str(name)),
                    "on": f"{group['n_envs'].iloc[0]} {group['environments'].iloc[0]}",
                    "over PPO on": f"{group['n_envs_ppo'].iloc[0]} {group['environments_ppo'].iloc[0]}",
                    "task": task,
                    "width": width,
                    "device": device,
                    "threads": threads,
                    "ratio [lowest, highest]": f"{each.median():.2f} [{each.min():.2f}, {each.max():.2f}]",
                }
            )
    return pd.DataFrame(table)


def thread_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Env steps per second with default threads over those with one, each pair of one repeat of one run."""
    keys = ["run", "device", "task", "repeat", "algorithm", "environments", "n_envs", "n_steps", "width"]
    speeds = rows[rows["steps_per_second"].notna()]
    both = speeds[speeds["threads"] == "default"].merge(
        speeds[speeds["threads"] == "1"], on=keys, suffixes=("", "_one")
    )
    table = []
    for (name, task, device, width), group in both.groupby(["algorithm", "task", "device", "width"], sort=False):
        each = group["steps_per_second"] / group["steps_per_second_one"]
        row = {"algorithm": label(str(name)), "task": task, "device": device, "width": width}
        table.append({**row, "ratio [lowest, highest]": f"{each.median():.2f} [{each.min():.2f}, {each.max():.2f}]"})
    return pd.DataFrame(table)


def growth(medians: pd.DataFrame) -> pd.DataFrame:
    """Exponents of the time of one update against environments, batch and parameters, the others as they are."""
    table = []
    for (device, name), group in medians.groupby(["device", "algorithm"], sort=False):
        on = group[group["environments"] == "gymnasium"]
        base = on["width"] == on["width"].min()
        sweeps = {
            "environments": (on[base & on["own_n_steps"]], "n_envs"),
            "batch": (on[base & on["own_n_envs"]], "transitions"),
            "parameters": (on[on["own_n_envs"] & on["own_n_steps"]], "parameters"),
        }
        exponents = {against: _exponent(found, by) for against, (found, by) in sweeps.items()}
        table.append({"algorithm": label(str(name)), "device": device, **exponents})
    return pd.DataFrame(table)


def _exponent(found: pd.DataFrame, by: str) -> str:
    found = found.dropna(subset=[by, "update_ms_each"])
    if found[by].nunique() < 2:
        return "-"
    return f"{np.polyfit(np.log(found[by]), np.log(found['update_ms_each']), 1)[0]:.2f}"


def to_threshold(timed: pd.DataFrame) -> pd.DataFrame:
    """Median seconds to the threshold of STORM+PG and RL Zoo's PPO, and PPO's over ours."""
    table = []
    for task, group in timed.groupby("task", sort=False):
        row, seconds = {"task": str(task)}, {}
        for agent in (OURS, REFERENCE):
            runs = group[group["agent"] == agent]
            seconds[agent] = runs["seconds_to_threshold"].median()
            never = int((~runs["reached"].astype(bool)).sum())
            row[label(agent)] = f"{seconds[agent]:.1f} s ({len(runs)} seeds" + f", {never} never" * bool(never) + ")"
        table.append({**row, "PPO's over STORM+PG's": f"{seconds[REFERENCE] / seconds[OURS]:.2f}"})
    return pd.DataFrame(table)


def _configurations(medians: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame({"task": medians["task"], "algorithm": [label(name) for name in medians["algorithm"]]})
    bold = (medians["own_n_envs"] & medians["own_n_steps"]).tolist()
    sizes = zip(medians["n_envs"], medians["environments"], bold, strict=True)
    table["environments"] = [f"**{n} {kind}**" if own else f"{n} {kind}" for n, kind, own in sizes]
    table["batch"] = [f"{a * b:,}" for a, b in zip(medians["n_envs"], medians["n_steps"], strict=True)]
    table["width"] = medians["width"]
    table[["device", "threads"]] = medians[["device", "threads"]]
    table["steps / s"] = [_number(value, 0) for value in medians["steps_per_second"]]
    for column, name in PARTS.items():
        table[f"{name} (µs)"] = [_number(value, 1) for value in medians[column]]
    table["share of raw"] = [_number(100 * value, 1) + " %" for value in medians["share_of_raw"]]
    if "peak_mib" in medians:
        pairs = zip(medians["peak_mib"], medians["peak_above_start_mib"], strict=True)
        table["memory (MiB)"] = [f"{_number(peak, 0)} ({_number(above, 0)})" for peak, above in pairs]
    if "peak_cuda_mib" in medians:
        table["CUDA (MiB)"] = [_number(value, 0) for value in medians["peak_cuda_mib"]]
    return table


def _gradients(medians: pd.DataFrame) -> pd.DataFrame:
    table = medians[["n_envs", "width", "device", "threads"]].astype(str)
    table.insert(0, "transitions", [f"{n:,.0f}" for n in medians["transitions"]])
    table["one (ms)"] = [_number(value, 2) for value in medians["gradient_ms"]]
    table["two (ms)"] = [_number(value, 2) for value in medians["two_point_gradient_ms"]]
    table["one by autograd (ms)"] = [_number(value, 2) for value in medians["autograd_gradient_ms"]]
    table["two over one"] = [_number(value, 2) for value in medians["gradient_ratio"]]
    table["two over one by autograd"] = [_number(value, 2) for value in medians["gradient_ratio_autograd"]]
    return table.drop_duplicates(["transitions", "n_envs", "width", "device", "threads"])


def _number(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:,.{digits}f}"


def _markdown(table: pd.DataFrame) -> str:
    return markdown_table(table) if len(table) else "Not measured."


def _plot_speed(medians: pd.DataFrame, path: Path) -> None:
    """Env steps per second against environments and width, gymnasium and batched; the raw rate in grey."""
    figure, panels = new_figure(2, 2, (9.6, 7.0), sharey=True)
    base = medians["width"] == medians["width"].min()
    sweeps = (("n_envs", "environments", base), ("width", "width of the two hidden layers", medians["own_n_envs"]))
    for row, kind in enumerate(("gymnasium", "batched")):
        for column, (by, name, chosen) in enumerate(sweeps):
            axes, drawn = panels[2 * row + column], medians[chosen & (medians["environments"] == kind)]
            drawn = drawn[drawn["own_n_steps"]]
            for index, algorithm in enumerate(medians["algorithm"].unique()):
                line = drawn[drawn["algorithm"] == algorithm].sort_values(by)
                axes.plot(line[by], line["steps_per_second"], **style(index), markersize=5, label=label(algorithm))
            if by == "n_envs" and len(drawn):
                raw = drawn.groupby(by)["raw_steps_per_second"].median()
                axes.plot(raw.index, raw, color="0.55", linewidth=3, zorder=0, label="environments alone")
            _log_log(axes, drawn[by])
            axes.set(title=kind, xlabel=name, ylabel="env steps per second" if column == 0 else "")
    panels[0].legend(fontsize=8, handlelength=4)
    save(figure, path)


def _plot_cost(medians: pd.DataFrame, path: Path) -> None:
    """Milliseconds of one update against environments, batch and parameters; gymnasium's environments."""
    figure, panels = new_figure(1, 3, (12.0, 3.9), sharey=True)
    on = medians[medians["environments"] == "gymnasium"]
    base = on["width"] == on["width"].min()
    sweeps = (
        ("n_envs", "environments", base & on["own_n_steps"]),
        ("transitions", "transitions per rollout", base & on["own_n_envs"]),
        ("parameters", "parameters", on["own_n_envs"] & on["own_n_steps"]),
    )
    for axes, (by, name, chosen) in zip(panels, sweeps, strict=True):
        for index, algorithm in enumerate(medians["algorithm"].unique()):
            line = on[chosen & (on["algorithm"] == algorithm)].sort_values(by)
            axes.plot(line[by], line["update_ms_each"], **style(index), markersize=5, label=label(algorithm))
        _log_log(axes, on[chosen][by] if by != "parameters" else [])
        axes.set_xlabel(name)
    panels[0].set_ylabel("milliseconds of one update")
    panels[0].legend(fontsize=8, handlelength=4)
    save(figure, path)


def _log_log(axes: Axes, ticks: Iterable[float]) -> None:
    """Logarithmic axes, with ticks at the values that were measured."""
    axes.set(xscale="log", yscale="log")
    values = sorted(set(ticks))
    if values:
        axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=8)
        axes.set_xticks([], minor=True)
    axes.grid(color="0.92")
