"""What is particular to the algorithms that learn from whole trajectories."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from envs.mdps import EnumerableEnv, slippery_cliff
from storm_rl.episodic import DEFPG, GPOMDP, PAGEPG, SRVRPG, STORMPG, SVRPG
from storm_rl.episodic.episodes import TrajectoryBatch
from storm_rl.episodic.episodic_algorithm import EpisodicAlgorithm
from tests.contract.cases import FAMILY as ALGORITHMS
from tests.contract.cases import RandomEnv, parameters

ANCHORED = [algorithm for algorithm in ALGORITHMS if algorithm is not GPOMDP]


class Endless(RandomEnv):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *_ = super().step(action)
        return observation, reward, False, False, {}


def build(algorithm: type[EpisodicAlgorithm], env: Any = "CartPole-v1", **arguments: Any) -> EpisodicAlgorithm:
    sizes: dict[str, Any] = {"batch_size": 4}
    if algorithm is not GPOMDP:
        sizes["mini_batch_size"] = 3
    policy = arguments.pop("policy", "MlpPolicy")
    return algorithm(policy, env, **{"seed": 0, **sizes, **arguments})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_actor_critic_policy_of_stable_baselines_will_do(algorithm: type[EpisodicAlgorithm]) -> None:
    model = build(algorithm, policy=ActorCriticPolicy, baseline="state_value")
    before = parameters(model)
    model.learn(400)
    assert not torch.equal(before, parameters(model))


def test_names_in_tensorboard_and_the_last_update_is_among_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = build(SVRPG, tensorboard_log=str(tmp_path), baseline="state_value").learn(300)
    events = EventAccumulator(str(tmp_path / "SVRPG_1"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "time/fps",
        "train/learning_rate",
        "train/gradient_norm",
        "train/direction_norm",
        "train/step_size",
        "train/momentum",
        "train/largest_weight",
        "train/effective_sample_size",
        "train/value_loss",
        "train/explained_variance",
    } <= tags
    assert len(events.Scalars("train/direction_norm")) == model._n_updates


def test_training_statistics_count_each_episode_of_a_batch_once() -> None:
    """Of the eight environments six idle, and end episodes that are not the batch's."""
    env = make_vec_env("CartPole-v1", 8, seed=0)
    model = build(GPOMDP, env, batch_size=2).learn(1)
    assert model.num_timesteps == 8 * model.batch.mask.shape[1]
    lengths = [info["l"] for info in model.ep_info_buffer]  # type: ignore[union-attr]
    assert sorted(lengths) == sorted(model.batch.mask.sum(1).tolist())
    assert model.n_episodes == 2


class Clock(RandomEnv):
    """The observation is the number of steps since the reset."""

    def __init__(self) -> None:
        super().__init__(observation_space=spaces.Box(0.0, np.inf, (1,), np.float32))
        self.time = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**kwargs)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.full(1, self.time, np.float32), *super().step(action)[1:]


@pytest.mark.parametrize("n_envs", [1, 3, 6])
def test_every_episode_of_every_batch_is_whole(n_envs: int) -> None:
    """Also where the batch before left environments in the middle of an episode."""
    model = build(GPOMDP, make_vec_env(Clock, n_envs, seed=0))
    batches: list[TrajectoryBatch] = []
    train = model.train

    def recording() -> None:
        batches.append(model.batch)
        train()

    model.train = recording  # type: ignore[method-assign]
    model.learn(500)
    assert len(batches) > 5
    for batch in batches:
        assert isinstance(batch.observations, torch.Tensor)
        assert batch.observations.flatten().tolist() == [
            float(step) for length in batch.mask.sum(1).tolist() for step in range(length)
        ]


def test_return_and_length_of_sampled_episodes_are_exact_on_average() -> None:
    """Short and long episodes, and environments that idle: no length is favoured. Tolerance four standard errors."""
    mdp = slippery_cliff()
    model = build(GPOMDP, make_vec_env(lambda: EnumerableEnv(mdp), 4, seed=0), gamma=mdp.gamma)
    model.learn(1)
    with torch.no_grad():
        logits = model.policy.get_distribution(torch.arange(mdp.n_states)).distribution.logits.double()  # type: ignore
    everything = mdp.trajectories()
    probabilities, factors = mdp.probabilities(logits, everything), mdp.gamma ** torch.arange(mdp.horizon)
    returns, lengths = [], []
    callback = CallbackList([])
    callback.init_callback(model)
    for _ in range(300):
        assert model.collect_trajectories(callback, 5)
        batch = model.batch
        returns.append((batch.rewards * factors[: batch.rewards.shape[1]]).sum(1).mean())
        lengths.append(batch.mask.sum(1).double().mean())
    for found, exact in (
        (torch.stack(returns), mdp.objective(logits)),
        (torch.stack(lengths), (probabilities * everything.mask.sum(1)).sum()),
    ):
        assert abs(found.mean() - exact) < 4 * found.std() / len(found) ** 0.5


@pytest.mark.parametrize("algorithm", ANCHORED)
def test_second_batch_is_large_since_the_first_statistics_change_the_policy_at_a_leap(
    algorithm: type[EpisodicAlgorithm],
) -> None:
    for normalises in (True, False):
        model = build(algorithm, policy_kwargs={"normalize_observations": normalises})
        model.learn(1)
        assert model._n_updates == 1
        assert (model.recursion.anchor is None) is normalises


def test_an_anchor_stays_the_policy_that_it_was_when_the_statistics_move() -> None:
    model = build(STORMPG).learn(300)
    assert model.recursion.anchor is not None
    observations, actions = torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])
    before = model.action_distribution.with_parameters(model.recursion.anchor, observations, actions)
    current = model.action_distribution(observations, actions)
    model.policy.update_observation_statistics(10.0 * torch.randn(1000, 4))  # type: ignore[operator]
    assert torch.equal(model.action_distribution.with_parameters(model.recursion.anchor, observations, actions), before)
    assert not torch.allclose(model.action_distribution(observations, actions), current)


def test_an_episode_without_end_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storm_rl.episodic.episodic_algorithm.ENDLESS_EPISODE", 50)
    model = build(GPOMDP, Endless())
    with pytest.raises(ValueError, match="TimeLimit"):
        model.learn(1000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"mini_batch_size": 0}, "mini_batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"gamma": 1.5}, "gamma"),
        ({"baseline": "mean"}, "baseline must be one of"),
        ({"estimator": "pgt"}, "estimator"),
        ({"weights": "per_step"}, "weights"),
        ({"max_weight": -1.0}, "max_weight"),
        ({"estimator": "reinforce"}, "weights='trajectory'"),
        ({"max_sub_iterations": 0}, "max_sub_iterations"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(SVRPG, **arguments)


@pytest.mark.parametrize(
    ("algorithm", "argument"),
    [
        (GPOMDP, {"mini_batch_size": 3}),
        (GPOMDP, {"weights": "trajectory"}),
        (GPOMDP, {"max_weight": 2.0}),
        (GPOMDP, {"self_normalise": True}),
        (DEFPG, {"max_weight": 2.0}),
        (DEFPG, {"self_normalise": True}),
        (SVRPG, {"mini_batch_sice": 3}),
    ],
)
def test_arguments_that_an_algorithm_lacks_are_refused_by_name(algorithm: Any, argument: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"keyword argument '{next(iter(argument))}'"):
        algorithm("MlpPolicy", "CartPole-v1", **argument)


def test_defensive_share_and_momentum_are_checked() -> None:
    with pytest.raises(ValueError, match="defensive"):
        build(DEFPG, defensive=1.0)
    with pytest.raises(ValueError, match="momentum"):
        build(STORMPG, momentum=2.0)
    with pytest.raises(ValueError, match="probability"):
        build(PAGEPG, probability=0.0)
    with pytest.raises(ValueError, match="epoch_length"):
        build(SRVRPG, epoch_length=0)


@pytest.mark.parametrize("algorithm", ANCHORED)
def test_anchors_do_not_outlive_their_environment(algorithm: type[EpisodicAlgorithm]) -> None:
    model = build(algorithm).learn(200)
    model.set_env(make_vec_env("CartPole-v1", 1, seed=5))
    assert model.recursion.anchor is None
    assert model.recursion.large_batch
    model.learn(50)


def test_an_anchor_of_another_network_is_a_clear_error() -> None:
    model, other = build(STORMPG).learn(200), build(STORMPG, policy_kwargs={"net_arch": [8]}).learn(200)
    model.recursion.load_state_dict(other.recursion.state_dict())
    with pytest.raises(ValueError, match="anchors must come from this policy"):
        model.learn(100)
