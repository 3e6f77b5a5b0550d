"""Holds an LLM judge against pairs whose better answer is known: asks it in both orders, keeps every verdict, makes its card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import costs
from harness.asking import Terms, ask
from harness.engine import machine_has_bfloat16
from harness.judge_costs import GENERATIONS, VERDICTS, Payment
from harness.judges.card import JudgedPair, against_reference, full_card
from harness.judges.family import same_family
from harness.judges.llm import Comparison, Form, Judgement, LLMJudge, Order, combine_orders, load_judge_template
from harness.plan import (
    JUDGING_VERSION,
    ROW_VERSION,
    api_fingerprint,
    draws,
    failed,
    is_local,
    judge_form,
    judge_sampling,
)
from harness.reference import WRITER_TOKENS, LabelledPair, Writing
from harness.rows import Generation, Verdict
from harness.spec import EngineSpec, JudgeSpec, ModelSpec
from harness.store import RowFile, RunLock, fingerprint, write_json
from sami_train.errors import UserError
from sami_train.models import Source, check_source, parse_source, source_fingerprint

if TYPE_CHECKING:
    from harness.models.base import Backend, Budget, Sampling
    from sami_train.prompts import Prompt

SCORE: dict[str, float] = {"a": 1.0, "tie": 0.5, "b": 0.0}
"""The score of a by a reference label."""


@dataclass(frozen=True)
class Judge:
    """An LLM judge, ready to be opened."""

    name: str
    spec: JudgeSpec
    model: ModelSpec
    model_fingerprint: str
    source: Callable[[str], Source]
    engine: EngineSpec = field(default_factory=EngineSpec)
    seed: int = 0
    path: str = ""
    """The path of the model that its training, if any, goes back to."""

    @property
    def model_name(self) -> str:
        """The name of its model."""
        assert self.spec.model is not None
        return self.spec.model

    def sampling(self, form: Form, repeat: int = 0, repeats: int = 1) -> Sampling:
        """How it writes, at one of its `repeats`."""
        return judge_sampling(form, self.seed + repeat, self.spec, self.model, repeats=repeats)

    def open(self, budget: Budget | None = None) -> Backend:
        """Its model, with what it may cost."""
        from harness.models import open_model

        return open_model(self.model_name, self.model, self.source, self.engine, budget=budget)


def judge_of_path(path: str, model: ModelSpec, spec: JudgeSpec, engine: EngineSpec, seed: int = 0) -> Judge:
    """A judge that no specification has: the model at `path`.

    Raises UserError when a local model is not there.
    """
    return Judge(path, spec, model, model_fingerprint(model, engine), lambda _: parse_source(path), engine, seed, path)


def model_fingerprint(model: ModelSpec, engine: EngineSpec) -> str:
    """The hash of all of a model with a path that decides what it says, as `harness.plan` has it."""
    if not is_local(model):
        return api_fingerprint(model)
    source = parse_source(model.path or "")
    check_source(source)
    dtype = model.dtype or engine.dtype
    if dtype == "auto":
        dtype = "bfloat16" if machine_has_bfloat16(engine.device) else "float32"
    return fingerprint([source_fingerprint(source), dtype])


def validate_judge(
    judge: Judge,
    pairs: Sequence[LabelledPair],
    folder: Path,
    *,
    reference: str,
    repeats: int = 1,
    level: float = 0.95,
    max_unscored: float = 0.02,
    payment: Payment | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The judge's card on `pairs`; docs/results.md has its fields.

    Args:
        pairs: each is judged in both orders, `repeats` times; equal texts are ties without a call.
        folder: where verdicts are kept (verdicts.jsonl, so that a stopped command goes on), batches, and the card (card.json).
        reference: where the labels come from, in words.
        max_unscored: share of unscored verdicts above which `passed` is false.
        payment: how a judge behind an API is asked and paid; None: one by one, without a limit, at the shipped prices.
        say: is told of batches.

    Raises:
        CostLimitReached: the next request might have passed the limit of `payment`. Everything paid for is kept.
        UserError: the judge's model or prompt cannot be used, another process works in the folder, the disk is full.
    """
    payment = payment or Payment(costs.load_prices())
    with RunLock(folder):
        rows = _verdicts(judge, pairs, folder / VERDICTS, repeats, payment.terms(judge, folder, say), progress)
        card = _card(judge, pairs, rows, reference, repeats, level, max_unscored)
        card["cost"] = payment.spent(judge, folder)
        write_json(folder / "card.json", card)
    return card


@dataclass(frozen=True)
class _Unit:
    """One question to the judge."""

    pair: LabelledPair
    order: Order
    repeat: int
    fingerprint: str

    @property
    def id(self) -> str:
        return fingerprint(["verdict", self.pair.id, self.order, self.repeat])[:24]

    @property
    def comparison(self) -> Comparison:
        pair = self.pair
        return Comparison(self.id, pair.principles, pair.query, pair.a, pair.b, self.order)


def prompts_for(judge: Judge, pairs: Sequence[LabelledPair]) -> dict[str, LLMJudge]:
    """The judge's prompts, by kind of task. Raises UserError for a judge prompt that cannot be used on these pairs."""
    found = {}
    for task in dict.fromkeys(pair.task for pair in pairs):
        template = load_judge_template(judge.spec.template or task)
        if template.task != task:
            raise UserError(
                f"the judge prompt '{judge.spec.template}' is for {template.task}, but there are pairs of {task}; leave the "
                "template out, and each kind gets its own"
            )
        found[str(task)] = LLMJudge(template, judge.model.style, judge_form(judge.spec, judge.model, template))
    return found


def _units(judge: Judge, judges: dict[str, LLMJudge], pairs: Sequence[LabelledPair], repeats: int) -> Iterator[_Unit]:
    orders: tuple[Order, Order] = ("ab", "ba")
    for pair in pairs:
        one = judges[pair.task]
        shown = [pair.principles, pair.query, pair.a, pair.b]
        for repeat in range(repeats):
            sampling = None if one.form == "choice" else judge.sampling(one.form, repeat, repeats).settings
            asked = [judge.model_fingerprint, one.template.hash, one.form, one.style, sampling]
            for order in orders:
                content = [ROW_VERSION, JUDGING_VERSION, asked, shown, order, repeat]
                yield _Unit(pair, order, repeat, fingerprint(content))


def planned(
    judge: Judge, pairs: Sequence[LabelledPair] | Writing, folder: Path, *, repeats: int, payment: Payment
) -> dict[str, Any]:
    """Tokens and dollars of what is left to ask in `folder`, estimated; fields as of `harness.costs.planned`.

    Args:
        pairs: those that are there, or those that are to be written, which are between the shortest and the longest.
    """
    rows = []
    if isinstance(pairs, Writing):
        file = RowFile(folder / GENERATIONS, Generation)
        rows.append(("responses", pairs.writer.path, pairs.writer.model, *_responses_left(pairs.prompts_left(file))))
        shortest, longest = (pairs.foreseen(file, n * costs.BYTES_PER_TOKEN) for n in (1, WRITER_TOKENS))
    else:
        shortest = longest = list(pairs)
    rows.append(("verdicts", judge.name, judge.model, *_verdicts_left(judge, shortest, longest, folder, repeats)))
    stages = [
        costs.stage_left(stage, name, model, n, low, high, payment.prices, batch=payment.batch)
        for stage, name, model, n, low, high in rows
        if n
    ]
    return costs.in_all(stages, payment.spent(judge, folder))


def _responses_left(prompts: Sequence[Prompt]) -> tuple[int, costs.Tokens, costs.Tokens]:
    n, size = len(prompts), sum(costs.estimated_tokens(prompts))
    return n, costs.Tokens(size, output=n), costs.Tokens(size, output=n * WRITER_TOKENS)


def _verdicts_left(
    judge: Judge, shortest: Sequence[LabelledPair], longest: Sequence[LabelledPair], folder: Path, repeats: int
) -> tuple[int, costs.Tokens, costs.Tokens]:
    form = next(iter(prompts_for(judge, longest).values())).form
    least, most = (0, 0) if form == "choice" else (costs.SHORTEST_VERDICT, judge.sampling(form).max_new_tokens)
    left = [_prompts_left(judge, pairs, folder, repeats) for pairs in (shortest, longest)]
    n, (low, high) = len(left[1]), (sum(costs.estimated_tokens(prompts)) for prompts in left)
    return n, costs.Tokens(low, output=n * least), costs.Tokens(high, output=n * most)


def _prompts_left(judge: Judge, pairs: Sequence[LabelledPair], folder: Path, repeats: int) -> list[Prompt]:
    """What the judge is still to be asked."""
    judges = prompts_for(judge, pairs)
    units = {unit.id: unit for unit in _units(judge, judges, pairs, repeats)}
    kept = _kept(RowFile(folder / VERDICTS, Verdict), units)
    return [
        judges[unit.pair.task].prompt(unit.comparison)
        for i, unit in units.items()
        if (i not in kept or failed(kept[i])) and judges[unit.pair.task].without_asking(unit.comparison) is None
    ]


def _kept(rows: RowFile[Verdict], units: dict[str, _Unit]) -> dict[str, Verdict]:
    """The verdicts that are there on these very questions."""
    return {i: row for i, row in rows.read().items() if i in units and row.fingerprint == units[i].fingerprint}


def _verdicts(
    judge: Judge,
    pairs: Sequence[LabelledPair],
    file: Path,
    repeats: int,
    terms: Terms,
    progress: Callable[[int, int], None],
) -> dict[str, Verdict]:
    """Every verdict by its unit's id, those that are not there yet asked for."""
    judges = prompts_for(judge, pairs)
    units = {unit.id: unit for unit in _units(judge, judges, pairs, repeats)}
    with RowFile(file, Verdict) as rows:
        kept = _kept(rows, units)
        missing = {i for i in units if i not in kept or failed(kept[i])}

        def add(made: list[Verdict]) -> None:
            rows.append(made)
            kept.update({row.id: row for row in made})
            progress(len(kept), len(units))

        add([])
        settled = {i: judges[u.pair.task].without_asking(u.comparison) for i, u in units.items()}
        add([_row(judge, units[i], told) for i, told in settled.items() if told is not None and i in missing])
        open_ids = [i for i, told in settled.items() if told is None]
        if not missing.isdisjoint(open_ids):
            by_id = {i: judges[units[i].pair.task] for i in open_ids}
            form = by_id[open_ids[0]].form
            backend = judge.open(terms.allowance)
            generate = partial(terms.answers, backend, what=judge.name, folder=file.parent / "batches" / file.stem)
            try:
                for repeat in range(repeats):  # each with a seed of its own, as in a run
                    ids = [i for i in open_ids if units[i].repeat == repeat]
                    for batch in ask(
                        backend,
                        by_id,
                        [units[i].comparison for i in ids],
                        judge.sampling(form, repeat, repeats),
                        missing=missing.intersection(ids),
                        generate=partial(generate, repeat=repeat),
                    ):
                        add([_row(judge, units[o.id], o.judgement, o.latency_s, o.usage) for o in batch])
            finally:
                backend.close()
    return kept


def _row(
    judge: Judge, unit: _Unit, judgement: Judgement, latency_s: float = 0.0, usage: dict[str, Any] | None = None
) -> Verdict:
    pair = unit.pair
    return Verdict(
        id=unit.id, fingerprint=unit.fingerprint, judge=judge.name, kind="win_rate", a="a", b="b", task=pair.task,
        query_id=pair.query_id, constitution_id=pair.id, principle_set="reference", split="reference",
        repeat=unit.repeat, order=unit.order, outcome=judgement.outcome, reason=judgement.reason, raw=judgement.raw,
        details=judgement.details, usage=usage or {}, latency_s=latency_s,
    )  # fmt: skip


def _card(
    judge: Judge,
    pairs: Sequence[LabelledPair],
    rows: dict[str, Verdict],
    reference: str,
    repeats: int,
    level: float,
    max_unscored: float,
) -> dict[str, Any]:
    by_pair: dict[str, list[Verdict]] = {}
    for row in rows.values():
        by_pair.setdefault(row.constitution_id, []).append(row)
    judged = [_judged(pair, by_pair.get(pair.id, [])) for pair in pairs]
    labels = {pair.id: SCORE[pair.label] for pair in pairs}
    card = full_card(judged, level)
    prompts = prompts_for(judge, pairs)
    templates = {task: {"name": j.template.name, "hash": j.template.hash} for task, j in prompts.items()}
    paths = {path: {"path": path} for pair in pairs for path in pair.models}
    form = next(iter(prompts.values())).form
    return {
        "judge": judge.name,
        "model": judge.path,
        "style": judge.model.style,
        "form": form,
        "draws": draws(form, judge.sampling(form, 0, repeats)),
        "templates": templates,
        "reference": reference,
        "level": level,
        "repeats": repeats,
        "labels": {label: sum(pair.label == label for pair in pairs) for label in ("a", "b", "tie")},
        "n_queries": len({(pair.task, pair.query_id) for pair in pairs}),
        **card,
        "agreement": against_reference(judged, {(i,): score for i, score in labels.items()}, level),
        "same_family": same_family("judge", paths, {"judge": {"path": judge.path}, **paths}),
        "max_unscored": max_unscored,
        "passed": (card["unscored_rate"] or 0.0) <= max_unscored,
    }


def _judged(pair: LabelledPair, rows: list[Verdict]) -> JudgedPair:
    by_repeat: dict[int, dict[str, Verdict]] = {}
    for row in rows:
        by_repeat.setdefault(row.repeat, {})[row.order] = row
    scores = [
        combine_orders(*(orders[order].outcome if order in orders else None for order in ("ab", "ba")))
        for orders in by_repeat.values()
    ]
    known = [score for score in scores if score is not None]
    score = sum(known) / len(known) if known and len(known) == len(scores) else None
    lengths = len(pair.a.split()), len(pair.b.split())
    return JudgedPair((pair.id,), f"{pair.task}\0{pair.query_id}", tuple(rows), score, *lengths)
