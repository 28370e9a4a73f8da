import json
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
from stable_baselines3.common.logger import Logger

from storm_rl import SVRPG, STORMPlusPG, __version__
from storm_rl.zoo import ALGORITHMS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^ *```python\n(.*?)```", page.read_text(), re.DOTALL | re.MULTILINE), 1)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "onnx" in block:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    if "storm_rl.distributed" in block:
        pytest.importorskip("ray")
    # The same calls for fewer steps, and drawn without a window that is paced for eyes.
    block = block.replace("50_000", "1_024").replace('"human"', '"rgb_array"')
    exec(compile(textwrap.dedent(block), "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    names = {"__name__": "notebook"}
    cells = json.loads(notebook.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)  # Nothing generated is kept.
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]).replace("50_000", "1_024"), notebook.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.slow
def test_site_builds_without_a_warning_and_is_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    home = (tmp_path / "index.html").read_text()
    assert f"storm-rl {__version__}" in home
    # The README's parts, with links that lead from here.
    assert "is a natural-gradient actor-critic" in home
    assert 'href="storm_plus_pg.html#what-sets-step-and-momentum"' in home
    assert "<!-- README:" not in home

    reference = (tmp_path / "api/algorithms.html").read_text()
    assert ":math:" not in reference
    assert ".. math::" not in reference
    assert all(f'id="storm_rl.{row.algorithm.__name__}"' in reference for row in ALGORITHMS.values())

    pages = {page.relative_to(tmp_path).as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    pages.pop("experiments/results/benchmark/report/index.html", None)  # A file of the study's own.
    for name, page in pages.items():
        # Nothing is fetched from elsewhere, and every equation is there without a script.
        assert not re.findall(r'<(?:script|img|iframe)[^>]* src="?(?:https?:)?//[^ >]*', page), name
        assert not re.findall(r'<link[^>]* rel="?(?:stylesheet|preconnect)[^>]* href="?(?:https?:)?//', page), name
        assert not re.findall(r'class="?arithmatex"?>(?!<math)', page), name
    assert pages["storm_plus_pg.html"].count("<math") > 30

    entry = r'<a href="([^"#]+)" class="md-nav__link[^>]*>\s*<span class="md-ellipsis">(.*?)</span>'
    titles = [re.sub(r"<.*?>|\s+", " ", title).strip() for _, title in re.findall(entry, home, re.DOTALL)]
    assert len(titles) > 30
    assert len(set(titles)) == len(titles), sorted(titles)


def test_readmes_first_lines_say_what_the_package_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    facts = (ROOT / "README.md").read_text().split("<!-- pitch: begin -->")[0]
    lowest = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(project["dependencies"]), re.MULTILINE))
    assert f"Python {project['requires-python'].removeprefix('>=')} and newer" in facts
    assert f"Stable-Baselines3 {lowest['stable-baselines3']}" in facts
    assert f"torch {lowest['torch']}" in facts
    assert f"gymnasium {lowest['gymnasium']}" in facts
    assert project["license"] in facts


def test_the_table_of_algorithms_has_them_all() -> None:
    table = (ROOT / "docs/algorithms/index.md").read_text()
    named = re.findall(r"^\| \[`(\w+)`\]", table, re.MULTILINE)
    assert sorted(named) == sorted(row.algorithm.__name__ for row in ALGORITHMS.values())


def test_one_version_everywhere() -> None:
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[?(\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    # Until the first release there is only the section of what comes next.
    assert "## Unreleased" in changelog or released[0] == __version__


class Names(Logger):
    """Only the names of what is recorded."""

    def __init__(self) -> None:
        super().__init__(None, [])
        self.seen: set[str] = set()

    def dump(self, step: int = 0) -> None:
        self.seen |= set(self.name_to_value)
        super().dump(step)


def test_every_name_in_the_log_is_explained() -> None:
    names = Names()
    for model in (
        STORMPlusPG("MlpPolicy", "Pendulum-v1", n_steps=64, critic_steps=4, seed=0),
        SVRPG("MlpPolicy", "Pendulum-v1", batch_size=2, mini_batch_size=2, baseline="state_value", seed=0),
    ):
        model.set_logger(names)
        model.learn(1_200)
    assert {"train/cosine_previous_direction", "train/large_batch", "rollout/ep_rew_mean"} <= names.seen
    page = (ROOT / "docs/tensorboard.md").read_text()
    assert not {name for name in names.seen if f"`{name}`" not in page}
