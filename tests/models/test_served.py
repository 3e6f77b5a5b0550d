"""A model behind an address is what the server there says it is, and its rows are one run's own."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness import run
from harness.cli import main
from harness.models.served import served
from harness.plan import api_fingerprint
from harness.rescore import rescore
from harness.rows import Generation
from harness.spec import ModelSpec, load_spec
from harness.store import RowFile


class Server:
    """Speaks OpenAI's interface: `entry` is what it lists of its one model, `text` what that says."""

    def __init__(self) -> None:
        self.entry: dict[str, Any] | None = {"id": "served", "root": "/checkpoints/1"}
        self.text = "I am the first."
        self.redirect = ""
        self.asked = 0
        this = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if this.redirect:
                    return self.reply(307, {}, Location=this.redirect)
                if this.entry is None:
                    return self.reply(404, {"error": "there is no such page"})
                now = time.time() if this.entry.get("created") == "now" else None
                entry = {**this.entry, **({"created": int(now)} if now else {})}
                return self.reply(200, {"object": "list", "data": ["odd", {"id": "another", "root": "x"}, entry]})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                this.asked += 1
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": this.text}}
                self.reply(200, {"id": "1", "object": "x", "created": 1, "model": "served", "choices": [choice]})

            def reply(self, status: int, body: Any, **headers: str) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def model(self, **fields: Any) -> ModelSpec:
        return ModelSpec.model_validate({"path": "openai/served", "style": "chat", "base_url": self.url, **fields})


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def test_what_a_server_says_of_a_model(server: Server, tiny_model: Path, tmp_path: Path) -> None:
    server.entry = {"id": "served", "root": "/nowhere", "created": 12}
    assert served(server.model()) == {"id": "served", "root": "/nowhere", "created": "12"}
    server.entry["created"] = "now"
    assert served(server.model()) == {"id": "served", "root": "/nowhere"}, "the time of the answer, as vLLM sends it"
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    server.entry["root"] = str(folder)
    before = served(server.model())
    assert before is not None
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    after = served(server.model())
    assert after is not None
    assert before["weights"] != after["weights"], "trained again in place"
    assert served(server.model(path="openai/unknown")) is None
    server.entry = None
    assert served(server.model()) is None


def test_a_list_of_models_is_taken_from_the_named_server_alone(server: Server) -> None:
    other = Server()
    server.redirect = f"{other.url}/models"
    assert served(server.model()) is None
    other.stop()
    assert served(other.model()) is None


def test_the_providers_own_address_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr("harness.models.served._list_of_models", None)
    for address in (None, "https://api.openai.com/v1"):
        assert served(ModelSpec(path="openai/gpt-4o", style="chat", base_url=address)) is None


def test_the_environment_decides_where_a_request_goes(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelSpec(path="openai/served", style="chat")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    here = api_fingerprint(model)
    assert here == api_fingerprint(server.model())
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert api_fingerprint(model) != here


SPEC = """
name: served
models:
  one: {path: openai/served, style: chat, base_url: URL, max_retries: 0}
  told: {path: recorded/told, style: chat}
tasks: {asked: {task: hh-rlhf, source: queries.jsonl}}
principles: {sets: [verifiable], splits: [learned]}
judges: {program: {kind: verifiable}}
comparisons: [{a: one, b: told}]
measures: {steerability: false, relevance: false}
"""


@pytest.fixture
def place(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "spec.yaml").write_text(SPEC.replace("URL", server.url))
    (tmp_path / "told").mkdir()
    for name, field in (("queries.jsonl", {"id": "1"}), ("told/responses.jsonl", {"text": "I was told."})):
        (tmp_path / name).write_text(json.dumps({"query": "Who are you?", **field}) + "\n")
    return tmp_path


def go(output: str, **changes: Any) -> dict[str, Any]:
    return run(load_spec("spec.yaml", {"output": output, **changes}), quiet=True).results


def texts(folder: Path) -> set[str]:
    return {row.text for row in RowFile(folder / "generations/one/asked.jsonl", Generation).read().values()}


@pytest.mark.parametrize("entry", [{"id": "served", "root": "/checkpoints/1"}, None])
def test_another_run_asks_the_server_again(place: Path, server: Server, entry: Any) -> None:
    server.entry = entry
    go("first")
    server.text, before = "I am the second.", server.asked
    go("second")
    assert server.asked == 2 * before > 0
    assert (texts(place / "first"), texts(place / "second")) == ({"I am the first."}, {"I am the second."})


def test_a_run_goes_on_only_with_the_model_it_began_with(place: Path, server: Server) -> None:
    go("first")
    server.text = "I am the second."
    n = server.asked
    go("first")
    assert server.asked == n, "the server says that it is the same"
    server.entry = {"id": "served", "root": "/checkpoints/2"}
    go("first")
    assert texts(place / "first") == {"I am the second."}


def test_a_run_whose_server_is_gone_is_read_back(
    place: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    results = go("first")
    server.stop()
    assert go("first") == results
    (place / "first" / "results.json").unlink()
    (place / "first" / "manifest.json").unlink()
    assert rescore(place / "first")["comparisons"] == results["comparisons"], "as of a run that was killed"
    assert main(["score", "first"]) == 0
