"""What a response's style is made of: what `harness.stats.style_adjusted` holds equal."""

from __future__ import annotations

import re

_FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+\S", re.MULTILINE)
_BOLD = re.compile(r"(\*\*|__)(?=\S)(?:(?!\1).)+?(?<=\S)\1")


def style_counts(text: str) -> dict[str, float]:
    """Words, and Markdown's list items, headings and bold spans; those of Chatbot Arena's style control.

    Source: Li, Angelopoulos and Chiang (2024), "Does style matter?". Fenced code has words and nothing else.
    """
    prose = _FENCED.sub("", text)
    return {
        "words": float(len(text.split())),
        "list items": float(len(_LIST_ITEM.findall(prose))),
        "headings": float(len(_HEADING.findall(prose))),
        "bold": float(len(_BOLD.findall(prose))),
    }
