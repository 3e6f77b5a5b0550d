"""One gradient step: from a batch of examples to accumulated gradients, on one device or many, and its figures.

Every query's loss is divided by the number of queries in the whole batch, over all devices, so that the update depends neither
on the size of the micro-batches nor on the number of devices. A device with fewer queries than another goes along with an
example of weight 0, since a sharded model runs on all devices or on none.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sami_train.config import Recipe
from sami_train.decoder import goes_by_mask
from sami_train.distributed import World
from sami_train.errors import UserError
from sami_train.logprobs import Contrasted, Packed, cell_logprobs, diagonal_tokens, pack, token_logprobs
from sami_train.loss import contrast_metrics, kl_to_base, query_loss, sami_loss
from sami_train.pairs import Example

if TYPE_CHECKING:
    from torch import Tensor

Reference = Mapping[str, Sequence[float]]
"""By query id: the base's log-probabilities of the diagonal's response tokens, one response after another."""


@dataclass(frozen=True)
class StepResult:
    """What a step showed: means over the queries of the batch, and the tokens that all devices ran."""

    figures: dict[str, float]
    tokens: int


def accumulate(
    model: Any,
    batch: Sequence[Example],
    recipe: Recipe,
    world: World,
    *,
    reference: Reference | None = None,
    on_query: Callable[[int], None] = lambda _: None,
) -> StepResult:
    """Add the gradient of the batch's mean loss to the model's gradients. Every device gets the whole batch and takes its part.

    Args:
        reference: the base's log-probabilities, needed where the recipe has a KL penalty (`beta` above 0).
        on_query: called with the number of queries that this device has done.

    Raises:
        UserError: the loss of a query is not finite (on every device, naming the query).
    """
    with lean(model, sharded=world.size > 1):
        return _accumulate(model, batch, recipe, world, reference, on_query)


@contextmanager
def lean(model: Any, *, sharded: bool) -> Iterator[None]:
    """What makes a step of the model lighter and changes its numbers by rounding alone.

    A `sharded` model's whole gradients are reduced after every use, so there is nothing to add them to in place.
    """
    from sami_train.casts import casts_once
    from sami_train.head import gradients_in_place
    from sami_train.norms import closed_form_norms
    from sami_train.rotations import closed_form_rotations

    in_place = nullcontext() if sharded else gradients_in_place(model)
    with closed_form_norms(model), closed_form_rotations(model), casts_once(model), in_place:
        yield


def _accumulate(
    model: Any,
    batch: Sequence[Example],
    recipe: Recipe,
    world: World,
    reference: Reference | None,
    on_query: Callable[[int], None],
) -> StepResult:
    used = batch[-recipe.gradient_queries :] if recipe.gradient_queries else batch
    micro_batches = _micro_batches(len(used), recipe.per_device_train_batch_size, world)
    rows: list[dict[str, float]] = []
    broken: list[str] = []
    tokens = 0
    for number, indices in enumerate(micro_batches):
        last = number + 1 == len(micro_batches)
        world.synchronise_gradients(model, last or recipe.gradient_sync == "every")
        examples = [used[index] for index in indices] or [used[0]]
        scale = recipe.loss_scale * world.size / len(used) if indices else 0.0
        found, ran = _micro_step(model, examples, recipe, world, scale, reference)
        if indices:
            rows += found
            tokens += ran
            broken += [e.query_id for e, row in zip(examples, found, strict=True) if not math.isfinite(row["loss"])]
        on_query(len(rows))
    gathered = world.gather((rows, broken, tokens))
    if everywhere := [query for _, ids, _ in gathered for query in ids]:
        raise UserError(
            f"the loss of query '{everywhere[0]}' is not finite; what came before is kept; lower learning_rate, "
            "or leave that query out"
        )
    everyone = [row for part, _, _ in gathered for row in part]
    figures = {key: statistics.fmean(row[key] for row in everyone) for key in everyone[0]}
    return StepResult(figures, sum(count for _, _, count in gathered))


def _micro_batches(queries: int, size: int, world: World) -> list[list[int]]:
    """This device's queries, micro-batch by micro-batch; as many of them on every device, some perhaps empty."""
    mine = list(range(world.rank, queries, world.size))
    most = math.ceil(queries / world.size)
    return [mine[start : start + size] for start in range(0, most, size)]


def _micro_step(
    model: Any, examples: Sequence[Example], recipe: Recipe, world: World, scale: float, reference: Reference | None
) -> tuple[list[dict[str, float]], int]:
    """Forward and backward for some queries at once. Returns the figures of each, and the tokens run."""
    if recipe.caches_gradients:
        return _cached_micro_step(model, examples, recipe, world, scale, reference)
    packed = pack([_contrasted(e, recipe) for e in examples], by_mask=goes_by_mask(model), counted=_counted(examples))
    with compute(recipe, world):
        tokens = token_logprobs(model, packed)
    matrices = cell_logprobs(tokens, packed, recipe.logprob_reduction)
    loss = sum((objective(matrix, recipe) for matrix in matrices), start=tokens.new_zeros(()))
    kl = _kl(tokens, packed, examples, reference)
    if kl is not None:
        loss = loss + recipe.beta * kl.sum()
    (loss * scale).backward()
    return _figures(matrices, kl, examples, recipe), packed.tokens


def _cached_micro_step(
    model: Any, examples: Sequence[Example], recipe: Recipe, world: World, scale: float, reference: Reference | None
) -> tuple[list[dict[str, float]], int]:
    """The same gradient with the memory of one constitution: forward without gradients, dLoss/dL, then row by row again."""
    import torch

    contrasted = [_contrasted(e, recipe) for e in examples]
    height, size = len(contrasted[0][0]), len(examples[0].response_ids)
    counted = _counted(examples)
    rows = [
        pack([(prompts[i : i + 1], responses) for prompts, responses in contrasted], counted=counted)
        for i in range(height)
    ]
    reduction = recipe.logprob_reduction
    with torch.no_grad(), compute(recipe, world):
        matrices = torch.cat([cell_logprobs(token_logprobs(model, row), row, reduction) for row in rows], dim=1)
    matrices = matrices.detach().requires_grad_()
    losses = torch.stack([objective(matrix, recipe) for matrix in matrices])
    (slopes,) = torch.autograd.grad(losses.sum(), matrices)
    kls = []
    synchronise = world.synchronising
    for i, row in enumerate(rows):
        last = i + 1 == height
        world.synchronise_gradients(model, synchronise and (last or recipe.gradient_sync == "every"))
        with compute(recipe, world):
            tokens = token_logprobs(model, row)
        surrogate = (slopes[:, i] * cell_logprobs(tokens, row, reduction)[:, 0]).sum()
        kl = _kl(tokens, row, examples, reference, only=i) if i < size else None
        if kl is not None:
            surrogate = surrogate + recipe.beta * kl.sum()
            kls.append(kl.detach())
        (surrogate * scale).backward()
    total = torch.stack(kls).sum(0) if kls else None
    return _figures(matrices, total, examples, recipe), 2 * sum(row.tokens for row in rows)


def _kl(
    tokens: Tensor, packed: Packed, examples: Sequence[Example], reference: Reference | None, only: int | None = None
) -> Tensor | None:
    """Per query the KL to the base: mean over a response's tokens, then over the C responses. (B,)

    With `only`, the packed rows are those of that one constitution, and its share of the mean is returned.
    """
    if reference is None:
        return None
    import torch

    size = len(examples[0].response_ids)
    indices = diagonal_tokens(packed)
    if only is not None:
        indices = [n for n, cell in enumerate(packed.cells) if cell % size == only]
    base: list[float] = []
    owners: list[int] = []
    weights: list[float] = []
    for number, example in enumerate(examples):
        known, start = reference[example.query_id], 0
        for j, response in enumerate(example.response_ids):
            if only is None or j == only:
                base += known[start : start + len(response)]
                owners += [number] * len(response)
                weights += [1 / (size * len(response))] * len(response)
            start += len(response)
    device = tokens.device
    per_token = kl_to_base(tokens[torch.tensor(indices, device=device)], torch.tensor(base, device=device))
    return tokens.new_zeros(len(examples)).index_add(
        0, torch.tensor(owners, device=device), per_token * torch.tensor(weights, device=device)
    )


def objective(matrix: Tensor, recipe: Recipe) -> Tensor:
    """The loss of one query's matrix, shape (C, C), or (2 C, C) with the contrast over queries; without the KL penalty."""
    size = matrix.shape[-1]
    loss = sami_loss(matrix[:size], recipe.loss_sides)
    return loss if len(matrix) == size else loss + recipe.query_contrast * query_loss(matrix)


def _counted(examples: Sequence[Example]) -> list[tuple[tuple[bool, ...], ...]] | None:
    return [e.counted for e in examples] if all(e.counted for e in examples) else None


def _contrasted(example: Example, recipe: Recipe) -> Contrasted:
    return example.contrasted if recipe.contrasts_queries else (example.prompt_ids, example.response_ids)


def _figures(
    matrices: Tensor, kl: Tensor | None, examples: Sequence[Example], recipe: Recipe
) -> list[dict[str, float]]:
    """The figures of every query. `loss` is the loss that is minimised, penalty included."""
    found = []
    for number, example in enumerate(examples):
        matrix, size = matrices[number].detach().double(), len(example.response_ids)
        row = contrast_metrics(matrix[:size])
        row["loss"] = objective(matrix, recipe).item()
        if len(matrix) > size:
            row["loss/query"] = query_loss(matrix).item()
        if kl is not None:
            row["kl"] = kl[number].item()
            row["loss"] += recipe.beta * row["kl"]
        found.append({**row, "completions/mean_length": statistics.fmean(len(ids) for ids in example.response_ids)})
    return found


def compute(recipe: Recipe, world: World) -> AbstractContextManager[Any]:
    """The precision that a forward pass runs in: bfloat16 over float32 weights by autocast, unless sharding casts already."""
    import torch

    casts = recipe.bf16 and recipe.master_dtype == "float32" and world.size == 1
    context: AbstractContextManager[Any] = torch.autocast(world.device_type, dtype=torch.bfloat16, enabled=casts)
    return context


def reference_logprobs(model: Any, examples: Sequence[Example], recipe: Recipe, world: World) -> list[list[float]]:
    """For each example the model's log-probabilities of the diagonal's tokens, as `Reference` keeps them of the base."""
    import torch

    packed = pack([(e.prompt_ids, e.response_ids) for e in examples], by_mask=goes_by_mask(model))
    with torch.no_grad(), compute(recipe, world):
        tokens = token_logprobs(model, packed)
    values = iter(tokens[torch.tensor(diagonal_tokens(packed), device=tokens.device)].tolist())
    return [list(itertools.islice(values, sum(map(len, e.response_ids)))) for e in examples]
