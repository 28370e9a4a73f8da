"""The command line: ``python -m experiments --help``."""

import difflib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agents import CONTESTANTS
from envs import Suite
from experiments.engines import ray_cluster
from experiments.files import check_folder, locked, own_folder
from experiments.report.command import report
from experiments.storage import load_runs, pack
from experiments.studies.ablations import ablations
from experiments.studies.action_bounds import action_bounds
from experiments.studies.actors.study import actors
from experiments.studies.adaptation import adaptation
from experiments.studies.agent_check import agent_check
from experiments.studies.benchmark import run_benchmark, run_specs
from experiments.studies.certify import certify
from experiments.studies.confirm_family import confirm_family
from experiments.studies.deep_policies import deep_policies
from experiments.studies.delay.study import delay
from experiments.studies.fuzz import fuzz
from experiments.studies.gradient_error import gradient_error
from experiments.studies.inputs import inputs
from experiments.studies.optimisers import optimisers
from experiments.studies.saddles import saddles
from experiments.studies.sampling import sampling
from experiments.studies.step_bound import step_bound
from experiments.studies.tabular_regret import tabular_regret
from experiments.studies.throughput import throughput
from experiments.studies.tune_family import tune_family
from experiments.trained import export_agents, watch


class Studies(TyperGroup):
    """The commands; one that does not exist is answered with those that do."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer's, with an error that lists the commands."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            nearest = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(f"unknown study or command {args[0]!r}; known: {', '.join(self.commands)}.{hint}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Studies,
    help="Studies of storm-rl: agents x tasks x seeds, run, resumed and reported.",
    no_args_is_help=True,
    # Not rich's markup, to which what stands in square brackets is a style.
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


Output = Annotated[Path, typer.Option(help="Folder of raw runs, tables, plots and TensorBoard logs.")]
Workers = Annotated[int, typer.Option(min=1, help="Runs at a time, one process and one torch thread each.")]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds, from 0 on.")]
Ray = Annotated[
    str | None,
    typer.Option(help="A Ray cluster in place of this machine's processes: its address, as 10.0.0.1:6379, or auto."),
]
RerunBroken = Annotated[bool, typer.Option("--rerun-broken", help="Delete files that are not whole runs; run again.")]


@app.callback()
def main() -> None:
    """Studies of storm-rl: agents x tasks x seeds, run, resumed and reported."""


@app.command()
def quickstart(output: Output = Path("runs/quickstart"), seeds: Seeds = 3, workers: Workers = 2) -> None:
    """Train STORM+PG, RL Zoo's PPO and tuned SVRPG on CartPole-v1, compare them, and say where everything is."""
    agents = ["storm_plus_pg", "ppo_zoo", "svrpg"]
    _exit(run_benchmark(run_specs(agents, ["CartPole-v1"], range(seeds)), output, workers))


@app.command()
def benchmark(
    agents: Annotated[
        list[str] | None, typer.Option("--agent", help="An agent; give the option once for each.")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task; the suite's by default.")] = None,
    suite: Annotated[Suite, typer.Option(help="Tasks that belong together, in place of --task.")] = Suite.CLASSIC,
    output: Output = Path("runs/benchmark"),
    seeds: Seeds = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    workers: Workers = 2,
    budget: Annotated[int | None, typer.Option(min=1, help="Env steps in place of each task's own.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Every agent of `agents`, in place of --agent.")] = False,
    ray: Ray = None,
    batched: Annotated[
        bool, typer.Option("--batched", help="Train and evaluate on envs.batched; for development.")
    ] = False,
    rerun_broken: RerunBroken = False,
) -> None:
    """Run any agents on any tasks, by the benchmark's protocol; STORM+PG and RL Zoo's PPO on its five by default.

    Tasks whose actions an agent cannot take are left out for it.

    A variant of an agent is written with its arguments: --agent "storm_plus_pg[momentum=1.0]".
    """
    chosen_seeds = range(first_seed, first_seed + seeds)
    if everyone and agents:
        raise ValueError("--all is every agent: leave out --agent")
    names = list(CONTESTANTS) if everyone else agents or ["storm_plus_pg", "ppo_zoo"]
    if tasks and suite != Suite.CLASSIC:
        raise ValueError("--suite is a list of tasks: leave out --task")
    specs = run_specs(names, tasks or suite.tasks(), chosen_seeds, batched)
    engine = None if ray is None else ray_cluster(ray)
    _exit(run_benchmark(specs, output, workers, budget, engine, rerun_broken))


@app.command("pack")
def pack_runs(
    results: Annotated[Path, typer.Option(help="Folder of a study.")] = Path("runs/benchmark"),
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the packed file; RESULTS/packed, or runs/benchmark/packed for published results."),
    ] = None,
) -> None:
    """Write a study's raw runs as one compact file, for the repository; `report` reads it as it reads raw runs."""
    folder = output or own_folder(results) / "packed"
    check_folder(folder)
    path = pack(results, folder)
    typer.echo(f"{path}: {len(load_runs(path.parent))} runs, {path.stat().st_size / 1e6:.2f} MB")


for command in (report, export_agents, watch, agent_check, step_bound):
    app.command()(command)


def _alone(study: Callable[..., None]) -> Callable[..., None]:
    """The study, in a folder that no other process works in. `run_all` locks those of runs."""

    @functools.wraps(study)
    def alone(**arguments: Any) -> None:
        with locked(arguments["output"]):
            study(**arguments)

    return alone


for study in (
    *(ablations, action_bounds, actors, certify, deep_policies, delay, inputs, optimisers, gradient_error),
    *(tabular_regret, saddles, sampling, adaptation),
    *(throughput, tune_family, confirm_family, fuzz),
):
    app.command()(_alone(study))


def _exit(succeeded: bool) -> None:
    raise typer.Exit(0 if succeeded else 1)
