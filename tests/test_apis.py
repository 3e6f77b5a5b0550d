"""Whole runs on API models, through the real SDKs, against a server of ours that fails on purpose: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SERVER = Path(__file__).parent / "models" / "api_server.py"
REASONS = {
    "rate_limit", "timeout", "connection", "server_error", "refused_request", "malformed", "empty", "refusal", "expired",
    "canceled",
}  # fmt: skip

SPEC = """
name: apis
models:
  one: {{path: openai/one, style: chat, base_url: {url}/v1}}
  two: {{path: anthropic/two, style: chat, base_url: {url}}}
  gpt: {{path: openai/judge, style: chat, base_url: {url}/v1}}
  claude: {{path: anthropic/judge, style: chat, base_url: {url}}}
tasks:
  dialogue: {{task: hh-rlhf, source: queries.jsonl}}
principles: {{sets: [verifiable]}}
judges: {judges}
comparisons: [{{a: one, b: two}}]
measures: {{steerability: false, infonce: 0}}
statistics: {{max_unscored: 1.0}}
output: {folder}/run
"""
PROGRAMS = "{programs: {kind: verifiable}}"
GPT = "{gpt: {kind: llm, model: gpt}}"
BOTH = "{gpt: {kind: llm, model: gpt}, claude: {kind: llm, model: claude}}"


class Bench:
    """A folder with a specification, a server, and `harness run` on them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.run_folder = folder / "run"

    def write(self, queries: int, judges: str = GPT) -> None:
        rows = [{"id": f"q{n}", "query": f"What is number {n}?", "part": "evaluation"} for n in range(queries)]
        (self.folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.folder / "spec.yaml").write_text(SPEC.format(url=self.url, folder=self.folder, judges=judges))

    def start(self, *options: str) -> subprocess.Popen[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ANTHROPIC_", "HARNESS_"))}
        env |= {"HARNESS_CACHE": str(self.folder / "cache")}
        command = [sys.executable, "-m", "harness", "run", "spec.yaml", "--no-cache", *options]
        return subprocess.Popen(
            command, cwd=self.folder, env={**env, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *options: str, code: int = 0) -> str:
        """Run to the end; what it said."""
        process = self.start(*options)
        out, err = process.communicate(timeout=900)
        assert process.returncode == code, out + err
        return out + err

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_folder / "results.json").read_text())
        return found

    def rows(self, judge: str = "gpt") -> list[dict[str, Any]]:
        file = self.run_folder / "verdicts" / judge / "one-vs-two.jsonl"
        return (
            [json.loads(line) for line in file.read_text().split("\n") if line.endswith("}")] if file.is_file() else []
        )

    def n_rows(self, judge: str = "gpt") -> int:
        file = self.run_folder / "verdicts" / judge / "one-vs-two.jsonl"
        return file.read_bytes().count(b"\n") if file.is_file() else 0

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(urllib.request.urlopen(f"{self.url}/stats", timeout=60).read())
        return found

    def set(self, **options: Any) -> None:
        data = json.dumps(options).encode()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/settings", data), timeout=60)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """A bench with a server that has these options."""
    servers = []

    def begin(*options: str) -> Bench:
        server = subprocess.Popen([sys.executable, str(SERVER), *options], stdout=subprocess.PIPE, text=True)
        servers.append(server)
        assert server.stdout
        return Bench(tmp_path, server.stdout.readline().strip())

    yield begin
    for server in servers:
        server.kill()
        server.wait()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def check_verdicts(rows: list[dict[str, Any]], expected: int) -> Counter[str]:
    """Every judgement once, scored or unscored with a known reason. Its reasons."""
    assert len(rows) == len({row["id"] for row in rows}) == expected
    reasons = Counter(row["reason"] or "scored" for row in rows)
    assert reasons.keys() <= REASONS | {"scored"}
    for row in rows:
        assert (row["outcome"] == "unscored") == (row["reason"] is not None)
        assert row["outcome"] == "unscored" or row["usage"]["completion_tokens"] > 0
    return reasons


# --- Failures


PER_QUERY = 8  # judgements: two splits, two sides of a principle, two orders


def killed_and_resumed(b: Bench, queries: int, connections: int, rate: float, latency: float) -> Counter[str]:
    """Answers without faults, then judgements with them, killed in the middle; the reasons when all are there."""
    n = PER_QUERY * queries
    b.write(queries, PROGRAMS)
    b.run("-q", "--max-connections", str(connections))
    b.set(rate=rate, latency=latency)
    b.write(queries, GPT)
    options = ("-q", "--max-connections", str(connections), "--timeout", "1.5", "--max-retries", "8")
    process = b.start(*options)
    wait_for(lambda: b.n_rows() >= 0.4 * n, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {row["id"]: row for row in b.rows()}
    assert len(before) == len(b.rows()) < n
    again = b.start(*options)
    memory: list[int] = []
    for share in (0.5, 0.9):
        wait_for(lambda share=share: b.n_rows() >= share * n, again)  # type: ignore[misc]
        memory.append(resident_kib(again.pid))
    out, err = again.communicate(timeout=900)
    assert again.returncode == 0, out + err
    assert memory[1] - memory[0] < 20_000, "memory does not grow with what was judged"
    every = b.rows()
    after = every[len(before) :]
    failed = {i for i, row in before.items() if "error" in row["details"]}
    assert {row["id"] for row in after}.isdisjoint(before.keys() - failed), "what was judged is not judged again"
    last = {row["id"]: row for row in every}
    assert len(every) == n + len(failed)
    return check_verdicts(list(last.values()), n)


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")


@linux
def test_nothing_is_lost_or_twice_under_failures_and_a_kill(bench: Callable[..., Bench]) -> None:
    b = bench()
    reasons = killed_and_resumed(b, queries=20, connections=32, rate=0.3, latency=0.4)
    assert reasons["scored"] > 0.7 * 160
    faults = b.stats()["count"]
    assert sum(n for kind, n in faults.items() if kind != "none") > 15
    answered = Counter(b.stats()["answered"].values())
    # What was in flight at the kill is asked again; everything else was answered once.
    assert sum(n for times, n in answered.items() if times > 1) <= 2 * 32


@linux
@pytest.mark.slow
def test_ten_thousand_judgements_on_256_connections(bench: Callable[..., Bench]) -> None:
    b = bench("--retry-after", "0.02")
    reasons = killed_and_resumed(b, queries=1250, connections=256, rate=0.3, latency=0.4)
    print(reasons, b.stats()["count"])  # noqa: T201
    assert reasons["scored"] > 7_500
    answered = Counter(b.stats()["answered"].values())
    assert sum(n for times, n in answered.items() if times > 1) <= 2 * 256
    assert b.stats()["most_running"] <= 2 * 256  # requests of the killed process may still have been running
