"""What CONTRIBUTING.md promises: an entry is all that a task or a contestant needs, from the run to the report."""

from functools import partial
from pathlib import Path

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec
from stable_baselines3 import A2C

from agents import CONTESTANTS, Contestant
from agents.build import build_model
from envs import TASKS, Task
from experiments.report import tables
from experiments.report.study import Study
from experiments.runs import RunSpec, execute
from experiments.storage import load_runs
from experiments.studies.benchmark import run_specs
from storm_rl.zoo import ALGORITHMS

SMALL = ["storm_plus_pg[n_steps=32,critic_steps=2]", *(name for name in ALGORITHMS if name != "storm_plus_pg")]


@pytest.fixture
def toy_task(monkeypatch: pytest.MonkeyPatch) -> str:
    """A task that nothing but its entry knows."""
    task = Task("Toy-v0", 600, 200, 5.0, (0.0, 30.0))
    spec = gymnasium.spec("CartPole-v1")
    toy = EnvSpec(task.id, spec.entry_point, max_episode_steps=30)
    monkeypatch.setitem(gymnasium.registry, task.id, toy)
    monkeypatch.setitem(TASKS, task.id, task)
    return task.id


def test_a_task_is_one_entry(toy_task: str, tmp_path: Path) -> None:
    for spec in run_specs([*SMALL, "ppo_zoo"], [toy_task], [0]):
        execute(spec, tmp_path)
    study = Study.of(load_runs(tmp_path))
    assert [task.id for task in study.tasks] == [toy_task]
    # Episodes of up to 30 steps with a reward of 1 each are above the threshold from the first evaluation on.
    assert set(tables.steps(study, study.agents)[toy_task]) == {"200"}


def test_a_task_that_is_not_batched_says_so_before_anything_runs(toy_task: str) -> None:
    with pytest.raises(ValueError, match=r"no batched environment 'Toy-v0'; known: CartPole-v1, .* gymnasium's"):
        run_specs(["storm_plus_pg"], [toy_task], [0], batched=True)


def test_a_contestant_is_one_entry(toy_task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTESTANTS, "toy", Contestant("toy", "A toy", partial(build_model, A2C, gamma=0.9)))
    execute(RunSpec("toy[n_envs=2]", toy_task, 0), tmp_path)
    execute(RunSpec("toy", toy_task, 0), tmp_path)
    study = Study.of(load_runs(tmp_path))
    assert tables.steps(study, study.agents)["agent"].tolist() == ["A toy", "A toy [n_envs=2]"]
    assert study.agents == ["toy", "toy[n_envs=2]"]


def test_no_page_but_the_algorithms_own_lists_them() -> None:
    root = Path(__file__).parents[1]
    pages = [*root.glob("*.md"), *(root / "docs").glob("*.md"), *(root / "docs/api").glob("*.md"), root / "mkdocs.yml"]
    names = {row.algorithm.__name__ for row in ALGORITHMS.values()}
    listed = {page.name for page in pages if all(f"`{name}`" in page.read_text() for name in names)}
    # What came when, and examples ("among them").
    assert listed <= {"CHANGELOG.md", "README.md"}
