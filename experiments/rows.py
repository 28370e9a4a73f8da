"""The rows of a study in a CSV file: what is there is not measured again."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.files import write_atomically

Row = dict[str, Any]


class Rows:
    """Rows in a CSV file, each known by its key; the file is whole after every `add`, so that a study can go on.

    Args:
        path: The file; read if it is there.
        key: The columns that tell rows apart.
        defaults: Values of columns that older files lack.
        text: Columns that are text whatever they look like: a git revision 12e3456 is no number.
    """

    def __init__(
        self, path: Path, key: Sequence[str], defaults: Mapping[str, Any] | None = None, text: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.key = tuple(key)
        stored = pd.read_csv(path, dtype=dict.fromkeys(text, str)) if path.exists() else pd.DataFrame()
        stored = stored.assign(**{name: value for name, value in (defaults or {}).items() if name not in stored})
        self._rows: dict[tuple[str, ...], Row] = {}
        for record in stored.to_dict("records"):
            row = {str(name): value for name, value in record.items()}
            self._rows[self._identify(row)] = row

    def get(self, *key: Any) -> Row | None:
        """The row whose key columns have these values; None if it is missing."""
        return self._rows.get(tuple(map(_text, key)))

    def add(self, rows: Iterable[Row]) -> None:
        """Store rows, all or none of them; one with the key of a stored row takes its place."""
        added = {self._identify(row): row for row in rows}
        if not added:
            return
        self._rows.update(added)
        write_atomically(self.path, self.table().to_csv(index=False).encode())

    def table(self) -> pd.DataFrame:
        """All rows, in the order in which they came."""
        return pd.DataFrame(list(self._rows.values()))

    def _identify(self, row: Row) -> tuple[str, ...]:
        return tuple(_text(row[name]) for name in self.key)


def _text(value: Any) -> str:
    """As in the file, where None and NaN are empty cells."""
    return "" if pd.isna(value) else str(value)
