import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.func import functional_call

from storm_rl.gradients.two_point import LogProbAtPoints, parameters_of, stack_parameters


def gaussian_log_prob(network: nn.Module, inputs: Tensor, actions: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    return -0.5 * (actions - functional_call(network, parameters, (inputs,))).square().sum(-1)


def two_points(network: nn.Module) -> list[dict[str, Tensor]]:
    current = parameters_of(network)
    return [current, {name: values + 0.1 * torch.randn_like(values) for name, values in current.items()}]


def test_stacked_evaluation_is_the_two_plain_ones() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    inputs, actions = torch.randn(10, 3).double(), torch.randn(10, 2).double()
    points, coefficients = two_points(network), torch.randn(2, 10).double()

    def log_prob(parameters: dict[str, Tensor]) -> Tensor:
        return gaussian_log_prob(network, inputs, actions, parameters)

    stacked, plain = (LogProbAtPoints(log_prob, points, vectorised=vectorised) for vectorised in (True, False))
    torch.testing.assert_close(stacked.values, plain.values)
    for i, point in enumerate(points):
        leaves = {name: values.clone().requires_grad_(True) for name, values in point.items()}
        (coefficients[i] * log_prob(leaves)).sum().backward()
        for found in (stacked.gradients(coefficients)[i], plain.gradients(coefficients)[i]):
            for name, leaf in leaves.items():
                torch.testing.assert_close(found[name], leaf.grad)


ACTION_SPACES = [
    spaces.Box(-1, 1, (2,)),
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(2),
]


class LogProb(nn.Module):
    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.policy.evaluate_actions(observations, actions)[1]


@pytest.mark.parametrize("space", ACTION_SPACES, ids=lambda space: type(space).__name__)
def test_policies_of_all_action_spaces_can_be_stacked(space: spaces.Space) -> None:
    torch.manual_seed(0)
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (4,)), space, lambda _: 1e-3)
    observations = torch.randn(6, 4)
    actions = policy(observations)[0].detach()
    module = LogProb(policy)
    points = two_points(module)
    results = [
        LogProbAtPoints(lambda p: functional_call(module, p, (observations, actions)), points, vectorised)
        for vectorised in (True, False)
    ]
    torch.testing.assert_close(results[0].values, results[1].values)
    coefficients = torch.randn(2, 6)
    for first, second in zip(*(result.gradients(coefficients) for result in results), strict=True):
        for name in first:
            torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-4)


def test_bad_points_and_coefficients_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        stack_parameters([])
    with pytest.raises(ValueError, match="names or shapes"):
        stack_parameters([{"a": torch.zeros(2)}, {"a": torch.zeros(3)}])
    result = LogProbAtPoints(lambda p: p["a"], [{"a": torch.zeros(2)}])
    with pytest.raises(ValueError, match=r"\(2,\)"):
        result.gradients(torch.zeros(2))
