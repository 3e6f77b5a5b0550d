"""A synthetic run for the report's tests: rows drawn at random, scored by the harness itself."""

from __future__ import annotations

import random
from typing import Any

from harness.rows import Likelihood, Verdict
from harness.score import ExpectedPair, ScoreInputs, score

SPLITS = {"learned": ["ends-with-question", "at-most-25-words"], "held_out": ["no-exclamation"]}
STEERED = {"base": 0.5, "instruct": 0.62, "sami": 0.75}
TRAINING: dict[str, Any] = {
    "recipe": "embedded/gemma-3-270m",
    "from": "embedded/gemma-3-270m",
    "iterations": [
        {
            "iteration": 1,
            "queries": 64,
            "pairs": 120,
            "filtered": {"empty": 3, "duplicate": 5, "copies_query": 0},
            "steps": 8,
            "loss_first": 0.693,
            "loss_last": 0.512,
            "accuracy_last": 0.71,
            "mi_lower_bound_last": 0.181,
            "seconds": 4000.0,
        },
        {"iteration": 2},
    ],
    "evaluation": {
        "n": 32,
        "before": {"loss": 0.69, "accuracy": 0.51, "loss_ci": [0.66, 0.72], "accuracy_ci": [0.42, 0.6]},
        "after": {"loss": 0.55, "accuracy": 0.66, "loss_ci": [0.51, 0.6], "accuracy_ci": [0.57, 0.74]},
    },
}


def make_results(
    *,
    tasks: tuple[str, ...] = ("dialogue", "summarization"),
    n: int = 40,
    win: float = 0.6,
    unscored: float = 0.01,
    seed: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """results.json of a run with two comparisons, an exact judge and a language model as a judge."""
    rng = random.Random(seed)
    expected: list[ExpectedPair] = []
    verdicts: list[Verdict] = []
    lengths = {}

    def judge(name: str, kind: Any, a: str, b: str, task: str, split: str, query: int, p: float) -> None:
        principle = SPLITS[split][query % len(SPLITS[split])]
        orders = ("ab",) if name == "verifiable" else ("ab", "ba")
        pair = ExpectedPair(name, kind, a, b, task, "verifiable", split, f"q{query}", f"{principle}+", 0, orders)
        expected.append(pair)
        truth = rng.random() < p
        for order in orders:
            outcome = "a" if truth else "b"
            if name != "verifiable" and rng.random() < 0.35:
                outcome = "a" if order == "ab" else "b"
            if rng.random() < 0.1:
                outcome = "tie"
            if rng.random() < unscored:
                outcome = "unscored"
            verdicts.append(verdict(pair, order, outcome))
        for model in (a, b):
            lengths[model, task, f"q{query}", f"{principle}+", 0] = float(rng.randint(8, 30))

    for task in tasks:
        for split in SPLITS:
            for query in range(n):
                for a, b in (("sami", "base"), ("sami", "instruct")):
                    p = win if (b, split) == ("base", "learned") else 0.5 if b == "base" else 0.3
                    judge("verifiable", "win_rate", a, b, task, split, query, p)
                    if query < n // 2:
                        judge("smollm2", "win_rate", a, b, task, split, query, p)
                for model, p in STEERED.items():
                    judge("verifiable", "steerability", model, model, task, split, query, p)
    likelihoods = [
        Likelihood(
            id=f"{model}{task}{split}{query}",
            fingerprint="f",
            model=model,
            task=task,
            query_id=f"q{query}",
            principle_set="verifiable",
            split=split,
            constitution_ids=["x+", "x-"],
            logprob_sums=[[-20 + rng.random(), -21.0], [-20.5, -20 - rng.random()]],
            n_tokens=[9, 9],
        )
        for model in ("base", "sami")
        for task in tasks
        for split in SPLITS
        for query in range(min(n, 16))
    ]
    inputs: dict[str, Any] = {
        "name": "quickstart",
        "description": "Does a small model follow principles better after SAMI?",
        "spec_fingerprint": "0123456789abcdef",
        "level": 0.95,
        "max_unscored": 0.02,
        "models": {
            "base": {"path": "embedded/gemma-3-270m", "style": "completion", "trained_from": None},
            "instruct": {"path": "embedded/smollm2-135m-instruct", "style": "chat", "trained_from": None},
            "sami": {"path": None, "style": "completion", "trained_from": "base"},
        },
        "judges": {
            "verifiable": {"kind": "verifiable", "model": None},
            "smollm2": {"kind": "llm", "model": "instruct"},
        },
        "expected": expected,
        "verdicts": verdicts,
        "lengths": lengths,
        "likelihoods": likelihoods,
        "training": {"sami": TRAINING},
    }
    return {**score(ScoreInputs(**{**inputs, **changes})), "created": "2026-01-01T00:00:00Z"}


def verdict(pair: ExpectedPair, order: str, outcome: str, **changes: Any) -> Verdict:
    """A verdict on an expected pair."""
    values = {
        **{key: value for key, value in pair._asdict().items() if key != "orders"},
        "id": "/".join(map(str, (*pair[:-1], order))),
        "fingerprint": "f",
        "order": order,
        "outcome": outcome,
        "reason": "no_verdict" if outcome == "unscored" else None,
        "raw": "",
        "details": {},
        "usage": {},
        "latency_s": 0.0,
    }
    return Verdict(**{**values, **changes})
