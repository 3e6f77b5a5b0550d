"""What the task tests share beside fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Write = Callable[[str, Iterable[Any]], Path]
"""Writes rows (or raw lines) under a name and gives the path; see the fixture `write`."""


def chosen(question: str) -> dict[str, str]:
    """A row of hh-rlhf."""
    dialogue = f"\n\nHuman: {question}\n\nAssistant: Well.\n\nHuman: And then?\n\nAssistant: Then nothing."
    return {"chosen": dialogue, "rejected": dialogue}
