import pytest
import torch

from storm_rl.optim.recursion import (
    squared_norm,
    storm_plus_momentum,
    storm_plus_step_size,
    update_direction,
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
    direction = [torch.tensor([5.0])]
    update_direction(direction, [torch.tensor([1.0])], [torch.tensor([2.0])], momentum=0.25)
    assert direction[0].item() == 1.0 + 0.75 * (5.0 - 2.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_squared_norm_is_a_float64_sum(scale: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(5127), torch.randn(3), torch.randn(40, 8192).T, torch.zeros(0)]
    tensors = [(tensor * scale).to(dtype) for tensor in tensors]
    exact = sum(float(tensor.double().square().sum()) for tensor in tensors)
    assert squared_norm(tensors) == pytest.approx(exact, rel=1e-12, abs=0.0)
