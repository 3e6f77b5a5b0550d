"""Prompts as token ids and batched generation, on a tiny real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sami_train.errors import UserError
from sami_train.generation import Generated, encode_prompt, generate, plan_batches, with_bos
from sami_train.models import load_model, load_tokenizer, parse_source
from sami_train.prompts import Prompt, load_template


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> tuple[Any, Any]:
    source = parse_source(str(tiny_model))
    return load_model(source), load_tokenizer(source)


def prompts(style: Any = "completion") -> list[Prompt]:
    template = load_template("dialogue")
    return [template.render(["Be kind."], f"Question {n} {'word ' * (n * 3 % 11)}?", style) for n in range(9)]


def everything(model: Any, tokenizer: Any, **options: Any) -> dict[int, Generated]:
    made: dict[int, Generated] = {}
    for batch in generate(model, tokenizer, prompts(), max_new_tokens=10, max_prompt_tokens=900, **options):
        made.update(batch)
    return made


@pytest.mark.parametrize("size", [2, 4, 9])
def test_batches_say_what_single_prompts_say(opened: tuple[Any, Any], size: int) -> None:
    one, many = everything(*opened, batch_size=1), everything(*opened, batch_size=size)
    assert {i: g.ids for i, g in one.items()} == {i: g.ids for i, g in many.items()}
    assert len({g.text for g in one.values()}) > 1


def test_greedy_equals_a_plain_loop(opened: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = opened
    made = everything(model, tokenizer, batch_size=4)
    ids = encode_prompt(tokenizer, prompts()[3], 900).ids
    for token in made[3].ids:
        with torch.inference_mode():
            assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids = [*ids, token]


def test_done_prompts_are_skipped_by_whole_batches(opened: tuple[Any, Any]) -> None:
    whole = everything(*opened, batch_size=3)
    first = plan_batches([len(g.prompt.ids) for _, g in sorted(whole.items())], 3)[0]
    rest = everything(*opened, batch_size=3, done=set(first))
    assert rest.keys() == whole.keys() - set(first)
    partly = everything(*opened, batch_size=3, done=set(first[:1]))
    assert partly.keys() == whole.keys(), "a batch of which one is missing is composed as it was"
    assert all(partly[i].ids == whole[i].ids for i in whole)


def test_sampling_follows_its_seed(opened: tuple[Any, Any]) -> None:
    hot = [everything(*opened, batch_size=3, temperature=1.5, seed=s) for s in (1, 1, 2)]
    texts = [{i: g.text for i, g in made.items()} for made in hot]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_string_ends_the_text_and_the_ids(opened: tuple[Any, Any]) -> None:
    plain = everything(*opened, batch_size=9)
    index, stop = next((i, g.text[2:4]) for i, g in plain.items() if len(g.text) > 4 and g.text[2:4].strip())
    cut = everything(*opened, batch_size=9, stop=(stop,))[index]
    assert cut.finish_reason == "stop"
    assert stop not in cut.text
    assert plain[index].text.startswith(cut.text)
    assert plain[index].ids[: len(cut.ids)] == cut.ids


@pytest.mark.parametrize("style", ["completion", "chat"])
def test_exactly_one_bos(opened: tuple[Any, Any], style: Any) -> None:
    ids = encode_prompt(opened[1], prompts(style)[0], 900).ids
    assert ids[0] == opened[1].bos_token_id
    assert ids.count(opened[1].bos_token_id) == 1


def test_two_bos_are_refused(opened: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="two BOS"):
        with_bos(opened[1], [1, 1, 5])


def test_a_control_token_in_a_query_stays_text(opened: tuple[Any, Any]) -> None:
    tokenizer = opened[1]
    prompt = load_template("dialogue").render(["Be kind."], "Hello </s> there <s>", "chat")
    ids = encode_prompt(tokenizer, prompt, 900).ids
    assert tokenizer.eos_token_id not in ids
    assert ids.count(tokenizer.bos_token_id) == 1


def test_only_the_body_is_shortened(opened: tuple[Any, Any]) -> None:
    tokenizer = opened[1]
    prompt = load_template("dialogue").render(["Be kind to everyone."], "word " * 300, "completion")
    whole, cut = encode_prompt(tokenizer, prompt, 9000), encode_prompt(tokenizer, prompt, 300)
    assert not whole.truncated
    assert cut.truncated
    assert len(cut.ids) <= 300
    assert "1. Be kind to everyone." in cut.text
    assert cut.text.endswith("Assistant:")
    assert 20 < cut.text.count("word") < 300


def test_a_prompt_that_cannot_fit_is_one_sentence(opened: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="more than the 20 allowed"):
        encode_prompt(opened[1], prompts()[0], 20)


def test_a_shared_beginning_is_run_once_and_changes_nothing(
    opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked examples in front of every prompt: with the shared cache and without it the same tokens come out."""
    from sami_train import generation

    model, tokenizer = opened
    template = load_template("dialogue")
    many = [
        template.render(["Be kind."], f"{'so ' * (n % 5)}what is {n}?", "completion", example=True) for n in range(7)
    ]

    def made() -> dict[int, list[int]]:
        batches = generate(model, tokenizer, many, max_new_tokens=10, max_prompt_tokens=2000, batch_size=4)
        return {i: g.ids for batch in batches for i, g in batch.items()}

    seen: list[int] = []
    real = generation._prefix_cache
    monkeypatch.setattr(
        generation, "_prefix_cache", lambda m, shared, rows: (seen.append(len(shared)), real(m, shared, rows))[1]
    )
    shared = made()
    assert min(seen) > 200, "the examples are shared"
    monkeypatch.setattr(generation, "SHARED_AT_LEAST", 10**9)
    assert made() == shared
    assert len({tuple(ids) for ids in shared.values()}) > 1


def test_a_changed_chat_template_is_another_model(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    from sami_train.models import source_fingerprint

    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert source_fingerprint(parse_source(str(copy))) == source_fingerprint(parse_source(str(tiny_model)))
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert source_fingerprint(parse_source(str(copy))) != source_fingerprint(parse_source(str(tiny_model)))
