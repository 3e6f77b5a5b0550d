"""Rows of a made-up run, and the naive loop over them."""

from __future__ import annotations

import json
import random
from itertools import product
from typing import Any

from harness.rows import Likelihood, Verdict
from harness.score import ExpectedPair, Facts, ScoreInputs

BOTH = ("ab", "ba")
VALUE = {"a": 1.0, "tie": 0.5, "b": 0.0}


def pair(
    query: str = "q0", constitution: str = "short+", *, orders: tuple[str, ...] = BOTH, **fields: Any
) -> ExpectedPair:
    place = {
        "judge": "judge", "kind": "win_rate", "a": "sami", "b": "base", "task": "dialogue",
        "principle_set": "verifiable", "split": "learned", "epoch": 0, **fields,
    }  # fmt: skip
    return ExpectedPair(query_id=query, constitution_id=constitution, orders=orders, **place)


def verdict(
    expected: ExpectedPair, order: str, outcome: str, details: dict[str, Any] | None = None, repeat: int = 0
) -> Verdict:
    fields = {
        name: value for name, value in expected._asdict().items() if name not in ("orders", "repeats", "judged_by")
    }
    return Verdict.model_validate(
        {
            **fields, "id": f"{expected}{order}{repeat}", "fingerprint": "f", "order": order, "outcome": outcome,
            "repeat": repeat,
            "reason": "no_verdict" if outcome == "unscored" else None, "raw": "", "details": details or {},
            "usage": {}, "latency_s": 0,
        }
    )  # fmt: skip


def inputs(judged: dict[ExpectedPair, str], **fields: Any) -> ScoreInputs:
    """`judged`: outcomes of a pair's orders, one word each, for example "a tie"; "-" for a row that is missing.

    Where a pair was judged several times, those of the first judging come first.
    """
    rows = [
        verdict(expected, order, outcome, repeat=repeat)
        for expected, outcomes in judged.items()
        for (repeat, order), outcome in zip(
            product(range(expected.repeats), expected.orders), outcomes.split(), strict=True
        )
        if outcome != "-"
    ]
    given = {
        "name": "run", "description": "", "spec_fingerprint": "f", "level": 0.95, "max_unscored": 0.02,
        "models": {"base": {}, "sami": {"trained_from": "base"}},
        "judges": {"judge": {"kind": "llm", "model": "base"}}, "verdicts": rows,
        "facts": {}, "likelihoods": [], "training": {}, "expected": list(judged),
    }  # fmt: skip
    return ScoreInputs(**{**given, **fields})


def only(rows: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    found = [row for row in rows if all(row[name] == value for name, value in fields.items())]
    assert len(found) == 1
    return found[0]


def strictly(value: Any) -> None:
    json.dumps(value, allow_nan=False)


def random_run() -> ScoreInputs:
    rng = random.Random(7)
    judged = {}
    for task, split, q, constitution, epoch in product(
        ("dialogue", "posts"), ("learned", "held_out"), range(30), ("short+.list-", "list+"), (0, 1)
    ):
        outcomes = " ".join(rng.choices(["a", "b", "tie", "unscored", "-"], [4, 3, 2, 1, 0.5], k=2))
        judged[pair(f"q{q}", constitution, task=task, split=split, epoch=epoch)] = outcomes
    return inputs(judged, facts={p.response(side): Facts(rng.randrange(5, 90)) for p in judged for side in ("a", "b")})


def naive_scores(run: ScoreInputs, task: str, split: str, principle: str | None = None) -> dict[str, float]:
    by_query: dict[str, list[float]] = {}
    for query, p, value in naive_pairs(run, task, split):
        if principle is None or principle in [part[:-1] for part in p.constitution_id.split(".")]:
            by_query.setdefault(query, []).append(value)
    return {query: sum(values) / len(values) for query, values in by_query.items()}


def naive_pairs(run: ScoreInputs, task: str, split: str) -> list[tuple[str, ExpectedPair, float]]:
    """Query, pair and score of the scored pairs of a win rate."""
    verdicts = [v for v in run.verdicts if v.kind == "win_rate"]
    rows = {(v.task, v.split, v.query_id, v.constitution_id, v.epoch, v.order): v for v in verdicts}
    found = []
    for p in (p for p in run.expected if p.kind == "win_rate"):
        two = [rows.get((p.task, p.split, p.query_id, p.constitution_id, p.epoch, order)) for order in p.orders]
        if task in ("all", p.task) and p.split == split and all(row and row.outcome != "unscored" for row in two):
            value = sum(VALUE[row.outcome] for row in two if row) / len(two)
            found.append((f"{p.task}\0{p.query_id}", p, value))
    return found


def naive_means(values: list[tuple[str, float]]) -> list[float]:
    """The mean of each query's values, queries in order."""
    queries = sorted({query for query, _ in values})
    return [sum(own) / len(own) for q in queries if (own := [v for query, v in values if query == q])]


def likelihood(query: str, table: list[list[float]], **fields: Any) -> Likelihood:
    given = {
        "id": query, "fingerprint": "f", "model": "base", "task": "dialogue", "query_id": query,
        "principle_set": "verifiable", "split": "learned", "constitution_ids": ["x+", "x-"],
        "logprob_sums": table, "n_tokens": [3, 4],
    }  # fmt: skip
    return Likelihood.model_validate({**given, **fields})
