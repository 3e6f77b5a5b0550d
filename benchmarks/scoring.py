"""Scoring at scale: 20 models against one base x 20 principle sets x 250 queries x 2 orders = 200,000 verdicts, 2,000 replicates.

    python benchmarks/scoring.py [--models 20] [--sets 20] [--queries 250] [--resamples 2000] [--slice 5]

First the real path, in a process of its own: the verdicts are read from a run's row file, `harness.score.score` makes the
results of all comparisons from them, and `harness.stats` a leaderboard over all sets and one for every set, with strengths and
ranks refitted to each bootstrap replicate of the queries. Its bar: 60 s and 2 GiB on 2 cores.

Then the leaderboards alone against plain Python loops that compute the same from the same rows: query means by dictionaries, the
same draws, Newton's method with Gaussian elimination on lists. The plain version runs on a slice (the leaderboard over all sets and
the first set's, `--slice` replicates each) and is extrapolated in proportion; what both computed on the slice must agree to 1e-8.
Its bar: 100 times. Times of this part are CPU seconds of one thread, so that a busy machine does not distort the ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from harness.rows import Verdict
from harness.score import ExpectedPair, ScoreInputs, score
from harness.stats import BradleyTerry, bradley_terry
from harness.store import RowFile

SECONDS, GIB, TIMES = 60, 2, 100
BASE = "base"
SCORES = {"a": 1.0, "tie": 0.5, "b": 0.0}

Columns = tuple[list[str], list[str], list[float], list[str]]
"""a, b, scores, query ids: what `bradley_terry` takes"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20, help="besides the base")
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--queries", type=int, default=250)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--slice", type=int, default=5, help="replicates of the plain version")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows:
        print(json.dumps(real_path(options.rows, options.resamples)))
        return 0

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdicts.jsonl"
        write_rows(path, options.models, options.sets, options.queries)
        command = [sys.executable, __file__, "--rows", str(path), "--resamples", str(options.resamples)]
        real = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        boards = by_set(list(RowFile(path, Verdict).rows()))
    n = sum(len(columns[0]) for columns in boards.values()) // 2
    print(
        f"{n:,} verdicts, {len(boards)} leaderboards of {options.models + 1} models, {options.resamples:,} replicates each"
    )
    for name in ("read", "score", "leaderboards"):
        print(f"  {name:14} {real[name]:7.1f} s")
    within = real["seconds"] <= SECONDS and real["gib"] <= GIB
    print(
        f"  {'together':14} {real['seconds']:7.1f} s wall clock ({real['cpu']:.1f} CPU s), peak {real['gib']:.2f} GiB  "
        f"{verdict(within)}\n"
    )

    started = time.process_time()
    ours = {name: bradley_terry(*columns, base=BASE, resamples=options.resamples) for name, columns in boards.items()}
    vectorised = time.process_time() - started

    plain, first = 0.0, list(boards)[:2]
    for name in first:
        share = 1 if name == "all sets" else len(boards) - 1  # leaderboards of this size
        once, each = plain_leaderboard(boards[name], options.slice, check=ours[name])
        plain += share * (once + each * options.resamples)
        print(f"  plain, {name}: {once:.2f} s for the query means and the fit, {1000 * each:.1f} ms for a replicate")
    times = plain / vectorised
    print(f"  plain, all, extrapolated from {options.slice} replicates of {len(first)} leaderboards: {plain:.0f} CPU s")
    print(f"  vectorised, all, measured: {vectorised:.2f} CPU s, {times:.0f} times faster  {verdict(times >= TIMES)}")
    return 0 if within and times >= TIMES else 1


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


# --- The real path ----------------------------------------------------------------------------------------------------


def write_rows(path: Path, models: int, sets: int, queries: int) -> None:
    """Verdicts of a run: models differ in strength, queries in how easy they are, orders in favour of the first answer."""
    rng = random.Random(0)
    strengths = [rng.gauss(0, 0.8) for _ in range(models)]
    ease = [rng.gauss(0, 0.7) for _ in range(queries)]
    with RowFile(path, Verdict) as file:
        for m, strength in enumerate(strengths):
            rows = []
            for s in range(sets):
                for q in range(queries):
                    for order, shift in (("ab", 0.3), ("ba", -0.3)):
                        wins = rng.random() < 1 / (1 + math.exp(-(strength + ease[q] + shift)))
                        outcome = "tie" if rng.random() < 0.1 else "a" if wins else "b"
                        rows.append(row(f"model-{m:02}", f"set-{s:02}", f"query-{q:04}", order, outcome))
            file.append(rows)


def row(model: str, principle_set: str, query: str, order: str, outcome: str) -> Verdict:
    return Verdict.model_validate(
        {
            "id": f"{model}/{principle_set}/{query}/{order}",
            "fingerprint": "0" * 64,
            "judge": "judge",
            "kind": "win_rate",
            "a": model,
            "b": BASE,
            "task": "dialogue",
            "query_id": query,
            "constitution_id": "one+.two+",
            "principle_set": principle_set,
            "split": "learned",
            "order": order,
            "outcome": outcome,
            "raw": "The first answer follows both principles, the second one only.\n\nVerdict: A",
            "details": {},
            "usage": {"prompt_tokens": 400, "completion_tokens": 20},
            "latency_s": 1.0,
        }
    )


def real_path(path: Path, resamples: int) -> dict[str, float]:
    started = time.perf_counter()
    rows = list(RowFile(path, Verdict).rows())
    was_read = time.perf_counter()
    pairs = [
        ExpectedPair(
            v.judge, v.kind, v.a, v.b, v.task, v.principle_set, v.split, v.query_id, v.constitution_id, v.epoch, ("ab", "ba")
        )
        for v in rows
        if v.order == "ab"
    ]  # fmt: skip
    models = {name: {"kind": "test"} for name in sorted({v.a for v in rows} | {BASE})}
    judges = {"judge": {"kind": "llm"}}
    results = score(ScoreInputs("scale", "", "0", 0.95, 0.02, models, judges, rows, {}, [], {}, pairs))
    was_scored = time.perf_counter()
    boards = [bradley_terry(*columns, base=BASE, resamples=resamples) for columns in by_set(rows).values()]
    done = time.perf_counter()
    assert len(results["comparisons"]) == len({(v.a, v.principle_set) for v in rows})
    assert all(len(board.models) == len(models) for board in boards)
    return {
        "read": was_read - started,
        "score": was_scored - was_read,
        "leaderboards": done - was_scored,
        "seconds": done - started,
        "cpu": time.process_time(),
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def by_set(rows: Sequence[Verdict]) -> dict[str, Columns]:
    """The rows of the leaderboard over all sets, and those of each set's own."""
    boards: dict[str, Columns] = defaultdict(lambda: ([], [], [], []))
    for v in rows:
        for name in ("all sets", v.principle_set):
            for column, value in zip(boards[name], (v.a, v.b, SCORES[v.outcome], v.query_id), strict=True):
                column.append(value)  # type: ignore[arg-type]
    return dict(boards)


# --- The plain version ------------------------------------------------------------------------------------------------


def plain_leaderboard(columns: Columns, replicates: int, check: BradleyTerry) -> tuple[float, float]:
    """CPU seconds for what is done once, and for one replicate. Raises AssertionError where `check` says otherwise."""
    started = time.process_time()
    models = sorted({*columns[0], *columns[1]} - {BASE})
    places = {name: k for k, name in enumerate(models)}
    rows_of: dict[tuple[str, str, str], list[float]] = {}
    for a, b, s, query in zip(*columns, strict=True):
        rows_of.setdefault((query, a, b), []).append(s)
    by_query: dict[str, list[tuple[int, int, float]]] = {}
    for (query, a, b), values in rows_of.items():
        by_query.setdefault(query, []).append((places.get(a, -1), places.get(b, -1), sum(values) / len(values)))
    names = sorted(by_query)
    fitted = plain_fit(names, by_query, len(models))
    once = time.process_time() - started

    draws = np.random.default_rng(0).integers(0, len(names), (replicates, len(names))).tolist()
    order = [places.get(model.name, -1) for model in check.models]
    se = plain_errors(check)
    started = time.process_time()
    found = []
    for draw in draws:
        strengths = [*plain_fit([names[pick] for pick in draw], by_query, len(models)), 0.0]
        found.append(([strengths[at] for at in order], plain_largest(strengths, [*fitted, 0.0], order, se)))
    each = (time.process_time() - started) / replicates

    same = bradley_terry(*columns, base=BASE, resamples=replicates)
    assert max(abs(model.strength - [*fitted, 0.0][at]) for model, at in zip(check.models, order, strict=True)) < 1e-8
    assert np.abs(same.resampled - [strengths for strengths, _ in found]).max() < 1e-8
    return once, each


def plain_errors(board: BradleyTerry) -> list[list[float]]:
    """Standard errors of the differences between models."""
    v = board.covariance.tolist()
    return [[math.sqrt(max(v[i][i] + v[j][j] - 2 * v[i][j], 0)) for j in range(len(v))] for i in range(len(v))]


def plain_largest(drawn: list[float], fitted: list[float], order: list[int], se: list[list[float]]) -> list[float]:
    """For each model the largest studentised difference from it in one replicate, which its rank's interval is made of."""
    moved = [drawn[at] - fitted[at] for at in order]
    return [
        max(abs(one - other) / e for other, e in zip(moved, errors, strict=True) if e > 0)
        for one, errors in zip(moved, se, strict=True)
    ]


def plain_fit(drawn: list[str], by_query: dict[str, list[tuple[int, int, float]]], size: int) -> list[float]:
    """Newton's method from zero, without guards; -1 is the base."""
    won: dict[tuple[int, int], float] = {}
    games: dict[tuple[int, int], int] = {}
    for query in drawn:
        for a, b, s in by_query[query]:
            won[a, b] = won.get((a, b), 0.0) + s
            games[a, b] = games.get((a, b), 0) + 1
    strengths = [0.0] * size
    for _ in range(50):
        gradient = [0.0] * size
        hessian = [[0.0] * size for _ in range(size)]
        for (a, b), n in games.items():
            difference = (strengths[a] if a >= 0 else 0.0) - (strengths[b] if b >= 0 else 0.0)
            p = 1 / (1 + math.exp(-difference))
            residual, weight = won[a, b] - n * p, n * p * (1 - p)
            if a >= 0:
                gradient[a] += residual
                hessian[a][a] += weight
            if b >= 0:
                gradient[b] -= residual
                hessian[b][b] += weight
            if a >= 0 and b >= 0:
                hessian[a][b] -= weight
                hessian[b][a] -= weight
        step = plain_solve(hessian, gradient)
        strengths = [x + d for x, d in zip(strengths, step, strict=True)]
        if max(map(abs, step)) < 1e-10:
            break
    return strengths


def plain_solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination without pivots: the matrix is positive definite."""
    size = len(right)
    matrix, right = [list(line) for line in matrix], list(right)
    for k in range(size):
        for i in range(k + 1, size):
            factor = matrix[i][k] / matrix[k][k]
            if factor:
                for j in range(k, size):
                    matrix[i][j] -= factor * matrix[k][j]
                right[i] -= factor * right[k]
    for k in reversed(range(size)):
        right[k] = (right[k] - sum(matrix[k][j] * right[j] for j in range(k + 1, size))) / matrix[k][k]
    return right


if __name__ == "__main__":
    raise SystemExit(main())
