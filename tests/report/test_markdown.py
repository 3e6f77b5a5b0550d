"""report.md: the same content, and nothing in it that Markdown or HTML would act on."""

from __future__ import annotations

from typing import Any

import pytest

from harness.report import render_markdown
from harness.report.content import sections
from harness.report.markdown import escape


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("&lt;", "&amp;lt;"),
        ("two\nlines\r\n# title", r"two lines \# title"),
        ("`code` *x* _y_ ~z~", r"\`code\` \*x\* \_y\_ \~z\~"),
        ("[link](http://x)", r"\[link](http://x)"),
        ("58.3% [52.1, 64.3]", "58.3% [52.1, 64.3]"),
        ("+7.3 [-1.0, +15.2] points", "+7.3 [-1.0, +15.2] points"),
        ("[1, 2](http://x)", r"\[1, 2](http://x)"),
        (r"a\|b", r"a\\\|b"),
    ],
)
def test_text_is_shown_as_it_is(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_untrusted_names_stay_in_their_cells(results: dict[str, Any]) -> None:
    results["name"] = "<script>alert(1)</script>"
    for row in results["comparisons"]:
        row["task"] = "a|b<img src=x>"
    text = render_markdown(results)
    assert "<script" not in text
    assert "<img" not in text
    rows = [line for line in text.splitlines() if line.startswith(r"| a\|b&lt;img src=x&gt; |")]
    assert rows
    widths = {line.replace(r"\|", "").count("|") for line in rows}
    assert widths <= {8, 9}


def test_tables_are_whole(results: dict[str, Any]) -> None:
    lines = render_markdown(results).splitlines()
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith(("| ---", "|---")):
            assert before.count("|") == line.count("|") == after.count("|")


def test_the_content_is_that_of_the_terminal(results: dict[str, Any]) -> None:
    text = render_markdown(results)
    for section in sections(results):
        assert f"## {section.title}" in text
        for said in (*section.sentences, *section.remarks):
            assert escape(said) in text
        for table in section.tables:
            for row in table.rows:
                assert "| " + " | ".join(map(escape, row)) + " |" in text


def test_a_win_rate_has_its_interval_and_n(results: dict[str, Any]) -> None:
    assert (
        "| all | learned | 71.1% [64.3, 77.1] | 64/64 | 38/20/6 | &lt;0.001 | &lt;0.001 | above ½ |"
        in render_markdown(results)
    )


def test_where_it_came_from_is_told(results: dict[str, Any]) -> None:
    results["created"] = "2025-01-01T00:00:00Z"
    assert "created: 2025-01-01T00:00:00Z; specification: 0123456789abcdef." in render_markdown(results)


def test_empty_results_make_a_title() -> None:
    assert render_markdown({"name": "empty"}).startswith("# empty\n")


def test_the_cost_of_api_models_is_shown_and_left_out_where_there_are_none(results: dict[str, Any]) -> None:
    assert "## Cost" not in render_markdown({**results, "cost": {"models": {}, "dollars": 0.0}})
    model = {"path": "openai/x", "requests": 1234, "input_tokens": 10, "cached_input_tokens": 0, "output_tokens": 5}
    known = {**model, "dollars": 1.5, "price": {"input": 1, "output": 2, "date": "2026-11-25"}}
    text = render_markdown({**results, "cost": {"models": {"gpt": known}, "dollars": 1.5}})
    assert "| gpt | openai/x | 1,234 | 10 | 0 | 5 | 1.50 |" in text
    assert "In all 1.50 dollars." in text
    unknown = {**model, "dollars": None, "price": None}
    text = render_markdown({**results, "cost": {"models": {"gpt": unknown}, "dollars": None}})
    assert "| gpt | openai/x | 1,234 | 10 | 0 | 5 | – |" in text
    assert "no price is known" in text
