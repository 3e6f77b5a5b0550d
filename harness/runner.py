"""Runs a plan: the only place where tasks, models, judges and statistics meet.

Every row is on disk as soon as it exists. What is there already, in the run's folder or in the cache, is not made again, so
that an interrupted run goes on where it was, and a finished one is read back without loading a model.
"""

from __future__ import annotations

import datetime
import functools
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness import costs
from harness.asking import Terms, ask
from harness.engine import FILE, auto_is_bfloat16, machine_has_bfloat16, read_engine
from harness.judges.card import left_out_of, troubles
from harness.judges.llm import Comparison, Judgement
from harness.judges.verifiable import compare
from harness.looks import as_it_stopped, decided
from harness.plan import (
    GenerationUnit,
    LikelihoodUnit,
    Plan,
    RelevanceUnit,
    Stage,
    UnitT,
    VerdictUnit,
    is_api,
    is_local,
    models_record,
    rate_key,
    seconds_left,
    trained_for,
)
from harness.progress import Display
from harness.rows import Generation, Likelihood, Manifest, Relevance, Row, Verdict, text_hash
from harness.spec import Spec, SpecError, load_spec, model_backend
from harness.store import (
    RowFile,
    RunLock,
    SharedFolder,
    SharedRows,
    cache_folder,
    environment,
    git_state,
    read_json,
    write_atomic,
    write_json,
    write_manifest,
)
from harness.store.files import writing
from harness.validation import check, out_of_reach
from sami_train.errors import UserError
from sami_train.launch import cores
from sami_train.relevance import responding_text

if TYPE_CHECKING:
    from rich.console import Console

    from harness.costs import Allowance
    from harness.judges.llm import LLMJudge
    from harness.models.base import Backend, Completion, Request, Sampling
    from harness.models.local import TransformersBackend


@dataclass(frozen=True)
class RunOutcome:
    """What a run came to: the figures (see docs/results.md), its folder, and whether the demanded quality was reached."""

    results: dict[str, Any]
    folder: Path
    passed: bool


def run(
    spec: Spec | str | Path = "quickstart",
    *,
    console: Console | None = None,
    quiet: bool = False,
    cache: bool = True,
    batch: bool = False,
    max_cost: float | None = None,
    prices: str | Path | None = None,
) -> RunOutcome:
    """Run a specification, or go on with it, and score it.

    Args:
        spec: a specification, the name of a preset, or a file.
        console: where progress and results are shown (standard error and output by default).
        quiet: show nothing.
        cache: share rows and trained models with other runs through the cache folder.
        batch: ask API models through their providers' batch interfaces.
        max_cost: dollars that the run may have cost in all, earlier starts included; see `harness.costs`.
        prices: a file of prices, in the place of those that come with the harness (`harness/prices.yaml`).

    Raises:
        CostLimitReached: the next request might have passed `max_cost`. Everything paid for is kept.
        UserError: the specification is invalid, another process works in the folder, a model cannot be loaded, the disk is
            full. Everything finished is kept.
    """
    spec = spec if isinstance(spec, Spec) else load_spec(str(spec), {})
    from harness.rescore import models_seen

    check(spec)
    folder = Path(spec.output)
    plan = Plan(spec, last_seen=models_seen(folder))
    known = costs.load_prices(prices)
    if batch and not costs.api_models(plan):
        raise costs.InvalidCosts("--batch: no model of this run is behind an API; leave it out")
    with RunLock(folder):
        kept = _finished_results(plan, folder)
        if kept is not None:
            _record(plan)  # the folder may say that a changed run was begun in it, and stopped
        else:
            if silent := out_of_reach(spec):
                raise SpecError(*silent)
            allowance = None if max_cost is None else costs.allowance(plan, folder, max_cost, known)
            with Display(console, quiet=quiet) as display:
                kept = _Runner(plan, folder, display, cache, known, allowance, batch).results()
    return RunOutcome(kept, folder, bool(kept["quality"]["passed"]))


def judge_again(
    plan: Plan,
    judges: Sequence[str],
    *,
    console: Console | None = None,
    quiet: bool = False,
    batch: bool = False,
    max_cost: float | None = None,
    prices: str | Path | None = None,
) -> RunOutcome:
    """Judge the responses that lie in a plan's folder by these of its judges, or go on with it, and score the run.

    `batch`, `max_cost` (of the whole run, what it has cost so far included) and `prices` are those of `run`.

    Raises:
        CostLimitReached: the next request might have passed `max_cost`. Everything paid for is kept.
        UserError: another process works in the folder, a judge's model cannot be loaded, the disk is full. Everything
            finished is kept.
    """
    known = costs.load_prices(prices)
    if batch and not any(is_api(plan.spec.models[m]) for j in judges if (m := plan.spec.judges[j].model)):
        raise costs.InvalidCosts("--batch: none of these judges is behind an API; leave it out")
    with RunLock(plan.folder), Display(console, quiet=quiet) as display:
        allowance = None if max_cost is None else costs.allowance(plan, plan.folder, max_cost, known)
        stages = [stage for stage in plan.stages if stage.judge in judges]
        results = _Runner(plan, plan.folder, display, True, known, allowance, batch).results(stages)
    return RunOutcome(results, plan.folder, bool(results["quality"]["passed"]))


def _record(plan: Plan) -> None:
    """Write down which plan the folder's rows are made by, unless that is what it says."""
    from harness.rescore import PLAN_FILE, plan_record

    record = {"spec_fingerprint": plan.fingerprint, **models_record(plan)}
    if plan_record(plan.folder) != record:
        write_json(plan.folder / PLAN_FILE, record)
    spec = plan.settled().dump()
    file = plan.folder / "spec.yaml"
    if not file.is_file() or file.read_bytes() != spec.encode():
        write_atomic(file, spec)


def _finished_results(plan: Plan, folder: Path) -> dict[str, Any] | None:
    """The results of this very plan, when they are there and nothing is missing."""
    file = folder / "results.json"
    if not file.is_file():
        return None
    results = read_json(file)
    if not isinstance(results, dict) or results.get("spec_fingerprint") != plan.fingerprint:
        return None
    stages = as_it_stopped(plan).stages
    return results if all(stage.done(folder) >= stage.expected() for stage in stages) else None


class _Runner:
    """One run in progress: the plan, its folder, the model in memory."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        display: Display,
        cache: bool,
        prices: costs.Prices,
        allowance: Allowance | None,
        batch: bool,
    ) -> None:
        self.plan, self.spec, self.folder, self.display, self.cache = plan, plan.spec, folder, display, cache
        self.prices, self.terms = prices, Terms(batch, allowance, display.note)
        self._open: tuple[str, Backend] | None = None
        self._engine: dict[str, Any] = {}

    def results(self, stages: Sequence[Stage] | None = None) -> dict[str, Any]:
        """Run every stage (of `stages`) that is not finished, then score and write the report."""
        from harness.report.markdown import render_markdown
        from harness.rescore import replaced, results_of

        if stages is None and (sentence := replaced(self.plan)):
            self.display.note(sentence)
        _record(self.plan)
        self._tell_of_other_judges()
        if stages is None:
            self._run_until_decided()
        else:
            self._run_stages(stages)
        self._close_model()
        results = {
            **results_of(self.plan, prices=self.prices),
            "created": _now().isoformat(timespec="seconds"),
        }
        write_json(self.folder / "manifest.json", self._run_manifest(results))
        write_atomic(self.folder / "report.md", render_markdown(results))
        write_json(self.folder / "results.json", results)
        return results

    def _run_until_decided(self) -> None:
        """Run every stage; where the specification has a rule for that, on ever more queries until the rule is met."""
        from harness.rescore import score_inputs

        whole = self.plan
        for n in whole.decisions or (None,):
            self.plan = whole if n is None else whole.first(n)
            self._run_stages(self.plan.stages)
            if n is not None and decided(score_inputs(self.plan)):
                self.display.note(f"statistics.stop: {n} of {len(whole.order)} queries are enough")
                return

    def _run_stages(self, stages: Sequence[Stage]) -> None:
        rates = known_rates()
        self.display.plan({s.name: seconds_left(self.plan, s, s.done(self.folder), rates) for s in stages})
        for stage in stages:
            self._run_stage(stage)

    def _tell_of_other_judges(self) -> None:
        there = {place.name for place in (self.folder / "verdicts").glob("*") if place.is_dir()}
        if others := sorted(there - self.spec.judges.keys()):
            self.display.note(
                f"the folder has verdicts of {', '.join(others)}, which the specification does not name (harness rejudge adds such "
                f"judges): they stay, and are not counted; 'harness rejudge {self.folder} --judge ...' counts them again"
            )

    def _run_stage(self, stage: Stage) -> None:
        started = _now()
        began = time.monotonic()
        before = at_start = stage.done(self.folder)
        if before < stage.expected() and stage.kind != "train":
            self._take_from_cache(stage)
            before = stage.done(self.folder)
        self.display.stage(stage.name, before, stage.expected())
        if at_start == stage.expected() and self._manifest_file(stage).is_file():
            pass
        elif before == stage.expected():
            self._write_manifest(stage, started, before)
        else:
            {
                "train": self._train,
                "generate": self._generate,
                "likelihood": self._likelihood,
                "relevance": self._relevance,
                "judge": self._judge,
            }[stage.kind](stage)
            after = stage.done(self.folder)
            self._write_manifest(stage, started, after)
            if after > before and self.cache:
                remember_rate(rate_key(self.plan, stage), (time.monotonic() - began) / (after - before))
            if sentence := self._told_of_failures(stage):
                self.display.note(sentence)
        self.display.finish(stage.name)

    def _told_of_failures(self, stage: Stage) -> str | None:
        """What to tell of a stage's failures: how many, the commonest with its count, and whether another run tries again."""
        found = troubles(stage.all_rows(self.folder).values() if stage.kind in ("generate", "judge") else ())
        if not found:
            return None
        sentence, n = found.most_common(1)[0]
        what = "verdicts are unscored" if stage.kind == "judge" else "responses failed"
        told = f"{stage.name}: {found.total()} of {stage.expected()} {what}, {n} of them: {sentence}"
        is_in_vain = stage.kind == "generate" and stage.model is not None and self._is_recorded(stage.model)
        again = stage.done(self.folder) < stage.expected() and not is_in_vain
        return f"{told}; run again to retry what failed" if again else told

    def _is_recorded(self, model: str) -> bool:
        return model_backend(self.spec.models[model].path or "") == "recorded"

    # Stages

    def _train(self, stage: Stage) -> None:
        target = self.folder / stage.path
        shared = SharedFolder("trained", stage.fingerprint) if self.cache else None
        if shared is None or not shared.take(target):
            if trained_for(target) != stage.fingerprint or (target / "summary.json").is_file():
                with writing(target):  # what lies there was trained otherwise, or lost its model
                    (target / "fingerprint").unlink(missing_ok=True)
                    if target.exists():
                        shutil.rmtree(target)
                write_atomic(target / "fingerprint", stage.fingerprint + "\n")
            self._train_in(stage, target)
            if shared is not None:
                shared.give(target)
        write_atomic(target / "fingerprint", stage.fingerprint + "\n")

    def _train_in(self, stage: Stage, place: Path) -> None:
        from sami_train.distributed import World
        from sami_train.launch import train_on_many
        from sami_train.trainer import TrainingData, train

        assert stage.model is not None
        self._close_model()
        engine = self._engine_settings()
        device = str(engine["device"])
        name, model = stage.model, self.spec.models[stage.model]
        assert model.train is not None
        data = TrainingData(
            self.plan.training_queries(name),
            self.plan.training_principles(name),
            self.plan.training_templates(name),
            self.plan.training_provenance(name),
        )
        recipe = self.plan.recipe(name)
        devices = self._devices(device) if recipe.method == "sami" else 1  # the baselines train in one process
        many = {"devices": devices, "kind": device, "threads": engine["threads"]}
        how = {"world": World(device=device)} if devices == 1 else many
        with writing(place):
            (train if devices == 1 else train_on_many)(
                recipe,
                self.plan.source(model.train.from_),
                data,
                place,
                trust_remote_code=self.spec.models[model.train.from_].trust_remote_code,
                note=self.display.note,
                progress=lambda what, done, total, figure: self.display.part(stage.name, what, done, total, figure),
                **how,
            )

    def _devices(self, device: str) -> int:
        """How many processes train together."""
        wanted = self.spec.engine.devices
        if device == "cuda":
            import torch

            there = torch.cuda.device_count()
            if wanted != "auto" and wanted > there:
                raise UserError(f"engine.devices: {wanted} are wanted, and torch finds {there} GPUs here; lower it")
            return there if wanted == "auto" else wanted
        return 1 if wanted == "auto" else wanted

    def _generate(self, stage: Stage) -> None:
        from harness.models.base import Asked, Request

        assert stage.model is not None
        sampling = self.plan.sampling(stage.model, stage.task)
        units = {unit.id: cast(GenerationUnit, unit) for unit in stage.units}
        done = set(stage.finished_rows(self.folder))
        backend = self._model(stage.model)

        template, style = self.plan.templates[stage.task], self.spec.models[stage.model].style
        recorded = self._is_recorded(stage.model)  # answers alone, as they came
        reasons = self.spec.sampling.reasoning and not recorded

        def row(made: Completion) -> Generation:
            unit = units[made.id]
            reasoning, text = template.split_answer(made.text) if reasons else ("", made.text)
            stopped = template.answer_end(text) if reasons else None
            text = text if stopped is None else text[:stopped].rstrip()
            end = None if recorded else template.run_on(text, len(unit.constitution.elements), style, reasoning=reasons)
            return Generation(
                **_names(stage, unit),
                fingerprint=unit.fingerprint,
                prompt_hash=unit.prompt.hash,
                prompt=made.prompt,
                text=text if end is None else text[:end].rstrip(),
                reasoning="\n\n".join(part for part in (made.reasoning, reasoning) if part),
                tail="" if end is None else text[end:],
                finish_reason=made.finish_reason if stopped is None and end is None else "stop",
                n_prompt_tokens=made.n_prompt_tokens,
                n_tokens=made.n_tokens,
                truncated=made.truncated,
                error=made.error,
                usage={name: value for name, value in made.usage.items() if name != "latency_s"},
            )

        def batches() -> Iterator[list[Completion]]:
            for block, seeded in self._blocks(stage, units.values(), sampling):
                requests = [
                    Request(u.id, u.prompt, Asked(u.query.id, u.query.text, tuple(u.constitution.lines()), u.epoch))
                    for u in block
                ]
                yield from self._answers(stage, backend, 0, requests, seeded, done)

        self._write(stage, ([row(c) for c in batch if c.id not in done] for batch in batches()), len(done))

    def _blocks(
        self, stage: Stage, units: Iterable[UnitT], sampling: Sampling
    ) -> Iterator[tuple[list[UnitT], Sampling]]:
        """The units whose batches are composed together, with a seed for each block: all of them where no batch is composed."""
        assert stage.model is not None
        every = list(units)
        local = is_local(self.spec.models[stage.model])
        for number, block in enumerate(self.plan.blocks(every) if local else [every]):
            yield block, replace(sampling, seed=sampling.seed + BLOCK_SEED * number)

    def _likelihood(self, stage: Stage) -> None:
        assert stage.model is not None
        missing = self._missing(stage)
        generations = self._generations(stage.model, stage.task)
        backend = cast("TransformersBackend", self._model(stage.model))
        style = self.spec.models[stage.model].style
        sampling = self.plan.sampling(stage.model, stage.task)
        limit = min(sampling.max_prompt_tokens, backend.prompt_room(sampling.max_new_tokens))  # as they were sampled

        def rows() -> Iterator[list[Row]]:
            for unit in cast("list[LikelihoodUnit]", missing):
                prompts = [backend.encode(response.prompt.without_prefill(), limit) for response in unit.responses]
                texts = [generations[response.id].text for response in unit.responses]
                responses = [backend.response_ids(text, style) if text else [] for text in texts]
                if not all(responses):
                    responses = [ids or backend.response_ids("\n", style) for ids in responses]
                yield [
                    Likelihood(
                        **_names(stage, unit), fingerprint=unit.fingerprint, texts=[text_hash(text) for text in texts],
                        logprob_sums=backend.logprob_sums(prompts, responses), n_tokens=[len(ids) for ids in responses],
                    )
                ]  # fmt: skip

        self._write(stage, rows(), stage.expected() - len(missing))

    def _relevance(self, stage: Stage) -> None:
        """The responses to a query are scored together, whatever of them is done."""
        assert stage.model is not None
        scorer, style = stage.model, self.plan.model(stage.model).style
        missing = {unit.id for unit in self._missing(stage)}
        generations = self._generations(stage.writer, stage.task)
        by_query: dict[str, list[RelevanceUnit]] = {}
        for unit in cast("tuple[RelevanceUnit, ...]", stage.units):
            if unit.response.id in generations:
                by_query.setdefault(unit.response.query.id, []).append(unit)
        backend = cast("TransformersBackend", self._model(scorer))

        def rows() -> Iterator[list[Row]]:
            for units in by_query.values():
                if missing.isdisjoint(unit.id for unit in units):
                    continue
                query, others = units[0].response.query, units[0].others
                found = backend.relevance_logprobs(
                    [query.text, *(other.text for other in others)],
                    [responding_text(generations[u.response.id].text, query) for u in units],
                    style,
                    self.spec.sampling.max_prompt_tokens,
                )
                yield [
                    Relevance(
                        **_names(stage, unit.response) | {"id": unit.id, "model": stage.writer},
                        fingerprint=unit.fingerprint,
                        texts=[text_hash(generations[unit.response.id].text)],
                        scorer=scorer,
                        others=[other.id for other in others],
                        logprobs=logprobs,
                    )
                    for unit, logprobs in zip(units, found, strict=True)
                    if unit.id in missing
                ]

        self._write(stage, rows(), stage.expected() - len(missing))

    def _judge(self, stage: Stage) -> None:
        missing = cast("list[VerdictUnit]", self._missing(stage))
        texts = {
            row.id: row
            for model in dict.fromkeys(stage.pair)
            for task in self.plan.tasks
            for row in self._generations(model, task).values()
        }
        can_be_judged = {u.id for u in stage.units if isinstance(u, VerdictUnit) and {u.a.id, u.b.id} <= texts.keys()}
        untold = [unit for unit in missing if unit.id not in can_be_judged]
        why = self._why_missing(stage) if untold else {}
        rows = [self._verdict(stage, unit, {}, self._no_response(stage, unit, texts, why)) for unit in untold]
        wanted = [unit for unit in missing if unit.id in can_be_judged]
        if self.spec.judges[stage.judge].kind == "verifiable":
            judged: Iterable[list[Row]] = (
                [self._checked(stage, unit, texts) for unit in wanted[start : start + CHECKED_ROWS]]
                for start in range(0, len(wanted), CHECKED_ROWS)
            )
        else:
            every = [cast(VerdictUnit, unit) for unit in stage.units if unit.id in can_be_judged]
            ids = {unit.id for unit in wanted}
            judged = (
                batch
                for repeat in range(self.spec.judges[stage.judge].epochs)
                for batch in self._asked(stage, [unit for unit in every if unit.repeat == repeat], ids, texts, repeat)
            )
        self._write(
            stage,
            (batch for part in ([rows] if rows else [], judged) for batch in part),
            stage.expected() - len(missing),
        )

    def _why_missing(self, stage: Stage) -> dict[str, str]:
        """Why the responses that a stage of judging lacks are missing, by their ids."""
        stages = [
            self.plan.stage("generate", model=model, task=task)
            for model in dict.fromkeys(stage.pair)
            for task in self.plan.tasks
        ]
        return {i: row.error for s in stages for i, row in s.all_rows(self.folder).items() if row.error}

    def _no_response(
        self, stage: Stage, unit: VerdictUnit, texts: Mapping[str, Generation], why: Mapping[str, str]
    ) -> Judgement:
        """No verdict, for want of a response, with the reason of that."""
        model, response = next((m, r) for m, r in zip(stage.pair, (unit.a, unit.b), strict=True) if r.id not in texts)
        # A recorded response that is missing will be missing again.
        kind = "note" if self._is_recorded(model) else "error"
        told = f"no response of {model}: {why.get(response.id, 'there is none')}"
        return Judgement("unscored", "no_response", details={kind: told})

    def _checked(self, stage: Stage, unit: VerdictUnit, texts: dict[str, Generation]) -> Row:
        outcome, details = compare(
            unit.constitution,
            texts[unit.a.id].text,
            texts[unit.b.id].text,
            shown=unit.shown,
            principle_set=unit.a.principle_set,
        )
        return self._verdict(stage, unit, texts, Judgement(outcome, details=details))

    def _asked(
        self,
        stage: Stage,
        units: Sequence[VerdictUnit],
        missing: set[str],
        texts: dict[str, Generation],
        repeat: int,
    ) -> Iterator[list[Row]]:
        """Verdicts on the `missing` ones of `units`, in batches made of all of them: what is there already changes nothing.

        Each repeat has a seed of its own, so that a server which honours seeds does not give one answer again and again.
        """
        judges = {task: self.plan.judge(stage.judge, task) for task in self.plan.tasks}
        sampling = self.plan.judge_sampling(stage.judge)
        for block, seeded in self._blocks(stage, units, replace(sampling, seed=sampling.seed + repeat)):
            yield from self._asked_together(stage, block, missing, texts, repeat, judges, seeded)

    def _asked_together(
        self,
        stage: Stage,
        units: Sequence[VerdictUnit],
        missing: AbstractSet[str],
        texts: dict[str, Generation],
        repeat: int,
        judges: Mapping[str, LLMJudge],
        sampling: Sampling,
    ) -> Iterator[list[Row]]:
        """Verdicts of one block. Those that need no asking come with those asked before and after them: rows are a sample."""
        assert stage.model is not None
        comparisons: dict[str, tuple[VerdictUnit, Comparison]] = {}
        settled: list[tuple[int, Row]] = []
        for unit in units:
            comparison = Comparison(
                unit.id,
                tuple(unit.constitution.lines()),
                unit.a.query.text,
                texts[unit.a.id].text,
                texts[unit.b.id].text,
                unit.order,
            )
            judgement = judges[unit.a.task].without_asking(comparison)
            if judgement is None:
                comparisons[unit.id] = (unit, comparison)
            elif unit.id in missing:
                settled.append((len(comparisons), self._verdict(stage, unit, texts, judgement)))
        if missing & comparisons.keys():
            backend = self._model(stage.model)
            places = {id_: number for number, id_ in enumerate(comparisons)}
            for batch in ask(
                backend,
                {i: judges[unit.a.task] for i, (unit, _) in comparisons.items()},
                [c for _, c in comparisons.values()],
                sampling,
                missing=missing & comparisons.keys(),
                generate=functools.partial(self._answers, stage, backend, repeat),
            ):
                reached = max((places[made.id] for made in batch), default=-1)
                yield [
                    *(row for place, row in settled if place <= reached),
                    *(
                        self._verdict(stage, comparisons[made.id][0], texts, made.judgement, made.latency_s, made.usage)
                        for made in batch
                    ),
                ]
                settled = [(place, row) for place, row in settled if place > reached]
        yield [row for _, row in settled]

    def _answers(
        self,
        stage: Stage,
        backend: Backend,
        repeat: int,
        requests: Sequence[Request],
        sampling: Sampling,
        done: AbstractSet[str],
    ) -> Iterator[list[Completion]]:
        """What the model says to the requests that are not done; see `harness.asking.Terms`."""
        folder = self.folder / "batches" / stage.path.with_suffix("")
        return self.terms.answers(backend, requests, sampling, done, what=stage.name, folder=folder, repeat=repeat)

    def _verdict(
        self,
        stage: Stage,
        unit: VerdictUnit,
        texts: Mapping[str, Generation],
        judgement: Judgement,
        latency_s: float = 0.0,
        usage: dict[str, Any] | None = None,
    ) -> Verdict:
        return Verdict(
            id=unit.id, fingerprint=unit.fingerprint, judge=stage.judge, kind=stage.measure, a=stage.pair[0], b=stage.pair[1],
            task=unit.a.task, query_id=unit.a.query.id, constitution_id=unit.a.constitution.id,
            judged_by=unit.judged_by, texts=[text_hash(texts[r.id].text) for r in unit.responses if r.id in texts],
            principle_set=unit.a.principle_set, split=unit.a.split, epoch=unit.a.epoch, repeat=unit.repeat,
            order=unit.order,
            outcome=judgement.outcome, reason=judgement.reason, raw=judgement.raw, details=judgement.details,
            usage=usage or {}, latency_s=latency_s,
        )  # fmt: skip

    # Rows

    def _missing(self, stage: Stage) -> list[Any]:
        finished = stage.finished_rows(self.folder)
        return [unit for unit in stage.units if unit.id not in finished]

    def _write(self, stage: Stage, batches: Iterable[Sequence[Row]], done: int) -> None:
        """Append rows as they come, and give the stage's good ones to the cache at its end."""
        with RowFile(self.folder / stage.path, stage.row_type) as file:
            for batch in batches:
                file.append(batch)
                done += len(batch)
                self.display.advance(stage.name, done)
        if self._is_shared(stage):
            self._shared(stage).give(stage.finished_rows(self.folder).values())

    def _is_shared(self, stage: Stage) -> bool:
        """Whether other runs may take a stage's rows: not those of a model behind an API, which may change under its name."""
        if not self.cache or stage.model is None or stage.kind not in ("generate", "likelihood"):
            return False
        return not is_api(self.spec.models[stage.model])

    def _shared(self, stage: Stage) -> SharedRows[Row]:
        assert stage.model is not None
        key = f"{self.plan.model_fingerprints[stage.model]}-{stage.kind}"
        return SharedRows("sealed-rows", key, stage.row_type)

    def _take_from_cache(self, stage: Stage) -> None:
        """Copy rows that another run made, under the ids and names of this one."""
        if not self._is_shared(stage):
            return
        missing = self._missing(stage)
        taken = {row.fingerprint: row for row in self._shared(stage).take({unit.fingerprint for unit in missing})}
        is_on_texts = stage.on_texts_of(self.folder)
        rows = [
            taken[unit.fingerprint].model_copy(update=_names(stage, unit))
            for unit in missing
            if unit.fingerprint in taken and is_on_texts(unit, taken[unit.fingerprint])
        ]
        with RowFile(self.folder / stage.path, stage.row_type) as file:
            file.append(rows)

    def _generations(self, model: str, task: str) -> dict[str, Generation]:
        stage = self.plan.stage("generate", model=model, task=task)
        return cast("dict[str, Generation]", stage.finished_rows(self.folder))

    # Models

    def _model(self, name: str) -> Backend:
        if self._open is None or self._open[0] != name:
            self._close_model()
            from harness.models import open_model

            engine = self.spec.engine
            model = self.plan.model(name)
            if is_local(model):
                engine = engine.model_copy(update={"device": self._engine_settings()["device"]})
                model = model.model_copy(update={"dtype": self.plan.dtype(name)})
            with self.display.loading(name):
                backend = open_model(name, model, self.plan.source, engine, budget=self.terms.allowance)
            self._open = (name, backend)
        return self._open[1]

    def _close_model(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _engine_settings(self) -> dict[str, Any]:
        """Device, CPU threads, and whether ``auto`` is bfloat16: chosen once per run folder, so that a resumed run computes as it
        began."""
        if self._engine:
            return self._engine
        import torch

        from sami_train.models import default_device

        file, wanted = self.folder / FILE, self.spec.engine
        known = read_engine(self.folder)
        device = known.get("device", default_device()) if wanted.device == "auto" else wanted.device
        if device.startswith("cuda") and not torch.cuda.is_available():
            place = (
                f"{file}: the run was begun on '{device}'" if wanted.device == "auto" else f"engine.device: '{device}'"
            )
            raise UserError(f"{place}, but torch finds no GPU here; set engine.device to cpu (--device cpu)")
        threads = known.get("threads") if wanted.threads == "auto" else wanted.threads
        begun, here = auto_is_bfloat16(self.folder, wanted), machine_has_bfloat16(device)
        if begun != here:
            formats = ("bfloat16, which this machine has only slowly", "float32") if begun else ("float32", "bfloat16")
            self.display.note(
                f"{file}: the run was begun in {formats[0]}, and what is 'auto' goes on in it; set engine.dtype and a recipe's "
                f"bf16 to begin again in {formats[1]}"
            )
        engine = {"device": device, "threads": threads or best_threads(), "bfloat16": begun}
        if engine != known:
            write_json(file, engine)
        torch.set_num_threads(engine["threads"])
        self._engine = engine
        return engine

    # Records

    def _write_manifest(self, stage: Stage, started: datetime.datetime, done: int) -> None:
        git, dirty = git_state(Path(__file__).resolve().parent)
        bad = stage.expected() - done
        write_manifest(
            self._manifest_file(stage),
            Manifest(
                stage=stage.name,
                fingerprint=stage.fingerprint or self.plan.fingerprint,
                inputs={
                    "kind": stage.kind,
                    "model": stage.model,
                    "task": stage.task,
                    "judge": stage.judge,
                    "left_out": sorted(
                        {name for row in stage.all_rows(self.folder).values() for name in left_out_of(row)}
                        if stage.kind in ("generate", "judge")
                        else ()
                    ),
                },
                versions=environment(),
                git=git,
                dirty=dirty,
                seeds={"seed": self.spec.seed},
                device=self._engine.get("device") if stage.model else None,
                engine=getattr(self._open[1], "dtype", None) if self._open and self._open[0] == stage.model else None,
                started=started,
                finished=_now(),
                expected=stage.expected(),
                done=done,
                failed=bad,
            ),
        )

    def _manifest_file(self, stage: Stage) -> Path:
        return self.folder / "manifests" / f"{stage.path.with_suffix('').as_posix().replace('/', '--')}.json"

    def _run_manifest(self, results: dict[str, Any]) -> dict[str, Any]:
        git, dirty = git_state(Path(__file__).resolve().parent)
        return {
            "spec_fingerprint": results["spec_fingerprint"],
            "created": results["created"],
            "versions": environment(),
            "git": git,
            "dirty": dirty,
            **models_record(self.plan),
            "tasks": {
                name: {"source": data.source, "hash": data.hash, "dropped": data.dropped}
                for name, data in self.plan.tasks.items()
            },
            "principle_sets": {name: {"version": s.version, "hash": s.hash} for name, s in self.plan.sets.items()},
        }


CHECKED_ROWS = 256
"""Verdicts of a verifiable judge that are written together."""
BLOCK_SEED = 7919
"""What a block's number adds to the seed, so that no two blocks are sampled alike."""


def _names(stage: Stage, unit: Any) -> dict[str, Any]:
    """What places a row in this run. Another run's row of the same content may have other names."""
    names = {"id": unit.id, "model": stage.model, "task": stage.task}
    names |= {"principle_set": unit.principle_set, "split": unit.split}
    if isinstance(unit, LikelihoodUnit):
        constitutions = [response.constitution.id for response in unit.responses]
        return {**names, "query_id": unit.query_id, "constitution_ids": constitutions}
    return {**names, "query_id": unit.query.id, "constitution_id": unit.constitution.id, "epoch": unit.epoch}


def best_threads() -> int:
    """All the cores this process may use, unless a short probe finds one thread faster (a busy machine)."""
    import torch

    count = cores()
    if count == 1:
        return 1
    matrix = torch.randn(512, 512)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        for _ in range(4):
            matrix @ matrix
        return time.perf_counter() - began

    # In turns, and the best of each: a moment's load of another process must not decide about the whole run.
    times = [(seconds(count), seconds(1)) for _ in range(12)]
    return count if min(many for many, _ in times) < min(one for _, one in times) else 1


LONGEST_RATE_S = 1e9
"""Seconds per unit; what is not below it is not a rate that a stage had."""


def remember_rate(key: str, seconds: float) -> None:
    """Keep the seconds per unit of a kind of stage for the next plan's estimate. Never a reason to stop."""
    rates = known_rates()
    rates[key] = seconds
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_json(cache_folder() / "rates.json", rates)
    except (OSError, UserError):
        return


def known_rates() -> dict[str, float]:
    """Seconds per unit from earlier runs on this machine, by `rate_key`."""
    try:
        value = json.loads((cache_folder() / "rates.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    rates = value.items() if isinstance(value, dict) else ()
    return {k: float(v) for k, v in rates if type(v) in (int, float) and 0 <= v < LONGEST_RATE_S}


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
