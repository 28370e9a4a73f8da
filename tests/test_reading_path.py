"""The library stays easy to read: few files behind an update, none of them long, no private names across files."""

import ast
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env

import storm_rl
from storm_rl import STORMPlusPG

PACKAGE = Path(storm_rl.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# What no algorithm needs and nothing imports: short files too, and not counted to the core's length.
OPTIONAL = (
    "vector_env.py",
)  # fmt: skip


def files_of_an_iteration(**policy_kwargs: Any) -> set[str]:
    """The library's files in which something runs while a rollout is collected and learned from."""
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    model = STORMPlusPG("MlpPolicy", env, n_steps=16, critic_steps=2, policy_kwargs=policy_kwargs, seed=0, device="cpu")
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
def test_an_iteration_runs_through_ten_files_at_most(activation: type[torch.nn.Module]) -> None:
    found = files_of_an_iteration(activation_fn=activation)
    assert "storm_plus_pg/storm_plus_pg.py" in found
    assert len(found) <= 10, sorted(found)


def test_the_package_is_short_and_so_is_every_file() -> None:
    lengths = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    assert set(OPTIONAL) <= lengths.keys()
    assert sum(length for name, length in lengths.items() if name not in OPTIONAL) <= 6000
    assert {name: length for name, length in lengths.items() if length > 420} == {}


def test_no_module_reads_anothers_private_names() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("storm_rl"):
                parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                private = [part for part in parts if part.startswith("_") and not part.startswith("__")]
                assert not private, f"{path}: {private}"
