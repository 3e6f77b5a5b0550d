"""Responses that run on with their prompt, in a run: a server that says so, and the same answers recorded."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness import run
from harness.rows import Generation, Verdict
from harness.spec import load_spec
from harness.store import RowFile
from sami_train.prompts import load_template

SAID = "It is late, and I am off."
LABEL = load_template("dialogue").labels("chat")[-1]
TAIL = f"{LABEL}\n1. Ask back.\n\nIs it not?"
SPEC = """
name: running-on
models:
  far: {path: openai/far, style: chat, base_url: URL}
  told: {path: recorded/told, style: chat}
tasks: {asked: {task: hh-rlhf, source: queries.jsonl}}
principles: {sets: [asking.yaml], splits: [learned], polarity: principle}
judges: {program: {kind: verifiable}}
comparisons: [{a: far, b: told}]
measures: {steerability: false, relevance: false}
output: run
"""
ASKING = """
name: asking
principles:
  - id: asks
    task: dialogue
    split: learned
    definition: End the text with a question to the reader.
    antithesis: End the text with a plain statement and ask nothing.
    check: ends_with_question
"""


class Server(BaseHTTPRequestHandler):
    """Says the same to every chat."""

    content = f"{SAID}\n{TAIL}"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": self.content}}
        usage = {"prompt_tokens": 9, "completion_tokens": 30, "total_tokens": 39}
        body = json.dumps(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "far", "choices": [choice], "usage": usage}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_response_is_cut_where_it_runs_on_and_a_recorded_one_is_as_it_came(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    queries = [f"What is number {n}?" for n in range(3)]
    files = {
        "queries.jsonl": [{"id": str(n), "query": query} for n, query in enumerate(queries)],
        "told/responses.jsonl": [{"query": query, "text": f"{SAID}\n{TAIL}"} for query in queries],
    }
    (tmp_path / "told").mkdir()
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "asking.yaml").write_text(ASKING, encoding="utf-8")
    (tmp_path / "spec.yaml").write_text(SPEC.replace("URL", url), encoding="utf-8")
    run(load_spec(tmp_path / "spec.yaml"), quiet=True)

    far, told = (RowFile(tmp_path / f"run/generations/{m}/asked.jsonl", Generation).read() for m in ("far", "told"))
    assert len(far) == len(told) == 3
    for row in far.values():
        assert (row.text, row.tail, row.finish_reason, row.n_tokens) == (SAID, TAIL, "stop", 30)
    for row in told.values():
        assert (row.text, row.tail) == (f"{SAID}\n{TAIL}", "")
    verdicts = RowFile(tmp_path / "run/verdicts/program/far-vs-told.jsonl", Verdict).read()
    assert [row.outcome for row in verdicts.values()] == ["b"] * 3, "the question is in the tail"


def test_a_blank_line_ends_an_answer_and_not_the_reasoning_before_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "content", f"It is of the night.\n\nIt is short.\nSummary: {SAID}\n\nAnother one.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "queries.jsonl").write_text('{"id": "0", "post": "It is late."}\n', encoding="utf-8")
    (tmp_path / "asking.yaml").write_text(ASKING.replace("task: dialogue", "task: summarization"), encoding="utf-8")
    spec = SPEC.replace("URL", url).replace("{task: hh-rlhf,", "{task: tldr, template: tldr-diverse,")
    spec = spec.replace(
        "told: {path: recorded/told, style: chat}", f"told: {{path: openai/told, style: chat, base_url: {url}}}"
    )
    (tmp_path / "spec.yaml").write_text(f"{spec}sampling: {{reasoning: true}}\n", encoding="utf-8")
    run(load_spec(tmp_path / "spec.yaml"), quiet=True)
    (row,) = RowFile(tmp_path / "run/generations/far/asked.jsonl", Generation).read().values()
    assert (row.text, row.tail, row.finish_reason) == (SAID, "", "stop"), "it was not cut off at the limit of tokens"
    assert row.reasoning == "It is of the night.\n\nIt is short."
