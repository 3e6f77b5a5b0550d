"""Prompts as token ids and batched generation, on a tiny real model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sami_train.errors import UserError
from sami_train.generation import (
    Encoded,
    Generated,
    automatic_batch,
    cut_ids,
    encode_alike,
    encode_prompt,
    generate,
    generate_batch,
    plan_batches,
    with_beginning,
)
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


def test_a_small_stage_on_a_cpu_is_several_batches(opened: tuple[Any, Any]) -> None:
    assert [automatic_batch("cpu", n) for n in (1, 9, 16, 64, 256, 1000)] == [8, 8, 8, 16, 64, 64]
    assert automatic_batch("cuda", 16) == 128
    both = [len(batch) for batch in generate(*opened, prompts() * 2, max_new_tokens=1, max_prompt_tokens=900)]
    assert both == [8, 8, 2]


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


@pytest.mark.parametrize("text", ["So it is.", " 数 and 'they' said\n1. one\n\n2. two  ", "", "a"])
def test_cut_ids_are_the_tokens_of_the_texts_beginning(opened: tuple[Any, Any], text: str) -> None:
    """Against every cut, and every number of tokens: the most whose text lies within the beginning."""
    tokenizer = opened[1]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    for place in range(len(text) + 1):
        kept = cut_ids(tokenizer, ids, text[:place])
        fits = [n for n in range(len(ids) + 1) if len(tokenizer.decode(ids[:n]).rstrip()) <= len(text[:place].rstrip())]
        assert kept == ids[: fits[-1]]
    assert cut_ids(tokenizer, ids, text) == ids


@pytest.mark.parametrize("style", ["completion", "chat"])
def test_exactly_one_bos(opened: tuple[Any, Any], style: Any) -> None:
    ids = encode_prompt(opened[1], prompts(style)[0], 900).ids
    assert ids[0] == opened[1].bos_token_id
    assert ids.count(opened[1].bos_token_id) == 1


def test_two_bos_are_refused(opened: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="two BOS"):
        with_beginning(opened[1], [1, 1, 5], always=False)


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
    assert "Be kind to everyone.\n" in cut.text
    assert cut.text.endswith(load_template("dialogue").labels("completion")[-1])
    assert 20 < cut.text.count("word") < 300


def test_a_prompt_that_cannot_fit_is_one_sentence(opened: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="20 are allowed, so nothing of the query fits"):
        encode_prompt(opened[1], prompts()[0], 20)


@pytest.mark.parametrize("body", ["数" * 400, "a" * 900, "So " + "数" * 400])
def test_a_body_without_spaces_is_cut_inside(opened: tuple[Any, Any], body: str) -> None:
    prompt = load_template("dialogue").render(["Be kind."], body, "completion")
    cut = encode_prompt(opened[1], prompt, 600)
    assert cut.truncated
    assert cut.kept is not None
    assert body[: cut.kept] in cut.text
    longer = prompt.with_body(body[: cut.kept + 1]).text
    assert len(cut.ids) <= 600 < len(opened[1](longer, add_special_tokens=False).input_ids) + 1


def test_a_body_is_cut_between_words_as_word_by_word_counting_would(opened: tuple[Any, Any]) -> None:
    body = " ".join(f"word{n % 7}" * (1 + n % 3) for n in range(200))
    prompt = load_template("dialogue").render(["Be kind."], body, "completion")
    words = body.split(" ")

    def tokens(count: int) -> list[int]:
        text = prompt.with_body(" ".join(words[:count])).text
        return with_beginning(opened[1], opened[1](text, add_special_tokens=False).input_ids)

    for allowed in (260, 300, 411):
        most = max(n for n in range(200) if len(tokens(n)) <= allowed)
        assert encode_prompt(opened[1], prompt, allowed).text == prompt.with_body(" ".join(words[:most])).text


def test_prompts_of_one_query_are_cut_alike(opened: tuple[Any, Any]) -> None:
    template, body = load_template("dialogue"), "数" * 400
    both = [template.render([line], body, "completion") for line in ("Be kind.", "Be kind to everyone, and say so.")]
    short, long = encode_alike(opened[1], both, 600)
    assert short.kept == long.kept
    assert len(short.ids) < len(long.ids) <= 600


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 5.0},
        {"temperature": 0.5, "top_p": 0.5},
        {"use_cache": False},
        {"num_beams": 3},
        {"cache_implementation": "static"},
        {"min_new_tokens": 9},
        {"suppress_tokens": list(range(3, 100))},
    ],
)
def test_settings_that_come_with_a_model_do_not_change_the_text(
    tiny_model: Path, opened: tuple[Any, Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps({**tokens, **settings}), encoding="utf-8")
    model = load_model(parse_source(str(folder)))
    assert {i: g.ids for i, g in everything(model, opened[1]).items()} == {
        i: g.ids for i, g in everything(*opened).items()
    }


def test_a_config_without_cache_does_not_change_the_text(
    tiny_model: Path, opened: tuple[Any, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "use_cache": False}), encoding="utf-8")
    (folder / "generation_config.json").unlink(missing_ok=True)
    made = everything(load_model(parse_source(str(folder))), opened[1])
    assert {i: g.ids for i, g in made.items()} == {i: g.ids for i, g in everything(*opened).items()}


def test_weights_that_are_missing_are_not_made_up(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state.pop("model.norm.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 of its weights are not in its files \(model.norm.weight\)"):
        load_model(parse_source(str(folder)))


def test_a_tokenizer_of_another_model_is_one_sentence(opened: tuple[Any, Any]) -> None:
    model, tokenizer = opened
    known = model.get_input_embeddings().num_embeddings
    with pytest.raises(UserError, match=f"has a token {known}, and the model knows {known}"):
        generate_batch(model, tokenizer, [Encoded([1, known], "", False)], max_new_tokens=2)


def test_a_chat_template_that_fails_is_one_sentence(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(parse_source(str(tiny_model)))
    tokenizer.chat_template = "{{ raise_exception('no system prompts') }}"
    with pytest.raises(UserError, match=r"chat template of the model's tokenizer fails .no system prompts"):
        encode_prompt(tokenizer, prompts("chat")[0], 900)


def test_a_shared_beginning_is_run_once_and_changes_nothing(
    opened: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked examples in front of every prompt: with the shared cache and without it the same tokens come out."""
    from sami_train import generation, shared_prefix

    model, tokenizer = opened
    template = load_template("dialogue")
    many = [
        template.render(["Be kind."], f"{'so ' * (n % 5)}what is {n}?", "completion", example=True) for n in range(7)
    ]

    def made() -> dict[int, list[int]]:
        batches = generate(model, tokenizer, many, max_new_tokens=10, max_prompt_tokens=2000, batch_size=4)
        return {i: g.ids for batch in batches for i, g in batch.items()}

    seen: list[int] = []
    real = generation.prefix_cache
    monkeypatch.setattr(
        generation, "prefix_cache", lambda m, shared, rows: (seen.append(len(shared)), real(m, shared, rows))[1]
    )
    shared = made()
    assert min(seen) > 200, "the examples are shared"
    monkeypatch.setattr(shared_prefix, "SHARED_AT_LEAST", 10**9)
    assert made() == shared
    assert len({tuple(ids) for ids in shared.values()}) > 1


def test_a_changed_chat_template_is_another_model(tiny_model: Path, tmp_path: Path) -> None:
    from sami_train.models import source_fingerprint

    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert source_fingerprint(parse_source(str(copy))) == source_fingerprint(parse_source(str(tiny_model)))
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert source_fingerprint(parse_source(str(copy))) != source_fingerprint(parse_source(str(tiny_model)))
