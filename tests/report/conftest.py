"""One run's results for the tests of the report: a mixed outcome, two judges, two tasks, a trained model."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest

from harness.rows import Likelihood, Verdict
from harness.score import ExpectedPair, Facts, ResponseKey, ScoreInputs, score

PRINCIPLES = {
    "learned": ("ends-with-question", "short", "bullet-list"),
    "held_out": ("no-first-person", "mentions-a-number"),
}
CHANCE = {("sami", "learned"): 0.8, ("sami", "held_out"): 0.5}
"""How often the model wins; 0.5 where nothing is said."""


def _scored_inputs() -> ScoreInputs:
    rng = random.Random(0)
    judges = {"verifiable": {"kind": "verifiable", "model": None}, "smollm2": {"kind": "llm", "model": "instruct"}}
    expected, verdicts = [], []
    pairs: list[tuple[Any, str, str]] = [("win_rate", "sami", "base"), ("win_rate", "sami", "instruct")]
    pairs += [("steerability", model, model) for model in ("base", "instruct", "sami")]
    tasks = {"dialogue": 48, "summarization": 16}
    for (kind, a, b), judge, (task, n), split in product(pairs, judges, tasks.items(), PRINCIPLES):
        for q in range(n // 2 if judge == "smollm2" else n):
            principle = PRINCIPLES[split][q % len(PRINCIPLES[split])]
            for side in "+-" if kind == "win_rate" else "+":
                orders = ("ab",) if judge == "verifiable" else ("ab", "ba")
                pair = ExpectedPair(
                    judge, kind, a, b, task, "verifiable", split, f"q{q}", principle + side, 0, orders
                )  # fmt: skip
                expected.append(pair)
                for order in orders:
                    noise = 0.5 if judge == "smollm2" else CHANCE.get((a, split), 0.5)
                    outcome = rng.choices(["a", "b", "tie"], [noise, 1 - noise, 0.3])[0]
                    if judge == "smollm2" and rng.random() < 0.02:
                        outcome = "unscored"
                    verdicts.append(verdict(pair, order, outcome, f"{len(verdicts)}"))
    tables = [[[-20.0 - rng.random(), -21.0], [-21.5, -20.0 - rng.random()]] for _ in range(16)]
    likelihoods = [
        Likelihood(
            id=f"{model}{task}{split}{q}", fingerprint="f", model=model, task=task, query_id=f"q{q}",
            principle_set="verifiable", split=split, constitution_ids=["x+", "x-"], logprob_sums=table, n_tokens=[9, 9],
        )
        for model, task, split in product(("base", "sami"), tasks, PRINCIPLES)
        for q, table in enumerate(tables)
    ]  # fmt: skip
    words = {"sami": 24, "base": 31, "instruct": 18}
    lengths = {
        ResponseKey(m, p.task, p.principle_set, p.split, p.query_id, p.constitution_id, p.epoch): Facts(
            words[m] + rng.randrange(9), digest=f"{m} {p.task} {p.split} {p.query_id} {p.constitution_id}"
        )
        for p in expected
        for m in (p.a, p.b)
    }
    return ScoreInputs(
        name="quickstart",
        description="Does SAMI on a laptop teach a base model to follow principles?",
        spec_fingerprint="0123456789abcdef",
        level=0.95,
        max_unscored=0.02,
        models={
            "base": {"path": "embedded/gemma-3-270m", "style": "completion", "trained_from": None},
            "instruct": {"path": "embedded/smollm2-135m-instruct", "style": "chat", "trained_from": None},
            "sami": {"path": "runs/quickstart/training/sami", "style": "completion", "trained_from": "base"},
        },
        judges=judges,
        verdicts=verdicts,
        facts=lengths,
        relevance={key: ("instruct", rng.choice([0.75, 1.0])) for key in lengths},
        likelihoods=likelihoods,
        training={
            "sami": {
                "recipe": "embedded/gemma-3-270m",
                "from": "embedded/gemma-3-270m",
                "iterations": [
                    {
                        "iteration": 1, "queries": 96, "pairs": 88, "filtered": {"same": 6, "empty": 2, "long": 0},
                        "steps": 11, "loss_first": 0.8712, "loss_last": 0.6021, "accuracy_last": 0.6875,
                        "mi_lower_bound_last": 0.091,
                    }
                ],
                "evaluation": {
                    "n": 24,
                    "before": {"loss": 0.71, "accuracy": 0.52, "loss_ci": [0.65, 0.77], "accuracy_ci": [0.41, 0.63]},
                    "after": {"loss": 0.58, "accuracy": 0.71, "loss_ci": [0.52, 0.64], "accuracy_ci": [0.60, 0.82]},
                },
            }
        },
        expected=expected,
    )  # fmt: skip


def verdict(pair: ExpectedPair, order: Any, outcome: Any, id: str) -> Verdict:
    return Verdict(
        id=id, fingerprint="f", judge=pair.judge, kind=pair.kind, a=pair.a, b=pair.b, task=pair.task,
        query_id=pair.query_id, constitution_id=pair.constitution_id, principle_set=pair.principle_set,
        split=pair.split, epoch=pair.epoch, order=order, outcome=outcome,
        reason="no_verdict" if outcome == "unscored" else None, raw="", details={}, usage={}, latency_s=0,
    )  # fmt: skip


_RESULTS = score(_scored_inputs())


@pytest.fixture
def results() -> dict[str, Any]:
    """A fresh copy, so that a test may change it."""
    import copy

    return copy.deepcopy(_RESULTS)


@pytest.fixture
def examples() -> list[dict[str, Any]]:
    """Two, as `harness.rescore.examples` gives them."""
    return [
        {
            "task": "dialogue",
            "query_id": f"q{number}",
            "split": split,
            "constitution": [f"Mention the number {number} somewhere in a sentence of some length."],
            "query": "What is the best way to learn the names of all the birds in a garden?",
            "responses": {
                model: {"text": f"{model} says {number}.", "copied": 0.25, "ran_on": model == "sami", "cut": False}
                for model in ("base", "instruct", "sami")
            },
        }
        for number, split in enumerate(("held_out", "learned"), 1)
    ]
