"""Fixtures for the task tests: caches in temporary folders, small data in the hub's own layouts, the shared data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from task_rows import Write, chosen


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be written to, or read from, the user's caches. The libraries read HF_HOME at import only."""
    home = tmp_path_factory.mktemp("hf")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows (or raw lines) as JSON lines, gzipped when the name says so, and give the path."""

    def _write(name: str, rows: Iterable[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
        return path

    return _write


@pytest.fixture
def shared_data() -> Path:
    """The real data beside the repository."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared data are absent ({folder})")
    return folder


@pytest.fixture
def hh_folder(write: Write, tmp_path: Path) -> Path:
    """A local copy in the layout of Anthropic/hh-rlhf: four helpful and two harmless evaluation queries."""
    for subset, n in (("helpful-base", 4), ("harmless-base", 2)):
        word = subset.split("-")[0]
        write(f"hh/{subset}/test.jsonl.gz", [chosen(f"{word} test {i}?") for i in range(n)])
        write(f"hh/{subset}/train.jsonl.gz", [chosen(f"{word} train {i}?") for i in range(n + 1)])
    return tmp_path / "hh"


@pytest.fixture
def tldr_folder(tmp_path: Path) -> Path:
    """A local copy in the layout of openai/summarize_from_feedback, revision refs/convert/parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def row(identity: str, post: str | None) -> dict[str, Any]:
        info = {"id": identity, "post": post, "title": "A title", "article": None if post else "News."}
        return {"info": info, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}

    text = pa.string()
    schema = pa.schema(
        {
            "info": pa.struct({"id": text, "post": text, "title": text, "article": text}),
            "summaries": pa.list_(pa.struct({"text": text})),
            "choice": pa.int32(),
        }
    )
    parts = {
        "train": [
            row("t1", "First post."),
            row("t1", "First post."),
            row("t2", "Second  post."),
            row("v1", "Seen post."),
        ],
        "validation": [row("v1", "Seen post."), row("n1", None), row("v2", "Other post."), row("v1", "Seen post.")],
    }
    for part, rows in parts.items():
        folder = tmp_path / "tldr" / "comparisons" / part
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "0000.parquet")
    return tmp_path / "tldr"
