import gymnasium as gym
import pytest

from envs import OUTSIDE_TASKS, TASKS, get_task


@pytest.mark.parametrize("task", [*TASKS.values(), *OUTSIDE_TASKS.values()], ids=[*TASKS, *OUTSIDE_TASKS])
def test_task_is_registered_and_its_threshold_is_within_its_scores(task) -> None:
    assert gym.spec(task.id).max_episode_steps
    low, high = task.score_range
    assert low < task.threshold <= high
    assert task.normalised(low) == 0.0
    assert task.normalised(high) == 1.0
    assert task.budget % task.evaluate_every == 0


def test_unknown_task_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'CartPole-v2'.*Pendulum-v1.*Did you mean CartPole-v1"):
        get_task("CartPole-v2")
