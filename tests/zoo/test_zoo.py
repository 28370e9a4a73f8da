"""RL Zoo's scripts and the hub with this package's algorithms, in a temporary folder and without network."""

import builtins
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from envs import TASKS
from storm_rl import PAGEPG, STORMPlusPG
from storm_rl.zoo import ALGORITHMS, cli, hyperparameter_file, hyperparameters, register
from storm_rl.zoo.algorithms import Range, ZooAlgorithm
from storm_rl.zoo.settings import tuned_settings

# What the package's YAML files held before they were made from the stored settings: for each task the learning rate,
# batch size, mini-batch size and baseline.
N_TIMESTEPS = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 200_000,
    "MountainCar-v0": 200_000,
    "MountainCarContinuous-v0": 60_000,
    "Pendulum-v1": 150_000,
}
FORMER_SETTINGS: dict[str, list[tuple[float, int, int | None, str]]] = {
    "storm_plus_pg": [],
    "svrpg": [
        (0.03, 10, 5, "leave_one_out"),
        (0.01, 30, 10, "leave_one_out"),
        (0.03, 30, 10, "state_value"),
        (0.01, 100, 10, "state_value"),
        (0.01, 30, 10, "leave_one_out"),
    ],
    "gpomdp": [
        (0.03, 10, None, "leave_one_out"),
        (0.01, 5, None, "leave_one_out"),
        (0.01, 30, None, "state_value"),
        (0.03, 5, None, "state_value"),
        (0.003, 5, None, "state_value"),
    ],
    "srvrpg": [
        (0.01, 10, 5, "state_value"),
        (0.01, 30, 10, "leave_one_out"),
        (0.003, 10, 5, "leave_one_out"),
        (0.03, 100, 10, "state_value"),
        (0.003, 100, 10, "state_value"),
    ],
    "stormpg": [
        (0.03, 10, 5, "leave_one_out"),
        (0.003, 30, 10, "leave_one_out"),
        (0.01, 10, 5, "leave_one_out"),
        (0.03, 100, 10, "state_value"),
        (0.003, 100, 10, "leave_one_out"),
    ],
    "pagepg": [
        (0.01, 10, 5, "leave_one_out"),
        (0.01, 30, 10, "leave_one_out"),
        (0.003, 10, 5, "leave_one_out"),
        (0.01, 10, 5, "leave_one_out"),
        (0.003, 100, 10, "leave_one_out"),
    ],
    "defpg": [
        (0.01, 30, 10, "state_value"),
        (0.01, 30, 10, "leave_one_out"),
        (0.003, 30, 10, "leave_one_out"),
        (0.01, 10, 5, "state_value"),
        (0.003, 100, 10, "state_value"),
    ],
}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["storm-rl-zoo", *arguments])
    cli.main()


@pytest.mark.parametrize("algorithm", ["storm_plus_pg", "svrpg"])
def test_train_then_enjoy(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    same = ("--algo", algorithm, "--env", "CartPole-v1", "--seed", "1", "-f", "logs")
    run(monkeypatch, "train", *same, "-n", "600", "--eval-freq", "300", "--eval-episodes", "2", "--device", "cpu")
    assert str(hyperparameter_file(algorithm)) in capsys.readouterr().out
    folder = tmp_path / "logs" / algorithm / "CartPole-v1_1"
    assert {"CartPole-v1.zip", "best_model.zip", "evaluations.npz"} <= {path.name for path in folder.iterdir()}
    model = ALGORITHMS[algorithm].algorithm.load(folder / "CartPole-v1.zip")
    assert (model.seed, model.n_envs) == (1, {"storm_plus_pg": 8, "svrpg": 5}[algorithm])
    run(monkeypatch, "enjoy", *same, "-n", "600", "--no-render", "--device", "cpu")
    assert "Mean reward" in capsys.readouterr().out


def test_training_continues_from_a_saved_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    same = ("train", "--algo", "storm_plus_pg", "--env", "Pendulum-v1", "--seed", "1", "--eval-freq", "-1", "-n", "512")
    run(monkeypatch, *same)
    run(monkeypatch, *same, "-i", "logs/storm_plus_pg/Pendulum-v1_1/Pendulum-v1.zip")
    assert (tmp_path / "logs/storm_plus_pg/Pendulum-v1_2/Pendulum-v1.zip").exists()


@pytest.mark.parametrize("algorithm", ["storm_plus_pg", "defpg"])
def test_a_search_finishes_its_trials(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    search = ("-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots")
    run(monkeypatch, "train", "--algo", algorithm, "--env", "CartPole-v1", "-n", "512", "--seed", "1", *search)
    (report,) = (tmp_path / "logs" / algorithm).glob("report_*.csv")
    rows = report.read_text().splitlines()
    assert len(rows) == 3
    assert all("COMPLETE" in row for row in rows[1:])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_search_space_is_one_of_the_constructors(algorithm: str) -> None:
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    register()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER[algorithm](trial, 2, 1, {})
        assert HYPERPARAMS_CONVERTER[algorithm](trial.params) == sampled
        build: Any = ALGORITHMS[algorithm].algorithm
        build("MlpPolicy", "CartPole-v1", **sampled)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_files_hold_the_benchmarks_settings_and_nothing_else(algorithm: str) -> None:
    sections: dict[str, dict[str, Any]] = yaml.safe_load(hyperparameter_file(algorithm).read_text())
    assert sections == hyperparameters(algorithm)
    assert next(iter(sections)) == "default"
    assert set(sections) - {"default"} <= set(TASKS)
    for task_id, section in sections.items():
        tuned = tuned_settings(ALGORITHMS[algorithm].algorithm.__name__).get(task_id, {})
        n_envs = 8 if algorithm == "storm_plus_pg" else 5
        budget = TASKS[task_id].budget if task_id in TASKS else 1_000_000
        assert section == {"n_envs": n_envs, "n_timesteps": budget, "policy": "MlpPolicy", **tuned}


@pytest.mark.parametrize("algorithm", FORMER_SETTINGS)
def test_what_is_generated_is_what_the_files_held(algorithm: str) -> None:
    same = {"n_envs": 8 if algorithm == "storm_plus_pg" else 5, "policy": "MlpPolicy"}
    expected = {"default": {**same, "n_timesteps": 1_000_000}}
    expected |= {task_id: {**same, "n_timesteps": steps} for task_id, steps in N_TIMESTEPS.items()}
    for task_id, values in zip(N_TIMESTEPS, FORMER_SETTINGS[algorithm], strict=False):
        names = ("learning_rate", "batch_size", "mini_batch_size", "baseline")
        expected[task_id] |= {name: value for name, value in zip(names, values, strict=True) if value is not None}
    assert yaml.safe_load(hyperparameter_file(algorithm).read_text()) == expected


def test_a_task_with_settings_of_its_own_has_a_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = tmp_path / "tuned_settings.json"
    found.write_text('{"SVRPG": {"LunarLander-v3": {"learning_rate": 1e-5}}}')
    monkeypatch.setattr("storm_rl.zoo.settings.SETTINGS_FILE", found)
    section = yaml.safe_load(hyperparameter_file("svrpg").read_text())["LunarLander-v3"]
    assert section == {"n_envs": 5, "n_timesteps": 1_000_000, "policy": "MlpPolicy", "learning_rate": 1e-5}


def test_one_row_is_all_that_an_algorithm_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rl_zoo3 import hyperparams_opt, utils

    class Toy(PAGEPG):
        pass

    # `register` writes to RL Zoo's tables; undone at the end.
    for table in (utils.ALGOS, hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER):
        monkeypatch.setitem(table, "toy", None)
    monkeypatch.setitem(ALGORITHMS, "toy", ZooAlgorithm("toy", Toy, 2, {"probability": Range(0.2, 0.4)}))
    monkeypatch.chdir(tmp_path)
    same = ("--algo", "toy", "--env", "CartPole-v1", "-n", "300", "--seed", "1")
    run(monkeypatch, "train", *same, "-f", "logs", "--eval-freq", "-1")
    assert "('n_envs', 2)" in capsys.readouterr().out
    search = ("-optimize", "--n-trials", "1", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots")
    run(monkeypatch, "train", *same, "-f", "searches", *search)
    assert "probability: 0." in capsys.readouterr().out
    Toy.load(tmp_path / "logs/toy/CartPole-v1_1/CartPole-v1.zip")


def test_a_video_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moviepy")
    monkeypatch.chdir(tmp_path)
    same = ("--algo", "svrpg", "--env", "CartPole-v1", "-f", "logs")
    run(monkeypatch, "train", *same, "-n", "300", "--eval-freq", "-1")
    run(monkeypatch, "record_video", *same, "-n", "20", "-o", "videos", "--no-render")
    (video,) = (tmp_path / "videos").glob("*.mp4")
    assert video.stat().st_size > 0


def test_a_given_file_and_other_algorithms_are_left_alone() -> None:
    for arguments in (["--algo", "svrpg", "-conf", "mine.yml"], ["--algo=ppo"], ["--env", "CartPole-v1"]):
        assert cli.with_hyperparameter_file(arguments) == arguments
    assert cli.with_hyperparameter_file(["--algo=svrpg"])[:2] == ["--conf-file", str(hyperparameter_file("svrpg"))]
    with pytest.raises(ValueError, match="unknown algorithm 'ppo'"):
        hyperparameter_file("ppo")


@pytest.mark.filterwarnings("error:'rl_zoo3.plots", "error:FigureCanvasAgg")
def test_plot_draws_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("seaborn") is None:
        pytest.skip("RL Zoo's plots need seaborn")
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "train", "--algo", "gpomdp", "--env", "CartPole-v1", "-n", "300", "--eval-freq", "-1")
    run(monkeypatch, "plot", "-a", "gpomdp", "-e", "CartPole-v1", "-f", "logs", "-w", "2")
    from matplotlib import pyplot

    assert pyplot.gca().lines
    assert (tmp_path / "plot_1.png").read_bytes().startswith(b"\x89PNG")
    pyplot.close("all")


SAME = ["--algo", "storm_plus_pg", "--env", "CartPole-v1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", *SAME, "-params", "foo:1"], "unexpected keyword argument 'foo'"),
        (["train", *SAME, "--hyperparams", "gamma:7"], "gamma must be a number in [0, 1], got 7"),
        (["train", *SAME, "-params", "foo"], "values are Python's, as in -params gamma:0.9"),
        (["train", *SAME[:-1], "CartPoll-v1"], "CartPoll-v1 not found in gym registry, you maybe meant CartPole-v1?"),
        (["train", *SAME, "-conf", "none.yml"], "No such file or directory: 'none.yml'"),
        (["train", *SAME, "-i", "none.zip"], "must be a valid path to a .zip file"),
        (["train", *SAME, "--env-kwargs", "foo:1"], "unexpected keyword argument 'foo'"),
        (["train", *SAME, "-f", "file"], "Not a directory: 'file/storm_plus_pg"),
        (["enjoy", *SAME, "-f", "nowhere", "--no-render"], "nowhere/storm_plus_pg folder was not found"),
        (["enjoy", *SAME], "there is no display: take --no-render, or record_video"),
        (["record_video", *SAME, "-f", "nowhere"], "nowhere/storm_plus_pg folder was not found"),
        (["plot", "-a", "svrpg", "-e", "CartPole-v1", "-f", "nowhere"], "No such file or directory: 'nowhere/svrpg'"),
        (["plot_from_file", "-i", "none"], "No such file or directory: 'none.pkl'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_a_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith(f"storm-rl-zoo {arguments[0]}: ")


def test_an_error_in_the_middle_of_training_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ValueError("in the middle")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(STORMPlusPG, "train", fail)
    with pytest.raises(ValueError, match="in the middle"):
        run(monkeypatch, "train", *SAME, "-n", "600", "--eval-freq", "-1")


@pytest.mark.parametrize("command", ["all_plots", "plot_from_file"])
def test_a_script_that_needs_arguments_shows_its_help(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, command)
    assert ended.value.code == 0
    assert "Gather results" in capsys.readouterr().out


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_the_extra(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in ("rl_zoo3", "huggingface_hub", "huggingface_sb3"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_the_extra)
    with pytest.raises(SystemExit, match=r'pip install "storm-rl\[zoo\]"'):
        run(monkeypatch, "train", "--algo", "svrpg")


def test_importing_the_zoo_needs_no_extra() -> None:
    code = "import sys, storm_rl.zoo, storm_rl.zoo.cli; print(sorted({n.split('.')[0] for n in sys.modules}))"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"rl_zoo3", "optuna", "huggingface_hub", "huggingface_sb3"} & set(eval(modules))


def test_an_unknown_command_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="unknown command 'trian'"):
        run(monkeypatch, "trian")


def test_huggingface_sb3_packages_our_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_baselines3.common.env_util import make_vec_env

    # The package's function of the same name hides the module.
    hub = importlib.import_module("huggingface_sb3.push_to_hub")
    sent: list[str] = []

    class Offline:
        def __init__(self, token: str | None = None) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path: Path, **_: Any) -> None:
            sent.extend(path.name for path in folder_path.iterdir())

    monkeypatch.setattr(hub, "HfApi", Offline)
    # Draws with ffmpeg.
    monkeypatch.setattr(hub, "_generate_replay", lambda *_: None)
    model = STORMPlusPG("MlpPolicy", "CartPole-v1", n_steps=64, seed=3).learn(64)
    hub.package_to_hub(
        model,
        "storm_plus_pg-CartPole-v1",
        "STORMPlusPG",
        "CartPole-v1",
        make_vec_env("CartPole-v1"),
        "someone/cartpole",
        n_eval_episodes=1,
    )
    assert {"storm_plus_pg-CartPole-v1.zip", "config.json", "results.json", "README.md"} <= set(sent)
