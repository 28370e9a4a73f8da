"""Masks are obeyed, and belong to their states wherever these are learned from, stored or resumed."""

import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from storm_rl import STORMPlusPG
from storm_rl.common.policies import batch_size
from storm_rl.maskable import MaskableSTORMPlusPG, MlpPolicy
from storm_rl.maskable.masks import MASKS, split_masks, with_masks
from storm_rl.storm_plus_pg.actor_critic import Actor, ActorCritic
from tests.contract.cases import IMAGE, OBSERVATION_SPACES, VECTOR, RandomEnv, assert_equal_states
from tests.maskable.masked_env import ACTION_SPACES, MaskedEnv, mask_size, places, random_mask

each_action_space = pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=list(ACTION_SPACES))


def environments(action_space: spaces.Space[Any] | None = None, n_envs: int = 2, **arguments: Any) -> VecEnv:
    return make_vec_env(lambda: MaskedEnv(action_space, **arguments), n_envs, seed=0)


def small(env: Any, policy: Any = "MlpPolicy", algorithm: Any = MaskableSTORMPlusPG, **arguments: Any) -> Any:
    sizes = {"n_steps": 16, "critic_steps": 4, "reuse_rollouts": 2, "cg_max_steps": 2}
    defaults = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    return algorithm(policy, env, **{**sizes, **defaults, **arguments})


class Rollouts(BaseCallback):
    """Calls a check with the model, between each rollout and its update."""

    def __init__(self, check: Any) -> None:
        super().__init__()
        self.check = check
        self.n = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.n += 1
        self.check(self.model, self.model.rollout_buffer)  # type: ignore[attr-defined]


@each_action_space
def test_forbidden_actions_are_never_taken(action_space: spaces.Space[Any]) -> None:
    model = small(environments(action_space)).learn(96)  # The environment refuses them.
    generator = np.random.default_rng(0)
    for deterministic, _ in itertools.product((True, False), range(50)):
        observation, mask = VECTOR.sample(), random_mask(action_space, generator)
        action, _ = model.predict(observation, deterministic=deterministic, action_masks=mask)
        assert mask[places(action, action_space)].all()
        masks = np.stack([mask, random_mask(action_space, generator)])
        actions, _ = model.predict(np.stack([observation] * 2), deterministic=deterministic, action_masks=masks)
        assert actions.shape == (2, *(action_space.shape or ()))
        assert all(row[places(each, action_space)].all() for row, each in zip(masks, actions, strict=True))


def test_predict_takes_the_most_likely_of_the_allowed_actions_and_all_are_without_a_mask() -> None:
    model = small(environments())
    with torch.no_grad():
        model.policy.action_net.bias.copy_(torch.tensor([0.0, 30.0, 10.0, 20.0]))
    observation = np.zeros(3, dtype=np.float32)
    assert model.predict(observation, deterministic=True)[0] == 1
    assert model.predict(observation, deterministic=True, action_masks=[True, False, True, True])[0] == 3
    assert model.predict(observation, deterministic=True, action_masks=[1, 0, 1, 0])[0] == 2
    # Also of an observation as it is stored, and of a policy without its model.
    stored = with_masks(observation, np.array([1, 0, 0, 0]))
    assert model.predict(stored, deterministic=True)[0] == 0
    assert model.policy.predict(stored, deterministic=True, action_masks=[0, 0, 0, 1])[0] == 3
    tensor, masks = torch.zeros(2, 3), torch.tensor([[1, 0, 1, 1], [1, 0, 1, 0]])
    assert model.policy.get_distribution(tensor, action_masks=masks).mode().tolist() == [3, 2]
    assert model.policy(tensor, deterministic=True, action_masks=masks)[0].tolist() == [3, 2]
    _, log_prob, entropy = model.policy.evaluate_actions(tensor, torch.tensor([1, 2]), action_masks=masks)
    assert log_prob.exp().tolist() == [0.0, pytest.approx(1.0, abs=1e-3)]
    assert torch.isfinite(entropy).all()


@each_action_space
def test_stored_masks_give_the_log_probabilities_of_the_behaviour_exactly(action_space: spaces.Space[Any]) -> None:
    def check(model: Any, buffer: DictRolloutBuffer) -> None:
        for step, actions in enumerate(buffer.actions):
            stored = {key: torch.as_tensor(part[step]) for key, part in buffer.observations.items()}
            actions = actions.flatten() if isinstance(action_space, spaces.Discrete) else actions
            with torch.no_grad():
                _, log_prob, _ = model.policy.evaluate_actions(stored, torch.as_tensor(actions))
                _, unmasked, _ = model.policy.evaluate_actions(split_masks(stored)[0], torch.as_tensor(actions))
            assert log_prob.tolist() == buffer.log_probs[step].tolist()
            assert (unmasked <= log_prob + 1e-6).all()
        assert (buffer.observations[MASKS] == 0).any()

    callback = Rollouts(check)
    small(environments(action_space)).learn(96, callback=callback)
    assert callback.n == 3


@each_action_space
def test_all_that_is_learned_from_has_its_own_mask(action_space: spaces.Space[Any]) -> None:
    model = small(environments(action_space)).learn(96)
    assert len(model.window.rollouts) == 3
    observations = model.window.observations()
    batch = model.window.transitions(observations, model.networks(), 0.99, 0.95)
    masks = split_masks(batch.observations)[1].bool()
    assert masks.shape == (96, mask_size(action_space))
    for mask, action in zip(masks, batch.actions, strict=True):
        assert mask[places(action, action_space)].all()
    with torch.no_grad():
        log_prob = model.policy.get_distribution(observations).log_prob(batch.actions)
    assert float(log_prob.min()) > -20.0
    assert MASKS in model.fisher_metric.states


def test_parameters_of_a_choice_that_is_never_allowed_never_change() -> None:
    model = small(environments(never=2), ent_coef=0.1)
    layer = model.policy.action_net
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    model.learn(160)
    assert torch.equal(layer.weight[2], before[0][2])
    assert torch.equal(layer.bias[2], before[1][2])
    assert not torch.equal(layer.weight[1], before[0][1])


def joint_actions(action_space: spaces.Space[Any]) -> list[Any]:
    if isinstance(action_space, spaces.Discrete):
        return list(range(int(action_space.n)))
    sizes = action_space.nvec if isinstance(action_space, spaces.MultiDiscrete) else [2] * action_space.n  # type: ignore[attr-defined]
    return list(itertools.product(*map(range, sizes)))


@each_action_space
def test_fisher_products_are_the_enumerated_ones_of_the_allowed_actions(action_space: spaces.Space[Any]) -> None:
    torch.manual_seed(0)
    policy = MlpPolicy(VECTOR, action_space, lambda _: 1e-3, net_arch=[5])
    with torch.no_grad():
        for parameter in policy.actor_parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    generator = np.random.default_rng(0)
    masks = np.stack([random_mask(action_space, generator) for _ in range(6)])
    observations = with_masks(torch.randn(6, 3), torch.as_tensor(masks))
    actor = Actor(policy, observations)
    vector = torch.randn(parameters_to_vector(actor.parameters).numel())
    expected, total = torch.zeros_like(vector), 0.0
    for row, action in itertools.product(range(6), joint_actions(action_space)):
        if not masks[row][places(action, action_space)].all():
            continue
        state = {key: part[row : row + 1] for key, part in observations.items()}
        log_prob = policy.get_distribution(state).log_prob(torch.tensor([action]))
        score = parameters_to_vector(torch.autograd.grad(log_prob.sum(), actor.parameters))
        total += float(log_prob.detach().exp())
        expected += log_prob.detach().exp() * score * score.dot(vector) / 6
    assert total == pytest.approx(6.0, abs=1e-4)  # The allowed actions have all of the probability.
    torch.testing.assert_close(actor.fisher_product()(vector), expected, rtol=1e-4, atol=1e-5)


def test_with_everything_allowed_it_is_the_agent_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STORMPlusPG, "networks", lambda self: ActorCritic(self.policy))
    models = []
    for algorithm, arguments in ((STORMPlusPG, {}), (MaskableSTORMPlusPG, {"use_masking": False})):
        env = make_vec_env(lambda: RandomEnv(spaces.MultiDiscrete([2, 3])), 2, seed=0)
        models.append(small(env, algorithm=algorithm).learn(96, **arguments))
    for name in ("policy", "policy.optimizer", "recursion"):
        assert_equal_states(*(model.get_parameters()[name] for model in models))


def state_after(model: Any, steps: int) -> dict[str, Any]:
    model.learn(steps, reset_num_timesteps=False)
    last = {key: torch.as_tensor(part) for key, part in model._last_obs.items()}
    return {"parameters": model.get_parameters(), "run": model._run_state(), "last": last, "n": model._n_updates}


DICT = spaces.Dict({"position": VECTOR, "gear": spaces.Discrete(3), "action_mask": spaces.MultiBinary(4)})


@pytest.mark.parametrize(
    ("action_space", "observation_space", "n_envs"),
    [*((space, VECTOR, 2) for space in ACTION_SPACES.values()), (spaces.Discrete(4), DICT, 1)],
    ids=[*ACTION_SPACES, "dict"],
)
@pytest.mark.parametrize("normalized", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    action_space: spaces.Space[Any],
    observation_space: spaces.Space[Any],
    n_envs: int,
    normalized: bool,
    tmp_path: Path,
) -> None:
    def fresh() -> VecEnv:
        env = environments(action_space, n_envs, observation_space=observation_space)
        keys = ["position"] if isinstance(observation_space, spaces.Dict) else None
        return VecNormalize(env, norm_obs_keys=keys) if normalized else env

    is_dict = isinstance(observation_space, spaces.Dict)
    model = small(fresh(), "MultiInputPolicy" if is_dict else "MlpPolicy").learn(64)
    model.save(tmp_path / "model", include=["env_state"])
    n_rollouts = len(model.window.rollouts)
    expected = state_after(model, 64)
    torch.rand(3)
    resumed = MaskableSTORMPlusPG.load(tmp_path / "model", fresh(), device="cpu", force_reset=False)
    assert len(resumed.window.rollouts) == n_rollouts
    assert_equal_states(expected, state_after(resumed, 64))


def test_what_users_see_has_no_masks(tmp_path: Path) -> None:
    model = small(environments(), "MlpPolicy")
    evaluation = EvalCallback(make_vec_env(lambda: RandomEnv(spaces.Discrete(4)), 1), eval_freq=16, verbose=0)
    model.learn(64, callback=evaluation)
    assert evaluation.last_mean_reward != -np.inf  # Without masks, as SB3's callback asks.
    env = model.get_env()
    assert model.observation_space == env.observation_space == model.policy.observation_space == VECTOR
    masks = np.stack(env.env_method("action_masks"))
    actions, _ = model.predict(env.reset(), action_masks=np.stack(env.env_method("action_masks")))
    env.step(actions)
    model.set_env(environments())
    model.learn(32, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    loaded = MaskableSTORMPlusPG.load(tmp_path / "model", device="cpu")
    assert loaded.observation_space == VECTOR
    seen = np.stack([VECTOR.sample(), VECTOR.sample()])
    answers = [each.predict(seen, deterministic=True, action_masks=masks)[0].tolist() for each in (model, loaded)]
    assert answers[0] == answers[1]
    loaded.set_env(environments())
    loaded.learn(32)
    model.policy.save(tmp_path / "policy")
    policy = MlpPolicy.load(tmp_path / "policy", device="cpu")
    assert policy.predict(seen, deterministic=True, action_masks=masks)[0].tolist() == answers[0]


def test_observation_statistics_are_of_observations_alone() -> None:
    seen: list[Tensor] = []
    model = small(environments())
    model.learn(64, callback=Rollouts(lambda _, buffer: seen.append(torch.tensor(split_masks(buffer.observations)[0]))))
    (statistics,) = model.policy.observation_statistics.running.values()
    torch.testing.assert_close(statistics.mean, torch.cat(seen).reshape(-1, 3).double().mean(dim=0))


@pytest.mark.parametrize(
    ("policy", "observation_space"),
    [
        ("CnnPolicy", IMAGE),
        ("MultiInputPolicy", OBSERVATION_SPACES["dict"]),
        ("MlpPolicy", OBSERVATION_SPACES["discrete"]),
        ("MlpPolicy", OBSERVATION_SPACES["multi_discrete"]),
    ],
)
def test_any_observations(policy: str, observation_space: spaces.Space[Any]) -> None:
    kwargs: dict[str, Any] = {"net_arch": [8]}
    if policy != "MlpPolicy":
        kwargs["features_extractor_kwargs"] = {"features_dim" if policy == "CnnPolicy" else "cnn_output_dim": 8}
    env = environments(ACTION_SPACES["multi_discrete"], observation_space=observation_space)
    model = small(env, policy, policy_kwargs=kwargs, n_steps=8).learn(32)
    observation = env.reset()
    actions, _ = model.predict(observation, action_masks=np.stack(env.env_method("action_masks")))
    env.step(actions)  # Refuses what is forbidden.


@pytest.mark.slow
def test_environments_in_processes_of_their_own() -> None:
    env = make_vec_env(MaskedEnv, 2, seed=0, vec_env_cls=SubprocVecEnv)
    try:
        model = small(env).learn(64)
        assert model.num_timesteps == 64
    finally:
        env.close()


def test_without_masking_every_action_is_allowed_and_a_run_may_change_over() -> None:
    model = small(make_vec_env(lambda: RandomEnv(spaces.Discrete(4)), 2, seed=0)).learn(32, use_masking=False)
    assert (model.rollout_buffer.observations[MASKS] == 1).all()
    env = model.get_env()

    class Obedient(gym.Wrapper[Any, Any, Any, Any]):
        def action_masks(self) -> list[bool]:
            return [False, False, True, False]

    env.envs = [Obedient(each) for each in env.envs]
    model.learn(32, reset_num_timesteps=False)
    assert (model.rollout_buffer.actions == 2).all()  # From the first step on.
    assert len(model.window.rollouts) == 2
    model.learn(32, reset_num_timesteps=False, use_masking=False)
    assert (model.rollout_buffer.observations[MASKS] == 1).all()


class Given(MaskedEnv):
    """Gives the masks that it was told to."""

    def __init__(self, masks: Any, action_space: spaces.Space[Any] | None = None) -> None:
        super().__init__(action_space)
        self.given = masks

    def action_masks(self) -> Any:
        return self.given


@pytest.mark.parametrize(
    ("masks", "action_space", "message"),
    [
        ([False] * 4, None, r"mask 1 of 2 forbids all 4 choices of part 0"),
        (
            [1, 0, 0, 0, 0],
            ACTION_SPACES["multi_discrete"],
            r"mask 1 of 2 forbids all 3 choices of part 1.*\[1 0 0 0 0\]",
        ),
        ([1, 1, 0, 0, 1, 1], ACTION_SPACES["multi_binary"], r"forbids all 2 choices of part 1"),
        ([True] * 5, None, r"must be 4 booleans for each of 2, flat, for actions of Discrete\(4\)"),
        ([[True, True], [True] * 3], ACTION_SPACES["multi_discrete"], r"must be 5 booleans for each of 2"),
        (None, None, r"must be 4 booleans"),
    ],
)
def test_wrong_masks_are_named_before_an_action_is_taken(
    masks: Any, action_space: spaces.Space[Any] | None, message: str
) -> None:
    right = np.ones(mask_size(action_space or spaces.Discrete(4)), dtype=bool)
    model = small(DummyVecEnv([lambda: Given(right, action_space), lambda: Given(masks, action_space)]))
    with pytest.raises(ValueError, match=message):
        model.learn(32)
    assert model.num_timesteps == 0


def test_wrong_masks_for_predict_are_named() -> None:
    model = small(environments())
    observation = VECTOR.sample()
    with pytest.raises(ValueError, match=r"must be 4 booleans for each of 1, .* got shape \(3,\)"):
        model.predict(observation, action_masks=[True] * 3)
    with pytest.raises(ValueError, match=r"for each of 2, .* got shape \(4,\)"):
        model.predict(np.stack([observation] * 2), action_masks=[True] * 4)
    with pytest.raises(ValueError, match="forbids all 4 choices"):
        model.predict(observation, action_masks=[False] * 4)
    with pytest.raises(ValueError, match="forbids all 4 choices"):
        model.policy.get_distribution(torch.zeros(1, 3), action_masks=[False] * 4)
    with pytest.raises(ValueError, match="You have passed a tuple"):
        model.predict((observation, {}), action_masks=[True] * 4)


def test_an_environment_without_masks_is_named() -> None:
    model = small(RandomEnv(spaces.Discrete(4)))
    with pytest.raises(ValueError, match=r"does not support action masking.*ActionMasker"):
        model.learn(32)


def test_arguments_that_take_no_masks_are_refused() -> None:
    with pytest.raises(TypeError, match=r"action space Box.*use STORMPlusPG"):
        small("Pendulum-v1")
    with pytest.raises(TypeError, match=r"StandardisedActorCriticPolicy does not take action masks"):
        small(MaskedEnv(), STORMPlusPG.policy_aliases["MlpPolicy"])
    with pytest.raises(TypeError, match=r"DictRolloutBuffer does not take .* storm_rl.maskable.masks.MaskableRollout"):
        small(MaskedEnv(), rollout_buffer_class=DictRolloutBuffer)


def test_a_stopped_rollout_goes_on_with_the_masks_of_where_it_stopped() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 5

    model = small(environments())
    model.learn(32, callback=Stop())
    assert model.num_timesteps == 10
    assert batch_size(model._last_obs) == 2
    model.learn(64, reset_num_timesteps=False)  # The environment would refuse others.
