"""Critical variances against Gaussian integrals, and what is measured in a network against theory and brute force."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.special import erf
from stable_baselines3 import PPO
from torch import nn

from storm_rl.deep import CRITICAL, DeepFeatures, critical_, propagation

Array = np.ndarray
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(200)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def gelu(z: Array) -> Array:
    return z * (1.0 + erf(z / 2**0.5)) / 2.0


def mean(function: Array) -> float:
    return float(WEIGHTS @ function)


def test_gelus_variances_are_critical_at_their_fixed_point() -> None:
    weight, bias = CRITICAL[nn.GELU]
    k = (3.0 + 17.0**0.5) / 2.0
    z = k**0.5 * NODES
    slope = (gelu(z + 1e-5) - gelu(z - 1e-5)) / 2e-5
    assert bias + weight * mean(gelu(z) ** 2) == pytest.approx(k, abs=1e-6)
    assert weight / (2.0 * k**2) * mean(gelu(z) ** 2 * (z**2 - k)) == pytest.approx(1.0, abs=1e-6)
    assert weight * mean(slope**2) == pytest.approx(1.0, abs=1e-6)


def test_tanhs_variances_are_critical_as_k_vanishes_and_relus_at_any_k() -> None:
    z = 1e-3 * NODES
    for activation, slope in ((np.tanh, 1.0 - np.tanh(z) ** 2), (lambda z: np.maximum(z, 0.0), z > 0.0)):
        weight, bias = CRITICAL[nn.Tanh if activation is np.tanh else nn.ReLU]
        assert bias == 0.0
        assert weight * mean(activation(z) ** 2) == pytest.approx(1e-6, rel=1e-4)
        assert weight * mean(slope**2) == pytest.approx(1.0, rel=1e-4)


def test_layers_are_drawn_with_these_variances() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(500, 400), nn.Conv2d(30, 300, 5))
    assert critical_(network, nn.GELU, share=0.25) is network
    for layer, inputs in ((network[0], 500), (network[1], 30 * 25)):
        weight, bias = CRITICAL[nn.GELU]
        assert layer.weight.var().item() * inputs == pytest.approx(weight / 4.0, rel=0.02)
        assert layer.bias.var().item() == pytest.approx(bias / 4.0, rel=0.3)
    with pytest.raises(ValueError, match=r"known for GELU, ReLU, Tanh, got activation_fn=.*ELU"):
        critical_(network, nn.ELU)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_signals_survive_fifty_layers_and_do_not_with_other_variances(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(50) for layer in (nn.Linear(200, 200), activation())]
    network = critical_(nn.Sequential(*layers[:-1]), activation).double()
    inputs = torch.randn(4, 200, dtype=torch.float64) * 1.5
    found = propagation(network, inputs, n_probes=4)
    assert len(found) == 50
    assert found[0].jacobian == pytest.approx(1.0, rel=0.2)
    # Tanh's fall as one over the depth; with 200 units chance adds a factor of a few.
    assert 1e-3 < found[-1].jacobian < 30.0
    assert 1e-3 < found[-1].variance < 100.0
    for factor, low, high in ((0.25, 0.0, 1e-6), (4.0, 1e3, np.inf)):
        with torch.no_grad():
            for layer in network[::2]:
                layer.weight.mul_(factor**0.5)
        assert low <= propagation(network, inputs, n_probes=1)[-1].jacobian <= high
        critical_(network, activation)


def test_variance_and_jacobian_are_those_of_the_whole_matrix() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    inputs = torch.randn(2, 3, dtype=torch.float64)
    first = network[0](inputs)
    norms = [torch.autograd.functional.jacobian(network[1:], row).square().sum() / 5.0 for row in first]
    found = propagation(network, inputs, n_probes=4000)
    assert found[1].jacobian == pytest.approx(float(sum(norms)) / 2.0, rel=0.06)
    assert found[1].variance == pytest.approx(float(network(inputs).detach().square().mean()))
    assert str(found).splitlines()[0] == "layer      variance  jacobian norm"
    assert len(str(found).splitlines()) == 3
    assert not network[0]._forward_hooks


def test_networks_without_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="Sequential has no linear"):
        propagation(nn.Sequential(nn.Tanh()), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="n_probes must be"):
        propagation(nn.Linear(2, 2), torch.zeros(2, 2), n_probes=0)


@pytest.mark.parametrize("wiring", ["plain", "residual", "momentum"])
def test_sb3_leaves_a_critical_start_alone_and_makes_its_own_otherwise(wiring: str) -> None:
    def model(start: str) -> PPO:
        kwargs = {"depth": 4, "width": 50, "wiring": wiring, "start": start}
        policy = {"features_extractor_class": DeepFeatures, "features_extractor_kwargs": kwargs, "net_arch": []}
        return PPO("MlpPolicy", "CartPole-v1", policy_kwargs=policy, seed=0, device="cpu")

    weights = [block[1].weight.detach() for block in model("orthogonal").policy.features_extractor.blocks]
    for weight in weights:
        assert torch.allclose(weight @ weight.T, 2.0 * torch.eye(50), atol=1e-4)
    critical = model("critical").policy
    share = 1.0 if wiring == "plain" else 0.25
    variance = np.mean([block[1].weight.var().item() for block in critical.features_extractor.blocks])
    assert variance * 50 == pytest.approx(share, rel=0.05)
    # The heads are SB3's in either case.
    assert critical.action_net.weight.detach().norm(dim=1).numpy() == pytest.approx(0.01, rel=1e-4)


def test_apply_reaches_the_layers_for_everything_else() -> None:
    features = DeepFeatures(spaces.Box(-1.0, 1.0, (3,)), depth=2, width=5)
    features.apply(partial(lambda module, _: nn.init.zeros_(module.weight) if hasattr(module, "weight") else None, _=0))
    assert all(block[1].weight.abs().sum() == 0.0 for block in features.blocks)
