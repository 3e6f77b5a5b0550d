"""Which of an iteration's usable pairs it learns from: the first ones, or those that tell most about their constitutions.

Most responses of a small model show no feature that its constitution asks for, and from those a contrast learns noise. The model
knows better which ones do: by how much likelier a response is under its own constitution than under the others. No label and no
judge takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sami_train.distributed import World
from sami_train.pairs import Example

if TYPE_CHECKING:
    from torch import Tensor

Place = tuple[Sequence[Sequence[int]], Example]
"""A query's sampling prompts, one per constitution, as token ids, and the responses that they gave."""


def pointwise_mutual_information(logprobs: Tensor) -> Tensor:
    """How much likelier each response is under its own constitution than under the others. Shape (C, C) -> (C,).

    `logprobs` has the mean log-probability per token of response j under constitution i at (i, j). The value of j is (j, j) minus
    the mean of (i, j) over the other i, in nats per token; with two constitutions it is the log-ratio of the two.
    """
    size = logprobs.shape[-1]
    own = logprobs.diagonal()
    return own - (logprobs.sum(0) - own) / (size - 1)


def measure(model: Any, places: Sequence[Place], world: World) -> list[list[float]]:
    """The pointwise mutual information of every response of every place, on every process. Each process takes every n-th place.

    A sharded model runs on all processes or on none, so a process without a place goes along with the last one.

    Raises:
        ValueError: a response is empty.
    """
    import torch

    from sami_train.logprobs import response_logprobs

    found: list[list[float]] = []
    for start in range(0, len(places), world.size):
        prompts, example = places[min(start + world.rank, len(places) - 1)]
        with torch.no_grad():
            matrix = response_logprobs(model, prompts, example.response_ids, counted=example.counted or None)
        values = pointwise_mutual_information(matrix)
        found += world.gather(values.tolist())[: len(places) - start]
    return found


def most_informative(examples: Sequence[Example], count: int) -> list[Example]:
    """The `count` examples with the highest pointwise mutual information, in their own order; earlier ones where it is equal."""
    ranked = sorted(range(len(examples)), key=lambda place: -examples[place].pmi)
    return [examples[place] for place in sorted(ranked[:count])]
