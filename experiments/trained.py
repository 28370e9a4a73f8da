"""Trained agents: taken from a finished study with a card each, watched or recorded, and the states they visit."""

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import imageio.v3 as imageio
import numpy as np
import numpy.typing as npt
import pandas as pd
import pygame
import typer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy

from agents import get_contestant
from envs import Task, get_task
from experiments.files import check_folder, write_atomically
from experiments.measures import measured
from experiments.report.study import OURS
from experiments.runs import (
    EVALUATION_EPISODES,
    EVALUATION_SEED,
    FINAL_EPISODES,
    FINAL_SEED,
    RunSpec,
    evaluation_env,
    execute,
    model_path,
)
from experiments.storage import Record, load_runs
from storm_rl import STORMPlusPG

TRAINED = Path(__file__).parents[1] / "agents" / "trained"
# Normalised score by which a model may differ from its run: rounding on another processor moves single episodes.
TOLERANCE = 0.05

CARD = """# STORM+PG on {task}

`{agent}` by the benchmark's protocol, budget {budget:,} env steps, seed {seed}: the median of seeds {seeds} by steps to
the threshold, then by final return.

| measure | value |
|---|---|
| env steps of training | {steps:,} |
| env steps to a return of {threshold:g} | {steps_to_threshold} |
| final return, deterministic, {episodes} episodes | {final_return:.1f} |
| the same, of the file here | {again:.1f} |

```console
python -m experiments watch {task}
```

Versions: {versions}.

Settings: {settings}.
"""


def export_agents(
    results: Annotated[Path, typer.Option(help="A finished study.")] = Path("runs/benchmark"),
    output: Annotated[Path, typer.Option(help="Folder of the trained agents.")] = Path("runs/trained"),
) -> None:
    """Put STORM+PG's median seed on each task, its model and a card, into a folder, as agents/trained.

    A model that is not beside the raw runs, because they are packed, is trained again by the protocol.
    """
    check_folder(output)
    runs = {spec: run for spec, run in load_runs(results).items() if spec.agent == OURS and not spec.batched}
    if not runs:
        raise ValueError(f"{results} holds no run of {OURS} on gymnasium's environments")
    rows = measured(runs.values())
    for task_id, group in rows.groupby("task", sort=False):
        row = median_run(group)
        spec = RunSpec(OURS, str(task_id), int(row["seed"]))
        folder = output / spec.task
        content, again = _policy_alone(spec, runs[spec], results)
        write_atomically(folder / "model.zip", content)
        write_atomically(folder / "README.md", _card(spec, runs[spec], group, row, again).encode())
        typer.echo(f"{folder}: seed {spec.seed}, return {again:.1f}, {len(content) / 1e3:.0f} kB")


def median_run(rows: pd.DataFrame) -> "pd.Series[Any]":
    """The middle row by steps to the threshold, then by final return; of two middle ones the worse."""
    ranked = rows.sort_values(["steps_to_threshold", "final_return"], ascending=[True, False], kind="stable")
    return ranked.iloc[len(ranked) // 2]


def _policy_alone(spec: RunSpec, record: Record, results: Path) -> tuple[bytes, float]:
    """The run's policy in a model without the training's own state, which is most of a file; its return, measured anew.

    Raises:
        ValueError: It does not return what the run returned.
    """
    task = get_task(spec.task)
    with tempfile.TemporaryDirectory() as scratch:
        path = model_path(results, spec)
        if not path.exists():
            execute(spec, Path(scratch), budget=record["budget"])
            path = model_path(Path(scratch), spec)
        trained = STORMPlusPG.load(path, device="cpu")
    model = get_contestant(spec.agent).build(spec.task, spec.seed, None)
    model.policy.load_state_dict(trained.policy.state_dict())
    model.num_timesteps = trained.num_timesteps
    content = io.BytesIO()
    model.save(content)
    content.seek(0)
    again = _final_return(STORMPlusPG.load(content, device="cpu"), task)
    before = float(np.mean(record["final_returns"]))
    if abs(task.normalised(again) - task.normalised(before)) > TOLERANCE:
        raise ValueError(
            f"{spec.stem}: the model returns {again:.1f}, its run {before:.1f}; were they made by the same code?"
        )
    return content.getvalue(), again


def _final_return(model: STORMPlusPG, task: Task) -> float:
    env = evaluation_env(task, EVALUATION_EPISODES, model)
    env.seed(FINAL_SEED)
    returns, _ = evaluate_policy(model, env, n_eval_episodes=FINAL_EPISODES)
    env.close()
    return float(np.mean(returns))


def _card(spec: RunSpec, record: Record, rows: pd.DataFrame, row: "pd.Series[Any]", again: float) -> str:
    return CARD.format(
        agent=spec.agent,
        task=spec.task,
        seed=spec.seed,
        seeds=", ".join(str(seed) for seed in sorted(rows["seed"])),
        budget=record["budget"],
        steps=record["steps"],
        threshold=get_task(spec.task).threshold,
        steps_to_threshold=f"{row['steps_to_threshold']:,.0f}" if row["reached"] else "never reached",
        episodes=FINAL_EPISODES,
        final_return=row["final_return"],
        again=again,
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        settings=", ".join(f"`{name}={value}`" for name, value in record["settings"].items()),
    )


def watch(
    task: Annotated[str, typer.Argument(help="A task of the benchmark, as CartPole-v1.")],
    model: Annotated[
        Path | None, typer.Option(help="A saved STORMPlusPG; by default the one in agents/trained.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Write a GIF or MP4 file in place of opening a window.")] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode.")] = 0,
) -> None:
    """Watch a trained agent, in a window or recorded to a file."""
    path = model or TRAINED / get_task(task).id / "model.zip"
    if not path.exists():
        raise ValueError(
            f"no trained agent at {path}: `python -m experiments export-agents --output agents/trained` puts it there, "
            "or give one by --model"
        )
    if record is not None and record.suffix not in (".gif", ".mp4"):
        raise ValueError(f"--record {record}: the file's name must end in .gif or .mp4")
    if record is not None and record.is_dir():
        raise ValueError(f"--record {record}: a folder of that name is in the way")
    if record is not None:
        check_folder(record.parent)
    elif not has_display():
        raise ValueError(f"there is no display: watch it in a file, `watch {task} --record {task}.gif`")
    agent = STORMPlusPG.load(path, device="cpu")
    env = gymnasium.make(get_task(task).id, render_mode="human" if record is None else "rgb_array")
    frames: list[Any] = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        total, over = 0.0, False
        while not over:
            if record is not None:
                frames.append(env.render())
            action, _ = agent.predict(observation, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        typer.echo(f"episode {episode + 1}: return {total:.1f}")
    env.close()
    if record is not None:
        write_atomically(record, _film(frames, record.suffix, env.metadata.get("render_fps", 30)))
        typer.echo(f"{record}: {len(frames)} frames, {record.stat().st_size / 1e6:.2f} MB")


def has_display() -> bool:
    """Whether a window can be seen. SDL opens one off screen where there is nothing to see it on."""
    if "SDL_VIDEODRIVER" in os.environ:
        return True
    try:
        pygame.display.init()
        return pygame.display.get_driver() not in ("dummy", "offscreen")
    except pygame.error:
        return False
    finally:
        pygame.display.quit()


def _film(frames: list[Any], suffix: str, frames_per_second: int) -> bytes:
    options: dict[str, Any] = {"fps": frames_per_second, "macro_block_size": 2}
    if suffix == ".gif":
        options = {"duration": 1000 / frames_per_second, "loop": 0}
    content: bytes = imageio.imwrite("<bytes>", np.stack(frames), extension=suffix, **options)
    return content


def played(act: Callable[[Any], Any], task_id: str, episodes: int) -> Iterator[tuple[Any, float]]:
    """Raw observation and reward of each step of some episodes, from the protocol's seeds of evaluations on."""
    env = gymnasium.make(task_id)
    for episode in range(episodes):
        observation, _ = env.reset(seed=EVALUATION_SEED + episode)
        over = False
        while not over:
            following, reward, terminated, truncated, _ = env.step(act(observation))
            yield observation, float(reward)
            observation, over = following, terminated or truncated
    env.close()


def visited(model: BaseAlgorithm, task_id: str, episodes: int) -> npt.NDArray[np.float64]:
    """Raw observations of ``episodes`` of the deterministic policy, ``(n, ...)``, in the order of the visits."""
    normalizer = model.get_vec_normalize_env()

    def act(observation: Any) -> Any:
        seen = observation if normalizer is None else normalizer.normalize_obs(observation)
        return model.predict(seen, deterministic=True)[0]

    return np.stack([observation for observation, _ in played(act, task_id, episodes)]).astype(np.float64)
