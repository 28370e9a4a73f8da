"""Policies and episodes of many tasks at once, against one at a time."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.task_rollouts import Policies, collect
from envs.families import FAMILIES

SCALES: dict[str, tuple[float, ...]] = {"cart-poles": (2.4, 2.0, 0.2, 2.0), "pendulums": (1.0, 1.0, 4.0)}


def policies(name: str) -> Policies:
    return Policies(FAMILIES[name].make().action_space, SCALES[name], (5, 4))


def parameters(networks: Policies, n_tasks: int) -> torch.Tensor:
    return torch.stack([networks.initial(seed) for seed in range(n_tasks)])


@pytest.mark.parametrize("name", SCALES)
def test_each_task_has_its_own_network_and_numpy_and_torch_agree(name: str) -> None:
    networks = policies(name)
    rows, states = parameters(networks, 3), torch.randn(3, 7, len(SCALES[name]))
    distribution: Any = networks.distribution(rows, states)
    sizes = [len(SCALES[name]), 5, 4, 2 if networks.discrete else 1]
    for task in range(3):
        widths = [size for inputs, outputs in itertools.pairwise(sizes) for size in (inputs * outputs, outputs)]
        parts = torch.split(rows[task], widths if networks.discrete else [*widths, 1])
        hidden = states[task]
        for layer in range(3):
            weight = parts[2 * layer].reshape(sizes[layer], sizes[layer + 1])
            hidden = hidden @ weight + parts[2 * layer + 1]
            hidden = hidden if layer == 2 else hidden.tanh()
        wanted = torch.log_softmax(hidden, dim=1) if networks.discrete else hidden
        torch.testing.assert_close(distribution.logits[task] if networks.discrete else distribution.mean[task], wanted)
    many = np.broadcast_to(states.numpy()[:, :1], (3, 4_000, states.shape[2]))
    actions = networks.act(rows.numpy(), many, np.random.default_rng(0))
    if networks.discrete:
        chances = distribution.probs[:, 0, 1].numpy()
        assert (np.abs(actions.mean(axis=1) - chances) < 4.5 * np.sqrt(chances * (1 - chances) / 4_000)).all()
    else:
        means = distribution.mean[:, 0, 0].numpy()
        assert (np.abs(actions[..., 0].mean(axis=1) - means) < 4.5 / np.sqrt(4_000)).all()
        assert (np.abs(actions[..., 0].std(axis=1) - 1.0) < 0.06).all()


@pytest.mark.parametrize("name", SCALES)
def test_episodes_end_where_the_environments_do_and_returns_are_theirs(name: str) -> None:
    family, networks = FAMILIES[name], policies(name)
    tasks, rows = family.draw(2, 0), parameters(policies(name), 2)
    found = collect(family.make_vec(tasks, 3, seed=4), networks, rows, 40, np.random.default_rng(1))
    mask = found.mask.reshape(2, 3, -1).numpy()
    actions = found.actions.reshape(*mask.shape, *found.actions.shape[2:]).numpy()
    states = found.observations.reshape(*mask.shape, -1).numpy()
    for index in range(6):
        task, copy = divmod(index, 3)
        single = family.make(tasks[task])
        observation, total, over, length = single.reset(seed=4 + index)[0], 0.0, False, 0
        while not over and length < mask.shape[2]:
            np.testing.assert_allclose(states[task, copy, length] * SCALES[name], observation, rtol=1e-4, atol=1e-5)
            action = actions[task, copy, length]
            observation, reward, over, _, _ = single.step(int(action) if networks.discrete else 2.0 * action)
            total, length = total + float(reward), length + 1
        assert mask[task, copy].sum() == length
        assert not mask[task, copy, length:].any()
        assert found.returns[task, copy] == pytest.approx(total, rel=1e-4)
    torch.testing.assert_close(
        found.log_prob, networks.distribution(rows, found.observations).log_prob(found.actions)
    )  # fmt: skip
    chosen = found.states(500, torch.Generator().manual_seed(0))
    for task in range(2):
        seen = {tuple(row) for row in found.observations[task][found.mask[task]].tolist()}
        drawn = {tuple(row) for row in chosen[task].tolist()}
        assert drawn <= seen
        assert len(drawn) > 0.8 * len(seen)


def test_advantages_are_generalised_advantages_around_a_ridge_regression() -> None:
    family, networks = FAMILIES["cart-poles"], policies("cart-poles")
    env = family.make_vec(family.draw(2, 0), 4, seed=4)
    found = collect(env, networks, parameters(networks, 2), 40, np.random.default_rng(1), 20.0, 0.9, 0.8)
    mask = found.mask.reshape(2, 4, -1).numpy()
    states = found.observations.reshape(*mask.shape, -1).double().numpy()
    for task in range(2):
        features, returns, lengths = [], [], mask[task].sum(axis=1)
        for copy, length in enumerate(lengths):
            for step in range(length):
                state, time = states[task, copy, step], step / 100.0
                features.append([*state, *state**2, time, time**2, time**3, 1.0])
                returns.append(sum(0.9**k / 20.0 for k in range(length - step)))
        x, y = np.array(features), np.array(returns)
        values = x @ np.linalg.solve(x.T @ x + 1e-5 * mask[task].size * np.eye(x.shape[1]), x.T @ y)
        wanted, at = [], 0
        for length in lengths:
            value = [*values[at : at + length], 0.0]
            errors = [1.0 / 20.0 + 0.9 * value[step + 1] - value[step] for step in range(length)]
            wanted += [sum((0.9 * 0.8) ** (k - h) * errors[k] for k in range(h, length)) for h in range(length)]
            at += length
        advantages = found.advantages.reshape(mask.shape)[task].numpy()[mask[task]]
        np.testing.assert_allclose(advantages, np.array(wanted) - np.mean(wanted), rtol=1e-3, atol=1e-5)


def test_halves_share_no_episode() -> None:
    family, networks = FAMILIES["pendulums"], policies("pendulums")
    env = family.make_vec(family.draw(2, 0), 4)
    found = collect(env, networks, parameters(networks, 2), 5, np.random.default_rng(0))
    first, second = found.part(first=True), found.part(first=False)
    for whole, one, other in zip(found[:-1], first[:-1], second[:-1], strict=True):
        torch.testing.assert_close(torch.cat([one, other], dim=1), whole)
    np.testing.assert_array_equal(np.concatenate([first.returns, second.returns], axis=1), found.returns)
    assert first.mask.shape == (2, 10)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="must be Box or Discrete, got MultiBinary"):
        Policies(spaces.MultiBinary(3), (1.0,))
    networks = policies("pendulums")
    env = FAMILIES["pendulums"].make_vec([{}], 3)
    with pytest.raises(ValueError, match="3 environments cannot be shared evenly by 2 tasks"):
        collect(env, networks, parameters(networks, 2), 5, np.random.default_rng(0))
