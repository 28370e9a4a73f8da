import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from storm_rl.common.policies import ObservationStatistics, RunningMeanStd
from storm_rl.storm_plus_pg.rollouts import DiscountedReturnStatistics


def test_batches_merge_to_the_statistics_of_all_samples() -> None:
    samples = np.random.default_rng(0).normal(100.0, 0.1, size=(60, 3))
    running = RunningMeanStd((3,))
    for batch in np.split(samples, [1, 7, 40]):
        running.update(torch.as_tensor(batch))
    np.testing.assert_allclose(running.mean, samples.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(running.var, samples.var(axis=0), rtol=1e-9)
    assert running.count == 60


def test_an_empty_batch_changes_nothing() -> None:
    running = RunningMeanStd((2,))
    running.update(torch.zeros(0, 2))
    assert running.count == 0
    assert not running.mean.any()


def test_vectors_are_standardised_and_categories_are_not() -> None:
    space = spaces.Dict({"a.b": spaces.Box(-9.0, 9.0, (2,)), "kind": spaces.Discrete(3)})
    statistics = ObservationStatistics(space)
    batch = {"a.b": torch.tensor([[1.0, 5.0], [3.0, 5.0]]), "kind": torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}
    statistics.update(batch)
    result = statistics(batch)
    torch.testing.assert_close(result["a.b"], torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    assert result["kind"] is batch["kind"]


def test_images_are_left_to_sb3() -> None:
    statistics = ObservationStatistics(spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8))
    image = torch.rand(1, 3, 36, 36)
    statistics.update(image)
    assert torch.equal(statistics(image), image)


def test_return_scale_agrees_with_vec_normalize() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=3, seed=0), gamma=0.9)
    statistics = DiscountedReturnStatistics(gamma=0.9, n_envs=3)
    env.reset()
    for _ in range(4):
        rewards, dones = np.zeros((60, 3)), np.zeros((60, 3), dtype=bool)
        for step in range(60):
            _, _, dones[step], _ = env.step(np.zeros((3, 1)))
            rewards[step] = env.get_original_reward()
        statistics.add_rollout(torch.from_numpy(rewards), torch.from_numpy(dones), torch.from_numpy(dones))
    # VecNormalize starts with a pseudo-count of 1e-4 samples of variance 1.
    assert statistics.scale == pytest.approx(np.sqrt(env.ret_rms.var), rel=1e-4)


def test_return_statistics_continue_after_a_state_dict_round_trip() -> None:
    first, second = DiscountedReturnStatistics(0.9, 2), DiscountedReturnStatistics(0.9, 2)
    rewards = torch.from_numpy(np.random.default_rng(0).normal(size=(10, 2)))
    dones = torch.zeros(10, 2, dtype=torch.bool)
    first.add_rollout(rewards[:5], dones[:5], dones[:5])
    second.load_state_dict(first.state_dict())
    first.add_rollout(rewards[5:], dones[5:], dones[5:])
    second.add_rollout(rewards[5:], dones[5:], dones[5:])
    assert first.scale == second.scale


def test_scale_is_one_without_variance() -> None:
    statistics = DiscountedReturnStatistics(0.9, 1)
    assert statistics.scale == 1.0
    statistics.add_rollout(torch.zeros(5, 1), *[torch.zeros(5, 1, dtype=torch.bool)] * 2)
    assert statistics.scale == 1.0
