"""A judge held against known labels: a real tiny model here, and a server of this test's own for what API judges write."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.judge_validation import Judge, judge_of_path, validate_judge
from harness.judges.llm import VERDICT_SCHEMA
from harness.reference import LabelledPair, pairs_of_run
from harness.rows import Verdict
from harness.spec import EngineSpec, JudgeSpec, ModelSpec
from harness.store import RowFile
from harness.store.files import read_json


def pairs(n: int = 6) -> list[LabelledPair]:
    """The shorter answer follows the principle; every sixth pair is of equal texts."""
    found = []
    for number in range(n):
        one, two = f"Fox {number}.", f"The fox of number {number} is a rather long story."
        a, b = (one, two) if number % 2 else (two, one)
        label: Any = "a" if number % 2 else "b"
        if number % 6 == 5:
            a, b, label = one, one, "tie"
        found.append(
            LabelledPair(str(number), f"q{number}", "dialogue", f"What is {number}?", ("Be short.",), a, b, label)
        )
    return found


def local(model: Path, **fields: Any) -> Judge:
    spec = JudgeSpec(kind="llm", model="judge", **fields)
    return judge_of_path(
        str(model), ModelSpec(path=str(model), style="chat", dtype="float32"), spec, EngineSpec(device="cpu")
    )


def card_of(judge: Judge, folder: Path, of: list[LabelledPair] | None = None, **options: Any) -> dict[str, Any]:
    return validate_judge(judge, of or pairs(), folder, reference="labels of this test", **options)


def verdicts(folder: Path) -> dict[str, Verdict]:
    return RowFile(folder / "verdicts.jsonl", Verdict).read()


def test_a_local_model_is_judged_by_its_probabilities(tiny_model: Path, tmp_path: Path) -> None:
    card = card_of(local(tiny_model), tmp_path)
    assert (card["form"], card["n"], card["n_identical"], card["unscored_rate"]) == ("choice", 10, 2, 0.0)
    assert card["labels"] == {"a": 2, "b": 3, "tie": 1}
    assert card["agreement"]["n"] == 5
    assert card["passed"]
    assert read_json(tmp_path / "card.json") == card
    rows = verdicts(tmp_path).values()
    assert sum(bool(row.details.get("identical")) for row in rows) == 2
    assert all({"p_first", "p_second"} <= row.details.keys() for row in rows if not row.details.get("identical"))


def test_a_local_model_may_write(tiny_model: Path, tmp_path: Path) -> None:
    card = card_of(local(tiny_model, form="text"), tmp_path)
    assert (card["form"], card["n"]) == ("text", 10)
    rows = [row for row in verdicts(tmp_path).values() if not row.details.get("identical")]
    assert all(row.raw for row in rows)
    assert all(row.outcome == "unscored" for row in rows)  # random weights write no verdict
    assert sum(card["unscored_reasons"].values()) == 10
    assert not card["passed"]
    assert card["agreement"]["n"] == 0


def test_a_prompt_that_is_too_long_for_a_local_model_is_unscored_and_the_others_are_not(
    tiny_model: Path, tmp_path: Path
) -> None:
    long = LabelledPair("long", "q", "dialogue", "Why?", ("Be short.",), "so " * 4000, "no", "b")
    for form in ("choice", "text"):
        folder = tmp_path / form
        card = card_of(local(tiny_model, form=form), folder, [*pairs(2), long])
        assert card["unscored_reasons"]["prompt_too_long"] == 2
        assert len(verdicts(folder)) == 6


def test_what_is_judged_already_is_not_asked_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = local(tiny_model)
    card = card_of(judge, tmp_path)
    monkeypatch.setattr(Judge, "open", lambda self: pytest.fail("the model was opened"))
    assert card_of(judge, tmp_path) == card
    assert card_of(judge, tmp_path, pairs(4))["n"] == 8


def test_a_stopped_validation_goes_on_to_the_same_card(tiny_model: Path, tmp_path: Path) -> None:
    whole = card_of(local(tiny_model), tmp_path / "whole")
    card_of(local(tiny_model), tmp_path / "cut")
    file = tmp_path / "cut" / "verdicts.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]) + lines[5][:20])
    assert card_of(local(tiny_model), tmp_path / "cut") == whole
    assert len(file.read_text().splitlines()) == 12


def test_another_form_or_pair_is_judged_again(tiny_model: Path, tmp_path: Path) -> None:
    card_of(local(tiny_model), tmp_path)
    before = verdicts(tmp_path)
    changed = [LabelledPair(**{**vars(pair), "a": pair.a + " Ha."}) if pair.id == "0" else pair for pair in pairs()]
    card_of(local(tiny_model), tmp_path, changed)
    after = verdicts(tmp_path)
    assert {after[i].constitution_id for i in after if after[i].fingerprint != before[i].fingerprint} == {"0"}


def test_repeats_are_held_against_each_other(tiny_model: Path, tmp_path: Path) -> None:
    card = card_of(local(tiny_model), tmp_path, repeats=2)
    assert (card["repeats"], card["n"], card["n_repeated"], card["repeat_agreement"]) == (2, 20, 10, 1.0)


def test_a_judge_of_its_own_kin_is_flagged(tiny_model: Path, tmp_path: Path) -> None:
    own = [LabelledPair(**{**vars(pair), "models": (str(tiny_model),)}) for pair in pairs(2)]
    card = card_of(local(tiny_model), tmp_path, own)
    assert card["same_family"] == {str(tiny_model): "it is the judge's own model"}


# --- Judges behind a server -------------------------------------------------------------------------------------------

Says = Callable[[dict[str, Any], str], str]


class Server:
    """Speaks OpenAI's chat interface; `says` makes the text from the request and its prompt."""

    def __init__(self, says: Says) -> None:
        self.bodies: list[dict[str, Any]] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                bodies.append(body)
                text = says(body, body["messages"][-1]["content"])
                message = {"role": "assistant", "content": text}
                answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Says], Server]]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    pytest.importorskip("openai", reason="the openai package is not installed")
    running: list[Server] = []

    def start(says: Says) -> Server:
        running.append(Server(says))
        return running[-1]

    yield start
    for one in running:
        one.close()


def remote(url: str, **fields: Any) -> Judge:
    model = ModelSpec(path="openai/any", style="chat", base_url=url, max_retries=0)
    return judge_of_path("openai/any", model, JudgeSpec(kind="llm", model="judge", **fields), EngineSpec())


def shorter(prompt: str) -> str:
    """The place of the shorter answer, as a judge that is always right would say it."""
    first, second = (part.partition(">>\n")[2].partition("\n<<")[0] for part in prompt.split("Response ")[1:3])
    return "A" if len(first) < len(second) else "B"


def test_a_structured_judge_is_held_to_the_schema_and_read_by_it(
    server: Callable[[Says], Server], tmp_path: Path
) -> None:
    running = server(lambda _, prompt: json.dumps({"reasoning": "It is shorter.", "verdict": shorter(prompt)}))
    card = card_of(remote(running.url, structured="on"), tmp_path, pairs(12))
    assert card["form"] == "structured"
    assert len(running.bodies) == 20  # two of the twelve pairs are of equal texts
    assert all(body["response_format"]["json_schema"]["schema"] == VERDICT_SCHEMA for body in running.bodies)
    assert (card["position_consistency"], card["share_first"], card["longer_wins"]) == (1.0, 0.5, 0.0)
    found = card["agreement"]
    assert (found["n"], found["accuracy"], found["kappa"], found["sensitivity"]) == (10, 1.0, 1.0, 1.0)


def test_each_repeat_has_a_seed_of_its_own(server: Callable[[Says], Server], tmp_path: Path) -> None:
    running = server(lambda _, prompt: f"Verdict: {shorter(prompt)}")
    card_of(remote(running.url), tmp_path, pairs(3), repeats=3)
    seeds = [body["seed"] for body in running.bodies]
    assert {seed: seeds.count(seed) for seed in set(seeds)} == dict.fromkeys((0, 1, 2), len(seeds) // 3)


def test_repeats_are_drawn_unless_they_are_told_not_to_be(server: Callable[[Says], Server], tmp_path: Path) -> None:
    running = server(lambda _, prompt: f"Verdict: {shorter(prompt)}")
    once = card_of(remote(running.url), tmp_path / "once", pairs(1))
    drawn = card_of(remote(running.url), tmp_path / "drawn", pairs(1), repeats=2)
    greedy = card_of(remote(running.url, temperature=0.0), tmp_path / "greedy", pairs(1), repeats=2)
    assert [body["temperature"] for body in running.bodies] == [0.0] * 2 + [1.0] * 4 + [0.0] * 4
    assert [card["draws"] for card in (once, drawn, greedy)] == [False, True, False]


def test_a_judge_has_settings_of_its_own(server: Callable[[Says], Server], tmp_path: Path) -> None:
    running = server(lambda _, prompt: f"<think>It is B.\nVerdict: B</think>\nVerdict: {shorter(prompt)}")
    fields = {"max_new_tokens": 2000, "temperature": None, "reasoning": "low", "extra": {"seed": None, "top_k": 5}}
    card = card_of(remote(running.url, **fields), tmp_path)
    assert card["agreement"]["accuracy"] == 1.0
    for body in running.bodies:
        assert body.keys() == {"model", "messages", "max_tokens", "reasoning_effort", "top_k"}
        assert body["max_tokens"] == 2000
    asked = [row for row in verdicts(tmp_path).values() if not row.details.get("identical")]
    assert {row.details["reasoning"] for row in asked} == {"It is B.\nVerdict: B"}
    assert card["left_out"] == ["temperature"]


def test_another_server_is_asked_for_text_unless_told_otherwise(
    server: Callable[[Says], Server], tmp_path: Path
) -> None:
    running = server(lambda _, prompt: f"It is shorter.\nVerdict: {shorter(prompt)}")
    card = card_of(remote(running.url), tmp_path)
    assert (card["form"], card["agreement"]["accuracy"]) == ("text", 1.0)
    assert all("response_format" not in body for body in running.bodies)


def test_a_server_that_ignores_the_schema_gives_no_verdicts(server: Callable[[Says], Server], tmp_path: Path) -> None:
    running = server(lambda _, prompt: f"Verdict: {shorter(prompt)}")
    card = card_of(remote(running.url, structured="on"), tmp_path)
    assert card["unscored_reasons"] == {"not_json": 10}
    assert (card["unscored_said"], card["n_retried"]) == ([{"said": "not_json", "n": 10}], 0)
    assert (card["agreement"]["n"], card["passed"]) == (0, False)


def test_a_judge_that_looks_at_places_alone_shows_it(server: Callable[[Says], Server], tmp_path: Path) -> None:
    running = server(lambda *_: "Verdict: A")
    card = card_of(remote(running.url), tmp_path)
    assert (card["position_consistency"], card["share_first"], card["longer_wins"]) == (0.0, 1.0, None)
    assert card["agreement"]["table"] == [[0, 2, 0], [0, 0, 0], [0, 3, 0]]


def test_pairs_of_a_run_are_those_of_its_win_rates(tiny_model: Path, tmp_path: Path) -> None:
    from harness import run

    file = tmp_path / "tiny.yaml"
    file.write_text(
        f"""
name: tiny
models: {{base: {{path: {tiny_model}, style: completion}}, other: {{path: {tiny_model}, style: chat}}}}
tasks: {{dialogue: {{task: hh-rlhf, source: bundled, limit: 3}}}}
principles: {{sets: [verifiable]}}
judges: {{program: {{kind: verifiable}}, own: {{kind: llm, model: other, form: text, limit: 1}}}}
comparisons: [{{a: base, b: other}}]
sampling: {{max_new_tokens: 8, max_prompt_tokens: 1400}}
measures: {{relevance: false}}
statistics: {{max_unscored: 1}}
engine: {{threads: 1}}
output: {tmp_path / "run"}
"""
    )
    outcome = run(str(file), quiet=True, cache=False)
    program, own = outcome.results["judges"]["program"], outcome.results["judges"]["own"]
    assert set(own["unscored_reasons"]) <= {"no_verdict", "truncated", "empty", "refusal"}
    assert own["same_family"] == {"base": "it is the judge's own model", "other": "it is the judge itself"}
    found = pairs_of_run(tmp_path / "run")
    assert len(found) == 3 * 2 * 2
    row = next(r for r in outcome.results["comparisons"] if r["judge"] == "program" and r["split"] == "learned")
    counts = [pair.label for pair in found]
    both = [r["verdicts"] for r in outcome.results["comparisons"] if r["judge"] == "program"]
    assert row["n_expected"] == 3
    assert {label: counts.count(label) for label in ("a", "b", "tie")} == {  # type: ignore[arg-type]
        label: sum(one[label] for one in both) for label in ("a", "b", "tie")
    }
    assert program["agreement"] is None
    assert len(pairs_of_run(tmp_path / "run", limit=5)) == 5
