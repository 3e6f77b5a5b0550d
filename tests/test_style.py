"""Counts of a response's style."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.style import style_counts

TEXT = """# Plan

Some **bold words** and __more__, and 2 * 3 * 4.

- one
- two
  * nested **three**
1. first
2) second

```python
# a comment, no heading
- no item **not bold**
```

### End
"""


def test_markdown_is_counted_outside_code() -> None:
    counts = style_counts(TEXT)
    assert counts == {"words": len(TEXT.split()), "list items": 5, "headings": 2, "bold": 3}


@pytest.mark.parametrize(
    "text", ["", "plain", "#hashtag", "-dash", "** spaced **", "3.14 is pi", "a # b", "****", "* * *x", "snake__case"]
)
def test_what_is_no_markup_is_none(text: str) -> None:
    counts = style_counts(text)
    assert counts["headings"] == counts["bold"] == 0
    assert counts["list items"] == (1 if text == "* * *x" else 0)


def test_code_that_does_not_end_goes_on_to_the_end() -> None:
    assert style_counts("- item\n~~~\n- code\n# code")["list items"] == 1


@given(st.text(alphabet="ab*_#-1. \n`~", max_size=80))
def test_any_text_has_counts(text: str) -> None:
    counts = style_counts(text)
    assert counts["words"] == len(text.split())
    assert all(value >= 0 for value in counts.values())
    assert counts["list items"] + counts["headings"] <= len(text.split("\n"))
