"""Every optimiser and option against the papers' algorithms in plain Python floats, written apart."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from storm_rl.optim import STORM, MetaSTORM, STORMPlus
from storm_rl.optim.recursive_optimizer import RecursiveOptimizer

Vector = list[float]
Gradient = Callable[[Vector], Vector]


@dataclass
class Options:
    algorithm: str = "storm+"
    per_coordinate: bool = False
    floor: float = 0.0
    lr: float = 1.0
    decay: float = 0.0
    maximize: bool = False
    k: float = 0.1
    w: float = 0.1
    c: float = 100.0
    p: float = 0.5
    a_0: float = 1.0
    b_0: float = 1.0


@dataclass
class Reference:
    """Sums are kept for each coordinate; in the global form they are the same in all."""

    x: Vector
    options: Options
    # Running sums: entry t has seen t samples.
    gradients_squared: list[Vector] = field(default_factory=list)
    noise: list[Vector] = field(default_factory=list)
    directions: list[Vector] = field(default_factory=list)
    x_old: Vector = field(default_factory=list)
    d_old: Vector = field(default_factory=list)
    g_old: Vector = field(default_factory=list)

    def pool(self, squares: Vector) -> Vector:
        return squares if self.options.per_coordinate else [sum(squares)] * len(squares)

    def __post_init__(self) -> None:
        for sums in (self.gradients_squared, self.noise, self.directions):
            sums.append([0.0] * len(self.x))

    @staticmethod
    def add(sums: list[Vector], terms: Vector) -> None:
        sums.append([total + term for total, term in zip(sums[-1], terms, strict=True)])

    def a(self, known: int) -> Vector:
        """``a_{known+1}``, which has seen ``known`` samples."""
        o = self.options
        if o.algorithm == "storm+":
            raw = [(1 + s) ** (-2 / 3) for s in self.gradients_squared[known]]
        elif o.algorithm == "storm":
            raw = [min(1.0, o.c * (o.k / (o.w + s) ** (1 / 3)) ** 2) for s in self.gradients_squared[known]]
        elif o.algorithm == "meta-sg":
            raw = [(1 + s / o.a_0) ** (-2 / 3) for s in self.gradients_squared[known]]
        elif o.algorithm == "meta-na":
            raw = [(1 + known / o.a_0) ** (-2 / 3)] * len(self.x)
        else:
            raw = [(1 + s / o.a_0) ** (-2 / 3) for s in self.noise[known]]
        return raw

    def step(self, gradient: Gradient) -> None:
        o, t = self.options, len(self.gradients_squared)
        g = gradient(self.x)
        if t == 1:
            d = list(g)
        else:
            g_then = gradient(self.x_old)
            self.add(self.noise, self.pool([(u - v) ** 2 for u, v in zip(self.g_old, g_then, strict=True)]))
            d = [
                gi + (1 - max(o.floor, ai)) * (di - hi)
                for gi, ai, di, hi in zip(g, self.a(t - 1), self.d_old, g_then, strict=True)
            ]
        self.add(self.gradients_squared, self.pool([value**2 for value in g]))
        squares = self.pool([value**2 for value in d])

        if o.algorithm == "storm+":
            self.add(self.directions, [s / a for s, a in zip(squares, self.a(t), strict=True)])
            eta = [s ** (-1 / 3) if s else 0.0 for s in self.directions[t]]
        elif o.algorithm == "storm":
            eta = [o.k / (o.w + s) ** (1 / 3) for s in self.gradients_squared[t]]
        else:
            self.add(self.directions, squares)
            momentum = self.a(t - 1) if o.algorithm == "meta" else self.a(t)
            eta = [a ** ((1 - o.p) / 2) / (o.b_0 + s) ** o.p for a, s in zip(momentum, self.directions[t], strict=True)]
        self.x_old, self.d_old, self.g_old = self.x, d, g
        sign = 1 if o.maximize else -1
        self.x = [(1 - o.lr * o.decay) * xi + sign * o.lr * e * di for xi, e, di in zip(self.x, eta, d, strict=True)]


CURVATURE = [0.2, 1.0, 3.0, 0.5, 2.0]

ALGORITHMS: list[tuple[type[RecursiveOptimizer], dict[str, Any], dict[str, Any]]] = [
    (STORMPlus, {}, {"algorithm": "storm+"}),
    (STORM, {}, {"algorithm": "storm"}),
    (MetaSTORM, {}, {"algorithm": "meta"}),
    (MetaSTORM, {"variant": "gradient"}, {"algorithm": "meta-sg"}),
    (MetaSTORM, {"variant": "none"}, {"algorithm": "meta-na"}),
    (STORM, {"k": 0.3, "w": 2.0, "c": 7.0}, {"algorithm": "storm", "k": 0.3, "w": 2.0, "c": 7.0}),
    (
        MetaSTORM,
        {"p": 1 / 3, "a_0": 4.0, "b_0": 0.3},
        {"algorithm": "meta", "p": 1 / 3, "a_0": 4.0, "b_0": 0.3},
    ),
]
OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"per_coordinate": True}, {"per_coordinate": True}),
    ({"momentum_floor": 0.3}, {"floor": 0.3}),
    ({"momentum_floor": 0.2, "per_coordinate": True}, {"floor": 0.2, "per_coordinate": True}),
    ({"lr": 0.4, "weight_decay": 0.01}, {"lr": 0.4, "decay": 0.01}),
    ({"maximize": True}, {"maximize": True}),
]
CASES = [(*algorithm, {}, {}) for algorithm in ALGORITHMS]
CASES += [(*algorithm, *options) for algorithm in ALGORITHMS[:5] for options in OPTIONS]


def sample(rng: random.Random) -> tuple[Vector, Vector]:
    return [rng.gauss(0, 1) for _ in CURVATURE], [rng.gauss(0, 1) for _ in CURVATURE]


def gradient(x: Vector, noise: tuple[Vector, Vector], sign: float) -> Vector:
    """Of ``sum_j h_j (x_j - u_j)^2 / 2 + 0.3 cos(2 x_j + v_j)``, times ``sign``."""
    return [
        sign * (h * (xi - u) - 0.6 * math.sin(2 * xi + v)) for xi, h, u, v in zip(x, CURVATURE, *noise, strict=True)
    ]


def loss(x: Tensor, noise: tuple[Vector, Vector], sign: float) -> Tensor:
    h, u, v = (torch.tensor(values, dtype=torch.float64) for values in (CURVATURE, *noise))
    return sign * (h * (x - u) ** 2 / 2 + 0.3 * torch.cos(2 * x + v)).sum()


@pytest.mark.parametrize(
    ("cls", "settings", "reference_settings", "options", "reference_options"),
    CASES,
    ids=["-".join([c[2]["algorithm"], *map(str, c[1].values()), *c[3]]) for c in CASES],
)
def test_500_steps_of_a_noisy_problem_agree_to_1e_10(
    cls: type[RecursiveOptimizer],
    settings: dict[str, Any],
    reference_settings: dict[str, Any],
    options: dict[str, Any],
    reference_options: dict[str, Any],
) -> None:
    start = [2.0, -1.0, 0.5, 1.5, -2.5]
    reference = Reference(start, Options(**reference_settings, **reference_options))
    sign = -1.0 if options.get("maximize") else 1.0
    # Two groups, three tensors: norms must run over all of them together.
    parts = [nn.Parameter(torch.tensor(values, dtype=torch.float64)) for values in (start[:2], start[2:3], start[3:])]
    optimizer = cls([{"params": parts[:1]}, {"params": parts[1:]}], replay=False, **settings, **options)
    rng = random.Random(3)
    worst = 0.0
    for _ in range(500):
        noise = sample(rng)

        def closure(noise: tuple[Vector, Vector] = noise) -> Tensor:
            value = loss(torch.cat(parts), noise, sign)
            value.backward()
            return value

        optimizer.step(closure)
        reference.step(lambda x, noise=noise: gradient(x, noise, sign))
        mine = torch.cat(parts).tolist()
        worst = max(worst, *(abs(a - b) for a, b in zip(mine, reference.x, strict=True)))
    assert worst < 1e-10
    assert max(abs(a - b) for a, b in zip(reference.x, start, strict=True)) > 0.01


def test_storm_plus_on_a_small_network_agrees_with_hand_written_backpropagation() -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(4, 3)) * 0.5, rng.normal(size=4) * 0.1, rng.normal(size=(1, 4)) * 0.5]
    shapes = [w.shape for w in weights]
    sizes = [w.size for w in weights]

    def unpack(flat: Vector) -> list[Any]:
        pieces = np.split(np.array(flat), np.cumsum(sizes)[:-1])
        return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def numpy_gradient(flat: Vector, inputs: Any, targets: Any) -> Vector:
        first, bias, second = unpack(flat)
        hidden = np.tanh(inputs @ first.T + bias)
        error = 2 * ((hidden @ second.T)[:, 0] - targets) / len(targets)
        back = error[:, None] * second * (1 - hidden**2)
        parts = [back.T @ inputs, back.sum(0), error[None] @ hidden]
        return [float(value) for part in parts for value in part.ravel()]

    parameters = [nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = STORMPlus(parameters)
    reference = Reference([float(v) for w in weights for v in w.ravel()], Options())
    for _ in range(250):
        inputs = rng.normal(size=(5, 3))
        targets = np.sin(inputs.sum(1)) + 0.1 * rng.normal(size=5)
        x, y = torch.tensor(inputs), torch.tensor(targets)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            output = torch.tanh(x @ parameters[0].T + parameters[1]) @ parameters[2].T
            value = (output[:, 0] - y).square().mean()
            value.backward()
            return value

        optimizer.step(closure)
        reference.step(lambda flat, i=inputs, t=targets: numpy_gradient(flat, i, t))
    mine = torch.cat([p.detach().flatten() for p in parameters]).numpy()
    assert np.abs(mine - np.array(reference.x)).max() < 1e-10


def test_momentum_and_step_size_are_those_of_the_paper_after_one_step() -> None:
    x = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = STORMPlus([x])

    def closure() -> Tensor:
        value = (x * torch.tensor([3.0, 4.0])).sum()
        value.backward()
        return value

    assert optimizer.momentum == 1.0
    optimizer.step(closure)
    a_2 = 26 ** (-2 / 3)
    assert optimizer.momentum == pytest.approx(a_2, abs=1e-15)
    assert optimizer.step_size == pytest.approx((25 / a_2) ** (-1 / 3), abs=1e-15)
