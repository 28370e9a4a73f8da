"""How far a study is: bars in a terminal, plain lines where there is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

# Seconds between two lines about runs that take long, where no bars move.
EVERY = 60.0


class Clock:
    """The time of each run, and how much is left of all.

    A run is known by its name, and begins with its first `update`. In a terminal it has a bar; where there is none, a
    line a minute says how far all are. As it ends there is a line in either case. What is left is in proportion to
    what is done, so that it is rough while runs of one speed are ahead of those of another.

    Args:
        console: Where it is shown.
        count: Number of runs.
        total: The sum of their sizes.
        unit: Of the sizes.
        a_line_each: Whether there is a line as a run ends; not for very many short ones.
    """

    def __init__(
        self, console: Console, count: int, total: float, unit: str = "env steps", a_line_each: bool = True
    ) -> None:
        self.console = console
        self.count = count
        self.total = total
        self.unit = unit
        self.a_line_each = a_line_each
        self._ended = 0
        self._ended_size = 0.0
        self._under_way: dict[str, tuple[TaskID, float, float]] = {}  # Its bar, when it began, how far it is.
        self._bars = Progress(
            # Names of runs are long: they give way to the numbers.
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=console,
            expand=True,
            # Without a terminal it would show its last state once more.
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._began = self._spoke = time.monotonic()
        self._all = self._bars.add_task(f"{self.count} runs", total=self.total, numbers="")
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, name: str, done: float, size: float) -> None:
        """The run has got to ``done`` of ``size``."""
        if name not in self._under_way:
            bar = self._bars.add_task(escape(name), total=size, numbers="")
            self._under_way[name] = bar, time.monotonic(), 0.0
        bar, began, _ = self._under_way[name]
        self._under_way[name] = bar, began, min(done, size)
        self._bars.update(bar, completed=done, numbers=f"{done:,.0f}/{size:,.0f} {self.unit}")
        self.tick()

    def end(self, name: str, size: float, outcome: str = "finished") -> None:
        """The run is over. ``outcome`` may hold rich's markup."""
        bar, began, _ = self._under_way.pop(name, (None, time.monotonic(), 0.0))
        if bar is not None:
            self._bars.remove_task(bar)
        self._ended += 1
        self._ended_size += size
        if self.a_line_each:
            took, left = _shown(time.monotonic() - began), self._left()
            self._say(f"{self._ended} of {self.count}: {escape(name)} {outcome}, {took}{left}")
        self.tick()

    @contextmanager
    def run(self, name: str, size: float = 1.0, outcome: str = "finished") -> Iterator[Callable[[float], None]]:
        """The run is under way in the block, which tells the function that it gets how far it is."""
        self.update(name, 0.0, size)
        yield lambda done: self.update(name, done, size)
        self.end(name, size, outcome)

    def skip(self, size: float) -> None:
        """A run was there already."""
        self.count -= 1
        self.total -= size

    def tick(self) -> None:
        """Call this now and then: it moves the bar of all, and speaks where there is no terminal."""
        self._bars.update(
            self._all,
            completed=self._done(),
            total=self.total,
            numbers=f"{self._ended}/{self.count} runs{self._left()}",
        )
        if not self.console.is_terminal and time.monotonic() - self._spoke >= EVERY:
            share = self._done() / max(self.total, 1.0)
            self._say(f"{self._ended} of {self.count} runs, {share:.0%} of all {self.unit}{self._left()}")

    def _say(self, line: str) -> None:
        self._spoke = time.monotonic()
        self._bars.console.print(line, soft_wrap=True)

    def _done(self) -> float:
        return self._ended_size + sum(done for _, _, done in self._under_way.values())

    def _left(self) -> str:
        done = self._done()
        if not 0.0 < done < self.total:
            return ""
        return f", about {_shown((time.monotonic() - self._began) * (self.total - done) / done)} left"


def _shown(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
