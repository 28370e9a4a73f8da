from pathlib import Path

import pandas as pd
import pytest

from experiments.rows import Rows


def test_rows_are_found_again_with_every_digit_and_empty_cells(tmp_path: Path) -> None:
    rows = [{"name": "a", "rate": 0.1, "value": 1 / 3}, {"name": "a", "rate": None, "value": 1e-300}]
    Rows(tmp_path / "rows.csv", ["name", "rate"]).add(rows)
    again = Rows(tmp_path / "rows.csv", ["name", "rate"])
    assert again.get("a", 0.1) == rows[0]
    empty = again.get("a", None)
    assert empty is not None
    assert empty["value"] == 1e-300
    assert again.get("b", 0.1) is None


def test_row_with_a_known_key_takes_its_place(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.csv", ["seed"])
    rows.add([{"seed": 0, "value": 1}, {"seed": 1, "value": 2}])
    rows.add([{"seed": 0, "value": 3}])
    assert pd.read_csv(tmp_path / "rows.csv")["value"].tolist() == [3, 2]


def test_columns_that_a_file_lacks_have_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("seed,value\n0,1.5\n")
    rows = Rows(tmp_path / "rows.csv", ["seed", "threads"], {"threads": "1"})
    assert rows.get(0, "1") == {"seed": 0, "value": 1.5, "threads": "1"}
    rows.add([{"seed": 0, "threads": "default", "value": 2.5}])
    assert len(Rows(tmp_path / "rows.csv", ["seed", "threads"]).table()) == 2


def test_text_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    rows = [{"seed": 0, "git": "12e3456", "threads": "1"}, {"seed": 1, "git": "0123456", "threads": "1"}]
    Rows(tmp_path / "rows.csv", ["seed"]).add(rows)
    again = Rows(tmp_path / "rows.csv", ["seed"], text=["git", "threads"])
    assert again.table().to_dict("records") == rows


def test_interrupted_adding_leaves_the_rows_that_were_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(tmp_path / "rows.csv", ["seed"])
    rows.add([{"seed": 0, "value": 1}])
    before = (tmp_path / "rows.csv").read_bytes()

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        rows.add([{"seed": 1, "value": 2}])
    assert (tmp_path / "rows.csv").read_bytes() == before
