"""Fits of the agent's critics as they happen in training: data, network and optimiser before them, and fresh data."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor, nn

from storm_rl import STORMPlusPG
from storm_rl.common.random_state import random_state, set_random_state
from storm_rl.storm_plus_pg.action_values import environment_units
from storm_rl.storm_plus_pg.numpy_actor_critic import NumpyActorCritic, mlp_from_modules
from storm_rl.storm_plus_pg.numpy_mlp import Array, NumpyMLP
from storm_rl.storm_plus_pg.rollouts import Transitions

N_ENVS = 8
# Vector steps of fresh data for each recorded update: with 8 environments as many transitions as the critic's.
FRESH_STEPS = 256


@dataclass
class Fit:
    """A fit of a network of one output to fixed targets by Adam on squared errors, as it is before its first step."""

    name: str
    """``"critic"`` or ``"action values"``."""
    update: int
    """Of the run, from 1 on."""
    inputs: Array
    targets: Array
    network: NumpyMLP
    group: dict[str, Any]
    """Adam's settings."""
    states: list[dict[str, Tensor]]
    """Adam's states of each parameter; empty before its first step."""
    fresh_inputs: Array
    fresh_targets: Array
    """Monte-Carlo returns of states, or of actions taken, that the fit does not see; in the targets' units."""
    minibatches: list[Array] = field(default_factory=list)
    """Those of the run, rows of ``inputs``."""


class RecordingAgent(STORMPlusPG):
    """The default agent, which keeps the fits of chosen updates; its run is the same bit for bit.

    A second set of environments plays the policy that the update learns from. They go on between updates, as the
    agent's own do.
    """

    def __init__(self, task_id: str, seed: int, updates: Iterable[int], **arguments: Any) -> None:
        env = make_vec_env(task_id, N_ENVS, seed=seed)
        super().__init__("MlpPolicy", env, seed=seed, device="cpu", **arguments)
        state = random_state([self.device])
        # The algorithm seeds its environments with its own seed.
        other_seed = 10_000 + seed
        fresh_env = make_vec_env(task_id, N_ENVS, seed=other_seed)
        others: dict[str, Any] = {"n_steps": FRESH_STEPS, "reuse_rollouts": 1, "use_action_values": False}
        self.player = STORMPlusPG("MlpPolicy", fresh_env, seed=other_seed, device="cpu", **others)
        self.player._setup_learn(FRESH_STEPS * N_ENVS)
        set_random_state(state)
        self.updates = frozenset(updates)
        self.fits: list[Fit] = []

    def train(self) -> None:
        """As the agent's; the fits of chosen updates are kept."""
        self.fresh = self.play() if self._n_updates + 1 in self.updates else None
        super().train()
        self.fresh = None

    fresh: Transitions | None = None

    def networks(self) -> Any:
        """The policy's networks, which tell of their fits in chosen updates."""
        networks = super().networks()
        return networks if self.fresh is None else Recorder(networks, self)

    def play(self) -> Transitions:
        """Fresh transitions of the present policy, with Monte-Carlo returns as targets (GAE with lambda 1).

        The critic's value stands for what follows the last step, and a time limit.
        """
        state, player = random_state([self.device]), self.player
        player.policy.load_state_dict(self.policy.state_dict())
        callback = CallbackList([])
        callback.init_callback(player)
        assert player.env is not None
        player.collect_rollouts(player.env, callback, player.rollout_buffer, FRESH_STEPS)
        set_random_state(state)
        window = player.window.newest_rollouts(1)
        return window.transitions(window.observations(), player.networks(), self.gamma, gae_lambda=1.0)

    def fitted_rows(self) -> Array:
        """Rows of the window's transitions that action values are fitted to: all but those cut off by a time limit."""
        kept, start = [], 0
        for rollout in self.window.rollouts:
            rows = np.arange(rollout.dones.numel())
            kept.append(start + np.setdiff1d(rows, rollout.truncated_at.numpy()))
            start += len(rows)
        return np.concatenate(kept)


class Recorder:
    """The networks, whose fits are kept by ``agent`` before they are carried out."""

    def __init__(self, networks: Any, agent: RecordingAgent) -> None:
        self._networks = networks
        self._agent = agent
        if not isinstance(networks, NumpyActorCritic):
            raise TypeError(f"only fits in closed form are recorded, and these networks are {type(networks).__name__}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._networks, name)

    def fit_critic(self, observations: Tensor, targets: Tensor, minibatches: Iterable[Tensor]) -> float:
        """As the networks'."""
        agent, policy, drawn = self._agent, self._agent.policy, list(minibatches)
        network = mlp_from_modules(policy.mlp_extractor.value_net, policy.value_head.linear)
        fresh = self._fresh()
        with torch.no_grad():
            features, fresh_features = map(policy.critic_features, (observations, fresh.observations))
        fit = self._fit("critic", features, targets, network, policy.critic_parameters(), policy.optimizer)
        fit.fresh_inputs, fit.fresh_targets = fresh_features.numpy(), (fresh.value_targets / policy.value_scale).numpy()
        fit.minibatches = [index.numpy() for index in drawn]
        agent.fits.append(fit)
        return float(self._networks.fit_critic(observations, targets, drawn))

    def regress(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        inputs: Tensor,
        targets: Tensor,
        minibatches: Iterable[Tensor],
    ) -> float:
        """As the networks'. The look-ahead's fit is kept, the sum of its sweeps: its targets stay."""
        agent, drawn, values = self._agent, list(minibatches), self._agent.action_values
        assert values is not None
        if network is values.networks[1]:
            rows = agent.fitted_rows()
            if not agent.fits or (agent.fits[-1].name, agent.fits[-1].update) != (
                "action values",
                agent._n_updates + 1,
            ):
                closed, parameters = mlp_from_modules(network), list(network.parameters())
                fit = self._fit("action values", inputs[rows], targets[rows], closed, parameters, optimizer)
                fresh = self._fresh()
                with torch.no_grad():
                    features = agent.policy.critic_features(fresh.observations)
                    actions = environment_units(agent.policy, fresh.actions)
                fit.fresh_inputs = torch.cat([features, actions], dim=1).numpy()
                fit.fresh_targets = (fresh.value_targets / agent.return_statistics.scale).numpy()
                agent.fits.append(fit)
            agent.fits[-1].minibatches += [np.searchsorted(rows, index.numpy()) for index in drawn]
        return float(self._networks.regress(network, optimizer, inputs, targets, drawn))

    def _fresh(self) -> Transitions:
        assert self._agent.fresh is not None
        return self._agent.fresh

    def _fit(
        self,
        name: str,
        inputs: Tensor,
        targets: Tensor,
        network: NumpyMLP | None,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
    ) -> Fit:
        assert network is not None
        group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        states = [copy.deepcopy(dict(optimizer.state[parameter])) for parameter in parameters]
        kept, nothing = network.with_parameters(network.flat()), np.empty(0)
        arrays = inputs.numpy().copy(), targets.numpy().copy()
        return Fit(name, self._agent._n_updates + 1, *arrays, kept, group, states, nothing, nothing)


def recorded_fits(task_id: str, seed: int, env_steps: int, n_updates: int) -> list[Fit]:
    """The fits of ``n_updates`` updates, evenly spaced, of a run of ``env_steps``; the last one is among them.

    That of the action values, on up to four times the data, is of the last one alone.

    Raises:
        ValueError: Fewer updates in a run of this length.
    """
    model = RecordingAgent(task_id, seed, ())
    total = -(-env_steps // (model.n_steps * N_ENVS))
    if n_updates > total:
        raise ValueError(f"a run of {env_steps} env steps on {task_id} has {total} updates, not {n_updates}")
    chosen = [round(total * (index + 1) / n_updates) for index in range(n_updates)]
    model.updates = frozenset(chosen)
    model.learn(env_steps)
    return [fit for fit in model.fits if fit.name == "critic" or fit.update == total]
