from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.utils import parameters_to_vector
from typer.testing import CliRunner

from experiments.cli import app
from experiments.studies.fisher_solvers import (
    SOLVERS,
    FisherRows,
    KroneckerFactors,
    preconditioned_conjugate_gradient,
    sample_space_solve,
    softmax_roots,
)
from storm_rl.common.dense_network import DenseNetwork


def eye(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def rows_and_matrix(module: nn.Sequential, states: Tensor) -> tuple[FisherRows, Tensor]:
    """The rows in closed form, and the Fisher matrix from autograd's Jacobian and ``diag(p) - p p^T``."""
    parameters = dict(module.named_parameters())
    jacobian = jacrev(lambda at: functional_call(module, at, (states,)))(parameters)
    flat = torch.cat([part.flatten(2) for part in jacobian.values()], dim=2).detach()
    probabilities = module(states).softmax(-1).detach()
    blocks = torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)
    network = DenseNetwork.of(module)
    assert network is not None
    return FisherRows(network, states.numpy()), torch.einsum("nip,nij,njq->pq", flat, blocks, flat) / len(states)


@pytest.fixture
def tiny() -> tuple[FisherRows, Tensor, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    rows, matrix = rows_and_matrix(module, torch.randn(7, 2, dtype=torch.float64))
    return rows, matrix, torch.randn(len(parameters_to_vector(module.parameters())), dtype=torch.float64)


def test_roots_square_to_the_outputs_fisher_block() -> None:
    # The last row: an action that is all but certain.
    logits = torch.cat(
        [torch.randn(6, 4, dtype=torch.float64), torch.tensor([[800.0, 0.0, 0.0, 1.0]], dtype=torch.float64)]
    )
    probabilities = logits.softmax(-1)
    blocks = torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)
    roots = softmax_roots(logits)
    assert roots.shape == (3, 7, 4)
    torch.testing.assert_close(torch.einsum("rni,rnj->nij", roots, roots), blocks, rtol=1e-12, atol=1e-15)


def test_rows_multiply_and_make_the_kernel_of_the_explicit_matrix(tiny: tuple[FisherRows, Tensor, Tensor]) -> None:
    rows, matrix, direction = tiny
    torch.testing.assert_close(rows.product(direction), matrix @ direction)
    explicit = torch.stack([rows.times(unit) for unit in eye(len(direction))], dim=1)
    torch.testing.assert_close(rows.kernel(), explicit @ explicit.t())


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_sample_space_solve_on_all_states_is_the_dense_solve(
    tiny: tuple[FisherRows, Tensor, Tensor], damping: float
) -> None:
    rows, matrix, direction = tiny
    expected = torch.linalg.solve(matrix + damping * eye(len(matrix)), direction)
    torch.testing.assert_close(sample_space_solve(rows, direction, damping), expected, rtol=1e-10, atol=1e-10)


def test_kfac_of_one_layer_and_one_state_inverts_the_fisher_matrix_on_its_range() -> None:
    # There F is the Kronecker product; with hardly any damping, F F^+ d = d for a d in its range.
    torch.manual_seed(0)
    rows, matrix = rows_and_matrix(nn.Sequential(nn.Linear(3, 4)).double(), torch.randn(1, 3, dtype=torch.float64))
    direction = matrix @ torch.randn(len(matrix), dtype=torch.float64)
    solution = KroneckerFactors(rows, damping=1e-12).solve(direction)
    torch.testing.assert_close(matrix @ solution, direction, rtol=1e-4, atol=1e-6)


def test_kfac_damps_each_factor_by_its_share_of_the_traces() -> None:
    torch.manual_seed(0)
    states, damping = torch.randn(6, 3, dtype=torch.float64), 0.3
    rows, _ = rows_and_matrix(nn.Sequential(nn.Linear(3, 2)).double(), states)
    inputs = torch.cat([states, states.new_ones(6, 1)], dim=1)
    probabilities = rows.values[-1].softmax(-1)
    factors = (
        (torch.diag_embed(probabilities) - probabilities.unsqueeze(2) * probabilities.unsqueeze(1)).mean(dim=0),
        inputs.t() @ inputs / 6,
    )
    pi = ((factors[1].trace() / 4) / (factors[0].trace() / 2)) ** 0.5
    matrix = torch.kron(factors[0] + damping**0.5 / pi * eye(2), factors[1] + pi * damping**0.5 * eye(4))
    weight, bias = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    expected = torch.linalg.solve(matrix, torch.cat([weight, bias.unsqueeze(1)], dim=1).flatten()).view(2, 4)
    solution = KroneckerFactors(rows, damping).solve(torch.cat([weight.flatten(), bias]))
    torch.testing.assert_close(solution, torch.cat([expected[:, :3].flatten(), expected[:, 3]]))


def test_preconditioned_conjugate_gradients_reach_the_dense_solve(tiny: tuple[FisherRows, Tensor, Tensor]) -> None:
    rows, matrix, direction = tiny
    damped = matrix + 0.1 * eye(len(matrix))
    factors = KroneckerFactors(rows, 0.1)
    solution = preconditioned_conjugate_gradient(lambda vector: damped @ vector, factors.solve, direction, 25)
    torch.testing.assert_close(solution, torch.linalg.solve(damped, direction), rtol=1e-8, atol=1e-8)


def test_small_study_writes_its_rows_its_table_and_its_plot(tmp_path: Path) -> None:
    arguments = ["fisher-solvers", "--task", "Acrobot-v1", "--stage", "1", "--seeds", "1", "--repeats", "1"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "solves.csv").set_index("solver")
    assert list(rows.index) == list(SOLVERS)
    # One rollout is 512 states: the largest sample-space solve is exact up to the rounding of 32-bit numbers.
    assert rows.loc["sample space, 1024 states", "error"] < 1e-3
    assert rows.loc["CG 10, closed form", "error"] == pytest.approx(rows.loc["CG 10, autograd", "error"], abs=1e-3)
    errors = rows.loc[[f"CG {n}, closed form" for n in (3, 5, 10, 20)], "error"]
    assert errors.is_monotonic_decreasing
    assert (tmp_path / "table.md").read_text().count("\n") == 2 + len(SOLVERS)
    assert (tmp_path / "fisher_solvers.png").read_bytes().startswith(b"\x89PNG")
