"""Summarization: Reddit posts of openai/summarize_from_feedback (comparisons). Its train split gives the training
posts, its validation split the evaluation posts.

The data set is a loading script, which `datasets` 4 and later refuse, so the hub's own parquet conversion is read. The
same post stands in many rows, once for each pair of summaries; it becomes one query. Rows about news articles (a part
of the validation split) have no post; they are left out and counted.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from harness.tasks.base import LoadedParts, Part, TaskSpec
from harness.tasks.sources import SAMPLES, Found, read_hub_copy, read_parts, read_rows
from sami_train.data import Query, content_id
from sami_train.errors import UserError

REPO = "openai/summarize_from_feedback"
REVISION = "refs/convert/parquet"
KIND = "summarization"
_FOLDER = "comparisons"
_SPLITS: dict[Part, str] = {"train": "train", "evaluation": "validation"}


def load(spec: TaskSpec) -> LoadedParts:
    """The posts that the specification names."""
    return read_parts(
        spec,
        KIND,
        read_file=_read_file,
        read_hub=lambda folder, part, must: _read_hub(folder, part, must, spec.revision or REVISION),
        sample=SAMPLES / "posts.jsonl",
    )


def _read_file(path: Path, part: Part, default: Part) -> Found:
    rows = read_rows(path, KIND, "tldr")
    return Found([row.query for row in rows if (row.part or default) == part], str(path))


def _read_hub(folder: Path | None, part: Part, must: bool, revision: str) -> Found:
    if folder is not None and not (folder / _FOLDER).is_dir():
        raise UserError(
            f"{folder}: there is no folder '{_FOLDER}' in it; name a local copy of the revision {REVISION} of '{REPO}'"
        )
    splits = read_hub_copy(REPO, folder, _FOLDER, revision)
    source = f"{REPO} on the hub ({_FOLDER}, revision {revision})" if folder is None else f"{folder} ({_FOLDER})"
    split = _SPLITS[part]
    if split not in splits:
        if must:
            raise UserError(
                f"{source}: there is no {split} split, only {', '.join(splits)}; add it or name another source"
            )
        return Found([], source)
    if "info" not in splits[split].column_names:
        raise UserError(f"{source}: the rows of the {split} split have no 'info'; name the folder of another copy")
    queries: list[Query] = []
    dropped: Counter[str] = Counter()
    for info in splits[split]["info"]:
        text = _post(info)
        if text:
            queries.append(Query(content_id(text, "tldr"), text, KIND))
        else:
            dropped["no post"] += 1
    return Found(queries, source, dropped)


def _post(info: object) -> str:
    post = info.get("post") if isinstance(info, dict) else None
    return post.strip() if isinstance(post, str) else ""
