from importlib.resources import files

import pytest
import yaml
from sb3_contrib import ARS, QRDQN, TQC, TRPO
from stable_baselines3 import A2C, DQN, PPO, SAC

from agents import get_contestant
from agents.ablations import ABLATIONS
from agents.zoo import zoo_row
from envs import TASKS
from envs.batched import BatchedEnv, make_vec
from storm_rl import STORMPlusPG


def test_storm_plus_pg_has_nothing_set_but_seed_and_environments() -> None:
    model = get_contestant("storm_plus_pg").build("Pendulum-v1", 3, None)
    assert isinstance(model, STORMPlusPG)
    default = STORMPlusPG("MlpPolicy", model.get_env(), seed=3, device="cpu")
    for name in vars(default):
        if isinstance(getattr(default, name), (int, float, str, bool, type(None), dict)) and name != "start_time":
            assert getattr(model, name) == getattr(default, name), name
    assert model.n_envs == 8


@pytest.mark.parametrize("task_id", TASKS)
def test_ppo_has_the_installed_zoos_settings(task_id: str) -> None:
    sections = yaml.safe_load((files("rl_zoo3") / "hyperparams" / "ppo.yml").read_text())
    settings = sections.get(task_id, sections["default"])
    model = get_contestant("ppo_zoo").build(task_id, 5, None)
    assert isinstance(model, PPO)
    assert model.n_envs == settings.get("n_envs", 1)
    for name in ("n_steps", "gamma", "gae_lambda", "n_epochs", "ent_coef", "batch_size", "use_sde", "vf_coef"):
        if name in settings:
            assert getattr(model, name) == settings[name], name
    assert (model.get_vec_normalize_env() is not None) == settings.get("normalize", False)
    rate = settings.get("learning_rate", 3e-4)
    expected, at_end = (float(rate.removeprefix("lin_")), 0.0) if isinstance(rate, str) else (rate, rate)
    assert model.lr_schedule(1.0) == pytest.approx(expected)
    assert model.lr_schedule(0.0) == pytest.approx(at_end)


@pytest.mark.parametrize(("name", "algorithm"), [("a2c_zoo", A2C), ("trpo_zoo", TRPO)])
def test_the_zoos_other_agents_have_its_settings(name: str, algorithm: type) -> None:
    file = files("rl_zoo3") / "hyperparams" / f"{name.removesuffix('_zoo')}.yml"
    settings = yaml.safe_load(file.read_text())["Pendulum-v1"]
    model = get_contestant(name).build("Pendulum-v1", 5, None)
    assert type(model) is algorithm
    assert (model.n_envs, model.gamma, model.n_steps) == tuple(settings[key] for key in ("n_envs", "gamma", "n_steps"))
    assert (model.get_vec_normalize_env() is not None) == settings.get("normalize", False)


@pytest.mark.parametrize(
    ("algorithm", "task_id", "row"),
    [
        ("sac", "Hopper-v5", "Hopper-v4"),
        ("ppo", "Reacher-v5", "Reacher-v2"),
        ("ppo", "Hopper-v5", "Hopper-v4"),
        ("tqc", "Reacher-v5", None),
        ("dqn", "Taxi-v4", None),
        ("ppo", "default-v1", None),
        ("ppo", "CartPole-v1", "CartPole-v1"),
    ],
)
def test_zoos_row_for_a_task_is_its_own_or_that_of_another_version(
    algorithm: str, task_id: str, row: str | None
) -> None:
    assert zoo_row(algorithm, task_id) == row


@pytest.mark.parametrize(
    ("name", "algorithm", "task_id"),
    [
        ("sac_zoo", SAC, "Pendulum-v1"),
        ("tqc_zoo", TQC, "MountainCarContinuous-v0"),
        ("dqn_zoo", DQN, "CartPole-v1"),
        ("qrdqn_zoo", QRDQN, "Acrobot-v1"),
        ("ars_zoo", ARS, "CartPole-v1"),
        ("dqn_zoo", DQN, "Taxi-v4"),
    ],
)
def test_value_based_agents_and_random_search_are_the_zoos(name: str, algorithm: type, task_id: str) -> None:
    sections = yaml.safe_load((files("rl_zoo3") / "hyperparams" / f"{name.removesuffix('_zoo')}.yml").read_text())
    settings = sections.get(task_id, sections["default"])
    model = get_contestant(name).build(task_id, 5, None)
    assert type(model) is algorithm
    for key in ("batch_size", "gamma", "n_delta", "target_update_interval", "learning_starts"):
        if key in settings:
            assert getattr(model, key) == settings[key], key
    assert model.get_env().envs[0].spec.id == task_id


def test_agents_play_what_their_actions_allow() -> None:
    assert get_contestant("sac_zoo").plays("Pendulum-v1")
    assert not get_contestant("sac_zoo[gamma=0.9]").plays("CartPole-v1")
    assert get_contestant("dqn_zoo").plays("CartPole-v1")
    assert not get_contestant("dqn_zoo").plays("Pendulum-v1")
    assert all(get_contestant("ppo_zoo").plays(task) for task in TASKS)


def test_ppo_default_has_nothing_set_but_seed_and_environments() -> None:
    model = get_contestant("ppo_default").build("Acrobot-v1", 3, None)
    default = PPO("MlpPolicy", model.get_env(), seed=3, device="cpu")
    assert (model.n_envs, model.seed) == (8, 3)
    for name in (
        "n_steps",
        "batch_size",
        "n_epochs",
        "gamma",
        "gae_lambda",
        "learning_rate",
        "ent_coef",
        "policy_kwargs",
    ):
        assert getattr(model, name) == getattr(default, name), name


@pytest.mark.parametrize("name", ["storm_plus_pg", "ppo_default", "svrpg"])
def test_agents_with_defaults_accept_the_batched_environments(name: str) -> None:
    contestant = get_contestant(name)
    assert isinstance(contestant.build("CartPole-v1", 0, None, make_env=make_vec).get_env(), BatchedEnv)
    assert not contestant.own_environments


def test_every_ablation_can_be_built() -> None:
    for name in ABLATIONS:
        assert isinstance(get_contestant(name).build("CartPole-v1", 0, None), STORMPlusPG)


def test_variant_replaces_arguments() -> None:
    variant = get_contestant("storm_plus_pg[momentum=1.0,policy_kwargs={'log_std_init':-0.5}]")
    model = variant.build("Pendulum-v1", 0, None)
    assert (model.momentum, model.policy.log_std_init) == (1.0, -0.5)
    assert variant.label == "STORM+PG [momentum=1.0,policy_kwargs={'log_std_init':-0.5}]"


def test_unknown_agent_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'ppo_zo'.*storm_plus_pg.*Did you mean ppo_zoo"):
        get_contestant("ppo_zo")


@pytest.mark.parametrize("name", ["ppo_zoo[gamma]", "ppo_zoo[gamma=0.9", "ppo_zoo[gamma=open('x')]"])
def test_variant_that_is_not_literal_arguments_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot read the arguments"):
        get_contestant(name)
