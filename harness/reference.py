"""Pairs whose better answer is known, to hold a judge against: read from a file, written by a model and labelled by
programs, or taken from a finished run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from harness.asking import ONE_BY_ONE, Terms
from harness.judges.llm import identical
from harness.judges.verifiable import compare
from harness.models.base import Backend, Budget, Completion, Request, Sampling
from harness.models.families import for_model
from harness.rows import Generation, Text
from harness.store import RowFile, fingerprint
from harness.tasks import TaskSpec, load_task
from sami_train.constitutions import Constitution, PrincipleSet, load_principle_set, sample_constitutions
from sami_train.data import read_objects, row_id
from sami_train.errors import UserError, nearest
from sami_train.prompts import Prompt, Style, load_template
from sami_train.yamlfile import told

if TYPE_CHECKING:
    from harness.spec import ModelSpec, Spec
    from sami_train.data import Query

Label = Literal["a", "b", "tie"]
TASKS = {"dialogue": "hh-rlhf", "summarization": "tldr"}
"""The bundled task of each kind."""
WRITER_TOKENS = 48
"""Longest response of a pair that is written for the purpose."""


@dataclass(frozen=True)
class LabelledPair:
    """Two answers to a query, and which of them follows the principles better."""

    id: str
    query_id: str
    """Pairs with the same query are not independent."""
    task: str
    """Its kind: dialogue or summarization."""
    query: str
    principles: tuple[str, ...]
    a: str
    b: str
    label: Label
    models: tuple[str, ...] = ()
    """Paths of the models that wrote the answers, as far as they are known."""


# --- A file of one's own ----------------------------------------------------------------------------------------------


def _without_numbers(value: object) -> object:
    """A constitution as one text: a principle a line, numbered or not."""
    if not isinstance(value, str):
        return value
    lines = (re.sub(r"^\s*(?:\d{1,3}[.)]|[-*])\s+", "", line).strip() for line in value.splitlines())
    return [line for line in lines if line]


def _has_words(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty; write the text, or leave the row out")
    return text


_Said = Annotated[Text, AfterValidator(_has_words)]


class _ReferenceRow(BaseModel):
    """A line of a reference file; docs/judges.md describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    query: _Said
    principles: Annotated[tuple[_Said, ...], BeforeValidator(_without_numbers), Field(min_length=1)]
    response_a: Text
    response_b: Text
    label: Label
    id: str | None = None
    task: Literal["dialogue", "summarization"] = "dialogue"
    model_a: str | None = None
    model_b: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _constitution(cls, data: object) -> object:
        if isinstance(data, dict) and "constitution" in data:
            if "principles" in data:
                raise ValueError("it has 'principles' and 'constitution'; keep one of them")
            return {("principles" if key == "constitution" else key): value for key, value in data.items()}
        return data


def read_reference(file: Path, limit: int | None = None) -> list[LabelledPair]:
    """The pairs of a reference file (JSON lines, or one JSON list), the first `limit` of them.

    Raises:
        UserError: the file cannot be read, has no pairs, or its first mistake with line and field.
    """
    pairs: dict[str, LabelledPair] = {}
    for number, (where, row) in enumerate(read_objects(file, "reference"), start=1):
        pair = _parse(row, number, where)
        if pair.id in pairs:
            raise UserError(f"{where}: the id '{pair.id}' stands above already; give each pair its own")
        pairs[pair.id] = pair
        if len(pairs) == limit:
            break
    if not pairs:
        raise UserError(
            f"{file}: there are no pairs in it; write a JSON object a line with query, principles, "
            "response_a, response_b and label (a, b or tie)"
        )
    return list(pairs.values())


def _parse(found: dict[str, Any], number: int, where: str) -> LabelledPair:
    identity = row_id(found, where)
    try:
        row = _ReferenceRow.model_validate({**found, "id": identity})
    except ValidationError as error:
        raise UserError(f"{where}: {_told(error)}") from None
    return LabelledPair(
        id=row.id or str(number),
        query_id=fingerprint(row.query)[:16],
        task=row.task,
        query=row.query,
        principles=row.principles,
        a=row.response_a,
        b=row.response_b,
        label=row.label,
        models=tuple(path for path in (row.model_a, row.model_b) if path),
    )


def _told(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    field = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"'{field}' is missing; every row needs query, principles, response_a, response_b and label"
    if problem["type"] == "extra_forbidden":
        known = [*_ReferenceRow.model_fields, "constitution"]
        return f"there is no field '{field}'; {nearest(field, known)}"
    return f"'{field}': {told(problem)}" if field else told(problem)


# --- Written for the purpose, labelled by programs --------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """A query with a checkable constitution and its opposite, and the two prompts."""

    query: Query
    constitution: Constitution
    prompts: tuple[Prompt, Prompt]
    stop: tuple[str, ...]

    @property
    def ids(self) -> tuple[str, str]:
        one, two = (
            fingerprint(["contrast", self.query.task, self.query.id, side.id])[:24]
            for side in (self.constitution, self.constitution.opposite())
        )
        return one, two


@dataclass(frozen=True)
class Writer:
    """A model that writes responses, ready to be opened."""

    model: ModelSpec
    fingerprint: str
    """The hash of all of the model that decides what it says."""
    open: Callable[[Budget | None], Backend]
    """The model, with what it may cost."""

    @property
    def path(self) -> str:
        """The model's path."""
        assert self.model.path is not None
        return self.model.path


@dataclass(frozen=True)
class Writing:
    """Pairs that a model is to write: on each contrast one response under the constitution and one under its opposite.

    Which of the two is a, and which side of the principle is judged by, is drawn for each query, so that a judge gains
    nothing by a place or by a side. The programs say which response follows the judged side better, or that it is a tie.
    """

    writer: Writer
    contrasts: tuple[Contrast, ...]
    seed: int = 0

    @classmethod
    def draw(
        cls, writer: Writer, *, tasks: Sequence[str] = ("dialogue", "summarization"), limit: int, seed: int = 0
    ) -> Writing:
        """`limit` contrasts on the bundled queries, the `tasks` (kinds) taking turns.

        Raises UserError when there are fewer queries than `limit`.
        """
        return cls(
            writer, tuple(_contrasts(load_principle_set("verifiable"), writer.model.style, tasks, limit, seed)), seed
        )

    def pairs(
        self,
        file: RowFile[Generation],
        *,
        terms: Terms = ONE_BY_ONE,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[LabelledPair]:
        """The pairs. The model is opened only if a response is missing from `file`, and asked on these terms.

        Raises:
            CostLimitReached: the limit of `terms` is reached.
            UserError: a request failed. The other responses are in `file`.
        """
        made = self._made(file)
        if len(made) < len(self._fingerprints):
            self._write(file, made, terms, progress)
        return [self._pair(contrast, *(made[i].text for i in contrast.ids)) for contrast in self.contrasts]

    def prompts_left(self, file: RowFile[Generation]) -> list[Prompt]:
        """The prompts of the responses that are missing from `file`."""
        made = self._made(file)
        return [prompt for i, (_, _, prompt) in self._places.items() if i not in made]

    def foreseen(self, file: RowFile[Generation], n_bytes: int) -> list[LabelledPair]:
        """The pairs with texts of `n_bytes` in the place of the responses that are missing from `file`."""
        texts = {i: row.text for i, row in self._made(file).items()}
        return [
            self._pair(
                contrast, *(texts.get(i, letter * n_bytes) for i, letter in zip(contrast.ids, "ab", strict=True))
            )
            for contrast in self.contrasts
        ]

    @cached_property
    def _places(self) -> dict[str, tuple[Contrast, Constitution, Prompt]]:
        """Every response's contrast, constitution and prompt, by its id."""
        return {
            i: (contrast, side, prompt)
            for contrast in self.contrasts
            for i, side, prompt in zip(
                contrast.ids, (contrast.constitution, contrast.constitution.opposite()), contrast.prompts, strict=True
            )
        }

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        writer = self.writer
        return {
            i: fingerprint(
                ["written", writer.fingerprint, writer.model.style, prompt.hash, WRITER_TOKENS, contrast.stop]
            )
            for i, (contrast, _, prompt) in self._places.items()
        }

    def _made(self, file: RowFile[Generation]) -> dict[str, Generation]:
        known = self._fingerprints
        return {i: row for i, row in file.read().items() if row.fingerprint == known.get(i) and row.error is None}

    def _write(
        self,
        file: RowFile[Generation],
        made: dict[str, Generation],
        terms: Terms,
        progress: Callable[[int, int], None],
    ) -> None:
        """Put the missing responses into `file` and `made`."""
        failed: list[Generation] = []
        backend = self.writer.open(terms.allowance)
        try:
            for stop in dict.fromkeys(contrast.stop for contrast in self.contrasts):
                requests = [
                    Request(i, prompt) for i, (contrast, _, prompt) in self._places.items() if contrast.stop == stop
                ]
                sampling = for_model(
                    Sampling(max_new_tokens=WRITER_TOKENS, max_prompt_tokens=1024, stop=stop, seed=self.seed),
                    self.writer.path,
                )
                batches = file.path.parent / "batches" / f"{file.path.stem}-{fingerprint(stop)[:8]}"
                for batch in terms.answers(
                    backend, requests, sampling, set(made), what=self.writer.path, folder=batches
                ):
                    rows = [self._row(one) for one in batch if one.id not in made]
                    file.append(rows)
                    made.update({row.id: row for row in rows if row.error is None})
                    failed += [row for row in rows if row.error is not None]
                    progress(len(made), len(self._places))
        finally:
            backend.close()
        if failed:
            raise UserError(
                f"the model '{self.writer.path}' gave no response to {len(failed)} of {len(self._places)} prompts "
                f"({failed[0].error}); run the same command again, what is there is kept"
            )

    def _row(self, one: Completion) -> Generation:
        contrast, side, prompt = self._places[one.id]
        return Generation(
            id=one.id, fingerprint=self._fingerprints[one.id], model=self.writer.path, task=contrast.query.task,
            query_id=contrast.query.id, constitution_id=side.id, principle_set="verifiable",
            split=side.elements[0].principle.split, prompt_hash=prompt.hash, prompt=one.prompt, text=one.text,
            reasoning=one.reasoning, finish_reason=one.finish_reason, n_prompt_tokens=one.n_prompt_tokens, n_tokens=one.n_tokens,
            truncated=one.truncated, error=one.error,
            usage={name: value for name, value in one.usage.items() if name != "latency_s"},
        )  # fmt: skip

    def _pair(self, contrast: Contrast, under: str, opposite: str) -> LabelledPair:
        coins = int(fingerprint(["coins", self.seed, contrast.query.task, contrast.query.id])[:8], 16)
        judged = contrast.constitution if coins & 1 else contrast.constitution.opposite()
        a, b = (under, opposite) if coins & 2 else (opposite, under)
        return LabelledPair(
            id=f"{contrast.query.id}-{judged.id}",
            query_id=contrast.query.id,
            task=contrast.query.task,
            query=contrast.query.text,
            principles=tuple(judged.lines()),
            a=a,
            b=b,
            label=compare(
                judged, a, b, shown=(*contrast.query.not_to_copy, *(prompt.frame for prompt in contrast.prompts))
            )[0],
            models=(self.writer.path,),
        )


def _contrasts(
    principle_set: PrincipleSet, style: Style, tasks: Sequence[str], limit: int, seed: int
) -> list[Contrast]:
    by_task: list[Iterator[Contrast]] = []
    n = 0
    for task in tasks:
        queries = load_task(TASKS[task], TaskSpec(task=TASKS[task])).evaluation
        n += len(queries)
        principles = [p for p in principle_set.select(task) if p.check is not None]
        drawn = sample_constitutions(
            principles, [q.id for q in queries], per_query=1, size=1, polarity="principle", seed=seed
        )
        template = load_template(task)

        def of_task(queries: Any = queries, drawn: Any = drawn, template: Any = template) -> Iterator[Contrast]:
            for query in queries:
                one = drawn[query.id][0]
                prompts = tuple(template.render(side.lines(), query.text, style) for side in (one, one.opposite()))
                yield Contrast(query, one, prompts, template.stop(style))  # type: ignore[arg-type]

        by_task.append(of_task())
    if limit > n:
        raise UserError(f"--limit asks for {limit} pairs, but there are {n} bundled queries; lower it")
    found: list[Contrast] = []
    while len(found) < limit:
        found += [contrast for of_one in by_task if (contrast := next(of_one, None)) is not None]
    return found[:limit]


# --- Of a finished run ------------------------------------------------------------------------------------------------


def pairs_of_run(folder: Path, limit: int | None = None) -> list[LabelledPair]:
    """The pairs that a run compares, labelled by the programs: response of a against response of b, as in its win rates.

    `limit` counts pairs, taken evenly over the run's comparisons.

    Raises:
        UserError: the folder is no run, its principles have no checks, or responses are missing.
    """
    from harness.judges.verifiable import require_checks
    from harness.plan import VerdictUnit, build_plan
    from harness.spec import load_spec

    if not (folder / "spec.yaml").is_file():
        raise UserError(f"{folder}: this folder has no spec.yaml, so it is no run; name a run's folder")
    plan = build_plan(load_spec(folder / "spec.yaml", {"output": str(folder)}))
    for principle_set in plan.sets.values():
        require_checks(principle_set.principles, principle_set=principle_set.name)
    texts = {
        row.id: row.text
        for stage in plan.stages
        if stage.kind == "generate"
        for row in stage.finished_rows(folder).values()
    }
    by_pair: dict[tuple[str, str], dict[str, LabelledPair]] = {}
    for stage in plan.stages:
        if stage.kind != "judge" or stage.measure != "win_rate":
            continue
        found = by_pair.setdefault(stage.pair, {})
        for unit in stage.units:
            assert isinstance(unit, VerdictUnit)
            if unit.a.id not in texts or unit.b.id not in texts:
                continue
            one, other = texts[unit.a.id], texts[unit.b.id]
            i = fingerprint([*stage.pair, unit.a.id, unit.b.id])[:24]
            found[i] = LabelledPair(
                id=i,
                query_id=unit.a.query.id,
                task=plan.tasks[unit.a.task].kind,
                query=unit.a.query.text,
                principles=tuple(unit.constitution.lines()),
                a=one,
                b=other,
                label=compare(unit.constitution, one, other, shown=unit.shown, principle_set=unit.a.principle_set)[0],
                models=tuple(dict.fromkeys(_path(plan.spec, name) for name in stage.pair)),
            )
    taken = _in_turns([list(found.values()) for found in by_pair.values()])
    if not taken:
        raise UserError(f"{folder}: the run has no responses yet; go on with: harness run {folder / 'spec.yaml'}")
    return taken[:limit]


def _path(spec: Spec, name: str) -> str:
    """The path of the model that training goes back to."""
    train = spec.training(name)
    return str(spec.models[name].path) if train is None else _path(spec, train.from_)


def _in_turns(lists: list[list[LabelledPair]]) -> list[LabelledPair]:
    longest = max(map(len, lists), default=0)
    return [one[index] for index in range(longest) for one in lists if index < len(one)]


def distinct_texts(pairs: Sequence[LabelledPair]) -> int:
    """How many pairs a judge has to look at: those whose two texts are not the same."""
    return sum(not identical(pair.a, pair.b) for pair in pairs)
