from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from experiments.execution import run_all
from experiments.runs import RunSpec
from experiments.storage import failures, finished, load_runs, load_studies, pack

Store = Callable[..., Path]


def test_packed_runs_are_the_raw_ones_to_the_last_digit(store: Store, tmp_path: Path) -> None:
    for seed in range(3):
        raw = store("ppo_zoo", "Pendulum-v1", seed, 20_000).parent
    path = pack(raw.parent, tmp_path / "packed")
    assert load_runs(path.parent) == load_runs(raw.parent)
    assert path.stat().st_size < sum(file.stat().st_size for file in raw.iterdir())
    before = path.read_bytes()
    pack(raw.parent, path.parent)
    assert path.read_bytes() == before


def test_several_studies_are_read_as_one_unless_they_share_a_run(store: Store, tmp_path: Path) -> None:
    first = store("ppo_zoo", "Pendulum-v1", 0, 20_000).parents[1]
    second = pack(first, tmp_path / "packed").parent
    with pytest.raises(ValueError, match="packed has runs that another folder has too: ppo_zoo__Pendulum-v1__seed0"):
        load_studies([first, second])
    store("ppo_zoo", "Pendulum-v1", 0, 20_000).unlink()
    store("ppo_zoo", "CartPole-v1", 0, 20_000)
    specs = [RunSpec("ppo_zoo", "CartPole-v1", 0), RunSpec("ppo_zoo", "Pendulum-v1", 0)]
    assert list(load_studies([second, first])) == specs


def test_packed_runs_are_not_run_again(store: Store, tmp_path: Path) -> None:
    study = store("ppo_zoo", "CartPole-v1", 0, 20_000).parents[1]
    packed = pack(study, tmp_path / "packed").parent
    assert run_all([RunSpec("ppo_zoo", "CartPole-v1", 0)], packed, 1, Console(quiet=True)) == []


def test_broken_file_is_named_never_averaged_in_and_run_again_on_request_only(store: Store) -> None:
    good, bad = store("ppo_zoo", "CartPole-v1", 0, 20_000), store("ppo_zoo", "CartPole-v1", 1, 20_000)
    bad.write_bytes(bad.read_bytes()[:100])
    study, specs = good.parents[1], [RunSpec("ppo_zoo", "CartPole-v1", seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"seed1.json.gz is not a whole run file.*--rerun-broken"):
        load_runs(study)
    with pytest.raises(ValueError, match=r"seed1.json.gz is not a whole run file"):
        finished(study, specs, None, rerun_broken=False)
    assert bad.exists()
    assert list(finished(study, specs, None, rerun_broken=True)) == specs[:1]
    assert not bad.exists()


def test_runs_of_another_budget_are_not_mixed_in(store: Store) -> None:
    study = store("ppo_zoo", "CartPole-v1", 0, 20_000).parents[1]
    with pytest.raises(ValueError, match=r"was run for 100,000 env steps, not 5,000: use another folder"):
        finished(study, [RunSpec("ppo_zoo", "CartPole-v1", 0)], 5_000, rerun_broken=False)


def test_damaged_packed_file_is_named(store: Store, tmp_path: Path) -> None:
    path = pack(store("ppo_zoo", "CartPole-v1", 0, 20_000).parents[1], tmp_path / "packed")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"runs.json.xz is damaged"):
        load_runs(path.parent)


def test_folder_without_runs_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no finished runs: neither raw/\*.json.gz nor runs.json.xz"):
        load_runs(tmp_path)


def test_batched_run_is_another_run_than_gymnasiums(store: Store) -> None:
    gymnasiums = store("storm_plus_pg", "CartPole-v1", 0, 4_000)
    batched = store("storm_plus_pg", "CartPole-v1", 0, 4_000, batched=True)
    assert gymnasiums != batched
    assert len(load_runs(batched.parents[1])) == 2


def test_failure_is_listed_by_its_last_line(store: Store) -> None:
    raw = store("ppo_zoo", "CartPole-v1", 0, 20_000).parent
    (raw / "x.failed.json").write_text('{"traceback": "Traceback:\\n  here\\nValueError: too much\\n"}')
    (raw / "y.failed.json").write_text("{")
    assert failures(raw.parent) == {"x": "ValueError: too much", "y": "unreadable"}
