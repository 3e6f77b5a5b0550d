"""From a specification to what is to be done: every response, likelihood and verdict, with its id and its fingerprint.

Nothing is loaded here but text. A fingerprint is the hash of all that decides a row's content, so that what is there
already, in the run's folder or in the cache, is told from what is still to do before any model is touched.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from harness.engine import auto_is_bfloat16
from harness.judges.checks import code_of
from harness.judges.llm import VERDICT_SCHEMA, Form, JudgeTemplate, LLMJudge, load_judge_template
from harness.models.base import Sampling
from harness.models.families import family_of, for_model
from harness.models.recorded import answers_fingerprint
from harness.models.served import address_of, is_own, served
from harness.rows import Generation, Likelihood, Relevance, Row, RowOnTexts, Verdict, text_hash
from harness.sampling_order import seeded_order
from harness.score import ExpectedPair, Kind
from harness.spec import JudgeSpec, ModelSpec, Spec, model_backend
from harness.store import RowFile, fingerprint, read_json
from harness.tasks import TaskData, TaskSpec, load_task
from sami_train.config import Recipe, load_recipe
from sami_train.constitutions import (
    Check,
    Constitution,
    Element,
    Principle,
    PrincipleSet,
    distinct,
    load_principle_set,
    sample_constitutions,
)
from sami_train.data import Query
from sami_train.errors import UserError
from sami_train.inputs import folders_of, templates_of
from sami_train.models import Source, check_source, has_chat_template, parse_source, source_fingerprint
from sami_train.prompts import Prompt, Template, load_template
from sami_train.relevance import other_queries
from sami_train.run_folder import final_model
from sami_train.text import counted

ROW_VERSION = 3
"""Enters every fingerprint; a change of what rows mean makes them all again."""
MODEL_CODE_VERSION = 2
"""Enters the fingerprint of a trained model; a change of the training code that changes weights raises it."""
RELEVANCE_VERSION = 1
"""Enters the fingerprint of a relevance; a change of what the scorer reads raises it."""
JUDGING_VERSION = 6
"""Enters the fingerprint of a verdict; a change of how a judge is asked, shown text or read, or of a check, raises it."""
JUDGE_SAMPLING = Sampling(max_new_tokens=300, max_prompt_tokens=8192)
"""How a judge that writes does so: a few sentences of reasoning and the verdict."""
REPEATED_TEMPERATURE = 1.0
"""That of a judge that is asked more than once: the distribution that its model has by itself."""
BLOCK_ROWS = 512
"""Rows, in the order of the queries, of which a local model's batches are composed where no rule says when to stop: few
enough that what is there is a sample of the queries, enough that batches stay full and of like length."""

Place = tuple[str, str]
"""(task, query id)"""


@dataclass(frozen=True)
class GenerationUnit:
    """One response to be made."""

    id: str
    fingerprint: str
    task: str
    query: Query
    constitution: Constitution
    principle_set: str
    split: str
    epoch: int
    prompt: Prompt
    responses: ClassVar[tuple[GenerationUnit, ...]] = ()

    @property
    def place(self) -> Place:
        return self.task, self.query.id


@dataclass(frozen=True)
class LikelihoodUnit:
    """One C x C matrix: the responses that a model gave to a query, under each of the constitutions they were given under."""

    id: str
    fingerprint: str
    query_id: str
    principle_set: str
    split: str
    responses: tuple[GenerationUnit, ...]

    @property
    def place(self) -> Place:
        return self.responses[0].place


@dataclass(frozen=True)
class RelevanceUnit:
    """One response to be scored after its own query and after others."""

    id: str
    fingerprint: str
    response: GenerationUnit
    others: tuple[Query, ...]

    @property
    def responses(self) -> tuple[GenerationUnit, ...]:
        return (self.response,)

    @property
    def place(self) -> Place:
        return self.response.place


@dataclass(frozen=True)
class VerdictUnit:
    """One comparison in one order, once: response `a` against response `b`, judged by `constitution`."""

    id: str
    fingerprint: str
    constitution: Constitution
    a: GenerationUnit
    b: GenerationUnit
    order: Literal["ab", "ba"]
    repeat: int = 0

    @property
    def responses(self) -> tuple[GenerationUnit, ...]:
        return self.a, self.b

    @property
    def shown(self) -> tuple[str, ...]:
        """What the responses' writers had before them that no response should repeat."""
        frames = dict.fromkeys((self.a.prompt.frame, self.b.prompt.frame))
        return *self.a.constitution.sentences(), *self.a.query.not_to_copy, *frames

    @property
    def judged_by(self) -> str | None:
        """The id of the constitution that is judged by, where `a` was given another one; None where it is the same."""
        return None if self.constitution == self.a.constitution else self.constitution.id

    @property
    def place(self) -> Place:
        return self.a.place


Unit = GenerationUnit | LikelihoodUnit | RelevanceUnit | VerdictUnit
UnitT = TypeVar("UnitT", GenerationUnit, VerdictUnit)


@dataclass(frozen=True)
class Stage:
    """A part of the run that reads and writes one file. `model` is the one it needs in memory, if any."""

    kind: Literal["train", "generate", "likelihood", "relevance", "judge"]
    name: str
    path: Path
    model: str | None
    task: str = ""
    writer: str = ""
    """Whose responses are scored, in a stage of relevance."""
    judge: str = ""
    pair: tuple[str, str] = ("", "")
    measure: Kind = "win_rate"
    units: tuple[Unit, ...] = ()
    fingerprint: str = ""

    @property
    def row_type(self) -> type[Row]:
        kinds: dict[str, type[Row]] = {
            "generate": Generation,
            "likelihood": Likelihood,
            "relevance": Relevance,
            "judge": Verdict,
        }
        return kinds[self.kind]

    def expected(self) -> int:
        return 1 if self.kind == "train" else len(self.units)

    def all_rows(self, folder: Path) -> dict[str, Any]:
        """The rows of this stage's units, failures included, by id. Rows of an older plan, and on other texts, are passed over."""
        return self._rows(folder)[0]

    def older_rows(self, folder: Path) -> dict[str, Any]:
        """The rows, without failures, that are passed over in the places of this stage's units, by id."""
        return {i: row for i, row in self._rows(folder)[1].items() if not failed(row)}

    def _rows(self, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rows in the places of this stage's units that count, and those that do not."""
        units = {unit.id: unit for unit in self.units}
        counted: dict[str, Any] = {}
        others: dict[str, Any] = {}
        is_on_texts = self.on_texts_of(folder)
        for i, row in RowFile(folder / self.path, self.row_type).read().items():
            if (unit := units.get(i)) is not None:
                is_counted = row.fingerprint == unit.fingerprint and is_on_texts(unit, row)
                (counted if is_counted else others)[i] = row
        return counted, others

    def on_texts_of(self, folder: Path) -> Callable[[Unit, Row], bool]:
        """A function that says whether a unit's row is on the responses that a run's folder holds now.

        A response that was deleted may have been made again, with another text. Rows of earlier versions do not say.
        """
        models = set(self.pair) if self.kind == "judge" else {self.writer or self.model or ""}
        found: dict[str, tuple[str, str]] = {}
        for task in {unit.place[0] for unit in self.units if unit.responses}:
            for model in models:
                found |= _texts_in(folder / generations_file(model, task))

        def is_on_texts(unit: Unit, row: Row) -> bool:
            if not isinstance(row, RowOnTexts) or not row.texts:
                return True
            return [found.get(r.id) for r in unit.responses] == [
                (r.fingerprint, text) for r, text in zip(unit.responses, row.texts, strict=False)
            ]

        return is_on_texts

    def finished_rows(self, folder: Path) -> dict[str, Any]:
        """The rows that are there and did not fail, by id."""
        return {i: row for i, row in self.all_rows(folder).items() if not failed(row)}

    def done(self, folder: Path) -> int:
        """How many of `expected()` are done in a run's folder."""
        if self.kind == "train":
            place = folder / self.path
            return int(trained_for(place) == self.fingerprint and _is_trained(place))
        return len(self.finished_rows(folder))


def generations_file(model: str, task: str) -> Path:
    """The file, below a run's folder, of a model's responses on a task."""
    return Path("generations") / model / f"{task}.jsonl"


def _texts_in(file: Path) -> Mapping[str, tuple[str, str]]:
    """Fingerprint and `text_hash` of each response in a file that did not fail, by id."""
    try:
        state = file.stat()
    except OSError:
        return {}
    return _texts_read(file, (state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=256)
def _texts_read(file: Path, _: tuple[int, int, int]) -> Mapping[str, tuple[str, str]]:
    rows = RowFile(file, Generation).read().values()
    return {row.id: (row.fingerprint, text_hash(row.text)) for row in rows if not failed(row)}


def failed(row: Any) -> bool:
    """Whether a row records a failure that is worth another try."""
    if isinstance(row, Generation):
        return row.error is not None
    return isinstance(row, Verdict) and row.outcome == "unscored" and "error" in row.details


def trained_for(folder: Path) -> str:
    """The fingerprint of what is trained, or being trained, in a folder."""
    try:
        return (folder / "fingerprint").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _is_trained(folder: Path) -> bool:
    """Whether a training has ended in a folder, and the models that it left are still there."""
    if not (folder / "summary.json").is_file():
        return False
    summary = read_json(folder / "summary.json")
    iterations = summary.get("iterations") or () if isinstance(summary, dict) else ()
    models = [folder / f"iteration-{number}" / "model" for number in range(1, len(iterations) + 1)]
    return all((model / "config.json").is_file() for model in models)


class Plan:
    """A specification resolved: tasks, principles, prompts and stages in the order they run in."""

    def __init__(
        self,
        spec: Spec,
        known: Mapping[str, Mapping[str, str]] | None = None,
        load: Callable[[str, TaskSpec], TaskData] = load_task,
        weights: Mapping[str, str] | None = None,
        last_seen: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """`known`: of models whose rows are there already, their fingerprint under `model` and under `asked_for` what
        was asked for then. A model of which the same is asked for now is not looked at again. `last_seen`: the same, for API
        models whose server says nothing now; `address` is the hash of where it was. `load` gives a task's queries; a
        forecast has one that never fails for want of a network. `weights`: fingerprints of models that are not on this machine.
        """
        self.spec = spec
        self.tasks: dict[str, TaskData] = {name: load(name, task.task_spec()) for name, task in spec.tasks.items()}
        self.sets: dict[str, PrincipleSet] = {}
        for name in spec.principles.sets:
            loaded = load_principle_set(name, [Path(f) for f in spec.principles.folders])
            self.sets[loaded.name] = loaded
        self.templates: dict[str, Template] = {
            name: load_template(task.template or self.tasks[name].kind) for name, task in spec.tasks.items()
        }
        self.upto: int | None = None
        """Of how many queries, the first of the order, this plan is; None: of all."""
        self._judges: dict[tuple[str, str], LLMJudge] = {}
        self._weights: dict[str, str] = dict(weights or {})
        self._last_seen = last_seen or {}
        self.scorers: dict[str, str] = {
            name: scorer for name in spec.models if self._used(name) and (scorer := self._scorer(name))
        }
        self.model_fingerprints: dict[str, str] = {
            name: self._known(name, (known or {}).get(name)) or self._model_fingerprint(name) for name in self.models
        }

    # Models

    @property
    def models(self) -> list[str]:
        """The names of the specification's models, and of those besides them that score relevance."""
        return list(dict.fromkeys([*self.spec.models, *self.scorers.values()]))

    def model(self, name: str) -> ModelSpec:
        """A model of the specification, or an embedded one that scores relevance and is not named there."""
        if name not in self.spec.models and name.startswith("embedded/"):
            return ModelSpec(path=name, style="chat" if has_chat_template(parse_source(name)) else "completion")
        return self.spec.models[name]

    def _scorer(self, writer: str) -> str | None:
        """The model that scores the relevance of a model's responses; None where it is not measured.

        The one that is named, unless it is the writer or what the writer is trained from: a model finds its own habits likely
        after every query. Then another local one, chat models first, or else the embedded instruct model.
        """
        settings = self.spec.measures.relevance
        if settings is None:
            return None
        own, start = {writer}, writer
        while (train := self.spec.training(start)) is not None:
            start = train.from_
            own.add(start)
        paths = {self.spec.models[name].path for name in own}
        local = [n for n, m in self.spec.models.items() if m.path is not None and is_local(m)]
        local.sort(key=lambda name: self.spec.models[name].style != "chat")
        named = [settings.scorer] if settings.scorer else []
        at_hand = _is_at_hand(EMBEDDED_SCORER) if settings.embedded is None else settings.embedded
        fallback = [EMBEDDED_SCORER] if at_hand else []
        candidates = dict.fromkeys([*named, *local, *fallback])
        return next((n for n in candidates if n not in own and self.model(n).path not in paths), None)

    def source(self, name: str) -> Source:
        """Where a local model's weights are (those of a trained model once it is trained)."""
        if name not in self.spec.models:
            return parse_source(name)
        model = self.spec.models[name]
        if (trained := self.spec.trained(name)) is not None:
            return Source("folder", str(final_model(self.folder / "training" / trained, self.recipe(name))))
        assert model.path is not None
        source = parse_source(model.path)
        return Source(source.kind, source.name, model.revision or source.revision)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.spec.output)

    def recipe(self, name: str) -> Recipe:
        """The recipe of a trained model with the specification's changes and its style.

        That of an iteration ends with it: iterations do not depend on those that follow.
        """
        model, train = self.spec.models[name], self.spec.training(name)
        assert train is not None
        last = {} if model.iteration is None else {"iterations": model.iteration}
        changes = {"seed": self.spec.seed, **train.set, "style": model.style, **last}
        return load_recipe(train.recipe, changes, bf16=self._bfloat16)

    @cached_property
    def _bfloat16(self) -> bool:
        return auto_is_bfloat16(self.folder, self.spec.engine)

    def dtype(self, name: str) -> str:
        """The number format of a local model's weights; ``auto`` is what the run was begun with, or what this machine has."""
        said = self.model(name).dtype or self.spec.engine.dtype
        return said if said != "auto" else "bfloat16" if self._bfloat16 else "float32"

    def training_queries(self, name: str) -> list[Query]:
        """The queries that a trained model learns from: the training parts of its tasks, one after another.

        Each text once, and none that any task of the run evaluates.
        """
        evaluated = {_folded(query) for data in self.tasks.values() for query in data.evaluation}
        found: dict[str, Query] = {}
        for task in self._training_tasks(name):
            for query in self.tasks[task].train:
                if _folded(query) in evaluated:
                    continue
                if _folded(found.setdefault(query.id, query)) != _folded(query):
                    raise UserError(
                        f"models.{name}.train: two training queries with different texts have the id '{query.id}' "
                        f"(one is of task '{task}'); change one of the ids, or set 'tasks' to one of the tasks"
                    )
        return list(found.values())

    def training_principles(self, name: str) -> dict[str, list[Principle]]:
        """The learned principles by kind of task; held-out ones never get here."""
        kinds = {query.task for query in self.training_queries(name)}
        return {
            kind: distinct(p for s in self.sets.values() for p in s.select(kind, "learned")) for kind in sorted(kinds)
        }

    def training_provenance(self, name: str) -> dict[str, Any]:
        """Where a trained model's queries and principles come from, for its model card."""
        tasks = self._training_tasks(name)
        return {
            "queries": [
                {"file": self.tasks[t].source, "n": len(self.tasks[t].train), "sha256": self.tasks[t].hash}
                for t in tasks
            ],
            "principle_sets": [
                {"name": s.name, "version": s.version, "hash": s.hash, "file": str(s.file), "source": s.source}
                for s in self.sets.values()
            ],
        }

    def training_templates(self, name: str) -> dict[str, Template]:
        """The prompt templates by kind of task: those that the tasks name, as the evaluation uses them, else the recipe's."""
        train = self.spec.training(name)
        assert train is not None
        kinds = {self.tasks[task].kind for task in self._training_tasks(name)}
        of_recipe = templates_of(self.recipe(name), kinds, folders_of(train.recipe))
        found: dict[str, Template] = {}
        for task in self._training_tasks(name):
            kind = self.tasks[task].kind
            template = self.templates[task] if self.spec.tasks[task].template else of_recipe[kind]
            if found.setdefault(kind, template).hash != template.hash:
                raise UserError(
                    f"models.{name}.train: the {kind} tasks that it learns from have different templates; give them the "
                    "same 'template', or set 'tasks' to one of them"
                )
        return found

    def _training_tasks(self, name: str) -> list[str]:
        train = self.spec.training(name)
        assert train is not None
        return list(train.tasks or self.tasks)

    def _known(self, name: str, known: Mapping[str, str] | None) -> str | None:
        return known.get("model") if known and known.get("asked_for") == self.asked_for(name) else None

    def _model_fingerprint(self, name: str) -> str:
        """The hash of all of a model that decides what it says."""
        model = self.model(name)
        weights = self._weights_fingerprint(name)
        return fingerprint([weights, self.dtype(name)]) if is_local(model) else weights

    def asked_for(self, name: str) -> str:
        """The hash of what the specification says of a model, and of all that it is trained from and on, unread."""
        if name not in self.spec.models:
            return fingerprint([name, self.spec.engine.dtype])
        train = self.spec.training(name)
        said = (
            self.spec.model_dump(mode="json", by_alias=True, include={"seed", "tasks", "principles"}) if train else {}
        )
        start = self.asked_for(train.from_) if train else None
        of = self.spec.models[name].iteration_of
        trained = self.spec.models[of].model_dump(mode="json") if of else None
        return fingerprint(
            [self.spec.models[name].model_dump(mode="json"), trained, self.spec.engine.dtype, said, start]
        )

    def _weights_fingerprint(self, name: str) -> str:
        """The hash of the weights, or of all that they come from where they are still to be trained (in float32)."""
        if name in self._weights:
            return self._weights[name]
        model = self.model(name)
        train = self.spec.training(name) if name in self.spec.models else None
        if train is not None:
            intents = self.recipe(name).needs_intents
            found = fingerprint(
                {
                    "version": MODEL_CODE_VERSION,
                    "recipe": self.recipe(name).model_dump(
                        mode="json",
                        exclude=set(self.recipe(name).not_trained_by),
                    ),
                    "from": self._weights_fingerprint(train.from_),
                    "queries": [
                        [q.id, q.text, q.task, *([q.intent] if intents else [])] for q in self.training_queries(name)
                    ],
                    "principles": {
                        k: [[p.id, p.definition, p.antithesis] for p in ps]
                        for k, ps in self.training_principles(name).items()
                    },
                    "templates": {kind: template.hash for kind, template in self.training_templates(name).items()},
                }
            )
        elif is_local(model):
            source = self.source(name)
            check_source(source)
            found = source_fingerprint(source)
        elif model_backend(model.path or "") == "recorded":
            found = answers_fingerprint(model.path or "")
        else:
            last = self._last_seen.get(name, {})
            is_same = last.get("address") == fingerprint(address_of(model)) and self._known(name, last) is not None
            found = api_fingerprint(model, last["model"] if is_same else None)
        self._weights[name] = found
        return found

    # The order of the queries

    @cached_property
    def order(self) -> tuple[Place, ...]:
        """Every query that is evaluated, in the order in which rows are made.

        A seeded order, interleaved over the tasks and, within them, over the principles that a query is given, so that what
        is there first is a sample of all of it. Which constitutions a query is given does not depend on the order.
        """
        queries = [(task, query.id) for task, data in self.tasks.items() for query in data.evaluation]
        given: dict[Place, list[tuple[str, ...]]] = {place: [] for place in queries}
        for (task, _, _), by_query in self.constitutions.items():
            for query_id, drawn in by_query.items():
                given[task, query_id].append(tuple(sorted({e.principle.id for c in drawn for e in c.elements})))
        strata = [(task, *given[task, query_id]) for task, query_id in queries]
        seed = int(fingerprint(["order", self.spec.seed])[:12], 16)
        return tuple(queries[i] for i in seeded_order(strata, seed))

    @cached_property
    def _queries(self) -> dict[Place, Query]:
        return {(task, query.id): query for task, data in self.tasks.items() for query in data.evaluation}

    def _given(
        self, of_task: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[str, Query, str, str, list[Constitution]]]:
        """Task, query, principle set, split and constitutions, in the order: of one task or all, the first `limit` of each."""
        seen = dict.fromkeys(self.tasks, 0)
        for task, query_id in self.order:
            seen[task] += 1
            if of_task not in (None, task) or (limit is not None and seen[task] > limit):
                continue
            for (name, set_name, split), by_query in self.constitutions.items():
                if name == task:
                    yield task, self._queries[task, query_id], set_name, split, by_query[query_id]

    @cached_property
    def decisions(self) -> tuple[int, ...]:
        """After how many queries of the order the run decides whether to go on; empty where it has no rule for that.

        Raises UserError for a look beyond the last query.
        """
        from harness.stats import UnusableScores

        if self.spec.statistics.stop is None:
            return ()
        try:
            return self.spec.statistics.stop.rule().schedule(len(self.order))
        except UnusableScores as error:
            raise UserError(f"statistics.stop.looks: {error}") from None

    def first(self, n: int) -> Plan:
        """The plan of the first `n` queries of the order. It has the fingerprint of the whole."""
        part = copy(self)
        wanted = set(self.order[:n])
        part.fingerprint = self.fingerprint
        part.stages = tuple(replace(s, units=tuple(u for u in s.units if u.place in wanted)) for s in self.stages)
        part.upto = n
        return part

    def blocks(self, units: Sequence[UnitT]) -> list[list[UnitT]]:
        """`units`, in the order of the plan, in the blocks that a local model's batches are composed of, one after another.

        They end where the run decides whether to go on. A block depends on the plan alone, never on what is there.
        """
        if not self.decisions:
            return [list(units[start : start + BLOCK_ROWS]) for start in range(0, len(units), BLOCK_ROWS)]
        places = {place: number for number, place in enumerate(self.order)}
        ends = self.decisions
        return [list(block) for _, block in groupby(units, key=lambda unit: bisect_right(ends, places[unit.place]))]

    # Stages

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage, a model's together, so that each model is loaded once; judges last."""
        stages: list[Stage] = []
        for name, model in self.spec.models.items():
            if model.train is not None:
                stages.append(
                    Stage(
                        "train",
                        f"train {name}",
                        Path("training") / name,
                        name,
                        fingerprint=self._weights.get(name) or trained_for(self.folder / "training" / name),
                    )
                )
            stages += [self._generation_stage(name, task) for task in self.tasks if self._used(name)]
            if self.spec.measures.infonce and is_local(model) and self._used(name):
                stages += [s for task in self.tasks if (s := self._likelihood_stage(name, task)).units]
        for scorer in dict.fromkeys(self.scorers.values()):
            writers = [name for name, chosen in self.scorers.items() if chosen == scorer]
            stages += [s for name in writers for task in self.tasks if (s := self._relevance_stage(name, task)).units]
        for judge in self.spec.judges:
            stages += [self._pair_stage(judge, c.a, c.b, "win_rate") for c in self.spec.comparisons]
            if self.spec.measures.swapped:
                stages += [self._pair_stage(judge, c.a, c.b, "swapped") for c in self.spec.comparisons]
            if judge in self._steerability_judges():
                stages += [self._steerability_stage(judge, name) for name in self.spec.models if self._used(name)]
        return tuple(stages)

    def stage(self, kind: str, **fields: str) -> Stage:
        """The one stage of a kind with these fields."""
        return next(s for s in self.stages if s.kind == kind and all(getattr(s, k) == v for k, v in fields.items()))

    def _used(self, model: str) -> bool:
        """Whether a model's own responses are wanted (a model that only judges makes none)."""
        return model in self.spec.answering()

    def _steerability_judges(self) -> list[str]:
        """Steerability is measured by the verifiable judges; where there is none, by the first judge."""
        if not self.spec.measures.steerability:
            return []
        exact = [name for name, judge in self.spec.judges.items() if judge.kind == "verifiable"]
        return exact or list(self.spec.judges)[:1]

    @cached_property
    def constitutions(self) -> dict[tuple[str, str, str], dict[str, list[Constitution]]]:
        """(task, principle set, split) -> query id -> the constitutions that win rates are measured under."""
        settings = self.spec.principles
        found: dict[tuple[str, str, str], dict[str, list[Constitution]]] = {}
        for task, data in self.tasks.items():
            for set_name, principle_set in self.sets.items():
                for split in settings.splits:
                    if not (principles := principle_set.select(data.kind, split)):
                        continue
                    found[task, set_name, split] = sample_constitutions(
                        principles,
                        [query.id for query in data.evaluation],
                        per_query=settings.per_query,
                        size=settings.size,
                        polarity=settings.polarity,
                        seed=int(fingerprint([self.spec.seed, task, set_name, split])[:12], 16),
                    )
        return found

    def _with_opposites(self, drawn: list[Constitution]) -> list[Constitution]:
        """The drawn constitutions, and their opposites where contrasts are measured."""
        contrasts = bool(self.spec.measures.steerability or self.spec.measures.infonce)
        sides = [side for c in drawn for side in ((c, c.opposite()) if contrasts else (c,))]
        return list({side.id: side for side in sides}.values())

    def sampling(self, model: str, task: str) -> Sampling:
        """How a model generates on a task."""
        chosen, asked = self.spec.sampling, self.spec.models[model]
        wanted = Sampling(
            max_new_tokens=chosen.max_new_tokens,
            max_prompt_tokens=chosen.max_prompt_tokens,
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            stop=self.templates[task].stop(asked.style, reasoning=chosen.reasoning),
            seed=self.spec.seed,
        )
        return for_model(wanted, asked.path, asked.sampling.given())

    @cached_property
    def _generations(self) -> dict[tuple[str, str], dict[tuple[str, str, str, str, int], GenerationUnit]]:
        """(model, task) -> (principle set, query id, constitution id, split, epoch) -> unit."""
        found: dict[tuple[str, str], dict[tuple[str, str, str, str, int], GenerationUnit]] = {}
        for model, model_spec in self.spec.models.items():
            for task in self.tasks:
                units = found.setdefault((model, task), {})
                sampling = self.sampling(model, task)
                decides = [ROW_VERSION, self.model_fingerprints[model], model_spec.style, sampling.settings]
                own_seeds = is_api(model_spec)  # of each sample; a local model draws all of a batch's from one
                if self.spec.sampling.reasoning:
                    decides += self.templates[task].answer_bounds()
                for _, query, set_name, split, drawn in self._given(task):
                    for constitution in self._with_opposites(drawn):
                        prompt = self.templates[task].render(
                            constitution.lines(),
                            query.text,
                            model_spec.style,
                            example=self.spec.sampling.example if model_spec.example is None else model_spec.example,
                            reasoning=self.spec.sampling.reasoning,
                            prefill=True,
                        )
                        for epoch in range(self.spec.sampling.epochs):
                            key = (set_name, query.id, constitution.id, split, epoch)
                            units[key] = GenerationUnit(
                                fingerprint(["generation", model, task, *key])[:24],
                                fingerprint(
                                    [*decides, prompt.hash, epoch, *(["own seed"] if own_seeds and epoch else [])]
                                ),
                                task,
                                query,
                                constitution,
                                set_name,
                                split,
                                epoch,
                                prompt,
                            )
        return found

    def _generation_stage(self, model: str, task: str) -> Stage:
        units = tuple(self._generations[model, task].values())
        return Stage(
            "generate",
            f"{model} on {task}",
            generations_file(model, task),
            model,
            task=task,
            units=units,
        )

    def _likelihood_stage(self, model: str, task: str) -> Stage:
        units: list[LikelihoodUnit] = []
        for _, query, set_name, split, drawn in self._given(task, self.spec.measures.infonce):
            sides = self._with_opposites(drawn[:1])
            responses = tuple(self._generations[model, task][set_name, query.id, s.id, split, 0] for s in sides)
            units.append(
                LikelihoodUnit(
                    fingerprint(["likelihood", model, task, set_name, split, query.id])[:24],
                    fingerprint([ROW_VERSION, *(r.fingerprint for r in responses)]),
                    query.id,
                    set_name,
                    split,
                    responses,
                )
            )
        return Stage(
            "likelihood",
            f"{model} likelihoods, {task}",
            Path("likelihoods") / model / f"{task}.jsonl",
            model,
            task=task,
            units=tuple(units),
        )

    def _relevance_stage(self, writer: str, task: str) -> Stage:
        settings, scorer = self.spec.measures.relevance, self.scorers[writer]
        assert settings is not None
        queries = {query.id: query for query in self.tasks[task].evaluation}
        scored = set([query_id for of_task, query_id in self.order if of_task == task][: settings.queries])
        decides = [
            ROW_VERSION, RELEVANCE_VERSION, self.model_fingerprints[scorer], self.model(scorer).style, self.tasks[task].kind,
            self.spec.sampling.max_prompt_tokens,
        ]  # fmt: skip
        units = []
        for (set_name, query_id, constitution, split, epoch), response in self._generations[writer, task].items():
            if query_id not in scored:
                continue
            others = [queries[i] for i in other_queries(list(queries), query_id, settings.others, self.spec.seed)]
            place = ["relevance", writer, task, set_name, query_id, constitution, split, epoch]
            texts = [queries[query_id].text, *(query.text for query in others)]
            content = fingerprint([*decides, response.fingerprint, texts])
            if others:
                units.append(RelevanceUnit(fingerprint(place)[:24], content, response, tuple(others)))
        return Stage(
            "relevance",
            f"{writer} relevance, {task}",
            Path("relevance") / writer / f"{task}.jsonl",
            scorer,
            task=task,
            writer=writer,
            units=tuple(units),
        )

    def judge(self, name: str, task: str) -> LLMJudge:
        """An LLM judge's prompt for a task."""
        if (known := self._judges.get((name, task))) is not None:
            return known
        spec = self.spec.judges[name]
        assert spec.model is not None
        model = self.spec.models[spec.model]
        template = load_judge_template(spec.template or self.tasks[task].kind)
        judge = LLMJudge(template, model.style, judge_form(spec, model, template))
        self._judges[name, task] = judge
        return judge

    def judge_form(self, name: str) -> Form:
        """How an LLM judge is asked: in one way, whatever the task."""
        return self.judge(name, next(iter(self.tasks))).form

    def _judge_key(self, name: str, task: str, constitution: Constitution) -> object:
        """All of a judge that decides a verdict."""
        spec: JudgeSpec = self.spec.judges[name]
        if spec.kind == "verifiable":
            return [
                "verifiable",
                JUDGING_VERSION,
                *([e.follows, *check_key(e.principle.check)] for e in constitution.elements),
            ]
        assert spec.model is not None
        judge = self.judge(name, task)
        return [
            "llm",
            JUDGING_VERSION,
            self.model_fingerprints[spec.model],
            judge.template.hash,
            judge.form,
            judge.style,
            constitution.lines(),
            None if judge.form == "choice" else self.judge_sampling(name).settings,
        ]

    def judge_described(self, name: str, task: str) -> dict[str, Any]:
        """What decides a judge's verdicts on a task, principles and seed aside, by what it is called in a sentence."""
        spec = self.spec.judges[name]
        if spec.model is None:
            return {"kind": spec.kind, "rules": JUDGING_VERSION}
        judge = self.judge(name, task)
        sampling = {} if judge.form == "choice" else {**self.judge_sampling(name).settings, "seed": None}
        return {
            "kind": spec.kind, "rules": JUDGING_VERSION, "model": self.model_fingerprints[spec.model],
            "prompt": judge.template.hash, "form": judge.form, "style": judge.style, "sampling": fingerprint(sampling),
        }  # fmt: skip

    def settled(self) -> Spec:
        """The specification with what the environment decided written out: judges held to a schema, the embedded scorer."""
        judges = {}
        for name, judge in self.spec.judges.items():
            if judge.model is not None and judge.structured == "auto" and is_api(self.spec.models[judge.model]):
                forms = {self.judge(name, task).form for task in self.tasks}
                judge = judge.model_copy(update={"structured": "on" if forms == {"structured"} else "off"})
            judges[name] = judge
        measures = self.spec.measures
        if measures.relevance is not None:
            embedded = EMBEDDED_SCORER in self.scorers.values()
            relevance = measures.relevance.model_copy(update={"embedded": embedded})
            measures = measures.model_copy(update={"relevance": relevance})
        return self.spec.model_copy(update={"judges": judges, "measures": measures})

    def judge_sampling(self, name: str) -> Sampling:
        """How an LLM judge that writes does so."""
        spec = self.spec.judges[name]
        assert spec.model is not None
        return judge_sampling(self.judge_form(name), self.spec.seed, spec, self.spec.models[spec.model])

    def judge_draws(self, name: str) -> bool:
        """Whether a judge that is asked twice may say another thing."""
        if self.spec.judges[name].kind == "verifiable":
            return False
        form = self.judge_form(name)
        return draws(form, self.judge_sampling(name))

    def _verdicts(self, judge: str, a: str, b: str, measure: Kind) -> Iterator[VerdictUnit]:
        spec = self.spec.judges[judge]
        orders: tuple[Literal["ab", "ba"], ...] = ("ab",) if spec.kind == "verifiable" else ("ab", "ba")
        for task, query, set_name, split, drawn in self._given(limit=self._judged_queries(judge, measure)):
            seen: set[str] = set()
            for constitution in drawn:
                if measure == "steerability" and constitution.opposite().id in seen:
                    continue  # the same contrast, seen from its other side
                seen.add(constitution.id)
                judged_by = self._judged_by(task, set_name, split, query, constitution, measure)
                key = self._judge_key(judge, task, judged_by)
                for epoch in range(self.spec.sampling.epochs):
                    one = self._generations[a, task][set_name, query.id, constitution.id, split, epoch]
                    other_side = constitution.opposite() if measure == "steerability" else constitution
                    two = self._generations[b, task][set_name, query.id, other_side.id, split, epoch]
                    place = [
                        "verdict",
                        judge,
                        measure,
                        a,
                        b,
                        task,
                        set_name,
                        split,
                        query.id,
                        constitution.id,
                        epoch,
                    ]
                    content = [ROW_VERSION, key, one.fingerprint, two.fingerprint]
                    for repeat in range(spec.epochs):
                        again = [repeat] if repeat else []  # the first judging is what it is without others
                        for order in orders:
                            yield VerdictUnit(
                                fingerprint([*place, order, *again])[:24],
                                fingerprint([*content, order, *again]),
                                judged_by,
                                one,
                                two,
                                order,
                                repeat,
                            )

    def _judged_queries(self, judge: str, measure: Kind) -> int | None:
        """How many queries per task and split a judge sees; None: all."""
        limit, swapped = self.spec.judges[judge].limit, self.spec.measures.swapped
        if measure != "swapped" or swapped is True:
            return limit
        return min(limit or swapped, swapped)

    def _judged_by(
        self, task: str, set_name: str, split: str, query: Query, given: Constitution, measure: Kind
    ) -> Constitution:
        """What judges go by: the constitution that was given, those of its principles that the task names, or another."""
        named = self.spec.tasks[task].judged_by
        places = [i for i, e in enumerate(given.elements) if named is None or e.principle.id in named]
        if not places:
            raise UserError(
                f"tasks.{task}.judged_by: none of {', '.join(map(repr, named or ()))} is in the constitution '{given.id}' of the "
                f"set '{set_name}'; name principles that every constitution holds (see principles.size), or leave the field out"
            )
        whole = self._foreign(task, set_name, split, query, given) if measure == "swapped" else given
        return Constitution(tuple(whole.elements[i] for i in places))

    def _foreign(self, task: str, set_name: str, split: str, query: Query, given: Constitution) -> Constitution:
        """A constitution of the same set, split, size and sides that shares no principle with any the query is given.

        A constitution and its opposite get the same principles from opposite sides.
        """
        taken = {e.principle.id for c in self.constitutions[task, set_name, split][query.id] for e in c.elements}
        own = {e.principle.id for e in given.elements}
        every = self.sets[set_name].select(self.tasks[task].kind, split)
        free = [p for p in every if p.id not in taken]
        if len(free) < len(given.elements):  # the query's constitutions have nearly all principles among them
            free = [p for p in every if p.id not in own]
        if len(free) < len(given.elements):
            raise UserError(
                f"measures.swapped: the set '{set_name}' has {counted(len(every), split.replace('_', '-') + ' principle')} for the "
                f"task '{task}', and a constitution that shares none with one of {len(own)} needs {2 * len(own)}; "
                "lower principles.size, add principles, or set measures.swapped to false"
            )
        seed = fingerprint(["swapped", self.spec.seed, task, set_name, split, query.id, sorted(own)])
        drawn = random.Random(seed).sample(free, len(given.elements))
        return Constitution(tuple(Element(p, e.follows) for p, e in zip(drawn, given.elements, strict=True)))

    def _pair_stage(self, judge: str, a: str, b: str, measure: Kind) -> Stage:
        folder, name = Path("verdicts") / judge, f"{judge}: {a} against {b}"
        if measure == "swapped":
            folder, name = folder / "swapped", f"{name}, swapped"
        return Stage(
            "judge",
            name,
            folder / f"{a}-vs-{b}.jsonl",
            self.spec.judges[judge].model,
            judge=judge,
            pair=(a, b),
            measure=measure,
            units=tuple(self._verdicts(judge, a, b, measure)),
        )

    def _steerability_stage(self, judge: str, model: str) -> Stage:
        path = Path("verdicts") / judge / f"steerability-{model}.jsonl"
        units = tuple(self._verdicts(judge, model, model, "steerability"))
        judging = self.spec.judges[judge].model
        return Stage(
            "judge",
            f"{judge}: {model} steerability",
            path,
            judging,
            judge=judge,
            pair=(model, model),
            measure="steerability",
            units=units,
        )

    def expected_pairs(self) -> list[ExpectedPair]:
        """What every figure rests on when nothing is missing, for `harness.score`."""
        pairs: dict[tuple[Any, ...], tuple[set[str], int, str | None]] = {}
        for stage in self.stages:
            if stage.kind != "judge":
                continue
            for unit in stage.units:
                assert isinstance(unit, VerdictUnit)
                key = (
                    stage.judge, stage.measure, *stage.pair, unit.a.task, unit.a.principle_set, unit.a.split,
                    unit.a.query.id, unit.a.constitution.id, unit.a.epoch,
                )  # fmt: skip
                orders, repeats, _ = pairs.get(key, (set(), 0, None))
                pairs[key] = (orders | {unit.order}, max(repeats, unit.repeat + 1), unit.judged_by)
        return [ExpectedPair._make((*key, tuple(sorted(o)), n, judged)) for key, (o, n, judged) in pairs.items()]

    @cached_property
    def fingerprint(self) -> str:
        """The hash of all that decides the results."""
        rows = [[s.name, s.fingerprint, *(u.fingerprint for u in s.units)] for s in self.stages]
        statistics = self.spec.statistics.model_dump(mode="json")
        return fingerprint([self.spec.name, self.spec.description, statistics, rows])


EMBEDDED_SCORER = "embedded/smollm2-135m-instruct"
"""Scores relevance where the specification has no local model that may."""


def _is_at_hand(name: str) -> bool:
    """Whether an embedded model can be loaded: its package is installed."""
    try:
        check_source(parse_source(name))
    except UserError:
        return False
    return True


def _folded(query: Query) -> str:
    return " ".join(query.text.split())


def is_local(model: ModelSpec) -> bool:
    """Whether a model runs in this process."""
    return model.path is None or model_backend(model.path) in ("embedded", "transformers")


def is_api(model: ModelSpec) -> bool:
    """Whether a model is asked through an API."""
    return model.path is not None and model_backend(model.path) in ("openai", "anthropic")


def judge_sampling(
    form: Form, seed: int, judge: JudgeSpec | None = None, model: ModelSpec | None = None, *, repeats: int = 1
) -> Sampling:
    """How a judge that writes does so: by itself, or held to the schema of a verdict; as it and its model are set.

    A judge that is asked several times (`epochs`, or `repeats`) has the temperature `REPEATED_TEMPERATURE` unless it is set
    otherwise: at 0 its answers to one question would be alike, and tell nothing of its noise.
    """
    wanted = replace(JUDGE_SAMPLING, seed=seed, json_schema=VERDICT_SCHEMA if form == "structured" else None)
    if max(repeats, judge.epochs if judge else 1) > 1:
        wanted = replace(wanted, temperature=REPEATED_TEMPERATURE)
    if model is None:
        return wanted
    said = {**model.sampling.given(), **(judge.given() if judge else {})}
    return for_model(wanted, model.path, said)


def draws(form: Form, sampling: Sampling) -> bool:
    """Whether a judge's answers are drawn: it writes them, at a temperature above 0 or at its provider's own."""
    return form != "choice" and (sampling.temperature > 0 or "temperature" in sampling.omit)


def api_fingerprint(model: ModelSpec, last: str | None = None) -> str:
    """The hash of what is known of an API model: its name, where requests go, and what the server there says of it.

    `last` stands in for it while the server says nothing.
    """
    said = served(model)
    if said is None and last is not None and not is_own(model):
        return last
    return fingerprint([model.path, address_of(model), *([said] if said else [])])


def judge_form(judge: JudgeSpec, model: ModelSpec, template: JudgeTemplate) -> Form:
    """How a judge of kind llm is asked, with every ``auto`` decided."""
    if is_local(model):
        return "text" if judge.form == "text" else "choice"
    if (
        judge.structured == "off"
        or model.style != "chat"
        or (judge.structured == "auto" and template.structured is None)
    ):
        return "text"
    if judge.structured == "on":
        return "structured"
    return "structured" if is_own(model) and family_of(model.path).json_schema else "text"


def check_key(check: Check | None) -> list[Any]:
    """All of a check that decides a score: its name and options, and the code of one that comes from another package."""
    if check is None:
        return [None]
    code = code_of(check.name)
    return [check.model_dump(), *([code] if code else [])]


def models_record(plan: Plan) -> dict[str, Any]:
    """What later plans in the same folder take for `known` or `last_seen`, by field."""
    models = {name: plan.model(name) for name in plan.model_fingerprints}
    return {
        "models": plan.model_fingerprints,
        "models_asked_for": {name: plan.asked_for(name) for name in models},
        "models_addresses": {name: fingerprint(address_of(model)) for name, model in models.items() if is_api(model)},
    }


def build_plan(spec: Spec) -> Plan:
    """Resolve a specification. Raises UserError when a task, a principle set, a template or a model cannot be read."""
    return Plan(spec)


def describe(plan: Plan, folder: Path | None = None, rates: Mapping[str, float] | None = None) -> dict[str, Any]:
    """What a plan comes to: a row per stage, what is done already, how precise it will be, time in seconds where it is known.

    `stop` (null without a rule) has the numbers of queries at which the run decides whether to go on, the most that it takes,
    and the critical values of planned looks; all else is of the most. `precision` has the rows of `harness.precision`,
    `precision_assumes` what they take for granted.
    """
    from harness.precision import ASSUMED, precision

    place = folder or plan.folder
    rates = rates or {}
    rows: list[dict[str, Any]] = []
    for stage in plan.stages:
        done = stage.done(place)
        rows.append(
            {
                "stage": stage.name,
                "kind": stage.kind,
                "expected": stage.expected(),
                "done": done,
                "estimate_s": seconds_left(plan, stage, done, rates),
            }
        )
    known = [float(row["estimate_s"]) for row in rows if row["estimate_s"] is not None]
    total = sum(known) if len(known) == len(rows) else None
    return {
        "name": plan.spec.name,
        "output": str(place),
        "stages": rows,
        "precision": precision(plan),
        "precision_assumes": dict(ASSUMED),
        "estimate_s": total,
        "stop": _described_stop(plan),
    }


def _described_stop(plan: Plan) -> dict[str, Any] | None:
    from harness.stats import obrien_fleming

    if (stop := plan.spec.statistics.stop) is None:
        return None
    return {
        "rule": stop.model_dump(mode="json", exclude_defaults=True),
        "decisions": list(plan.decisions),
        "most": plan.decisions[-1],
        "of": len(plan.order),
        "critical": list(obrien_fleming(stop.looks, plan.spec.statistics.level)) if stop.looks else None,
    }


def seconds_left(plan: Plan, stage: Stage, done: int, rates: Mapping[str, float]) -> float | None:
    """The seconds that a stage takes still, by the seconds per unit of its `rate_key`; None where these are not known."""
    left, rate = stage.expected() - done, rates.get(rate_key(plan, stage))
    return 0.0 if left <= 0 else None if rate is None else rate * left


def rate_key(plan: Plan, stage: Stage) -> str:
    """Under which name the seconds per unit of a stage are remembered between runs: with all that sets their pace."""
    if stage.kind == "train":
        return f"train {stage.fingerprint}"
    if stage.model is None:
        return f"{stage.kind} {plan.spec.judges[stage.judge].kind}"
    model = plan.model(stage.model)
    train = plan.spec.training(stage.model) if stage.model in plan.spec.models else None
    name = f"trained from {plan.spec.models[train.from_].path}" if train else model.path
    form = plan.judge_form(stage.judge) if stage.kind == "judge" else ""
    together = ""
    if is_api(model):
        together = f"connections {model.max_connections}"
    elif stage.kind == "generate" or form == "text":
        together = f"batch {plan.spec.engine.batch_size}"
    parts = (stage.kind, name, stage.task, plan.spec.sampling.max_new_tokens, form, together)
    return " ".join(str(part) for part in parts if part)
