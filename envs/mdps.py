"""Small Markov decision processes whose objective and gradient are exact: all trajectories are enumerated.

They are what estimators are proved on: an expectation is a finite sum here, so that unbiasedness is checked
to rounding error and not to sampling error.
"""

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Trajectories(NamedTuple):
    """All trajectories of an MDP that its dynamics allow, padded to the horizon; ``n`` of them.

    States, actions and rewards beyond the end are 0 and the mask is false there.
    """

    states: Tensor
    """Shape ``(n, horizon)``, integer."""
    actions: Tensor
    """Shape ``(n, horizon)``, integer."""
    rewards: Tensor
    """Shape ``(n, horizon)``, float64."""
    mask: Tensor
    """Shape ``(n, horizon)``, boolean."""
    dynamics: Tensor
    """Probability of the states given the actions, initial state included; shape ``(n,)``, float64."""


@dataclass(frozen=True)
class EnumerableMDP:
    r"""A finite MDP with a softmax policy, its exact objective and gradient.

    The policy is :math:`\pi(a|s) \propto \exp(\theta_{sa})`, the objective :math:`J(\theta) = E[\sum_{h<H}
    \gamma^h r_h]`. An episode ends at a terminal state or after ``horizon`` steps.

    Args:
        initial: Distribution of the first state, shape ``(n_states,)``.
        transitions: ``P(s' | s, a)``, shape ``(n_states, n_actions, n_states)``.
        rewards: ``r(s, a, s')``, of the same shape.
        terminal: Boolean, shape ``(n_states,)``; no action is taken in a terminal state.
        horizon: Largest number of steps.
        gamma: Discount in [0, 1].

    Raises:
        ValueError: If shapes disagree, a distribution does not sum to 1, or the horizon is not positive.
    """

    initial: Tensor
    transitions: Tensor
    rewards: Tensor
    terminal: Tensor
    horizon: int
    gamma: float

    def __post_init__(self) -> None:
        n_states, n_actions = self.transitions.shape[:2]
        if self.transitions.shape != (n_states, n_actions, n_states) or self.rewards.shape != self.transitions.shape:
            raise ValueError(
                "transitions and rewards must have shape (n_states, n_actions, n_states), got "
                f"{tuple(self.transitions.shape)} and {tuple(self.rewards.shape)}"
            )
        if self.initial.shape != (n_states,) or self.terminal.shape != (n_states,):
            raise ValueError(f"initial and terminal must have shape ({n_states},)")
        if not torch.allclose(self.transitions.sum(-1), torch.ones(n_states, n_actions, dtype=torch.float64)):
            raise ValueError("the transition probabilities of each state and action must sum to 1")
        if not torch.allclose(self.initial.sum(), torch.ones((), dtype=torch.float64)):
            raise ValueError("the probabilities of the first state must sum to 1")
        if bool(self.terminal[self.initial > 0].any()):
            raise ValueError("an episode cannot begin in a terminal state")
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {self.horizon}")

    @property
    def n_states(self) -> int:
        """Number of states, terminal ones included."""
        return self.transitions.shape[0]

    @property
    def n_actions(self) -> int:
        """Number of actions, the same in every state."""
        return self.transitions.shape[1]

    def trajectories(self) -> Trajectories:
        """Enumerate every trajectory with positive probability under the dynamics."""
        finished: list[tuple[float, list[tuple[int, int, float]]]] = []
        running = [
            (float(self.initial[state]), state, list[tuple[int, int, float]]())
            for state in range(self.n_states)
            if self.initial[state] > 0
        ]
        while running:
            probability, state, steps = running.pop()
            for action, successor in itertools.product(range(self.n_actions), range(self.n_states)):
                chance = float(self.transitions[state, action, successor])
                if chance == 0.0:
                    continue
                extended = [*steps, (state, action, float(self.rewards[state, action, successor]))]
                if bool(self.terminal[successor]) or len(extended) == self.horizon:
                    finished.append((probability * chance, extended))
                else:
                    running.append((probability * chance, successor, extended))
        return self._padded(finished)

    def _padded(self, finished: list[tuple[float, list[tuple[int, int, float]]]]) -> Trajectories:
        shape = (len(finished), self.horizon)
        states, actions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        rewards = torch.zeros(shape, dtype=torch.float64)
        mask = torch.zeros(shape, dtype=torch.bool)
        for i, (_, steps) in enumerate(finished):
            for h, (state, action, reward) in enumerate(steps):
                states[i, h], actions[i, h], rewards[i, h], mask[i, h] = state, action, reward, True
        dynamics = torch.tensor([probability for probability, _ in finished], dtype=torch.float64)
        return Trajectories(states, actions, rewards, mask, dynamics)

    def log_prob(self, logits: Tensor, trajectories: Trajectories) -> Tensor:
        """``log pi(a|s)`` of every step, shape ``(n, horizon)``; finite in the padding too."""
        return torch.log_softmax(logits, dim=-1)[trajectories.states, trajectories.actions]

    def probabilities(self, logits: Tensor, trajectories: Trajectories) -> Tensor:
        """Probability of every trajectory under the policy, shape ``(n,)``; differentiable."""
        log_prob = self.log_prob(logits, trajectories)
        return trajectories.dynamics * torch.where(trajectories.mask, log_prob, 0.0).sum(dim=1).exp()

    def objective(self, logits: Tensor) -> Tensor:
        """Exact ``J`` at ``logits``, shape ``(n_states, n_actions)``; a scalar, differentiable."""
        trajectories = self.trajectories()
        factors = self.gamma ** torch.arange(self.horizon, dtype=torch.float64)
        returns = (trajectories.rewards * factors).sum(dim=1)
        return (self.probabilities(logits, trajectories) * returns).sum()

    def gradient(self, logits: Tensor) -> Tensor:
        """Exact gradient of ``J``, by differentiating the trajectories' probabilities."""
        logits = logits.detach().clone().requires_grad_(True)
        return torch.autograd.grad(self.objective(logits), logits)[0]


class EnumerableEnv(gym.Env[np.int64, np.int64]):
    """The MDP as a gymnasium environment: the observation is the state's number.

    The horizon belongs to the objective, so reaching it is a termination and not a truncation: nothing is to
    be bootstrapped there.

    Args:
        mdp: The process.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium declares it so.

    def __init__(self, mdp: EnumerableMDP) -> None:
        self.mdp = mdp
        self.observation_space = gym.spaces.Discrete(mdp.n_states)
        self.action_space = gym.spaces.Discrete(mdp.n_actions)
        # Indexing numpy's arrays takes a tenth of the time of torch's.
        self._initial, self._transitions, self._rewards, self._terminal = (
            tensor.numpy() for tensor in (mdp.initial, mdp.transitions, mdp.rewards, mdp.terminal)
        )
        self._state = np.int64(0)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Draw a first state."""
        super().reset(seed=seed)
        self._state = self._draw(self._initial)
        self._steps = 0
        return self._state, {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Take one step of the process."""
        successor = self._draw(self._transitions[self._state, int(action)])
        reward = float(self._rewards[self._state, int(action), successor])
        self._state = successor
        self._steps += 1
        terminated = bool(self._terminal[successor]) or self._steps >= self.mdp.horizon
        return successor, reward, terminated, False, {}

    def _draw(self, probabilities: npt.NDArray[np.float64]) -> np.int64:
        return np.int64(self.np_random.choice(len(probabilities), p=probabilities))


def two_state(horizon: int = 3, gamma: float = 0.9) -> EnumerableMDP:
    """Two states, two actions, stochastic transitions; every episode lasts ``horizon`` steps."""
    transitions = [[[0.7, 0.3], [0.2, 0.8]], [[0.9, 0.1], [0.4, 0.6]]]
    rewards = [[[1.0, 0.0], [0.5, -0.5]], [[0.0, 2.0], [-1.0, 1.5]]]
    return EnumerableMDP(
        initial=torch.tensor([0.6, 0.4], dtype=torch.float64),
        transitions=torch.tensor(transitions, dtype=torch.float64),
        rewards=torch.tensor(rewards, dtype=torch.float64),
        terminal=torch.tensor([False, False]),
        horizon=horizon,
        gamma=gamma,
    )


def slippery_cliff(horizon: int = 4, gamma: float = 0.95) -> EnumerableMDP:
    """Three states in a row and a cliff, which ends the episode early; three actions.

    Action 0 stays, 1 moves on and 2 jumps two states; jumps may fall off the cliff (state 3, terminal), at a
    price. Episodes of different lengths make padding and termination matter.
    """
    n_states, n_actions, cliff = 4, 3, 3
    transitions = torch.zeros(n_states, n_actions, n_states, dtype=torch.float64)
    rewards = torch.zeros_like(transitions)
    for state in range(3):
        transitions[state, 0, state] = 1.0
        transitions[state, 1, min(state + 1, 2)] = 1.0
        transitions[state, 2, min(state + 2, 2)] = 0.6
        transitions[state, 2, cliff] = 0.4
        rewards[state, :, :] = 0.25 * state
        rewards[state, 2, cliff] = -1.0
        rewards[state, 2, 2] = 1.0
    transitions[cliff, :, cliff] = 1.0
    return EnumerableMDP(
        initial=torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64),
        transitions=transitions,
        rewards=rewards,
        terminal=torch.tensor([False, False, False, True]),
        horizon=horizon,
        gamma=gamma,
    )


def river_swim(n_states: int = 5, horizon: int = 10, gamma: float = 1.0) -> EnumerableMDP:
    """RiverSwim (Strehl, Littman, 2008): a chain whose large reward is upstream, where only a plan leads.

    Action 0 swims down, always with success; action 1 swims up: from the lowest state with probability .6, from
    others one state up with .35, and one state down with .05. Staying at the lowest state by action 0 earns .005,
    staying at the highest by action 1 earns 1. The probabilities are those of Osband, Russo, Van Roy (NeurIPS 2013).
    """
    if n_states < 2:
        raise ValueError(f"n_states must be at least 2, got {n_states}")
    last = n_states - 1
    transitions = torch.zeros(n_states, 2, n_states, dtype=torch.float64)
    rewards = torch.zeros_like(transitions)
    for state in range(n_states):
        transitions[state, 0, max(state - 1, 0)] = 1.0
        if 0 < state < last:
            transitions[state, 1, [state - 1, state, state + 1]] = torch.tensor([0.05, 0.6, 0.35], dtype=torch.float64)
    transitions[0, 1, [0, 1]] = torch.tensor([0.4, 0.6], dtype=torch.float64)
    transitions[last, 1, [last - 1, last]] = torch.tensor([0.4, 0.6], dtype=torch.float64)
    rewards[0, 0, 0] = 0.005
    rewards[last, 1, last] = 1.0
    initial = torch.zeros(n_states, dtype=torch.float64)
    initial[0] = 1.0
    return EnumerableMDP(initial, transitions, rewards, torch.zeros(n_states, dtype=torch.bool), horizon, gamma)


def agreement(n_steps: int = 3) -> tuple[EnumerableMDP, Tensor]:
    """Two actions a step; a reward of 1 at the end if all were the same. With what a policy may see: the step alone.

    State 0 is the first, ``2 k - 1 + a`` follows k actions ``a``, and the last is terminal, after all steps or the
    first other action. A policy with logits of the step, ``logits[seen]``, has a saddle where all chances are even: a
    change of one step's chances alone is worth nothing there, and of several together it is.

    Returns:
        The MDP, and the step of each state, shape ``(n_states,)``.
    """
    if n_steps < 2:
        raise ValueError(f"n_steps must be at least 2, got {n_steps}")
    end = 2 * n_steps - 1
    transitions = torch.zeros(2 * n_steps, 2, 2 * n_steps, dtype=torch.float64)
    rewards = torch.zeros_like(transitions)
    seen = torch.tensor([min((state + 1) // 2, n_steps - 1) for state in range(2 * n_steps)])
    for state, action in itertools.product(range(2 * n_steps), range(2)):
        taken = int(seen[state])
        agrees = state == 0 or (state != end and (state - 1) % 2 == action)
        transitions[state, action, 2 * taken + 1 + action if agrees and taken < n_steps - 1 else end] = 1.0
        rewards[state, action, end] = float(agrees and taken == n_steps - 1)
    initial = torch.zeros(2 * n_steps, dtype=torch.float64)
    initial[0] = 1.0
    terminal = torch.arange(2 * n_steps) == end
    return EnumerableMDP(initial, transitions, rewards, terminal, n_steps, 1.0), seen
