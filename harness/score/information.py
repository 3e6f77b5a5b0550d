"""InfoNCE of the responses' likelihoods."""

from __future__ import annotations

from typing import Any

from harness.rows import Likelihood
from harness.score.inputs import ScoreInputs
from harness.score.pairs import ALL_TASKS, noted, place_of, places_of, split_place, task_place, with_all_tasks
from harness.stats import UnusableScores, infonce, infonce_responses, own_likeliest

_FIGURES = (
    "infonce",
    "ci_low",
    "ci_high",
    "infonce_responses",
    "log_c",
    "saturated",
    "own_likeliest",
    "own_likeliest_ci",
    "chance",
)
_Cell = tuple[str, str, str, str]
"""(model, task, principle_set, split)"""


def infonce_rows(inputs: ScoreInputs) -> list[dict[str, Any]]:
    """A row for every model, task, principle set and split, and for all tasks together where there are several."""
    groups: dict[_Cell, list[Likelihood]] = {}
    latest = {(r.model, r.task, r.principle_set, r.split, r.query_id): r for r in inputs.likelihoods}
    for (model, task, principle_set, split, _), row in sorted(latest.items(), key=lambda item: item[0]):
        groups.setdefault((model, task, principle_set, split), []).append(row)
    groups = with_all_tasks(groups, lambda key: (key[0], ALL_TASKS, *key[2:]))
    models = places_of(inputs.models)

    def order(key: _Cell) -> tuple[Any, ...]:
        return place_of(models, key[0]), key[2], task_place(key[1]), split_place(key[3])

    found = []
    for key in sorted(groups, key=order):
        head = dict(zip(("model", "task", "principle_set", "split"), key, strict=True))
        found.append({**head, "n": len(groups[key]), **_information(groups[key], inputs.level)})
    return found


def _information(rows: list[Likelihood], level: float) -> dict[str, Any]:
    tables = [row.logprob_sums for row in rows]
    try:
        over_constitutions, over_responses = infonce(tables, level), infonce_responses(tables, level)
        own = own_likeliest(tables, level)
    except UnusableScores as error:
        return noted({**dict.fromkeys(_FIGURES), "ci_level": level}, str(error))
    row = {
        "infonce": over_constitutions.estimate,
        "ci_low": over_constitutions.low,
        "ci_high": over_constitutions.high,
        "ci_level": level,
        "infonce_responses": over_responses.estimate,
        "log_c": over_constitutions.log_c,
        "saturated": over_constitutions.saturated,
        "own_likeliest": own.estimate,
        "own_likeliest_ci": [own.low, own.high],
        "chance": 1 / len(tables[0]),
    }
    return noted(row, over_constitutions.note)
