"""What random arguments and spaces do to the algorithms and optimisers: work, a clear error, or a riddle.

A sample draws an algorithm of `storm_rl.zoo.ALGORITHMS` or an optimiser of `storm_rl.optim`, replaces up to three of
its arguments by values that are valid, at an edge or wrong, draws spaces for the environments, and builds, trains for
two steps, predicts and at times saves and loads. Its outcome is one of

- ``worked``: no exception;
- ``clear``: a ``ValueError`` or ``TypeError`` that this package or SB3 raises in so many words, an assertion of SB3's
  that names an argument, or Python's own of an argument that does not exist;
- ``deep``: any other exception, which says what went wrong inside torch, numpy or SB3 and not what would be right;
- ``slow``: more than `SECONDS` of processor time.

A sample depends on the seed and its number only, so that any of them can be repeated. Rows are in ``samples.csv``,
counts in ``counts.csv``, the deep ones in ``README.md``. ``python -m experiments fuzz --help``.
"""

import contextlib
import io
import linecache
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gymnasium
import numpy as np
import pandas as pd
import stable_baselines3
import torch
import typer
from gymnasium import spaces
from rich.console import Console
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

import storm_rl
from experiments.files import write_atomically
from experiments.progress import Clock
from experiments.report.page import markdown_table
from experiments.rows import Row, Rows
from storm_rl.common.resumable_algorithm import constructor_parameters
from storm_rl.optim import STORM, MetaSTORM, STORMPlus
from storm_rl.zoo import ALGORITHMS

KEY = ("seed", "sample")
TEXT = ("subject", "spaces", "arguments", "outcome", "error", "message", "where")
OUTCOMES = ("worked", "clear", "deep", "slow")
SECONDS = 10
# Samples between two writes of the file, which holds all of them.
CHUNK = 50

NAN, INF = float("nan"), float("inf")
WRONG: list[Any] = [None, "2", [], {}, object, NAN, INF, -INF, np.array([0.5, 0.5]), 1j]
COUNTS = [0, 1, 2, 3, -1, True, 2.0, 2.5, np.int64(2), np.uint8(1), np.float32(2.0), np.array(2), 2**70, *WRONG]
NUMBERS = [0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 1e-300, 1e300, 10**400, True, np.float32(0.5), np.array(0.5), *WRONG]
SWITCHES = [True, False, np.bool_(True), 1, *WRONG[:3]]
CHOICES = ["leave_one_out", "state_value", "per_decision", "per_step", "gpomdp", "reinforce", "", 3, *WRONG[:3]]
OWN_VALUES: dict[str, list[Any]] = {
    "policy": ["MlpPolicy", "CnnPolicy", "MultiInputPolicy", "mlp", nn.Linear, *WRONG[:4]],
    "policy_kwargs": [
        *({}, {"net_arch": []}, {"net_arch": [4]}, {"net_arch": {"pi": [2], "vf": []}}, {"net_arch": [0]}),
        *({"activation_fn": nn.ReLU}, {"activation_fn": "relu"}, {"log_std_init": NAN}, {"nonsense": 1}, [], "x", 3),
    ],
    "seed": [0, 2**32 - 1, 2**32, *COUNTS],
    "device": ["cpu", "auto", torch.device("cpu"), "gpu", "cuda:99", *WRONG[:4]],
    "verbose": [0, np.int64(0), False, *WRONG[:4]],
    "use_sde": SWITCHES,
    "self_normalise": SWITCHES,
    "rollout_buffer_class": [RolloutBuffer, dict, *WRONG[:4]],
    "rollout_buffer_kwargs": [{}, {"nonsense": 1}, *WRONG[:4]],
    "estimator": CHOICES,
    "baseline": CHOICES,
    "weights": CHOICES,
    "variant": ["difference", "gradient", "none", *CHOICES],
    **dict.fromkeys(("per_coordinate", "maximize", "replay"), SWITCHES),
}
NOT_VARIED = ("env", "tensorboard_log", "_init_setup_model")
# Small enough for a sample to be quick; only what the constructor has.
SMALL = {"n_steps": 2, "critic_steps": 1, "batch_size": 2, "mini_batch_size": 1, "critic_epochs": 1}
OPTIMIZERS = {"STORMPlus": STORMPlus, "STORM": STORM, "MetaSTORM": MetaSTORM}
OPTIONS: dict[str, list[Any]] = {
    **dict.fromkeys(("lr", "momentum_floor", "weight_decay"), NUMBERS),
    **{name: OWN_VALUES[name] for name in ("per_coordinate", "maximize", "replay")},
}
OWN_OPTIONS = {
    "STORMPlus": {},
    "STORM": dict.fromkeys(("k", "w", "c"), NUMBERS),
    "MetaSTORM": {"variant": OWN_VALUES["variant"], **dict.fromkeys(("p", "a_0", "b_0"), NUMBERS)},
}


class TooSlowError(BaseException):
    """A sample took more than `SECONDS`. No ``Exception``, so that nothing on the way takes it for its own."""


class Attempt(NamedTuple):
    """One sample.

    Attributes:
        subject: The algorithm or optimiser.
        spaces: Of observations and actions; empty for an optimiser.
        arguments: Those that were replaced.
        carry_out: Builds, trains, predicts.
    """

    subject: str
    spaces: str
    arguments: dict[str, Any]
    carry_out: Callable[[], None]


def fuzz(
    samples: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of all samples.")] = 0,
    output: Annotated[Path, typer.Option(help="Rows, counts and deep cases; samples there are not repeated.")] = Path(
        "runs/fuzz"
    ),
) -> None:
    """Try random arguments and spaces on every algorithm and optimiser, and list the errors that say too little."""
    torch.set_num_threads(1)
    rows = Rows(output / "samples.csv", KEY, text=TEXT)
    missing = [sample for sample in range(samples) if rows.get(seed, sample) is None]
    new: list[Row] = []
    try:
        with Clock(Console(), len(missing), len(missing), "samples", a_line_each=False) as clock:
            for sample in missing:
                new.append(measure(seed, sample))
                if len(new) == CHUNK:
                    rows.add(new)
                    new = []
                clock.end(f"sample {sample}", 1)
    finally:
        rows.add(new)
    table = rows.table()
    counted = counts(table)
    write_atomically(output / "counts.csv", counted.to_csv(index=False).encode())
    write_atomically(output / "README.md", page(table).encode())
    typer.echo(counted.to_string(index=False))


def measure(seed: int, sample: int) -> Row:
    """Carry out a sample; its row."""
    attempt = draw(np.random.default_rng([seed, sample]))
    row: Row = {"seed": seed, "sample": sample, "subject": attempt.subject, "spaces": attempt.spaces}
    row |= {"arguments": ", ".join(f"{name}={value!r}" for name, value in attempt.arguments.items())}
    outcome, error, message, where = "worked", "", "", ""
    try:
        with time_limit(), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(io.StringIO()):
                attempt.carry_out()
    except TooSlowError:
        outcome = "slow"
    except Exception as raised:
        outcome = "clear" if is_clear(raised, list(attempt.arguments)) else "deep"
        error, message = type(raised).__name__, " ".join(str(raised).split())[:300]
        frame = traceback.extract_tb(raised.__traceback__)[-1]
        where = f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"
    return {**row, "outcome": outcome, "error": error, "message": message, "where": where}


def is_clear(error: Exception, arguments: Sequence[str]) -> bool:
    """Whether ``error`` was written for the caller; an assertion has to name one of ``arguments``."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    source = Path(frame.filename)
    by_sb3 = source.is_relative_to(Path(stable_baselines3.__file__).parent)
    if isinstance(error, AssertionError):
        return by_sb3 and any(name in str(error) for name in arguments)
    if not isinstance(error, (ValueError, TypeError)):
        return False
    # Not what an operation ran into.
    raised = linecache.getline(frame.filename, frame.lineno or 0).lstrip().startswith("raise ")
    by_us = source.is_relative_to(Path(storm_rl.__file__).parent)
    return (raised and (by_us or by_sb3)) or "unexpected keyword argument 'nonsense'" in str(error)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raise `TooSlowError` in the block after `SECONDS` of processor time."""

    def stop(signum: int, frame: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# DRAWING


def pick(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    """One of ``values``; `numpy.random.Generator.choice` would make an array of them."""
    return values[int(rng.integers(len(values)))]


def replaced(rng: np.random.Generator, values: dict[str, list[Any]]) -> dict[str, Any]:
    """New values for up to three of the arguments."""
    names = rng.permutation(list(values))[: pick(rng, [0, 0, 1, 1, 2, 3])]
    return {str(name): pick(rng, values[str(name)]) for name in names}


def draw(rng: np.random.Generator) -> Attempt:
    """A random sample: an optimiser in one of five cases, else an algorithm."""
    if rng.random() < 0.2:
        return draw_optimizer(rng)
    return draw_algorithm(rng)


def draw_optimizer(rng: np.random.Generator) -> Attempt:
    """Three steps on a linear or quadratic function of any size."""
    name = pick(rng, list(OPTIMIZERS))
    arguments = replaced(rng, {**OPTIONS, **OWN_OPTIONS[name]})
    dtype = pick(rng, [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    shape = pick(rng, [(), (3,), (0,), (2, 2)])
    scale, power = pick(rng, [1.0, 0.0, 1e-30, 1e30, 1e100, 1e-170, NAN]), pick(rng, [1, 2])

    def carry_out() -> None:
        parameters = [nn.Parameter(torch.ones(each, dtype=dtype)) for each in (shape, (2,))]
        optimizer = OPTIMIZERS[name](parameters, **arguments)

        def closure() -> Tensor:
            loss = torch.stack([scale * (p**power).sum() for p in parameters]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for _ in range(3):
            optimizer.step(closure)
        OPTIMIZERS[name](parameters, **arguments).load_state_dict(optimizer.state_dict())

    given = {**arguments, "dtype": dtype, "shape": shape, "scale": scale, "power": power}
    return Attempt(name, "", given, carry_out)


def draw_algorithm(rng: np.random.Generator) -> Attempt:
    """Two steps of one to three environments with random spaces."""
    kind = ALGORITHMS[pick(rng, list(ALGORITHMS))].algorithm
    observations, actions = draw_space(rng, action=False), draw_space(rng, action=True)
    known = {name: p for name, p in constructor_parameters(kind).items() if name not in NOT_VARIED}
    values = {name: OWN_VALUES.get(name, COUNTS if type(p.default) is int else NUMBERS) for name, p in known.items()}
    arguments = replaced(rng, values)
    n_envs, saves = int(rng.integers(1, 4)), rng.random() < 0.1
    if isinstance(observations, (spaces.Text, spaces.Tuple)):
        n_envs = 1  # SB3's vectorised environments have no place for them.
    total = pick(rng, [2 * n_envs] * 8 + [0, -1, 2.5, np.int64(2), None, "2", NAN])
    policy = "MultiInputPolicy" if isinstance(observations, spaces.Dict) else "MlpPolicy"
    small = {name: value for name, value in SMALL.items() if name in known}
    given = {"policy": policy, "seed": 0, "device": "cpu", **small, **arguments}

    def carry_out() -> None:
        env: Any = RandomEnv(observations, actions)
        if n_envs > 1:
            env = DummyVecEnv([lambda: RandomEnv(observations, actions) for _ in range(n_envs)])
        model: Any = kind(env=env, **given)
        model.learn(total)
        model.predict(model.env.reset())
        if saves:
            file = io.BytesIO()
            model.save(file)
            file.seek(0)
            kind.load(file, env=env).predict(model.env.reset())

    return Attempt(kind.__name__, f"{observations} -> {actions}", {**arguments, "total_timesteps": total}, carry_out)


def draw_space(rng: np.random.Generator, action: bool, nested: bool = False) -> spaces.Space[Any]:
    """A space of any kind; half of them are plain, and more of those of actions, of which fewer are supported."""
    if rng.random() < (0.75 if action else 0.5):
        return pick(rng, [spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3)])  # type: ignore[no-any-return]
    kinds: list[Callable[[], spaces.Space[Any]]] = [
        lambda: draw_box(rng),
        lambda: draw_box(rng),
        lambda: spaces.Discrete(pick(rng, [1, 2, 100]), start=pick(rng, [0, 0, 1, -3])),
        lambda: spaces.MultiDiscrete(pick(rng, [[2], [2, 3], [1, 1], [[2, 3], [3, 2]]])),
        lambda: spaces.MultiBinary(pick(rng, [1, 3, [2, 2]])),
    ]
    if not nested:
        kinds += [
            lambda: spaces.Text(4),
            lambda: spaces.Tuple((spaces.Discrete(2), spaces.Box(0.0, 1.0))),
            lambda: spaces.Dict({key: draw_space(rng, action, nested=True) for key in pick(rng, KEYS)}),
            lambda: spaces.Box(0, 255, pick(rng, [(36, 36, 1), (3, 36, 36), (2, 2, 3)]), np.uint8),
        ]
    return pick(rng, kinds)()  # type: ignore[no-any-return]


KEYS = [["a"], ["a", "b"], ["a.b", "c d"], ["", "é"], ["observation", "goal"], []]


def draw_box(rng: np.random.Generator) -> spaces.Box:
    """Of any dtype, shape and bounds that gymnasium takes; infinite and huge ones of floats only."""
    dtype: Any = pick(rng, [np.float32, np.float32, np.float64, np.float16, np.int8, np.int64, np.uint8])
    shape = pick(rng, [(), (1,), (3,), (2, 2), (0,)])
    bounds: list[tuple[float, float]] = (
        [(-1, 1), (0, 1), (0, 0), (1, 100), (-3, 2)] if dtype != np.uint8 else [(0, 1), (0, 255), (7, 7)]
    )
    if np.issubdtype(dtype, np.floating):
        largest = float(np.finfo(dtype).max)
        bounds += [(-INF, INF), (0, INF), (-INF, 3), (-largest, largest), (0, largest), (-1e-7, 1e-7)]
    low, high = pick(rng, bounds)
    return spaces.Box(low, high, shape, dtype)


class RandomEnv(gymnasium.Env[Any, Any]):
    """Random observations, a reward of 1 and episodes of three steps, whatever the action."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space = observations
        self.action_space = actions
        self._n_steps = 0

    def _observe(self) -> Any:
        try:
            return self.observation_space.sample()
        except OverflowError:  # Between the largest floats of both signs.
            return np.zeros(self.observation_space.shape or (), self.observation_space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A first observation."""
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self._n_steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The next observation."""
        self._n_steps += 1
        return self._observe(), 1.0, self._n_steps == 3, False, {}


# REPORT


def counts(rows: pd.DataFrame) -> pd.DataFrame:
    """Samples by subject and outcome."""
    table = pd.crosstab(rows["subject"], rows["outcome"]).reindex(columns=list(OUTCOMES), fill_value=0)
    return table.reset_index()


def page(rows: pd.DataFrame) -> str:
    """Counts, and each distinct deep or slow case with one of its samples."""
    cases = rows[rows["outcome"].isin(["deep", "slow"])].fillna("")
    lines = ["# Random arguments and spaces", "", f"{len(rows):,} samples by `python -m experiments fuzz`.", ""]
    lines += [markdown_table(counts(rows)), "", "## Errors that say too little", ""]
    for (outcome, error, where), group in cases.groupby(["outcome", "error", "where"], sort=False):
        example = group.iloc[0]
        lines += [
            f"- {outcome}: `{error}` at `{where}`, {len(group)} times. {example['message']}",
            f"  Seed {example['seed']}, sample {example['sample']}: `{example['subject']}`, "
            f"`{example['arguments']}`, `{example['spaces']}`",
        ]
    return "\n".join(lines) + "\n"
