"""Does learning depend on the units of the actions? One task in several bounds, with STORM+PG's defaults."""

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import typer
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction, TimeLimit
from rich.progress import track
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from experiments.files import write_atomically
from experiments.report.page import markdown_table
from experiments.rows import Rows
from experiments.runs import EVALUATION_SEED
from storm_rl import STORMPlusPG

# Lower and upper bound of each dimension; a task takes as many as it has.
BOUNDS: dict[str, tuple[list[float], list[float]]] = {
    "[-1, 1]": ([-1.0, -1.0], [1.0, 1.0]),
    "[0, 1000]": ([0.0, 0.0], [1_000.0, 1_000.0]),
    "[-100, 100]": ([-100.0, -100.0], [100.0, 100.0]),
    "[-0.3, 1.7] x [2, 5]": ([-0.3, 2.0], [1.7, 5.0]),
}
UNIT = next(iter(BOUNDS))
BUDGETS = {"Aim": 10_000, "Pendulum-v1": 30_000}
EPISODES = 100


class Aim(gym.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """Two actions in [-1, 1], to be half of what is observed; the reward is minus the squared distance."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """As gymnasium's."""
        super().reset(seed=seed)
        return self._observe(), {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """As gymnasium's."""
        reward = -float(np.square(action - self.observed / 2.0).sum())
        return self._observe(), reward, False, False, {}

    def _observe(self) -> npt.NDArray[np.float32]:
        self.observed = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.observed


def make(task: str, bounds: str) -> gym.Env[Any, Any]:
    """The task with its actions rescaled to ``bounds``."""
    env: gym.Env[Any, Any] = TimeLimit(Aim(), 50) if task == "Aim" else gym.make(task)
    assert env.action_space.shape is not None
    low, high = (np.asarray(bound[: env.action_space.shape[0]], np.float32) for bound in BOUNDS[bounds])
    return RescaleAction(env, low, high)


def train(task: str, bounds: str, seed: int, budget: int) -> float:
    """Mean return of the deterministic policy after ``budget`` env steps."""

    def made() -> gym.Env[Any, Any]:
        return make(task, bounds)

    model = STORMPlusPG("MlpPolicy", make_vec_env(made, n_envs=8, seed=seed), seed=seed, device="cpu").learn(budget)
    mean, _ = evaluate_policy(model, make_vec_env(made, n_envs=10, seed=EVALUATION_SEED), n_eval_episodes=EPISODES)
    return float(np.mean(mean))


def action_bounds(
    output: Annotated[Path, typer.Option(help="Folder of the table; finished rows stay.")] = Path("runs/action_bounds"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0 on.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Env steps of a run, in place of the task's own.")] = None,
) -> None:
    """Train STORM+PG's defaults on tasks in several action bounds: ``action_bounds.csv``, and a table in ``.md``."""
    rows = Rows(output / "action_bounds.csv", ("task", "bounds", "seed", "steps"))
    for task, bounds, seed in track(list(product(BUDGETS, BOUNDS, range(seeds))), "Runs"):
        budget = steps or BUDGETS[task]
        if rows.get(task, bounds, seed, budget) is None:
            found = train(task, bounds, seed, budget)
            rows.add([{"task": task, "bounds": bounds, "seed": seed, "steps": budget, "return": found}])
    table = rows.table().pivot_table(index="bounds", columns="task", values="return", sort=False)
    table = (table.map("{:.1f}".format) + " (" + (table / table.loc[UNIT]).map("{:.2f}".format) + ")").reset_index()
    text = (
        "# Actions in other units\n\nMean return of the deterministic policy after training, and in brackets in "
        f"multiples of that in {UNIT} (returns are negative: below 1 is better). {seeds} seeds, {EPISODES} episodes "
        f"each.\n\n{markdown_table(table)}\n"
    )
    write_atomically(output / "action_bounds.md", text.encode())
    typer.echo(f"Table: {output / 'action_bounds.md'}")
