r"""Which entries of the observation explain best what a trained policy does: best-subset selection, solved exactly.

:func:`best_subset` finds the ``k`` columns whose regression leaves the least squared error of all outputs,
:func:`select_size` the ``k``, and :func:`explain` does both for a model. With standardised :math:`X`:

.. math::
    \min_{s \in \{0, 1\}^p, \beta} \; \tfrac{1}{n} \lVert Y - X \beta \rVert_F^2 + 10^{-6} \lVert \beta \rVert_F^2
    \quad \text{with} \quad \lvert \beta_{j, o} \rvert \le M_{j, o} s_j, \quad \textstyle\sum_j s_j \le k.

HiGHS (``scipy.optimize.milp``) is linear: tangents from below stand for the convex square, and it is asked again after
each support that it proposes, with the tangents at that support's regression: the outer approximation of Duran and
Grossmann (Math. Programming 36, 1986). It is exact: what HiGHS returns is a lower bound over all supports, and these
tangents make it a support's own error there, so none is proposed twice, and the search ends with bound and error equal.
:math:`M` holds for all supports as good as one known: they err no more, so their coefficients lie in an ellipsoid
around the full regression's (Bertsimas, King, Mazumder, Annals of Statistics 2016). :math:`\delta \beta^2`, with the
Gram matrix's least eigenvalue, has the tighter tangents of :math:`\delta \beta^2 / s` (Frangioni, Gentile 2006).

``whiten=True`` decorrelates the columns first, as Kenney, Chiaromonte, Felici propose ("MIP-BOOST", J. Computational
and Graphical Statistics 30, 2021, arXiv 1808.02526), by the whitening nearest to them (ZCA-cor: Kessy, Lewin, Strimmer
2018). With squared errors the best subset is then that of the largest CAR scores (Zuber, Strimmer 2011), without HiGHS.
Needs scipy: ``pip install "storm-rl[best-subset]"``. Nothing else of the package imports this module.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from scipy.optimize import Bounds, LinearConstraint, milp
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from storm_rl.common.checks import check_integer

Array = npt.NDArray[np.float64]
Target = Literal["action", "value"]

RIDGE = 1e-6
# Of the targets' variance: bound and error that far apart are equal. HiGHS works to 1e-6.
GAP = 2e-6
OPTIONS = {"mip_rel_gap": 0.0, "presolve": False}
N_FOLDS = 5


class Subset(NamedTuple):
    """The columns chosen, ascending, and the share of the targets' summed variance that their regression explains."""

    entries: tuple[int, ...]
    r2: float


def explain(
    model: BaseAlgorithm,
    observations: npt.NDArray[Any],
    target: Target = "action",
    size: int | None = None,
    whiten: bool = False,
) -> Subset:
    """The ``size`` entries that explain best :func:`outputs`; None: as many as :func:`select_size` finds.

    ``observations`` are raw, ``(n, *shape)``, in the order of the visits.
    """
    targets = outputs(model, observations, target)
    inputs = np.asarray(observations, dtype=np.float64).reshape(len(targets), -1)
    size = select_size(inputs, targets, whiten)[0] if size is None else size
    return best_subset(inputs, targets, size, whiten)


@torch.no_grad()
def outputs(model: BaseAlgorithm, observations: npt.NDArray[Any], target: Target = "action") -> Array:
    """What is explained, ``(n, m)``.

    Of "action" with Box actions the mean, in the policy's units; with Discrete ones the log-probabilities less their
    mean over actions, which are the logits up to a constant of each state. Of "value" what the critic says.

    Raises ``TypeError`` for other policies, spaces or actions, ``ValueError`` for other targets or bad observations.
    """
    policy, space = model.policy, model.observation_space
    if not isinstance(policy, ActorCriticPolicy) or not isinstance(space, spaces.Box):
        raise TypeError(f"expected an ActorCriticPolicy and a Box space, got {type(policy).__name__} and {space}.")
    observations = np.asarray(observations)
    if observations.shape[1:] != space.shape or not np.isfinite(observations).all():
        raise ValueError(f"observations must be finite and (n, {space.shape}), got {observations.shape}.")
    normalizer = model.get_vec_normalize_env()
    seen: Any = observations if normalizer is None else normalizer.normalize_obs(observations)
    tensor: Any = torch.as_tensor(seen, dtype=torch.float32, device=policy.device)
    if target == "value":
        return np.asarray(policy.predict_values(tensor).double().cpu())
    if target != "action":
        raise ValueError(f'target must be "action" or "value", got {target!r}.')
    distribution: Any = policy.get_distribution(tensor)
    if isinstance(model.action_space, spaces.Discrete):
        logits = distribution.distribution.logits
        return np.asarray((logits - logits.mean(dim=1, keepdim=True)).double().cpu())
    if isinstance(model.action_space, spaces.Box):
        return np.asarray(distribution.mode().double().cpu()).reshape(len(observations), -1)
    raise TypeError(f"actions must be Discrete or Box, got {model.action_space}.")


def best_subset(inputs: Array, targets: Array, size: int, whiten: bool = False) -> Subset:
    """The ``size`` columns of ``inputs``, ``(n, p)``, whose regression explains most of ``targets``, ``(n, m)``.

    Columns that never change are never chosen. Twenty columns take a second, thirty some; then it gets long. Raises
    ``ValueError`` for shapes that do not fit, and inputs or targets that are not finite or never change.
    """
    inputs, targets = np.asarray(inputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if inputs.ndim != 2 or targets.ndim != 2 or len(inputs) != len(targets):
        raise ValueError(f"inputs must be (n, p) and targets (n, m), got {inputs.shape} and {targets.shape}.")
    if check_integer("size", size, 1) > inputs.shape[1]:
        raise ValueError(f"size must be at most the number of columns, {inputs.shape[1]}, got {size}.")
    for name, values in (("targets", targets), ("inputs", inputs)):
        live = np.flatnonzero(np.ptp(values, axis=0) > 1e-9 * np.abs(values).max(axis=0))
        if not np.isfinite(values).all() or not len(live):
            raise ValueError(f"{name} must be finite and change, got {values.min(axis=0)} to {values.max(axis=0)}.")
    x = (inputs[:, live] - inputs[:, live].mean(axis=0)) / inputs[:, live].std(axis=0)
    # Squared errors stay as the outputs are turned, and fewer are left where some depend on others.
    left, scales, _ = np.linalg.svd(targets - targets.mean(axis=0), full_matrices=False)
    y = (left * scales)[:, scales > 1e-6 * scales[0]] / np.sqrt(targets.var(axis=0).sum())
    gram, cross = x.T @ x / len(x) + RIDGE * np.eye(len(live)), x.T @ y / len(x)
    values, vectors = np.linalg.eigh(gram)
    # Of the whitened columns, x gram^(-1/2): each explains its square, whatever the others do.
    scores = (vectors / np.sqrt(values)) @ vectors.T @ cross
    support = np.sort(np.argsort(-np.square(scores).sum(axis=1), kind="stable")[:size])
    support = support if whiten or size >= len(live) else _solve(gram, cross, support)
    return Subset(tuple(live[support].tolist()), float((cross * _regression(gram, cross, support)).sum()))


def select_size(inputs: Array, targets: Array, whiten: bool = False) -> tuple[int, dict[int, float]]:
    """The smallest number of columns that predicts as well as all do, and the errors of those tried.

    By bisection on the cross-validated error, after Kenney et al., so that about ``log2 p`` sizes are tried. A size is
    enough if its error is at most one standard error, of the paired differences over folds, above that of all columns.
    Folds are blocks of consecutive rows: neighbours of a trajectory say nearly the same. Returns the size, and the mean
    error over folds by size, as a share of the targets' variance.
    """
    low, high = 0, inputs.shape[1]
    errors = {high: _fold_errors(inputs, targets, high, whiten)}
    while high - low > 1:
        middle = (low + high) // 2
        errors[middle] = _fold_errors(inputs, targets, middle, whiten)
        worse = errors[middle] - errors[inputs.shape[1]]
        enough = worse.mean() <= worse.std(ddof=1) / np.sqrt(N_FOLDS)
        low, high = (low, middle) if enough else (middle, high)
    return high, {size: float(errors[size].mean()) for size in sorted(errors)}


def _fold_errors(inputs: Array, targets: Array, size: int, whiten: bool) -> Array:
    """Squared error of each fold, of the columns that the other folds choose and their regression; ``(N_FOLDS,)``."""
    errors = []
    for fold in np.array_split(np.arange(len(inputs)), N_FOLDS):
        x, y = np.delete(inputs, fold, axis=0), np.delete(targets, fold, axis=0)
        chosen = list(best_subset(x, y, size, whiten).entries)
        design = np.column_stack([np.ones(len(inputs)), inputs[:, chosen]])
        rest = targets[fold] - design[fold] @ np.linalg.lstsq(np.delete(design, fold, axis=0), y, rcond=None)[0]
        errors.append(np.square(rest).sum(axis=1).mean() / targets.var(axis=0).sum())
    return np.array(errors)


def _regression(gram: Array, cross: Array, support: npt.NDArray[np.intp]) -> Array:
    slopes = np.zeros_like(cross)
    slopes[support] = np.linalg.solve(gram[np.ix_(support, support)], cross[support])
    return slopes


def _solve(gram: Array, cross: Array, best: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The best support of as many columns as ``best``, a good one, has."""
    (p, m), q = cross.shape, cross.size
    full, gain = _regression(gram, cross, np.arange(p)), float((cross * _regression(gram, cross, best)).sum())
    slack = max(float((cross * full).sum()) - gain, 0.0)
    big_m = (np.abs(full) + np.sqrt(slack * np.diag(np.linalg.inv(gram)))[:, None]).ravel()
    values, vectors = np.linalg.eigh(gram)
    turned = np.kron((vectors * np.sqrt(values - values[0])).T[1:], np.eye(m))
    # Unknowns: s, beta, what bounds beta^2 / s from below, and what bounds the squares of `turned @ beta`.
    s, beta, ratios, squares = np.split(np.eye(p + 2 * q + len(turned)), [p, p + q, p + 2 * q])
    of_beta = np.repeat(s, m, axis=0)
    cost = values[0] * ratios.sum(axis=0) + squares.sum(axis=0) - 2.0 * cross.ravel() @ beta
    rows = [s.sum(axis=0)[None], beta - big_m[:, None] * of_beta, -beta - big_m[:, None] * of_beta]
    most = [np.full(1, len(best), dtype=np.float64), np.zeros(2 * q)]
    binary = s.any(axis=0)
    bounds = Bounds(np.where(beta.any(axis=0), -np.inf, 0.0), np.where(binary, 1.0, np.inf))
    tangents_at, seen = [full, _regression(gram, cross, best)], {tuple(best.tolist())}
    while True:
        for slopes in tangents_at:
            at, turned_at = slopes.reshape(-1, 1), turned @ slopes.reshape(-1, 1)
            rows += [2.0 * at * beta - at**2 * of_beta - ratios, 2.0 * turned_at * (turned @ beta) - squares]
            most += [np.zeros(q), turned_at[:, 0] ** 2]
        below = LinearConstraint(np.vstack(rows), ub=np.concatenate(most))
        found = milp(cost, integrality=binary, bounds=bounds, constraints=below, options=OPTIONS)
        if found.status != 0:
            raise RuntimeError(f"HiGHS found no best {len(best)} of {p} columns: {found.message}")
        proposed = np.flatnonzero(s @ found.x > 0.5)
        slopes = _regression(gram, cross, proposed)
        if (cross * slopes).sum() > gain:
            best, gain = proposed, float((cross * slopes).sum())
        if -found.mip_dual_bound - gain <= GAP or tuple(proposed.tolist()) in seen:
            return best
        seen.add(tuple(proposed.tolist()))
        # Those where the solver was are not needed for exactness, but save rounds.
        tangents_at = [slopes, beta @ found.x]
