"""An actor does for its environments what one process with all of them does, and its rollouts are whole."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env

from storm_rl import STORMPlusPG
from tests.contract.cases import ACTION_SPACES, OBSERVATION_SPACES, VECTOR, RandomEnv

pytest.importorskip("ray")

from storm_rl.distributed.actor import Acting, Recording, RolloutActor, Start
from storm_rl.distributed.distributed_storm_plus_pg import _ACTING_ARGUMENTS, estimated_kl

N_ENVS, N_STEPS, ROUNDS = 6, 16, 3
CASES = [(action_space, VECTOR, {}) for action_space in ACTION_SPACES]
CASES += [(spaces.Discrete(3), OBSERVATION_SPACES[name], {}) for name in ("image", "dict", "discrete")]
CASES += [
    (spaces.Box(-1.0, 1.0, (2,)), VECTOR, arguments) for arguments in ({"use_sde": False}, {"sde_sample_freq": 5})
]


def env_of(action_space: spaces.Space[Any], observation_space: spaces.Space[Any]) -> RandomEnv:
    """Each with a space of its own, which it draws observations from."""
    return RandomEnv(action_space, copy.deepcopy(observation_space))


def learner_of(action_space: spaces.Space[Any], observation_space: spaces.Space[Any], **arguments: Any) -> STORMPlusPG:
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    env = make_vec_env(lambda: env_of(action_space, observation_space), N_ENVS, seed=0)
    sizes = {"n_steps": N_STEPS, "policy_kwargs": {"net_arch": [8]}, "use_action_values": False}
    return STORMPlusPG(policy, env, seed=0, device="cpu", **sizes, **arguments)


def actors_of(
    action_space: spaces.Space[Any], observation_space: spaces.Space[Any], n_actors: int = 2
) -> list[RolloutActor]:
    width = N_ENVS // n_actors
    make = [lambda: env_of(action_space, observation_space)] * width
    actors = [RolloutActor(make, index * width, seed=1) for index in range(n_actors)]
    for index, actor in enumerate(actors):
        actor.reset(index * width)
    return actors


def sent(model: STORMPlusPG, n_envs: int | None = N_ENVS) -> tuple[Acting, dict[str, Any], Start]:
    arguments = {name: getattr(model, name) for name in _ACTING_ARGUMENTS}
    run_state = {name: part for name, part in model._run_state().items() if name in ("exploration_noise", "noise_age")}
    parameters = {name: part.numpy() for name, part in model.policy.state_dict().items()}
    return Acting("learner", type(model.policy), arguments, n_envs), parameters, Start(torch.get_rng_state(), run_state)


@pytest.mark.parametrize(("action_space", "observation_space", "arguments"), CASES, ids=str)
def test_rollouts_of_two_actors_are_those_of_one_process_bit_for_bit(
    action_space: spaces.Space[Any], observation_space: spaces.Space[Any], arguments: dict[str, Any]
) -> None:
    model = learner_of(action_space, observation_space, **arguments)
    actors = actors_of(action_space, observation_space)
    model._setup_learn(10_000)
    callback = CallbackList([])
    callback.init_callback(model)
    for _ in range(ROUNDS):
        acting, parameters, start = sent(model)
        recordings: list[Recording] = [actor.collect(acting, parameters, start, 0)[1] for actor in actors]
        torch.set_rng_state(start.torch_state)
        model.collect_rollouts(model.get_env(), callback, model.rollout_buffer, N_STEPS)  # type: ignore[arg-type]
        expected = model.window.newest

        def of_all(name: str, recordings: list[Recording] = recordings) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([getattr(one, name) for one in recordings], axis=1))

        assert torch.equal(of_all("log_prob"), expected.log_prob)
        assert torch.equal(of_all("rewards").float(), expected.rewards)
        assert torch.equal(of_all("dones"), expected.dones)
        assert torch.equal(of_all("actions").reshape(expected.actions.shape), expected.actions)
        assert all(torch.equal(one.torch_state, torch.get_rng_state()) for one in recordings)
        # Another process takes the place of the first, in the middle of gSDE's noise.
        fresh = actors_of(action_space, observation_space)[0]
        fresh.restore(actors[0].state())
        actors[0] = fresh
        with torch.no_grad():  # As an update does.
            for part in model.policy.parameters():
                part.add_(0.1)


def test_own_random_numbers_go_on_from_rollout_to_rollout() -> None:
    model = learner_of(spaces.Discrete(3), VECTOR)
    actor, again = *actors_of(spaces.Discrete(3), VECTOR)[:1], *actors_of(spaces.Discrete(3), VECTOR)[:1]
    acting, parameters, _ = sent(model, None)

    def rollouts(actor: RolloutActor) -> list[Recording]:
        return [actor.collect(acting, parameters, None, number)[1] for number in range(2)]

    first, second = rollouts(actor)
    assert not np.array_equal(first.actions, second.actions)
    # The same again from the same seed.
    assert [one.actions.tolist() for one in rollouts(again)] == [first.actions.tolist(), second.actions.tolist()]
    # The stretch is whole: the second rollout begins where the first one ended.
    np.testing.assert_array_equal(second.first_observations, first.observations[-1])
    np.testing.assert_array_equal(second.first_starts, first.dones[-1])
    assert first.actions.shape == (N_STEPS, 3)


def test_numbers_that_nobody_can_learn_from_are_refused_where_they_arise() -> None:
    model = learner_of(spaces.Discrete(3), VECTOR)
    actor = RolloutActor([lambda: RandomEnv(fault=("reward", float("nan"), 3), action_space=spaces.Discrete(3))], 0, 1)
    with pytest.raises(ValueError, match="environment 0 gave reward nan"):
        actor.collect(*sent(model, None)[:2], None, 0)


def test_estimated_kl_is_the_exact_one_on_average_and_zero_for_one_policy() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.log_softmax(torch.randn(4, generator=generator, dtype=torch.float64), 0) for _ in range(2))
    exact = float((before.exp() * (before - after)).sum())
    # Over all actions by their probability: the expectation itself.
    ratio = after - before
    assert float((before.exp() * (ratio.expm1() - ratio)).sum()) == pytest.approx(exact, rel=1e-12)
    actions = torch.multinomial(before.exp(), 20_000, replacement=True, generator=generator)
    terms = (ratio.expm1() - ratio)[actions]
    error = float(terms.std()) / len(actions) ** 0.5
    assert abs(estimated_kl(before[actions], after[actions]) - exact) < 4.0 * error
    assert estimated_kl(before[actions], before[actions]) == 0.0
