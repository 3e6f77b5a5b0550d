"""The SAMI objective, and nothing else.

For a query x, C constitutions c_1..c_C and a response y_j sampled under each, L[i, j] is the log-probability of y_j given x
and c_i. The loss raises the diagonal against its row (which response belongs to this constitution?) and against its column
(which constitution does this response belong to?). Fränken et al., NeurIPS 2024 (arXiv 2404.14313), section 3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sami_loss(logprobs: Tensor) -> Tensor:
    """Symmetric InfoNCE over the (C, C) matrix of response log-probabilities; a batch (B, C, C) gives the batch's mean.

    loss = 1/2 (mean_i CE(row i, i) + mean_j CE(column j, j)), in nats. log C - loss is the nominal lower bound on the mutual
    information (nominal, because training uses means over tokens and not the likelihood of the sequence).

    Raises:
        ValueError: the matrix is not square, or C < 2.
    """
    rows, columns = row_and_column_losses(logprobs)
    return (rows.mean() + columns.mean()) / 2


def row_and_column_losses(logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """The two cross-entropies of every matrix, each of shape (B,) (or () for one matrix), in nats."""
    if logprobs.ndim not in (2, 3) or logprobs.shape[-1] != logprobs.shape[-2] or logprobs.shape[-1] < 2:
        raise ValueError(f"expected a (C, C) or (B, C, C) matrix with C >= 2, got the shape {tuple(logprobs.shape)}")
    rows = -logprobs.log_softmax(-1).diagonal(dim1=-2, dim2=-1).mean(-1)
    columns = -logprobs.log_softmax(-2).diagonal(dim1=-2, dim2=-1).mean(-1)
    return rows, columns


def contrast_metrics(logprobs: Tensor) -> dict[str, float]:
    """What is logged of one (C, C) matrix: losses and bound in nats, accuracies as fractions, mean log-probabilities.

    An argmax that ties with another entry counts as wrong.
    """
    matrix = logprobs.detach().double()
    rows, columns = row_and_column_losses(matrix)
    size = matrix.shape[-1]
    diagonal = matrix.diagonal()
    off = (matrix.sum() - diagonal.sum()) / (size * size - size)
    beats_row = (matrix >= diagonal[:, None]).sum(1) == 1
    beats_column = (matrix >= diagonal[None, :]).sum(0) == 1
    loss = (rows + columns) / 2
    return {
        "loss": loss.item(),
        "loss/row": rows.item(),
        "loss/col": columns.item(),
        "mi_lower_bound": math.log(size) - loss.item(),
        "accuracy/row": beats_row.double().mean().item(),
        "accuracy/col": beats_column.double().mean().item(),
        "logps/diagonal": diagonal.mean().item(),
        "logps/off_diagonal": off.item(),
    }
