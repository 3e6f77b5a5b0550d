"""report.md: the same content, and nothing in it that Markdown or HTML would act on."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from changes import pooled

from harness.report import render_markdown
from harness.report.content import sections
from harness.report.findings import findings
from harness.report.headline import relevance_of_both
from harness.report.markdown import escape
from harness.report.words import points, rate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("&lt;", "&amp;lt;"),
        ("two\nlines\r\n# title", r"two lines \# title"),
        ("`code` *x* _y_ ~z~", r"\`code\` \*x\* \_y\_ \~z\~"),
        ("[link](http://x)", r"\[link](http\://x)"),
        ("58.3% [52.1, 64.3]", "58.3% [52.1, 64.3]"),
        ("+7.3 [-1.0, +15.2] points", "+7.3 [-1.0, +15.2] points"),
        ("[1, 2](http://x)", r"\[1, 2](http\://x)"),
        ("HTTPS://a.org/b_c ftp://a mailto:a", r"HTTPS\://a.org/b\_c ftp\://a mailto\:a"),
        ("see www.a.org or awww.b", r"see www\.a.org or awww.b"),
        ("org/model@v1.0 me@a-b.org a@b @c.d", "org/model@<!-- -->v1.0 me@<!-- -->a-b.org a@b @c.d"),
        ("a: 5, ratio 1:2", "a: 5, ratio 1:2"),
        (r"a\|b", r"a\\\|b"),
    ],
)
def test_text_is_shown_as_it_is(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_untrusted_names_stay_in_their_cells(results: dict[str, Any]) -> None:
    results["name"] = "<script>alert(1)</script>\x1b[31m\u202e"
    for row in results["comparisons"]:
        row["task"] = row["task"] if row["task"] == "all" else "a|b<img src=x>"
    text = render_markdown(results)
    assert "<script" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert [line for line in text.splitlines() if line.startswith(r"| a\|b&lt;img src=x&gt; |")]


def test_responses_are_shown_whole_line_by_line_and_as_text(
    results: dict[str, Any], examples: list[dict[str, Any]]
) -> None:
    long = "word " * 100
    examples[0]["responses"]["sami"]["text"] = f"# one\n\n<b>two</b> | `three`\x1b\n{long}"
    examples[0]["query"] = "first line\n- second"
    text = render_markdown(results | {"examples": examples})
    assert rf"| sami | \# one<br>&lt;b&gt;two&lt;/b&gt; \| \`three\`<br>{long.strip()} | copies 25%, ran on |" in text
    assert r"Query (dialogue): first line<br>\- second" in text
    assert text.index("| sami | \\# one") < text.index("| base | base says 1. |"), "the compared model comes first"


def test_tables_are_whole(results: dict[str, Any]) -> None:
    lines = render_markdown(results).splitlines()
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith(("| ---", "|---")):
            assert before.count("|") == line.count("|") == after.count("|")


def test_every_table_of_the_terminal_is_there(results: dict[str, Any]) -> None:
    """Sections of all judges, in the same words; rows of a table whose splits stand beside each other are checked below."""
    text = render_markdown(results)
    for section in sections(results):
        assert f"## {section.title}" in text or f"<summary>{section.title}</summary>" in text
        rows = [row for table in section.tables if not table.beside for row in table.rows]
        if section.title not in ("What this run shows", "Generalisation gap", "What the responses are"):
            for row in rows:
                assert "| " + " | ".join(map(escape, row)) + " |" in text
    for said in findings(results):
        assert f"- {escape(said)}" in text


def test_a_remark_is_made_once(results: dict[str, Any]) -> None:
    lines = render_markdown(results).splitlines()
    said = [line for line in lines if line and line[0] not in "|*<#-"]
    assert len(said) == len(set(said))
    assert "How often a response under a constitution follows it more" in "\n".join(said)
    assert not [one for one, two in itertools.pairwise(lines) if one == two == ""]


def test_gaps_and_responses_of_every_task_are_there(results: dict[str, Any]) -> None:
    text = render_markdown(results)
    for row in results["gaps"]:
        assert points(row["gap"], row["ci_low"], row["ci_high"]) in text
    for row in results["responses"]:
        assert rate(*(row["relevance"][key] for key in ("relevance", "ci_low", "ci_high")), digits=0) in text


def test_learned_and_held_out_stand_beside_each_other(results: dict[str, Any]) -> None:
    text = render_markdown(results)
    held_out = pooled(results, b="base", split="held_out")
    figure = rate(held_out["win_rate"], held_out["ci_low"], held_out["ci_high"])
    relevance = [f"{100 * held_out['relevance'][side]['relevance']:.0f}" for side in "ab"]
    head = "| task | n | learned: win rate | learned: p Holm | learned: reading | learned: relevance | held-out: win rate |"
    assert head in text
    (line,) = (line for line in text.splitlines() if line.startswith("| all | 64 | 71.1%"))
    assert line.startswith("| all | 64 | 71.1% [64.3, 77.1] | &lt;0.001 | beats |")
    assert line.endswith(f"| {figure} | {held_out['p_holm']:.3f} | – | {relevance[0]} / {relevance[1]}% |")


def test_splits_with_other_numbers_of_queries_have_both(results: dict[str, Any]) -> None:
    pooled(results, b="base", split="held_out")["n"] = 63
    assert "| all | 64/63 of 64 | 71.1%" in render_markdown(results)


def test_it_opens_with_the_headline_and_folds_details_and_judges_at_chance(results: dict[str, Any]) -> None:
    text = render_markdown(results)
    assert text.index("| sami vs base | 3 learned | 71.1% [64.3, 77.1] |") < text.index("## Win rates")
    opened = re.sub(r"<details>.*?</details>", "", text, flags=re.S)
    (line,) = (line for line in opened.splitlines() if "smollm2" in line)
    assert line.startswith("- **Red flag:** judge smollm2 at chance (orders agree ")
    assert line.endswith("): its figures are folded")
    assert text.count("<details>") == text.count("</details>") == text.count("<summary>")
    assert "<summary>Judge smollm2</summary>" in text
    assert text.count("not distinguishable") <= 6


def test_where_it_came_from_is_told(results: dict[str, Any]) -> None:
    results["created"] = "2025-01-01T00:00:00Z"
    assert "created: 2025-01-01T00:00:00Z; specification: 0123456789abcdef." in render_markdown(results)


def test_empty_results_make_a_title() -> None:
    assert render_markdown({"name": "empty"}).startswith("# empty\n")


def test_the_cost_of_api_models_is_shown_and_left_out_where_there_are_none(results: dict[str, Any]) -> None:
    assert "Cost" not in render_markdown({**results, "cost": {"models": {}, "dollars": 0.0}})
    model = {"path": "openai/x", "requests": 1234, "input_tokens": 10, "cached_input_tokens": 0, "output_tokens": 5}
    known = {**model, "dollars": 1.5, "price": {"input": 1, "output": 2, "date": "2026-11-25"}}
    text = render_markdown({**results, "cost": {"models": {"gpt": known}, "dollars": 1.5}})
    assert "| gpt | openai/x | 1,234 | 10 | 0 | 5 | 1.50 |" in text
    assert "In all 1.50 dollars." in text
    unknown = {**model, "dollars": None, "price": None}
    text = render_markdown({**results, "cost": {"models": {"gpt": unknown}, "dollars": None}})
    assert "| gpt | openai/x | 1,234 | 10 | 0 | 5 | – |" in text
    assert "no price is known" in text


def test_relevances_of_different_scorers_do_not_stand_side_by_side() -> None:
    one, other = ({"relevance": value, "scorer": name} for value, name in ((0.9, "x"), (0.8, "y")))
    assert relevance_of_both({"relevance": {"a": one, "b": {**other, "scorer": "x"}}}) == "90 / 80%"
    assert relevance_of_both({"relevance": {"a": one, "b": other}}) == "90% / –"
    assert relevance_of_both({}) == "–"
