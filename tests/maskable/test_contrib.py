"""sb3-contrib's environments, wrapper, evaluation and distributions, beside its MaskablePPO."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from storm_rl.maskable import MaskableSTORMPlusPG, MlpPolicy
from tests.contract.cases import VECTOR
from tests.maskable.masked_env import ACTION_SPACES, random_mask

# Each with as many choices forbidden as can be, and half of that.
ENVIRONMENTS: dict[str, tuple[Any, int, int]] = {
    "discrete": (partial(InvalidActionEnvDiscrete, dim=20), 10, 19),
    "multi_discrete": (partial(InvalidActionEnvMultiDiscrete, dims=[4, 5]), 3, 7),
    "multi_binary": (partial(InvalidActionEnvMultiBinary, dims=6), 2, 6),
}


def small(env: Any, **arguments: Any) -> MaskableSTORMPlusPG:
    return MaskableSTORMPlusPG("MlpPolicy", env, **{"n_steps": 64, "critic_steps": 4, "seed": 0, **arguments})


@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=list(ACTION_SPACES))
def test_distributions_are_contribs(action_space: spaces.Space[Any]) -> None:
    torch.manual_seed(0)
    policy = MlpPolicy(VECTOR, action_space, lambda _: 1e-3)
    with torch.no_grad():
        policy.action_net.weight.copy_(torch.randn_like(policy.action_net.weight))
    generator = np.random.default_rng(0)
    masks = np.stack([random_mask(action_space, generator) for _ in range(20)])
    observations = torch.randn(20, 3)
    ours = policy.get_distribution(observations, action_masks=masks)
    theirs = make_masked_proba_distribution(action_space)
    latent = policy.mlp_extractor.forward_actor(policy.pi_features_extractor(observations))
    theirs.proba_distribution(action_logits=policy.action_net(latent))  # type: ignore[call-arg]
    theirs.apply_masking(masks)
    actions = ours.sample()
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.mode())


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_contribs_environments_and_evaluation(name: str) -> None:
    make, half, most = ENVIRONMENTS[name]
    model = small(make_vec_env(lambda: make(n_invalid_actions=half), 2), n_steps=32).learn(128)
    assert model.num_timesteps == 128
    # Only the right action is left.
    env = make(n_invalid_actions=most)
    evaluate_policy(model, env, n_eval_episodes=2, deterministic=False, reward_threshold=99.9, warn=False)
    unmasked, _ = evaluate_policy(model, env, n_eval_episodes=2, warn=False, use_masking=False)
    assert unmasked < 99.0


class Counter(gym.Wrapper[Any, Any, Any, Any]):
    """Allows one action a step, the next of all."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.steps = 0

    def step(self, action: Any) -> Any:
        assert action == self.steps % 2
        self.steps += 1
        return super().step(action)

    def next_action(self, env: Any = None) -> list[bool]:
        return [self.steps % 2 == place for place in range(2)]


@pytest.mark.parametrize("mask", ["next_action", lambda env: env.next_action()], ids=["name", "function"])
def test_action_masker(mask: Any, tmp_path: Path) -> None:
    def environments() -> VecEnv:
        return make_vec_env(lambda: ActionMasker(Counter(gym.make("CartPole-v1")), mask), 2, seed=0)

    model = small(environments(), n_steps=32).learn(64)
    assert get_action_masks(model.get_env()).shape == (2, 2)
    model.save(tmp_path / "model", include=["env_state"])
    resumed = MaskableSTORMPlusPG.load(tmp_path / "model", environments(), force_reset=False)
    assert resumed.get_env().get_attr("steps") == [32, 32]
    resumed.learn(64, reset_num_timesteps=False)


def test_maskable_eval_callback(tmp_path: Path) -> None:
    make, half, most = ENVIRONMENTS["discrete"]
    callback = MaskableEvalCallback(
        make_vec_env(lambda: make(n_invalid_actions=most), 1),
        eval_freq=64,
        n_eval_episodes=2,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    small(make(n_invalid_actions=half)).learn(64, callback=callback)
    assert np.load(tmp_path / "evaluations.npz")["results"].tolist() == [[100.0, 100.0]]
    best = MaskableSTORMPlusPG.load(tmp_path / "best_model")
    evaluate_policy(best, make(n_invalid_actions=most), n_eval_episodes=1, reward_threshold=99.9, warn=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_it_solves_what_maskable_ppo_solves_in_as_many_env_steps(name: str) -> None:
    make, half, _ = ENVIRONMENTS[name]
    for algorithm in (MaskableSTORMPlusPG, MaskablePPO):
        env = make(n_invalid_actions=half)
        model = algorithm("MlpPolicy", env, gamma=0.4, seed=0, device="cpu").learn(6_000)
        assert model.num_timesteps == 6_144
        # Of 100. Allowed actions at random have 10, 12 and 6.
        evaluate_policy(model, env, n_eval_episodes=20, reward_threshold=95.0, warn=False)
