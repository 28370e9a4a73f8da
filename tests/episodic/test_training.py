"""Each algorithm learns something, with one seed and a fixed number of env steps."""

import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from storm_rl.episodic import DEFPG, GPOMDP, PAGEPG, SRVRPG, STORMPG, SVRPG
from storm_rl.episodic.episodic_algorithm import EpisodicAlgorithm


@pytest.mark.parametrize("algorithm", [GPOMDP, SVRPG, SRVRPG, STORMPG, PAGEPG, DEFPG])
def test_cart_pole_improves_from_twenty_steps_to_a_hundred(algorithm: type[EpisodicAlgorithm]) -> None:
    sizes = {"batch_size": 10} if algorithm is GPOMDP else {"batch_size": 30, "mini_batch_size": 10}
    model = algorithm(
        "MlpPolicy",
        make_vec_env("CartPole-v1", 10, seed=1),
        learning_rate=1e-2,
        seed=1,
        **sizes,  # type: ignore[arg-type]
    ).learn(20_000)
    mean_return, _ = evaluate_policy(model, make_vec_env("CartPole-v1", 10, seed=100), 20)
    assert mean_return > 100.0
