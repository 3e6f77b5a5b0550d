"""The contrast over queries, from the plan of a run to its steps and resumed runs; its loss is in `test_loss`, its gradient in
`test_step`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from conftest import tiny_model as model_of
from test_planning import LENGTHS, ONE_CPU, architecture_of, recipe_of, saved_bytes
from test_step import WORLD, examples, gradients
from test_trainer import data, recipe, some_queries, weights

from sami_train.config import Recipe
from sami_train.constitutions import load_principle_set
from sami_train.data import Query
from sami_train.errors import UserError
from sami_train.files import read_rows
from sami_train.generation import encode_prompt
from sami_train.logprobs import cell_logprobs, pack, response_logprobs_naive, token_logprobs
from sami_train.loss import contrast_metrics, query_loss, sami_loss
from sami_train.models import load_tokenizer, parse_source
from sami_train.pairs import Contrast, plan_contrasts, split_queries
from sami_train.planning.measure import example
from sami_train.planning.memory import micro_steps
from sami_train.planning.rehearsal import rehearse_training
from sami_train.planning.shape import count_parameters
from sami_train.planning.work import attention_flops, plan_work, query_work
from sami_train.prompts import load_template
from sami_train.step import accumulate, lean
from sami_train.trainer import TrainingData, train

QUERIES = some_queries(12)


def plan(queries: list[Query] = QUERIES, seed: int = 7, **changes: Any) -> list[Contrast]:
    given = data()
    return plan_contrasts(queries, given.principles, given.templates, recipe(**changes), seed)


# The step


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_figures_are_those_of_the_plain_matrix(size: int, cached: bool) -> None:
    """Every prompt, own and other, before every response, one sequence at a time."""
    settings = recipe(query_contrast=0.7, constitutions_per_query=size, gradient_caching=cached, batch_size=4)
    model, batch = model_of("llama"), examples(4, size)
    found = accumulate(model, batch, settings, WORLD).figures
    expected: list[dict[str, float]] = []
    for each in batch:
        with torch.no_grad():
            matrix = response_logprobs_naive(model, (*each.prompt_ids, *each.other_prompt_ids), each.response_ids)
        own, other = matrix[:size].diagonal().exp(), matrix[size:].diagonal().exp()
        query = -(own / (own + other)).log().mean().item()
        metrics = contrast_metrics(matrix[:size])
        expected.append({**metrics, "loss/query": query, "loss": metrics["loss"] + 0.7 * query})
    for key in expected[0]:
        assert found[key] == pytest.approx(sum(row[key] for row in expected) / 4, rel=1e-4, abs=1e-6), key


def test_without_it_the_step_is_the_old_one_to_the_bit() -> None:
    settings, batch = recipe(batch_size=2), examples(2)
    assert settings.query_contrast == 0
    model, old = model_of("llama"), model_of("llama")
    figures = accumulate(model, batch, settings, WORLD).figures
    with lean(old, sharded=False):
        for each in batch:
            packed = pack([(each.prompt_ids, each.response_ids)])
            (matrix,) = cell_logprobs(token_logprobs(old, packed), packed, "mean")
            (sami_loss(matrix) / 2).backward()
    found, expected = gradients(model), gradients(old)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "loss/query" not in figures


# The other query


def test_the_other_query_is_another_one_of_the_same_kind_under_the_same_constitutions() -> None:
    contrasts = plan(query_contrast=1.0, principles_per_constitution=2, constitutions_per_query=4)
    template, texts = data().templates["dialogue"], {query.text for query in QUERIES}
    used = []
    for contrast in contrasts:
        (text,) = [
            text
            for text in texts
            if contrast.other_prompts
            == tuple(template.render(order.lines(), text, "completion") for order in contrast.training_orders)
        ]
        assert text != contrast.query.text
        used.append(text)
    assert set(used) == texts, "every query is the other one of one query"


def test_the_other_query_is_seeded_and_leaves_all_else_as_it_is() -> None:
    one, again, plain = plan(query_contrast=1.0), plan(query_contrast=1.0), plan()
    assert one == again
    assert [dataclasses.replace(contrast, other_prompts=()) for contrast in one] == plain
    others = [[c.other_prompts[0].body for c in plan(query_contrast=1.0, seed=seed)] for seed in (7, 8)]
    assert others[0] != others[1]


def test_kinds_of_task_do_not_mix() -> None:
    kinds = ("dialogue", "summarization")
    queries = [Query(f"q{n}", f"{kinds[n % 2]} number {n}", kinds[n % 2]) for n in range(8)]
    principles = {
        **data().principles,
        "summarization": load_principle_set("diverse").select("summarization", "learned"),
    }
    templates = {kind: load_template(kind) for kind in kinds}
    for contrast in plan_contrasts(queries, principles, templates, recipe(query_contrast=1.0), 0):
        assert all(contrast.query.task in prompt.body for prompt in contrast.other_prompts)


def test_a_kind_with_one_query_is_refused() -> None:
    assert len(plan(QUERIES[:1])) == 1
    with pytest.raises(UserError, match=r"^'query_contrast' holds queries against each other, .* only one of a kind"):
        plan(QUERIES[:1], query_contrast=1.0)


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_baselines_have_none(method: str) -> None:
    settings = recipe(method=method, beta=0.1, query_contrast=1.0)
    assert not settings.contrasts_queries
    assert settings.prompts_per_query == settings.constitutions_per_query
    assert plan(QUERIES[:1], method=method, beta=0.1, query_contrast=1.0)[0].other_prompts == ()
    plain = settings.model_copy(update={"query_contrast": 0.0})
    assert query_work(settings, 20, 8) == query_work(plain, 20, 8)


# Runs


CONTRASTING: dict[str, Any] = {"query_contrast": 0.5, "iterations": 1, "eval_queries": 2}


@pytest.fixture(scope="module")
def contrasting(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contrasting")
    train(recipe(**CONTRASTING), parse_source(str(tiny_model)), data(), folder)
    return folder


def test_rows_keep_the_prompts_of_the_other_query(contrasting: Path, tiny_model: Path) -> None:
    settings, given = recipe(**CONTRASTING), data()
    half = split_queries(given.queries, settings)[0][: settings.queries_needed(1)]
    contrasts = plan_contrasts(half, given.principles, given.templates, settings, seed=settings.seed * 1000 + 1)
    tokenizer = load_tokenizer(parse_source(str(tiny_model)))
    expected = {
        (c.query.id, side): encode_prompt(tokenizer, prompt, settings.max_prompt_tokens).ids
        for c in contrasts
        for side, prompt in enumerate(c.other_prompts)
    }
    rows = read_rows(contrasting / "iteration-1" / "pairs.jsonl")
    assert {(row["query_id"], row["side"]): row["other_prompt_ids"] for row in rows} == expected
    assert all(row["loss/query"] > 0 for row in read_rows(contrasting / "iteration-1" / "metrics.jsonl"))
    assert all(row["other_prompt_ids"] == [] for row in read_rows(contrasting / "unseen.jsonl"))


@pytest.mark.parametrize("place", ["second half", "unseen"])
def test_a_lone_query_is_refused_before_anything_is_sampled_unless_it_is_unseen(
    tiny_model: Path, tmp_path: Path, place: str
) -> None:
    queries = [*some_queries(14), Query("lone", "A post.", "summarization")]
    principles = {
        **data().principles,
        "summarization": load_principle_set("diverse").select("summarization", "learned"),
    }
    given = TrainingData(queries, principles, {kind: load_template(kind) for kind in principles})
    fields = {**CONTRASTING, "batch_size": 2, "batches_at_start": 1, "batch_increment": 2, "iterations": 2}

    def lone_place(settings: Recipe) -> str:
        _, second, unseen = ({q.id for q in part} for part in split_queries(queries, settings))
        return "second half" if "lone" in second else "unseen" if "lone" in unseen else "first half"

    settings = next(s for seed in range(100) if lone_place(s := recipe(**fields, seed=seed)) == place)
    if place == "unseen":
        train(settings, parse_source(str(tiny_model)), given, tmp_path)
        assert "lone" in {row["query_id"] for row in read_rows(tmp_path / "unseen.jsonl")}
        return
    with pytest.raises(UserError, match="only one of a kind"):
        train(settings, parse_source(str(tiny_model)), given, tmp_path)
    assert not list(tmp_path.iterdir())


def begin(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "iteration-1").mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "iteration-1" / "pairs.jsonl").write_text(text, encoding="utf-8")


def test_a_resumed_run_uses_the_prompts_that_are_kept(contrasting: Path, tiny_model: Path, tmp_path: Path) -> None:
    rows = read_rows(contrasting / "iteration-1" / "pairs.jsonl")
    begin(tmp_path / "same", rows)
    begin(tmp_path / "own", [{**row, "other_prompt_ids": row["prompt_ids"]} for row in rows])
    found = {}
    for name in ("same", "own"):
        train(recipe(**CONTRASTING), parse_source(str(tiny_model)), data(), tmp_path / name)
        found[name] = weights(tmp_path / name / "iteration-1" / "model")
    expected = weights(contrasting / "iteration-1" / "model")
    assert all(torch.equal(found["same"][name], expected[name]) for name in expected)
    assert not all(torch.equal(found["own"][name], expected[name]) for name in expected)
    metrics = read_rows(tmp_path / "own" / "iteration-1" / "metrics.jsonl")
    # a query that is held against itself tells nothing
    assert metrics[0]["loss/query"] == pytest.approx(0.6931472, abs=1e-5)


def test_a_run_begun_before_the_field_goes_on_without_it(tiny_model: Path, tmp_path: Path) -> None:
    source, plain = parse_source(str(tiny_model)), recipe(iterations=1)
    train(plain, source, data(), tmp_path / "new")
    older = tmp_path / "older"
    rows = read_rows(tmp_path / "new" / "iteration-1" / "pairs.jsonl")
    begin(older, [{k: v for k, v in row.items() if k not in ("other_prompt_ids", "tail")} for row in rows])
    (older / "inputs.json").write_bytes((tmp_path / "new" / "inputs.json").read_bytes())
    written = (tmp_path / "new" / "recipe.yaml").read_text(encoding="utf-8").splitlines()
    known = [line for line in written if not line.startswith("query_contrast:")]
    assert len(known) == len(written) - 1
    (older / "recipe.yaml").write_text("\n".join(known), encoding="utf-8")
    with pytest.raises(UserError, match=r"a run with query_contrast = 0\.0 was begun here, now it is 0\.5"):
        train(recipe(iterations=1, query_contrast=0.5), source, data(), older)
    train(plain, source, data(), older)
    found, expected = (weights(tmp_path / name / "iteration-1" / "model") for name in ("older", "new"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# Plans


def contrasted(**changes: Any) -> Recipe:
    return recipe_of(query_contrast=0.5, **changes)


def test_planned_tokens_and_operations() -> None:
    """As many rows as prompts, and the base asked after the own query alone."""
    model = architecture_of("llama")
    settings = contrasted(constitutions_per_query=3, batch_size=8, batches_at_start=2, iterations=1)
    parameters = count_parameters(model, settings)
    one = example(0, settings, LENGTHS, SMALL["vocab_size"])
    packed = pack([one.contrasted])
    assert packed.shape == (1, 6, 3)
    (row,) = plan_work(model, parameters, settings, LENGTHS)
    assert row.tokens == 16 * packed.tokens
    assert row.plain_tokens == 16 * 6 * 3 * 28
    forward = 2 * parameters.active * packed.tokens + attention_flops(model, packed.tokens, 20 + 3 * 7)
    forward += 2 * parameters.head * 6 * 3 * LENGTHS.response
    assert row.flops == pytest.approx(16 * 3 * forward)
    (pulled,) = plan_work(model, parameters, settings.model_copy(update={"beta": 0.1}), LENGTHS)
    assert pulled.flops - row.flops == pytest.approx(16 * forward / 2)
    taken = accumulate(model_of("llama"), [one], settings, WORLD)
    assert taken.tokens == packed.tokens


def test_planned_operations_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, architecture = model_of("llama"), architecture_of("llama")
    settings = contrasted(batch_size=1, batches_at_start=1, iterations=1)
    packed = pack([example(0, settings, LENGTHS, SMALL["vocab_size"]).contrasted])
    with FlopCounterMode(display=False) as counter:
        (matrix,) = cell_logprobs(token_logprobs(model, packed), packed, "mean")
        (sami_loss(matrix[:2]) + query_loss(matrix)).backward()
    (row,) = plan_work(architecture, count_parameters(architecture, settings), settings, LENGTHS)
    without_attention = row.flops - 3 * attention_flops(architecture, packed.tokens, 34)
    found = counter.get_flop_counts()["Global"]
    in_batches = sum(flops for operator, flops in found.items() if "bmm" in str(operator))
    assert counter.get_total_flops() - in_batches == pytest.approx(without_attention, rel=0.01)


def test_planned_memory_is_that_which_autograd_saves() -> None:
    settings = contrasted(constitutions_per_query=3)
    model = model_of("llama").train()
    packed = pack([example(0, settings, LENGTHS, SMALL["vocab_size"]).contrasted])

    def run() -> Any:
        with lean(model, sharded=False):
            return token_logprobs(model, packed)

    saved = saved_bytes(model, settings, run)
    found = rehearse_training(architecture_of("llama"), settings, LENGTHS, "cpu", False)
    logits = 4 * len(packed.targets) * SMALL["vocab_size"]
    gradient = 4 * len(packed.input_ids) * len(packed.input_ids[0]) * SMALL["hidden_size"]
    assert found.kept == pytest.approx(saved - logits + gradient, rel=0.03)
    cached = settings.model_copy(update={"gradient_caching": True})
    one = rehearse_training(architecture_of("llama"), cached, LENGTHS, "cpu", False)
    assert one.kept == pytest.approx(found.kept / 6, rel=0.05)
    assert micro_steps(settings, ONE_CPU) == 4
    assert micro_steps(cached, ONE_CPU) == 4 * 6
