r"""Which samples to learn from: minibatches whose gradient has the least variance, by norms of per-sample gradients.

Of :math:`n` samples, number :math:`i` is drawn with probability :math:`p_i` and counts :math:`1 / p_i` times:

.. math:: g = \frac1n \sum_i \frac{\xi_i}{p_i} g_i, \qquad P(\xi_i = 1) = p_i, \qquad \sum_i p_i = b

has the mean of all gradients as its expectation, whatever the probabilities, as long as none is 0 where the gradient is
not. Drawn independently of each other (Poisson sampling), its variance, the trace of its covariance, is

.. math:: V(p) = \frac1{n^2} \sum_i \Big(\frac1{p_i} - 1\Big) \lVert g_i \rVert^2,

and the least one for batches of expected size :math:`b` is that of
:math:`p^*_i = \min(1, \lVert g_i \rVert / \mu)` (Cong, Forsati, Kandemir, Mahdavi, "Minimal variance sampling with
provable guarantees for fast training of graph neural networks", KDD 2020, arXiv 2006.13866, eq. 8 and theorem 4.1;
:math:`\mu` as in Ibragimov, Gusev, "Minimal variance sampling in stochastic gradient boosting", NeurIPS 2019, arXiv
1910.13204). Norms from some steps ago, or of a part of the gradient, give other probabilities and leave the mean alone:
all that they cost is variance (`decompose`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from storm_rl.storm_plus_pg.numpy_mlp import NumpyMLP

Floats = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]


def threshold(norms: Floats, batch_size: float) -> float:
    r""":math:`\mu`, at which :math:`\sum_i \min(1, \lVert g_i \rVert / \mu)` is the batch size: exact, by sorting.

    With the ``k`` largest norms drawn for certain, :math:`\mu` is the sum of the others over ``batch_size - k``. The
    right ``k`` is the least one for which none of the others is above this.

    Args:
        norms: Of per-sample gradients, or anything else not negative, ``(n,)``.
        batch_size: Expected number of samples; above 0, an integer or not.

    Returns:
        :math:`\mu`. The least positive norm if no more than ``batch_size`` of them are positive: then all these are
        drawn for certain. 0 if all norms are.

    Raises:
        ValueError: Norms that are no vector of finite numbers from 0 up, or a batch size that is not above 0.
    """
    norms = np.asarray(norms, dtype=np.float64)
    if norms.ndim != 1 or len(norms) == 0:
        raise ValueError(f"norms must be a vector with an entry for each sample, got shape {norms.shape}")
    if not (np.isfinite(norms).all() and (norms >= 0.0).all()):
        raise ValueError(
            f"norms must be finite and not negative, got {norms[~(np.isfinite(norms) & (norms >= 0.0))][0]}"
        )
    if not (np.isfinite(batch_size) and batch_size > 0.0):
        raise ValueError(f"batch_size must be above 0, got {batch_size}")
    falling = np.sort(norms[norms > 0.0])[::-1]
    if len(falling) <= batch_size:
        return float(falling[-1]) if len(falling) else 0.0
    k = np.arange(int(np.ceil(batch_size)))
    rest = np.cumsum(falling[::-1])[::-1]  # rest[k] is the sum without the k largest.
    # The last one holds, whatever the norms: there batch_size - k is at most 1.
    first = int((falling[k] * (batch_size - k) <= rest[k]).argmax())
    return float(rest[first] / (batch_size - first))


def inclusion_probabilities(norms: Floats, batch_size: float, floor: float = 0.0) -> Floats:
    r""":math:`p_i = \min(1, \lVert g_i \rVert / \mu)`, ``(n,)``; all 1 from a batch of ``n`` samples on.

    Args:
        norms: As in `threshold`. Where all are 0, probabilities are equal.
        batch_size: Sum of the probabilities; less, where fewer norms are positive.
        floor: Norms are raised to this share of their mean. No sample then counts more than ``1 + 1 / floor`` times as
            much as in a uniform batch, however wrong its norm; 0 is for norms that are exact.

    Raises:
        ValueError: As `threshold`; a floor outside [0, 1].
    """
    norms = np.asarray(norms, dtype=np.float64)
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"floor must be from 0 to 1, got {floor}")
    raised = np.maximum(norms, floor * norms.mean()) if floor > 0.0 and len(norms) else norms
    mu = threshold(raised, batch_size)
    if batch_size >= len(norms):
        return np.ones_like(raised)
    if mu == 0.0:
        return np.full_like(raised, batch_size / len(norms))
    return np.minimum(1.0, raised / mu)


def poisson_draw(probabilities: Floats, rng: np.random.Generator) -> Indices:
    """Each sample by itself, as the paper has it: the variance is `sampling_variance`, and the size varies."""
    return np.flatnonzero(rng.random(len(probabilities)) < probabilities)


def systematic_places(probabilities: Floats, start: float) -> Indices:
    """Systematic sampling: the places at which the running sum passes ``start``, ``start + 1`` and so on.

    If ``start`` is uniform in [0, 1), each place is drawn with its probability, and at most once. The size is the sum
    of all probabilities if that is a whole number, and otherwise one of its two neighbours (Madow 1949, "On the theory
    of systematic sampling, II").
    """
    return _passed(np.cumsum(probabilities), start)


def _passed(ends: Floats, start: float) -> Indices:
    # Rounding of the sum must not decide whether there is one sample more.
    nearest = np.round(ends[-1])
    total = nearest if abs(ends[-1] - nearest) < 1e-6 else ends[-1]
    marks = start + np.arange(int(np.ceil(total - start)))
    return np.minimum(np.searchsorted(ends, marks, side="right"), len(ends) - 1)


class SystematicPasses:
    """Systematic draws in random order whose starts are spread evenly over a pass: as many draws as make ``n`` samples.

    Each start by itself is uniform. Together they draw a sample in a pass as often as its probability says, but for
    rounding: once, if all are equal, as a shuffled pass over all samples does. The order is a new one in each pass.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._starts: list[float] = []
        self._order: Indices = np.empty(0, dtype=np.intp)
        self._of: Floats | None = None

    def draw(self, probabilities: Floats) -> Indices:
        """Rows of the next batch."""
        n = len(probabilities)
        if not self._starts or len(self._order) != n:
            n_draws = max(1, round(n / float(probabilities.sum())))
            shifted = self._rng.random() + self._rng.permutation(n_draws) / n_draws
            self._starts, self._order, self._of = (shifted % 1.0).tolist(), self._rng.permutation(n), None
        if self._of is not probabilities:
            self._of, self._ends = probabilities, np.cumsum(probabilities[self._order])
        return self._order[_passed(self._ends, self._starts.pop())]


def sampling_variance(probabilities: Floats, norms: Floats) -> float:
    r""":math:`V(p)` of gradients with these norms under Poisson sampling; infinite where one is never drawn.

    In units of the gradient's square: its expected squared distance from the mean of all.
    """
    seen = norms > 0.0
    if (probabilities[seen] <= 0.0).any():
        return float("inf")
    squares = np.square(norms[seen], dtype=np.float64)
    return float(((1.0 / probabilities[seen] - 1.0) * squares).sum() / len(norms) ** 2)


def pass_variance(norms: Floats, mean_square: float, batch_size: int) -> float:
    r"""Variance of one uniform batch of a fixed size, drawn without replacement, as those of passes over all samples.

    .. math:: \frac{n - b}{b (n - 1)} \Big(\frac1n \sum_i \lVert g_i \rVert^2 - \lVert \bar g \rVert^2\Big),

    the variance of a mean in a finite population; ``mean_square`` is :math:`\lVert \bar g \rVert^2`.
    """
    n = len(norms)
    return (n - batch_size) / (batch_size * (n - 1)) * (float(np.square(norms, dtype=np.float64).mean()) - mean_square)


class Variances(NamedTuple):
    """The variance of a minibatch's gradient, in two terms."""

    sampling: float
    """With the exact norms: the least possible for the batch size."""
    norms: float
    """What norms that are not exact, and the floor, add."""


def decompose(exact: Floats, used: Floats, batch_size: float, floor: float = 0.0) -> Variances:
    r"""The two terms of :math:`V(p) = V(p^*) + [V(p) - V(p^*)]`, neither of them negative, since V is least at p*.

    The paper's definition 3.1 also has two terms: the variance of the drawn samples' exact gradients, and the error of
    these gradients, which its networks compute from stale embeddings of neighbours. Here no sample depends on others
    and gradients are exact; what is stale is norms, which the paper's eq. 8 takes as upper bounds.

    Args:
        exact: Norms of the gradients at the present parameters, ``(n,)``.
        used: Those that probabilities are computed from, older ones or approximations.
        batch_size: As in `threshold`.
        floor: Of the probabilities from ``used``, as in `inclusion_probabilities`.
    """
    least = sampling_variance(inclusion_probabilities(exact, batch_size), exact)
    return Variances(least, sampling_variance(inclusion_probabilities(used, batch_size, floor), exact) - least)


def per_sample_norms(values: Sequence[Floats], deltas: Sequence[Floats]) -> Floats:
    r"""Norms of each sample's gradient in all parameters of a `NumpyMLP`, ``(n,)``, without the gradients.

    In a layer's weight it is the outer product of what arrives and what entered, so that its square is
    :math:`\lVert \delta_i \rVert^2 (\lVert a_i \rVert^2 + 1)` with the bias's (Goodfellow 2015, "Efficient per-example
    gradient computations", arXiv 1510.01799).

    Args:
        values: Inputs and activations, of ``NumpyMLP.forward``.
        deltas: Of ``NumpyMLP.backward``, for each sample's own loss.
    """
    squares: Floats = np.zeros(len(values[0]))
    for entered, arrived in zip(values[:-1], deltas, strict=True):
        squares += np.einsum("nk,nk->n", arrived, arrived) * (np.einsum("nk,nk->n", entered, entered) + 1.0)
    return np.sqrt(squares)


def squared_error_norms(network: NumpyMLP, inputs: Floats, targets: Floats, last_layer: bool = False) -> Floats:
    r"""Norms of the gradients of :math:`(f(x_i) - y_i)^2`, ``(n,)``: of all parameters, or the last layer's alone.

    The last layer's, :math:`2 |f(x_i) - y_i| \sqrt{\lVert h_i \rVert^2 + 1}` with the last hidden layer's
    :math:`h_i`, needs no backward pass; the paper takes these.

    Args:
        network: With one output.
        inputs: ``(n, n_in)``.
        targets: ``(n,)``.
        last_layer: Whether the other layers are left out.
    """
    values = network.forward(inputs)
    cotangent = 2.0 * (values[-1] - targets.reshape(-1, 1))
    if last_layer:
        return per_sample_norms(values[-2:], [cotangent])
    return per_sample_norms(values, network.backward(network.activation_derivatives(values), cotangent))


class MinimalVarianceSampler:
    r"""Minibatches drawn by norms that are refreshed now and then.

    Args:
        norms: Gives the norms of all samples as they are now, ``(n,)``.
        batch_size: Expected number of samples of a minibatch.
        refresh_every: Minibatches between two calls of ``norms``; None: one call, before the first.
        floor: As in `inclusion_probabilities`.
        draw: ``"systematic"``, batches of one size (`SystematicPasses`), or ``"poisson"``, as in the paper.
        seed: Of the draws.

    Raises:
        ValueError: An argument outside its range.
    """

    def __init__(
        self,
        norms: Callable[[], Floats],
        batch_size: float,
        refresh_every: int | None = 20,
        floor: float = 0.1,
        draw: Literal["systematic", "poisson"] = "systematic",
        seed: int | Sequence[int] | None = None,
    ) -> None:
        if refresh_every is not None and refresh_every < 1:
            raise ValueError(f"refresh_every must be at least 1, or None for one time, got {refresh_every}")
        if draw not in ("systematic", "poisson"):
            raise ValueError(f'draw must be "systematic" or "poisson", got {draw!r}')
        self.batch_size, self.refresh_every, self.floor = batch_size, refresh_every, floor
        rng, self._all_norms = np.random.default_rng(seed), norms
        self._rows = SystematicPasses(rng).draw if draw == "systematic" else partial(poisson_draw, rng=rng)
        self._n_draws = 0
        self._probabilities: Floats | None = None
        self.norms: Floats = np.empty(0)

    def draw(self) -> tuple[Indices, Floats]:
        """A minibatch: indices of samples, and :math:`1 / (n p_i)`, by which their gradients are to be summed."""
        due = self._n_draws == 0 if self.refresh_every is None else self._n_draws % self.refresh_every == 0
        if due:
            self.norms, self._probabilities = np.array(self._all_norms(), dtype=np.float64), None
        if self._probabilities is None:
            self._probabilities = inclusion_probabilities(self.norms, self.batch_size, self.floor)
        self._n_draws += 1
        rows = self._rows(self._probabilities)
        return rows, 1.0 / (len(self.norms) * self._probabilities[rows])

    def update(self, rows: Indices, norms: Floats) -> None:
        """Norms of a minibatch's samples, which its own backward pass gives (the paper's algorithm 1, last line)."""
        self.norms[rows] = norms
        self._probabilities = None
