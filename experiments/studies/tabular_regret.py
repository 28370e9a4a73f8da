r"""What is lost while learning: regret on small MDPs whose optimal value is known.

The regret after K episodes is :math:`\sum_{k \le K} (V^* - V^{\pi_k})`, where :math:`\pi_k` is the policy of the k-th
episode and both values are exact: backward induction, no sampling. Optimistic Q-learning, vUCQ and UCBMQ act greedily
on upper bounds; the policy gradients of this package act by their softmax policies, which change after a batch. All see
step and state. Rewards are not discounted.

``python -m experiments tabular-regret --help``
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.tabular import UCBMQ, VUCQ, Bonus, Floats, OptimisticQLearning
from envs.finite_horizon import StepObservedEnv, optimal_action_values, optimal_value, policy_value
from envs.mdps import EnumerableMDP, river_swim, slippery_cliff, two_state
from experiments.files import write_atomically
from experiments.plots import COLOURS, new_figure, save
from experiments.progress import Clock
from experiments.report.page import markdown_table
from experiments.rows import Row, Rows
from experiments.statistics import estimate, mean
from storm_rl import SVRPG, STORMPlusPG

Report = Callable[[float], None]

MDPS: dict[str, EnumerableMDP] = {
    "two states": two_state(horizon=5, gamma=1.0),
    "slippery cliff": slippery_cliff(horizon=5, gamma=1.0),
    "RiverSwim": river_swim(n_states=4, horizon=10),
}
N_CHECKPOINTS = 25
BASELINE = OptimisticQLearning.label


def play(
    cls: type[OptimisticQLearning], bonus: Bonus, mdp: EnumerableMDP, seed: int, episodes: int, report: Report
) -> tuple[Floats, Floats]:
    """The regret of each episode of a tabular agent, and by how much its worst bound was below the optimal value."""
    rewards = mdp.rewards.numpy()
    reward_range = (min(0.0, float(rewards.min())), max(0.0, float(rewards.max())))
    agent = cls(mdp.horizon, mdp.n_states, mdp.n_actions, episodes, bonus, reward_range, seed=seed)
    env, best = StepObservedEnv(mdp), optimal_value(mdp)
    acting, optimal = ~mdp.terminal.numpy(), optimal_action_values(mdp)
    env.reset(seed=seed)
    regret, shortfall = np.zeros(episodes), np.zeros(episodes)
    acted: Floats | None = None
    for episode in range(episodes):
        policy = agent.policy()
        # The exact value takes longer than an episode, and the policy seldom changes.
        if acted is None or not np.array_equal(acted, policy):
            acted, gap = policy, best - policy_value(mdp, policy)
        regret[episode] = gap
        observation, step, over = env.reset()[0], 0, False
        while not over:
            state = int(observation) % mdp.n_states
            action = agent.act(step, state)
            observation, reward, over, _, _ = env.step(np.int64(action))
            agent.update(step, state, action, reward, int(observation) % mdp.n_states, over)
            step += 1
        shortfall[episode] = (optimal - agent.action_values)[:, acting].max()
        report(episode + 1)
    return regret, np.maximum(shortfall, 0.0)


class RegretCallback(BaseCallback):
    """The regret of each episode under the policy that it ended with; stops the training after ``episodes``."""

    def __init__(self, mdp: EnumerableMDP, episodes: int, report: Report) -> None:
        super().__init__()
        self.mdp, self.episodes, self.report = mdp, episodes, report
        self.best = optimal_value(mdp)
        self.regret: list[float] = []

    def _on_rollout_start(self) -> None:
        self.gap = self.best - policy_value(self.mdp, action_probabilities(self.model, self.mdp))

    def _on_step(self) -> bool:
        self.regret += [self.gap] * int(self.locals["dones"].sum())
        self.report(min(len(self.regret), self.episodes))
        return len(self.regret) < self.episodes


@torch.no_grad()
def action_probabilities(model: Any, mdp: EnumerableMDP) -> Floats:
    """A model's policy in every step and state, ``(horizon, n_states, n_actions)``."""
    distribution = model.policy.get_distribution(torch.arange(mdp.horizon * mdp.n_states)).distribution
    # Normalised once more in float64, for what is added up over many steps.
    probabilities: Floats = torch.softmax(distribution.logits.double(), dim=-1).numpy()
    return probabilities.reshape(mdp.horizon, mdp.n_states, mdp.n_actions)


def learn(cls: Any, mdp: EnumerableMDP, seed: int, episodes: int, report: Report) -> tuple[Floats, Floats]:
    """The regret of each episode of a policy gradient with its constructor's defaults, but no discount; no bounds."""
    env = make_vec_env(lambda: StepObservedEnv(mdp), n_envs=8, seed=seed)
    model: OnPolicyAlgorithm = cls("MlpPolicy", env, gamma=1.0, seed=seed, device="cpu")
    callback = RegretCallback(mdp, episodes, report)
    model.learn(episodes * mdp.horizon, callback=callback)
    if len(callback.regret) < episodes:
        raise RuntimeError(f"training ended after {len(callback.regret)} of {episodes} episodes")
    return np.array(callback.regret[:episodes]), np.full(episodes, np.nan)


AGENTS: dict[str, Callable[[EnumerableMDP, int, int, Report], tuple[Floats, Floats]]] = {
    **{cls.label: partial(play, cls, "simplified") for cls in (OptimisticQLearning, VUCQ, UCBMQ)},
    **{f"{cls.label}, proved bonus": partial(play, cls, "proved") for cls in (OptimisticQLearning, VUCQ, UCBMQ)},
    "STORM+PG": partial(learn, STORMPlusPG),
    "SVRPG": partial(learn, SVRPG),
}


def tabular_regret(
    output: Annotated[Path, typer.Option(help="Folder of rows, table and figure; finished runs stay.")] = Path(
        "runs/tabular_regret"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0 on.")] = 5,
    episodes: Annotated[int, typer.Option(min=10, help="Episodes of a run.")] = 3_000,
    agents: Annotated[list[str] | None, typer.Option("--agent", help="An agent; all.")] = None,
    mdps: Annotated[list[str] | None, typer.Option("--mdp", help="An MDP; all.")] = None,
) -> None:
    """Optimistic Q-learning, plain and variance-reduced, and policy gradients: exact regret on small MDPs."""
    for kind, chosen, known in (("agent", agents, AGENTS), ("mdp", mdps, MDPS)):
        for name in chosen or ():
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    checkpoints = np.unique(np.geomspace(1, episodes, N_CHECKPOINTS).round().astype(int))
    rows = Rows(output / "tabular_regret.csv", ("mdp", "agent", "seed", "episodes", "episode"))
    runs = list(product(mdps or MDPS, agents or AGENTS, range(seeds)))
    missing = [(*run, episodes) for run in runs if rows.get(*run, episodes, episodes) is None]
    with Clock(Console(), len(missing), len(missing) * episodes, "episodes") as clock:
        for mdp, agent, seed, _ in missing:
            with clock.run(f"{mdp}, {agent}, seed {seed}", episodes) as report:
                regret, shortfall = AGENTS[agent](MDPS[mdp], seed, episodes, report)
            key: Row = {"mdp": mdp, "agent": agent, "seed": seed, "episodes": episodes}
            total, worst = regret.cumsum(), np.maximum.accumulate(shortfall)
            rows.add(
                {**key, "episode": n, "regret": round(total[n - 1], 4), "gap": round(regret[n - 1], 6),
                 "shortfall": round(worst[n - 1], 6)}
                for n in checkpoints.tolist()
            )  # fmt: skip
    table = rows.table()
    table = table[table["episodes"] == episodes]
    write_atomically(output / "tabular_regret.md", summary(table).encode())
    draw(table, output / "tabular_regret.png")
    typer.echo(f"Table: {output / 'tabular_regret.md'}\nFigure: {output / 'tabular_regret.png'}")


def _ratio(ours: Any, theirs: Any, axis: int = -1) -> Any:
    return np.mean(ours[0], axis=axis) / np.mean(theirs[0], axis=axis)


def summary(rows: pd.DataFrame) -> str:
    """Regret at the end with bootstrap intervals over seeds, as Markdown."""
    episodes = int(rows["episodes"].iloc[0])
    last = rows[rows["episode"] == episodes]
    found = []
    for (mdp, agent), group in last.groupby(["mdp", "agent"], sort=False):
        regret = [group["regret"].to_numpy()]
        baseline = BASELINE + "".join(str(agent).partition(",")[1:])
        theirs = last[(last["mdp"] == mdp) & (last["agent"] == baseline)]["regret"].to_numpy()
        share = "{:.2f} [{:.2f}, {:.2f}]".format(*estimate(_ratio, regret, [theirs])) if len(theirs) else ""
        found.append(
            {
                "MDP": mdp,
                "agent": agent,
                "regret [95 % interval]": "{:.0f} [{:.0f}, {:.0f}]".format(*estimate(mean, regret)),
                "of optimistic Q-learning's": "" if agent == baseline else share,
                "gap of the last policy": f"{group['gap'].mean():.3f}",
                "largest shortfall": "" if group["shortfall"].isna().all() else f"{group['shortfall'].max():.2f}",
            }
        )
    uniform = {
        name: episodes
        * (
            optimal_value(mdp)
            - policy_value(mdp, np.full((mdp.horizon, *mdp.transitions.shape[:2]), 1 / mdp.n_actions))
        )
        for name, mdp in MDPS.items()
        if name in set(rows["mdp"])
    }
    text = (
        f"Regret after {episodes:,} episodes, mean over {last['seed'].nunique()} seeds with bootstrap intervals, and "
        "in multiples of optimistic Q-learning's: with the proved bonus for those that have it, else with the "
        "simplified one. The *shortfall* is how far the worst upper bound was ever below the optimal action value: 0 "
        "where all bounds held. Actions by chance alone would lose "
        + ", ".join(f"{value:,.0f} ({name})" for name, value in uniform.items())
    )
    return f"# Regret on small MDPs\n\n{text}.\n\n{markdown_table(pd.DataFrame(found))}\n"


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A panel for each MDP: regret against episodes, mean and range of the seeds; dashed with the proved bonus."""
    names = list(rows["mdp"].unique())
    figure, panels = new_figure(1, len(names), (4.2 * len(names), 4.0))
    plain = [name for name in AGENTS if "," not in name]
    first = rows["episode"].max() / 100  # Before it all learn nothing, at the same cost.
    for axes, mdp in zip(panels, names, strict=True):
        for agent, group in rows[(rows["mdp"] == mdp) & (rows["episode"] >= first)].groupby("agent", sort=False):
            name, comma, _ = str(agent).partition(",")
            by_episode = group.groupby("episode")["regret"]
            episodes, colour = by_episode.mean().index, COLOURS[plain.index(name)]
            axes.plot(episodes, by_episode.mean(), "--" if comma else "-", color=colour, label=agent, linewidth=1.5)
            axes.fill_between(episodes, by_episode.min(), by_episode.max(), color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(mdp, fontsize=10)
        axes.set_xlabel("episodes")
    panels[0].set_ylabel("regret")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save(figure, path)
