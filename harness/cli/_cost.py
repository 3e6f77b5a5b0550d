"""What is left to ask of API models and what that will cost, as it is shown before anything is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_cost(cost: dict[str, Any], screen: Console, *, hint: str = "") -> None:
    """The tokens and dollars of API models, and the tokens of others that were counted; nothing where there is neither.

    `cost` is as of `harness.costs.planned`; `hint` says how to count what is estimated.
    """
    from harness.cli._screen import table

    shown = [row for row in cost["stages"] if row["is_api"] or row["counted"] == "exact"]
    if not shown:
        return
    screen.print("\nTokens that are left, between the shortest and the longest answers:\n")
    rows = [
        [
            row["stage"],
            f"{row['requests']:,}",
            ("~ " if row["counted"] == "estimate" else "") + _range(row["prompt_tokens"]),
            _range(row["output_tokens"]),
            _dollars(row["dollars"]) if row["is_api"] else "–",
        ]
        for row in shown
    ]
    columns = ("stage", "requests", "prompt tokens", "answer tokens", "dollars")
    screen.print(table(columns, rows, right=columns[1:]))
    said = []
    if cost["unpriced"]:
        said.append(f"No price is known for {', '.join(cost['unpriced'])}; give one with --prices FILE.")
    elif any(row["is_api"] for row in shown):
        said.append(f"In all {_dollars(cost['dollars'])} dollars.")
    if cost["spent"]:
        said.append(f"Spent so far: {cost['spent']:,.2f}.")
    if any(row["counted"] == "estimate" for row in shown):
        how = f"; {hint}" if hint else ""
        said.append(f"~ estimated at {cost['bytes_per_token']} bytes a token{how}.")
    screen.print("\n" + " ".join(said), markup=False, soft_wrap=True)


def _range(ends: dict[str, int]) -> str:
    low, high = f"{ends['low']:,}", f"{ends['high']:,}"
    return low if low == high else f"{low} to {high}"


def _dollars(ends: dict[str, float | None] | None) -> str:
    if ends is None or ends["low"] is None or ends["high"] is None:
        return "unknown"
    low, high = f"{ends['low']:,.2f}", f"{ends['high']:,.2f}"
    return low if low == high else f"{low} to {high}"
