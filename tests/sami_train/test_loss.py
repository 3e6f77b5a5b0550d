"""The objective against a computation written out in float64 from its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sami_train import sami_loss
from sami_train.loss import contrast_metrics, kl_to_base, query_loss, row_and_column_losses


def written_out(matrix: np.ndarray) -> float:
    size = len(matrix)
    total = 0.0
    for i in range(size):
        row = math.log(sum(math.exp(matrix[i, j]) for j in range(size))) - matrix[i, i]
        column = math.log(sum(math.exp(matrix[j, i]) for j in range(size))) - matrix[i, i]
        total += row / size + column / size
    return total / 2


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_loss_is_the_formula(size: int) -> None:
    matrix = np.random.default_rng(size).normal(-2, 1, (size, size))
    assert sami_loss(torch.tensor(matrix)).item() == pytest.approx(written_out(matrix), abs=1e-12)


def test_batch_is_the_mean_of_its_matrices() -> None:
    batch = torch.randn(4, 3, 3, dtype=torch.float64)
    assert sami_loss(batch).item() == pytest.approx(np.mean([written_out(m.numpy()) for m in batch]), abs=1e-12)


def test_a_flat_matrix_tells_nothing() -> None:
    assert sami_loss(torch.full((4, 4), -3.0)).item() == pytest.approx(math.log(4), rel=1e-6)
    metrics = contrast_metrics(torch.full((4, 4), -3.0))
    assert metrics["accuracy/row"] == metrics["accuracy/col"] == 0.0
    assert metrics["mi_lower_bound"] == pytest.approx(0.0, abs=1e-6)


def test_rows_are_constitutions_and_columns_responses() -> None:
    # One response is likely under every constitution: every row picks it (row accuracy 1/2), every column finds its diagonal.
    matrix = torch.tensor([[-1.0, -5.0], [-2.0, -3.0]])
    metrics = contrast_metrics(matrix)
    assert metrics["accuracy/row"] == 0.5
    assert metrics["accuracy/col"] == 1.0
    rows, columns = row_and_column_losses(matrix)
    assert rows.item() > columns.item()
    assert metrics["logps/diagonal"] == pytest.approx(-2.0)
    assert metrics["logps/off_diagonal"] == pytest.approx(-3.5)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (4,), (2, 1, 1)])
def test_a_matrix_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="C >= 2"):
        sami_loss(torch.zeros(shape))


@pytest.mark.parametrize("size", [2, 4])
def test_one_side_is_its_cross_entropy(size: int) -> None:
    matrix = np.random.default_rng(size).normal(-2, 1, (size, size))
    rows = np.mean([np.log(np.exp(matrix[i]).sum()) - matrix[i, i] for i in range(size)])
    columns = np.mean([np.log(np.exp(matrix[:, i]).sum()) - matrix[i, i] for i in range(size)])
    assert sami_loss(torch.tensor(matrix), "rows").item() == pytest.approx(rows, abs=1e-12)
    assert sami_loss(torch.tensor(matrix), "columns").item() == pytest.approx(columns, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_contrast_over_queries_is_the_formula(size: int) -> None:
    """A cross-entropy of two for every response; only the two diagonals get a gradient: p - 1 and 1 - p, over C."""
    matrix = np.random.default_rng(size).normal(-2, 1, (2 * size, size))
    own, other = np.exp(matrix[:size].diagonal()), np.exp(matrix[size:].diagonal())
    share = own / (own + other)
    logprobs = torch.tensor(matrix, requires_grad=True)
    loss = query_loss(logprobs)
    assert loss.item() == pytest.approx(-np.log(share).mean(), abs=1e-12)
    loss.backward()
    expected = np.concatenate([np.diag(share - 1), np.diag(1 - share)]) / size
    assert logprobs.grad is not None
    np.testing.assert_allclose(logprobs.grad.numpy(), expected, atol=1e-12)


def test_a_far_other_query_costs_nothing_and_a_likelier_one_its_lead() -> None:
    far = torch.tensor([[0.0], [-1e4]], dtype=torch.float64)
    assert query_loss(far).item() == 0.0
    assert query_loss(far.flip(0)).item() == 1e4


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (2, 4), (4,), (1, 4, 2)])
def test_a_contrast_over_queries_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs a matrix of shape \(2 C, C\)"):
        query_loss(torch.zeros(shape))


def test_kl_estimate_is_unbiased_and_never_negative() -> None:
    """Its mean over the base's samples is the KL: summed exactly over a small vocabulary instead of sampled."""
    generator = torch.Generator().manual_seed(0)
    model, base = ((torch.randn(50, generator=generator, dtype=torch.float64) * 0.2).log_softmax(0) for _ in range(2))
    estimates = kl_to_base(model, base)
    assert (estimates >= 0).all()
    exact = (base.exp() * (base - model)).sum()
    assert (base.exp() * estimates).sum().item() == pytest.approx(exact.item(), abs=1e-12)
    assert kl_to_base(model, model).abs().max().item() == 0.0


def test_kl_estimate_grows_in_a_straight_line_and_smoothly() -> None:
    difference = torch.tensor([-20.0, 1.0 - 1e-6, 1.0 + 1e-6, 20.0], dtype=torch.float64, requires_grad=True)
    estimates = kl_to_base(difference, torch.zeros(4, dtype=torch.float64))
    assert estimates[0].item() == pytest.approx(19.0, abs=1e-6)
    assert estimates[1].item() == pytest.approx(estimates[2].item(), abs=1e-5)
    assert estimates[3].item() == pytest.approx(math.e - 2 + 19 * (math.e - 1))
    estimates.sum().backward()
    assert difference.grad is not None
    assert difference.grad.tolist() == pytest.approx([math.exp(-20) - 1, math.e - 1, math.e - 1, math.e - 1], abs=1e-5)
