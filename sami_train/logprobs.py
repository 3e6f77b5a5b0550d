"""The C x C matrix of response log-probabilities: the plain way, and the fast one that it is checked against.

The plain way runs C^2 sequences of prompt and response and forms logits at every position. The fast way packs one row per
constitution, [prompt, y_1, ..., y_C]: every response sees the prompt and itself (a block mask), positions restart after the
prompt, and only the hidden states that predict a response token go through the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["mean", "sum"]
HEAD_CHUNK = 512
"""Response positions whose logits are held at once; more are done in chunks that are recomputed in the backward pass."""


def response_logprobs(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    reduction: Reduction = "mean",
    head_chunk: int = HEAD_CHUNK,
) -> Tensor:
    """L[i, j] = log p(response j | prompt i), by packed rows and response-only logits. Differentiable.

    Args:
        model: a causal language model of transformers (a backbone and a linear head).
        prompt_ids: P prompts (one per constitution) as token ids, BOS included.
        response_ids: R responses as token ids, none empty.
        reduction: mean over a response's tokens (SAMI's objective) or their sum (the likelihood of the sequence).
        head_chunk: see HEAD_CHUNK.

    Returns:
        A (P, R) tensor in float32, in nats.

    Raises:
        ValueError: a prompt or a response is empty.
    """
    import torch

    packed = pack(prompt_ids, response_ids)
    device = next(model.parameters()).device
    hidden = model.get_decoder()(
        input_ids=torch.tensor(packed.input_ids, device=device),
        position_ids=torch.tensor(packed.position_ids, device=device),
        attention_mask=_attention_mask(model.config, packed, device),
        use_cache=False,
    ).last_hidden_state
    rows = torch.arange(len(prompt_ids), device=device)[:, None]
    predicting = hidden[rows, torch.tensor(packed.predicting, device=device)]  # (P, T, H), T = all response tokens
    targets = torch.tensor(packed.targets, device=device).expand(len(prompt_ids), -1)  # (P, T)
    token_logprobs = _head_logprobs(model, predicting.flatten(0, 1), targets.flatten(), head_chunk)
    owners = torch.tensor(packed.owners, device=device)
    sums = torch.zeros(len(prompt_ids), len(response_ids), dtype=torch.float32, device=device)
    sums = sums.index_add(1, owners, token_logprobs.view(len(prompt_ids), -1))
    if reduction == "sum":
        return sums
    return sums / torch.tensor([len(r) for r in response_ids], device=device)


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
    """P rows of one width W, and where their T response tokens are predicted. Plain lists; padding stands on the right.

    `blocks` numbers what a token belongs to: 0 the prompt, j + 1 response j, -1 padding. `predicting[p][t]` is the index in
    row p whose hidden state predicts `targets[t]`, a token of response `owners[t]`.
    """

    input_ids: list[list[int]]
    position_ids: list[list[int]]
    blocks: list[list[int]]
    predicting: list[list[int]]
    targets: list[int]
    owners: list[int]


def pack(prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> Packed:
    """Lay out one row per prompt: the prompt, then every response without its last token (which predicts nothing)."""
    _check_not_empty(prompt_ids, response_ids)
    bodies = [list(response[:-1]) for response in response_ids]
    longest = max(len(prompt) for prompt in prompt_ids)
    width = longest + sum(len(body) for body in bodies)
    packed = Packed(
        [], [], [], [], [t for r in response_ids for t in r], [j for j, r in enumerate(response_ids) for _ in r]
    )
    for prompt in prompt_ids:
        ids, positions, blocks, predicting = list(prompt), list(range(len(prompt))), [0] * len(prompt), []
        for j, body in enumerate(bodies):
            predicting += [len(prompt) - 1, *range(len(ids), len(ids) + len(body))]
            positions += range(len(prompt), len(prompt) + len(body))
            ids += body
            blocks += [j + 1] * len(body)
        padding = width - len(ids)
        packed.input_ids.append(ids + [0] * padding)
        packed.position_ids.append(positions + [0] * padding)
        packed.blocks.append(blocks + [-1] * padding)
        packed.predicting.append(predicting)
    return packed


def _check_not_empty(prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> None:
    for what, lists in (("prompt", prompt_ids), ("response", response_ids)):
        if not lists:
            raise ValueError(f"no {what} was given; at least one is needed")
        for index, ids in enumerate(lists):
            if not len(ids):
                raise ValueError(f"{what} {index} has no token; leave empty ones out")


def _attention_mask(config: Any, packed: Packed, device: Any) -> Any:
    """The block mask as (P, 1, W, W) booleans, one per kind of layer where the model has several.

    A sliding window is counted in positions (as in an unpacked sequence), not in places of the packed row.
    """
    import torch

    blocks = torch.tensor(packed.blocks, device=device)
    positions = torch.tensor(packed.position_ids, device=device)
    width = blocks.shape[1]
    query, key = blocks[:, :, None], blocks[:, None, :]
    order = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    visible = order & ((key == 0) | (key == query))
    itself = torch.eye(width, dtype=torch.bool, device=device)  # padding sees itself: a row without any key gives NaN
    full = (visible | itself)[:, None]
    window = getattr(config, "sliding_window", None)
    near = positions[:, :, None] - positions[:, None, :] < (window or width)
    sliding = ((visible & near) | itself)[:, None]
    if getattr(config, "layer_types", None):
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding if window else full


def _head_logprobs(model: Any, hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Log-probability of each target token from its hidden state: (N, H), (N,) -> (N,) in float32."""
    import torch
    from torch.utils.checkpoint import checkpoint

    head = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)

    def piece(states: Tensor, wanted: Tensor) -> Tensor:
        logits = head(states)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return -torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")

    if len(hidden) <= chunk:
        return piece(hidden, targets)
    pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(piece, states, wanted, use_reentrant=False) for states, wanted in pieces])
