r"""Policies that adapt: implicit MAML, first-order MAML, a joint policy and a new network on families of tasks.

A *start* is trained on tasks of a family and then adapts to tasks that it has not seen, by natural steps with sixteen
episodes of the task each. The joint policy is trained on the mixture of the tasks, without adaptation, for the same
number of env steps. How the meta-gradients are checked is in `experiments.studies.implicit_gradient`.

``python -m experiments adaptation --help``
"""

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.console import Console

from agents.implicit_maml import ImplicitMAML
from agents.task_rollouts import Policies
from envs.families import FAMILIES
from experiments.files import write_atomically
from experiments.plots import COLOURS, MARKERS, new_figure, save
from experiments.progress import Clock
from experiments.report.page import markdown_table
from experiments.rows import Row, Rows
from experiments.statistics import estimate, mean
from experiments.studies import implicit_gradient

N_TASKS = 12  # Of a meta-update.
EPISODES = 16  # Of a task that is not trained on, for each step.
STEPS = 5
VALIDATED_AFTER = 3
SHOWN = (0, 1, 2, 3, 5)
# Tasks that are not trained on: their number, and a seed that no training has.
TASKS = {"validation": (6, 1_000_000), "held out": (20, 2_000_000)}

# What observations and rewards are divided by, hidden units, and episodes of a task and a step in training: those of
# cart-poles end early.
CART_POLES: dict[str, Any] = {"scale": (2.4, 2.0, 0.2, 2.0), "reward_scale": 20.0, "hidden": (8,), "episodes": 16}
PENDULUMS: dict[str, Any] = {"scale": (1.0, 1.0, 4.0), "reward_scale": 100.0, "hidden": (16,), "episodes": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "cart-poles": {**CART_POLES, "updates": 10},
    "cart-poles, either sign": {**CART_POLES, "updates": 40},
    "pendulums": {**PENDULUMS, "updates": 20},
    "pendulums, either sign": {**PENDULUMS, "updates": 40},
}
# Chosen on cart-poles of either sign with seed 100.
MAML: dict[str, Any] = {"inner_steps": 2, "strength": 0.1, "rate": 0.5, "inner_kl": 0.2, "max_steps": 8}
STARTS: dict[str, dict[str, Any]] = {
    "implicit MAML": MAML,
    "first-order MAML": {**MAML, "implicit": False},
    "joint policy": {**MAML, "inner_steps": 0},
    "from scratch": MAML,
}
# Strength of the proximal term, and largest KL of a step.
RULES = {
    "proximal": (MAML["strength"], MAML["inner_kl"]),
    "0.1 nats": (0.0, 0.1),
    "0.02 nats": (0.0, 0.02),
}


def make(family: str, start: str, seed: int) -> ImplicitMAML:
    """The start before its training."""
    settings = SETTINGS[family]
    space = FAMILIES[family].make().action_space
    policies = Policies(space, settings["scale"], settings["hidden"])
    arguments = {"reward_scale": settings["reward_scale"], **STARTS[start]}
    return ImplicitMAML(policies, policies.initial(seed), seed=seed, **arguments)


def train(agent: ImplicitMAML, family: str, seed: int, updates: int, env_steps: int | None, clock: Any) -> None:
    """Update the start ``updates`` times, or until it has taken ``env_steps``; with new tasks each time."""
    drawn, episodes, update = FAMILIES[family], SETTINGS[family]["episodes"], 0
    while (update < updates) if env_steps is None else (agent.env_steps < env_steps):
        env = drawn.make_vec(drawn.draw(N_TASKS, [seed, update]), episodes, seed=1_000 * (1_000 * seed + update))
        agent.update(env, N_TASKS)
        update += 1
        clock(update if env_steps is None else updates * agent.env_steps / env_steps)


def adapt(agent: ImplicitMAML, family: str, seed: int) -> list[Row]:
    """The mean return over tasks that the start has not seen, after each number of steps and by each rule."""
    drawn, found = FAMILIES[family], []
    for (tasks, (n_tasks, task_seed)), (rule, (strength, largest_kl)) in product(TASKS.items(), RULES.items()):
        env = drawn.make_vec(drawn.draw(n_tasks, [task_seed, seed]), EPISODES, seed=10 * task_seed + 1_000 * seed)
        agent.inner_kl = largest_kl
        _, rollouts = agent.adapt(env, n_tasks, STEPS, strength)
        found += [
            {"tasks": tasks, "rule": rule, "step": step, "return": round(float(each.returns.mean()), 2)}
            for step, each in enumerate(rollouts)
        ]
    return found


def adaptation(
    output: Annotated[Path, typer.Option(help="Folder of rows, table and figures; finished runs stay.")] = Path(
        "runs/adaptation"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of each start, from 0 on.")] = 3,
    families: Annotated[list[str] | None, typer.Option("--family", help="A family of tasks; all.")] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Meta-updates; each family's own number.")] = None,
) -> None:
    """Implicit MAML on families of cart-poles and pendulums: its gradients, their memory, and adaptation."""
    for name in families or ():
        if name not in FAMILIES:
            raise ValueError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    console = Console()
    checks = Rows(output / "gradients.csv", ("gradient", "inner_steps"))
    if len(checks.table()) == 0:
        with Clock(console, 1, len(implicit_gradient.STEPS), "numbers of inner steps") as clock, \
                clock.run("meta-gradients", len(implicit_gradient.STEPS)) as report:  # fmt: skip
            checks.add(implicit_gradient.measure(report))
    rows = Rows(output / "adaptation.csv", ("family", "start", "seed", "updates", "tasks", "rule", "step"))
    runs: list[tuple[str, str, int, int]] = [
        (family, start, seed, updates or SETTINGS[family]["updates"])
        for seed, family, start in product(range(seeds), families or FAMILIES, STARTS)
    ]
    missing = [run for run in runs if rows.get(*run, "held out", list(RULES)[-1], STEPS) is None]
    with Clock(console, len(missing), sum(run[3] for run in missing), "updates") as clock:
        for family, start, seed, length in missing:
            torch.manual_seed(seed)
            agent = make(family, start, seed)
            with clock.run(f"{family}, {start}, seed {seed}", length) as report:
                if start != "from scratch":
                    budget = None
                    if start == "joint policy":
                        other = rows.get(family, "implicit MAML", seed, length, "held out", list(RULES)[-1], STEPS)
                        assert other is not None
                        budget = int(other["env_steps"])
                    train(agent, family, seed, length, budget, report)
                trained = agent.env_steps
                key: Row = {"family": family, "start": start, "seed": seed, "updates": length}
                rows.add({**key, **row, "env_steps": trained} for row in adapt(agent, family, seed))
    table = rows.table()
    write_atomically(output / "adaptation.md", summary(table, checks.table()).encode())
    draw(table, output / "adaptation.png")
    draw_gradients(checks.table(), output / "gradients.png")
    typer.echo(f"Table: {output / 'adaptation.md'}\nFigures: {output / 'adaptation.png'}, {output / 'gradients.png'}")


def chosen_rules(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of held-out tasks by the rule that is best on the validation tasks, for each family and start."""
    validated = rows[(rows["tasks"] == "validation") & (rows["step"] == VALIDATED_AFTER)]
    means = validated.groupby(["family", "start", "rule"], sort=False)["return"].mean()
    best = means.groupby(["family", "start"], sort=False).idxmax()
    held_out = rows[rows["tasks"] == "held out"]
    picked = [key in set(best) for key in zip(held_out["family"], held_out["start"], held_out["rule"], strict=True)]
    return held_out[picked]


def _cell(group: pd.DataFrame, step: int, difference: bool = False) -> str:
    """The mean and its interval; a difference whose interval does not hold 0 in bold."""
    returns = group[group["step"] == step].sort_values("seed")["return"].to_numpy()
    value, low, high = estimate(mean, [returns])
    text = f"{value:.0f} [{low:.0f}, {high:.0f}]"
    return f"**{text}**" if difference and (low > 0.0 or high < 0.0) else text


def summary(rows: pd.DataFrame, checks: pd.DataFrame) -> str:
    """Meta-gradients, returns after adaptation, and differences from implicit MAML's, as Markdown."""
    found, differences = [], []
    chosen = chosen_rules(rows)
    for (family, start), group in chosen.groupby(["family", "start"], sort=False):
        line = {"family": family, "start": start, "rule": group["rule"].iloc[0]}
        found.append({**line, **{f"after {step}": _cell(group, step) for step in SHOWN}})
        ours = chosen[(chosen["family"] == family) & (chosen["start"] == "implicit MAML")]
        if start != "implicit MAML":
            pairs = ours.merge(group, on=["family", "seed", "step"])
            pairs["return"] = pairs["return_x"] - pairs["return_y"]
            differences.append(
                {"family": family, "implicit MAML less": start}
                | {f"after {step}": _cell(pairs, step, difference=True) for step in SHOWN}
            )
    held_out = rows[(rows["tasks"] == "held out") & (rows["step"] == VALIDATED_AFTER)]
    by_rule = held_out.pivot_table("return", ["family", "start"], "rule", sort=False).map("{:.0f}".format)
    seeds = rows["seed"].nunique()
    table = checks.assign(error=checks["error"].map("{:.1e}".format)).pivot(
        index="inner_steps", columns="gradient", values="error"
    )
    saved = checks.pivot(index="inner_steps", columns="gradient", values="saved_bytes") / 1e6
    gradients = pd.DataFrame(
        {
            "inner steps": table.index.astype(str),
            **{f"error, {name}": table[name] for name in ("implicit", "first-order", "through the path")},
            **{f"MB saved, {name}": saved[name].map("{:.1f}".format) for name in ("implicit", "through the path")},
        }
    )
    text = (
        f"Mean return on {TASKS['held out'][0]} tasks that were not trained on, {EPISODES} episodes of 200 steps at "
        f"most for each and each step, sampled actions; mean over {seeds} seeds of the training and tasks, with "
        "bootstrap intervals over seeds. *Rule*: the proximal steps of the training, or natural steps of a constant "
        f"KL, chosen for each family and start by the return after {VALIDATED_AFTER} steps on "
        f"{TASKS['validation'][0]} other tasks of each seed."
    )
    return (
        f"# Adaptation\n\n{text}\n\n{markdown_table(pd.DataFrame(found))}\n\n"
        "Differences, seed by seed; an interval without 0 is in bold.\n\n"
        f"{markdown_table(pd.DataFrame(differences))}\n\n"
        f"Return after {VALIDATED_AFTER} steps by each rule.\n\n{markdown_table(by_rule.reset_index())}\n\n"
        "# Meta-gradients\n\nRelative error to the gradient of the bilevel objective, on small MDPs with exact losses, "
        "and the bytes that autograd saved at the most, for networks on episodes of cart-poles.\n\n"
        f"{markdown_table(gradients)}\n"
    )


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each family: return against adaptation steps, mean and range of the seeds."""
    chosen = chosen_rules(rows)
    names = list(chosen["family"].unique())
    figure, panels = new_figure(1, len(names), (3.6 * len(names), 3.8))
    for axes, family in zip(panels, names, strict=True):
        for index, start in enumerate(STARTS):
            by_step = chosen[(chosen["family"] == family) & (chosen["start"] == start)].groupby("step")["return"]
            colour, steps = COLOURS[index], by_step.mean().index
            axes.plot(steps, by_step.mean(), color=colour, marker=MARKERS[index], markersize=4, label=start)
            axes.fill_between(steps, by_step.min(), by_step.max(), color=colour, alpha=0.12, linewidth=0)
        axes.set_title(family, fontsize=10)
        axes.set_xlabel("adaptation steps")
    panels[0].set_ylabel("return")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save(figure, path)


def draw_gradients(checks: pd.DataFrame, path: Path) -> None:
    """Error and memory of the meta-gradients against the number of inner steps."""
    figure, (errors, memory) = new_figure(1, 2, (8.4, 3.6))
    for index, (name, group) in enumerate(checks.groupby("gradient", sort=False)):
        style: dict[str, Any] = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4}
        errors.plot(group["inner_steps"], group["error"], label=name, **style)
        if group["saved_bytes"].notna().all():
            memory.plot(group["inner_steps"], group["saved_bytes"] / 1e6, **style)
    errors.set_yscale("log")
    errors.set_ylabel("relative error")
    memory.set_ylabel("saved for backward (MB)")
    memory.set_ylim(bottom=0)
    for axes in (errors, memory):
        axes.set_xlabel("inner steps")
    figure.legend(*errors.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    save(figure, path)
