"""What a user's program sees: names, and types under mypy. Also run against the installed wheel."""

import subprocess
import sys
from pathlib import Path

import pytest

import storm_rl

PROGRAM = """
from typing import assert_type

import torch

from storm_rl import DEFPG, GPOMDP, PAGEPG, SRVRPG, STORMPG, SVRPG, STORMPlusPG
from storm_rl.maskable import MaskableSTORMPlusPG
from storm_rl.optim import STORM, MetaSTORM, STORMPlus

model = STORMPlusPG("MlpPolicy", "CartPole-v1", critic_learning_rate=1e-3, target_kl=None)
assert_type(model.learn(100), STORMPlusPG)
assert_type(STORMPlusPG.load("model"), STORMPlusPG)
assert_type(SVRPG("MlpPolicy", "CartPole-v1", baseline="none").learn(100), SVRPG)
assert_type(MaskableSTORMPlusPG.load("model").learn(100, use_masking=False), MaskableSTORMPlusPG)
algorithms = [GPOMDP, SVRPG, SRVRPG, STORMPG, PAGEPG, DEFPG]

network = torch.nn.Linear(2, 1)
for optimizer in (STORMPlus(network.parameters()), STORM(network.parameters()), MetaSTORM(network.parameters())):
    assert_type(optimizer.momentum, float)
"""
# A type checker must see each of these.
MISTAKES = {
    'STORMPlusPG("MlpPolicy", "CartPole-v1", target_kl="manhattan")': "arg-type",
    'SVRPG("MlpPolicy", "CartPole-v1", mini_batch_sice=5)': "call-arg",
}


@pytest.mark.slow
def test_a_users_program_type_checks_and_its_mistakes_do_not(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(PROGRAM)
    bad.write_text("\n".join(["from storm_rl import SVRPG, STORMPlusPG", *MISTAKES]))
    # Reading torch takes mypy half a minute, once.
    cache = pytestconfig.cache.mkdir("mypy")  # type: ignore[union-attr]
    # mypy finds packages in the folder that it is run from, and those that are installed.
    folder = Path(storm_rl.__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", str(good), str(bad)],
        cwd=folder if (folder / "pyproject.toml").exists() else tmp_path,
        capture_output=True,
        text=True,
    )
    assert "good.py" not in found.stdout, found.stdout
    errors = [line for line in found.stdout.splitlines() if "error:" in line]
    assert len(errors) == len(MISTAKES), found.stdout + found.stderr
    for line, (mistake, code) in zip(errors, MISTAKES.items(), strict=True):
        assert code in line, (mistake, line)


def test_all_public_names_are_there_and_documented() -> None:
    for name in set(storm_rl.__all__) - {"__version__"}:
        assert getattr(storm_rl, name).__doc__, name
