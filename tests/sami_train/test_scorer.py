"""Relevance in training: scores against one response at a time, kept with the rows, filtered by, watched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from test_trainer import data, recipe

from sami_train.config import Recipe
from sami_train.data import Query
from sami_train.distributed import World
from sami_train.errors import UserError
from sami_train.files import read_rows, replace_rows
from sami_train.models import load_model, load_tokenizer, parse_source
from sami_train.relevance import mean_logprobs, other_queries
from sami_train.scorer import Scorer
from sami_train.trainer import train

KINDS = {"dialogue": "How do I boil {} eggs in a pot?", "summarization": "We moved house {} times."}
QUERIES = [Query(f"{kind[0]}{n}", text.format(n), kind) for kind, text in KINDS.items() for n in range(7)]
ECHO = QUERIES[2].text


@pytest.fixture(scope="module")
def scored(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    train(settings(tiny_model), parse_source(str(tiny_model)), data(), folder)
    return folder


def settings(scorer: Path, **changes: Any) -> Recipe:
    return recipe(**{"iterations": 1, "eval_samples": 2, "relevance_scorer": str(scorer), **changes})


def naive(model: Path, queries: list[Query], query_id: str, text: str, seed: int = 0) -> float:
    """One response after one query at a time. `text` is scored as it is."""
    opened = load_model(parse_source(str(model))), load_tokenizer(parse_source(str(model)))
    by_id = {query.id: query for query in queries}
    alike = [query.id for query in queries if query.task == by_id[query_id].task]
    after = {}
    for name in (query_id, *other_queries(alike, query_id, 4, seed)):
        ((found,),) = mean_logprobs(*opened, [by_id[name].text], [text], "chat", 300) or [[None]]
        after[name] = found
    own = after.pop(query_id)
    assert len(after) == 4
    return sum(1.0 if own > other else 0.0 for other in after.values()) / 4


def test_scores_are_those_of_one_response_at_a_time(tiny_model: Path) -> None:
    rows = [
        {"query_id": q.id, "text": text} for q in QUERIES[::3] for text in ("Eight minutes.", "We lost a cat.", "no")
    ]
    scorer = Scorer(str(tiny_model), recipe(seed=5), QUERIES, World())
    found = scorer.scores(rows)
    assert found == [naive(tiny_model, QUERIES, row["query_id"], row["text"], 5) for row in rows]
    assert 0 < sum(found) < len(found)


def test_an_echo_of_the_query_and_silence_are_at_chance(tiny_model: Path) -> None:
    rows = [{"query_id": QUERIES[2].id, "text": text} for text in (ECHO, "", "  ")]
    assert Scorer(str(tiny_model), recipe(), QUERIES, World()).scores(rows) == [0.5] * 3


def test_no_scorer_scores_nothing() -> None:
    assert Scorer.of(recipe(), QUERIES, World(), trust_remote_code=False) is None


# --- In a run


def test_pairs_samples_and_evaluations_carry_their_relevance(scored: Path, tiny_model: Path) -> None:
    known = list(data().queries)
    rows = read_rows(scored / "iteration-1" / "pairs.jsonl")
    assert len(rows) == 12
    for row in rows[:4]:
        assert row["relevance"] == naive(tiny_model, known, row["query_id"], row["text"])
    before = json.loads((scored / "unseen-before.json").read_text())
    (evaluation,) = read_rows(scored / "iteration-1" / "evaluations.jsonl")
    after = read_rows(scored / "iteration-1" / "samples.jsonl")
    for figures, samples in ((before["figures"], before["samples"]), (evaluation, after)):
        values = [sample["relevance"] for sample in samples]
        assert len(values) == 4
        assert figures["completions/relevance"] == sum(values) / 4
    assert "relevance of sampled responses" in (scored / "iteration-1" / "model" / "README.md").read_text()


def test_what_is_scored_is_not_scored_again(
    scored: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that was kept before it was scored is scored, and no other."""
    rows = read_rows(scored / "iteration-1" / "pairs.jsonl")
    (tmp_path / "iteration-1").mkdir()
    kept = [{k: v for k, v in row.items() if k != "relevance" or n != 3} for n, row in enumerate(rows)]
    replace_rows(tmp_path / "iteration-1" / "pairs.jsonl", kept)
    replace_rows(tmp_path / "unseen.jsonl", read_rows(scored / "unseen.jsonl"))
    counts: list[int] = []
    real = Scorer.scores

    def counted(self: Scorer, rows: Any) -> list[float]:
        counts.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(Scorer, "scores", counted)
    train(settings(tiny_model, eval_samples=0), parse_source(str(tiny_model)), data(), tmp_path)
    assert counts == [1]
    assert read_rows(tmp_path / "iteration-1" / "pairs.jsonl") == rows


def test_pairs_off_their_query_are_filtered(scored: Path, tiny_model: Path, tmp_path: Path) -> None:
    rows = read_rows(scored / "iteration-1" / "pairs.jsonl")
    off = {row["query_id"] for row in rows if row["relevance"] < 0.5}
    assert 0 < len(off) < 6
    chosen = settings(tiny_model, filters=["empty", "irrelevant"])
    (tmp_path / "iteration-1").mkdir()
    replace_rows(tmp_path / "iteration-1" / "pairs.jsonl", rows)
    summary = train(chosen, parse_source(str(tiny_model)), data(), tmp_path)
    silent = {row["query_id"] for row in rows if not row["text"].strip()}
    assert summary["iterations"][0]["filtered"] == {"empty": len(silent), "irrelevant": len(off - silent)}
    assert summary["iterations"][0]["pairs"] == 6 - len(off | silent)


def test_a_fall_of_relevance_warns_and_stops(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here makes a random model lose relevance at will: after the base's, scores are halved."""
    measured: list[int] = []
    real = Scorer.scores

    def falling(self: Scorer, rows: Any) -> list[float]:
        if len(rows) == 4:
            measured.append(1)
        return [max(0.25, value) / (1 if len(measured) < 2 else 8) for value in real(self, rows)]

    monkeypatch.setattr(Scorer, "scores", falling)
    chosen = settings(tiny_model, warn_if={"relevance_drop": 0.05}, stop_if={"relevance_drop": 0.1})
    notes: list[str] = []
    with pytest.raises(UserError, match=r"stopped at step 2 by stop_if\.relevance_drop: .* depend less on their query"):
        train(chosen, parse_source(str(tiny_model)), data(), tmp_path, note=notes.append)
    assert any("limit 0.05; 0.5 is chance" in note for note in notes)


# --- What a run is


def test_a_scorer_belongs_to_a_run_that_filters_by_it(scored: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    finished = train(settings(tiny_model, relevance_scorer=other), parse_source(str(tiny_model)), data(), scored)
    assert finished["recipe"] == "tiny", "it is finished, and the scorer says nothing of what was trained"
    filters = ["empty", "irrelevant"]
    own = settings(tiny_model, filters=filters, eval_queries=0, eval_samples=0, min_relevance=0)
    train(own, parse_source(str(tiny_model)), data(), tmp_path / "run")
    with pytest.raises(UserError, match="a run with relevance_scorer = "):
        train(
            own.model_copy(update={"relevance_scorer": other}), parse_source(str(tiny_model)), data(), tmp_path / "run"
        )


def test_a_scorer_that_is_not_there_is_said_before_anything_is_sampled(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"relevance_scorer: the model folder .* does not exist"):
        train(settings(tmp_path / "nothing"), parse_source(str(tiny_model)), data(), tmp_path / "run")
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"filters": ["irrelevant"], "relevance_scorer": None}, "'irrelevant' needs a model that scores relevance"),
        ({"stop_if": {"relevance_drop": 0.1}, "relevance_scorer": None}, "set 'eval_samples' and 'relevance_scorer'"),
        ({"stop_if": {"relevance_drop": 0.1}, "eval_samples": 0}, "set 'eval_samples' and 'relevance_scorer'"),
        ({"min_relevance": 1.5}, "min_relevance"),
    ],
)
def test_recipes_that_cannot_score_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(Path("scorer"), **fields)
