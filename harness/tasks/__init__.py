"""Tasks: where queries come from. Every loader's queries go through the same cleaning here.

Another package adds a task with an entry point in the group `harness.tasks`: a name, and a function that takes a
`TaskSpec` and returns a `TaskParts`. The names of the tasks that come with the harness cannot be taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module, metadata

from harness.tasks.base import LoadedParts, Part, Subset, TaskData, TaskParts, TaskSpec, hash_queries
from sami_train.data import Query, without_duplicates
from sami_train.errors import UserError, nearest

__all__ = [
    "LoadedParts",
    "Part",
    "Query",
    "Subset",
    "TaskData",
    "TaskParts",
    "TaskSpec",
    "hash_queries",
    "list_tasks",
    "load_task",
]

ENTRY_POINTS = "harness.tasks"
_OWN = {"hh-rlhf": "harness.tasks.hh_rlhf", "tldr": "harness.tasks.tldr"}


def load_task(name: str, spec: TaskSpec) -> TaskData:
    """Load a task's queries. `name` is what the run calls the task.

    Duplicate texts (white space folded) are dropped, the first stays. A training query whose text or id occurs among
    all the evaluation queries, used or not, is dropped. Then the limits take the first queries of each part.
    """
    parts = _loader(spec.task)(spec)
    dropped = Counter(dict(parts.dropped))
    evaluation = _distinct(parts.evaluation, "evaluation", parts.source, dropped)
    train = _without_overlap(_distinct(parts.train, "train", parts.source, dropped), evaluation, dropped)
    if not evaluation:
        why = _left_out("evaluation", dropped)
        raise UserError(f"task '{name}': {parts.source} has no evaluation queries{why}; name another 'source'")
    used_evaluation = _first(evaluation, spec.limit, "evaluation", name, parts.source, dropped)
    used_train = _first(train, spec.train_limit, "train", name, parts.source, dropped)
    return TaskData(
        name=name,
        kind=parts.kind,
        train=used_train,
        evaluation=used_evaluation,
        source=parts.source,
        hash=hash_queries(used_train, used_evaluation),
        dropped={reason: n for reason, n in sorted(dropped.items()) if n},
    )


def list_tasks() -> list[str]:
    """The names of all tasks that can be loaded, those of other packages included."""
    return sorted({*_OWN, *_foreign()})


def _foreign() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}


def _loader(task: str) -> Callable[[TaskSpec], TaskParts]:
    if task in _OWN:
        own: Callable[[TaskSpec], TaskParts] = import_module(_OWN[task]).load
        return own
    point = _foreign().get(task)
    if point is None:
        raise UserError(f"there is no task '{task}'; {nearest(task, list_tasks())}")
    try:
        loader: Callable[[TaskSpec], TaskParts] = point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"task '{task}': '{point.value}' does not load ({error}); fix or uninstall the package that provides it"
        ) from error
    return loader


def _distinct(queries: Sequence[Query], part: Part, source: str, dropped: Counter[str]) -> list[Query]:
    kept = without_duplicates(queries, source)
    dropped[f"{part}: duplicate text"] += len(queries) - len(kept)
    return kept


def _without_overlap(train: list[Query], evaluation: list[Query], dropped: Counter[str]) -> list[Query]:
    texts = {_folded(query) for query in evaluation}
    ids = {query.id for query in evaluation}
    kept = []
    for query in train:
        if _folded(query) in texts:
            dropped["train: text is evaluated"] += 1
        elif query.id in ids:
            dropped["train: id is evaluated"] += 1
        else:
            kept.append(query)
    return kept


def _folded(query: Query) -> str:
    return " ".join(query.text.split())


def _first(
    queries: list[Query], limit: int | None, part: Part, name: str, source: str, dropped: Counter[str]
) -> tuple[Query, ...]:
    if limit is not None and limit > len(queries):
        option, kind = ("train_limit", "training") if part == "train" else ("limit", "evaluation")
        fix = f"lower '{option}' or leave it out" if queries else "name a 'train_source' that has some"
        raise UserError(
            f"task '{name}': '{option}' asks for {limit} {kind} queries, but {source} has {len(queries)}"
            f"{_left_out(part, dropped)}; {fix}"
        )
    return tuple(queries[:limit])


def _left_out(part: Part, dropped: Counter[str]) -> str:
    mark = f"{part}: "
    reasons = [f"{n} {key.removeprefix(mark)}" for key, n in sorted(dropped.items()) if n and key.startswith(mark)]
    return f" (left out: {', '.join(reasons)})" if reasons else ""
