"""The command line: ``python -m experiments --help``."""

from pathlib import Path
from typing import Annotated

import typer

from envs import TASKS
from experiments.studies.benchmark import run_benchmark
from experiments.studies.confirm_family import confirm_family
from experiments.studies.gradient_error import gradient_error
from experiments.studies.optimisers import optimisers
from experiments.studies.tune_family import tune_family

app = typer.Typer(
    help="Studies of storm-rl: agents x tasks x seeds, run, resumed and reported.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

Output = Annotated[Path, typer.Option(help="Folder of raw runs, tables, plots and TensorBoard logs.")]
Workers = Annotated[int, typer.Option(min=1, help="Runs at a time, one process and one torch thread each.")]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds, from 0 on.")]


@app.callback()
def main() -> None:
    """Studies of storm-rl: agents x tasks x seeds, run, resumed and reported."""


@app.command()
def quickstart(output: Output = Path("runs/quickstart"), seeds: Seeds = 3, workers: Workers = 2) -> None:
    """Train STORM+PG, tuned PPO and tuned SVRPG on CartPole-v1, compare them, and say where everything is."""
    agents = ["storm_plus_pg", "ppo_zoo", "svrpg"]
    _exit(run_benchmark(agents, ["CartPole-v1"], list(range(seeds)), output, workers))


@app.command()
def benchmark(
    agents: Annotated[
        list[str] | None, typer.Option("--agent", help="An agent; give the option once for each.")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option("--task", help="A task; all five by default.")] = None,
    output: Output = Path("runs/benchmark"),
    seeds: Seeds = 10,
    first_seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    workers: Workers = 2,
    budget: Annotated[int | None, typer.Option(help="Env steps in place of each task's own.")] = None,
) -> None:
    """Run any agents on any of the benchmark's tasks, by its protocol.

    A variant of an agent is written with its arguments: --agent "storm_plus_pg[momentum=1.0]".
    """
    names = agents or ["storm_plus_pg", "ppo_zoo"]
    chosen_seeds = list(range(first_seed, first_seed + seeds))
    _exit(run_benchmark(names, tasks or list(TASKS), chosen_seeds, output, workers, budget))


for study in (optimisers, gradient_error, tune_family, confirm_family):
    app.command()(study)


def _exit(succeeded: bool) -> None:
    raise typer.Exit(0 if succeeded else 1)
