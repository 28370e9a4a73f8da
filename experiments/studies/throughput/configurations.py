"""What is measured: the algorithms at numbers of environments, network widths and batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from stable_baselines3 import A2C
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from agents import Contestant, get_contestant
from agents.build import build_model
from experiments.studies.throughput.environments import FRAMES, MAKE_ENV

ALGORITHMS = ("storm_plus_pg", "ppo_zoo", "a2c_zoo", "trpo_zoo")
# Ratios and plots are of these.
ENVIRONMENTS = ("gymnasium", "batched")
# On images, PPO with RL Zoo's rollouts, epochs and minibatches for Atari.
PPO_ON_IMAGES = "ppo_default[n_steps=128,n_epochs=4,batch_size=256]"
ON_IMAGES = ("storm_plus_pg", PPO_ON_IMAGES, "a2c_default")
# One torch thread on one core, and what a user has who sets nothing.
THREADS = ("1", "default")
# 64 for the ratio that is published of it.
N_ENVS = (1, 8, 32, 64, 128, 1024)
# The first is every algorithm's own.
WIDTHS = (64, 128, 256, 512, 1024)
BATCHES = (512, 2048, 8192)


@dataclass(frozen=True)
class Configuration:
    """What identifies a measurement; ``own_*`` say whether it is the algorithm's own setting on the task.

    ``threads`` is ``"1"``, on one core, or ``"default"``: as many as the libraries choose.
    """

    task: str
    algorithm: str
    environments: str
    n_envs: int
    n_steps: int
    width: int
    device: str = "cpu"
    threads: str = "1"
    own_n_envs: bool = field(default=False, compare=False)
    own_n_steps: bool = field(default=True, compare=False)

    def key(self) -> tuple[Any, ...]:
        """The values of the columns `KEY`."""
        return tuple(getattr(self, name) for name in KEY)

    def build(self) -> OnPolicyAlgorithm:
        """The model with its environments, ready for ``learn``."""
        arguments: dict[str, Any] = {
            "n_envs": self.n_envs,
            "n_steps": self.n_steps,
            "policy_kwargs": {"net_arch": [self.width, self.width]},
            "device": self.device,
        }
        if self.environments == "frames":
            # STORM+PG's actor and critic share nothing, so that others' do not here.
            arguments["policy_kwargs"]["share_features_extractor"] = False
        return build(self.task, self.algorithm, self.environments, **arguments)


KEY = tuple(entry.name for entry in fields(Configuration) if entry.compare)


def build(task: str, algorithm: str, environments: str = "gymnasium", **arguments: Any) -> OnPolicyAlgorithm:
    """The agent on one kind of environments; ``arguments`` replace its settings.

    Raises:
        ValueError: Not an on-policy algorithm of SB3's kind, whose time has no such split.
    """
    contestant = find_contestant(algorithm)
    make_env = MAKE_ENV[environments]
    if not contestant.own_environments:
        arguments["make_env"] = make_env
    model = contestant.build(task, 0, None, **arguments)
    if not isinstance(model, OnPolicyAlgorithm):
        raise ValueError(f"throughput: {algorithm!r} is not on-policy with rollouts of fixed length")
    if environments != "gymnasium" and contestant.own_environments:
        # RL Zoo makes gymnasium's: others take their place, in the same wrapper.
        env = make_env(task, model.n_envs, seed=0)
        normalizer = model.get_vec_normalize_env()
        if normalizer is not None:
            obs, reward = normalizer.norm_obs, normalizer.norm_reward
            model.set_env(VecNormalize(env, norm_obs=obs, norm_reward=reward, gamma=normalizer.gamma))
        else:
            model.set_env(env)
    return model


def find_contestant(name: str) -> Contestant:
    """The contestant, or A2C with its defaults, which is none of the benchmark's."""
    if name == "a2c_default":
        return Contestant(name, "A2C (SB3 defaults)", partial(build_model, A2C))
    return get_contestant(name)


def configurations(
    task: str,
    algorithms: Sequence[str],
    n_envs: Sequence[int],
    widths: Sequence[int],
    batches: Sequence[int],
    device: str,
    threads: Sequence[str] = THREADS,
    kinds: Sequence[str] = ENVIRONMENTS,
) -> list[Configuration]:
    """Numbers of environments at the first width; widths, then batches, at each algorithm's own number.

    Widths on gymnasium's and batched environments only, and batches on gymnasium's. Not every combination: what an
    update costs does not depend on what fills its batch. With default threads each algorithm's own number of
    gymnasium's environments, at every width.
    """
    found: list[Configuration] = []
    for algorithm in algorithms:
        own = build(task, algorithm)
        for count in dict.fromkeys((own.n_envs, *n_envs)):
            n_steps = own.n_steps if count == own.n_envs else build(task, algorithm, n_envs=count).n_steps
            of_count = [
                Configuration(task, algorithm, environments, count, n_steps, widths[0], own_n_envs=count == own.n_envs)
                for environments in map(str, kinds)
            ]
            found += of_count
            if count == own.n_envs:
                swept = [c for c in of_count if c.environments in ENVIRONMENTS]
                found += [replace(c, width=width) for width in widths[1:] for c in swept]
                found += [
                    replace(c, n_steps=steps, own_n_steps=False)
                    for steps in (-(-batch // count) for batch in batches)
                    for c in swept
                    if steps != n_steps and c.environments == "gymnasium"
                ]
    of_users = [c for c in found if c.own_n_envs and c.own_n_steps and c.environments == "gymnasium"]
    chosen = {"1": list(dict.fromkeys(found)), "default": list(dict.fromkeys(of_users))}
    return [replace(c, device=str(device), threads=str(name)) for name in threads for c in chosen[name]]


def on_images(device: str, threads: Sequence[str] = THREADS) -> list[Configuration]:
    """The algorithms with convolutions, on stacks of four pictures of 84 by 84, eight environments."""
    found = []
    for name in threads:
        for algorithm in ON_IMAGES:
            n_steps = build(FRAMES, algorithm, "frames", n_envs=8).n_steps
            found.append(
                Configuration(FRAMES, algorithm, "frames", 8, n_steps, WIDTHS[0], str(device), str(name), True)
            )
    return found
