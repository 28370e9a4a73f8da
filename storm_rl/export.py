"""Trained policies as files that run without this package: ONNX and TorchScript.

A file computes what ``model.predict(observations, deterministic=True)`` does, from raw observations to the actions that
the environment takes: standardisation, one-hot encoding and the scaling of images come before the network; argmax, the
unit of the actions, clipping and unsquashing after it. Before a file is written, its actions on random observations are
compared with those of ``predict``.

ONNX needs ``pip install "storm-rl[onnx]"``. Nothing else of the package imports this module.
"""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn

from storm_rl.common.model_file import write_atomically
from storm_rl.common.policies import ObservationBatch

Batches = dict[str, npt.NDArray[Any]]
"""Observations ``(n, ...)`` by the name of the file's input."""
Entry = TypeVar("Entry")

N_OBSERVATIONS = 16


class DeterministicPolicy(nn.Module):
    """``predict(observations, deterministic=True)`` as one function of tensors, on the CPU.

    Args:
        policy: Is copied.
        channels_last: Whether images come in as ``(n, height, width, channels)``, and not as in the policy's
            observation space.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: ActorCriticPolicy, channels_last: bool = False) -> None:
        super().__init__()
        # The distribution holds graphs of gSDE's noise, which cannot be copied, and which its mode does not need.
        as_they_are = {id(policy.action_dist): copy.copy(policy.action_dist), id(policy.optimizer): None}
        self.policy = copy.deepcopy(policy, as_they_are).cpu().requires_grad_(False)
        self.policy.set_training_mode(False)
        self.eval()
        self.images_last = _images(policy.observation_space) if channels_last else set()
        self.action_space = policy.action_space
        if isinstance(self.action_space, spaces.Box):
            dtype = np.result_type(np.float32, self.action_space.low)  # As of numpy's clip.
            self.register_buffer("low", torch.from_numpy(self.action_space.low.astype(dtype)))
            self.register_buffer("high", torch.from_numpy(self.action_space.high.astype(dtype)))

    def forward(self, observations: ObservationBatch) -> Tensor:
        """Actions as the environment takes them, ``(n, *action_shape)``, of raw observations."""
        if isinstance(observations, dict):
            observations = {key: self._channels_first(key, batch) for key, batch in observations.items()}
        else:
            observations = self._channels_first("observation", observations)
        actions = self.policy._predict(observations, deterministic=True).reshape(-1, *(self.action_space.shape or ()))
        if not isinstance(self.action_space, spaces.Box):
            return actions
        actions = actions.to(self.low.dtype)
        if self.policy.squash_output:
            return self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        return torch.clamp(actions, self.low, self.high)

    def _channels_first(self, key: str, batch: Tensor) -> Tensor:
        return batch.permute(0, 3, 1, 2) if key in self.images_last else batch


def export_onnx(
    model: BaseAlgorithm, path: str | Path, *, channels_last: bool = False, opset_version: int | None = None
) -> None:
    """Write a policy as an ONNX file whose actions are those of ``model.predict(observations, deterministic=True)``.

    The file's input is named ``observation``; of Dict observations each entry is an input, by its own name. Inputs have
    the dtypes of the observation space. The output is ``action`` (``action_`` where an entry has that name). The first
    axis of each is the batch, of any size from 1. The file is written whole or not at all.

    Args:
        model: An algorithm with an ``ActorCriticPolicy``: this package's, SB3's PPO and A2C. What a ``VecNormalize``
            around its environment does to observations is not in the file, and is warned of.
        path: Of the file; ``.onnx`` is added to a path without suffix.
        channels_last: Whether images come in as ``(n, height, width, channels)``. By default they are as in the model's
            observation space, where SB3 has put the channels first.
        opset_version: Of ONNX's operators; None: torch's choice. Not every policy can be converted to less than 18.

    Raises:
        ImportError: The extra is not installed.
        TypeError: ``model`` is no such algorithm.
        ValueError: The policy cannot be traced, the file's actions are not those of ``predict``, the policy's operators
            are not in ``opset_version``, or ``channels_last`` without images.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  What torch exports with.
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass
    except ImportError as error:
        raise ImportError(
            f'{error}. export_onnx needs an extra: pip install "storm-rl[onnx]"', name=error.name
        ) from error

    network, observations = _network_and_observations(model, channels_last)
    with _tracing(model, "ONNX"):
        example = _as_the_policy_takes(model, {name: torch.from_numpy(batch) for name, batch in observations.items()})
        axes: list[Any] = [torch.export.Dim("batch"), "batch"]
        shapes = [(_as_the_policy_takes(model, {name: {0: axis} for name in observations}),) for axis in axes]
        program = torch.onnx.export(
            torch.export.export(network, (example,), dynamic_shapes=shapes[0], strict=False),
            dynamic_shapes=shapes[1],  # Names the axis.
            opset_version=opset_version,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        graph = program.model.graph
        for value, name in zip(graph.inputs, observations, strict=True):
            value.name = name
        graph.outputs[0].name = "action_" if "action" in observations else "action"
        NameFixPass()(program.model)  # An entry may be named as a value inside is.
        ClearMetadataAndDocStringPass()(program.model)  # Lines of source and paths of this machine.
        content = program.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    if opset_version not in (None, found := graph.opset_imports[""]):
        raise ValueError(f"opset_version={opset_version}: this policy's operators need {found}.")
    _check(model, network, observations, lambda batches: session.run(None, batches)[0])
    write_atomically(_with_suffix(path, ".onnx"), content)


def export_torchscript(model: BaseAlgorithm, path: str | Path, *, channels_last: bool = False) -> None:
    """Write a policy as a TorchScript file, for ``torch.jit.load`` and for C++; needs no extra.

    The loaded module maps a batch of observations, or a dict of such, to actions. Arguments and errors are those of
    :func:`export_onnx`; ``.pt`` is added to a path without suffix.
    """
    network, observations = _network_and_observations(model, channels_last)

    def as_tensors(batches: Batches) -> ObservationBatch:
        return _as_the_policy_takes(model, {name: torch.from_numpy(batch) for name, batch in batches.items()})

    content = io.BytesIO()
    with _tracing(model, "TorchScript"), torch.no_grad():
        # Two of them, so that the check has other numbers.
        example = as_tensors({name: batch[:2] for name, batch in observations.items()})
        traced = torch.jit.trace(network, (example,), strict=False, check_trace=False)  # type: ignore[no-untyped-call]
        script = torch.jit.freeze(traced)
        torch.jit.save(script, content)
    _check(model, network, observations, lambda batches: script(as_tensors(batches)).numpy())
    write_atomically(_with_suffix(path, ".pt"), content.getvalue())


def _images(space: spaces.Space[Any]) -> set[str]:
    return {name for name, part in _entries(space).items() if is_image_space(part)}


def _entries(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}


def _as_the_policy_takes(model: BaseAlgorithm, entries: dict[str, Entry]) -> dict[str, Entry] | Entry:
    return entries if isinstance(model.observation_space, spaces.Dict) else entries["observation"]


def _with_suffix(path: str | Path, suffix: str) -> Path:
    return Path(path) if Path(path).suffix else Path(f"{path}{suffix}")


def _network_and_observations(model: BaseAlgorithm, channels_last: bool) -> tuple[DeterministicPolicy, Batches]:
    """What is to be traced, and random observations to trace and check it on: the same ones for the same space."""
    policy = model.policy if isinstance(model, BaseAlgorithm) else None
    if not isinstance(policy, ActorCriticPolicy):
        found = repr(model) if policy is None else f"{type(model).__name__} with {type(policy).__name__}"
        raise TypeError(f"model must be an algorithm with an ActorCriticPolicy, got {found}.")
    if channels_last and not _images(policy.observation_space):
        raise ValueError(f"channels_last=True, but there are no images in {policy.observation_space}.")
    normalize = model.get_vec_normalize_env()
    if normalize is not None and normalize.norm_obs:
        warnings.warn(
            "the model's environment is wrapped in VecNormalize, whose statistics are not in the file: give it "
            "observations as VecNormalize.normalize_obs returns them.",
            stacklevel=3,
        )
    with _tracing(model, "a file"):
        network = DeterministicPolicy(policy, channels_last)
    space = copy.deepcopy(policy.observation_space)  # The environment may draw from its own.
    space.seed(0)
    observations = {}
    for name, part in _entries(space).items():
        batch = np.stack([np.asarray(part.sample()) for _ in range(N_OBSERVATIONS)])
        if batch.dtype.kind == "f":  # Bounds may be as wide as the dtype, and sums of such numbers are infinite.
            batch = batch.clip(-1e3, 1e3)
        observations[name] = np.moveaxis(batch, 1, -1).copy() if name in network.images_last else batch
    return network, observations


@contextmanager
def _tracing(model: BaseAlgorithm, form: str) -> Iterator[None]:
    """Without torch's warnings, and without the distributions' look at their arguments, which cannot be traced."""
    distribution, disabled = torch.distributions.Distribution, logging.root.manager.disable
    validate = distribution._validate_args
    distribution.set_default_validate_args(False)
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ValueError(
            f"{type(model.policy).__name__} cannot be exported to {form}. What it does to observations must be torch's "
            f"operations, the same for all observations and any number of them. {type(error).__name__}: {reason}"
        ) from error
    finally:
        logging.disable(disabled)
        distribution.set_default_validate_args(validate)


def _check(
    model: BaseAlgorithm,
    network: DeterministicPolicy,
    observations: Batches,
    exported: Callable[[Batches], npt.NDArray[Any]],
) -> None:
    """``ValueError`` unless the exported policy acts as ``predict`` does, on all observations at once and on each."""
    reference = copy.copy(model)  # With the copied policy: on the CPU, and the model's own stays in its mode.
    reference.policy = network.policy
    each = [{name: batch[[i]] for name, batch in observations.items()} for i in range(N_OBSERVATIONS)]
    expected, actual = [], []
    for batches in (observations, *each):
        expected.append(reference.predict(_as_the_policy_takes(model, batches), deterministic=True)[0])
        with _tracing(model, "a file"):
            actual.append(exported(batches))
    right, found = np.concatenate(expected), np.concatenate(actual)
    unit = np.abs(right).max(axis=0)
    equal = np.isclose(found, right, rtol=0.0, atol=1e-4 * unit).reshape(len(right), -1).all(axis=1)
    # Of two actions that are equally likely, the last bit decides.
    allowed = 0 if isinstance(model.action_space, spaces.Box) else len(right) // 16
    if len(right) - equal.sum() > allowed or found.dtype != right.dtype:
        row = int(np.argmin(equal))
        raise ValueError(
            f"predict of {type(model.policy).__name__} is not what its network computes: {len(right) - equal.sum()} of "
            f"{len(right)} random observations have other actions, such as {right[row]} in place of {found[row]}. "
            "What predict and obs_to_tensor do to arrays is not exported, nor are branches that depend on values: let "
            "_predict or the features extractor do it with torch's operations."
        )
