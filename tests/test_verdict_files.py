"""Verdicts in files: every odd row, the figures against a computation of the tests' own, pairs, and the verb."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.rows import Verdict
from harness.stats import length_glm, length_stratified
from harness.store import RowFile
from harness.verdict_files import figures, paired, read_verdicts
from sami_train.errors import UserError

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a JSON value (or raw text) and give the path."""

    def _put(content: Any, name: str = "verdicts.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return _put


@pytest.fixture(scope="session")
def shared_paper() -> Path:
    """The authors' files beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "paper"
    if not folder.is_dir():
        pytest.skip(f"the shared paper data are absent ({folder})")
    return folder


def score(path: Path, **options: Any) -> dict[str, Any]:
    (table,) = read_verdicts(path)
    return figures(table, **options)


def drawn(n: int, seed: int, ties: float = 0.1) -> list[list[float]]:
    rng = random.Random(seed)
    outcome = [0.5 if rng.random() < ties else float(rng.random() < 0.6) for _ in range(n)]
    return [[win, rng.randint(5, 200), rng.randint(5, 200)] for win in outcome]


def by_hand(rows: list[Any]) -> dict[str, float]:
    """Rates without any of the harness's code."""
    wins, ties, losses = (sum(1 for row in rows if row[0] == value) for value in (1, 0.5, 0))
    longer = [row[0] for row in rows if row[2] > row[1]]
    other = [row[0] for row in rows if row[2] <= row[1]]
    return {
        "n": len(rows),
        "half": math.fsum(row[0] for row in rows) / len(rows),
        "drop": wins / (wins + losses),
        "loss": wins / (wins + ties + losses),
        "stratified": (math.fsum(longer) / len(longer) + math.fsum(other) / len(other)) / 2,
        "mean_test": math.fsum(row[2] for row in rows) / len(rows),
        "mean_baseline": math.fsum(row[1] for row in rows) / len(rows),
    }


def assert_as_by_hand(found: dict[str, Any], rows: list[Any]) -> None:
    wanted = by_hand(rows)
    assert found["n"] == found["n_expected"] == wanted["n"]
    assert found["win_rate"] == pytest.approx(wanted["half"], abs=1e-12)
    for rule in ("half", "drop", "loss"):
        assert found["tie_rules"][rule]["rate"] == pytest.approx(wanted[rule], abs=1e-12)
        assert found["tie_rules"][rule]["ci_low"] <= wanted[rule] <= found["tie_rules"][rule]["ci_high"]
    assert found["lengths"]["length_stratified"]["rate"] == pytest.approx(wanted["stratified"], abs=1e-12)
    for side in ("mean_test", "mean_baseline"):
        assert found["lengths"][side] == pytest.approx(wanted[side], abs=1e-9)


def test_every_rate_is_the_one_computed_by_hand(put: Put) -> None:
    rows = drawn(250, seed=1)
    assert_as_by_hand(score(put(rows), lengths=True), rows)


def test_every_shared_file_has_the_rates_computed_by_hand(shared_paper: Path) -> None:
    files = sorted(shared_paper.rglob("win_rates*/*.json"))
    assert len(files) >= 21
    for file in files:
        rows = json.loads(file.read_text())
        assert_as_by_hand(score(file, lengths=True), rows)


def test_the_headline_figures_come_out(shared_paper: Path) -> None:
    folder = shared_paper / "typo/experiments/hh-rlhf/results_fixed/win_rates"
    found = {
        (opponent, subset): score(folder / f"3-vs-{opponent}-epoch-0.38-{subset}.json", lengths=True)
        for opponent in ("base", "instruct")
        for subset in ("helpful", "harmless")
    }
    rates = {key: round(100 * made["lengths"]["length_stratified"]["rate"], 2) for key, made in found.items()}
    assert rates == {
        ("base", "helpful"): 66.92,
        ("base", "harmless"): 77.78,
        ("instruct", "helpful"): 54.98,
        ("instruct", "harmless"): 57.93,
    }


def test_counts_and_unscored(put: Put) -> None:
    found = score(put([[1, 3, 4], [0.5, 3, 4], [0, 3, 4], [None, 3, 4], None]))
    assert [found[key] for key in ("n", "n_expected", "wins", "ties", "losses", "unscored")] == [3, 5, 1, 1, 1, 2]
    assert found["win_rate"] == 0.5


@pytest.mark.parametrize("row", [None, [None], [None, 3, 4], "NaN", "[NaN, 3, 4]"])
def test_what_has_no_number_is_unscored(put: Put, row: Any) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    assert score(put(f"[[1, 2, 3], {text}]"))["unscored"] == 1


@pytest.mark.parametrize("row", [1, [1], [1, 7], [1, None, 7], [1, 7, None]])
def test_a_row_without_both_lengths_counts_and_has_no_length_difference(put: Put, row: Any) -> None:
    found = score(put([row, [0, 3, 5]]))
    assert (found["n"], found["lengths"]["n"]) == (2, 1)
    assert found["notes"] == ["the lengths of both answers are there for 1 of 2 scored queries"]


def test_without_any_length_the_length_control_is_refused_in_words(put: Put) -> None:
    found = score(put([1, 0, 0.5]), lengths=True)
    assert found["lengths"] is None
    assert "no lengths" in found["notes"][0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([[2, 1, 1]], "item 1: the win is 2"),
        ([[1, 1, 1], [-0.5, 1, 1]], "item 2: the win is -0.5"),
        ([["A", 1, 1]], "the win is a text"),
        ([[True, 1, 1]], "the win is true or false"),
        ([[1, -3, 4]], "the length is -3"),
        ([[1, "long", 4]], "the length is a text"),
        ([[1, 2, 3, 4]], "has 4 values"),
        ([[]], "has 0 values"),
        ([{"win": 1}], "the win is an object"),
        ({"win": 1}, "this is an object"),
        ("nonsense", "this is not JSON"),
        (f"[[1{'0' * 400}, 1, 1]]", "too large a number"),
    ],
)
def test_what_means_nothing_is_one_sentence_with_its_place(put: Put, content: Any, words: str) -> None:
    path = put(content)
    with pytest.raises(UserError, match=str(path)) as error:
        read_verdicts(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [None, None],
        [[1, 5, 6]],
        [[1, n, 2 * n % 7] for n in range(9)],
        [[1, n, 2 * n % 37] for n in range(40)],
        [[0.5, 10, 10]] * 40,
        [[0.0, 10.5, 3.25]] * 40,
        [[n % 2, 10, 10 + (10 if n % 2 else -5)] for n in range(40)],
        [[0.25, n, 3] for n in range(40)],
    ],
    ids=["empty", "all unscored", "one", "nine", "all won", "all tied", "all lost", "separated", "fractions"],
)
def test_the_figures_are_always_strict_json(put: Put, rows: list[Any]) -> None:
    found = score(put(rows), lengths=True)
    json.dumps(found, allow_nan=False)
    if found["n"]:
        assert 0 <= found["ci_low"] <= found["win_rate"] <= found["ci_high"] <= 1
    else:
        assert (found["win_rate"], found["lengths"]) == (None, None)
        assert found["notes"]


def test_integers_and_floats_are_the_same(put: Put) -> None:
    rows = drawn(60, seed=3)
    as_integers = [[int(w) if w in (0, 1) else w, b, t] for w, b, t in rows]
    as_floats = [[float(w), float(b), float(t)] for w, b, t in rows]
    one, two = score(put(as_integers, "a.json"), lengths=True), score(put(as_floats, "b.json"), lengths=True)
    assert {**one, "file": ""} == {**two, "file": ""}


def test_the_length_control_is_that_of_the_statistics(put: Put) -> None:
    rows = drawn(120, seed=4)
    found = score(put(rows), lengths=True, level=0.9)["lengths"]
    s, b, t = zip(*rows, strict=True)
    stratified, glm = length_stratified(s, t, b, 0.9), length_glm(s, t, b, 0.9)
    assert found["length_stratified"]["ci_low"] == stratified.low
    assert (found["length_glm"]["rate"], found["length_glm"]["ci_high"]) == (glm.estimate, glm.high)


# --- Pairs


def test_pairs_of_0_and_1_have_mcnemar_and_newcombe(put: Put) -> None:
    # Newcombe's own example: 36, 12, 2 and 0 pairs
    a = [1] * 36 + [1] * 12 + [0] * 2
    b = [1] * 36 + [0] * 12 + [1] * 2
    (row,) = paired(read_verdicts(put(a, "a.json")), read_verdicts(put(b, "b.json")))
    assert row["table"] == {"both": 36, "only_a": 12, "only_b": 2, "neither": 0}
    assert (round(row["newcombe_low"], 4), round(row["newcombe_high"], 4)) == (0.0569, 0.3404)
    assert row["mcnemar_p"] == pytest.approx(2 * sum(math.comb(14, k) for k in range(3)) / 2**14)
    assert row["difference"] == pytest.approx(0.2)
    assert row["p_holm"] == row["p_value"]


def test_with_ties_the_sign_flips_remain(put: Put) -> None:
    (row,) = paired(
        read_verdicts(put(drawn(80, 1, ties=0.3), "a.json")), read_verdicts(put(drawn(80, 2, ties=0.3), "b.json"))
    )
    assert row["mcnemar_p"] is None
    assert 0 < row["p_value"] <= 1
    assert "there are ties" in " ".join(row["notes"])


def test_several_files_are_one_family(put: Put) -> None:
    base = read_verdicts(put([0, 1] * 30, "base.json"))
    tests = [
        *read_verdicts(put([1, 1] * 25 + [0, 1] * 5, "a.json")),
        *read_verdicts(put([1, 1] * 3 + [0, 1] * 27, "b.json")),
    ]
    one, two = paired(tests, base)
    assert one["p_holm"] == pytest.approx(2 * one["p_value"])
    assert two["p_holm"] == pytest.approx(max(two["p_value"], one["p_holm"]))


def test_a_query_without_a_score_on_one_side_is_left_out_and_counted(put: Put) -> None:
    (row,) = paired(read_verdicts(put([1, None, 0, 1], "a.json")), read_verdicts(put([0, 1, 0, None], "b.json")))
    assert (row["n"], row["n_unpaired"]) == (2, 2)
    assert row["difference"] == 0.5


def test_another_opponent_is_noticed_by_its_lengths(put: Put) -> None:
    (row,) = paired(read_verdicts(put([[1, 5, 5]] * 4, "a.json")), read_verdicts(put([[0, 6, 5]] * 4, "b.json")))
    assert "the baseline's lengths differ on 4 of 4" in row["notes"][0]


def test_files_of_unlike_length_are_not_paired(put: Put) -> None:
    with pytest.raises(UserError, match=r"has 3 rows and .* has 2"):
        paired(read_verdicts(put([1, 0, 1], "a.json")), read_verdicts(put([1, 0], "b.json")))


# --- Verdict rows of a run


def rows_of_a_run(path: Path, outcomes: dict[str, tuple[str, str]]) -> Path:
    """Both orders of each query; outcomes by query."""
    rows = [
        Verdict(
            id=f"{query}-{order}", fingerprint="f", judge="gpt", kind="win_rate", a="sami", b="base", task="dialogue",
            query_id=query, constitution_id="c+", principle_set="dialogue", split="learned", order=order,  # type: ignore[arg-type]
            outcome=outcome, reason="refusal" if outcome == "unscored" else None, raw="", details={}, usage={},  # type: ignore[arg-type]
            latency_s=0,
        )
        for query, both in outcomes.items()
        for order, outcome in zip(("ab", "ba"), both, strict=True)
    ]  # fmt: skip
    with RowFile(path, Verdict) as file:
        file.append(rows)
    return path


def test_both_orders_of_a_run_are_one_query(tmp_path: Path) -> None:
    path = rows_of_a_run(tmp_path / "v.jsonl", {"q1": ("a", "a"), "q2": ("a", "b"), "q3": ("a", "unscored")})
    (table,) = read_verdicts(path, "harness")
    found = figures(table)
    assert [found[key] for key in ("n", "n_expected", "wins", "ties", "unscored", "win_rate")] == [2, 3, 1, 1, 1, 0.75]
    assert found["about"] == "sami against base, dialogue, dialogue (learned), by gpt"


def test_runs_are_paired_by_query_id(tmp_path: Path) -> None:
    one = rows_of_a_run(tmp_path / "a.jsonl", {"q1": ("a", "a"), "q2": ("a", "a")})
    two = rows_of_a_run(tmp_path / "b.jsonl", {"q2": ("b", "b"), "q9": ("a", "a")})
    (row,) = paired(read_verdicts(one, "harness"), read_verdicts(two, "harness"))
    assert (row["n"], row["n_unpaired"], row["difference"]) == (1, 2, 1.0)


# --- The verb


def test_the_verb_prints_strict_json_and_nothing_else(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(put(drawn(50, seed), f"{seed}.json")) for seed in (1, 2)]
    assert main(["score", "--verdicts", *files, "--lengths", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in printed["files"]] == files
    assert main(["score", "--verdicts", *files, "--against", files[1], "--paired", "--json"]) == 0
    assert [row["difference"] == 0 for row in json.loads(capsys.readouterr().out)["paired"]] == [False, True]


def test_the_tables_name_every_file_and_every_note(
    put: Put, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert (
        main(["score", "--verdicts", str(put(drawn(50, 1), "long.json")), str(put([1, None], "odd.json")), "--lengths"])
        == 0
    )
    said = capsys.readouterr().out
    assert "long.json" in said
    assert "1/2" in said
    assert "odd.json: it has no lengths" in said
    assert max(map(len, said.splitlines())) <= 100


def test_an_exact_p_is_never_shown_as_zero(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["score", "--verdicts", str(put([1] * 20)), "--against", str(put([0] * 20, "other.json")), "--paired"])
        == 0
    )
    assert capsys.readouterr().out.count("<0.0001") == 3  # 2^-19: sign flips, Holm and McNemar


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "name what to score"),
        (["runs/x", "--lengths"], "are for files"),
        (["runs/x", "--verdicts", "x.json"], "score a run or files"),
        (["--verdicts", "x.json", "--protocol", "paper"], "--protocol is for runs"),
        (["--verdicts", "x.json"], "there is no file x.json"),
        (["--verdicts", "x.json", "--paired"], "--against FILE"),
        (["--verdicts", "x.json", "--level", "95"], "is no confidence level"),
        (["--verdicts", "x.json", "--against", "y.json", "--lengths"], "leave it out"),
    ],
)
def test_bad_usage_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["score", *options]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
