"""The C x C matrix of response log-probabilities: the plain way, and the fast one that it is checked against.

The plain way runs C^2 sequences of prompt and response and forms logits at every position. The fast way packs one row per
constitution, [prompt, y_1, ..., y_C]: every response sees the prompt and itself (`sami_train.attention`), positions restart after
the prompt, and only the hidden states that predict a response token go through the head (`sami_train.head`). Prompts that begin
alike, as those of one query do, share one row and run their beginning once. Several queries can share a forward pass.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sami_train.attention import Segment
from sami_train.decoder import goes_by_mask, hidden_states
from sami_train.errors import UserError
from sami_train.generation import not_finite

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["mean", "sum"]
Contrasted = tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]
"""A query's prompts (one per constitution) and responses, as token ids."""


def response_logprobs(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    reduction: Reduction = "mean",
    head_block: int | None = None,
    counted: Sequence[Sequence[bool]] | None = None,
) -> Tensor:
    """L[i, j] = log p(response j | prompt i), by packed rows and response-only logits. Differentiable.

    Args:
        model: a causal language model of transformers (a backbone and a linear head).
        prompt_ids: P prompts (one per constitution) as token ids, BOS included.
        response_ids: R responses as token ids, none empty.
        reduction: mean over a response's tokens (SAMI's objective) or their sum (the likelihood of the sequence).
        head_block: entries of the vocabulary whose logits are formed at once; None chooses by the number of positions.
        counted: which tokens of every response count; None: all.

    Returns:
        A (P, R) tensor in float32, in nats.

    Raises:
        ValueError: a prompt or a response is empty.
    """
    packed = pack([(prompt_ids, response_ids)], by_mask=goes_by_mask(model), counted=[counted] if counted else None)
    return cell_logprobs(token_logprobs(model, packed, head_block=head_block), packed, reduction)[0]


def response_logprobs_naive(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """The same matrix, one sequence at a time with logits everywhere: the definition, and the oracle of the fast path."""
    import torch

    _check_not_empty(prompt_ids, response_ids)
    device = next(model.parameters()).device
    cells = []
    for prompt in prompt_ids:
        for response in response_ids:
            logits = (
                model(input_ids=torch.tensor([[*prompt, *response]], device=device), use_cache=False).logits[0].float()
            )
            logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
            chosen = logprobs.gather(1, torch.tensor(response, device=device)[:, None])
            cells.append(chosen.mean() if reduction == "mean" else chosen.sum())
    return torch.stack(cells).view(len(prompt_ids), len(response_ids))


@dataclass(frozen=True)
class Packed:
    """The rows of B queries with P prompts and R responses each, of one width W, and where their N response tokens are
    predicted. Plain lists.

    `segments` says row by row what stands where and what it sees: what the row's prompts begin with, the rest of each prompt, its
    responses; padding (on the right) is in none. `predicting[n]` is the place, counted through all rows (row * W + place in the
    row), whose hidden state predicts `targets[n]`; `cells[n]` is the entry of the (B, P, R) matrices that the token belongs to,
    counted through all of them. `weights[n]` is 1 where the token counts in its cell and 0 where it does not.
    """

    shape: tuple[int, int, int]
    input_ids: list[list[int]]
    position_ids: list[list[int]]
    segments: list[list[Segment]]
    predicting: list[int]
    targets: list[int]
    cells: list[int]
    weights: list[float]

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, padding left out."""
        return sum(segment.stop - segment.start for row in self.segments for segment in row)


SHARED_AT_LEAST = 16
"""Tokens that a query's prompts must all begin with, so that they are put into one row."""


LONGEST_BY_MASK = 2.5
"""How much more attention (pairs of places) the one row may take than a row for every prompt, where hidden pairs cost as well."""


def pack(
    queries: Sequence[Contrasted], *, by_mask: bool = False, counted: Sequence[Sequence[Sequence[bool]]] | None = None
) -> Packed:
    """Lay out a row per query and prompt: the prompt, then every response without its last token (it predicts nothing).

    Where a query's prompts begin alike (the query before the principles), they share one row and that beginning, or one row for
    each half of them where the second half puts another query; with `by_mask` (see `sami_train.decoder.goes_by_mask`) only where
    the row does not become so long that it costs more than it saves. `counted` says of every query's responses which tokens count;
    without it all do.

    Raises:
        ValueError: a prompt or a response is empty, or the queries differ in their numbers of prompts or responses.
    """
    for prompts, responses in queries:
        _check_not_empty(prompts, responses)
    sizes = {(len(prompts), len(responses)) for prompts, responses in queries}
    if len(sizes) != 1:
        raise ValueError(f"queries that are packed together need as many prompts and responses each, got {sizes}")
    (height, breadth) = sizes.pop()
    layouts = [_layout(prompts, responses, by_mask) for prompts, responses in queries]
    width = max(length for rows in layouts for *_, length in rows)
    packed = Packed((len(queries), height, breadth), [], [], [], [], [], [], [])
    for number, ((prompts, responses), rows) in enumerate(zip(queries, layouts, strict=True)):
        for first, last, shared, _ in rows:
            row = _Row(packed, width)
            beginning = row.add(prompts[first][:shared])
            for i in range(first, last):
                prompt = row.add(prompts[i][shared:], *beginning)
                end = row.place - 1
                for j, response in enumerate(responses):
                    packed.predicting.extend([end, *range(row.place, row.place + len(response) - 1)])
                    packed.targets.extend(response)
                    packed.cells.extend([(number * height + i) * breadth + j] * len(response))
                    packed.weights.extend(map(float, counted[number][j]) if counted else [1.0] * len(response))
                    row.add(response[:-1], *beginning, *prompt)
            row.fill()
    return packed


class _Row:
    """A row of `packed` that is being laid out; its tokens are added in order."""

    def __init__(self, packed: Packed, width: int) -> None:
        self.width, self.before = width, len(packed.input_ids) * width
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        packed.input_ids.append(self.ids)
        packed.position_ids.append(self.positions)
        packed.segments.append(self.segments)

    @property
    def place(self) -> int:
        """Place of the next token, counted through all rows."""
        return self.before + len(self.ids)

    def add(self, ids: Sequence[int], *above: Segment) -> list[Segment]:
        """Add a segment that continues those above; none where there are no tokens."""
        if not len(ids):
            return []
        start, position = len(self.ids), above[-1].end if above else 0
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.segments.append(Segment(start, start + len(ids), position, above))
        return self.segments[-1:]

    def fill(self) -> None:
        """Pad to the width."""
        for numbers in (self.ids, self.positions):
            numbers += [0] * (self.width - len(numbers))


def _layout(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], by_mask: bool
) -> list[tuple[int, int, int, int]]:
    """A query's rows: the prompts from first up to last that stand in each, the tokens that they share, the row's length."""
    bodies = sum(len(response) - 1 for response in responses)
    rows = []
    for first, last in _groups(prompts):
        apart = [(i, i + 1, 0, len(prompts[i]) + bodies) for i in range(first, last)]
        shared = _shared(prompts[first:last])
        length = shared + sum(row[3] - shared for row in apart)
        worth = not by_mask or length**2 <= LONGEST_BY_MASK * sum(row[3] ** 2 for row in apart)
        rows += [(first, last, shared, length)] if last - first > 1 and shared >= SHARED_AT_LEAST and worth else apart
    return rows


def _groups(prompts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """All prompts as one group, or the halves where these begin with more in common: each puts its query to all constitutions."""
    count, half = len(prompts), len(prompts) // 2
    if count % 2 or count < 4:
        return [(0, count)]
    saved = (half - 1) * (_shared(prompts[:half]) + _shared(prompts[half:]))
    return [(0, half), (half, count)] if saved > (count - 1) * _shared(prompts) else [(0, count)]


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; every prompt keeps one of its own, which predicts the responses."""
    most = min(map(len, prompts)) - 1
    return next((n for n in range(most) if len({prompt[n] for prompt in prompts}) > 1), most)


def token_logprobs(model: Any, packed: Packed, *, head_block: int | None = None) -> Tensor:
    """Log-probability of every response token of `packed`, (N,) in float32, in nats. Differentiable."""
    forward = getattr(model, FORWARD, None) or types.MethodType(_token_logprobs, model)
    values: Tensor = forward(packed, head_block)
    return values


FORWARD = "_sami_token_logprobs"
"""Name of the method that a sharded model gets, so that calling it gathers and frees weights as its forward does."""


def install_forward(model: Any) -> None:
    """Give a model that `fully_shard` has wrapped the method by which `token_logprobs` runs it."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    setattr(model, FORWARD, types.MethodType(_token_logprobs, model))
    register_fsdp_forward_method(model, FORWARD)


def _token_logprobs(model: Any, packed: Packed, head_block: int | None) -> Tensor:
    import torch

    from sami_train.head import target_logprobs

    device = next(model.parameters()).device
    hidden = hidden_states(model, packed.segments, packed.input_ids, packed.position_ids)
    predicting = hidden.flatten(0, 1)[torch.tensor(packed.predicting, device=device)]
    return target_logprobs(model, predicting, torch.tensor(packed.targets, device=device), block=head_block)


def cell_logprobs(tokens: Tensor, packed: Packed, reduction: Reduction) -> Tensor:
    """From tokens to matrices: (N,) -> (B, P, R), the mean or the sum over each cell's tokens that count; 0 where none does."""
    import torch

    cells = torch.tensor(packed.cells, device=tokens.device)
    weights = torch.tensor(packed.weights, dtype=torch.float32, device=tokens.device)
    nothing = torch.zeros(math.prod(packed.shape), dtype=torch.float32, device=tokens.device)
    sums = nothing.index_add(0, cells, tokens * weights)
    if reduction == "mean":
        sums = sums / nothing.index_add(0, cells, weights).clamp(min=1.0)
    return sums.view(packed.shape)


def diagonal_tokens(packed: Packed) -> list[int]:
    """Indices of the tokens of the diagonal cells (response j under constitution j), query by query, in order."""
    _, height, breadth = packed.shape
    return [n for n, cell in enumerate(packed.cells) if (cell // breadth) % height == cell % breadth]


CHECKED_TOKENS = 64
"""Tokens at the end of a response that the two ways are compared on, where most of what a window hides lies behind them."""


def check_fast_path(model: Any, contrasted: Contrasted, *, tolerance: float = 0.02) -> None:
    """Compare the fast path with the model's own forward on two cells of a query, at its whole length, before it is relied upon.

    The cells are those of the longest and of the shortest prompt with the longest response and another. They may differ by
    `tolerance`, as a share of each log-probability (of 1 nat at least); bfloat16 needs more.

    Raises:
        UserError: they disagree, or the fast path fails: the model does something to its attention or logits that it does not
            know. Or the model's own probabilities are not finite.
    """
    import torch

    from sami_train.norms import closed_form_norms
    from sami_train.rotations import closed_form_rotations

    kind = model.config.model_type
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        raise UserError(
            f"a {kind} model caps its attention's logits, which no fused attention does, so it cannot be "
            "trained here; use a Llama, Mistral, Mixtral, Gemma 3 or Qwen model"
        )
    prompts, responses = contrasted
    i, j = (max(range(len(ids)), key=lambda n: len(ids[n])) for ids in (prompts, responses))
    cells = {(i, j), (min(range(len(prompts)), key=lambda n: len(prompts[n])), (j + 1) % len(responses))}
    with torch.no_grad():
        plain = torch.stack([_end_of_cell(model, prompts[i], responses[j]) for i, j in sorted(cells)])
        if not bool(plain.isfinite().all()):
            raise not_finite(model)
        packed = pack([contrasted], by_mask=goes_by_mask(model))
        try:
            with closed_form_norms(model), closed_form_rotations(model):
                tokens = token_logprobs(model, packed)
        except UserError:
            raise
        except Exception as error:
            said = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"the packed step does not work with a {kind} model ({type(error).__name__}: {said}), so its architecture is not "
                "supported; use a Llama, Mistral, Mixtral, Gemma or Qwen model"
            ) from error
        ends = []
        for i, j in sorted(cells):
            places = [n for n, cell in enumerate(packed.cells) if cell == i * len(responses) + j]
            ends.append(tokens[places[-CHECKED_TOKENS:]].mean())
    apart = (torch.stack(ends) - plain).abs()
    if not bool((apart <= tolerance * plain.abs().clamp(min=1.0)).all()):
        raise UserError(
            f"the packed step and the model's own forward disagree by {apart.max().item():.3g} nats for a {kind} model, so its "
            "architecture is not supported; use a Llama, Mistral, Mixtral, Gemma or Qwen model"
        )


def _end_of_cell(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """The mean log-probability of a response's last tokens by the model's own forward, a scalar in nats."""
    import torch

    device = next(model.parameters()).device
    count = min(len(response), CHECKED_TOKENS)
    fewer = "logits_to_keep" in inspect.signature(model.forward).parameters
    keep = {"logits_to_keep": count + 1} if fewer else {}  # the logits of all places may not fit the memory
    logits = model(input_ids=torch.tensor([[*prompt, *response]], device=device), use_cache=False, **keep).logits
    logprobs = logits[0, -count - 1 : -1].float().log_softmax(-1)
    return logprobs.gather(1, torch.tensor([*response[-count:]], device=device)[:, None]).mean()


def reliable_logprobs(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """The matrix by the fast path where the model agrees with it, by the plain way where it does not. Without gradients.

    It is asked again (`check_fast_path`) whenever sequences are longer than those it was asked at by a half.

    Raises:
        UserError: the model's log-probabilities are not finite.
    """
    import torch

    _check_not_empty(prompt_ids, response_ids)
    longest = max(map(len, prompt_ids)) + max(map(len, response_ids))
    packs, up_to = getattr(model, "_sami_packs", (True, 0))
    with torch.no_grad():
        if packs and longest > up_to:
            try:
                rounded = next(model.parameters()).dtype != torch.float32
                check_fast_path(model, (prompt_ids, response_ids), tolerance=0.1 if rounded else 0.02)
            except UserError:
                packs = False
            model._sami_packs = packs, longest * 3 // 2
        function = response_logprobs if packs else response_logprobs_naive
        matrix = function(model, prompt_ids, response_ids, reduction=reduction)
    if not bool(matrix.isfinite().all()):
        raise not_finite(model)
    return matrix


def _check_not_empty(prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> None:
    for what, lists in (("prompt", prompt_ids), ("response", response_ids)):
        if not lists:
            raise ValueError(f"no {what} was given; at least one is needed")
        for index, ids in enumerate(lists):
            if not len(ids):
                raise ValueError(f"{what} {index} has no token; leave empty ones out")
