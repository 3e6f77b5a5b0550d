"""Dialogue: the first human turns of Anthropic/hh-rlhf. Its train split gives the training queries, its test split the
evaluation queries.

With both subsets the queries alternate, helpful first, until one subset runs out and the rest of the other follows, so
that a limit takes as many of each; the same holds for the bundled samples. Files of one's own keep their order.

A row whose dialogue has no first human turn, or an empty one, is left out and counted: the hub's data are not the
user's to fix. A row without the field `chosen` is another data set, and an error.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain, zip_longest
from pathlib import Path

from harness.tasks.base import LoadedParts, Part, TaskSpec
from harness.tasks.sources import SAMPLES, Found, read_hub_copy, read_parts, read_rows
from sami_train.data import Query, message_text
from sami_train.errors import UserError, nearest

REPO = "Anthropic/hh-rlhf"
KIND = "dialogue"
INTENTS = {"helpful-base": "helpful", "harmless-base": "harmless"}
_SPLITS: dict[Part, str] = {"train": "train", "evaluation": "test"}
_FIRST_TURN = re.compile(r"\s*Human:(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)


def load(spec: TaskSpec) -> LoadedParts:
    """The queries that the specification names."""
    return read_parts(
        spec,
        KIND,
        read_file=lambda path, part, default: _read_file(path, part, default, spec),
        read_hub=lambda folder, part, must: _read_hub(folder, part, must, spec),
        sample=SAMPLES / "dialogue.jsonl",
    )


def first_human_turn(dialogue: object) -> str | None:
    """What the human says first in "\\n\\nHuman: ...\\n\\nAssistant: ...", with any line ends, or in a list of messages.

    None when there is nothing.
    """
    if isinstance(dialogue, list):
        turns = [turn for turn in dialogue if isinstance(turn, dict) and turn.get("role") != "system"]
        said = message_text(turns[0].get("content")) if turns and turns[0].get("role") in ("user", "human") else None
        return (said or "").strip() or None
    if not isinstance(dialogue, str):
        return None
    match = _FIRST_TURN.match(re.sub(r"\r\n?", "\n", dialogue))
    return (match.group(1).strip() or None) if match else None


def _subsets(spec: TaskSpec) -> list[str]:
    return list(INTENTS) if spec.subset in (None, "both") else [str(spec.subset)]


def _alternate(lists: list[list[Query]]) -> list[Query]:
    return [query for query in chain.from_iterable(zip_longest(*lists)) if query is not None]


def _read_file(path: Path, part: Part, default: Part, spec: TaskSpec) -> Found:
    intents = [INTENTS[subset] for subset in _subsets(spec)]
    by_intent: dict[str, list[Query]] = {intent: [] for intent in intents}
    in_order: list[Query] = []
    for row in read_rows(path, KIND, "dialogue"):
        if row.intent is None and spec.subset not in (None, "both"):
            raise UserError(
                f"{row.where}: this row has no 'intent', so subset: {spec.subset} cannot pick it; leave 'subset' out"
            )
        if row.intent is not None and row.intent not in INTENTS.values():
            raise UserError(
                f"{row.where}: 'intent' cannot be '{row.intent}'; {nearest(str(row.intent), INTENTS.values())}"
            )
        if (row.part or default) != part or (row.intent is not None and row.intent not in intents):
            continue
        in_order.append(row.query)
        if row.intent is not None:
            by_intent[row.intent].append(row.query)
    bundled = path.parent == SAMPLES
    return Found(_alternate(list(by_intent.values())) if bundled else in_order, str(path))


def _read_hub(folder: Path | None, part: Part, must: bool, spec: TaskSpec) -> Found:
    dropped: Counter[str] = Counter()
    lists: list[list[Query]] = []
    for subset in _subsets(spec):
        if folder is not None and not (folder / subset).is_dir():
            present = [name for name in INTENTS if (folder / name).is_dir()]
            fix = f"set subset: {present[0]}" if present else f"name a local copy of the hub's folder '{REPO}'"
            raise UserError(f"{folder}: there is no folder '{subset}' in it; {fix}")
        lists.append(_read_subset(folder, subset, part, must, spec.revision, dropped))
    name = f"{REPO} on the hub" if folder is None else str(folder)
    revision = f", revision {spec.revision}" if folder is None and spec.revision else ""
    return Found(_alternate(lists), f"{name} ({', '.join(_subsets(spec))}{revision})", dropped)


def _read_subset(
    folder: Path | None, subset: str, part: Part, must: bool, revision: str | None, dropped: Counter[str]
) -> list[Query]:
    splits = read_hub_copy(REPO, folder, subset, revision)
    split = _SPLITS[part]
    where = f"{folder / subset if folder else f'{REPO}/{subset}'} ({split} split)"
    if split not in splits:
        if must:
            raise UserError(f"{where}: there is no such split, only {', '.join(splits)}; add it or name another source")
        return []
    if "chosen" not in splits[split].column_names:
        raise UserError(f"{where}: the rows have no 'chosen'; {nearest('chosen', splits[split].column_names)}")
    queries = []
    for number, dialogue in enumerate(splits[split]["chosen"]):
        text = first_human_turn(dialogue)
        if text is None:
            dropped["no first human turn"] += 1
        else:
            queries.append(Query(f"{INTENTS[subset]}-{split}-{number}", text, KIND, INTENTS[subset]))
    return queries
