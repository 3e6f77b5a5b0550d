"""The training loop: sample contrasts from the current model, take a few steps from the base, repeat.

Iteration n starts from the base weights and learns from responses of the model of iteration n - 1, sampled on the other half
of the queries (Fränken et al., NeurIPS 2024, algorithm 1). Every artefact is kept in the run's folder:

    recipe.yaml  inputs.json  unseen.jsonl  unseen-before.json  summary.json
    iteration-1/{pairs.jsonl, metrics.jsonl, evaluations.jsonl, samples.jsonl, summary.json, model/}  iteration-2/...

Whatever is finished is never done again: pairs are kept row by row, an iteration by its summary, steps by checkpoints
(`save_steps`), and an interrupted run ends with the weights of an undisturbed one, to the bit.
"""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sami_train.adapters import require_adapters
from sami_train.config import Recipe
from sami_train.constitutions import Principle, distinct
from sami_train.data import Query
from sami_train.distributed import World
from sami_train.errors import UserError
from sami_train.files import append_rows, read_json, read_rows, replace_rows, write_json
from sami_train.memory import give_back
from sami_train.models import Source
from sami_train.optimizers import require_optimizer
from sami_train.pairs import Contrast, Example, passes, plan_contrasts, split_queries
from sami_train.prompts import Template
from sami_train.run_folder import alone, check_nodes, claim, finished, inputs_of
from sami_train.selection import most_informative
from sami_train.text import counted
from sami_train.watch import Alarm, alarms

Progress = Callable[[str, int, int, str], None]
"""Called as (what, done, total, figure): for example ("iteration 1 steps", 2, 4, "loss 0.671")."""


@dataclass(frozen=True)
class TrainingData:
    """What a recipe is applied to: training queries, learned principles and templates by kind of task.

    `provenance` says where they come from (files, hashes, principle sets), for the model card.
    """

    queries: Sequence[Query]
    principles: Mapping[str, Sequence[Principle]]
    templates: Mapping[str, Template]
    provenance: Mapping[str, Any] = field(default_factory=dict)


def train(
    recipe: Recipe,
    source: Source,
    data: TrainingData,
    folder: Path,
    *,
    world: World | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run every iteration that is not finished in `folder`; the last one's model is in ``iteration-N/model``.

    Args:
        world: this process among all that train together (`sami_train.distributed.start`); None is one process on the CPU.
        progress, note: how far it is, and sentences worth reading; called in the first process alone.

    Returns:
        The summary that is also written to ``summary.json``.

    Raises:
        UserError: too few queries, nothing left after filtering, a loss that is not finite, a limit of `stop_if`, a full
            disk, a folder that holds another run, a package that is missing.
    """
    world = world or World()
    inputs = inputs_of(source, data, world, intents=recipe.needs_intents)
    check_nodes(folder, recipe, inputs, world)
    if summary := finished(folder, recipe, inputs):
        return summary
    _require_packages(recipe, world)
    _check_principles(data)
    first, second, unseen = split_queries(data.queries, recipe)
    for number in range(1, recipe.iterations + 1):  # what it refuses
        half = (first if number % 2 else second)[: recipe.queries_needed(number)]
        plan_contrasts(half, data.principles, data.templates, recipe, seed=0)
    if not world.main:
        progress, note = (lambda *_: None), (lambda _: None)
    if recipe.save_steps and recipe.method != "sami":
        note(f"the method '{recipe.method}' keeps no checkpoints inside an iteration: save_steps does nothing")
    with ExitStack() as stack:
        stack.enter_context(alone(folder, world))
        claim(folder, recipe, inputs, world)
        trackers = None
        if recipe.report_to and world.main:
            from sami_train.tracking import open_trackers

            trackers = stack.enter_context(
                open_trackers(
                    recipe.report_to,
                    project="sami",
                    run=recipe.name,
                    config=recipe.model_dump(mode="json"),
                    folder=folder,
                    note=note,
                )
            )
        run = _Run(recipe, source, data, folder, world, trust_remote_code, progress, note, trackers)
        for iteration in range(1, recipe.iterations + 1):
            run.iteration(iteration, first if iteration % 2 else second, unseen)
            world.barrier()
    iterations = [read_json(folder / f"iteration-{n}" / "summary.json") or {} for n in range(1, recipe.iterations + 1)]
    summary = {
        "recipe": recipe.name,
        "method": recipe.method,
        "from": str(source),
        "iterations": [{k: v for k, v in row.items() if k != "evaluation"} for row in iterations],
        "evaluation": iterations[-1].get("evaluation"),
    }
    if world.main:
        write_json(folder / "summary.json", summary)
    return summary


def _require_packages(recipe: Recipe, world: World) -> None:
    """Say what is missing before anything is loaded or sampled."""
    from sami_train.sampling import uses_vllm
    from sami_train.scorer import check_scorer
    from sami_train.tracking import require_trackers

    require_trackers(recipe.report_to)
    require_adapters(recipe)
    require_optimizer(recipe)
    uses_vllm(recipe, world)
    check_scorer(recipe, world)
    if recipe.method != "sami":
        from sami_train.baselines import require_trl

        require_trl()
        if world.size > 1:
            raise UserError(f"the method '{recipe.method}' trains in one process; start it without torchrun")


def _check_principles(data: TrainingData) -> None:
    """Raises UserError where two principles of one kind of task have the same id, as those of two sets may."""
    for kind, principles in data.principles.items():
        if len(distinct(principles)) < len(principles):
            raise UserError(f"a principle of {kind} is there twice; give each once")


REFERENCE_QUERIES = 4
"""Queries of a forward pass without gradients for each one of a micro-step, which keeps far more."""


class _Run:
    """One call of `train`: the parts of an iteration, one after another."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        data: TrainingData,
        folder: Path,
        world: World,
        trust_remote_code: bool,
        progress: Progress,
        note: Callable[[str], None],
        trackers: Any,
    ) -> None:
        from sami_train.sampling import Sampler
        from sami_train.scorer import Scorer
        from sami_train.weights import Weights

        self.recipe, self.source, self.data, self.folder, self.world = recipe, source, data, folder, world
        self.progress, self.note, self.trackers = progress, note, trackers
        self.weights = Weights(
            recipe,
            source,
            world,
            trust_remote_code=trust_remote_code,
            loading=lambda name, done: progress("loading", int(done), 1, name),
        )
        self.scorer = Scorer.of(recipe, data.queries, world, trust_remote_code=trust_remote_code)
        self.sampler = Sampler(
            recipe,
            data.templates,
            self.weights.tokenizer,
            world,
            self.weights.for_sampling,
            trust_remote_code=trust_remote_code,
            release=self.weights.release,
            scorer=self.scorer,
            max_prompt_tokens=self.weights.max_prompt_tokens,
        )

    def iteration(self, number: int, half: Sequence[Query], unseen: Sequence[Query]) -> None:
        place = self.folder / f"iteration-{number}"
        if (place / "summary.json").is_file():
            return
        if self.world.main:
            place.mkdir(parents=True, exist_ok=True)
        self.world.barrier()
        recipe, label = self.recipe, f"iteration {number}"
        if number == 1 and not (place / "pairs.jsonl").exists():
            self._check_model()
        sampled_from = self.source
        if number > 1:
            sampled_from = Source("folder", str(self.folder / f"iteration-{number - 1}" / "model"))
        contrasts = self._contrasts(recipe, half[: recipe.queries_needed(number)], seed=recipe.seed * 1000 + number)
        examples = self._sample(contrasts, sampled_from, place / "pairs.jsonl", f"{label} responses")
        kept = self._selected(contrasts, examples, sampled_from, place / "pairs.jsonl", number)
        filtered: dict[str, int] = {rule: sum(e.filtered == rule for e in examples) for rule in recipe.rules}
        self._check_pairs(place, kept, filtered, number)
        training = _Training(self, number, place, kept, filtered, self._unseen(unseen))
        summary = {"iteration": number, "queries": len(contrasts), **training.run()}
        try:
            self.weights.save(place / "model", summary, self.data.provenance)
        except UserError:
            training.keep()
            raise
        if self.world.main:
            write_json(place / "summary.json", summary)
            shutil.rmtree(place / "checkpoint", ignore_errors=True)

    def _check_model(self) -> None:
        """Refuse, before anything is sampled, a model that the steps could not be taken with."""
        from sami_train.decoder import check_rotation
        from sami_train.logprobs import check_fast_path
        from sami_train.sampling import uses_vllm

        self.weights.check_adapters()
        if self.recipe.caches_gradients:
            self.weights.check_no_dropout()
        if self.recipe.method != "sami" or uses_vllm(self.recipe, self.world):
            return  # with vLLM the model is not loaded yet: the check before the first step must do
        model = self.weights.for_sampling(self.source)
        config = model.config.get_text_config()
        check_rotation(config, self.weights.max_prompt_tokens + self.recipe.max_new_tokens)
        window = getattr(config, "sliding_window", None) or 0  # beyond it, where the run's prompts reach it
        longest = min(self.weights.max_prompt_tokens, window + 64)
        made_up = [[(7 * n + side) % config.vocab_size for n in range(1, longest)] for side in range(2)]
        check_fast_path(model, (made_up, [ids[:12] for ids in made_up]), tolerance=0.1 if self.recipe.bf16 else 0.02)

    def _check_pairs(self, place: Path, kept: Sequence[Example], filtered: Mapping[str, int], number: int) -> None:
        wanted = self.recipe.batch_size * self.recipe.batches(number)
        counts = ", ".join(f"{rule} {count}" for rule, count in filtered.items() if count)
        if not kept:
            raise UserError(
                f"{place / 'pairs.jsonl'}: every pair was filtered out ({counts}); look at the responses there, then "
                "relax 'filters' or raise max_new_tokens, in another folder (-o)"
            )
        if len(kept) < wanted:
            self.note(
                f"iteration {number} has {counted(len(kept), 'pair')} left for {wanted} ({counts}), so it takes fewer or smaller "
                "steps; raise 'oversample'"
            )

    def _contrasts(self, recipe: Recipe, queries: Sequence[Query], seed: int) -> list[Contrast]:
        return plan_contrasts(queries, self.data.principles, self.data.templates, recipe, seed)

    def _sample(self, contrasts: Sequence[Contrast], source: Source, file: Path, label: str) -> list[Example]:
        began = time.monotonic()

        def show(done: int, total: int) -> None:
            self.progress(label, done, total, f"{done / (time.monotonic() - began):.1f} responses/s")

        return self.sampler.examples(contrasts, source, file, show)

    def _selected(
        self, contrasts: Sequence[Contrast], examples: Sequence[Example], source: Source, file: Path, number: int
    ) -> list[Example]:
        """The pairs that the iteration learns from: as many as its steps need, or all that are usable where there are fewer."""
        wanted = self.recipe.batch_size * self.recipe.batches(number)
        if self.recipe.selection == "pmi":
            label = f"iteration {number} selection"
            examples = self.sampler.informative(
                contrasts, examples, source, file, lambda done, total: self.progress(label, done, total, "")
            )
            return most_informative([e for e in examples if e.filtered is None], wanted)
        return [e for e in examples if e.filtered is None][:wanted]

    def _unseen(self, queries: Sequence[Query]) -> _Unseen | None:
        """The evaluation on unseen queries, whose responses come from the base; None where too few are left."""
        square = self.recipe.model_copy(update={"query_contrast": 0.0})  # one unseen query of a kind will do
        contrasts = self._contrasts(square, queries, seed=self.recipe.seed * 1000)
        examples = self._sample(contrasts, self.source, self.folder / "unseen.jsonl", "unseen responses")
        usable = [e for e in examples if e.filtered is None]
        if len(usable) < 2:
            found = f"{len(usable)} of {len(queries)} unseen queries have usable responses"
            if any(limit is not None for limit in self.recipe.stop_if.model_dump().values()):
                raise UserError(f"{found}, and 'stop_if' looks at two at least; raise eval_queries or relax 'filters'")
            if queries:
                self.note(f"{found}: nothing is evaluated")
            return None
        return _Unseen(self, usable, contrasts[: self.recipe.eval_samples])


class _Unseen:
    """The evaluation on unseen queries: the same ones before, during and after training."""

    def __init__(self, run: _Run, examples: Sequence[Example], sampled: Sequence[Contrast]) -> None:
        self.run, self.examples, self.sampled = run, examples, sampled
        self.file = run.folder / "unseen-before.json"

    def before(self, model: Any) -> dict[str, Any]:
        """Figures, reference and samples of the base, measured once in a run and kept."""
        if (known := self.run.world.gather(read_json(self.file))[0]) is not None:
            return dict(known)
        figures, reference, samples = self.measure(model, None)
        found = {"figures": figures, "reference": reference, "samples": samples}
        if self.run.world.main:
            write_json(self.file, found)
        self.run.world.barrier()
        return found

    def measure(
        self, model: Any, reference: Mapping[str, Sequence[float]] | None
    ) -> tuple[dict[str, Any], dict[str, list[float]], list[dict[str, Any]]]:
        """Figures (and mean length, in tokens, and relevance of some sampled responses), log-probabilities, and the samples."""
        from sami_train.evaluation import contrast_figures

        run = self.run
        figures, logprobs = contrast_figures(model, self.examples, run.recipe, run.world, reference)
        if not self.sampled:
            return figures, logprobs, []
        was_training = model.training
        model.eval()
        rows = run.sampler.texts(self.sampled, model)
        model.train(was_training)
        figures["completions/mean_length"] = sum(len(row["response_ids"]) for row in rows) / len(rows)
        samples = [{k: row[k] for k in ("query_id", "constitution", "text")} for row in rows]
        if run.scorer:
            values = run.scorer.scores(rows)
            run.scorer.release()
            figures["completions/relevance"] = sum(values) / len(values)
            samples = [{**sample, "relevance": value} for sample, value in zip(samples, values, strict=True)]
        return figures, logprobs, samples


class _Training:
    """The gradient steps of one iteration, from the base weights, with the evaluations among them."""

    def __init__(
        self,
        run: _Run,
        number: int,
        place: Path,
        examples: Sequence[Example],
        filtered: Mapping[str, int],
        unseen: _Unseen | None,
    ) -> None:
        self.run_, self.recipe, self.world = run, run.recipe, run.world
        self.number, self.place, self.examples, self.filtered, self.unseen = number, place, examples, filtered, unseen
        size = self.recipe.batch_size
        self.taken = passes(examples, self.recipe, number)
        self.batches = [self.taken[start : start + size] for start in range(0, len(self.taken), size)]
        self.label = f"iteration {number} steps"
        self.metrics, self.evaluations = place / "metrics.jsonl", place / "evaluations.jsonl"
        self.keep: Callable[[], object] = lambda: None
        self.history: list[dict[str, Any]] = []
        self.warned: set[str] = set()
        self.base: dict[str, Any] = {}
        self.steps_before = sum(self.recipe.steps(n) for n in range(1, number))

    def run(self) -> dict[str, Any]:
        """Take the steps; leaves the trained model with `Weights`. Returns what the iteration's summary says of them."""
        if self.run_.scorer:
            self.run_.scorer.release()
        model = self.run_.weights.for_training()
        if self.recipe.method == "sami":
            from sami_train.logprobs import check_fast_path

            first = self.examples[0]
            rounded = self.recipe.bf16 and (self.world.size > 1 or self.recipe.master_dtype == "bfloat16")
            check_fast_path(model, (first.prompt_ids, first.response_ids), tolerance=0.1 if rounded else 0.02)
        if self.unseen:
            self.base = self.unseen.before(model)
        reference = self._reference(model) if self.recipe.beta and self.recipe.method == "sami" else None
        parameters = self.run_.weights.trainable()
        if self.recipe.method == "sami":
            self._sami(model, parameters, reference)
        else:
            self._baseline(model)
        model.eval()
        self._check_alive(model)
        after = self._evaluate(model, len(self.batches)) if self.unseen else None
        return self._summary(after)

    def _check_alive(self, model: Any) -> None:
        """One more forward pass: the last step's loss was that of the weights before it."""
        if not self._is_alive(model):
            raise UserError(
                f"{self.place}: after the last step the model gives no finite log-probabilities; no model was written; lower "
                "learning_rate, in another folder (-o)"
            )

    def _is_alive(self, model: Any) -> bool:
        """Whether the model gives a response finite log-probabilities. On every process alike."""
        from sami_train.step import reference_logprobs

        was_training = model.training
        model.eval()
        (values,) = reference_logprobs(model, self.examples[-1:], self.recipe, self.world)
        model.train(was_training)
        return all(self.world.gather(all(map(math.isfinite, values))))

    def _keep_if_alive(self, model: Any) -> None:
        """Keep the weights as they are, unless they are broken: then the checkpoint before stays."""
        if self._is_alive(model):
            self.keep()

    def _sami(self, model: Any, parameters: Mapping[str, Any], reference: Any) -> None:
        from sami_train.checkpoint import load_checkpoint, save_checkpoint
        from sami_train.distributed import total_norm
        from sami_train.optimizers import make_optimizer, set_learning_rate
        from sami_train.step import accumulate

        recipe, world = self.recipe, self.world
        optimizer = make_optimizer(recipe, list(parameters.values()))
        checkpoint = self.place / "checkpoint"
        start = load_checkpoint(checkpoint, parameters, optimizer, world)
        self._resume(start)
        model.train()
        for step in range(start, len(self.batches)):
            began = time.monotonic()
            queries = len(self.batches[step][-(recipe.gradient_queries or 0) :])

            def show(done: int, step: int = step, queries: int = queries) -> None:
                done = min(done * world.size, queries)
                self.run_.progress(self.label, step, len(self.batches), f"query {done}/{queries}")

            try:
                result = accumulate(model, self.batches[step], recipe, world, reference=reference, on_query=show)
                norm = total_norm(list(parameters.values()), recipe.max_grad_norm)
                if not math.isfinite(norm):
                    ids = ", ".join(
                        f"'{e.query_id}'" for e in self.batches[step][-(recipe.gradient_queries or 0) :][:3]
                    )
                    raise UserError(
                        f"the gradient of its {queries} queries ({ids}, ...) is not finite; what came before is kept; "
                        "lower learning_rate, in another folder (-o)"
                    )
            except UserError as error:
                self._keep_if_alive(model)
                raise UserError(f"{self.place}: step {step + 1}: {error}") from None
            rate = recipe.learning_rate_at(step, len(self.batches))
            set_learning_rate(optimizer, rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            give_back()
            speed = result.tokens / (time.monotonic() - began)
            figures = {"learning_rate": rate, **result.figures, "grad_norm": norm, "tokens_per_second": speed}
            self._record(step + 1, figures)
            last = step + 1 == len(self.batches)
            if last:
                break
            self.keep = functools.partial(save_checkpoint, checkpoint, parameters, optimizer, step + 1, world)
            if self.unseen and recipe.eval_steps and (step + 1) % recipe.eval_steps == 0:
                self._evaluate(model, step + 1)
                model.train()
            if recipe.save_steps and (step + 1) % recipe.save_steps == 0:
                if not self._is_alive(model):
                    raise UserError(
                        f"{self.place}: step {step + 1}: after it the model gives no finite log-probabilities; the checkpoint "
                        "before is kept; lower learning_rate, in another folder (-o)"
                    )
                self.keep()  # after the evaluation: a run that goes on from here has it
        self.keep = functools.partial(save_checkpoint, checkpoint, parameters, optimizer, len(self.batches), world)

    def _baseline(self, model: Any) -> None:
        from sami_train.baselines import train_baseline

        self._resume(0)

        def record(row: dict[str, float]) -> None:
            step = int(row["step"])
            self._record(step, {k: v for k, v in row.items() if k != "step"})
            if (
                self.unseen
                and self.recipe.eval_steps
                and step < len(self.batches)
                and step % self.recipe.eval_steps == 0
            ):
                self._evaluate(model, step)

        train_baseline(
            self.recipe,
            model,
            self.run_.weights.tokenizer,
            self.taken,
            steps=len(self.batches),
            folder=self.place / "trl",
            on_step=record,
        )

    def _resume(self, start: int) -> None:
        """Go back to the rows of the first `start` steps: what came after the checkpoint is done again."""
        self.history = [row for row in self.world.gather(read_rows(self.metrics))[0] if row["step"] <= start]
        for alarm in self._alarms_at(start):
            raise UserError(f"{self.place}: {alarm.sentence}")
        if self.world.main:
            _keep_rows(self.metrics, start)
            _keep_rows(self.evaluations, start)
            _keep_rows(self.place / "samples.jsonl", start)
        self.world.barrier()

    def _alarms_at(self, step: int) -> list[Alarm]:
        """The limits of `stop_if` that the evaluation at a step is beyond."""
        rows = [r for r in self.world.gather(read_rows(self.evaluations))[0] if r["step"] == step]
        return alarms(self.recipe.stop_if, base=self.base["figures"], now=rows[-1]) if rows and step else []

    def _record(self, step: int, figures: Mapping[str, float]) -> None:
        row = {"iteration": self.number, "step": step, **figures}
        row.update({f"filtered/{rule}": count for rule, count in self.filtered.items()})
        self.history.append(row)
        if self.unseen is None:
            self._watch_steps(row)
        if self.world.main:
            append_rows(self.metrics, [row])
        if self.run_.trackers:
            self.run_.trackers.log(row, self.steps_before + step)
        self.run_.progress(
            self.label, step, len(self.batches), f"loss {row['loss']:.3f} · {row['tokens_per_second']:.0f} tok/s"
        )

    def _watch_steps(self, row: Mapping[str, float]) -> None:
        """Where nothing is evaluated, warn by what the steps themselves show; the first one's figures are the base's."""
        signs = ("logps/diagonal", "kl")
        base, now = ({key: of[key] for key in signs if key in of} for of in (self.history[0], row))
        for alarm in alarms(self.recipe.warn_if, base=base, now=now):
            if alarm.sign not in self.warned:
                self.warned.add(alarm.sign)
                self.run_.note(f"iteration {self.number}, step {row['step']}, on its own queries: {alarm.sentence}")

    def _reference(self, model: Any) -> dict[str, list[float]]:
        """The base's log-probabilities of the responses, kept row by row: what the KL penalty pulls towards.

        They are computed before the first step, when the model is still the base, so no second model is held.
        """
        from sami_train.step import reference_logprobs

        file, world = self.place / "reference.jsonl", self.world
        known = {row["query_id"]: row["logprobs"] for row in world.gather(read_rows(file))[0]}
        missing = [example for example in self.examples if example.query_id not in known]
        size = REFERENCE_QUERIES * self.recipe.per_device_train_batch_size
        for start in range(0, len(missing), size * world.size):
            some = missing[start : start + size * world.size]
            mine = some[world.rank :: world.size] or some[-1:]  # a process without one goes along with the last
            found = reference_logprobs(model, mine, self.recipe, world)
            made = dict(
                pair for of in world.gather([(e.query_id, v) for e, v in zip(mine, found, strict=True)]) for pair in of
            )
            if world.main:
                append_rows(file, [{"query_id": query, "logprobs": values} for query, values in made.items()])
            known.update(made)
            self.run_.progress(f"iteration {self.number} reference", len(known), len(self.examples), "")
        return known

    def _evaluate(self, model: Any, step: int) -> dict[str, Any]:
        """Measure on the unseen queries; warn, or stop with the checkpoint kept, where a limit is passed."""
        assert self.unseen is not None
        try:
            figures, _, samples = self.unseen.measure(model, self.base["reference"])
        except UserError as error:
            self._keep_if_alive(model)
            raise UserError(f"{self.place}: step {step}: {error}") from None
        row = {"iteration": self.number, "step": step, **figures}
        if self.world.main:
            for file in (self.evaluations, self.place / "samples.jsonl"):
                _keep_rows(file, step - 1)  # a run that went on from its last step looks again
            append_rows(self.evaluations, [row])
            append_rows(self.place / "samples.jsonl", [{"iteration": self.number, "step": step, **s} for s in samples])
        if self.run_.trackers:
            place = self.steps_before + step
            numbers = {f"eval/{k}": v for k, v in figures.items() if isinstance(v, int | float)}
            self.run_.trackers.log(numbers, place)
            self.run_.trackers.text("eval/samples", samples, place)
        for alarm in alarms(self.recipe.warn_if, base=self.base["figures"], now=figures):
            self.run_.note(f"iteration {self.number}, step {step}: {alarm.sentence}")
        for alarm in alarms(self.recipe.stop_if, base=self.base["figures"], now=figures):
            self.keep()
            raise UserError(f"{self.place}: stopped at step {step} by stop_if.{alarm.sign}: {alarm.sentence}")
        return figures

    def _summary(self, after: Mapping[str, Any] | None) -> dict[str, Any]:
        from sami_train.evaluation import loss_change

        first, last = self.history[0], self.history[-1]
        summary: dict[str, Any] = {
            "pairs": len(self.examples),
            "filtered": dict(self.filtered),
            "steps": len(self.history),
            "loss_first": first["loss"],
            "loss_last": last["loss"],
        }
        if self.recipe.method == "sami":
            summary["accuracy_last"] = (last["accuracy/row"] + last["accuracy/col"]) / 2
            summary["mi_lower_bound_last"] = last["mi_lower_bound"]
        summary["warnings"] = [
            f"step {row['step']}: {alarm.sentence}"
            for row in self.world.gather(read_rows(self.evaluations))[0]
            for alarm in alarms(self.recipe.warn_if, base=self.base["figures"], now=row)
        ]
        summary["evaluation"] = None
        if after is not None:
            before = self.base["figures"]
            sides = {"before": before, "after": after}
            means = {when: {k: v for k, v in side.items() if k != "losses"} for when, side in sides.items()}
            summary["evaluation"] = {"n": after["n"], **means, **loss_change(before, after)}
        return summary


def _keep_rows(file: Path, steps: int) -> None:
    """Leave only the rows of the first steps."""
    rows = read_rows(file)
    if len(kept := [row for row in rows if row["step"] <= steps]) < len(rows):
        replace_rows(file, kept)
