"""The library stays easy to read: few files behind an update, none of them long, no private names across files."""

import ast
import re
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env

import storm_rl
from storm_rl import STORMPlusPG

PACKAGE = Path(storm_rl.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Rooms beside the core, which imports none of them.
OPTIONAL = ("best_subset", "deep", "distributed", "export", "maskable", "negative_curvature", "vector_env", "verify")


def files_of_an_iteration(activation: type[torch.nn.Module], use_action_values: bool | None) -> set[str]:
    """The library's files in which something runs while a rollout is collected and learned from."""
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    arguments = {"use_action_values": use_action_values, "policy_kwargs": {"activation_fn": activation}}
    model = STORMPlusPG("MlpPolicy", env, n_steps=16, critic_steps=2, seed=0, device="cpu", **arguments)
    model.learn(96)
    callback = CallbackList([])
    callback.init_callback(model)
    found: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            found.add(path.relative_to(PACKAGE).as_posix())

    sys.setprofile(note)
    try:
        model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
        model.train()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ELU], ids=["numpy", "autograd"])
@pytest.mark.parametrize(("use_action_values", "most"), [(None, 10), (False, 9)], ids=["default", "no action values"])
def test_an_iteration_runs_through_few_files(
    activation: type[torch.nn.Module], use_action_values: bool | None, most: int
) -> None:
    found = files_of_an_iteration(activation, use_action_values)
    assert "storm_plus_pg/storm_plus_pg.py" in found
    assert ("storm_plus_pg/action_values.py" in found) == (use_action_values is None)
    assert len(found) <= most, sorted(found)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_the_core_is_short_and_so_is_every_file() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    # The action values are about 350 of them: their own file, and what they need of the others; a constant in the
    # rewards, about 60.
    assert sum(length for path, length in lengths.items() if room(path) not in OPTIONAL) <= 6139
    assert {str(path): length for path, length in lengths.items() if length > 420} == {}


def test_the_core_imports_no_room_beside_it() -> None:
    for path in FILES:
        imported = set(re.findall(r"^\s*(?:from|import) storm_rl\.(\w+)", path.read_text(), re.MULTILINE))
        assert imported & set(OPTIONAL) <= {room(path)}, path


def test_no_module_reads_anothers_private_names() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("storm_rl"):
                parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                private = [part for part in parts if part.startswith("_") and not part.startswith("__")]
                assert not private, f"{path}: {private}"
