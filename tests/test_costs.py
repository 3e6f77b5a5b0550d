"""Prices, what was spent, what may be spent, and what a plan comes to."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness.costs import (
    Allowance,
    Price,
    Prices,
    Tokens,
    allowance,
    at_most,
    load_prices,
    planned,
    spent,
    tokens,
)
from harness.models.base import Request, Sampling
from harness.plan import build_plan, is_api
from harness.rows import Generation, Verdict
from harness.spec import ModelSpec, load_spec
from harness.store import RowFile
from sami_train.errors import UserError
from sami_train.prompts import Prompt

PRICE = Price(input=2, output=8, cached_input=0.5, cache_write=2.5, batch=0.5)
PROMPT = Prompt("chat", (("user", "x" * 400),))
SAMPLING = Sampling(100, 1000)


# --- Prices


def test_only_openai_and_anthropic_are_apis() -> None:
    for path in ("recorded/answers", "embedded/gemma-3-270m", "org/name"):
        assert not is_api(ModelSpec(path=path, style="chat"))
    assert is_api(ModelSpec(path="openai/x", style="chat"))


def test_every_shipped_price_has_a_date_and_a_source() -> None:
    shipped = load_prices().shipped
    assert len(shipped) > 10
    for name, price in shipped.items():
        assert name.split("/")[0] in ("openai", "anthropic")
        assert price.source.startswith("https://")
        assert time.strptime(price.date, "%Y-%m-%d")
        assert 0 < price.input < price.output


def test_a_price_of_the_user_wins_also_for_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("prices: {openai/gpt-4: {input: 1, output: 2}}\n")
    there = ModelSpec(path="openai/gpt-4", style="chat", base_url="https://models.example/v1")
    assert load_prices(file).of(there) == Price(input=1, output=2)
    monkeypatch.setenv("HARNESS_PRICES", str(file))
    assert load_prices().of(ModelSpec(path="openai/gpt-4", style="chat")) == Price(input=1, output=2)


def test_a_providers_price_says_nothing_of_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = load_prices()
    for variable in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    model = ModelSpec(path="openai/gpt-4", style="chat")
    known = prices.of(model)
    assert known is not None
    assert (known.input, known.output) == (30, 60)
    assert prices.of(model.model_copy(update={"base_url": "https://models.example/v1"})) is None
    here = prices.of(model.model_copy(update={"base_url": "http://127.0.0.1:1/v1"}))
    assert here is not None
    assert here.output == 0
    monkeypatch.setenv("OPENAI_BASE_URL", "https://models.example/v1")
    assert prices.of(model) is None


def test_a_longer_name_is_another_model() -> None:
    assert load_prices().of(ModelSpec(path="openai/gpt-4-32k", style="chat")) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prices: {openai/x: {input: 1}}", r"mine.yaml:1: 'prices.openai/x.output' is missing"),
        ("prices: {openai/x: {input: -1, output: 1}}", r"mine.yaml:1: .*input"),
        ("prices: {openai/x: {input: 1, output: 1, per_call: 1}}", r"mine.yaml:1: .*per_call"),
    ],
)
def test_a_mistake_in_a_price_file_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_prices(tmp_path / "mine.yaml")


# --- Tokens and dollars


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 4}, Tokens(10, 0, 0, 4)),
        (
            {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 6}},
            Tokens(4, 6, 0, 4),
        ),
        (
            {"input_tokens": 5, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 3, "output_tokens": 4},
            Tokens(5, 2, 3, 4),
        ),
        ({"prompt_tokens": "many", "completion_tokens": True, "prompt_tokens_details": 3}, Tokens()),
        ({}, Tokens()),
    ],
)
def test_tokens(usage: dict[str, Any], expected: Tokens) -> None:
    assert tokens(usage) == expected


def test_dollars() -> None:
    found = Tokens(1_000_000, 2_000_000, 4_000_000, 3_000_000)
    assert found.dollars(PRICE) == 2 + 1 + 10 + 24
    assert found.dollars(PRICE, batch=True) == (2 + 1 + 10 + 24) / 2
    plain = Price(input=2, output=8)
    assert found.dollars(plain, batch=True) == 2 * (1 + 2 + 4) + 24, (
        "what has no price of its own costs what input does"
    )


def test_at_most_is_a_token_for_each_byte_and_the_longest_answer() -> None:
    wide = Prompt("chat", (("system", "é"), ("user", "界" * 100)))
    price = Price(input=1_000_000, output=0)
    assert at_most(price, wide, SAMPLING) == 64 + 16 + 2 + 16 + 300
    assert at_most(Price(input=0, output=1_000_000), wide, SAMPLING) == 100
    schema = Sampling(100, 1000, json_schema={"type": "object"})
    assert at_most(price, wide, schema) > at_most(price, wide, SAMPLING) + 512


# --- What may be spent


def usage(n: int) -> dict[str, Any]:
    return {"prompt_tokens": n, "completion_tokens": 0}


def test_nothing_begins_that_could_pass_the_limit() -> None:
    most = at_most(PRICE, PROMPT, SAMPLING)
    left = Allowance(2.2 * most, 0.0, {"m": PRICE})
    first = left.reserve("m", PROMPT, SAMPLING)
    second = left.reserve("m", PROMPT, SAMPLING)
    assert first == second == pytest.approx(most)
    assert left.reserve("m", PROMPT, SAMPLING, batch=True) is None, "it could, while both are under way"
    assert not left.exhausted
    left.settle("m", first, usage(0))
    assert left.reserve("m", PROMPT, SAMPLING) == pytest.approx(most)
    left.settle("m", most, usage(round(most / 2e-6)))
    left.settle("m", most, usage(round(most / 2e-6)))
    assert left.reserve("m", PROMPT, SAMPLING) is None
    assert left.exhausted
    assert left.spent == pytest.approx(2 * most, rel=1e-2)


def test_a_request_waits_for_answers_that_may_cost_less() -> None:
    most = at_most(PRICE, PROMPT, SAMPLING)
    left = Allowance(1.5 * most, 0.0, {"m": PRICE})
    first = left.reserve("m", PROMPT, SAMPLING)
    assert first is not None
    found: list[float | None] = []
    waiting = threading.Thread(target=lambda: found.append(left.reserve("m", PROMPT, SAMPLING)))
    waiting.start()
    waiting.join(0.1)
    assert found == []
    left.settle("m", first, usage(10))
    waiting.join(5)
    assert found == [pytest.approx(most)]


def test_what_was_spent_before_counts() -> None:
    most = at_most(PRICE, PROMPT, SAMPLING)
    assert Allowance(1.5 * most, 0.4 * most, {"m": PRICE}).reserve("m", PROMPT, SAMPLING) is not None
    assert Allowance(1.5 * most, 0.6 * most, {"m": PRICE}).reserve("m", PROMPT, SAMPLING) is None


# --- Plans and runs

SPEC = """
name: priced
models:
  one: {path: openai/gpt-4, style: chat}
  two: {path: openai/gpt-4-0613, style: chat}
  judge: {path: anthropic/claude-haiku-4-5, style: chat}
tasks:
  dialogue: {task: hh-rlhf, source: queries.jsonl}
principles: {sets: [verifiable]}
judges: {claude: {kind: llm, model: judge}}
comparisons: [{a: one, b: two}]
measures: {steerability: false, infonce: 0, relevance: false}
sampling: {max_new_tokens: 50}
output: run
"""


@pytest.fixture
def plan_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    for variable in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "HARNESS_PRICES"):
        monkeypatch.delenv(variable, raising=False)
    rows = [{"id": f"q{n}", "query": f"What is number {n}?", "part": "evaluation"} for n in range(3)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "spec.yaml").write_text(SPEC)
    return lambda **overrides: build_plan(
        load_spec("spec.yaml", {k.replace("__", "."): v for k, v in overrides.items()})
    )


def test_a_plan_is_priced_between_the_shortest_and_the_longest_answers(plan_of: Any) -> None:
    plan = plan_of()
    cost = planned(plan, plan.folder)
    first, _, judge = cost["stages"]
    prompts = sum(-(-len(unit.prompt.text.encode()) // 4) for unit in plan.stages[0].units)
    n = len(plan.stages[0].units)
    assert first["prompt_tokens"] == {"low": prompts, "high": prompts}
    assert first["output_tokens"] == {"low": n, "high": 50 * n}
    assert first["dollars"]["low"] == pytest.approx((30 * prompts + 60 * n) / 1e6)
    assert first["dollars"]["high"] == pytest.approx((30 * prompts + 60 * 50 * n) / 1e6)
    assert judge["requests"] == 2 * n
    assert judge["output_tokens"] == {"low": 5 * 2 * n, "high": 300 * 2 * n}
    assert judge["prompt_tokens"]["high"] - judge["prompt_tokens"]["low"] == 2 * n * (100 - 2)
    assert cost["dollars"]["high"] == pytest.approx(sum(row["dollars"]["high"] for row in cost["stages"]))
    assert planned(plan, plan.folder, batch=True)["dollars"]["high"] == pytest.approx(cost["dollars"]["high"] / 2)


def test_local_prompts_are_counted_as_the_model_gets_them(plan_of: Any, tiny_model: Path) -> None:
    from harness.models.local import TransformersBackend
    from sami_train.models import Source

    here = str(tiny_model)
    plan = plan_of(models__one__path=here, models__two__path=here, models__judge__path="openai/gpt-4")
    assert {row["counted"] for row in planned(plan, plan.folder)["stages"]} == {"estimate"}
    rows = planned(plan, plan.folder, exact=True)["stages"]
    assert [row["counted"] for row in rows] == ["exact", "exact", "estimate"]
    backend = TransformersBackend("one", Source("folder", here), device="cpu", dtype="float32")
    requests = [Request(unit.id, unit.prompt) for unit in plan.stages[0].units]
    made = [c for batch in backend.generate(requests, Sampling(1, 1024)) for c in batch]
    assert rows[0]["prompt_tokens"]["low"] == sum(c.n_prompt_tokens for c in made)
    assert rows[0]["dollars"] is None


def generation(plan: Any, stage: Any, unit: Any, text: str, **more: Any) -> Generation:
    return Generation(
        id=unit.id, fingerprint=unit.fingerprint, model=stage.model, task="dialogue", query_id=unit.query.id,
        constitution_id=unit.constitution.id, principle_set=unit.principle_set, split=unit.split, prompt_hash="x",
        prompt="x", text=text, finish_reason="stop", n_prompt_tokens=1, n_tokens=1, truncated=False, **more,
    )  # fmt: skip


def test_answers_that_are_there_make_the_judges_prompts_known(plan_of: Any) -> None:
    plan = plan_of()
    for number, stage in enumerate(plan.stages[:2]):
        with RowFile(plan.folder / stage.path, Generation) as file:
            texts = ["the same" if n == 0 else f"answer {n} of {number}" for n in range(len(stage.units))]
            file.append(generation(plan, stage, u, t) for u, t in zip(stage.units, texts, strict=True))
    (judge,) = planned(plan, plan.folder)["stages"]
    assert judge["prompt_tokens"]["low"] == judge["prompt_tokens"]["high"]
    assert judge["output_tokens"]["low"] == 5 * (judge["requests"] - 2), "equal answers are not shown to the judge"


def test_spent_counts_every_row_that_was_paid_for(plan_of: Any) -> None:
    plan = plan_of()
    stage, unit = plan.stages[0], plan.stages[0].units[0]
    with RowFile(plan.folder / stage.path, Generation) as file:
        file.append([generation(plan, stage, unit, "first", usage={"prompt_tokens": 1000, "completion_tokens": 100})])
        file.append([generation(plan, stage, unit, "again", usage={"prompt_tokens": 1000, "completion_tokens": 200})])
        file.append([generation(plan, stage, stage.units[1], "of another run", usage={})])
    judging = plan.stages[2]
    row = Verdict(
        id="x", fingerprint="x", judge="claude", kind="win_rate", a="one", b="two", task="dialogue", query_id="q0",
        constitution_id="c", principle_set="verifiable", split="learned", order="ab", outcome="a", raw="", details={},
        usage={"input_tokens": 1000, "output_tokens": 10, "batch": True}, latency_s=0,
    )  # fmt: skip
    with RowFile(plan.folder / judging.path, Verdict) as file:
        file.append([row])
    found = spent(plan, plan.folder, load_prices())
    assert found["models"]["one"]["requests"] == 2
    assert found["models"]["one"]["dollars"] == pytest.approx((2000 * 30 + 300 * 60) / 1e6)
    assert found["models"]["judge"]["dollars"] == pytest.approx((1000 * 1 + 10 * 5) / 2e6)
    assert found["dollars"] == pytest.approx(0.078 + 0.000525)
    assert found["models"]["judge"]["price"]["source"].startswith("https://platform.claude.com/")


def test_an_unknown_price_is_unknown_and_one_sentence_where_it_is_needed(plan_of: Any) -> None:
    plan = plan_of(models__judge__path="anthropic/claude-haiku-45")
    assert spent(plan, plan.folder, load_prices())["dollars"] is None
    cost = planned(plan, plan.folder)
    assert (cost["unpriced"], cost["dollars"]) == (["judge"], {"low": None, "high": None})
    with pytest.raises(
        UserError, match=r"price of 'anthropic/claude-haiku-45' \(model 'judge'\) is unknown .*--prices"
    ):
        allowance(plan, plan.folder, 1.0, load_prices())
    own = Prices({"anthropic/claude-haiku-45": PRICE}, load_prices().shipped)
    assert allowance(plan, plan.folder, 1.0, own).limit == 1.0


@pytest.mark.parametrize("kind", ["dialogue", "summarization"])
def test_judge_prompts_show_first_what_most_of_them_share(kind: str) -> None:
    """So that a provider finds the longest part of a prompt that it knows: principles, query, then the answers."""
    from harness.judges.llm import load_judge_template

    for text in (load_judge_template(kind).text, load_judge_template(kind).choice):
        places = [text.index(name) for name in ("{principles}", "{query}", "{first}", "{second}")]
        assert places == sorted(places)
