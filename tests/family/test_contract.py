"""What Stable-Baselines3 expects of an algorithm, for every algorithm that learns from whole trajectories."""

import io
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from storm_rl.common.trajectory_algorithm import TrajectoryAlgorithm
from storm_rl.defpg import DEFPG
from storm_rl.gpomdp import GPOMDP
from storm_rl.pagepg import PAGEPG
from storm_rl.srvrpg import SRVRPG
from storm_rl.stormpg import STORMPG
from storm_rl.svrpg import SVRPG

ALGORITHMS: list[type[TrajectoryAlgorithm]] = [GPOMDP, SVRPG, SRVRPG, STORMPG, PAGEPG, DEFPG]
ANCHORED = [algorithm for algorithm in ALGORITHMS if algorithm is not GPOMDP]


class ShortEpisodes(gym.Env[Any, Any]):
    """Episodes of random length that pay for nothing in particular; any spaces."""

    def __init__(
        self, action_space: spaces.Space, observation_space: spaces.Space | None = None, endless: bool = False
    ) -> None:
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,), np.float32)
        self.endless = endless

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is outside {self.action_space}")
        ended = not self.endless and self.np_random.random() < 0.3
        return self.observation_space.sample(), float(np.sum(action)), ended, False, {}


def build(algorithm: type[TrajectoryAlgorithm], env: Any = "CartPole-v1", **arguments: Any) -> TrajectoryAlgorithm:
    sizes: dict[str, Any] = {"batch_size": 4}
    if algorithm is not GPOMDP:
        sizes["mini_batch_size"] = 3
    policy = arguments.pop("policy", "MlpPolicy")
    return algorithm(policy, env, **{"seed": 0, **sizes, **arguments})


def parameters(model: TrajectoryAlgorithm) -> torch.Tensor:
    return torch.cat([values.detach().flatten() for values in model.policy.parameters()])


ACTION_SPACES = [
    spaces.Box(-2, 2, (2,), np.float32),
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(2),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("space", ACTION_SPACES, ids=lambda space: type(space).__name__)
def test_all_action_spaces_can_be_learned_in_and_predicted(
    algorithm: type[TrajectoryAlgorithm], space: spaces.Space
) -> None:
    env = make_vec_env(lambda: ShortEpisodes(space), 2, seed=0)
    model = build(algorithm, env)
    before = parameters(model)
    model.learn(80)
    assert model._n_updates >= 3
    assert not torch.equal(before, parameters(model))
    action, _ = model.predict(env.observation_space.sample(), deterministic=True)
    assert space.contains(action)


def test_dict_observations_and_images() -> None:
    observation = spaces.Dict(
        {"position": spaces.Box(-1, 1, (2,), np.float32), "image": spaces.Box(0, 255, (36, 36, 1), np.uint8)}
    )
    env = make_vec_env(lambda: ShortEpisodes(spaces.Discrete(2), observation), 2, seed=0)
    model = build(SVRPG, env, policy="MultiInputPolicy", baseline="state_value").learn(60)
    assert model._n_updates >= 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_actor_critic_policy_of_stable_baselines_will_do(algorithm: type[TrajectoryAlgorithm]) -> None:
    model = build(algorithm, policy=ActorCriticPolicy, baseline="state_value")
    before = parameters(model)
    model.learn(400)
    assert not torch.equal(before, parameters(model))


class Recorder(BaseCallback):
    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.events: list[str] = []
        self.steps: list[int] = []

    def _on_rollout_start(self) -> None:
        self.events.append("start")

    def _on_rollout_end(self) -> None:
        self.events.append("end")

    def _on_step(self) -> bool:
        for name in ("new_obs", "dones", "rewards", "infos", "actions"):
            assert name in self.locals
        self.steps.append(self.num_timesteps)
        return self.stop_at is None or self.num_timesteps < self.stop_at


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_callback_for_each_vector_step_and_a_stop_is_a_stop(algorithm: type[TrajectoryAlgorithm]) -> None:
    env = make_vec_env("CartPole-v1", 3, seed=0)
    recorder = Recorder()
    model = build(algorithm, env).learn(300, callback=recorder)
    assert recorder.steps == list(range(3, model.num_timesteps + 1, 3))
    assert model.num_timesteps >= 300
    assert recorder.events == ["start", "end"] * (len(recorder.events) // 2)
    stopped = Recorder(stop_at=120)
    model = build(algorithm, env).learn(100_000, callback=stopped)
    assert model.num_timesteps == 120 == stopped.steps[-1]
    model.learn(60, reset_num_timesteps=False)
    assert model.num_timesteps >= 180


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loaded_model_continues_as_the_saved_one_would(algorithm: type[TrajectoryAlgorithm], tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 2, seed=0)
    model = build(algorithm, env, baseline="state_value").learn(200)
    if algorithm is STORMPG:
        assert not model.recursion.large_batch
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env)
    assert torch.equal(parameters(model), parameters(loaded))
    assert model.recursion.large_batch == loaded.recursion.large_batch
    assert model.recursion.anchor is not None
    assert loaded.recursion.anchor is not None
    for name, values in model.recursion.anchor.items():
        assert torch.equal(values, loaded.recursion.anchor[name])
    for each in (model, loaded):
        each.set_random_seed(3)
        each._last_obs = None
        each.learn(120, reset_num_timesteps=False)
    assert model.num_timesteps == loaded.num_timesteps
    assert torch.equal(parameters(model), parameters(loaded))


def test_saved_state_can_be_read_with_weights_only(tmp_path: Path) -> None:
    model = build(SVRPG).learn(200)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".pth")]
        for name in names:
            torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    assert {"recursion.pth", "snapshot_optimizer.pth", "actor_optimizer.pth"} <= set(names)


def test_a_checkpoint_in_the_middle_of_a_batch_can_be_resumed(tmp_path: Path) -> None:
    model = build(SRVRPG, epoch_length=50)
    model.learn(150, callback=CheckpointCallback(37, str(tmp_path)))
    loaded = SRVRPG.load(tmp_path / "rl_model_148_steps", env=model.get_env())
    assert loaded.num_timesteps == 148
    loaded.learn(50, reset_num_timesteps=False)
    assert torch.isfinite(parameters(loaded)).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_same_seed_same_run(algorithm: type[TrajectoryAlgorithm]) -> None:
    first, second = (build(algorithm, seed=7).learn(200) for _ in range(2))
    assert torch.equal(parameters(first), parameters(second))
    assert not torch.equal(parameters(first), parameters(build(algorithm, seed=8).learn(200)))


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


def test_schedule_and_progress_bar() -> None:
    seen: list[float] = []

    def schedule(remaining: float) -> float:
        seen.append(remaining)
        return 1e-3 * remaining

    model = build(SVRPG, learning_rate=schedule).learn(200, progress_bar=True)
    assert model.snapshot_optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * seen[-1])  # type: ignore[attr-defined]
    assert seen[-1] < 0.5


def test_training_statistics_count_each_episode_of_a_batch_once() -> None:
    env = make_vec_env("CartPole-v1", 3, seed=0)
    model = build(GPOMDP, env, batch_size=5).learn(1)
    assert len(model.ep_info_buffer) == model.n_episodes == 5  # type: ignore[arg-type]
    model.learn(1, reset_num_timesteps=False)
    assert model.n_episodes in (5, 10)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_works_behind_vec_normalize(algorithm: type[TrajectoryAlgorithm]) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    assert build(algorithm, env).learn(100)._n_updates >= 1


def test_an_episode_without_end_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storm_rl.common.trajectory_algorithm._ENDLESS_EPISODE", 50)
    model = build(GPOMDP, ShortEpisodes(spaces.Discrete(2), endless=True))
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
        ({"weight_truncation": -1.0}, "weight_truncation"),
        ({"estimator": "reinforce"}, "weights='trajectory'"),
        ({"max_sub_iterations": 0}, "max_sub_iterations"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(SVRPG, **arguments)


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
def test_anchors_do_not_outlive_their_environment(algorithm: type[TrajectoryAlgorithm]) -> None:
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


def test_a_reward_that_is_not_finite_is_an_error() -> None:
    class Poisoned(ShortEpisodes):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, _, *rest = super().step(action)
            return observation, float("nan"), *rest  # type: ignore[return-value]

    with pytest.raises(ValueError, match="not finite"):
        build(GPOMDP, Poisoned(spaces.Discrete(2))).learn(100)
