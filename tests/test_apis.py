"""Whole runs on API models, and judges held against labels, through the real SDKs, against a server of ours that fails on
purpose: nothing lost, nothing twice.
"""

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
measures: {{steerability: false, infonce: 0, relevance: false}}
statistics: {{max_unscored: 1.0}}
output: {folder}/run
"""
PROGRAMS = "{programs: {kind: verifiable}}"
GPT = "{gpt: {kind: llm, model: gpt}}"
VALIDATE = ("judge", "validate", "--judge", "openai/judge", "-o", "card")
BOTH = "{gpt: {kind: llm, model: gpt}, claude: {kind: llm, model: claude}}"


class Bench:
    """A folder with a specification or labelled pairs, a server, and `harness run` or `harness judge validate` on them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.run_folder = folder / "run"

    def write(self, queries: int, judges: str = GPT) -> None:
        rows = [{"id": f"q{n}", "query": f"What is number {n}?", "part": "evaluation"} for n in range(queries)]
        (self.folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (self.folder / "spec.yaml").write_text(SPEC.format(url=self.url, folder=self.folder, judges=judges))

    def start(self, *options: str, **variables: str) -> subprocess.Popen[str]:
        return self.command("run", "spec.yaml", "--no-cache", *options, **variables)

    def command(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ANTHROPIC_", "HARNESS_"))}
        env |= {"HARNESS_CACHE": str(self.folder / "cache"), **variables}
        command = [sys.executable, "-m", "harness", *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env={**env, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *options: str, code: int = 0, **variables: str) -> str:
        """Run to the end; what it said."""
        return ended(self.start(*options, **variables), code)

    def write_pairs(self, n: int) -> None:
        pairs = [
            {
                "query": f"What is number {i}?", "principles": ["Be short."], "label": "a",
                "response_a": f"It is {i}.", "response_b": f"The number {i} is a number like any other.",
            }
            for i in range(n)
        ]  # fmt: skip
        (self.folder / "labelled.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        (self.folder / "prices.yaml").write_text(PRICES)

    def start_validation(self, *options: str) -> subprocess.Popen[str]:
        return self.command(*VALIDATE, *options, OPENAI_BASE_URL=f"{self.url}/v1")

    def validate(self, *options: str, code: int = 0) -> str:
        """Hold the judge against the labels; what was said."""
        return ended(self.start_validation(*options), code)

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


def ended(process: subprocess.Popen[str], code: int) -> str:
    out, err = process.communicate(timeout=900)
    assert process.returncode == code, out + err
    return out + err


def rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


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


def test_a_run_whose_first_requests_all_fail_alike_ends_with_the_providers_sentence(
    bench: Callable[..., Bench],
) -> None:
    b = bench("--rate", "1", "--faults", "bad_request")
    b.write(8, PROGRAMS)
    said = b.run("-q", code=1)
    assert "requests of 'one on dialogue' failed alike (refused_request: HTTP 400: no)" in said
    assert b.stats()["count"]["bad_request"] < 32
    b.set(rate=0.0)
    b.run("-q")


# --- Limits of cost

PRICES = """
prices:
  openai/one: {input: 0, output: 0}
  anthropic/two: {input: 0, output: 0}
  openai/judge: {input: 10, output: 30, batch: 0.5}
"""


def test_a_limit_of_cost_stops_cleanly_and_a_higher_one_goes_on(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.write(8, GPT)
    (b.folder / "prices.yaml").write_text(PRICES)
    options = ("-q", "--prices", "prices.yaml", "--max-connections", "4")
    said = b.run(*options, "--max-cost", "0.12", code=3)
    assert "stopped at --max-cost 0.12: $0.1" in said
    assert "run the same command with a higher limit" in said
    assert "Traceback" not in said
    first = b.rows()
    paid = sum(10 * r["usage"]["prompt_tokens"] + 30 * r["usage"]["completion_tokens"] for r in first) / 1e6
    assert 0 < len(first) < 64
    assert paid <= 0.12
    assert paid > 0.06, "not long before it either"
    assert not (b.run_folder / "results.json").exists()
    assert b.run(*options, "--max-cost", "0.12", code=3)
    assert len(b.rows()) - len(first) <= 2, "what was spent before counts"
    b.run(*options, "--max-cost", "10")
    assert b.rows()[: len(first)] == first
    check_verdicts(b.rows(), 64)
    cost = b.results()["cost"]
    paid = sum(10 * r["usage"]["prompt_tokens"] + 30 * r["usage"]["completion_tokens"] for r in b.rows()) / 1e6
    assert cost["models"]["gpt"]["dollars"] == cost["dollars"] == pytest.approx(paid)
    assert cost["models"]["gpt"]["requests"] == 64
    assert b.stats()["count"]["none"] == 32 + 32 + 64


def test_a_limit_of_cost_needs_prices(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.write(1)
    (b.folder / "prices.yaml").write_text("prices: {openai/one: {input: 1}}\n")
    assert "prices.yaml:1: 'prices.openai/one.output' is missing" in b.run("--prices", "prices.yaml", code=2)
    spec = (b.folder / "spec.yaml").read_text()
    (b.folder / "spec.yaml").write_text(spec.replace(f"base_url: {b.url}/v1", "base_url: https://models.example/v1"))
    said = b.run("--max-cost", "1", code=2, OPENAI_API_KEY="test-key-without-use")
    assert "the price of 'openai/one' at https://models.example/v1 (model 'one') is unknown" in said
    assert b.stats()["count"] == {}


# --- Batches


@pytest.mark.parametrize("judge", ["gpt", "claude"])
def test_a_batch_is_handed_in_once_though_the_run_is_killed(bench: Callable[..., Bench], judge: str) -> None:
    b = bench("--batch-fault-every", "5")
    b.write(4, PROGRAMS)
    b.run("-q")
    b.write(4, f"{{{judge}: {{kind: llm, model: {judge}}}}}")
    b.set(batch_seconds=3600)
    process = b.start("--batch")
    folder = b.run_folder / "batches" / "verdicts" / judge / "one-vs-two"
    wait_for(lambda: any('_0"' in file.read_text() for file in folder.glob("*.json")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert b.rows(judge) == []
    assert "in a batch at the provider; run again with --batch" in b.run("-q", code=1)
    b.set(batch_seconds=0)
    said = b.run("--batch")
    assert "waiting for batch" in said
    assert [batch["n"] for batch in b.stats()["batches"]] == [32]
    rows = b.rows(judge)
    reasons = Counter(row["reason"] or "scored" for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) == 32
    assert reasons.keys() <= REASONS | {"scored"}
    failed = 32 - reasons["scored"]
    assert 0 < failed < 16
    assert all(row["usage"]["batch"] for row in rows)
    b.set(batch_fault_every=0)
    b.run("--batch", "-q")
    assert [batch["n"] for batch in b.stats()["batches"]] == [32, failed]
    last = {row["id"]: row for row in b.rows(judge)}
    assert {row["outcome"] for row in last.values()} <= {"a", "b", "tie"}


def test_a_batch_needs_an_api(bench: Callable[..., Bench], tiny_model: Path) -> None:
    b = bench()
    b.write(1, PROGRAMS)
    local = {"path": str(tiny_model), "style": "chat"}
    spec = (b.folder / "spec.yaml").read_text().split("models:")[0] + f"models: {{one: {local}, two: {local}}}\n"
    rest = (b.folder / "spec.yaml").read_text().split("tasks:")[1]
    (b.folder / "spec.yaml").write_text(spec + "tasks:" + rest)
    assert "--batch: no model of this run is behind an API" in b.run("--batch", code=2)


# --- Judges held against labels

LABELLED = ("--reference", "labelled.jsonl")
WRITTEN = ("--on", "verifiable", "--writer", "openai/one", "--limit", "6")


def paid(rows: list[dict[str, Any]]) -> float:
    """Dollars, at the price of the judge."""
    return sum(10 * r["usage"]["prompt_tokens"] + 30 * r["usage"]["completion_tokens"] for r in rows) / 1e6


def test_a_validation_stops_at_a_limit_of_cost_and_a_higher_one_goes_on(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.write_pairs(20)
    verdicts = b.folder / "card" / "verdicts.jsonl"
    options = (*LABELLED, "--prices", "prices.yaml", "--max-connections", "4")
    said = b.validate(*options, "--max-cost", "0.08", code=3)
    assert "stopped at --max-cost 0.08: $0.0" in said
    assert "run the same command with a higher limit" in said
    assert "Traceback" not in said
    first = rows_in(verdicts)
    assert 0 < len(first) < 40
    assert 0.04 < paid(first) <= 0.08
    assert not (b.folder / "card" / "card.json").exists()
    b.validate(*options, "--max-cost", "0.08", code=3)
    assert len(rows_in(verdicts)) - len(first) <= 2, "what was spent before counts"
    said = b.validate(*options, "--max-cost", "10")
    rows = rows_in(verdicts)
    assert rows[: len(first)] == first
    check_verdicts(rows, 40)
    assert set(b.stats()["answered"].values()) == {1}, "nothing is asked twice"
    cost = json.loads((b.folder / "card" / "card.json").read_text())["cost"]
    assert cost["dollars"] == cost["models"]["judge"]["dollars"] == pytest.approx(paid(rows))
    assert cost["models"]["judge"]["requests"] == 40
    assert f"In all {cost['dollars']:.2f} dollars." in said


def test_a_limit_of_cost_holds_for_the_writer_too(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.write_pairs(0)
    prices = PRICES.replace("openai/one: {input: 0, output: 0}", "openai/one: {input: 100, output: 100}")
    (b.folder / "prices.yaml").write_text(prices)
    options = (*WRITTEN, "--prices", "prices.yaml", "--max-connections", "1")
    assert "the next request of 'openai/one' could pass it" in b.validate(*options, "--max-cost", "0.2", code=3)
    written = rows_in(b.folder / "card" / "generations.jsonl")
    assert 0 < len(written) < 12
    assert 10 * paid(written) > 0.05
    b.validate(*options, "--max-cost", "10")
    cost = json.loads((b.folder / "card" / "card.json").read_text())["cost"]
    assert {name: model["requests"] for name, model in cost["models"].items()} == {"judge": 12, "openai/one": 12}
    assert cost["dollars"] == pytest.approx(sum(model["dollars"] for model in cost["models"].values()))
    assert set(b.stats()["answered"].values()) == {1}


def test_a_validation_under_a_limit_of_cost_needs_prices(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.write_pairs(2)
    options = (*LABELLED, "--base-url", "https://models.example/v1", "--max-cost", "1")
    said = ended(b.command(*VALIDATE, *options, OPENAI_API_KEY="test-key-without-use"), 2)
    assert "the price of 'openai/judge' at https://models.example/v1 (model 'judge') is unknown" in said
    assert "name that with --prices FILE" in said
    assert b.stats()["count"] == {}


def test_a_validations_batch_is_handed_in_once_though_it_is_killed(bench: Callable[..., Bench]) -> None:
    b = bench("--batch-fault-every", "5", "--batch-seconds", "3600")
    b.write_pairs(15)
    allowed = (*LABELLED, "--max-unscored", "1")
    process = b.start_validation(*allowed, "--batch")
    batches = b.folder / "card" / "batches" / "verdicts"
    wait_for(lambda: any('_0"' in file.read_text() for file in batches.glob("*.json")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "in a batch at the provider; run again with --batch" in b.validate(*allowed, "-q", code=1)
    b.set(batch_seconds=0)
    assert "waiting for batch batch_0, 30 requests" in b.validate(*allowed, "--batch")
    assert [batch["n"] for batch in b.stats()["batches"]] == [30]
    rows = rows_in(b.folder / "card" / "verdicts.jsonl")
    reasons = check_batched(rows, 30)
    assert 0 < (failed := 30 - reasons["scored"]) < 15
    b.set(batch_fault_every=0)
    b.validate(*LABELLED, "--batch", "-q")
    assert [batch["n"] for batch in b.stats()["batches"]] == [30, failed]
    assert "none" not in b.stats()["count"], "nothing is asked one by one"


def check_batched(rows: list[dict[str, Any]], n: int) -> Counter[str]:
    """Every judgement once, out of a batch. Its reasons."""
    assert len(rows) == len({row["id"] for row in rows}) == n
    assert all(row["usage"]["batch"] for row in rows)
    return Counter(row["reason"] or "scored" for row in rows)


def test_responses_and_each_repeat_have_batches_of_their_own(bench: Callable[..., Bench]) -> None:
    b = bench("--batch-fault-every", "4", "--batch-seconds", "0")
    b.write_pairs(0)
    said = b.validate(*WRITTEN, "--batch", code=1)
    failed = [row for row in rows_in(b.folder / "card" / "generations.jsonl") if row["error"]]
    assert 0 < len(failed) < 12
    assert f"the model 'openai/one' gave no response to {len(failed)} of 12 prompts" in said
    b.set(batch_fault_every=0)
    b.validate(*WRITTEN, "--batch", "--epochs", "2")
    assert [batch["n"] for batch in b.stats()["batches"]] == [12, len(failed), 12, 12]


def test_options_about_apis_hold_for_a_judge_of_a_specification_too(bench: Callable[..., Bench]) -> None:
    b = bench("--rate", "1", "--faults", "server_error")
    b.write_pairs(1)
    b.write(1)
    allowed = (*LABELLED, "--max-unscored", "1", "-q")
    b.validate(*allowed, "--max-retries", "0")
    assert b.stats()["count"] == {"server_error": 2}
    ended(b.command("judge", "validate", "--judge", "gpt", "--spec", "spec.yaml", *allowed, "--max-retries", "1"), 0)
    assert b.stats()["count"] == {"server_error": 2 + 4}
