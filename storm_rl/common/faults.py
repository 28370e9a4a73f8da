"""Values that are not finite are found where they appear, and nothing is learned from them."""

import copy
import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy

Algorithm = TypeVar("Algorithm", bound=Any)

_UNTOUCHED = "The policy and all statistics are as before this rollout."


def check_transition(
    observations: Any, rewards: NDArray[Any], dones: NDArray[np.bool_], infos: list[dict[str, Any]], step: int
) -> None:
    """Refuse a vector step of the environments that cannot be learned from.

    Args:
        observations: Array ``(n_envs, ...)``, or a dict of such.
        rewards: ``(n_envs,)``.
        dones: ``(n_envs,)``.
        infos: Their ``terminal_observation`` is looked at too.
        step: Env steps so far, for the message.

    Raises:
        ValueError: A NaN or infinite reward (float32 is what is learned from) or observation; names which.
    """
    finite = _finite_rows(np.asarray(rewards))
    if finite is not None:
        index = int(np.argmin(finite))
        raise ValueError(
            f"environment {index} gave reward {rewards[index]} at env step {step}; rewards must be finite "
            f"in float32. {_UNTOUCHED}"
        )
    for key, batch in _parts(observations, "observation"):
        finite = _finite_rows(batch)
        if finite is not None:
            index = int(np.argmin(finite))
            raise ValueError(
                f"environment {index} gave a NaN or infinite {key} at env step {step}: {batch[index]}. {_UNTOUCHED}"
            )
    for index in np.flatnonzero(dones).tolist():
        terminal = infos[index].get("terminal_observation")
        for key, part in [] if terminal is None else _parts(terminal, "terminal observation"):
            if _finite_rows(part[None]) is not None:
                raise ValueError(
                    f"environment {index} gave a NaN or infinite {key} at env step {step}: {part}. {_UNTOUCHED}"
                )


def _parts(observations: Any, name: str) -> list[tuple[str, NDArray[Any]]]:
    if isinstance(observations, dict):
        return [(f"{name} {key!r}", np.asarray(part)) for key, part in observations.items()]
    return [(name, np.asarray(observations))]


def _finite_rows(batch: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Which rows are finite in float32, in which networks compute; None if all are."""
    if not np.issubdtype(batch.dtype, np.floating):
        return None
    # A sum is finite only if all its terms are: one fast look every time, and a second where it is not.
    if batch.dtype == np.float32 and math.isfinite(batch.sum(dtype=np.float64)):
        return None
    with np.errstate(over="ignore"):
        finite = np.isfinite(batch.astype(np.float32, copy=False)).reshape(len(batch), -1).all(axis=1)
    return None if finite.all() else np.asarray(finite)


def check_policy_outputs(step: int, **outputs: torch.Tensor) -> None:
    """Refuse NaN or infinite outputs of the policy.

    Args:
        step: Env steps so far, for the message.
        **outputs: Named tensors, each ``(n_envs, ...)``.

    Raises:
        ValueError: Names the tensor and the environment it was for.
    """
    for name, values in outputs.items():
        if not values.is_floating_point() or is_finite(values):
            continue
        finite = torch.isfinite(values).reshape(len(values), -1).all(dim=1)
        if not finite.all():
            raise ValueError(
                f"the policy gave NaN or infinite {name} for environment {int((~finite).nonzero()[0])} at env step "
                f"{step}: {not_finite(values)}. No action was taken; look at the policy's parameters."
            )


@contextmanager
def acting(policy: BasePolicy, step: int) -> Iterator[None]:
    """Say what is wrong where the policy's distribution cannot be sampled from, in place of torch's own error."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        name = not_finite_name(policy.state_dict())
        if name is None and not any(word in str(error) for word in ("nan", "NaN", "invalid values")):
            raise
        cause = f"its {name} is NaN or infinite" if name else "its action distribution is NaN or infinite"
        raise ValueError(f"the policy cannot act at env step {step}: {cause}. No action was taken.") from error


def is_finite(values: torch.Tensor) -> bool:
    """Whether all entries are finite."""
    # As in `_finite_rows`.
    return math.isfinite(values.sum()) or bool(torch.isfinite(values).all())


def not_finite(values: torch.Tensor) -> str:
    """How many entries are NaN or infinite, in words."""
    return f"{int((~torch.isfinite(values)).sum())} of {values.numel()} entries"


def not_finite_name(state: Any, name: str = "") -> str | None:
    """The dotted name of the first NaN or infinite number in nested dicts and lists; None if there is none."""
    if isinstance(state, torch.Tensor):
        return name if state.is_floating_point() and not is_finite(state) else None
    if isinstance(state, float):
        return None if np.isfinite(state) else name
    entries = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    for key, entry in entries:
        found = not_finite_name(entry, f"{name}.{key}" if name else str(key))
        if found is not None:
            return found
    return None


def _copied(state: Any) -> Any:
    # deepcopy's bookkeeping costs several times the copying of a few dozen tensors.
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, (bool, int, float, str, type(None))):
        return state
    if type(state) in (dict, OrderedDict):
        return {key: _copied(entry) for key, entry in state.items()}
    return [_copied(entry) for entry in state] if type(state) is list else copy.deepcopy(state)


def _all_finite(state: Any) -> bool:
    """Whether all floating-point tensors of nested dicts and lists are finite: of each device and type in one look."""
    kinds: dict[Any, list[torch.Tensor]] = {}
    pending = [state]
    while pending:
        entry = pending.pop()
        if isinstance(entry, torch.Tensor):
            if entry.is_floating_point():
                kinds.setdefault((entry.device, entry.dtype), []).append(entry.reshape(-1))
        elif isinstance(entry, dict):
            pending.extend(entry.values())
        elif isinstance(entry, (list, tuple)):
            pending.extend(entry)
        elif isinstance(entry, float) and not math.isfinite(entry):
            return False
    return all(is_finite(torch.cat(tensors)) for tensors in kinds.values())


def all_or_nothing(train: Callable[[Algorithm], None]) -> Callable[[Algorithm], None]:
    """Make an update a transaction: it is done and all of it is finite, or the model is as it was before.

    For an algorithm's ``train()``. Covers all that ``get_parameters()`` names: networks with their observation
    statistics, optimisers, the recursion and what it remembers. Also an interrupt in the middle undoes the update.

    Raises:
        ValueError: The update failed, or left NaN or infinite numbers; names the env step and the tensor.
    """

    @functools.wraps(train)
    def guarded(self: Algorithm) -> None:
        before, n_updates = _copied(self.get_parameters()), self._n_updates
        try:
            train(self)
            after = self.get_parameters()
            if not _all_finite(after):
                raise ValueError(f"{not_finite_name(after)} has become NaN or infinite.")
        except BaseException as error:
            self.set_parameters(before)
            self._n_updates = n_updates
            if isinstance(error, ValueError):
                raise ValueError(
                    f"the update after env step {self.num_timesteps} is undone, parameters are as before it: {error}"
                ) from error
            raise

    return guarded
