"""Rows to change in the results of the tests."""

from __future__ import annotations

from typing import Any


def pooled(results: dict[str, Any], **fields: str) -> dict[str, Any]:
    """The one comparison by the programs over all tasks with these fields."""
    (row,) = (
        row
        for row in results["comparisons"]
        if row["task"] == "all" and row["judge"] == "verifiable" and all(row[key] == of for key, of in fields.items())
    )
    return row


def trust(results: dict[str, Any], judge: str = "smollm2") -> None:
    """Make a model a judge that the report believes."""
    results["judges"][judge] |= {"position_consistency": 0.9, "agreement": None}
    results["judges"][judge]["intervals"]["position_consistency"] = [0.8, 0.95]
