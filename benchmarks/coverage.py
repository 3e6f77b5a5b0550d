"""How often do the harness's 95% intervals cover the truth?

    python benchmarks/coverage.py [--only length] [--simulations 4000]

Each line of a section is a cell: what was varied, how often the interval covered (or how often a test was wrong), and whether the
cell's bar is met. Rows marked "-" have no bar and show the limits. Win rates and paired differences are not simulated: every
outcome that n queries can give (wins and ties, or wins of a only and of b only) is weighted by its multinomial probability;
outcomes rarer than 1 in 10 million are left out. The rest is simulated with fixed seeds: a cell's standard error is 0.34 points
at 4,000 simulations, 0.49 where half of them are run. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from coverage_sections import (
    _cells,
    edges,
    information,
    judges,
    length,
    null_run,
    paired,
    principles,
    ranking,
    sequential,
    win_rates,
)

SECTIONS: list[tuple[str, Callable[[int], None]]] = [
    ("win_rate, exact", win_rates.exact),
    ("win_rate, one half excluded where it is the truth, exact", win_rates.one_half),
    ("win_rate, several rows a query", win_rates.clusters),
    ("paired_difference, exact", paired.exact),
    ("paired_difference, two orders", paired.orders),
    ("newcombe_interval", paired.newcombe),
    ("principles_interval, for new principles", principles.interval),
    ("principles_interval, constitutions of several", principles.constitutions),
    ("welch_gap, for new principles", principles.gap),
    ("welch_gap of differences, for new principles", principles.difference_of_differences),
    ("a null run", null_run.null_run),
    ("a null run, through the report", null_run.through_the_report),
    ("length_stratified", length.stratified),
    ("length_glm", length.glm),
    ("adjusted_win_rate", length.adjusted),
    ("bradley_terry", ranking.leaderboard),
    ("cohens_kappa and position_bias", judges.agreement),
    ("cohens_kappa, pairs of one query", judges.clustered),
    ("post_stratified, ppi_mean, rogan_gladen", judges.correction),
    ("corrections over tasks, end to end", judges.strata),
    ("worth_in_labels", judges.worth),
    ("judge_share", judges.share),
    ("infonce at its limit", information.limit),
    ("own_likeliest", information.likeliest),
    ("looks before the end, planned", sequential.looks),
    ("looks before the end, betting interval", sequential.betting),
    ("looks before the end, betting rule", sequential.anytime),
    ("looks before the end, width rule", sequential.half_width),
    ("all wins, all ties, one query, NaN", edges.edges),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sections whose title has this in it")
    parser.add_argument("--simulations", type=int, default=4000, help="for each simulated cell; slow ones take a part")
    options = parser.parse_args()
    for title, run in SECTIONS:
        if options.only in title:
            _cells.begin(title)
            run(options.simulations)
    print(f"\nMissed: {', '.join(_cells.missed)}" if _cells.missed else "\nEvery bar is met.")
    return 1 if _cells.missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
