"""The state of a running environment as plain data, so that training can go on in another process exactly."""

import random
import types
from collections import OrderedDict, deque
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import VecEnv

# Recorded as they are. Exact types: numpy's float64 is a float too, but is not read back as plain data.
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Part of how an environment was made or shown, not of its state: left as the other process has them.
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_CONSTANT = (*_FUNCTIONS, types.ModuleType, type, np.dtype, range, slice, property, EnvSpec, WrapperSpec, ResultsWriter)
_CHANGED_IN_PLACE: dict[str, type[Any]] = {
    "generator": np.random.Generator,
    "random_state": np.random.RandomState,
    "python_random": random.Random,
    "space": spaces.Space,
}


def environment_state(env: VecEnv | gym.Env[Any, Any]) -> Any:
    """All that the future of ``env`` depends on, as tensors and plain Python (readable with ``weights_only=True``).

    Wrappers, environments and their generators are walked through, attribute by attribute. An object that has
    ``get_state()`` and ``set_state(state)`` of its own is asked as well, or instead where its attributes are no plain
    data (a physics engine): those methods must then keep all, generators too. The result shares no memory with ``env``.

    Known to be exact: gymnasium's classic-control and toy-text environments, also inside gymnasium's wrappers and
    SB3's ``Monitor``, ``DummyVecEnv``, ``VecNormalize``, ``VecFrameStack``, ``VecTransposeImage`` and ``VecMonitor``.

    Raises:
        ValueError: Something in ``env`` is not plain data; the message names the attribute.
    """
    return _encode(env, type(env).__name__, set())


def restore_environment(env: VecEnv | gym.Env[Any, Any], state: Any) -> None:
    """Put ``env``, made and wrapped in the same way, where the environment was whose ``state`` this is.

    Raises:
        ValueError: ``env`` is of another kind, wrapped differently, or has another number of environments.
    """
    recorded = state.get("attributes", {}).get("num_envs")
    if isinstance(env, VecEnv) and recorded is not None and recorded != env.num_envs:
        raise ValueError(f"the state is of {recorded} environments; these are {env.num_envs}")
    _decode(state, env, type(env).__name__)


def _encode(value: Any, path: str, seen: set[int]) -> Any:
    """Plain values and tensors as they are, everything else as a dict that says what it is."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        raw = np.frombuffer(value.tobytes(), dtype=np.uint8).copy()
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {"kind": kind, "dtype": value.dtype.str, "shape": tuple(value.shape), "bytes": torch.from_numpy(raw)}
    if isinstance(value, dict):
        items = [(_encode(key, path, seen), _encode(entry, f"{path}[{key!r}]", seen)) for key, entry in value.items()]
        return {"kind": "dict", "items": items}
    if isinstance(value, (list, tuple, deque)):
        entries = [_encode(entry, f"{path}[{index}]", seen) for index, entry in enumerate(value)]
        kind = next(kind.__name__ for kind in (list, tuple, deque) if isinstance(value, kind))
        return {"kind": kind, "items": entries}
    if isinstance(value, np.random.Generator):
        return {"kind": "generator", "state": _encode(value.bit_generator.state, path, seen)}
    if isinstance(value, np.random.RandomState):
        return {"kind": "random_state", "state": _encode(value.get_state(legacy=False), path, seen)}
    if isinstance(value, random.Random):
        return {"kind": "python_random", "state": value.getstate()}
    if isinstance(value, spaces.Space):
        # The generator that `sample` draws from; the rest of a space does not change.
        parts = {name: getattr(value, name, None) for name in ("_np_random", "spaces")}
        encoded = {name: _encode(part, path, seen) for name, part in parts.items() if part is not None}
        return {"kind": "space", "parts": encoded}
    if isinstance(value, _CONSTANT) or type(value).__module__.split(".")[0] == "pygame" or id(value) in seen:
        return {"kind": "kept"}
    return _encode_object(value, path, seen)


def _encode_object(value: Any, path: str, seen: set[int]) -> dict[str, Any]:
    seen.add(id(value))
    recorded: dict[str, Any] = {"kind": "object", "classes": _class_names(value)}
    if not all(callable(getattr(type(value), name, None)) for name in ("get_state", "set_state")):
        return {**recorded, "attributes": _encode_attributes(value, path, seen)}
    recorded["state"] = _encode(value.get_state(), path, set(seen))
    try:
        # By these names many environments mean less than all of their state (an observation, a position).
        return {**recorded, "attributes": _encode_attributes(value, path, set(seen))}
    except ValueError:
        return recorded


def _encode_attributes(value: Any, path: str, seen: set[int]) -> dict[str, Any]:
    known = type(value).__module__.split(".")[0] in ("gymnasium", "stable_baselines3")
    if not (known or isinstance(value, (gym.Env, VecEnv))) or not hasattr(value, "__dict__"):
        raise ValueError(
            f"the environment's state cannot be kept: {path} is a {_class_names(value)[0]}, which is no plain data. "
            "Give the environment methods get_state() and set_state(state), or do without the exact state."
        )
    return {
        name: _encode(attribute, f"{path}.{name}", seen)
        for name, attribute in vars(value).items()
        if name != "class_attributes"  # What SB3's wrappers copy from their class.
    }


def _decode(state: Any, current: Any, path: str) -> Any:
    """The value that ``state`` was made from; objects and generators are changed in place, so that they stay shared."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if not isinstance(state, dict):
        return state
    kind = state["kind"]
    if kind == "kept":
        return current
    if kind in ("array", "scalar"):
        array = np.frombuffer(state["bytes"].numpy().tobytes(), dtype=np.dtype(state["dtype"])).reshape(state["shape"])
        return array.copy() if kind == "array" else array[()]
    if kind == "dict":
        known = current if isinstance(current, dict) else {}
        result: dict[Any, Any] = OrderedDict() if isinstance(current, OrderedDict) else {}
        for key, entry in state["items"]:
            name = _decode(key, None, path)
            result[name] = _decode(entry, known.get(name), f"{path}[{name!r}]")
        return result
    if kind in ("list", "tuple", "deque"):
        held = list(current) if isinstance(current, (list, tuple, deque)) else []
        held += [None] * (len(state["items"]) - len(held))
        pairs = enumerate(zip(state["items"], held, strict=False))
        entries = [_decode(entry, now, f"{path}[{index}]") for index, (entry, now) in pairs]
        if kind == "deque":
            return deque(entries, maxlen=current.maxlen if isinstance(current, deque) else None)
        return tuple(entries) if kind == "tuple" else entries
    if kind == "generator" and current is None:  # gymnasium's environments have none before their first reset.
        current = np.random.Generator(getattr(np.random, _decode(state["state"], None, path)["bit_generator"])())
    if current is None or not isinstance(current, _CHANGED_IN_PLACE.get(kind, object)):
        raise ValueError(f"the state does not fit: {path} is {current!r}, and was a {kind}")
    if kind == "generator":
        current.bit_generator.state = _decode(state["state"], None, path)
    elif kind == "random_state":
        current.set_state(_decode(state["state"], None, path))
    elif kind == "python_random":
        current.setstate(state["state"])
    elif kind == "space":
        # The property `np_random` makes a generator where there is none.
        for name, part in state["parts"].items():
            _decode(part, current.np_random if name == "_np_random" else getattr(current, name, None), path)
    else:
        _decode_object(state, current, path)
    return current


def _decode_object(state: dict[str, Any], current: Any, path: str) -> None:
    # Or a sub-class on either side: the RL Zoo puts its own TimeLimit in gymnasium's place wherever it is imported.
    now, then = _class_names(current), state["classes"]
    if now[0] not in then and then[0] not in now:
        raise ValueError(f"the state does not fit: {path} is a {now[0]}, and was a {then[0]}")
    if "state" in state:
        current.set_state(_decode(state["state"], None, path))
    for name, attribute in state.get("attributes", {}).items():
        if not (isinstance(attribute, dict) and attribute["kind"] == "kept"):
            vars(current)[name] = _decode(attribute, vars(current).get(name), f"{path}.{name}")


def _class_names(value: Any) -> list[str]:
    """Its class and those that it inherits from."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(value).__mro__]
