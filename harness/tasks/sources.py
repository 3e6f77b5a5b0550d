"""Reading queries from the places a task can name: JSON files, the hub, a local copy of the hub's folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.tasks.base import BUNDLED, HUB, LoadedParts, OutOfReach, Part, TaskSpec
from sami_train import hub
from sami_train.data import TEXT_FIELDS, Query, content_id, read_objects, row_id, row_part
from sami_train.errors import UserError, nearest
from sami_train.text import expanded

SAMPLES = Path(__file__).parent / "samples"


@dataclass
class Found:
    """The queries that one source has for one part."""

    queries: list[Query]
    source: str
    """Where they come from, in words."""
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class FileRow:
    """One row of a JSON file of queries."""

    query: Query
    part: str | None
    intent: str | None
    where: str


def read_parts(
    spec: TaskSpec,
    kind: str,
    *,
    read_file: Callable[[Path, Part, Part], Found],
    read_hub: Callable[[Path | None, Part, bool], Found],
    sample: Path,
) -> LoadedParts:
    """Both parts of a task, each from the source that the specification names for it.

    `read_file(path, part, default)` reads a JSON file, whose rows without a part belong to `default`.
    `read_hub(folder, part, must)` reads the hub (folder None) or a local copy of it; `must` says whether a missing part
    is an error.
    """

    def read(source: str, part: Part, default: Part) -> Found:
        must = part == default
        if source == BUNDLED:
            found = read_file(sample, part, default)
            found.source = f"the bundled samples ({sample.name})"
            return found
        if source == HUB:
            return read_hub(None, part, True)
        path = expanded(source)
        if path.is_dir():
            return read_hub(path, part, must)
        if not path.exists():
            hint = nearest(source, [BUNDLED, HUB]) if path.name == source and not path.suffix else "check the path"
            raise UserError(f"there is no data at '{source}' (source of task '{spec.task}'); {hint}")
        if path.suffix not in (".jsonl", ".json"):
            raise UserError(
                f"{path}: the task '{spec.task}' reads .jsonl and .json files and local copies of the hub's folder; "
                "convert this file, or name its folder"
            )
        return read_file(path, part, default)

    evaluation = read(spec.source, "evaluation", "evaluation")
    if spec.train_source is None:
        train = read(spec.source, "train", "evaluation")
    else:
        train = read(spec.train_source, "train", "train")
        if not train.queries:
            raise UserError(
                f"{train.source} ('train_source' of task '{spec.task}') has no training queries; name another"
            )
    same = train.source == evaluation.source or not train.queries
    return LoadedParts(
        kind=kind,
        train=train.queries,
        evaluation=evaluation.queries,
        source=evaluation.source if same else f"{evaluation.source}; training: {train.source}",
        dropped={
            **{f"evaluation: {reason}": n for reason, n in evaluation.dropped.items()},
            **{f"train: {reason}": n for reason, n in train.dropped.items()},
        },
    )


def read_rows(path: Path, kind: str, prefix: str) -> Iterator[FileRow]:
    """The rows of a .jsonl file, or of a .json file that holds one list. Raises UserError naming file and row."""
    wanted = next(name for name, its_kind in TEXT_FIELDS.items() if its_kind == kind)
    for where, row in read_objects(path):
        if wanted not in row:
            other = next((name for name in TEXT_FIELDS if name in row), None)
            if other:
                raise UserError(
                    f"{where}: this row has a '{other}' ({TEXT_FIELDS[other]}), but a {kind} task needs a '{wanted}'; "
                    f"give the file to a {TEXT_FIELDS[other]} task, or name another"
                )
            raise UserError(f"{where}: this row has no '{wanted}'; {nearest(wanted, row)}")
        text = row[wanted]
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: '{wanted}' must be a text that is not empty; fix or delete this row")
        text = text.strip()
        about = intent if isinstance(intent := row.get("intent"), str) else ""
        query = Query(row_id(row, where) or content_id(text, prefix), text, kind, about, where)
        yield FileRow(query, row_part(row, where), intent, where)


def read_hub_copy(repo: str, folder: Path | None, data_dir: str, revision: str | None) -> Mapping[str, Any]:
    """The splits of one folder of a hub data set: from the hub, or (without any network) from a local copy of it."""
    import datasets

    silence = hub.silence() if folder is None else None
    with hub.offline(folder is not None or silence is not None), _progress_bars(folder is None):
        try:
            splits: Mapping[str, Any] = datasets.load_dataset(
                repo if folder is None else str(folder.resolve()),
                data_dir=data_dir,
                revision=revision if folder is None else None,
            )
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = silence or _first_line(error)
            if folder is None:
                raise OutOfReach(
                    f"the data set '{repo}' cannot be had from the Hugging Face hub ({reason}); "
                    "use source: bundled, or the path of a local copy"
                ) from error
            raise UserError(
                f"{folder / data_dir}: this local copy of '{repo}' cannot be read ({reason}); fix it"
            ) from error
    return splits


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].strip(" .:")[:200] if lines else type(error).__name__


@contextmanager
def _progress_bars(wanted: bool) -> Iterator[None]:
    """A download deserves a progress bar; reading a local file does not."""
    import datasets

    if wanted or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
