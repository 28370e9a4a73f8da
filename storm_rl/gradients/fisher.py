r"""Fisher-information products of a policy and the conjugate-gradient solve of :math:`(F + \lambda I) x = b`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def fisher_vector_product(kl: Tensor, parameters: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    r"""The map :math:`v \mapsto F v` for the Fisher matrix of a policy.

    The Hessian of :math:`KL(\pi_{\theta_0} || \pi_\theta)` in :math:`\theta`, at :math:`\theta = \theta_0`, is the
    Fisher matrix (Schulman et al., "Trust Region Policy Optimization", 2015, appendix C), so one differentiation
    of the KL's gradient along :math:`v` gives the product.

    Args:
        kl: Scalar KL between the policy at fixed parameters and at ``parameters``, at the same point, with graph.
        parameters: The parameters, in the order in which ``v`` is laid out.

    Returns:
        A function of a flat vector that gives a flat vector of the same size.
    """
    gradients = torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True)
    flat_gradient = torch.cat([gradient.reshape(-1) for gradient in gradients])

    def product(vector: Tensor) -> Tensor:
        products = torch.autograd.grad(
            flat_gradient, parameters, grad_outputs=vector, retain_graph=True, materialize_grads=True
        )
        return torch.cat([part.reshape(-1) for part in products])

    return product


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, max_iterations: int, tolerance: float = 1e-10
) -> Tensor:
    r"""Solve ``A x = b`` for a symmetric positive definite ``A`` given as a matrix-vector product.

    Hestenes and Stiefel, 1952. Stopped early, the iterate still satisfies :math:`b^T x > 0`, so that it stays a
    direction of ascent for ``b``.

    Args:
        product: ``v -> A v``.
        target: ``b``, a flat vector.
        max_iterations: Number of products at most.
        tolerance: Stop once ``||b - A x||^2 <= tolerance * ||b||^2``.
    """
    solution = torch.zeros_like(target)
    residual = target.clone()
    direction = residual.clone()
    residual_square = residual.dot(residual)
    threshold = tolerance * residual_square
    for _ in range(max_iterations):
        if residual_square <= threshold:
            break
        image = product(direction)
        step = residual_square / direction.dot(image)
        solution += step * direction
        residual -= step * image
        new_square = residual.dot(residual)
        direction = residual + (new_square / residual_square) * direction
        residual_square = new_square
    return solution
