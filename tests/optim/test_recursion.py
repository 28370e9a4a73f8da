import torch

from storm_rl.optim.recursion import (
    recursive_direction,
    squared_norm,
    storm_plus_momentum,
    storm_plus_step_size,
)


def test_momentum_is_one_before_any_gradient_and_falls_with_the_sum() -> None:
    assert storm_plus_momentum(0.0) == 1.0
    assert abs(storm_plus_momentum(7.0) - 0.25) < 1e-15


def test_step_size_is_the_inverse_cube_root_and_zero_without_a_direction() -> None:
    assert abs(storm_plus_step_size(8.0) - 0.5) < 1e-15
    assert storm_plus_step_size(0.0) == 0.0


def test_squared_norm_runs_over_all_tensors_together() -> None:
    assert abs(squared_norm([torch.tensor([3.0]), torch.tensor([[4.0, 12.0]])]) - 169.0) < 1e-12
    assert squared_norm([]) == 0.0


def test_direction_follows_the_recursion() -> None:
    direction = recursive_direction([torch.tensor([1.0])], [torch.tensor([5.0])], [torch.tensor([2.0])], momentum=0.25)
    assert direction[0].item() == 1.0 + 0.75 * (5.0 - 2.0)
