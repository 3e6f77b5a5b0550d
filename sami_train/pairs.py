"""Contrastive examples: for a query, C constitutions and the response that a model gave under each."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sami_train.config import FilterRule, Recipe
from sami_train.constitutions import Constitution, Principle, sample_constitutions
from sami_train.data import Query
from sami_train.errors import UserError
from sami_train.prompts import Prompt, Template

DEBRIS = ("Principles for the", "Person:", "Assistant:", "Post:", "Summary:", "<|im_", "[INST]")
"""Pieces of a prompt template; a response that has one has run on past its end."""
APOLOGIES = ("i'm sorry", "i am sorry", "i apologize", "i cannot", "i can't", "i can not")


@dataclass(frozen=True)
class Contrast:
    """What is to be sampled for one query: its constitutions, in the order of the matrix, and the prompts made of them.

    `sampling_prompts` begin with the template's worked examples where the recipe wants them; `prompts`, which the model is
    trained on, never do.
    """

    query: Query
    constitutions: tuple[Constitution, ...]
    prompts: tuple[Prompt, ...]
    sampling_prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Example:
    """One sampled contrast, put together from its rows in pairs.jsonl. `filtered` is the rule that took it out, or None."""

    query_id: str
    task: str
    constitutions: tuple[str, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    response_ids: tuple[tuple[int, ...], ...]
    responses: tuple[str, ...]
    filtered: str | None


def split_queries(queries: Sequence[Query], recipe: Recipe) -> tuple[list[Query], list[Query], list[Query]]:
    """The two halves that iterations use in turn, and the unseen queries of the evaluation; disjoint, in a seeded order.

    Raises:
        UserError: an iteration needs more queries than its half has.
    """
    shuffled = random.Random(f"queries-{recipe.seed}").sample(list(queries), len(queries))
    unseen, rest = shuffled[: recipe.eval_queries], shuffled[recipe.eval_queries :]
    halves = rest[0::2], rest[1::2]
    for iteration in range(1, recipe.iterations + 1):
        half = halves[(iteration - 1) % 2]
        needed = recipe.batch_size * recipe.batches(iteration)
        if needed > len(half):
            raise UserError(
                f"iteration {iteration} of the recipe '{recipe.name}' needs {needed} queries (batch_size x batches) but its half "
                f"of the training queries has {len(half)}; give more queries, or lower batch_size or batches_at_start"
            )
    return halves[0], halves[1], unseen


def plan_contrasts(
    queries: Sequence[Query],
    principles: Mapping[str, Sequence[Principle]],
    templates: Mapping[str, Template],
    recipe: Recipe,
    seed: int,
) -> list[Contrast]:
    """Draw the constitutions of every query and write its prompts. `principles` and `templates` by kind of task."""
    contrasts: dict[str, Contrast] = {}
    for task in sorted({query.task for query in queries}):
        mine = [query for query in queries if query.task == task]
        drawn = sample_constitutions(
            principles[task],
            [query.id for query in mine],
            per_query=recipe.constitutions_per_query // 2,
            size=recipe.principles_per_constitution,
            polarity="random" if recipe.principles_per_constitution > 1 else "principle",
            seed=seed,
        )
        for query in mine:
            sides = tuple(side for c in drawn[query.id] for side in (c, c.opposite()))
            with_example, without = (
                tuple(templates[task].render(side.lines(), query.text, recipe.style, example=example) for side in sides)
                for example in (recipe.sampling_example, False)
            )
            contrasts[query.id] = Contrast(query, sides, without, with_example)
    return [contrasts[query.id] for query in queries]


def filter_rule(
    rules: Sequence[FilterRule],
    task: str,
    responses: Sequence[str],
    ids: Sequence[Sequence[int]],
    finish: Sequence[str],
) -> FilterRule | None:
    """The first rule that takes an example out, or None. The first response is the one under the drawn constitution."""
    broken: dict[FilterRule, bool] = {
        "empty": any(not text.strip() or not tokens for text, tokens in zip(responses, ids, strict=True)),
        "identical": len({" ".join(text.split()) for text in responses}) < len(responses),
        "template_debris": any(piece in text for text in responses for piece in DEBRIS),
        "apology": task == "dialogue" and any(text.lower().lstrip().startswith(APOLOGIES) for text in responses),
        "no_full_stop": not responses[0].rstrip().endswith("."),
        "cut_off": "length" in finish,
    }
    return next((rule for rule in broken if rule in rules and broken[rule]), None)
