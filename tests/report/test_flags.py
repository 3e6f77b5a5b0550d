"""Each red flag, from results made for it, and its absence from those without a fault."""

from __future__ import annotations

from typing import Any

import pytest
from changes import pooled, trust

from harness.report.flags import MANY, flags, looks


def responses(results: dict[str, Any], model: str, split: str, **figures: Any) -> None:
    (row,) = (r for r in results["responses"] if (r["model"], r["task"], r["split"]) == (model, "all", split))
    row |= figures


@pytest.fixture
def clean(results: dict[str, Any]) -> dict[str, Any]:
    """Without the judge at chance and the training that the results have."""
    trust(results)
    results["judges"]["smollm2"]["same_family"] = {}
    assert flags(results) == []
    return results


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        ("copied", "copy their principle"),
        ("ran_on", "run on"),
        ("cut", "cut at the limit"),
        ("empty", "empty"),
        ("repeats_query", "repeat the query"),
        ("same_text", "the text of another query's response"),
    ],
)
def test_what_is_wrong_with_responses_is_said_with_the_model_from_a_threshold_on(
    clean: dict[str, Any], measure: str, said: str
) -> None:
    responses(clean, "sami", "learned", **{measure: MANY - 0.001})
    assert flags(clean) == []
    responses(clean, "sami", "learned", **{measure: MANY})
    assert flags(clean) == [f"sami: 0-20% {said}"]
    responses(clean, "sami", "held_out", **{measure: MANY})
    assert flags(clean) == [f"sami: 20% {said}"]


def test_a_model_has_one_clause_for_all_of_it(clean: dict[str, Any]) -> None:
    for split, copied in (("learned", 0.2), ("held_out", 0.64)):
        responses(clean, "sami", split, copied=copied, ran_on=0.99, cut=0.69)
    assert flags(clean) == ["sami: 20-64% copy their principle, 99% run on, 69% cut at the limit"]


def test_identical_responses(clean: dict[str, Any]) -> None:
    pooled(clean, b="base", split="learned")["responses"]["identical"] = 0.6
    assert flags(clean) == ["sami and base wrote the same in 60%"]


def test_relevance_at_chance_and_lower_than_the_opponents(clean: dict[str, Any]) -> None:
    chance = {"relevance": 0.54, "ci_low": 0.43, "ci_high": 0.65, "n": 60, "scorer": "x"}
    responses(clean, "sami", "held_out", relevance=chance)
    assert flags(clean) == ["relevance to the query not above chance: sami 54% [43, 65]"]
    responses(clean, "sami", "held_out", relevance=chance | {"ci_low": 0.501})
    relevance = pooled(clean, b="base", split="held_out")["relevance"]
    relevance |= {"difference": -0.13, "difference_low": -0.25, "difference_high": -0.01}
    assert flags(clean) == ["sami answers the query less than base: relevance -13.0 [-25.0, -1.0] points"]
    relevance["difference_high"] = 0.0
    assert flags(clean) == []


@pytest.mark.parametrize(("counted", "flagged"), [((0.43, 0.54), True), ((0.501, 0.6), False)])
def test_a_win_that_needs_copied_text(clean: dict[str, Any], counted: tuple[float, float], flagged: bool) -> None:
    row = pooled(clean, b="base", split="held_out")
    row |= {"win_rate": 0.486, "ci_low": counted[0], "ci_high": counted[1]}
    row["whole"] = {"n": 64, "win_rate": 0.569, "ci_low": 0.504, "ci_high": 0.635}
    said = f"sami vs base, held-out: above one half only with copied text (57% [50, 64], without 49% [{100 * counted[0]:.0f}, "
    assert any(flag.startswith(said) for flag in flags(clean)) is flagged


def test_a_control_that_wins_as_well(clean: dict[str, Any]) -> None:
    row = pooled(clean, b="base", split="learned")
    row["swapped"] = {"n": 64, "n_paired": 64, "win_rate": 0.6, "ci_low": 0.55, "ci_high": 0.65}
    assert flags(clean) == ["sami vs base, learned: also 60% [55, 65] under constitutions neither was given"]
    row["swapped"]["ci_low"] = 0.45
    assert flags(clean) == []


def test_warnings_of_training_are_one_clause_a_model(clean: dict[str, Any]) -> None:
    kl = "The model leaves its base: the KL on response tokens is {} nats per token (limit 0.5). Training on is unwise."
    warnings = [
        f"step 5: {kl.format('1.02')}",
        f"step 6: {kl.format('1.20')}",
        "step 6: Responses become unlikely: -2.",
    ]
    clean["training"]["sami"]["iterations"][0]["warnings"] = warnings
    (flag,) = flags(clean)
    assert flag == (
        "training of sami: The model leaves its base: the KL on response tokens is 1.20 nats per token (limit 0.5) (and 1 more)"
    )


def test_judges(clean: dict[str, Any]) -> None:
    card = clean["judges"]["smollm2"]
    card["same_family"] = {"instruct": "it is the judge itself"}
    assert flags(clean) == ["judge smollm2 judges its own kin, instruct"]
    card["intervals"]["position_consistency"] = [0.5, 0.9]
    assert flags(clean, ": hidden, --all shows it") == [
        "judge smollm2 at chance (orders agree 90% [50, 90]): hidden, --all shows it"
    ]
    card["intervals"]["position_consistency"] = [0.51, 0.9]
    card["agreement"] = {"reference": "verifiable", "kappa": 0.1, "kappa_ci": [0.0, 0.2]}
    assert flags(clean) == ["judge smollm2 at chance (kappa with verifiable 0.10 [0.00, 0.20])"]
    card["agreement"]["kappa_ci"][0] = 0.01
    assert flags(clean) == ["judge smollm2 judges its own kin, instruct"]
    card |= {"position_consistency": None, "same_family": {}}
    card["intervals"]["position_consistency"] = None
    assert flags(clean) == ["judge smollm2 not tested (no pair judged in both orders)"]


def test_what_concerns_the_whole_run_comes_first(clean: dict[str, Any]) -> None:
    clean["interim"] = {"n": 8, "of": 36}
    clean["looked"] = [{"n": 8, "created": "2025-01-01T00:00:00Z"}]
    clean["quality"] = {"unscored_rate": 0.1, "max_unscored": 0.02, "passed": False}
    clean["not_counted"] = [{"n": 3, "note": "3 verdicts."}]
    pooled(clean, b="base", split="learned")["n"] = 29
    responses(clean, "sami", "learned", cut=0.5)
    assert [flag[:26] for flag in (*looks(clean), *flags(clean))] == [
        "unfinished: 8 of 36 querie",
        "queries were added after r",
        "incomplete: 10.0% of verdi",
        "3 verdicts in the folder a",
        "few queries: n = 29",
        "sami: 0-50% cut at the lim",
    ]
