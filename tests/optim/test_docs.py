"""The documentation's code runs as it stands."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "optimisers.md"


def test_every_python_block_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert float(capsys.readouterr().out.split()[1].rstrip(",")) < 0.5


@pytest.mark.parametrize("module", ["storm_plus", "storm", "meta_storm"])
def test_examples_in_docstrings_run(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"storm_rl.optim.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_every_file_that_the_page_shows_exists() -> None:
    for link in re.findall(r"\]\((\.\./[^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).exists(), link
