"""Policies of 2 to 64 layers: SB3's orthogonal start, the critical one, residual networks, and reversible ones.

SB3's PPO trains them, with the same settings at every depth: CartPole on the vector, and one game of MinAtar on images.
Small budgets; the question is which networks learn at all, and what they keep in memory.
"""

import itertools
import multiprocessing
import re
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import envs.minatar  # noqa: F401  # Registers the games.
from experiments.files import write_atomically
from experiments.plots import COLOURS, LINES, MARKERS, new_figure, save
from experiments.progress import Clock
from experiments.report.page import markdown_table
from experiments.rows import Row, Rows
from storm_rl.deep import DeepFeatures, propagation

NETWORKS: dict[str, dict[str, str]] = {
    "orthogonal": {"start": "orthogonal"},
    "critical": {},
    "ResNet": {"wiring": "residual"},
    "Momentum ResNet": {"wiring": "momentum"},
}
N_ENVS = 8
# Of PPO: RL Zoo's for CartPole but for its schedules; on images few passes over the data, which 64 layers make slow.
TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"n_steps": 32, "n_epochs": 20, "gae_lambda": 0.8, "gamma": 0.98, "learning_rate": 1e-3},
    "MinAtarBreakout-v1": {"n_steps": 128, "n_epochs": 4, "ent_coef": 0.01},
}
WIDTH = {"CartPole-v1": 64, "MinAtarBreakout-v1": 8}
STEPS = {"CartPole-v1": 20_480, "MinAtarBreakout-v1": 10_240}
# Of a pass whose memory is measured.
BATCH = {"CartPole-v1": 8192, "MinAtarBreakout-v1": 2048}
POINTS = 10


def deep_policies(
    output: Annotated[Path, typer.Option(help="Folder of rows, tables and figures; finished rows stay.")] = Path(
        "runs/deep_policies"
    ),
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task; CartPole and MinAtar's Breakout.")] = None,
    depths: Annotated[list[int] | None, typer.Option("--depth", help="Number of blocks; 2, 16 and 64.")] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Number of seeds, from 0 on.")] = 2,
    steps: Annotated[int | None, typer.Option(min=1, help="Env steps, in place of 20,480 and 10,240.")] = None,
) -> None:
    """Train deep policies from several starts: learning curves, signals by depth, and memory."""
    torch.set_num_threads(1)
    chosen, depths = tasks or list(TASKS), depths or [2, 16, 64]
    memory = Rows(output / "memory.csv", ("task", "network", "depth"))
    signals = Rows(output / "signals.csv", ("activation", "network", "layer"))
    curves = Rows(output / "curves.csv", ("task", "network", "depth", "seed", "steps"))
    if signals.get("Tanh", "orthogonal", 1) is None:
        signals.add(propagated(max(depths)))
    for task in chosen:
        for network in NETWORKS:
            for depth in depths:
                if memory.get(task, network, depth) is None:
                    key = {"task": task, "network": network, "depth": depth}
                    memory.add([{**key, "bytes": peak_memory(task, network, depth)}])
    todo = [
        (task, network, depth, seed)
        for seed in range(seeds)
        for task in chosen
        for depth in depths
        for network in NETWORKS
        if curves.get(task, network, depth, seed, steps or STEPS[task]) is None
    ]
    with Clock(Console(), len(todo), sum(depth + 8.0 for _, _, depth, _ in todo), "layers") as clock:
        for task, network, depth, seed in todo:
            with clock.run(f"{task} {network} {depth} seed {seed}", depth + 8.0):
                curves.add(trained(task, network, depth, seed, steps or STEPS[task]))
    text = summary(curves.table(), memory.table(), signals.table())
    write_atomically(output / "deep_policies.md", text.encode())
    draw_curves(curves.table(), output / "curves.png")
    draw_depths(memory.table(), signals.table(), output / "depths.png")
    typer.echo(f"Tables: {output / 'deep_policies.md'}\nFigures: {output / 'curves.png'}, {output / 'depths.png'}")


def built(task: str, network: str, depth: int, seed: int) -> PPO:
    """PPO with a deep network that actor and critic share, as SB3's do on images."""
    kwargs = {"depth": depth, "width": WIDTH[task], **NETWORKS[network]}
    policy = {"features_extractor_class": DeepFeatures, "features_extractor_kwargs": kwargs, "net_arch": []}
    kind = "CnnPolicy" if "MinAtar" in task else "MlpPolicy"
    env = make_vec_env(task, n_envs=N_ENVS, seed=seed)
    return PPO(kind, env, policy_kwargs=policy, seed=seed, device="cpu", batch_size=256, **TASKS[task])


class Returns(BaseCallback):
    """The return of each episode of training, and the env step at which it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        infos = [info["episode"] for info in self.locals["infos"] if "episode" in info]
        self.ended += [(self.num_timesteps, float(episode["r"])) for episode in infos]
        return True


def trained(task: str, network: str, depth: int, seed: int, steps: int) -> list[Row]:
    """A row for each tenth of the training: the mean return of the episodes that ended in it."""
    returns, began = Returns(), time.process_time()
    built(task, network, depth, seed).learn(steps, callback=returns)
    ends = np.linspace(0, steps, POINTS + 1).round().astype(int)
    rows: list[Row] = []
    for low, high in itertools.pairwise(ends):
        found = [value for step, value in returns.ended if low < step <= high]
        row: Row = {"task": task, "network": network, "depth": depth, "seed": seed, "steps": int(high)}
        seconds = round(time.process_time() - began, 1) if high == steps else None
        rows.append({**row, "return": float(np.mean(found)) if found else float("nan"), "seconds": seconds})
    return rows


def peak_memory(task: str, network: str, depth: int) -> int:
    """Bytes by which a process grows in one pass forward and backward, in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_pass, args=(theirs, task, network, depth))
    process.start()
    grown = ours.recv()
    process.join()
    return int(grown)


def _pass(connection: Any, task: str, network: str, depth: int) -> None:
    torch.manual_seed(0)
    space = make_vec_env(task, n_envs=1).observation_space
    features = DeepFeatures(space, depth, WIDTH[task], **NETWORKS[network])  # type: ignore[arg-type]
    observations = torch.rand(BATCH[task], *(space.shape or ()))
    # Libraries allocate at their first use.
    features(observations[:2]).sum().backward()
    # Linux: from here on, the peak is that of what follows.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    features(observations).sum().backward()
    connection.send(_peak() - before)


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def propagated(depth: int) -> list[Row]:
    """What arrives at each layer before any training, from standard normal observations; a row each."""
    space, rows = make_vec_env("CartPole-v1", n_envs=1).observation_space, []
    for activation in (torch.nn.Tanh, torch.nn.ReLU, torch.nn.GELU):
        for network in ("orthogonal", "critical", "ResNet"):
            torch.manual_seed(0)
            features = DeepFeatures(space, depth, 64, activation, **NETWORKS[network])  # type: ignore[arg-type]
            if network == "orthogonal":
                for block in (features.first, *features.blocks):
                    torch.nn.init.orthogonal_(block[1].weight, 2.0**0.5)
                    torch.nn.init.zeros_(block[1].bias)
            found = propagation(features, torch.randn(64, 4), n_probes=4)
            for number, layer in enumerate(found, 1):
                key = {"activation": activation.__name__, "network": network, "layer": number}
                rows.append({**key, "variance": layer.variance, "jacobian": layer.jacobian})
    return rows


def summary(curves: pd.DataFrame, memory: pd.DataFrame, signals: pd.DataFrame) -> str:
    """Three tables, as Markdown."""
    last = curves[curves["steps"] == curves.groupby("task")["steps"].transform("max")]
    found = last.groupby(["task", "depth", "network"], sort=False)["return"].agg(["mean", "min", "max"])
    cells = found.apply(lambda row: f"{row['mean']:.4g} ({row['min']:.4g} to {row['max']:.4g})", axis=1)
    returns = cells.unstack("network").reindex(columns=list(NETWORKS)).fillna("not run").reset_index()
    seconds = (
        last.groupby(["task", "depth", "network"], sort=False)["seconds"]
        .mean()
        .unstack("network")
        .reindex(columns=list(NETWORKS))
    )
    kept = (memory.set_index(["task", "depth", "network"])["bytes"] / 1e6).unstack("network")
    ends = signals[signals["layer"] == signals["layer"].max()].set_index(["activation", "network"])
    values = ends.apply(lambda row: f"{row['variance']:.2g} / {row['jacobian']:.2g}", axis=1).unstack("network")
    counts = ", ".join(f"{task}: {n}" for task, n in last.groupby("task", sort=False)["seed"].nunique().items())
    batches = ", ".join(f"{task}: {size}" for task, size in BATCH.items())
    return "\n\n".join(
        [
            "# Deep policies",
            f"Mean return of the episodes of training in its last tenth; mean over seeds, and range ({counts}).",
            markdown_table(returns),
            f"Memory of one pass forward and backward, in MB (observations: {batches}).",
            markdown_table(kept[list(NETWORKS)].map("{:.0f}".format).reset_index()),
            "Processor seconds of one training.",
            markdown_table(seconds.map("{:.0f}".format, na_action="ignore").fillna("not run").reset_index()),
            f"At layer {signals['layer'].max()}, before training: mean square of what flows there, and its partial "
            "Jacobian's norm with respect to the first layer.",
            markdown_table(values[["orthogonal", "critical", "ResNet"]].reset_index()),
            "",
        ]
    )


def draw_curves(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each task and depth; lines are means over seeds, bands their range."""
    tasks, depths = rows["task"].unique(), sorted(rows["depth"].unique())
    size = (2.9 * len(depths), 2.8 * len(tasks))
    figure, panels = new_figure(len(tasks), len(depths), size, sharey="row", sharex="row")
    places = [(task, depth) for task in tasks for depth in depths]
    for axes, (task, depth) in zip(panels, places, strict=True):
        for network, colour, line in zip(NETWORKS, COLOURS, LINES, strict=False):
            part = rows[(rows["task"] == task) & (rows["depth"] == depth) & (rows["network"] == network)]
            found = part.groupby("steps")["return"].agg(["mean", "min", "max"])
            axes.plot(found.index, found["mean"], color=colour, linestyle=line, label=network)
            axes.fill_between(found.index, found["min"], found["max"], color=colour, alpha=0.12, linewidth=0)
        axes.set_title(f"{task}, {depth} blocks", fontsize=9)
        axes.set_xlabel("env steps")
    for axes in panels[:: len(depths)]:
        axes.set_ylabel("return while training")
    panels[0].legend(fontsize=8)
    save(figure, path)


def draw_depths(memory: pd.DataFrame, signals: pd.DataFrame, path: Path) -> None:
    """Memory by depth, a panel for each task; and partial Jacobians by layer, one for each activation."""
    tasks, activations = memory["task"].unique(), signals["activation"].unique()
    figure, panels = new_figure(1, len(tasks) + len(activations), (2.9 * (len(tasks) + len(activations)), 3.0))
    styles = {name: (COLOURS[i], LINES[i], MARKERS[i]) for i, name in enumerate(NETWORKS)}
    for axes, task in zip(panels, tasks, strict=False):
        for network, (colour, line, marker) in styles.items():
            part = memory[(memory["task"] == task) & (memory["network"] == network)]
            axes.plot(part["depth"], part["bytes"] / 1e6, color=colour, linestyle=line, marker=marker, label=network)
        axes.set_title(f"memory, {task}", fontsize=9)
        axes.set_xlabel("blocks")
        axes.set_ylabel("MB, forward and backward")
        axes.set_ylim(bottom=0.0)
    for axes, activation in zip(panels[len(tasks) :], activations, strict=True):
        for network in ("orthogonal", "critical", "ResNet"):
            part = signals[(signals["activation"] == activation) & (signals["network"] == network)]
            axes.plot(part["layer"], part["jacobian"], color=styles[network][0], linestyle=styles[network][1])
        axes.set_yscale("log")
        axes.set_title(f"partial Jacobian, {activation}", fontsize=9)
        axes.set_xlabel("layer")
        axes.set_ylabel("norm")
    panels[0].legend(fontsize=8)
    save(figure, path)
