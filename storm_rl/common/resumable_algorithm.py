"""The base of every algorithm here: SB3's, with bad input named, files written whole, and runs that resume exactly."""

import inspect
import io
import os
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar, Self, get_args

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch.distributions import Normal

from storm_rl.common.checks import check_device, check_integer, check_learning_rate, check_range
from storm_rl.common.environment_state import environment_state, restore_environment
from storm_rl.common.model_file import ModelPath, add_run_state, read_model, write_atomically
from storm_rl.common.policies import (
    StandardisedActorCriticCnnPolicy,
    StandardisedActorCriticPolicy,
    StandardisedMultiInputActorCriticPolicy,
    batch_size,
)
from storm_rl.common.random_state import random_state, set_random_state
from storm_rl.version import __version__

_ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_OBSERVATION_SPACES = (*_ACTION_SPACES, spaces.Dict)


class ResumableAlgorithm(BaseAlgorithm):
    """SB3's ``BaseAlgorithm`` whose saved models go on exactly, and whose errors say what would be right."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": StandardisedActorCriticPolicy,
        "CnnPolicy": StandardisedActorCriticCnnPolicy,
        "MultiInputPolicy": StandardisedMultiInputActorCriticPolicy,
    }
    attribute_of: ClassVar[dict[str, str]] = {"stats_window_size": "_stats_window_size"}  # What SB3 names otherwise.

    # Between a step of the environments and its place in `_last_obs`; true also after a rollout that failed.
    _in_rollout = False

    def __init__(
        self, policy: str | type[BasePolicy], env: GymEnv | str | None, learning_rate: float | Schedule, **kwargs: Any
    ) -> None:
        if not isinstance(policy, str) and not (isinstance(policy, type) and issubclass(policy, ActorCriticPolicy)):
            raise TypeError(
                f"policy must be one of {', '.join(self.policy_aliases)} or a subclass of ActorCriticPolicy, "
                f"got {policy!r}."
            )
        if not isinstance(verbose := kwargs.get("verbose", 0), bool):
            check_integer("verbose", verbose, 0)
        check_device(kwargs.get("device", "auto"))
        super().__init__(policy, env, learning_rate, **kwargs)

    def _check_arguments(self) -> None:
        """Refuse arguments out of range, before anything is built: the constructor's, and those that `load` changes."""
        # Also numpy's numbers, which SB3 and Python's generators refuse.
        self.learning_rate = check_learning_rate("learning_rate", self.learning_rate)
        self._stats_window_size = check_integer("stats_window_size", self._stats_window_size, 1)
        if self.seed is not None:
            self.seed = check_integer("seed", self.seed, 0, 2**32 - 1)  # What numpy's global generator takes.
        if not isinstance(self.policy_kwargs, dict):
            raise TypeError(f"policy_kwargs must be a dict or None, got {self.policy_kwargs!r}.")
        if (log_std_init := self.policy_kwargs.get("log_std_init")) is not None:
            check_range("policy_kwargs['log_std_init']", log_std_init, -50.0, 50.0)
        if not callable(activation := self.policy_kwargs.get("activation_fn", torch.nn.Tanh)):
            raise TypeError(f"policy_kwargs['activation_fn'] must be a class, as torch.nn.ReLU, got {activation!r}.")
        if self.tensorboard_log is not None and not isinstance(self.tensorboard_log, (str, os.PathLike)):
            raise TypeError(f"tensorboard_log must be the path of a folder or None, got {self.tensorboard_log!r}.")
        self._check_policy()

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(f"policy {policy_name!r} is unknown; there are {', '.join(self.policy_aliases)}.")
        return self.policy_aliases[policy_name]

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # Every environment comes through here, before SB3 asserts anything about it.
        for name, supported in (("action", _ACTION_SPACES), ("observation", _OBSERVATION_SPACES)):
            space = getattr(env, f"{name}_space", None)
            if space is not None:  # SB3 says it of what is no environment.
                _check_space(name, space, supported)
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _check_policy(self) -> None:
        """Refuse a policy that cannot read the observations, before its network fails to."""
        if not hasattr(self, "observation_space"):
            raise ValueError(
                f"env=None leaves {type(self).__name__} without spaces to build its networks for: pass an environment "
                f"or its id. (To get a saved model, call {type(self).__name__}.load().)"
            )
        # Only what these classes read by default is known; a subclass may have an extractor of its own.
        if self.policy_class not in self.policy_aliases.values() or "features_extractor_class" in self.policy_kwargs:
            return
        space, kind = self.observation_space, self.policy_class
        is_dict = isinstance(space, spaces.Dict)
        if is_dict != issubclass(kind, StandardisedMultiInputActorCriticPolicy):
            right = "MultiInputPolicy" if is_dict else "MlpPolicy, or CnnPolicy for images"
            raise ValueError(f"{kind.__name__} does not read the observation space {space}; use {right}.")
        parts: dict[str, Any] = dict(space.spaces) if isinstance(space, spaces.Dict) else {"image": space}
        names = torch.nn.ModuleDict()
        if unusable := [
            key for key in parts if not isinstance(key, str) or key == "" or "." in key or hasattr(names, key)
        ]:
            right = "be strings that are neither empty, nor hold a dot, nor are attributes of torch's ModuleDict"
            raise ValueError(f"observation space {space}: keys must {right}; rename {unusable} in a wrapper.")
        # Unscaled images are the user's own affair, as in SB3.
        floats = "normalize_images" in self.policy_kwargs
        is_cnn = issubclass(kind, StandardisedActorCriticCnnPolicy)
        if is_cnn and not is_image_space(space, check_channels=False, normalized_image=floats):
            raise ValueError(
                f"CnnPolicy reads images (uint8, 0 to 255, three dimensions), not the observation space {space}; "
                "use MlpPolicy for vectors."
            )
        for part in parts.values():
            # The smallest that three layers of SB3's NatureCNN leave a pixel of; channels are first or last.
            if (is_cnn or is_dict) and is_image_space(part) and sorted(part.shape)[1] < 36:
                raise ValueError(
                    f"images of {part} are too small for SB3's NatureCNN, which needs 36 x 36 pixels: use MlpPolicy, "
                    "or a features_extractor_class of your own."
                )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Exchange the environment; as SB3's ``set_env``.

        Raises:
            ValueError: Other spaces, or another number of environments.
        """
        wrapped = self._wrap_env(env, self.verbose)
        if wrapped.num_envs != self.n_envs:
            raise ValueError(
                f"set_env() needs as many environments as the model has, {self.n_envs}; got {wrapped.num_envs}. "
                f"{type(self).__name__}.load(path, env=env) takes any number."
            )
        super().set_env(wrapped, force_reset)

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        check_range("total_timesteps", total_timesteps, 0)
        if self.env is None:
            raise ValueError(
                f"{type(self).__name__} has no environment to learn in: pass env= to the constructor or to load(), or "
                "call set_env(env)."
            )
        if self._in_rollout:
            # The last rollout failed and the environments are not where `_last_obs` says.
            self._last_obs, self._in_rollout = None, False
        return super()._setup_learn(total_timesteps, *args, **kwargs)

    def save(self, path: ModelPath, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """Save the model: all that the next update depends on, and on request where the environments stand.

        Beside what SB3 keeps (arguments, counters, networks, optimizers): the recursion, the metric's memory, running
        statistics, recent rollouts, gSDE's noise and random states. With ``include=["env_state"]`` also the
        environments' state: the loaded run then equals the uninterrupted one bit for bit (see `load`).

        The file appears whole or not at all. Parameters are always those of the last completed update. A file that a
        callback writes during a rollout keeps neither that rollout nor the environments' state: a model loaded from it
        begins with a reset.

        Args:
            path: ``.zip`` is added where it has no suffix; or an open binary file.
            exclude: Attributes to leave out, or ``"window"`` and ``"random_state"``, to save space.
            include: Attributes to keep although they are not by default, or ``"env_state"``.

        Raises:
            ValueError: ``"env_state"`` without an environment, or with one whose state cannot be kept; see
                `storm_rl.common.environment_state.environment_state`.
        """
        excluded, included = set(exclude or ()), set(include or ())
        run_state = {name: state for name, state in self._run_state().items() if name not in excluded}
        if self._in_rollout:
            excluded.add("_last_obs")
            if "env_state" in included:
                warnings.warn(
                    "the environments are in the middle of a rollout: their state is not kept, and the loaded model "
                    "will reset them. Save between calls of learn() for an exact continuation.",
                    stacklevel=2,
                )
        elif "env_state" in included:
            if self.env is None:
                raise ValueError("there is no environment whose state could be kept; leave out include=['env_state'].")
            run_state["env_state"] = environment_state(self.env)
        archive = io.BytesIO()
        super().save(archive, excluded, included - {"env_state", "window", "random_state"})
        add_run_state(archive, type(self).__name__, __version__, run_state)
        if isinstance(path, io.BufferedIOBase):
            path.write(archive.getvalue())
        else:
            write_atomically(path, archive.getvalue())

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_in_rollout"]

    def _run_state(self) -> dict[str, Any]:
        """What a continuation needs beside the parameters: tensors and plain Python."""
        numbers = random_state([self.device])
        _, keys, *rest = np.random.get_state()  # noqa: NPY002  # The same as plain data.
        numbers["numpy"] = [torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest]
        return {"random_state": numbers, "exploration_noise": _exploration_noise(self.policy)}

    def _load_run_state(self, state: dict[str, Any], resumes: bool) -> None:
        """Restore what `_run_state` gave; parts may be missing. ``resumes``: the environments are not reset."""
        last: Any = self._last_obs
        if resumes and last is not None and batch_size(last) != self.n_envs:
            raise ValueError(
                f"force_reset=False continues the {batch_size(last)} environments of the saved model, "
                f"and these are {self.n_envs}; leave it out to begin with a reset."
            )
        if resumes and "env_state" in state:
            assert self.env is not None
            restore_environment(self.env, state["env_state"])
        _set_exploration_noise(self.policy, state.get("exploration_noise", {}))
        if "random_state" in state:
            keys, *rest = state["random_state"]["numpy"]
            numpy = ("MT19937", keys.numpy().astype(np.uint32), *rest)
            set_random_state({**state["random_state"], "numpy": numpy})

    @classmethod
    def load(
        cls,
        path: ModelPath,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a model that `save` wrote.

        To *predict*, the path is enough. To *train on*, pass ``env``: random states are then restored too, and the run
        continues as the saved one would have after a reset; with ``seed`` as well, another run from there: everything
        is seeded with it, and no random state restored. To *resume exactly*, save with ``include=["env_state"]``
        and pass ``force_reset=False`` as well: everything that follows is the same bit for bit (on the same machine,
        with the same versions and number of threads).

        As in SB3, the file's part ``data`` holds pickles, which can run any code: load files from sources that you
        trust only. All other parts are read with ``weights_only=True``; nothing is unpickled before the file has been
        found to be whole and a model of this class.

        Args:
            path: Of the file, with or without ``.zip``, or an open binary file.
            env: Environments to train in, any number of them; for an exact resume, made and wrapped as the saved ones.
            device: Where to compute.
            custom_objects: Replacements of stored attributes, whose pickles are then not read.
            print_system_info: Whether to print on which system the model was saved.
            force_reset: Whether the environments are reset before training; False continues where they stood.
            **kwargs: Arguments of the constructor that are to change; checked as there.

        Raises:
            FileNotFoundError: There is no such file.
            TypeError: An argument that the constructor does not have.
            ValueError: A damaged or foreign file, other spaces than the saved ones, or ``force_reset=False`` with
                environments that are not the saved ones.
        """
        # A base class's model is accepted, as by SB3. The names do not depend on the instance.
        accepted = [kind.__name__ for kind in cls.__mro__ if issubclass(kind, ResumableAlgorithm)]
        parameters = cls._get_torch_save_params(cls.__new__(cls))[0]
        if unknown := sorted(kwargs.keys() - (constructor_parameters(cls).keys() - {"policy"})):
            raise TypeError(f"{cls.__name__}.load() changes arguments of the constructor only, not {unknown}.")
        kwargs = {cls.attribute_of.get(name, name): value for name, value in kwargs.items()}
        check_device(device)
        content, run_state = read_model(path, accepted, parameters)
        model = super().load(io.BytesIO(content), env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if kwargs.get("seed") is not None:
            for name in ("random_state", "exploration_noise", "noise_age"):
                run_state.pop(name, None)
        if env is not None:
            # After the set-up, which seeds.
            model._load_run_state(run_state, resumes=not force_reset)
        return model


def constructor_parameters(algorithm: type[BaseAlgorithm]) -> dict[str, inspect.Parameter]:
    """All parameters of an algorithm's constructor by name, with those that ``**kwargs`` hands to its base."""
    found: dict[str, inspect.Parameter] = {}
    handed_on: set[str] | None = None
    for kind in algorithm.__mro__:
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
        for parameter in parameters:
            if parameter.kind is not parameter.VAR_KEYWORD and (handed_on is None or parameter.name in handed_on):
                found.setdefault(parameter.name, parameter)
        if not parameters or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
            break
        # ``**kwargs: Unpack[Names]`` says which; any other annotation leaves all.
        if names := {name for names in get_args(parameters[-1].annotation) for name in names.__annotations__}:
            handed_on = names if handed_on is None else names & handed_on
    return found


def _check_space(name: str, space: spaces.Space[Any], supported: tuple[type[spaces.Space[Any]], ...]) -> None:
    if not isinstance(space, supported):
        raise TypeError(
            f"unsupported {name} space {space}: {', '.join(kind.__name__ for kind in supported)} are supported."
        )
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            _check_space(f"{name} {key!r}", part, _ACTION_SPACES)
        if not space.spaces:
            raise ValueError(f"{name} space {space} has no entries.")
    if 0 in (space.shape or ()):
        raise ValueError(f"{name} space {space} is empty.")
    # SB3 numbers categories from 0 and has one vector of them.
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(space.start != 0):
        raise ValueError(f"{name} space {space} must begin at 0; shift it in a wrapper.")
    flat = isinstance(space, spaces.MultiDiscrete) or (isinstance(space, spaces.MultiBinary) and name == "action")
    if flat and len(space.shape or ()) != 1:
        raise ValueError(f"{name} space {space} must have one dimension; flatten it in a wrapper.")
    if isinstance(space, spaces.Box) and name == "action" and not np.isfinite([space.low, space.high]).all():
        raise ValueError(f"{name} space {space} must have finite bounds.")
    if isinstance(space, spaces.Box) and name != "action" and space.shape == ():
        raise ValueError(f"{name} space {space} must have a dimension; reshape it in a wrapper.")


def _exploration_noise(policy: BasePolicy) -> dict[str, torch.Tensor]:
    """GSDE's present noise, so that also a stochastic ``predict`` goes on; empty without gSDE."""
    distribution = getattr(policy, "action_dist", None)
    if not isinstance(distribution, StateDependentNoiseDistribution):
        return {}
    noise = {name: getattr(distribution, name).detach() for name in ("exploration_mat", "exploration_matrices")}
    return {**noise, "std": distribution.weights_dist.scale.detach()}


def _set_exploration_noise(policy: BasePolicy, noise: dict[str, torch.Tensor]) -> None:
    for name, values in noise.items():
        placed = values.to(policy.device)
        if name == "std":
            policy.action_dist.weights_dist = Normal(torch.zeros_like(placed), placed)  # type: ignore[union-attr]
        else:
            setattr(policy.action_dist, name, placed)
