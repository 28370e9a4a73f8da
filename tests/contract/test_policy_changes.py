"""What a user changes about a policy holds while it is trained: freezing, own networks, hooks, overrides, surgery."""

import types
import warnings
from typing import Any

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, prune

from storm_rl import GPOMDP, SVRPG, STORMPlusPG
from storm_rl.common.parameters import parameters_behind
from storm_rl.common.policies import StandardisedActorCriticPolicy
from storm_rl.storm_plus_pg.numpy_actor_critic import NumpyActorCritic
from storm_rl.storm_plus_pg.recursion import PolicyRecursion

SMALL: dict[type[Any], dict[str, Any]] = {
    STORMPlusPG: {"n_steps": 32, "critic_steps": 4},
    GPOMDP: {"batch_size": 2, "baseline": "state_value"},
    SVRPG: {"batch_size": 2, "mini_batch_size": 2, "baseline": "state_value"},
}
ALGORITHMS = pytest.mark.parametrize("algorithm", SMALL, ids=lambda algorithm: algorithm.__name__)


def make(algorithm: type[Any], policy: Any = "MlpPolicy", env: str = "CartPole-v1", **policy_kwargs: Any) -> Any:
    return algorithm(policy, env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **SMALL[algorithm])


def values_of(policy: nn.Module) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in policy.named_parameters()}


def moved(policy: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, values in policy.named_parameters() if not torch.equal(values, before[name])}


class Extractor(BaseFeaturesExtractor):
    def __init__(self, space: spaces.Box, frozen: bool = False) -> None:
        super().__init__(space, 6)
        self.net = nn.Sequential(nn.Linear(space.shape[0], 6), nn.BatchNorm1d(6), nn.Tanh())
        self.net.requires_grad_(not frozen)

    def forward(self, observations: Tensor) -> Tensor:
        features: Tensor = self.net(observations)
        return features


class Network(nn.Module):
    """Neither the names nor the number of layers of SB3's ``MlpExtractor``."""

    def __init__(self, n_inputs: int, shared: bool = False) -> None:
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 5
        self.first_pi = nn.Linear(n_inputs, 5)
        self.first_vf = self.first_pi if shared else nn.Linear(n_inputs, 5)
        self.actor, self.critic = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return torch.tanh(self.actor(torch.tanh(self.first_pi(features))))

    def forward_critic(self, features: Tensor) -> Tensor:
        return torch.tanh(self.critic(torch.tanh(self.first_vf(features))))


class OwnNetwork(StandardisedActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = Network(self.features_dim)  # type: ignore[assignment]


class SharedNetwork(StandardisedActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = Network(self.features_dim, shared=True)  # type: ignore[assignment]


class Temperature(StandardisedActorCriticPolicy):
    """Has a parameter that its constructor adds last, and one that nothing uses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_temperature, self.unused = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Any:
        logits = self.action_net(latent_pi) / self.log_temperature.exp()
        return self.action_dist.proba_distribution(action_logits=logits)  # type: ignore[call-arg]


FROZEN = {
    "first layer": "mlp_extractor.policy_net.0",
    "actor": "mlp_extractor.policy_net, action_net, log_std",
    "noise": "log_std",
    "critic": "mlp_extractor.value_net, value_net",
    "value head": "value_net",
}


@ALGORITHMS
@pytest.mark.parametrize("part", FROZEN)
def test_frozen_parameters_stay_and_all_others_learn(algorithm: type[Any], part: str) -> None:
    model = make(algorithm, env="Pendulum-v1" if algorithm is STORMPlusPG else "CartPole-v1")
    names = [name for name in values_of(model.policy) if name.startswith(tuple(FROZEN[part].split(", ")))]
    for name in names:
        model.policy.get_parameter(name).requires_grad_(False)
    before = values_of(model.policy)
    model.learn(128)
    assert moved(model.policy, before) == {name for name in before if name not in names}


@ALGORITHMS
def test_frozen_features_extractors_stay_and_the_layers_behind_them_learn(algorithm: type[Any]) -> None:
    kwargs = {"features_extractor_class": Extractor, "features_extractor_kwargs": {"frozen": True}}
    model = make(algorithm, **kwargs)
    before = values_of(model.policy)
    model.learn(128)
    assert not {name for name in moved(model.policy, before) if "features_extractor" in name}
    assert "action_net.weight" in moved(model.policy, before)


@ALGORITHMS
def test_a_frozen_layer_learns_again_when_it_is_set_free(algorithm: type[Any]) -> None:
    model = make(algorithm)
    layer = model.policy.mlp_extractor.policy_net[0].requires_grad_(False)
    model.learn(128)
    layer.requires_grad_(True)
    before = layer.weight.detach().clone()
    model.learn(128, reset_num_timesteps=False)
    assert not torch.equal(layer.weight, before)


@ALGORITHMS
def test_a_file_of_a_run_with_frozen_layers_is_gone_on_with(algorithm: type[Any], tmp_path: Any) -> None:
    model = make(algorithm)
    model.policy.action_net.requires_grad_(False)
    model.learn(128)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.get_env(), device="cpu")
    before = values_of(loaded.policy)
    loaded.learn(128, reset_num_timesteps=False)
    assert "action_net.weight" in moved(loaded.policy, before)


def test_statistics_stay_with_a_frozen_first_layer_and_move_with_a_free_one() -> None:
    for frozen in (True, False):
        model = make(STORMPlusPG)
        model.learn(32)
        mean = model.policy.observation_statistics.running["obs_"].mean
        model.policy.mlp_extractor.policy_net[0].requires_grad_(not frozen)
        before = mean.clone()
        model.learn(32, reset_num_timesteps=False)
        assert torch.equal(mean, before) == frozen


def test_the_recursion_begins_again_where_other_parameters_are_trained() -> None:
    recursion, layer = PolicyRecursion(), nn.Linear(3, 2)
    both = list(layer.parameters())
    recursion.follow_parameters(both)
    recursion.next_direction(torch.zeros(8), torch.randn(2, 8), None)
    recursion.follow_parameters(both)
    assert recursion.direction is not None
    recursion.follow_parameters(both[:1])
    assert recursion.direction is None
    loaded = PolicyRecursion()
    loaded.next_direction(torch.zeros(8), torch.randn(2, 8), None)
    loaded.follow_parameters(both[:1])
    assert loaded.previous_parameters is None


@ALGORITHMS
def test_own_networks_learn_whatever_their_parts_are_called(algorithm: type[Any]) -> None:
    model = make(algorithm, OwnNetwork)
    before = values_of(model.policy)
    model.learn(128)
    assert moved(model.policy, before) == set(before)


@ALGORITHMS
def test_a_parameter_of_the_policys_own_learns_and_an_unused_one_is_named(algorithm: type[Any]) -> None:
    with pytest.warns(UserWarning, match="nothing trains unused:"):
        model = make(algorithm, Temperature)
    model.learn(128)
    assert float(model.policy.log_temperature.detach()) != 0.0
    assert float(model.policy.unused.detach()) == 0.0


def test_shared_parameters_are_refused_by_name_and_standard_networks_pass_in_silence() -> None:
    with pytest.raises(ValueError, match=r"must not share .*first_pi\.weight"):
        make(STORMPlusPG, SharedNetwork)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for algorithm in SMALL:
            make(algorithm)


def test_parts_keep_their_order() -> None:
    policy = make(STORMPlusPG, env="Pendulum-v1").policy
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    layers = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]
    expected = [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert [names[id(parameter)] for parameter in policy.actor_parameters()] == [*expected, "log_std"]


def masked(self: Any, latent: Tensor) -> Any:
    return self.action_dist.proba_distribution(action_logits=self.action_net(latent) + torch.tensor([0.0, -1e9]))


CHANGES: dict[str, Any] = {
    "method": lambda policy: setattr(policy, "_get_action_dist_from_latent", types.MethodType(masked, policy)),
    "forward": lambda policy: setattr(policy, "forward", lambda *args: None),
    "sample": lambda policy: setattr(policy.action_dist, "sample", lambda: torch.zeros(1)),
    "forward_actor": lambda policy: setattr(policy.mlp_extractor, "forward_actor", lambda features: features),
    "hooked parameter": lambda policy: policy.action_net.weight.register_hook(lambda gradient: gradient),
    "hooked accumulation": lambda policy: policy.action_net.weight.register_post_accumulate_grad_hook(print),
    **{
        f"hook on {name}": lambda policy, name=name: policy.get_submodule(name).register_forward_hook(print)
        for name in ("", "mlp_extractor", "mlp_extractor.policy_net", "action_net", "value_net", "features_extractor")
    },
    "pre-hook": lambda policy: policy.mlp_extractor.register_forward_pre_hook(print),
    "backward hook": lambda policy: policy.mlp_extractor.value_net.register_full_backward_hook(print),
    "frozen": lambda policy: policy.action_net.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_closed_form_is_refused_where_something_hangs_on_the_policy(change: str) -> None:
    policy = make(STORMPlusPG).policy
    assert NumpyActorCritic.from_policy(policy) is not None
    CHANGES[change](policy)
    assert NumpyActorCritic.from_policy(policy) is None


def test_an_override_on_the_object_acts_in_training() -> None:
    model = make(STORMPlusPG)
    model.policy._get_action_dist_from_latent = types.MethodType(masked, model.policy)
    model.learn(32)
    assert not model.rollout_buffer.actions.any()


@pytest.mark.parametrize("algorithm", [STORMPlusPG, GPOMDP])
def test_batch_normalisation_of_actor_and_critic_follows_the_observations(algorithm: type[Any]) -> None:
    model = make(algorithm, features_extractor_class=Extractor)
    model.learn(96)
    for extractor in (model.policy.pi_features_extractor, model.policy.vf_features_extractor):
        (norm,) = [module for module in extractor.modules() if isinstance(module, nn.BatchNorm1d)]
        assert int(norm.num_batches_tracked) >= 2
        assert not torch.equal(norm.running_var, torch.ones(6))


def new_head(policy: Any) -> None:
    policy.action_net = nn.Linear(64, 2)


def pruned(policy: Any) -> None:
    prune.random_unstructured(policy.mlp_extractor.policy_net[0], "weight", 0.5)


def renamed(policy: Any) -> None:
    """The parameters stay and have other names, as with ``torch.compile``, which takes seconds."""
    policy.mlp_extractor.policy_net = nn.Sequential(policy.mlp_extractor.policy_net)


@ALGORITHMS
@pytest.mark.parametrize("surgery", [new_head, pruned, renamed])
def test_a_run_goes_on_after_surgery(algorithm: type[Any], surgery: Any) -> None:
    model = make(algorithm)
    model.learn(64)
    surgery(model.policy)
    before = parameters_to_vector(model.policy.action_net.parameters()).detach().clone()
    model.learn(64, reset_num_timesteps=False)
    assert not torch.equal(parameters_to_vector(model.policy.action_net.parameters()), before)


def test_a_network_that_fails_when_asked_for_its_parameters_stays_as_it_is() -> None:
    policy: Any = STORMPlusPG("MlpPolicy", "CartPole-v1", device="cpu").policy
    frozen = policy.mlp_extractor.policy_net[0].weight.requires_grad_(False)
    policy.set_training_mode(True)

    def fail(observations: Any) -> Any:
        raise RuntimeError("no forward pass")

    policy.get_distribution = fail
    with pytest.raises(RuntimeError, match="no forward pass"):
        parameters_behind(policy, "actor")
    assert not frozen.requires_grad
    assert policy.training
