"""The SAMI objective, and nothing else.

For a query x, C constitutions c_1..c_C and a response y_j sampled under each, L[i, j] is the log-probability of y_j given x
and c_i. The loss raises the diagonal against its row (which response belongs to this constitution?) and against its column
(which constitution does this response belong to?). Fränken et al., NeurIPS 2024 (arXiv 2404.14313), section 3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Sides = Literal["both", "rows", "columns"]


def sami_loss(logprobs: Tensor, sides: Sides = "both") -> Tensor:
    """Symmetric InfoNCE over the (C, C) matrix of response log-probabilities; a batch (B, C, C) gives the batch's mean.

    loss = 1/2 (mean_i CE(row i, i) + mean_j CE(column j, j)), in nats. log C - loss is the nominal lower bound on the mutual
    information (nominal, because training uses means over tokens and not the likelihood of the sequence). `sides` keeps one of
    the two cross-entropies: that of the rows (over responses) or that of the columns (over constitutions), not halved.

    Raises:
        ValueError: the matrix is not square, or C < 2.
    """
    rows, columns = row_and_column_losses(logprobs)
    if sides != "both":
        return (rows if sides == "rows" else columns).mean()
    return (rows.mean() + columns.mean()) / 2


def query_loss(logprobs: Tensor) -> Tensor:
    """Cross-entropy, in nats, of each response's own query against another one under the same constitution.

    `logprobs` has shape (2 C, C): entry (i, j) is the log-probability of response j after its query under constitution i and,
    in the rows from C on, after the other query under constitution i - C. The mean over j of -log softmax of the pair
    (j, j), (C + j, j) at its first: InfoNCE (van den Oord et al. 2018) of the mutual information of response and query given the
    constitution, which together with `sami_loss` bounds that of response and (query, constitution).

    Raises:
        ValueError: the matrix is not twice as high as it is broad.
    """
    from torch.nn import functional

    size = logprobs.shape[-1]
    if logprobs.ndim != 2 or logprobs.shape[0] != 2 * size:
        raise ValueError(f"a contrast over queries needs a matrix of shape (2 C, C), and got {tuple(logprobs.shape)}")
    own, other = logprobs[:size].diagonal(), logprobs[size:].diagonal()
    return functional.softplus(other - own).mean()


def kl_to_base(logprobs: Tensor, base: Tensor) -> Tensor:
    """Estimated KL(base || model) of every token, in nats: exp(d) - d - 1 with d = l - b. Shapes (N,), (N,) -> (N,).

    `logprobs` and `base` are the two models' log-probabilities l and b of the tokens. Never negative, and unbiased where the
    tokens are the base's samples (the "k3" estimator of J. Schulman, "Approximating KL divergence", 2020). From d = 1 on it goes
    on as a straight line: responses are mostly greedy and no random samples, and by the exponential one token that the base
    thinks unlikely would outweigh all others.
    """
    difference = logprobs - base
    near = difference.clamp(max=1.0)
    return near.exp() - near - 1 + (math.e - 1) * (difference - near)


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
