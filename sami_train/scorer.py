"""The model of a recipe that scores relevance: read when something is to be scored, by the first process, and let go again."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

from sami_train.config import Recipe
from sami_train.data import Query
from sami_train.distributed import World
from sami_train.errors import UserError
from sami_train.models import check_source, load_model, load_tokenizer, parse_source
from sami_train.prompts import Style
from sami_train.relevance import OTHERS, mean_logprobs, other_queries, relevance, responding_text


def check_scorer(recipe: Recipe, world: World) -> None:
    """Raises UserError, on every process, where the recipe's `relevance_scorer` is not there."""
    error = None
    try:
        if recipe.relevance_scorer is not None and world.main:
            check_source(parse_source(recipe.relevance_scorer))
    except UserError as reason:
        error = UserError(f"relevance_scorer: {reason}")
    world.together(error)


class Scorer:
    """Scores responses to the training queries. A recipe without `relevance_scorer` has none (`Scorer.of`)."""

    def __init__(
        self, path: str, recipe: Recipe, queries: Sequence[Query], world: World, *, trust_remote_code: bool = False
    ) -> None:
        self.source, self.recipe, self.world = parse_source(path), recipe, world
        self.trust_remote_code = trust_remote_code
        self.queries = {query.id: query for query in queries}
        self.ids: dict[str, list[str]] = {}
        for query in queries:
            self.ids.setdefault(query.task, []).append(query.id)
        self._opened: tuple[Any, Any] | None = None

    @classmethod
    def of(cls, recipe: Recipe, queries: Sequence[Query], world: World, *, trust_remote_code: bool) -> Scorer | None:
        path = recipe.relevance_scorer
        return None if path is None else cls(path, recipe, queries, world, trust_remote_code=trust_remote_code)

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """The relevance, in [0, 1], of responses (`query_id`, `text`), on every process; 1/2 is chance.

        Each is held against `OTHERS` other queries of its kind, drawn by the recipe's seed.

        Raises:
            UserError: the scorer cannot be read (on every process).
        """
        found: list[float] = []
        error = None
        try:
            if self.world.main:
                found = self._scores(rows)
        except UserError as reason:
            error = UserError(f"relevance_scorer: {reason}")
        self.world.together(error)
        return list(self.world.gather(found)[0])

    def release(self) -> None:
        """Let the model go, for the memory that it takes."""
        self._opened = None
        gc.collect()
        if self.world.device_type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _scores(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(row["query_id"], []).append(place)
        found = [0.0] * len(rows)
        for query_id, mine in places.items():
            query = self.queries[query_id]
            others = other_queries(self.ids[query.task], query_id, OTHERS, self.recipe.seed)
            texts = [self.queries[name].text for name in (query_id, *others)]
            responses = [responding_text(rows[place]["text"], query) for place in mine]
            for place, logprobs in zip(mine, self._logprobs(texts, responses), strict=True):
                found[place] = relevance(logprobs)
        return found

    def _logprobs(self, queries: Sequence[str], responses: Sequence[str]) -> list[list[float] | None]:
        if self._opened is None:
            options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
            model = load_model(self.source, device=self.world.device, **options).eval()
            self._opened = model, load_tokenizer(self.source, **options)
        model, tokenizer = self._opened
        style: Style = "chat" if tokenizer.chat_template else "completion"
        return mean_logprobs(model, tokenizer, queries, responses, style, self.recipe.max_prompt_tokens)
