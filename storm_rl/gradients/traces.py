r"""Advantages and value targets on data of earlier policies: GAE with truncated importance ratios in its trace."""

import torch
from torch import Tensor


def traced_advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    dones: Tensor,
    ratios: Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    r"""Advantages and value targets of consecutive steps.

    With :math:`\delta_h = r_h + \gamma V(s_{h+1}) - V(s_h)` and :math:`c_h = \min(1, \rho_h)`,

    .. math::
        A_h = \delta_h + \gamma \lambda c_{h+1} A_{h+1}, \qquad v_h = V(s_h) + c_h A_h,

    both restarted at the end of an episode. :math:`v_h` is the V-trace target with :math:`\bar\rho = \bar c = 1`
    (Espeholt et al. 2018, arXiv 1802.01561, eq. 1, with lambda as in its remark 2), and :math:`A_h` is the
    advantage that belongs to it. Where all ratios are 1 these are GAE (Schulman et al. 2016) and the lambda-return.

    All tensors are on the CPU and carry no graph.

    Args:
        rewards: ``r_h``, ``(n_steps, n_envs)``, time first.
        values: ``V(s_h)``, the same shape.
        next_values: ``V(s_{h+1})``, the same shape: 0 where an episode terminated, the value of its last observation
            where it was truncated.
        dones: Whether an episode ended with step ``h``, boolean, the same shape.
        ratios: :math:`\rho_h = \pi(a_h | s_h) / \mu(a_h | s_h)`, the same shape.
        gamma: Discount factor.
        gae_lambda: Trace parameter.

    Raises:
        ValueError: Shapes differ.
    """
    shapes = {tuple(tensor.shape) for tensor in (rewards, values, next_values, dones, ratios)}
    if len(shapes) != 1:
        raise ValueError(f"rewards, values, next_values, dones and ratios must agree in shape, got {sorted(shapes)}")
    traces = ratios.clamp(max=1.0)
    advantages = rewards + gamma * next_values - values
    factors = torch.where(dones[:-1], 0.0, gamma * gae_lambda * traces[1:])
    # As arrays: of so few numbers a step, numpy's operations cost a fraction of torch's.
    summed, weights = advantages.numpy(), factors.numpy()
    for step in reversed(range(len(weights))):
        summed[step] += weights[step] * summed[step + 1]
    return advantages, values + traces * advantages
