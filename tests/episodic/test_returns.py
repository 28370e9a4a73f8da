import pytest
import torch

from storm_rl.episodic.episodes import pad
from storm_rl.episodic.returns import (
    gpomdp_advantages,
    monte_carlo_returns,
    reinforce_advantages,
)
from tests.episodic.surrogates import actor_critic_surrogate, padded_advantages, score_surrogate

REWARDS = torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 9.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_returns_by_hand() -> None:
    assert monte_carlo_returns(REWARDS, MASK, 0.5).tolist() == [[3.0, 4.0, 4.0], [3.0, 0.0, 0.0]]


def test_a_long_discounted_return_does_not_underflow() -> None:
    rewards = torch.ones(1, 5000)
    returns = monte_carlo_returns(rewards, torch.ones_like(rewards, dtype=torch.bool), 0.9)
    torch.testing.assert_close(returns[0, :4000], torch.full((4000,), 10.0))


def test_gpomdp_keeps_the_discount_of_the_steps_own_time() -> None:
    assert gpomdp_advantages(REWARDS, MASK, 0.5).tolist() == [[3.0, 2.0, 1.0], [3.0, 0.0, 0.0]]


def test_baselines_by_hand() -> None:
    average = gpomdp_advantages(REWARDS, MASK, 1.0, "average")
    assert average.tolist() == [[2.0, 0.0, 0.0], [-2.0, 0.0, 0.0]]
    others = gpomdp_advantages(REWARDS, MASK, 1.0, "leave_one_out")
    assert others.tolist() == [[4.0, 6.0, 4.0], [-4.0, 0.0, 0.0]]
    values = torch.full_like(REWARDS, 2.0)
    critic = gpomdp_advantages(REWARDS, MASK, 0.5, "state_value", values=values)
    assert critic.tolist() == [[1.0, 1.0, 0.5], [1.0, 0.0, 0.0]]
    assert reinforce_advantages(REWARDS, MASK, 1.0, "leave_one_out").tolist() == [[4.0] * 3, [-4.0, 0.0, 0.0]]


def test_gae_at_its_two_ends() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 7.0, 7.0]])
    one_step = padded_advantages(REWARDS, MASK, values, 0.5, 0.0)
    assert one_step.tolist() == [[1.0, 1.5, 1.0], [-1.0, 0.0, 0.0]]
    monte_carlo = padded_advantages(REWARDS, MASK, values, 0.5, 1.0)
    expected = torch.where(MASK, monte_carlo_returns(REWARDS, MASK, 0.5) - values, 0.0)
    torch.testing.assert_close(monte_carlo, expected)


@pytest.mark.parametrize("estimate", [gpomdp_advantages, reinforce_advantages])
def test_bad_input_is_refused(estimate) -> None:
    with pytest.raises(ValueError, match="baseline must be one of"):
        estimate(REWARDS, MASK, 0.9, "mean")
    with pytest.raises(ValueError, match="gamma"):
        estimate(REWARDS, MASK, 1.1)
    with pytest.raises(ValueError, match="weights have shape"):
        estimate(REWARDS, MASK, 0.9, weights=torch.ones(3))
    with pytest.raises(ValueError, match="state_value"):
        estimate(REWARDS, MASK, 0.9, "state_value")
    with pytest.raises(ValueError, match="false everywhere"):
        estimate(REWARDS, torch.zeros_like(MASK), 0.9)
    with pytest.raises(ValueError, match=r"rewards must be floating-point.*torch\.int64"):
        estimate(REWARDS.long(), MASK, 0.9)
    with pytest.raises(ValueError, match=r"\(n_episodes, n_steps\).*\(3,\)"):
        estimate(REWARDS[0], MASK[0], 0.9)


def test_no_gradient_flows_through_advantages() -> None:
    log_prob, advantages = torch.zeros_like(REWARDS, requires_grad=True), REWARDS.clone().requires_grad_(True)
    for surrogate in (score_surrogate, actor_critic_surrogate):
        surrogate(log_prob, advantages, MASK).backward()
    assert advantages.grad is None


def test_padding_places_values_and_passes_gradients() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    padded = pad(values, MASK)
    assert padded.tolist() == [[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]
    score_surrogate(padded, torch.full_like(padded, 2.0), MASK).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="3 values for a mask with 4"):
        pad(values[:3], MASK)
