"""What a run will take, before it is started: memory and tokens of training and of local models, and time at a given speed.

Nothing but text and the shapes of models is read here: training is planned by `sami_train.planning`, generation by its rehearsal of
sampling. Time is never guessed: it is known from an earlier run on this machine or from a speed that was given. What cannot be
known (queries on a hub that is out of reach, tokens without a tokenizer) is assumed, and said so in a sentence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.plan import GenerationUnit, Plan, RelevanceUnit, Stage, VerdictUnit, is_local, rate_key
from harness.spec import Spec, model_backend
from harness.tasks import Query, TaskData, TaskSpec, hash_queries, load_task
from harness.tasks.base import BUNDLED, OutOfReach
from sami_train.errors import UserError
from sami_train.models import SHARE_OF_GPU, parse_source

if TYPE_CHECKING:
    from sami_train.config import Recipe
    from sami_train.planning.memory import Machine
    from sami_train.planning.shape import Architecture

CHARACTERS_PER_TOKEN = 4
"""Of English text, about, in the tokenizers of today's models (OpenAI's own rule of thumb, "What are tokens and how to count
them?", help.openai.com). Only ever used for an estimate that says so."""
STAND_INS = 10_000
"""Training queries that are assumed where the data are out of reach and the task has no train_limit."""

Speeds = Mapping[str | None, float]
"""Tokens per second, by the name of a model; None: of all that are not named."""


# --- Queries that are out of reach


@dataclass
class Assumptions:
    """Loads tasks, with stand-ins for those whose data are out of reach; `sentences` says what was assumed."""

    sentences: list[str] = field(default_factory=list)
    _without_hub: bool = False

    def load(self, name: str, spec: TaskSpec) -> TaskData:
        """A task's queries, or as many of the bundled samples as it would have. Raises UserError as `load_task` does."""
        try:
            if self._without_hub and "hub" in (spec.source, spec.train_source):
                raise OutOfReach("")  # asked once, which takes long enough
            return load_task(name, spec)
        except OutOfReach:
            if spec.limit is None:
                raise UserError(
                    f"task '{name}': its data are out of reach and it has no 'limit', so how many queries it has is not "
                    "known; set 'limit', or name a local copy as 'source'"
                ) from None
        self._without_hub = True
        samples = load_task(name, TaskSpec(task=spec.task, source=BUNDLED, subset=spec.subset))
        train = _repeated(samples.train, spec.train_limit or STAND_INS, f"{name}-train")
        evaluation = _repeated(samples.evaluation, spec.limit, f"{name}-evaluation")
        self.sentences.append(
            f"the queries of the task '{name}' are out of reach: planned with {len(evaluation)} (and {len(train)} for training) "
            "as long as the bundled samples"
        )
        where = "stand-ins for queries out of reach"
        return TaskData(name, samples.kind, train, evaluation, where, hash_queries(train, evaluation), {})


def _repeated(samples: tuple[Query, ...], count: int, name: str) -> tuple[Query, ...]:
    chosen = (samples[index % len(samples)] for index in range(count))
    return tuple(
        Query(f"{name}-{n}", f"{query.text} ({name} {n})", query.task, query.intent) for n, query in enumerate(chosen)
    )


def plan_ahead(spec: Spec) -> tuple[Plan, list[str]]:
    """The plan, and what had to be assumed for it, a sentence each. Raises UserError as `build_plan` does."""
    from harness.validation import is_elsewhere

    assumed = Assumptions()
    elsewhere = {name: model.path for name, model in spec.models.items() if model.path and is_elsewhere(model.path)}
    plan = Plan(spec, load=assumed.load, weights={name: f"not here: {path}" for name, path in elsewhere.items()})
    assumed.sentences += [
        f"the model '{name}' ({path}) is not on this machine: planned as if it had no rows yet"
        for name, path in elsewhere.items()
    ]
    return plan, assumed.sentences


# --- Time


def given_rates(plan: Plan, training: Speeds, generation: Speeds) -> dict[str, float]:
    """Seconds per unit of the stages that the given speeds say something of, as `describe` takes them, by `rate_key`.

    Args:
        training: packed tokens that all devices train on in a second.
        generation: new tokens in a second, of sampling for training too. Responses are taken to be of the longest length.

    Raises:
        UserError: a name is none of a model that runs here.
    """
    local = [name for name, model in plan.spec.models.items() if is_local(model)]
    for name in {*training, *generation} - {None}:
        if name not in local:
            from sami_train.errors import nearest

            raise UserError(
                f"a speed is given for '{name}', which is no model that runs here; {nearest(str(name), local)}"
            )
    rates: dict[str, float] = {}
    for stage in plan.stages:
        if stage.kind == "train" and stage.model is not None:
            fast, sampling = _speed(plan, training, stage.model), _speed(plan, generation, stage.model)
            if fast and sampling:
                work = training_work(plan, stage.model)
                rates[rate_key(plan, stage)] = work["tokens"] / fast + work["sampled_tokens"] / sampling
        elif stage.kind == "generate" and stage.model in local and (speed := _speed(plan, generation, stage.model)):
            rates[rate_key(plan, stage)] = plan.spec.sampling.max_new_tokens / speed
    return rates


def _speed(plan: Plan, speeds: Speeds, model: str) -> float | None:
    """The speed of a model, of the one that it is trained from, or of all."""
    name: str | None = model
    while name is not None:
        if name in speeds:
            return speeds[name]
        train = plan.spec.training(name)
        name = train.from_ if train else None
    return speeds.get(None)


# --- What it takes


def training_work(plan: Plan, model: str) -> dict[str, int]:
    """Gradient steps, tokens trained on and sampled tokens of a model's training, all sequences of the longest length."""
    from sami_train.planning.work import query_work

    recipe = plan.recipe(model)
    size = recipe.constitutions_per_query
    tokens = query_work(recipe, recipe.max_prompt_tokens, recipe.max_new_tokens).tokens
    passes = 2 if recipe.caches_gradients else 1
    iterations = range(1, recipe.iterations + 1)
    steps = sum(recipe.batches(n) for n in iterations)
    return {
        "steps": steps,
        "tokens": steps * (recipe.gradient_queries or recipe.batch_size) * tokens * passes,
        "responses": sum(recipe.queries_needed(n) for n in iterations) * size,
        "sampled_tokens": sum(recipe.queries_needed(n) for n in iterations) * size * recipe.max_new_tokens,
    }


def forecast(plan: Plan, machine: Machine | None = None, *, memory: bool = True) -> dict[str, Any]:
    """What the unfinished part of a run takes: a row per training, per model that answers, per local model that judges, and
    per model that scores relevance.

    Args:
        plan: what is to be done.
        machine: what is asked about; None is this machine's one device.
        memory: plan memory too, which takes seconds for each kind of model (embedded models are left out).

    Returns:
        ``machine``, ``training``, ``models``: memory in bytes (None where it is not planned), tokens, whether it fits; and
        ``notes``, what could not be known, a sentence each.
    """
    shapes = _Shapes(plan, machine) if memory and any(_wants_memory(plan, name) for name in plan.models) else None
    training = [
        _training(plan, stage.model, shapes)
        for stage in plan.stages
        if stage.kind == "train" and stage.model is not None and not stage.done(plan.folder)
    ]
    models = list(_local_models(plan, shapes))
    return {
        "machine": None if shapes is None else shapes.described(),
        "training": training,
        "models": models,
        "notes": [] if shapes is None else shapes.notes,
    }


def _wants_memory(plan: Plan, name: str) -> bool:
    """Whether a model runs here and is not embedded: those are small."""
    return is_local(plan.model(name)) and model_backend(_path(plan, name)) != "embedded"


def _path(plan: Plan, name: str) -> str:
    """Where the weights of a local model come from: for a trained one, the path of what it goes back to."""
    while name in plan.spec.models and (train := plan.spec.training(name)) is not None:
        name = train.from_
    return plan.model(name).path or ""


class _Shapes:
    """The architectures of a plan's local models, and the memory that they take on a machine."""

    def __init__(self, plan: Plan, machine: Machine | None) -> None:
        from sami_train.planning.command import find_machine

        self.plan, self.machine = plan, machine or find_machine(None, None, None)
        self.notes: list[str] = []
        self._known: dict[str, Architecture | None] = {}

    def described(self) -> dict[str, Any]:
        machine = self.machine
        return {"kind": machine.kind, "devices": machine.devices, "memory": machine.memory, "usable": machine.usable}

    def of(self, model: str) -> Architecture | None:
        """The architecture of a model; None, with a note, where it is embedded or cannot be had."""
        from sami_train.planning.shape import find_architecture

        path = _path(self.plan, model)
        if path not in self._known:
            self._known[path] = None
            try:
                if _wants_memory(self.plan, model):
                    self._known[path] = find_architecture(str(parse_source(path)))
            except UserError as error:
                self.notes.append(f"memory of '{model}': {error}")
        return self._known[path]

    def training(self, model: str, recipe: Recipe) -> dict[str, Any]:
        """Peak on every device, sharded over all of them (the baselines take one)."""
        from sami_train.planning.memory import plan_memory
        from sami_train.planning.rehearsal import Lengths
        from sami_train.planning.shape import count_parameters
        from sami_train.planning.work import plan_work

        architecture = self.of(model)
        if architecture is None:
            return {}
        lengths = Lengths(recipe.max_prompt_tokens, recipe.max_new_tokens)
        machine = self.machine if recipe.method == "sami" else replace(self.machine, devices=1)
        try:
            memory = plan_memory(architecture, recipe, lengths, machine)
        except UserError as error:  # a package that is missing
            self.notes.append(f"memory of training '{model}': {error}")
            return {}
        parameters = count_parameters(architecture, recipe)
        work = plan_work(architecture, parameters, recipe, lengths, machine.kind)
        return {
            "parameters": parameters.total,
            "peak": memory.peak.size,
            "peak_in": memory.peak.name,
            "fits": memory.fits(machine),
            "main_memory": memory.host,
            "flops": sum(row.flops + row.sampling_flops for row in work),
        }

    def generation(self, model: str, prompt: int, response: int, dtype: str, batch: int) -> dict[str, Any]:
        """Peak on one device: weights, and a batch of the longest prompts and responses.

        Where one GPU does not hold that, the weights are laid over all of them; the rest is taken to be on one all the same.
        """
        from sami_train.config import Recipe
        from sami_train.planning.memory import PROGRAM
        from sami_train.planning.rehearsal import Lengths, rehearse_sampling
        from sami_train.planning.shape import count_parameters

        architecture = self.of(model)
        if architecture is None:
            return {}
        chosen = self.plan.spec.sampling
        recipe = Recipe.model_validate(
            {"name": "", "learning_rate": 1.0, "temperature": chosen.temperature, "top_p": chosen.top_p}
        )
        total = count_parameters(architecture, recipe).total
        weights = total * (4 if dtype == "float32" else 2)

        def peak(batch: int, devices: int) -> int:
            found = rehearse_sampling(architecture, recipe, Lengths(prompt, response), self.machine.kind, dtype, batch)
            return math.ceil(weights / devices) + max(found.prompts, found.writing) + PROGRAM[self.machine.kind]

        batches = [batch]
        while batches[-1] > 1:
            batches.append(batches[-1] // 2)
        several = self.machine.devices if self.machine.kind == "cuda" else 1
        devices = 1 if weights < SHARE_OF_GPU * self.machine.memory else several
        return {
            "parameters": total,
            "dtype": dtype,
            "weights": weights,
            "batch": batch,
            "devices": devices,
            "peak": peak(batch, devices),
            "fits": peak(batch, devices) <= self.machine.usable,
            "largest_batch": next((n for n in batches if peak(n, devices) <= self.machine.usable), None),
        }

    def dtype(self, model: str) -> str:
        """The number format that a model's weights are loaded in."""
        wanted = self.plan.model(model).dtype or self.plan.spec.engine.dtype
        if wanted != "auto":
            return wanted
        from harness.models.local import best_dtype

        return best_dtype(self.machine.kind)

    def batch(self) -> int:
        """Prompts that are generated together."""
        from sami_train.generation import DEFAULT_BATCH

        chosen = self.plan.spec.engine.batch_size
        return chosen if isinstance(chosen, int) else DEFAULT_BATCH[self.machine.kind]


def _training(plan: Plan, model: str, shapes: _Shapes | None) -> dict[str, Any]:
    train, recipe = plan.spec.training(model), plan.recipe(model)
    assert train is not None
    row: dict[str, Any] = {"model": model, "recipe": train.recipe, "from": _path(plan, model)}
    row |= training_work(plan, model)
    row |= dict.fromkeys(("parameters", "peak", "peak_in", "fits", "main_memory", "flops"))
    return row | (shapes.training(model, recipe) if shapes else {})


def _local_models(plan: Plan, shapes: _Shapes | None) -> Iterator[dict[str, Any]]:
    """A row for each local model that still has something to answer, to judge (in writing, by its probabilities) or to score."""
    nothing = dict.fromkeys(("parameters", "dtype", "weights", "batch", "devices", "peak", "fits", "largest_batch"))
    purposes = (("generate", True), ("judge", True), ("judge", False), ("relevance", False))
    for name in plan.models:
        for kind, writes in purposes if is_local(plan.model(name)) else ():
            stages = [s for s in plan.stages if (s.kind, s.model) == (kind, name) and bool(_written(plan, s)) == writes]
            counts = [_tokens(plan, stage) for stage in stages]
            rows = sum(count.rows for count in counts)
            if not rows:
                continue
            row: dict[str, Any] = {"model": name, "path": _path(plan, name), "does": kind, **nothing}
            row |= {"rows": rows, "prompt_tokens": sum(count.prompts for count in counts)}
            row |= {"new_tokens": sum(count.new for count in counts)}
            if shapes is not None:
                from harness.models.local import CHOICE_BATCH

                prompt = plan.spec.sampling.max_prompt_tokens if kind == "generate" else max(c.longest for c in counts)
                new, batch = (_written(plan, stages[0]), shapes.batch()) if writes else (1, CHOICE_BATCH)
                if kind == "relevance" and (settings := plan.spec.measures.relevance) is not None:
                    batch = 1 + settings.others
                row |= shapes.generation(name, prompt, new, shapes.dtype(name), batch)
            yield row


@dataclass(frozen=True)
class _Tokens:
    """Rows of a stage that are not there yet, tokens of their prompts (about), new tokens (at most), the longest prompt."""

    rows: int
    prompts: int
    new: int
    longest: int


def _tokens(plan: Plan, stage: Stage) -> _Tokens:
    done = stage.finished_rows(plan.folder)
    units = [unit for unit in stage.units if unit.id not in done]
    limit, new = plan.spec.sampling.max_prompt_tokens, plan.spec.sampling.max_new_tokens
    if stage.kind == "relevance":  # a query's responses are read together, once after each query
        together = Counter(unit.response.query.id for unit in units if isinstance(unit, RelevanceUnit))
        read = {
            unit.response.query.id: [
                min(limit, _about(query.text)) + together[unit.response.query.id] * new
                for query in (unit.response.query, *unit.others)
            ]
            for unit in units
            if isinstance(unit, RelevanceUnit)
        }
        return _Tokens(len(units), sum(map(sum, read.values())), 0, max(map(max, read.values()), default=0))
    lengths = []
    for unit in units:
        if isinstance(unit, GenerationUnit):
            lengths.append(min(limit, _about(unit.prompt.text)))
        elif isinstance(unit, VerdictUnit):
            judge = plan.judge(stage.judge, unit.a.task)
            asked = judge.template.choice if judge.form == "choice" else judge.template.text
            texts = (asked, *unit.constitution.lines(), unit.a.query.text)
            lengths.append(sum(map(_about, texts)) + 2 * new)
    return _Tokens(len(units), sum(lengths), len(units) * _written(plan, stage), max(lengths, default=0))


def _written(plan: Plan, stage: Stage) -> int:
    """The most tokens that a model writes for a row of a stage: none where probabilities are read."""
    if stage.kind == "generate" and stage.model is not None:
        return plan.sampling(stage.model, stage.task).max_new_tokens
    if stage.kind != "judge" or stage.model is None or plan.judge_form(stage.judge) == "choice":
        return 0
    return plan.judge_sampling(stage.judge).max_new_tokens


def _about(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
