"""Any value of any argument, and any spaces: a clear error or a finite update, never a crash deep inside."""

import math
import traceback
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from storm_rl import STORMPlusPG
from storm_rl.common.resumable_algorithm import constructor_parameters
from tests.contract.cases import ALGORITHMS, VECTOR, RandomEnv, parameters, small

for_all = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)

# The same examples every time.
bounded = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), max_examples=80
)

VALUES = st.one_of(
    st.sampled_from([None, True, "x", "", math.nan, math.inf, -math.inf, 1e-300, 1e300, -1, 0, 1, 2, np.float32(0.5)]),
    st.sampled_from([np.int64(3), [1], (), {}, torch.tensor(1.0), lambda remaining: 1e-3]),
    st.integers(-5, 40),
    st.floats(-2.0, 2.0),
)

# What SB3 alone decides on, or what is no number or choice.
NOT_FUZZED = {"self", "policy", "env", "device", "verbose", "tensorboard_log", "_init_setup_model", "policy_kwargs"}
NOT_FUZZED |= {"rollout_buffer_class", "rollout_buffer_kwargs"}


def check(algorithm: Any, words: list[str], env: Any, policy: str = "MlpPolicy", **arguments: Any) -> None:
    """Build and train; errors must be ours and hold one of ``words``."""
    error: Exception | None = None
    try:
        model = small(algorithm, env, policy, **arguments).learn(40)
    except (ValueError, TypeError) as caught:
        error = caught
    if error is None:
        assert torch.isfinite(parameters(model)).all()
        return
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    assert "storm_rl" in raised_in or "base_class" in raised_in, (raised_in, error)
    assert any(word in str(error) for word in words), (words, str(error))


@pytest.mark.slow
@for_all
def test_any_value_of_any_argument_trains_or_is_named(algorithm: Any) -> None:
    names = sorted(set(constructor_parameters(algorithm)) - NOT_FUZZED)

    @bounded
    @given(name=st.sampled_from(names), value=VALUES)
    def run(name: str, value: Any) -> None:
        if name == "n_steps" and isinstance(value, int) and value > 40:
            return
        check(algorithm, [name, "gSDE"], DummyVecEnv([RandomEnv]), **{name: value})

    run()


@st.composite
def box(draw: Any, bounded_above: bool = False) -> spaces.Box:
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int32, np.uint8]))
    low, high = draw(st.sampled_from([(0, 1), (0, 255), (1, 1), (-np.inf, np.inf), (-1, np.inf)]))
    if np.issubdtype(dtype, np.integer):
        low, high = max(low, 0), min(high, 255)
    return spaces.Box(low, high, shape, dtype)


SIMPLE = st.one_of(
    box(),
    st.builds(spaces.Discrete, st.integers(1, 4), start=st.sampled_from([0, 0, 0, 1])),
    st.builds(spaces.MultiDiscrete, st.sampled_from([[2], [1, 3], [2, 2, 2], [[2, 3], [2, 2]]])),
    st.builds(spaces.MultiBinary, st.sampled_from([1, 3, (2, 2)])),
)
OBSERVATIONS = st.one_of(
    SIMPLE,
    st.dictionaries(st.sampled_from(["a", "b.c", ""]), SIMPLE, max_size=2).map(spaces.Dict),
    st.just(spaces.Tuple([VECTOR])),
    st.just(spaces.Text(3)),
    st.just(spaces.Dict({"a": spaces.Dict({"b": VECTOR})})),
)


def _floats_if_box(space: spaces.Space[Any]) -> bool:
    # SB3 hands floats to environments with boxes of integers too, and so do we.
    return not isinstance(space, spaces.Box) or np.issubdtype(space.dtype, np.floating)


@pytest.mark.parametrize("algorithm", [STORMPlusPG, ALGORITHMS[2], ALGORITHMS[-1]], ids=lambda kind: kind.__name__)
def test_any_spaces_and_policy_train_or_are_named(algorithm: Any) -> None:
    @settings(bounded, max_examples=120)
    @given(
        observations=OBSERVATIONS,
        actions=SIMPLE.filter(_floats_if_box),
        policy=st.sampled_from(["MlpPolicy", "MlpPolicy", "MultiInputPolicy", "CnnPolicy"]),
    )
    def run(observations: Any, actions: Any, policy: str) -> None:
        if isinstance(observations, spaces.Dict):
            policy = "MultiInputPolicy"
        check(algorithm, ["space", "Policy", "image"], RandomEnv(actions, observations), policy)

    run()
