"""Runs of one specification with several seeds, side by side, as Markdown.

    python benchmarks/seeds.py runs/a runs/b runs/c > leaderboards/quickstart/seeds.md

Every run is shown: the rows of the headline by the judges that are programs, relevance, steerability, and each run's responses to
read. The figures are those of the runs' results.json; nothing is pooled, since seeds share queries and models.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.report.markdown import escape

Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    folders = parser.parse_args().runs
    runs = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    names = [f"seed {number}" for number in range(len(runs))]
    print(f"# {escape(runs[0]['name'])}: {len(runs)} seeds\n")
    print(
        "A seed decides which principles a query gets and every draw of the training. Every run of this recipe is here.\n"
    )
    table("Win rate (interval over these queries; for principles like these; p Holm)", names, runs, win_rates)
    table("The same pairs under constitutions that neither was given", names, runs, swapped)
    table("Steerability", names, runs, steerability)
    table("Relevance (one half is chance)", names, runs, relevance)
    for name, run in zip(names, runs, strict=True):
        print(f"## Responses to read, {name}\n")
        for example in run["examples"]:
            print(f"**{escape(' '.join(example['constitution']))}** {escape(example['query'])}\n")
            print(
                *(f"- {escape(m)}: {escape(r['text'])}" for m, r in example["responses"].items()), sep="\n", end="\n\n"
            )


def table(title: str, names: list[str], runs: list[Run], cells: Any) -> None:
    found = [dict(cells(run)) for run in runs]
    print(f"## {title}\n\n| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for head in found[0]:
        print(f"| {escape(head)} | {' | '.join(one.get(head, '') for one in found)} |")
    print()


def headline(run: Run) -> Iterator[dict[str, Any]]:
    for row in run["comparisons"]:
        if row["family"] == "headline" and run["judges"][row["judge"]]["kind"] == "verifiable":
            yield row


def win_rates(run: Run) -> Iterator[tuple[str, str]]:
    for row in headline(run):
        like = row["principles_ci"]
        yield (
            place(row),
            (
                f"{rate(row['win_rate'], row['ci_low'], row['ci_high'])}; "
                f"{interval(like['low'], like['high'])}; {row['p_holm']:.3f}"
            ),
        )


def swapped(run: Run) -> Iterator[tuple[str, str]]:
    for row in headline(run):
        if control := row["swapped"]:
            yield place(row), rate(control["win_rate"], control["ci_low"], control["ci_high"])


def steerability(run: Run) -> Iterator[tuple[str, str]]:
    for row in run["steerability"]:
        if row["task"] == "all" and row["principle"] is None:
            yield f"{row['model']}, {row['split']}", rate(row["steerability"], row["ci_low"], row["ci_high"])


def relevance(run: Run) -> Iterator[tuple[str, str]]:
    for row in run["responses"]:
        if row["task"] == "all" and (found := row["relevance"]):
            head = f"{row['model']}, {row['split']} (scored by {found['scorer']})"
            yield head, rate(found["relevance"], found["ci_low"], found["ci_high"])


def place(row: dict[str, Any]) -> str:
    return f"{row['a']} against {row['b']}, {row['split']}"


def rate(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f}% {interval(low, high)}"


def interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
