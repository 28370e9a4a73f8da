import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import storm_rl

ROOT = Path(__file__).parents[1]


def test_wheel_holds_storm_rl_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"storm_rl"}
    assert "storm_rl/py.typed" in names
    assert wheel.name.split("-")[1] == storm_rl.__version__
    # RL Zoo's hyperparameters are made from data, which setuptools leaves out unless told.
    assert "storm_rl/zoo/tuned_settings.json" in names
    (scripts,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "storm-rl-zoo = storm_rl.zoo.cli:main" in zipfile.ZipFile(wheel).read(scripts).decode()


def test_source_archive_holds_the_package_and_no_tests(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "storm_rl/py.typed"} <= names
    top_level = {name.split("/")[0] for name in names}
    assert not top_level & {"tests", "agents", "envs", "experiments", "docs"}


def test_library_imports_nothing_from_the_repositorys_other_folders() -> None:
    forbidden = {"agents", "envs", "experiments", "tests"}
    for path in (ROOT / "storm_rl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            assert not {module.split(".")[0] for module in modules} & forbidden, path


def test_hooks_before_a_commit_run_the_pinned_ruff() -> None:
    pinned = re.search(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"rev: v{pinned[1]}\n" in (ROOT / ".pre-commit-config.yaml").read_text()
