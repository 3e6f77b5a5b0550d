"""What the terminal shows."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from changes import pooled, trust
from rich.console import Console

from harness.report import print_results
from harness.report.terminal import fitting, parts, wrapped
from harness.report.words import Table, p_value, points, rate


def shown(results: dict[str, Any], width: int = 100) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    print_results(results, console)
    return console.export_text()


def flat(results: dict[str, Any]) -> str:
    """The report as one line, so that wrapping does not matter."""
    return " ".join(shown(results).split())


@pytest.mark.parametrize("width", [80, 100])
def test_no_line_is_wider_than_the_console(results: dict[str, Any], width: int) -> None:
    assert max(len(line) for line in shown(results, width).splitlines()) <= width


def test_at_100_columns_a_row_is_a_line(results: dict[str, Any]) -> None:
    lines = shown(results).splitlines()
    row = next(row for row in results["comparisons"] if row["judge"] == "verifiable" and row["task"] == "summarization")
    figure = rate(row["win_rate"], row["ci_low"], row["ci_high"])
    (line,) = (line for line in lines if line.startswith("summarization") and f" {figure} " in line and "/" in line)
    assert line.split()[:2] == ["summarization", "learned"]
    assert f"{row['wins']}/{row['ties']}/{row['losses']}" in line


def test_the_sentences_tell_gains_and_their_absence(results: dict[str, Any]) -> None:
    text = flat(results)
    assert (
        "On these 3 learned principles, judged by verifiable, sami beats base: 71.1% [64.3, 77.1], n = 64, p Holm <0.001."
        in text
    )
    assert "On these 2 held-out principles, judged by verifiable, sami is not distinguishable from base: 56.6%" in text
    assert "The gap of sami against base, learned minus held-out, by verifiable, is above zero (+14.5 [" in text


def test_a_training_loss_fell_only_where_its_change_was_measured(results: dict[str, Any]) -> None:
    figures = "0.710 [0.650, 0.770] before"
    assert f"not trained on, the contrastive loss is {figures} and 0.580 [0.520, 0.640] after, in nats." in flat(
        results
    )
    evaluation = results["training"]["sami"]["evaluation"]
    evaluation["after"]["completions/relevance"] = 0.62
    assert "relevance of sampled responses – 62%" in flat(results)
    for change, interval, verb in (
        (-0.13, [-0.2, -0.06], "fell"),
        (0.13, [0.06, 0.2], "rose"),
        (-0.13, [-0.3, 0.04], "did not change distinguishably"),
    ):
        evaluation |= {"loss_change": change, "loss_change_ci": interval}
        said = f"the contrastive loss {verb}, by {change:.3f} [{interval[0]:.3f}, {interval[1]:.3f}] nats ({figures}"
        assert said in flat(results)


def test_a_loss_is_told_as_clearly_as_a_win(results: dict[str, Any]) -> None:
    for row in results["comparisons"]:
        row |= {"win_rate": 0.3, "ci_low": 0.2, "ci_high": 0.4, "p_holm": 0.01}
    text = flat(results)
    assert (
        "learned principles, judged by verifiable, sami loses to base: 30.0% [20.0, 40.0], n = 64, p Holm 0.010."
        in text
    )
    assert "0.010 loses to" in text


def test_an_interval_alone_is_no_win(results: dict[str, Any]) -> None:
    row = pooled(results, b="base", split="learned")
    row["p_holm"] = 0.051
    text = flat(results)
    assert "sami is ahead of base, not after adjustment for 4 rows: 71.1%" in text
    assert "0.051 ahead*" in text
    assert "* not after adjustment for 4/8 rows" in text


def test_new_principles_need_an_interval_over_principles(results: dict[str, Any]) -> None:
    row = pooled(results, b="base", split="held_out")
    row |= {"win_rate": 0.6, "ci_low": 0.55, "ci_high": 0.65, "p_holm": 0.01}
    row["principles_ci"] = {"low": 0.51, "high": 0.69, "n_principles": 10, "method": "t"}
    said = "On these 10 held-out principles, judged by verifiable, sami beats base: 60.0% [55.0, 65.0], n = 64, p Holm 0.010; "
    like = "for principles like them [51.0, 69.0] (10 principles), so it generalises to principles like them."
    assert said + like in flat(results)
    row["principles_ci"]["low"] = 0.5
    like = "for principles like them [50.0, 69.0] (10 principles), so nothing is shown of other principles."
    assert said + like in flat(results)
    row["principles_ci"] |= {"low": 0.51}
    row["p_holm"] = 0.2
    assert "generalises" not in flat(results)


def test_an_unreliable_judge_is_marked_wherever_its_figures_are(results: dict[str, Any]) -> None:
    results["judges"]["smollm2"] |= {"position_consistency": 0.55, "n_pairs": 40}
    results["judges"]["smollm2"]["intervals"]["position_consistency"] = [0.45, 0.65]
    text = flat(results)
    assert "Red flag: judge smollm2 at chance (orders agree 55% [45, 65])." in text
    assert "judged by smollm2" not in text
    assert "judge: smollm2 (same verdict in both orders: 55%)" in text
    assert "55.0% of 40" in text


def test_a_judge_of_its_own_kin_is_marked(results: dict[str, Any]) -> None:
    trust(results)
    text = flat(results)
    assert "judged by smollm2, sami is not distinguishable from base" in text
    assert "Red flag: judge smollm2 judges its own kin, instruct." in text
    assert "Same family: smollm2 judges instruct; it is the judge itself." in text


def test_a_judge_is_shown_beside_the_programs(results: dict[str, Any]) -> None:
    text = flat(results)
    found = results["judges"]["smollm2"]["agreement"]
    assert "Agreement with the programs of the judge verifiable, by pair" in text
    assert f"{100 * found['accuracy']:.0f}% [{100 * found['accuracy_ci'][0]:.0f}, " in text
    assert f"{found['kappa']:.2f} [" in text


def test_repeats_and_reasons_are_told_where_there_are_some(results: dict[str, Any]) -> None:
    results["judges"]["smollm2"] |= {
        "n_repeated": 12, "repeat_agreement": 0.75, "unscored_reasons": {"truncated": 3, "refusal": 1},
    }  # fmt: skip
    text = flat(results)
    assert "Asked again, smollm2 says the same 75.0% of the time (12 pairs and orders)." in text
    assert "Unscored by smollm2: truncated 3, refusal 1." in text


def test_corrected_win_rates_stand_beside_those_that_were_judged(results: dict[str, Any]) -> None:
    assert "Win rates corrected" not in flat(results)
    place = {"task": "dialogue", "principle_set": "verifiable", "split": "learned", "a": "sami", "b": "base"}
    row = {
        **place, "judge": "smollm2", "reference": "verifiable", "n": 150, "n_labelled": 100, "win_rate": 0.583,
        "win_rate_ci": [0.5, 0.66], "post_stratified": 0.667, "post_stratified_ci": [0.59, 0.74], "ppi": None, "ppi_ci": None,
        "worth": {"labels": 12.4, "labels_ci": [0.0, 40.2], "n_verdicts": 150, "n_labelled": 100},
        "note": "The Rogan-Gladen correction needs wins and losses alone.",
    }  # fmt: skip
    text = flat(results | {"corrections": [row]})
    assert "sami against base · principles: verifiable · judge: smollm2, corrected by verifiable" in text
    assert "58.3% [50.0, 66.0]" in text
    assert "66.7% [59.0, 74.0] – 150 100" in text
    assert "learned: of smollm2, 150 verdicts are worth 12 labels [0, 40] beside the 100 there are." in text
    assert "wins and losses alone" in text


def test_agreement_is_shown_by_kind_of_comparison_and_what_the_verdicts_are_worth(results: dict[str, Any]) -> None:
    figures = {
        "n": 40, "accuracy": 0.8, "accuracy_ci": [0.7, 0.9], "kappa": 0.6, "kappa_ci": [0.4, 0.8],
        "worth": {"labels": 12.4, "labels_ci": [0.0, 40.2], "n_verdicts": 1000, "n_labelled": 40},
    }  # fmt: skip
    by_kind = {"win_rate": figures, "steerability": figures | {"accuracy": 0.5, "accuracy_ci": [0.4, 0.6]}}
    results["judges"]["smollm2"]["agreement"] = {"reference": "verifiable", **figures, "by_kind": by_kind}
    text = flat(results)
    assert "smollm2 win rates 80% [70, 90] 0.60 [0.40, 0.80]" in text
    assert "smollm2 steerability 50% [40, 60]" in text
    assert "Of smollm2, 1,000 verdicts are worth 12 labels [0, 40] beside the 40 there are." in text


def test_judges_that_contradict_each_other_are_named(results: dict[str, Any]) -> None:
    for row in results["comparisons"]:
        if row["judge"] == "smollm2":
            row |= {"win_rate": 0.3, "ci_low": 0.2, "ci_high": 0.4, "p_holm": 0.01}
    said = "The judges contradict each other on these 3 learned principles: sami beats base by verifiable, and loses by smollm2"
    assert said not in flat(results), "a judge at chance contradicts nobody"
    trust(results)
    assert said in flat(results)


def test_a_task_that_reads_the_other_way_is_named(results: dict[str, Any]) -> None:
    for row in results["comparisons"]:
        if (row["judge"], row["task"], row["split"]) == ("verifiable", "summarization", "learned"):
            row |= {"win_rate": 0.3, "ci_low": 0.2, "ci_high": 0.4}
    said = "single tasks read the other way: summarization, learned: is behind base (30.0% [20.0, 40.0], n = 16)"
    assert said in flat(results)


def test_an_incomplete_run_says_so_first(results: dict[str, Any]) -> None:
    results["quality"] = {"unscored_rate": 0.1, "max_unscored": 0.02, "passed": False}
    text = flat(results)
    assert "What this run shows · Red flag: incomplete: 10.0% of verdicts unscored (limit 2.0%)." in text
    assert "(limit 2.0%): FAILED" in text


def test_every_part_is_there(results: dict[str, Any]) -> None:
    text = flat(results)
    for part in (
        "Win rates", "Generalisation gap", "Steerability", "Steerability by principle", "Win rate by principle",
        "Mutual information", "Training", "Mean lengths", "Judges", "How to read this",
    ):  # fmt: skip
        assert part in text
    for word in (
        "Unit: the query",
        "Ties count as half a win",
        "Wilson, effective n",
        "same 6, empty 2",
        "ends-with-question",
    ):
        assert word in text


def test_p_values_are_raw_and_adjusted(results: dict[str, Any]) -> None:
    row = next(row for row in results["comparisons"] if row["judge"] == "verifiable" and row["task"] == "summarization")
    row |= {"p_value": 0.0123, "p_holm": 0.0456}
    (line,) = (line for line in shown(results, 140).splitlines() if " 0.046 " in line)
    assert line.split()[:2] == ["summarization", "learned"]
    assert line.split()[-1] == "0.012"


def test_the_leaderboard_has_the_base_model_at_one_half(results: dict[str, Any]) -> None:
    text = flat(results)
    board = next(b for b in results["leaderboards"] if (b["judge"], b["split"]) == ("verifiable", "learned"))
    first = board["models"][0]
    assert first["model"] == "sami"
    assert f"sami {rate(*(first[k] for k in ('win_rate', 'win_rate_low', 'win_rate_high')))} 1 64" in text
    assert "base ½ (base)" in text
    assert "row against column" not in text, "three models need no matrix"


def test_four_models_have_a_matrix(results: dict[str, Any]) -> None:
    for board in results["leaderboards"]:
        model = {**board["models"][0], "model": "fourth"}
        board["models"].append(model)
    assert "row against column, learned · judge: verifiable" in flat(results)


def test_leaderboards_and_stability_are_left_out_where_there_are_none(results: dict[str, Any]) -> None:
    assert "Rank stability" in shown(results)
    for key in ("leaderboards", "rank_stability"):
        results[key] = []
    text = shown(results)
    assert "Leaderboard" not in text
    assert "Rank stability" not in text


def test_a_control_is_shown(results: dict[str, Any]) -> None:
    assert "Swapped constitutions" not in shown(results)
    control = {"n": 64, "n_paired": 64, "win_rate": 0.6, "ci_low": 0.55, "ci_high": 0.65}
    control |= {"difference": 0.1, "difference_low": 0.02, "difference_high": 0.2}
    for row in results["comparisons"]:
        row["swapped"] = control
    assert "sami against base verifiable learned 60.0% [55.0, 65.0] +10.0 [+2.0, +20.0] 64" in flat(results)


def test_the_noise_of_a_judge_is_shown_where_it_was_measured(results: dict[str, Any]) -> None:
    assert "Judged more than once" not in shown(results)
    for row in results["comparisons"]:
        row["judge_noise"] = {
            "n_pairs": 40, "agreement": 0.8, "sd": 0.25, "share": 0.3, "share_low": 0.2, "share_high": 0.45, "share_once": 0.5,
        }  # fmt: skip
    assert "smollm2 sami against base learned 80.0% 25.0 30% [20, 45] 50% 40" in flat(results)


def test_win_rates_without_length_have_a_heading_each(results: dict[str, Any]) -> None:
    for row in results["comparisons"]:
        row["length_stratified"] = {"win_rate": 0.6, "ci_low": 0.5, "ci_high": 0.7, "n": 64}
        row["length_glm"] = {"win_rate": None, "ci_low": None, "ci_high": None, "n": None, "note": "Out of reach."}
        row["length_spearman"] = 0.25
    text = flat(results)
    assert "60.0% [50.0, 70.0] 64 0.25" in text
    assert "Mean of the win rates where the response is longer and where it is not" in text
    assert "Win rates at equal lengths" not in text
    for row in results["comparisons"]:
        row["length_glm"] = {"win_rate": 0.55, "ci_low": 0.45, "ci_high": 0.65, "n": 64}
    text = flat(results)
    assert text.index("Win rates at equal lengths") < text.index("55.0% [45.0, 65.0] 64 0.25")


def test_information_of_few_queries_has_no_reading_and_says_why(results: dict[str, Any]) -> None:
    """16 queries of each task, 32 of both."""
    text = flat(results)
    assert "base dialogue learned 0.286 0.288 0.693 0% 16 –" in text
    assert "base, dialogue, learned: No interval: it needs 30 queries, and there are 16." in text
    assert "0% 32 above 0" in text
    assert "base dialogue learned 100.0% [77.9, 100.0] 50% 16 above chance" in text


def test_an_older_result_is_still_shown(results: dict[str, Any]) -> None:
    """Results without what was added since."""
    for key in ("protocol", "leaderboards", "rank_stability"):
        del results[key]
    for row in results["comparisons"]:
        for key in (
            "p_value",
            "p_holm",
            "length_spearman",
            "length_stratified",
            "length_glm",
            "swapped",
            "judge_noise",
        ):
            del row[key]
    for row in results["gaps"]:
        del row["p_holm"]
    text = flat(results)
    assert "all learned 64 71.1% [64.3, 77.1] ahead*" in text
    assert "Ties count as half a win" in text


def test_principles_that_are_learned_come_first(results: dict[str, Any]) -> None:
    text = shown(results)
    table = text[text.index("Win rate by principle") :]
    assert table.index("short ") < table.index("mentions-a-number")


def test_figures_that_are_missing_are_shown_as_such(results: dict[str, Any]) -> None:
    null = {
        "n": 0,
        "win_rate": None,
        "ci_low": None,
        "ci_high": None,
        "by_principle": [],
        "principles_ci": None,
        "note": "No query has a score.",
    }
    for row in results["comparisons"]:
        row |= null
    for row in results["gaps"]:
        row |= {"gap": None, "ci_low": None, "ci_high": None, "n": 0, "p_value": None, "note": "No query has both."}
    for row in results["infonce"]:
        row |= {"infonce": None, "ci_low": None, "ci_high": None, "log_c": None, "note": "It needs 2 queries."}
    text = flat(results)
    assert (
        "On learned principles, judged by verifiable, sami has no score against base (0 of 64 queries scored)." in text
    )
    assert "The gap of sami against base, learned minus held-out, by verifiable, cannot be computed." in text
    assert "It needs 2 queries." in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"name": "x", "comparisons": [], "gaps": [], "steerability": [], "infonce": [], "judges": {}, "training": {}},
        {"name": "x", "training": {"sami": {}}},
        {"name": "x", "training": {"sami": {"iterations": [{}], "evaluation": None}}},
        {
            "name": "x",
            "training": {"sami": {"recipe": "r", "evaluation": {"n": 1, "before": {}, "after": {"loss": 1}}}},
        },
    ],
)
def test_missing_keys_are_tolerated(results: dict[str, Any]) -> None:
    assert shown(results).strip()


def test_a_split_with_one_task_is_not_lost_beside_one_with_two(results: dict[str, Any]) -> None:
    results["comparisons"] = [
        row for row in results["comparisons"] if row["split"] == "learned" or row["task"] == "dialogue"
    ]
    results["gaps"] = []
    said = "On these 2 held-out principles (dialogue), judged by verifiable, sami is not distinguishable from base"
    assert said in flat(results)


def test_markup_and_control_characters_in_names_are_only_text(results: dict[str, Any]) -> None:
    results["name"] = "[red]run[/red]\x1b[31m"
    text = shown(results)
    assert "[red]run[/red]" in text
    assert "\x1b" not in text


def test_long_names_fold(results: dict[str, Any]) -> None:
    for row in results["comparisons"] + results["steerability"]:
        row["task"] = "a-very-long-task-name-" * 5
    assert max(len(line) for line in shown(results).splitlines()) <= 100


def test_figures() -> None:
    assert rate(0.583, 0.521, 0.643) == "58.3% [52.1, 64.3]"
    assert rate(None, None, None) == "–"
    assert points(-0.05, -0.1, 0.0123) == "-5.0 [-10.0, +1.2]"
    assert (p_value(0.0001), p_value(0.5), p_value(None)) == ("<0.001", "0.500", "–")


def test_no_word_and_no_interval_is_split_in_a_table(results: dict[str, Any]) -> None:
    lines = [line.strip() for line in shown(results, 80).splitlines()]
    assert not [line for line in lines if line.count("[") != line.count("]")]
    there = {word for line in lines for word in line.split()}
    assert not there & {
        "distinguishab",
        "summarizatio",
        "summarizati",
        "instruc",
        "ends-with-questio",
        "mentions-a-numbe",
    }
    assert {"summarization", "instruct", "ends-with-question", "mentions-a-number"} <= there


def test_a_table_that_is_too_wide_goes_on_in_another_one() -> None:
    row = ("dialogue", "58.3% [52.1, 64.3]", "52.1% [47.6, 56.5]", "beats")
    table = Table(("task", "a", "b", "reading"), [row], "h", frozenset("ab"))
    assert fitting(table, 80) == [table]
    parts = fitting(table, 37)
    assert [part.columns for part in parts] == [("task", "a"), ("task", "b", "reading")]
    assert [part.rows for part in parts] == [[row[:2]], [(row[0], *row[2:])]]


def test_a_cell_breaks_between_words_and_not_in_an_interval() -> None:
    assert wrapped("sami against 58.3% [52.1, 64.3] n", 18) == ["sami against 58.3%", "[52.1, 64.3] n"]
    assert parts("a [1, 2] b] c [d  e") == ["a", "[1, 2] b]", "c", "[d", "", "e"]
    assert parts("") == [""]
    assert wrapped("incomprehensible", 4) == ["incomprehensible"]


def test_a_megabyte_of_blanks_in_a_cell_takes_no_time() -> None:
    began = time.process_time()
    lines = wrapped(" " * 200_000 + "[" * 1000 + " x" * 10_000, 80)
    assert time.process_time() - began < 10
    assert max(map(len, lines[:-2])) <= 1080
