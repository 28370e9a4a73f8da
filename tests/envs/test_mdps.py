import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.linear_quadratic import LinearQuadraticEnv, double_integrator
from envs.mdps import EnumerableEnv, EnumerableMDP, agreement, slippery_cliff, two_state

MDPS = [two_state(), slippery_cliff()]


def logits_of(mdp: EnumerableMDP, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(mdp.n_states, mdp.n_actions, dtype=torch.float64, generator=generator)


def dynamic_programme(mdp: EnumerableMDP, logits: torch.Tensor) -> torch.Tensor:
    """J by backward induction, which enumerates no trajectory."""
    policy = torch.softmax(logits, dim=-1)
    value = torch.zeros(mdp.n_states, dtype=torch.float64)
    for _ in range(mdp.horizon):
        targets = (mdp.transitions * (mdp.rewards + mdp.gamma * value)).sum(-1)
        value = torch.where(mdp.terminal, 0.0, (policy * targets).sum(-1))
    return (mdp.initial * value).sum()


@pytest.mark.parametrize("mdp", MDPS)
def test_trajectory_probabilities_sum_to_one(mdp: EnumerableMDP) -> None:
    assert mdp.probabilities(logits_of(mdp), mdp.trajectories()).sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("mdp", MDPS)
def test_objective_and_gradient_agree_with_dynamic_programming(mdp: EnumerableMDP) -> None:
    logits = logits_of(mdp).requires_grad_(True)
    by_induction = dynamic_programme(mdp, logits)
    assert mdp.objective(logits).item() == pytest.approx(by_induction.item(), abs=1e-12)
    (gradient,) = torch.autograd.grad(by_induction, logits)
    torch.testing.assert_close(mdp.gradient(logits), gradient, atol=1e-12, rtol=0)


def test_the_cliff_ends_episodes_early_and_the_other_does_not() -> None:
    assert len(set(slippery_cliff().trajectories().mask.sum(1).tolist())) > 2
    assert two_state().trajectories().mask.all()


@pytest.mark.parametrize("env", [*map(EnumerableEnv, MDPS), LinearQuadraticEnv(double_integrator())])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_environments_follow_gymnasium(env: gym.Env) -> None:
    check_env(env, skip_render_check=True)


def test_sampled_return_and_length_of_the_environment_are_exact_on_average() -> None:
    mdp = slippery_cliff()
    env, generator = EnumerableEnv(mdp), np.random.default_rng(0)
    policy = torch.softmax(logits_of(mdp), dim=-1).numpy()
    returns, lengths = [], []
    for episode in range(4000):
        state, _ = env.reset(seed=0 if episode == 0 else None)
        total, length, done = 0.0, 0, False
        while not done:
            action = generator.choice(mdp.n_actions, p=policy[state])
            state, reward, done, _, _ = env.step(action)
            total, length = total + mdp.gamma**length * reward, length + 1
        returns.append(total)
        lengths.append(length)
    everything = mdp.trajectories()
    mean_length = (mdp.probabilities(logits_of(mdp), everything) * everything.mask.sum(1)).sum().item()
    for found, exact in ((returns, mdp.objective(logits_of(mdp)).item()), (lengths, mean_length)):
        assert abs(np.mean(found) - exact) < 4 * np.std(found) / np.sqrt(len(found))


def test_sampled_return_of_the_linear_quadratic_environment_is_the_exact_objective() -> None:
    task = double_integrator(horizon=5)
    env, generator = LinearQuadraticEnv(task), np.random.default_rng(0)
    gain, log_std = torch.tensor([[-1.0, -0.8]], dtype=torch.float64), torch.tensor(-0.5, dtype=torch.float64)
    returns = []
    for episode in range(4000):
        state, _ = env.reset(seed=0 if episode == 0 else None)
        total, factor, done = 0.0, 1.0, False
        while not done:
            action = gain.numpy() @ state + np.exp(-0.5) * generator.standard_normal(1)
            state, reward, done, _, _ = env.step(action)
            total, factor = total + factor * reward, factor * task.gamma
        returns.append(total)
    error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - task.objective(gain, log_std).item()) < 4 * error


def test_linear_quadratic_gradient_agrees_with_score_function_sampling() -> None:
    task = double_integrator(horizon=5)
    gain, log_std = torch.tensor([[-1.0, -0.8]], dtype=torch.float64), torch.tensor(-0.5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    state = task.initial_std * torch.randn(n, 2, dtype=torch.float64, generator=generator)
    total, score, std = (
        torch.zeros(n, dtype=torch.float64),
        torch.zeros(n, 3, dtype=torch.float64),
        log_std.exp(),
    )
    for step in range(task.horizon):
        noise = torch.randn(n, 1, dtype=torch.float64, generator=generator)
        action = state @ gain.T + std * noise
        cost = (state @ task.state_cost * state).sum(1) + (action @ task.action_cost * action).sum(1)
        total = total - task.gamma**step * cost
        score = score + torch.cat([noise / std * state, noise**2 - 1], dim=1)
        drift = task.noise_std * torch.randn(n, 2, dtype=torch.float64, generator=generator)
        state = state @ task.dynamics.T + action @ task.control.T + drift
    samples = score * (total - total.mean())[:, None]
    error = samples.std(0) / n**0.5
    by_gain, by_log_std = task.gradient(gain, log_std)
    exact = torch.cat([by_gain.flatten(), by_log_std.reshape(1)])
    assert ((samples.mean(0) - exact).abs() < 4 * error).all()
    assert abs(total.mean() - task.objective(gain, log_std)) < 4 * total.std() / n**0.5


def test_a_law_that_does_not_sum_to_one_is_refused() -> None:
    mdp = two_state()
    with pytest.raises(ValueError, match="sum to 1"):
        EnumerableMDP(mdp.initial, mdp.transitions * 0.9, mdp.rewards, mdp.terminal, 3, 0.9)
    with pytest.raises(ValueError, match="horizon"):
        two_state(horizon=0)


@pytest.mark.parametrize("n_steps", [2, 3, 5])
def test_agreement_pays_equal_actions_and_even_chances_are_its_saddle(n_steps: int) -> None:
    mdp, seen = agreement(n_steps)
    logits = torch.randn(n_steps, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chances = torch.softmax(logits, dim=1)
    assert mdp.objective(logits[seen]).item() == pytest.approx(float(chances.prod(dim=0).sum()), abs=1e-12)

    def objective(flat: torch.Tensor) -> torch.Tensor:
        return mdp.objective(flat.reshape(n_steps, 2)[seen])

    even = torch.zeros(2 * n_steps, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(even), even)
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(objective, even))
    assert gradient.abs().max() < 1e-12
    # Chances have derivatives of +-1/4 at even ones, and pairs of them mixed second derivatives of 2^(3 - n).
    scale = 2.0 ** (3 - n_steps) / 16 * 2
    assert eigenvalues[-1].item() == pytest.approx((n_steps - 1) * scale, abs=1e-12)
    assert eigenvalues[0].item() == pytest.approx(-scale, abs=1e-12)


def test_agreement_of_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="n_steps must be at least 2, got 1"):
        agreement(1)
