"""Two run folders beside each other."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.compare import compare
from harness.report import print_comparison
from harness.rows import Verdict
from harness.stats import holm, paired_difference, sign_flip_p
from harness.store import RowFile
from sami_train.errors import UserError

VALUE = {"a": 1.0, "tie": 0.5, "b": 0.0}


def write(run: Path, outcomes: dict[str, str], **fields: Any) -> Path:
    """`outcomes`: of a query's orders ab and ba, for example "a tie"."""
    place = {
        "judge": "judge", "kind": "win_rate", "a": "sami", "b": "base", "task": "dialogue", "split": "learned",
        "principle_set": "verifiable", "constitution_id": "short+", "epoch": 0, **fields,
    }  # fmt: skip
    rows = [
        Verdict.model_validate(
            {
                **place, "id": f"{sorted(place.items())}{query}{order}", "fingerprint": "f", "query_id": query,
                "order": order, "outcome": outcome, "reason": "empty" if outcome == "unscored" else None, "raw": "",
                "details": {}, "usage": {}, "latency_s": 0,
            }
        )
        for query, both in outcomes.items()
        for order, outcome in zip(("ab", "ba"), both.split(), strict=False)
    ]  # fmt: skip
    with RowFile(run / "verdicts" / place["judge"] / f"{place['a']}-vs-{place['b']}.jsonl", Verdict) as file:
        file.append(rows)
    return run


def outcomes(seed: int, queries: range) -> dict[str, str]:
    rng = random.Random(seed)
    return {f"q{i}": " ".join(rng.choices(["a", "b", "tie"], k=2)) for i in queries}


def mean(both: str) -> float:
    return sum(VALUE[o] for o in both.split()) / 2


def test_a_difference_is_that_of_the_common_queries(tmp_path: Path) -> None:
    one, two = outcomes(1, range(40)), outcomes(2, range(5, 50))
    result = compare(write(tmp_path / "one", one), write(tmp_path / "two", two))
    shared = sorted(one.keys() & two.keys())
    a, b = [mean(one[q]) for q in shared], [mean(two[q]) for q in shared]
    expected = paired_difference(a, b)
    (row,) = result["rows"]
    assert (row["n_common"], row["n_only_a"], row["n_only_b"]) == (35, 5, 10)
    assert row["difference"] == pytest.approx(sum(x - y for x, y in zip(a, b, strict=True)) / 35, abs=1e-12)
    assert (row["ci_low"], row["ci_high"]) == (expected.low, expected.high)
    assert row["win_rate_a"] == pytest.approx(sum(a) / 35, abs=1e-12)
    assert row["p_value"] == row["p_holm"] == sign_flip_p(a, b)


def test_p_values_are_adjusted_over_the_table(tmp_path: Path) -> None:
    for seed, split in enumerate(("held_out", "learned")):
        write(tmp_path / "one", outcomes(seed, range(20)), split=split)
        write(tmp_path / "two", dict.fromkeys(outcomes(seed, range(20)), "b b"), split=split)
    rows = compare(tmp_path / "one", tmp_path / "two")["rows"]
    assert [row["split"] for row in rows] == ["learned", "held_out"]
    assert [row["p_holm"] for row in rows] == list(holm([row["p_value"] for row in rows]))


def test_queries_that_were_judged_by_other_parts_of_a_constitution_are_no_pairs(tmp_path: Path) -> None:
    whole = write(tmp_path / "one", {"q0": "a a", "q1": "a a"})
    part = write(tmp_path / "two", {"q0": "b b"}, judged_by="short+")
    write(tmp_path / "two", {"q1": "b b"})
    (row,) = compare(whole, part)["rows"]
    assert (row["n_common"], row["n_only_a"], row["n_only_b"], row["difference"]) == (1, 1, 1, 1.0)
    (row,) = compare(part, part)["rows"]
    assert (row["n_common"], row["difference"]) == (2, 0.0)


def test_a_pair_with_one_order_unscored_or_missing_is_left_out(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"q0": "a a", "q1": "a unscored", "q2": "a"})
    two = write(tmp_path / "two", {"q0": "b b", "q1": "b b", "q2": "b b"})
    (row,) = compare(one, two)["rows"]
    assert (row["n_common"], row["n_only_b"], row["difference"]) == (1, 2, 1.0)


def test_a_judge_with_one_order_is_compared_by_it(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"q0": "a", "q1": "tie"})
    two = write(tmp_path / "two", {"q0": "a", "q1": "b"})
    (row,) = compare(one, two)["rows"]
    assert (row["n_common"], row["difference"]) == (2, 0.25)


def test_constitutions_and_epochs_of_a_query_are_averaged(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"q0": "a a"})
    write(tmp_path / "one", {"q0": "b b"}, constitution_id="list+")
    write(tmp_path / "one", {"q0": "b b"}, epoch=1)
    (row,) = compare(one, write(tmp_path / "two", {"q0": "b b"}))["rows"]
    assert row["win_rate_a"] == pytest.approx(1 / 3)


def test_what_one_run_alone_has_is_named(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", {"q": "a a"}), write(tmp_path / "two", {"q": "a a"})
    write(one, {"q": "a a"}, judge="other")
    write(two, {"q": "a a"}, task="posts")
    result = compare(one, two)
    assert [key["judge"] for key in result["only_a"]] == ["other"]
    assert [key["task"] for key in result["only_b"]] == ["posts"]


def test_nothing_in_common_is_refused_with_what_there_is(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", {"q": "a a"}), write(tmp_path / "two", {"q": "a a"}, a="instruct")
    with pytest.raises(UserError, match="no comparison in common") as error:
        compare(one, two)
    assert "sami against base on dialogue (verifiable, learned) by judge" in str(error.value)
    assert "instruct against base" in str(error.value)


def test_no_common_query_is_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", {"q0": "a a"}), write(tmp_path / "two", {"q1": "a unscored"})
    with pytest.raises(UserError, match=r"no scored query in common.*q0.*none that is scored"):
        compare(one, two)


def test_a_row_without_a_common_query_has_null_figures(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", {"q0": "a a"}), write(tmp_path / "two", {"q0": "a a"})
    write(one, {"q1": "a a"}, split="held_out")
    write(two, {"q2": "a a"}, split="held_out")
    result = compare(one, two)
    row = result["rows"][1]
    assert (row["n_common"], row["difference"], row["p_holm"]) == (0, None, None)
    assert "held-out" in printed(result)


@pytest.mark.parametrize(("made", "message"), [(False, "does not exist"), (True, "holds no verdicts")])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, made: bool, message: str) -> None:
    folder = tmp_path / "none"
    if made:
        folder.mkdir()
    with pytest.raises(UserError, match=message):
        compare(folder, write(tmp_path / "two", {"q": "a a"}))


def printed(result: dict[str, Any]) -> str:
    console = Console(record=True, width=100, file=io.StringIO())
    print_comparison(result, console)
    return console.export_text()


def test_the_table_shows_figures_with_n_interval_and_p(tmp_path: Path) -> None:
    one, two = dict.fromkeys(outcomes(0, range(20)), "a a"), outcomes(2, range(22))
    text = printed(compare(write(tmp_path / "one", one), write(tmp_path / "two", two)))
    assert max(map(len, text.splitlines())) <= 100
    assert "sami against base · principles: verifiable · judge: judge" in text
    assert "A higher" in text
    assert "100.0%" in text
    assert "<0.001" in text
    assert "The reading needs both that p and the interval." in " ".join(text.split())
    assert "2 scores of queries in one run alone are left out" in " ".join(text.split())


@pytest.mark.parametrize(("wins", "word"), [(20, "A higher"), (7, "A higher*"), (2, "–")])
def test_a_run_is_higher_only_by_the_adjusted_test(tmp_path: Path, wins: int, word: str) -> None:
    """7 wins of 20 and no loss: an interval above zero, and p = 1/64; with three more rows Holm's is 1/16."""
    queries = [f"q{i}" for i in range(20)]
    for task in ("dialogue", "posts", "letters", "notes"):
        of = wins if task == "dialogue" else 0
        one = {query: "a a" if i < of else "tie tie" for i, query in enumerate(queries)}
        write(tmp_path / "one", one, task=task)
        write(tmp_path / "two", dict.fromkeys(queries, "tie tie"), task=task)
    lines = printed(compare(tmp_path / "one", tmp_path / "two")).splitlines()
    (line,) = (line for line in lines if line.startswith("dialogue"))
    assert line.rstrip().endswith(f" {word}")


def test_judgings_of_a_pair_are_averaged_before_its_query(tmp_path: Path) -> None:
    rng = random.Random(5)
    runs = []
    for name in ("one", "two"):
        scores: dict[str, list[float]] = {}
        for constitution, repeats in (("short+", 3), ("list+", 1)):
            judgings = [{f"q{i}": rng.choice(["a a", "b b", "a b"]) for i in range(12)} for _ in range(repeats)]
            for repeat, judged in enumerate(judgings):
                write(tmp_path / name, judged, constitution_id=constitution, repeat=repeat)
            for query in judgings[0]:
                scores.setdefault(query, []).append(sum(mean(judged[query]) for judged in judgings) / repeats)
        runs.append({query: sum(of_query) / 2 for query, of_query in scores.items()})
    (row,) = compare(tmp_path / "one", tmp_path / "two")["rows"]
    assert row["win_rate_a"] == pytest.approx(sum(runs[0].values()) / 12)
    assert row["win_rate_b"] == pytest.approx(sum(runs[1].values()) / 12)
