"""Steps, tokens and operations of a run, and the time that they take at a given speed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sami_train.baselines import sequences_of_a_query
from sami_train.config import Recipe
from sami_train.errors import UserError
from sami_train.files import read_rows
from sami_train.text import counted

if TYPE_CHECKING:
    from sami_train.planning.rehearsal import Lengths
    from sami_train.planning.shape import Architecture, Parameters


@dataclass(frozen=True)
class Iteration:
    """What an iteration takes. Tokens are those that go through the model; `plain_tokens` are those of the C x C sequences that
    define SAMI's objective (None with the baselines, whose tokens are those of plain sequences). `flops`: floating-point
    operations of its gradient steps; of sampling and of the selection by it, `sampling_flops`."""

    number: int
    steps: int
    queries: int
    responses: int
    tokens: int
    plain_tokens: int | None
    sampled_tokens: int
    flops: float
    sampling_flops: float


FORMULA = (
    "forward: 2 operations per active parameter and token, 4 x width x row per token and layer for attention (Kaplan et al. "
    "2020, arXiv 2001.08361; Chowdhery et al. 2022, arXiv 2204.02311, appendix B), the head for response tokens only; backward: "
    "the same again, and once more for weights that are trained; one more forward of what is done again: recomputed layers, "
    "logits that are not kept, everything with gradient caching, DPO's reference; TRL's head is counted for every token on a "
    "CPU, for response tokens on a GPU, as it computes them"
)


@dataclass(frozen=True)
class QueryWork:
    """What one query takes in a gradient step: sequences, the tokens of each, and those whose logits are computed, of all."""

    sequences: int
    width: int
    heads: int

    @property
    def tokens(self) -> int:
        """Tokens that go through the layers."""
        return self.sequences * self.width


def query_work(recipe: Recipe, prompt: int, response: int, kind: str = "cpu") -> QueryWork:
    """What a query takes whose prompts and responses have so many tokens, on a device of a kind (cpu, cuda)."""
    size = recipe.constitutions_per_query
    if recipe.method == "sami":
        rows = recipe.prompts_per_query
        return QueryWork(rows, prompt + size * (response - 1), rows * size * response)
    sequences = sequences_of_a_query(recipe)
    return QueryWork(sequences, prompt + response, sequences * (response if kind == "cuda" else prompt + response - 1))


def plan_work(
    architecture: Architecture, parameters: Parameters, recipe: Recipe, lengths: Lengths, kind: str = "cpu"
) -> list[Iteration]:
    """What every iteration takes on devices of a kind (cpu, cuda), for examples of these lengths."""
    return [_iteration(architecture, parameters, recipe, lengths, n, kind) for n in range(1, recipe.iterations + 1)]


def _iteration(
    architecture: Architecture, parameters: Parameters, recipe: Recipe, lengths: Lengths, number: int, kind: str
) -> Iteration:
    steps = recipe.steps(number)
    queries = steps * (recipe.gradient_queries or recipe.batch_size)
    work = query_work(recipe, lengths.prompt, lengths.response, kind)
    size, whole = recipe.constitutions_per_query, lengths.prompt + lengths.response
    layers = 2.0 * parameters.active * work.tokens + attention_flops(architecture, work.tokens, work.width)
    head = 2.0 * parameters.head * work.heads
    flops = queries * _passes(layers, head, parameters, recipe)
    if recipe.method != "sami" or not _logits_are_kept(architecture, recipe, lengths):
        flops += queries * head
    if recipe.beta and recipe.method != "sft":
        own = (layers + head) * size / recipe.prompts_per_query  # the base is asked after the own query alone
        flops += (queries if recipe.method == "dpo" else recipe.batches(number) * recipe.batch_size) * own
    responses = recipe.queries_needed(number) * size
    sampling = 2.0 * parameters.active * whole + attention_flops(architecture, whole, whole / 2)
    sampling_flops = responses * (sampling + 2.0 * parameters.head * lengths.response)
    if recipe.selection == "pmi":  # every response once more, after each of its query's prompts
        width = lengths.prompt + size * (lengths.response - 1)
        tokens = responses * width
        sampling_flops += 2.0 * parameters.active * tokens + attention_flops(architecture, tokens, width)
        sampling_flops += 2.0 * parameters.head * responses * size * lengths.response
    return Iteration(
        number=number,
        steps=steps,
        queries=queries,
        responses=responses,
        tokens=queries * work.tokens * (2 if recipe.caches_gradients else 1),
        plain_tokens=queries * recipe.prompts_per_query * size * whole if recipe.method == "sami" else None,
        sampled_tokens=responses * lengths.response,
        flops=flops,
        sampling_flops=sampling_flops,
    )


def _passes(layers: float, head: float, parameters: Parameters, recipe: Recipe) -> float:
    """Operations of a query's forward and backward passes."""
    trained = parameters.layer_trainable / parameters.layer
    forward = layers + head
    backward = layers * (1 + trained) + head * (2 if parameters.root_trainable >= parameters.head else 1)
    again = layers if recipe.gradient_checkpointing else 0.0
    return forward + backward + again + (forward if recipe.caches_gradients else 0.0)


def _logits_are_kept(architecture: Architecture, recipe: Recipe, lengths: Lengths) -> bool:
    """Whether the head keeps a micro-step's logits for the backward pass (see `sami_train.head`)."""
    from sami_train.head import keeps_logits

    rows = 1 if recipe.caches_gradients else recipe.prompts_per_query
    positions = recipe.per_device_train_batch_size * rows * recipe.constitutions_per_query * lengths.response
    vocabulary = architecture.config.get_text_config().vocab_size
    return keeps_logits(positions, vocabulary, 2 if recipe.bf16 or recipe.master_dtype == "bfloat16" else 4)


def attention_flops(architecture: Architecture, tokens: float, keys: float) -> float:
    """Operations of all layers' attention: every token against so many keys, products with keys and with values."""
    return 4.0 * architecture.layers * architecture.attention_width * tokens * keys


@dataclass(frozen=True)
class Speed:
    """Packed tokens that all devices train on in a second, and where the figure comes from."""

    tokens_per_second: float
    source: str


def speed_of_run(folder: Path) -> Speed:
    """The speed of an earlier run: the harmonic mean of its steps' tokens_per_second, the first step left out of many.

    Raises:
        UserError: the folder has no such figures.
    """
    files = sorted(folder.glob("iteration-*/metrics.jsonl"))
    rows = [row for file in files for row in read_rows(file)]
    speeds = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second", 0) > 0]
    if not speeds:
        raise UserError(
            f"{folder}: there is no tokens_per_second in an iteration-*/metrics.jsonl; name the folder of a run of sami-train"
        )
    used = speeds[1:] or speeds
    return Speed(
        len(used) / math.fsum(1 / speed for speed in used), f"{counted(len(used), 'step')} of the run in {folder}"
    )
