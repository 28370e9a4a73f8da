import numpy as np
import pytest
import torch

from storm_rl.episodic.episodes import EpisodeQuota, EpisodeRecorder


def test_batch_is_the_first_episodes_to_start_and_short_ones_are_not_favoured() -> None:
    """Environment 0 always plays a long episode, environment 1 short ones: the long one is in the batch."""
    quota = EpisodeQuota(n_envs=2, n_episodes=3)
    for step in range(1, 6):
        quota.record(np.array([step == 5, step in (1, 3, 4)]))
    assert quota.filled
    assert quota.spans == [(0, 0, 5), (1, 0, 1), (1, 1, 3)]
    assert quota.idle_steps == 2


def test_mean_length_of_the_batch_is_the_mean_of_all_episodes() -> None:
    """The first to end would give 2.3 here in place of 5.5; tolerance four standard errors."""
    generator = np.random.default_rng(0)
    means = []
    for _ in range(2000):
        quota = EpisodeQuota(n_envs=4, n_episodes=5)
        left = generator.choice([1, 10], size=4)
        while not quota.filled:
            left -= 1
            dones = left == 0
            left[dones] = generator.choice([1, 10], size=int(dones.sum()))
            quota.record(dones)
        means.append(np.mean([end - begin for _, begin, end in quota.spans]))
    assert abs(np.mean(means) - 5.5) < 4 * np.std(means) / np.sqrt(len(means))


def test_more_environments_than_episodes_leaves_some_idle() -> None:
    quota = EpisodeQuota(n_envs=3, n_episodes=1)
    assert quota.playing.tolist() == [0, -1, -1]
    quota.record(np.array([True, True, True]))
    assert quota.filled
    assert quota.idle_steps == 2


@pytest.mark.parametrize("as_dict", [False, True])
def test_episodes_are_cut_out_of_the_vector_steps(as_dict: bool) -> None:
    recorder = EpisodeRecorder(n_envs=2, n_episodes=3)
    observations, actions, rewards = np.zeros((2, 1)), np.zeros(2, dtype=np.int64), np.zeros(2)
    for step in range(4):
        # One array for all steps, as some VecEnvs have.
        observations[:], actions[:], rewards[:] = [[step], [10 + step]], [step, -step], [0.5, 1.0 + step]
        recorder.record(
            {"x": observations} if as_dict else observations,
            actions,
            rewards,
            np.array([step == 2, step in (0, 3)]),
        )
    batch = recorder.batch(torch.device("cpu"))
    kept = batch.observations["x"] if isinstance(batch.observations, dict) else batch.observations
    assert kept.flatten().tolist() == [0, 1, 2, 10, 11, 12, 13]
    assert batch.actions.tolist() == [0, 1, 2, 0, -1, -2, -3]
    assert batch.rewards.tolist() == [[0.5, 0.5, 0.5], [1.0, 0.0, 0.0], [2.0, 3.0, 4.0]]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False], [True] * 3]
    assert recorder.idle_fraction == 1 / 8
