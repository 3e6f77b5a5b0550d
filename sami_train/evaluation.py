"""What a model shows on unseen queries: contrastive loss, accuracy, InfoNCE, KL to the base, and a few sampled responses.

The queries and their responses (sampled from the base, once) are the same at every evaluation of a run, so that figures before,
during and after training can be compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sami_train.config import Recipe
from sami_train.decoder import goes_by_mask
from sami_train.distributed import World
from sami_train.errors import UserError
from sami_train.logprobs import cell_logprobs, diagonal_tokens, pack, token_logprobs
from sami_train.loss import contrast_metrics, kl_to_base
from sami_train.pairs import Example
from sami_train.step import Reference, compute


def contrast_figures(
    model: Any, examples: Sequence[Example], recipe: Recipe, world: World, reference: Reference | None
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Means over the queries with 95% t intervals (`*_ci`), and the log-probabilities that serve as `reference` later.

    `losses` has the loss of each query, in the order of `examples`, which `loss_change` pairs. loss, mi_lower_bound (InfoNCE:
    log C - loss, of mean token log-probabilities) and kl are in nats, accuracy is a fraction, logps are in nats per token. `kl` is
    there when a reference is.

    Raises:
        UserError: a figure of a query is not finite: the model is broken (on every device, naming the query).
    """
    import torch

    was_training = model.training
    model.eval()
    mine = [examples[index % len(examples)] for index in _places(len(examples), world)]
    rows: list[dict[str, float]] = []
    logprobs: dict[str, list[float]] = {}
    for example in mine:
        packed = pack([(example.prompt_ids, example.response_ids)], by_mask=goes_by_mask(model))
        with torch.no_grad(), compute(recipe, world):
            tokens = token_logprobs(model, packed)
        row = contrast_metrics(cell_logprobs(tokens, packed, "mean")[0])
        own = tokens[torch.tensor(diagonal_tokens(packed), device=tokens.device)]
        logprobs[example.query_id] = own.tolist()
        if reference is not None:
            base = torch.tensor(reference[example.query_id], device=tokens.device)
            row["kl"] = kl_to_base(own, base).mean().item()
        rows.append(row)
    model.train(was_training)
    found: dict[str, dict[str, float]] = {}
    for ids, part, known in world.gather(([e.query_id for e in mine], rows, logprobs)):
        found.update(zip(ids, part, strict=True))
        logprobs.update(known)
    for example in examples:
        if not all(map(math.isfinite, found[example.query_id].values())):
            raise UserError(
                f"the model gives no finite log-probabilities for the unseen query '{example.query_id}'; finished work is kept; "
                "lower learning_rate"
            )
    return _summary([found[example.query_id] for example in examples]), logprobs


def _places(count: int, world: World) -> range:
    """This process's examples by number; the last ones may be beyond the end, so that all processes run as many."""
    return range(world.rank, math.ceil(count / world.size) * world.size, world.size)


def _summary(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    accuracies = [(row["accuracy/row"] + row["accuracy/col"]) / 2 for row in rows]
    bounds = [row["mi_lower_bound"] for row in rows]
    losses = [row["loss"] for row in rows]
    summary = {
        "n": len(rows),
        "loss": statistics.fmean(losses),
        "loss_ci": mean_interval(losses),
        "losses": losses,
        "accuracy": statistics.fmean(accuracies),
        "accuracy_ci": share_interval(accuracies),
        "mi_lower_bound": statistics.fmean(bounds),
        "mi_lower_bound_ci": mean_interval(bounds),
        "logps/diagonal": statistics.fmean(row["logps/diagonal"] for row in rows),
        "logps/off_diagonal": statistics.fmean(row["logps/off_diagonal"] for row in rows),
    }
    return {**summary, "kl": statistics.fmean(row["kl"] for row in rows)} if "kl" in rows[0] else summary


def loss_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """How far the loss moved on the same queries: the mean of after minus before, in nats, and Student's t interval of the pairs
    at 95%.

    Figures of an older version have no `losses`: then both are None.
    """
    if "losses" not in before:
        return {"loss_change": None, "loss_change_ci": None}
    changes = [now - then for then, now in zip(before["losses"], after["losses"], strict=True)]
    return {"loss_change": statistics.fmean(changes), "loss_change_ci": mean_interval(changes)}


def share_interval(values: Sequence[float]) -> list[float]:
    """The same of values in [0, 1]. Where all n of them are equal, what Clopper and Pearson (1934) leave for other values:
    queries that show this one are at least 0.025^(1/n) of all, and the others may show anything.
    """
    if len(set(values)) > 1:
        low, high = mean_interval(values)
        return [max(0.0, low), min(1.0, high)]
    alike = 0.025 ** (1 / len(values))
    return [alike * values[0], alike * values[0] + 1 - alike]


def mean_interval(values: Sequence[float]) -> list[float]:
    """Student's t interval of a mean at 95%. Two values at least."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.fmean(values) - half, statistics.fmean(values) + half]
