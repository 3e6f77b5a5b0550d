"""Contrastive examples: for a query, C constitutions and the response that a model gave under each."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sami_train.config import FilterRule, Recipe
from sami_train.constitutions import Constitution, Element, Principle, sample_constitutions
from sami_train.copying import REPEATS, copied_share, copied_spans
from sami_train.data import Query
from sami_train.errors import UserError
from sami_train.generation import cut_ids
from sami_train.prompts import Prompt, Template

CONTROL = ("<|im_", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]")
"""Beginnings of chat models' control tokens: template debris, besides the labels of the template itself."""
APOLOGIES = ("i'm sorry", "i am sorry", "i apologize", "i cannot", "i can't", "i can not")


@dataclass(frozen=True)
class Contrast:
    """What is to be sampled for one query: its constitutions, in the order of the matrix, and the prompts made of them.

    `sampling_prompts` begin with the template's worked examples, or ask for reasoning first, where the recipe wants that, and
    end with the template's prefill;
    `prompts`, which the model is trained on, never do, and have the principles in the order of `training_orders`.
    `other_prompts` put the same constitutions to another query, where the recipe contrasts queries.
    """

    query: Query
    constitutions: tuple[Constitution, ...]
    training_orders: tuple[Constitution, ...]
    prompts: tuple[Prompt, ...]
    sampling_prompts: tuple[Prompt, ...]
    other_prompts: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class Example:
    """One sampled contrast, put together from its rows in pairs.jsonl. `filtered` is the rule that took it out, or None.

    `pmi` is the mean pointwise mutual information of its responses with their constitutions, in nats per token, where the recipe
    selects by it (`sami_train.selection`). `counted` says of every token of every response whether it counts in the
    contrasts; empty: all do.
    """

    query_id: str
    task: str
    constitutions: tuple[str, ...]
    prompt_ids: tuple[tuple[int, ...], ...]
    response_ids: tuple[tuple[int, ...], ...]
    responses: tuple[str, ...]
    filtered: str | None
    other_prompt_ids: tuple[tuple[int, ...], ...] = ()
    pmi: float = math.nan
    counted: tuple[tuple[bool, ...], ...] = ()

    @property
    def contrasted(self) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
        """Prompts and responses whose matrix a step needs, as `sami_train.logprobs.pack` takes them."""
        return (*self.prompt_ids, *self.other_prompt_ids), self.response_ids


def split_queries(queries: Sequence[Query], recipe: Recipe) -> tuple[list[Query], list[Query], list[Query]]:
    """The two halves that iterations use in turn, and the unseen queries of the evaluation; disjoint, in a seeded order.

    Without `alternate_halves` both are all of the rest.

    Raises:
        UserError: an iteration needs more queries than its half has.
    """
    shuffled = random.Random(f"queries-{recipe.seed}").sample(list(queries), len(queries))
    unseen, rest = shuffled[: recipe.eval_queries], shuffled[recipe.eval_queries :]
    halves = (rest[0::2], rest[1::2]) if recipe.alternate_halves else (rest, rest)
    for iteration in range(1, recipe.iterations + 1):
        half = halves[(iteration - 1) % 2]
        needed = recipe.batch_size * recipe.batches(iteration)
        if needed > len(half):
            raise UserError(
                f"iteration {iteration} of the recipe '{recipe.name}' needs {needed} queries (batch_size x batches) but its part "
                f"of the training queries has {len(half)}; give more queries, or lower batch_size or batches_at_start"
                + (f", or eval_queries ({recipe.eval_queries} are kept unseen)" if recipe.eval_queries else "")
            )
    return halves[0], halves[1], unseen


def plan_contrasts(
    queries: Sequence[Query],
    principles: Mapping[str, Sequence[Principle]],
    templates: Mapping[str, Template],
    recipe: Recipe,
    seed: int,
) -> list[Contrast]:
    """Draw the constitutions of every query and write its prompts. `principles` and `templates` by kind of task.

    What a query gets depends on the list of queries and the seed alone.
    """
    contrasts: dict[str, Contrast] = {}
    for task in sorted({query.task for query in queries}):
        mine = [query for query in queries if query.task == task]
        drawn = _draw(principles[task], mine, recipe, seed)
        others = _next_queries(mine, seed) if recipe.contrasts_queries else {}
        for query in mine:
            rng = random.Random(f"order-{seed}-{query.id}")
            sides = drawn[query.id]
            orders = tuple(side.shuffled(rng) for side in sides) if recipe.shuffle_principles else sides
            prompts, *other = (
                tuple(templates[task].render(order.lines(), text, recipe.style) for order in orders)
                for text in (query.text, *others.get(query.id, ()))
            )
            sampling = tuple(
                templates[task].render(
                    side.lines(),
                    query.text,
                    recipe.style,
                    example=recipe.sampling_example,
                    reasoning=recipe.reasoning,
                    prefill=True,
                )
                for side in sides
            )
            contrasts[query.id] = Contrast(query, sides, orders, prompts, sampling, *other)
    return [contrasts[query.id] for query in queries]


def _next_queries(queries: Sequence[Query], seed: int) -> dict[str, tuple[str]]:
    """For each query the text of another one: the next in a seeded circle.

    Raises:
        UserError: there is only one.
    """
    if len(queries) < 2:
        raise UserError("'query_contrast' holds queries against each other, and there is only one of a kind; give more")
    circle = random.Random(f"others-{seed}").sample(list(queries), len(queries))
    return {query.id: (circle[(place + 1) % len(circle)].text,) for place, query in enumerate(circle)}


def check_intents(queries: Sequence[Query], principles: Sequence[Principle], recipe: Recipe) -> None:
    """Make sure that a recipe which negates the principle that a query is about finds it in every constitution.

    Raises:
        UserError: a query names no such principle, or there are more principles than a constitution has.
    """
    if not recipe.needs_intents:
        return
    known = [principle.id for principle in principles]
    if len(known) != recipe.principles_per_constitution:
        raise UserError(
            f"'contrast: positive_vs_intent' needs all {len(known)} principles in every constitution, and "
            f"principles_per_constitution is {recipe.principles_per_constitution}; set it to {len(known)}, or take fewer principles"
        )
    for query in queries:
        if query.intent not in known:
            what = f"has the intent '{query.intent}'" if query.intent else "has no 'intent'"
            raise UserError(
                f"the query '{query.id}' {what}, and 'contrast: positive_vs_intent' negates the principle that a query is about; "
                f"give every query an 'intent' ({' or '.join(known)}), or set contrast: positive_vs_rest"
            )


def _draw(
    principles: Sequence[Principle], queries: Sequence[Query], recipe: Recipe, seed: int
) -> dict[str, tuple[Constitution, ...]]:
    """The constitutions of every query, in the order of the matrix.

    With opposites an odd C leaves out the opposite of the last drawn one.
    """
    check_intents(queries, principles, recipe)
    opposites = recipe.contrast == "opposites"
    count = recipe.constitutions_per_query
    drawn = sample_constitutions(
        principles,
        [query.id for query in queries],
        per_query=(count + 1) // 2 if opposites else 1,
        size=recipe.principles_per_constitution,
        polarity=recipe.polarity if opposites else "principle",
        seed=seed,
    )
    if opposites:
        return {i: tuple(side for c in found for side in (c, c.opposite()))[:count] for i, found in drawn.items()}
    return {
        query.id: _positive_and_rest(
            drawn[query.id][0],
            count,
            random.Random(f"rest-{seed}-{query.id}"),
            query.intent if recipe.needs_intents else None,
        )
        for query in queries
    }


def _positive_and_rest(
    positive: Constitution, count: int, rng: random.Random, intent: str | None
) -> tuple[Constitution, ...]:
    """The constitution of definitions alone, and others of the same principles with at least one antithesis.

    That of the principle `intent`, where one is given.
    """
    choices = list(itertools.product((True, False), repeat=len(positive.elements)))[1:]
    if intent is not None:
        place = [e.principle.id for e in positive.elements].index(intent)
        choices = [choice for choice in choices if not choice[place]]
    others = [
        Constitution(tuple(Element(e.principle, follows) for e, follows in zip(positive.elements, choice, strict=True)))
        for choice in rng.sample(choices, count - 1)
    ]
    return (positive, *others)


def passes(examples: Sequence[Example], recipe: Recipe, iteration: int) -> list[Example]:
    """The examples of all passes, one after another: the first as they come, each further one in a seeded order."""
    taken = list(examples)
    for number in range(1, recipe.num_train_epochs):
        rng = random.Random(f"pass-{recipe.seed}-{iteration}-{number}")
        taken += rng.sample(list(examples), len(examples))
    return taken


@dataclass(frozen=True)
class Answer:
    """What is kept of a generated text: what follows the reasoning, up to where it runs on with the prompt (the `tail`).

    `stopped`: it was cut, there or where the template says that an answer after reasoning ends.
    """

    text: str
    ids: list[int]
    reasoning: str = ""
    tail: str = ""
    stopped: bool = False


def answer_of(tokenizer: Any, generated: Any, template: Template, recipe: Recipe) -> Answer:
    """The response in a generated text. With reasoning it is what follows the marker; without a marker it is empty.

    It ends where it runs on with its own prompt (`Template.run_on`). Its tokens are those that were generated, never
    tokenised again.
    """
    found = _after_reasoning(tokenizer, generated, template, recipe)
    if recipe.reasoning and (end := template.answer_end(found.text)) is not None:
        found = _cut(tokenizer, found, end)
    end = template.run_on(found.text, recipe.principles_per_constitution, recipe.style, reasoning=recipe.reasoning)
    return found if end is None else replace(_cut(tokenizer, found, end), tail=found.text[end:])


def _cut(tokenizer: Any, answer: Answer, end: int) -> Answer:
    """An answer's first `end` characters, and the tokens that they are made of."""
    text = answer.text[:end].rstrip()
    decoded = str(tokenizer.decode(answer.ids, skip_special_tokens=True))
    kept = decoded[: decoded.find(answer.text) + len(text)]
    return Answer(text, cut_ids(tokenizer, answer.ids, kept) if text else [], answer.reasoning, stopped=True)


def _after_reasoning(tokenizer: Any, generated: Any, template: Template, recipe: Recipe) -> Answer:
    if not recipe.reasoning:
        return Answer(generated.text, generated.ids)
    marker = template.answer_marker()
    before, found, after = generated.text.partition(marker)
    if not found:
        return Answer("", [], generated.text)
    low, high = 0, len(generated.ids)  # fewest leading tokens whose text has the marker
    while low < high:
        middle = (low + high) // 2
        if marker in tokenizer.decode(generated.ids[:middle], skip_special_tokens=True):
            high = middle
        else:
            low = middle + 1
    return Answer(after.strip(), generated.ids[low:], before.strip())


def filter_rule(
    recipe: Recipe,
    task: str,
    responses: Sequence[str],
    ids: Sequence[Sequence[int]],
    finish: Sequence[str],
    *,
    sentences: Sequence[str] = (),
    labels: Sequence[str] = (),
    ran_on: bool = False,
    query: str = "",
    relevances: Sequence[float] = (),
    counted: Sequence[Sequence[bool]] = (),
) -> FilterRule | None:
    """The first of the recipe's rules that takes an example out, or None. The first response is that of the drawn constitution.

    Empty responses are always left out: there is nothing in them to learn from.

    Args:
        sentences: both sides of the principles, which a response must not copy.
        labels: of the prompt template, which a response must not contain.
        ran_on: whether a response went on with its prompt and was cut there.
        query: which a response in dialogue must not repeat: half of its words copied from it.
        relevances: of the responses, in [0, 1], where they are scored.
        counted: which of their tokens count in the contrasts, where not all do; a response of which none does is empty.
    """
    lengths = [len(tokens) for tokens in ids]
    empty = any(not text.strip() or not tokens for text, tokens in zip(responses, ids, strict=True))
    empty = empty or any(not any(tokens) for tokens in counted)
    broken: dict[FilterRule, bool] = {
        "no_answer": recipe.reasoning and empty,
        "empty": empty,
        "identical": len({" ".join(text.split()) for text in responses}) < len(responses),
        "template_debris": any(piece in text for text in responses for piece in (*labels, *CONTROL)),
        "runs_on": ran_on,
        "copies_constitution": any(copied_spans(text, sentences) for text in responses),
        "repeats_query": task == "dialogue" and any(copied_share(text, [query]) >= REPEATS for text in responses),
        "apology": task == "dialogue" and any(text.lower().lstrip().startswith(APOLOGIES) for text in responses),
        "no_full_stop": not responses[0].rstrip().endswith("."),
        "cut_off": "length" in finish,
        "substring": any(piece in text for text in responses for piece in recipe.filter_substrings),
        "length_ratio": max(lengths) > recipe.max_length_ratio * min(lengths),
        "irrelevant": any(value < recipe.min_relevance for value in relevances),
    }
    return next((rule for rule in broken if rule in recipe.rules and broken[rule]), None)
