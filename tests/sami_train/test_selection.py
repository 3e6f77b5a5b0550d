"""Pairs selected by how much their responses tell about their constitutions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model as model_of
from test_trainer import data, recipe

from sami_train.distributed import World
from sami_train.files import read_rows, replace_rows
from sami_train.logprobs import response_logprobs_naive
from sami_train.models import load_model, load_tokenizer, parse_source
from sami_train.pairs import Example
from sami_train.selection import measure, most_informative, pointwise_mutual_information
from sami_train.trainer import train


def example(name: str, pmi: float) -> Example:
    return Example(name, "dialogue", (), (), (), (), None, pmi=pmi)


def test_it_is_the_own_constitution_against_the_mean_of_the_others() -> None:
    matrix = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -1.5, -3.5], [-2.0, -2.5, -0.5]])
    found = pointwise_mutual_information(matrix).tolist()
    assert found == pytest.approx([-1.0 + (4.0 + 2.0) / 2, -1.5 + (2.0 + 2.5) / 2, -0.5 + (3.0 + 3.5) / 2])


def test_measured_as_by_plain_forward_passes() -> None:
    model = model_of("gemma3")
    prompts = [[[1, 5, 6, 7], [1, 5, 6, 8, 9]], [[1, 3, 4], [1, 3]], [[1, 30, 31], [1, 30, 32]]]
    responses = [((11, 12, 13), (14,)), ((21, 22), (23, 24, 25)), ((33,), (34,))]
    sampled = [replace(example("q", 0.0), response_ids=ids) for ids in responses]
    found = measure(model, list(zip(prompts, sampled, strict=True)), World())
    for values, asked, ids in zip(found, prompts, responses, strict=True):
        with torch.no_grad():
            naive = response_logprobs_naive(model, asked, ids)
        assert values == pytest.approx([float(naive[0, 0] - naive[1, 0]), float(naive[1, 1] - naive[0, 1])], abs=1e-5)


def test_tokens_that_do_not_count_are_left_out() -> None:
    model = model_of("llama")
    prompts, response = [[1, 5, 6, 7], [1, 8, 9]], (11, 12, 13)
    pair = replace(example("q", 0.0), response_ids=(response, (14,)), counted=((False, True, True), (True,)))
    ((value, _),) = measure(model, [(prompts, pair)], World())
    with torch.no_grad():
        after = [
            sum(float(response_logprobs_naive(model, [[*p, *response[:n]]], [[response[n]]])) for n in (1, 2))
            for p in prompts
        ]
    assert value == pytest.approx((after[0] - after[1]) / 2, abs=1e-5)


def test_the_highest_stay_in_their_order_and_the_earlier_of_equal_ones() -> None:
    pairs = [example(name, pmi) for name, pmi in (("a", 0.1), ("b", 0.5), ("c", -0.2), ("d", 0.3), ("e", 0.3))]
    assert [e.query_id for e in most_informative(pairs, 2)] == ["b", "d"]
    assert [e.query_id for e in most_informative(pairs, 4)] == ["a", "b", "d", "e"]
    assert most_informative(pairs, 9) == pairs


def settings(**changes: Any) -> Any:
    return recipe(**{"iterations": 1, "oversample": 2.0, "eval_queries": 0, "selection": "pmi", **changes})


def test_an_iteration_learns_from_the_pairs_that_tell_most(tiny_model: Path, tmp_path: Path) -> None:
    summary = train(settings(), parse_source(str(tiny_model)), data(), tmp_path / "run")
    rows = read_rows(tmp_path / "run/iteration-1/pairs.jsonl")
    by_query: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_query.setdefault(row["query_id"], []).append(row)
    usable = {query: sides for query, sides in by_query.items() if all("pmi" in side for side in sides)}
    assert len(usable) > 6 == summary["iterations"][0]["pairs"], "there was something to select from"
    source = parse_source(str(tiny_model))
    model, tokenizer = load_model(source).eval(), load_tokenizer(source)
    for sides in usable.values():
        prompts = [tokenizer(side["prompt"], add_special_tokens=False).input_ids for side in sides]
        if tokenizer.bos_token_id is not None and prompts[0][0] != tokenizer.bos_token_id:
            prompts = [[tokenizer.bos_token_id, *ids] for ids in prompts]
        with torch.no_grad():
            naive = response_logprobs_naive(model, prompts, [side["response_ids"] for side in sides])
        expected = [float(naive[j, j] - naive[1 - j, j]) for j in (0, 1)]
        assert [side["pmi"] for side in sides] == pytest.approx(expected, abs=1e-4)


def test_what_is_measured_is_kept_and_a_stopped_run_ends_alike(tiny_model: Path, tmp_path: Path) -> None:
    whole = train(settings(), parse_source(str(tiny_model)), data(), tmp_path / "whole")
    place = tmp_path / "again"
    train(settings(), parse_source(str(tiny_model)), data(), place)
    file = place / "iteration-1/pairs.jsonl"
    rows = read_rows(file)
    unmeasured = [
        {k: v for k, v in row.items() if k != "pmi"} if n >= len(rows) // 2 else row for n, row in enumerate(rows)
    ]
    replace_rows(file, unmeasured)
    for done in ("summary.json", "iteration-1/summary.json"):
        (place / done).unlink()
    assert (
        train(settings(), parse_source(str(tiny_model)), data(), place)["iterations"][0]["loss_last"]
        == (whole["iterations"][0]["loss_last"])
    )
    assert read_rows(file) == rows


def test_the_first_step_is_taken_on_the_first_of_them(tiny_model: Path, tmp_path: Path) -> None:
    train(settings(), parse_source(str(tiny_model)), data(), tmp_path / "run")
    rows = read_rows(tmp_path / "run/iteration-1/pairs.jsonl")
    order = list(dict.fromkeys(row["query_id"] for row in rows if "pmi" in row))
    pairs = {query: [row for row in rows if row["query_id"] == query] for query in order}
    told = {query: statistics.fmean(row["pmi"] for row in pairs[query]) for query in order}
    best = set(sorted(order, key=lambda query: -told[query])[:6])
    first = [query for query in order if query in best][:3]
    lengths = [len(row["response_ids"]) for query in first for row in pairs[query]]
    (step, *_) = read_rows(tmp_path / "run/iteration-1/metrics.jsonl")
    assert step["completions/mean_length"] == pytest.approx(statistics.fmean(lengths))
    assert first != order[:3]


def test_words_of_the_query_and_of_both_sides_are_looked_for(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query whose responses have no word of their own is left out as an empty one is; others' copied words do not count."""
    seen: dict[str, list[str]] = {}

    def own(pieces: Sequence[str], sources: Sequence[str]) -> tuple[bool, ...]:
        *sentences, query = sources
        assert len(sentences) == 4, "a definition and an antithesis for each of the two sides"
        seen.setdefault(query, []).append("".join(pieces))
        return tuple("number 5" not in query and place > 0 for place in range(len(pieces)))

    monkeypatch.setattr("sami_train.sampling.tokens_of_own_words", own)
    words = settings(selection="first", count_copied_words=False, oversample=2.0)
    train(words, parse_source(str(tiny_model)), data(), tmp_path / "words")
    train(settings(selection="first"), parse_source(str(tiny_model)), data(), tmp_path / "all")
    first, whole = (read_rows(tmp_path / name / "iteration-1/metrics.jsonl")[0] for name in ("words", "all"))
    assert first["loss"] != whole["loss"]
    rows = sorted(read_rows(tmp_path / "words/iteration-1/pairs.jsonl"), key=lambda row: row["side"])
    texts = {row["query_id"]: [other["text"] for other in rows if other["query_id"] == row["query_id"]] for row in rows}
    known = {query.id: query.text for query in data().queries}
    for query_id, two in texts.items():
        assert [text.strip() for text in seen[known[query_id]]] == [text.strip() for text in two]
    if "q5" in texts:
        assert first["filtered/empty"] == whole["filtered/empty"] + 1
