import io

import pytest
from rich.console import Console

from experiments import progress
from experiments.progress import Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is, to be changed."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_without_a_terminal_there_is_a_line_for_each_run_and_one_a_minute(now: list[float]) -> None:
    file = io.StringIO()
    with Clock(Console(file=file, width=40), count=3, total=400) as clock:
        clock.update("a[x=1]__seed0", 0, 100)
        now[0] = 30.0
        clock.end("a[x=1]__seed0", 100)
        clock.update("b", 0, 200)
        now[0] = 89.0
        clock.tick()
        now[0] = 90.0
        clock.update("b", 150, 200)
        now[0] = 100.0
        clock.end("b", 200, "[red]failed[/] (why)")
        clock.skip(100)
    assert file.getvalue().splitlines() == [
        "1 of 3: a[x=1]__seed0 finished, 0:00:30, about 0:01:30 left",
        "1 of 3 runs, 62% of all env steps, about 0:00:54 left",
        "2 of 3: b failed (why), 0:01:10, about 0:00:33 left",
    ]


def test_in_a_terminal_each_run_has_a_clock_that_begins_with_it(now: list[float]) -> None:
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True, get_time=lambda: now[0])
    with Clock(console, count=2, total=200) as clock:
        now[0] = 100.0
        clock.update("late", 0, 100)
        now[0] = 110.0
        clock.update("late", 50, 100)
        lines = console.render_lines(clock._bars.get_renderable())
    of_all, late = ("".join(segment.text for segment in line) for line in lines)
    assert "late" in late
    assert "50/100 env steps" in late
    assert "0:00:10" in late
    assert "0/2 runs, about 0:05:30 left" in of_all
    assert "0:01:50" in of_all
