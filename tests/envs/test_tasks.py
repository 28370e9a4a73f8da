import gymnasium as gym
import pytest

from envs import OUTSIDE_TASKS, TASKS, Suite, get_task


@pytest.mark.parametrize("task", [*TASKS.values(), *OUTSIDE_TASKS.values()], ids=[*TASKS, *OUTSIDE_TASKS])
def test_task_is_registered_and_its_threshold_is_within_its_scores(task) -> None:
    assert gym.spec(task.id).max_episode_steps
    low, high = task.score_range
    assert low < task.threshold <= high
    assert task.normalised(low) == 0.0
    assert task.normalised(high) == 1.0
    assert task.budget % task.evaluate_every == 0


def test_twenty_tasks_of_which_six_are_held_out() -> None:
    assert len(set(Suite.ALL.tasks())) == 20
    assert len(Suite.HELD_OUT.tasks()) == 6
    assert {*Suite.HELD_OUT.tasks(), *Suite.DEVELOPMENT.tasks()} == set(Suite.ALL.tasks())
    assert set(Suite.CLASSIC.tasks()) < set(Suite.DEVELOPMENT.tasks())


def test_cliff_walking_ends() -> None:
    env = gym.make("CliffWalkingLimited-v1")
    env.reset(seed=0)
    # Up, against the edge of the grid, for ever.
    ends = [env.step(0)[2:4] for _ in range(200)]
    assert ends[-1] == (False, True)
    assert not any(terminated or truncated for terminated, truncated in ends[:-1])


def test_unknown_task_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'CartPole-v2'.*Pendulum-v1.*Did you mean CartPole-v1"):
        get_task("CartPole-v2")
