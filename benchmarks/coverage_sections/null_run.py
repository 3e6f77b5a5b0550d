"""How often does a report of nothing say "beats"? Runs that compare a model with copies of itself."""

from __future__ import annotations

import itertools
import math

import numpy as np

from coverage_sections._cells import cell
from harness.judges.llm import Outcome
from harness.report.headline import headline
from harness.report.readings import WIN_RATE
from harness.rows import Verdict
from harness.score import ExpectedPair, ScoreInputs, score
from harness.stats import cluster_means, holm, sign_flip_p, win_rate

MARGIN = 0.742
"""Two responses whose qualities (standard normal) differ by less tie: 40% of pairs."""


def null_run(simulations: int) -> None:
    """n queries of two tasks together, two principles of each split a query.

    "beats": Holm's p over all pooled rows of at most .05, and an interval that excludes one half, on either side.
    """
    runs = max(200, simulations // 2)
    print(f"  n     comparisons  says so   bar    by the interval alone ({runs} runs)")
    rng = np.random.default_rng(12)
    for n, comparisons in itertools.product((18, 36, 120, 250), (2, 6)):
        found = [sentences(rng, n, comparisons) for _ in range(runs)]
        beats, ahead = np.mean(found, axis=0)
        bar = 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
        cell(f"{n:<5} {comparisons:<11}", beats, bar=bar, at_most=True, tail=f"{ahead:.1%}")


def sentences(rng: np.random.Generator, n: int, comparisons: int) -> tuple[bool, bool]:
    """Whether a run of `n` queries says "beats" anywhere, and whether any interval excludes one half."""
    p_values, clear = [], []
    queries = np.repeat(np.arange(n), 2)  # two principles a query
    for _ in ("learned", "held-out"):
        test = rng.normal(0, 1, queries.size)
        for _ in range(comparisons):
            ahead = test - rng.normal(0, 1, queries.size)
            s = np.where(np.abs(ahead) < MARGIN, 0.5, ahead > 0)
            means = cluster_means(s, queries).means
            rate = win_rate(means)
            p_values.append(sign_flip_p(means, 1 - means))
            clear.append(rate.low > 0.5 or rate.high < 0.5)
    return bool((np.array(clear) & (holm(p_values) <= 0.05)).any()), any(clear)


SPLITS = {split: [f"{split}{i}" for i in range(10)] for split in ("learned", "held_out")}
"""Principles by split."""
TASKS = ("dialogue", "summarization")
QUERIES = 36
"""Of both tasks together; each under two principles of each split."""


def through_the_report(simulations: int) -> None:
    """The same with verdicts that go through `harness.score` and the report's own headline.

    Model a against b and c, which are a as well, on two tasks and two splits by a verifiable judge.
    """
    runs = max(200, simulations // 16)
    print(f"  rows  says so   bar    by the interval alone ({runs} runs)")
    rng = np.random.default_rng(13)
    found = [readings(rng) for _ in range(runs)]
    says = np.mean([bool({WIN_RATE.above, WIN_RATE.below} & marks) for marks in found])
    alone = np.mean([marks != {"–"} for marks in found])
    bar = 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)
    cell("4    ", float(says), bar=bar, at_most=True, tail=f"{alone:.1%}")


def readings(rng: np.random.Generator) -> set[str]:
    """The marks in the headline of a run that compares copies of one model."""
    quality = rng.normal(0, 1, (3, len(SPLITS), QUERIES, 2))  # model, split, query, constitution
    expected, verdicts = [], []
    for (i, (split, principles)), q, c in itertools.product(enumerate(SPLITS.items()), range(QUERIES), range(2)):
        principle = principles[(2 * q + c) % len(principles)]
        for other, name in ((1, "b"), (2, "c")):
            ahead = quality[0, i, q, c] - quality[other, i, q, c]
            outcome: Outcome = "tie" if abs(ahead) < MARGIN else "a" if ahead > 0 else "b"
            place = {
                "judge": "programs", "kind": "win_rate", "a": "a", "b": name, "task": TASKS[q % 2], "principle_set": "set",
                "split": split, "query_id": f"q{q}", "constitution_id": f"{principle}+", "epoch": 0,
            }  # fmt: skip
            expected.append(ExpectedPair(**place, orders=("ab",)))
            verdict = {
                **place, "id": str(len(verdicts)), "fingerprint": "f", "order": "ab", "outcome": outcome, "reason": None,
                "raw": "", "details": {}, "usage": {}, "latency_s": 0,
            }  # fmt: skip
            verdicts.append(Verdict.model_validate(verdict))
    results = score(
        ScoreInputs(
            name="null",
            description="",
            spec_fingerprint="",
            level=0.95,
            max_unscored=0.0,
            models={name: {"path": "x", "style": "chat", "trained_from": None} for name in "abc"},
            judges={"programs": {"kind": "verifiable", "model": None}},
            verdicts=verdicts,
            facts={},
            likelihoods=[],
            training={},
            expected=expected,
        )
    )
    return {row[table.columns.index("reading")] for table in headline(results) for row in table.rows}
