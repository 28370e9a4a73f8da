"""Stochastic non-convex problems whose true gradient is known, and two networks on a small real data set."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Sample = tuple[Tensor, ...]

DIMENSION = 20
DATA = 1000
BATCH = 4


@dataclass(frozen=True)
class Problem:
    """``f(x) = E f(x; sample)``: values and gradients on a sample, and the true gradient."""

    start: Tensor
    draw: Callable[[torch.Generator], Sample]
    value_and_gradient: Callable[[Tensor, Sample], tuple[Tensor, Tensor]]
    true_gradient: Callable[[Tensor], Tensor]


def _regression(
    inputs: Tensor,
    targets: Tensor,
    start: Tensor,
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    penalty: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Problem:
    """Minibatches, drawn with replacement, of ``loss(inputs @ x, targets)`` with its derivative."""

    def value_and_gradient(x: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
        (rows,) = sample
        chosen = inputs[rows]
        value, slope = loss(chosen @ x, targets[rows])
        extra, extra_gradient = penalty(x)
        return value.mean() + extra, chosen.T @ slope / len(rows) + extra_gradient

    everything = (torch.arange(DATA),)
    return Problem(
        start,
        lambda generator: (torch.randint(DATA, (BATCH,), generator=generator),),
        value_and_gradient,
        lambda x: value_and_gradient(x, everything)[1],
    )


def robust_regression() -> Problem:
    """Cauchy loss ``log(1 + r^2)`` with a fifth of outliers, and the ridge ``0.01 ||x||^2``.

    The ridge keeps the gradient from vanishing far away, where a run that flees would look converged.
    """
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(DATA, DIMENSION, dtype=torch.float64, generator=generator)
    truth = torch.randn(DIMENSION, dtype=torch.float64, generator=generator)
    targets = inputs @ truth + 0.5 * torch.randn(DATA, dtype=torch.float64, generator=generator)
    targets[: DATA // 5] += 10 * torch.randn(DATA // 5, dtype=torch.float64, generator=generator)

    def loss(predictions: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        error = predictions - wanted
        return torch.log1p(error.square()), 2 * error / (1 + error.square())

    start = torch.zeros(DIMENSION, dtype=torch.float64)
    return _regression(inputs, targets, start, loss, lambda x: (0.01 * x.square().sum(), 0.02 * x))


def logistic_regression() -> Problem:
    """Logistic loss with a fifth of the labels flipped and the penalty ``0.1 sum x^2 / (1 + x^2)``."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(DATA, DIMENSION, dtype=torch.float64, generator=generator)
    truth = torch.randn(DIMENSION, dtype=torch.float64, generator=generator)
    labels = (inputs @ truth).sign()
    labels[: DATA // 5] *= -1

    def loss(predictions: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        margin = predictions * wanted
        return nn.functional.softplus(-margin), -wanted * torch.sigmoid(-margin)

    def penalty(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = 1 + x.square()
        return 0.1 * (x.square() / scale).sum(), 0.2 * x / scale.square()

    start = torch.full((DIMENSION,), 2.0, dtype=torch.float64)
    return _regression(inputs, labels, start, loss, penalty)


def random_phase() -> Problem:
    """``sum_j sin^2(x_j + 0.7 u_j) + 0.5 v_j x_j`` with normal ``u, v``: bounded mean, noise everywhere."""
    generator = torch.Generator().manual_seed(3)
    phase = 0.7
    damping = float(torch.tensor(-2 * phase**2, dtype=torch.float64).exp())

    def draw(generator: torch.Generator) -> Sample:
        noise = torch.randn(2, DIMENSION, dtype=torch.float64, generator=generator)
        return noise[0], noise[1]

    def value_and_gradient(x: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
        shifted = x + phase * sample[0]
        value = (shifted.sin().square() + 0.5 * sample[1] * x).sum()
        return value, (2 * shifted).sin() + 0.5 * sample[1]

    start = 3 * torch.rand(DIMENSION, dtype=torch.float64, generator=generator) - 1.5
    return Problem(start, draw, value_and_gradient, lambda x: damping * (2 * x).sin())


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "robust regression": robust_regression,
    "logistic regression": logistic_regression,
    "random phase": random_phase,
}


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 8 x 8 digits of scikit-learn: 1,437 for training and 360 for the test, split once for all seeds."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16 - 0.5
    labels = torch.tensor(data.target)[order]
    return images[360:], labels[360:], images[:360], labels[:360]


def network(kind: str) -> nn.Sequential:
    """An MLP of 9 thousand or a CNN of 25 thousand parameters, by torch's global random state."""
    if kind == "MLP":
        layers = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        return nn.Sequential(nn.Flatten(), *layers)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch of shuffled indices, the incomplete last batch dropped."""
    return iter(torch.randperm(count, generator=generator)[: count // size * size].split(size))  # type: ignore[no-untyped-call]
