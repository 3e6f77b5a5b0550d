"""The run specification: one YAML file that says which models, tasks, principles and judges are put together.

`load_spec` reads a preset or a file. What is given more closely wins: overrides (the command line), then the
environment (`ENVIRONMENT`), then the file's changes for other models (`PRESET_MODELS`), then the file, then the defaults
below. Whether what it names exists is a question for `harness.validation`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_serializer,
    model_validator,
)

from harness.tasks.base import BUNDLED, HUB, TaskSpec
from sami_train.constitutions import Polarity, Split
from sami_train.errors import Problems, UserError, nearest
from sami_train.prompts import Style
from sami_train.text import expanded, whole_characters
from sami_train.yamlfile import Dumper, LinedDocument, Location, Problem, as_written, parse_yaml, problems, read_yaml

if TYPE_CHECKING:
    from harness.stats import StopRule

PRESETS = Path(__file__).resolve().parent / "presets"
"""Where the presets lie; a preset's name is its path in here without the suffix."""

ENVIRONMENT = {
    "HARNESS_SEED": "seed",
    "HARNESS_OUTPUT": "output",
    "HARNESS_LIMIT": "tasks.*.limit",
    "HARNESS_DEVICE": "engine.device",
    "HARNESS_DTYPE": "engine.dtype",
    "HARNESS_BATCH_SIZE": "engine.batch_size",
    "HARNESS_THREADS": "engine.threads",
}
"""Environment variables that are read, and the field that each one sets (`*`: for every task)."""

BackendName = Literal["embedded", "transformers", "recorded", "openai", "anthropic"]
PRESET_MODELS = "preset_models"
"""The block of a file with changes for other models: by name, dotted fields and their values, as in overrides."""

DType = Literal["auto", "float32", "bfloat16", "float16"]


class SpecError(Problems):
    """An invalid specification. Its message has a line for each of `problems`."""

    rest: Spec | None = None
    """The specification with what is wrong replaced, where that can be done, so that its other problems can be found."""
    replaced: tuple[Location, ...] = ()
    """What `rest` does not have as the file has it."""


# --- The models. Numbers are strict: `yes` or `"3"` is no number.


def _auto_or_count(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"{as_written(value)} is neither 'auto' nor a whole number of at least 1")


def _switch_or_count(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, int) and value >= 1):
        return value
    raise ValueError(f"{as_written(value)} is neither true, false nor a whole number of at least 1")


def _device(value: object) -> object:
    name, _, number = str(value).partition(":")
    if value in ("auto", "cpu", "cuda") or (name == "cuda" and number.isdecimal()):
        return value
    raise ValueError(f"there is no device {as_written(value)}; write auto, cpu, cuda, or cuda:0 for one of several")


def _switch(value: object) -> object:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # YAML reads on and off as booleans


Count = Annotated[int, Field(strict=True, ge=1)]
Flag = Annotated[bool, Field(strict=True)]
Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]
FlagOrCount = Annotated[bool | int, BeforeValidator(_switch_or_count)]
CountOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_count)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


Auto = Literal["auto"]
_FORBIDDEN = frozenset(
    ("model", "messages", "prompt", "system", "stream", "n", "best_of", "max_tokens", "max_completion_tokens")
)


def _extra(value: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(_FORBIDDEN & value.keys()):
        hint = "set max_new_tokens" if taken[0].startswith("max_") else "leave it out"
        raise ValueError(f"'{taken[0]}' is set by the harness; {hint}")
    return value


class RequestOptions(_Part):
    """How one model is asked. `auto` is what the run's `sampling`, the judge's defaults and `harness/models/models.yaml` say."""

    max_new_tokens: Count | Auto = Field(
        default="auto", description="tokens of an answer at most, reasoning included; auto: room for reasoning is added"
    )
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | Auto | None = Field(
        default="auto", description="0 is greedy; null (API models): a request leaves it out"
    )
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] | Auto | None = Field(
        default="auto", description="nucleus: probability kept; null (API models): a request leaves it out"
    )
    reasoning: Literal["none", "low", "medium", "high"] | Count | None = Field(
        default=None, description="API models: how much it reasons, in words or tokens; null: as it does by itself"
    )
    extra: Annotated[dict[str, Any], AfterValidator(_extra)] = Field(
        default_factory=dict, description="API models: further fields of a request; one that is null is left out"
    )

    def given(self) -> dict[str, Any]:
        """What is said here, by name; see `harness.models.families.for_model`."""
        names = RequestOptions.model_fields
        found = {name: value for name in names if (value := getattr(self, name)) not in ("auto", {})}
        return {name: value for name, value in found.items() if name != "reasoning" or value is not None}


class TrainSpec(_Part):
    """How a model of the run is trained from another one."""

    recipe: str = Field(description="a shipped recipe (sami_train/recipes, without the suffix), or a .yaml file")
    from_: str = Field(alias="from", description="the model of this specification that it starts from: local weights")
    tasks: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="tasks whose training queries are used; null: all tasks"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="changes to the recipe, field: value")


class ModelSpec(_Part):
    """A model: one that exists (`path`), one that the run trains (`train`), or an earlier iteration of such a one."""

    path: str | None = Field(
        default=None,
        description="embedded/NAME, a folder, a hub id org/name[@revision], openai/NAME, anthropic/NAME or recorded/FOLDER",
    )
    train: TrainSpec | None = Field(default=None, description="instead of `path`: train it")
    iteration_of: str | None = Field(
        default=None, description="instead of `path`: what a model above, which the run trains, is after `iteration`"
    )
    iteration: Count | None = Field(default=None, description="with `iteration_of`: which of its iterations, from 1")
    style: Style = Field(description="completion: a base model continues a text; chat: messages in a chat template")
    revision: str | None = Field(default=None, description="hub ids: branch, tag or commit, as `@revision` in the path")
    dtype: DType | None = Field(default=None, description="of the weights; null: as engine.dtype says")
    example: Flag | None = Field(
        default=None,
        description="put the template's worked examples first (style completion); null: as sampling.example says",
    )
    trust_remote_code: Flag = Field(default=False, description="run code that lies in the model's folder")
    base_url: str | None = Field(default=None, description="API models: another server's address; null: the provider's")
    max_connections: Count = Field(default=8, description="API models: requests in flight")
    max_retries: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=6, description="API models: tries after a failed one"
    )
    timeout_s: Annotated[float, Field(strict=True, gt=0)] | None = Field(
        default=None,
        description="API models: seconds for one try; null: 60, and 600 for models that are known to reason",
    )
    sampling: RequestOptions = Field(default=RequestOptions(), description="how this model is asked, as a judge too")

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSpec:
        named = [field for field in ("path", "train", "iteration_of") if getattr(self, field) is not None]
        if len(named) != 1:
            has = "none of them" if not named else " and ".join(f"'{field}'" for field in named)
            raise ValueError(
                "a model has 'path' (it exists), 'train' (the run makes it) or 'iteration_of' (the run makes it on the "
                f"way to another); this one has {has}"
            )
        if (self.iteration_of is None) != (self.iteration is None):
            raise ValueError("'iteration_of' and 'iteration' go together; give both, or neither")
        backend = model_backend(self.path or "")
        if backend not in ("openai", "anthropic") and (option := api_only(self.sampling)):
            raise ValueError(f"'sampling.{option}' is for API models; leave it out")
        if problem := reasoning_problem(self.path, self.sampling):
            raise ValueError(problem)
        address = urlsplit(self.base_url or "")
        if "@" in address.netloc or address.query:
            raise ValueError(
                "'base_url' holds a user name, a password or a query, which the run's folder would keep; leave it out and put "
                f"the key into {(backend if backend in ('openai', 'anthropic') else 'openai').upper()}_API_KEY"
            )
        return self


class RunTask(TaskSpec):
    """A task of the run: where its queries come from (see `TaskSpec`), and how they are put to a model."""

    template: str | None = Field(
        default=None, description="a prompt template, by name or .yaml file; null: that of its kind"
    )
    judged_by: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="ids of those principles of a constitution that judges go by; null: all of them",
    )

    def task_spec(self) -> TaskSpec:
        """What `load_task` takes."""
        return TaskSpec(**self.model_dump(exclude={"template", "judged_by"}))


class PrinciplesSpec(_Part):
    """What the models are asked to follow."""

    sets: tuple[str, ...] = Field(min_length=1, description="principle sets, by name or .yaml file")
    folders: tuple[str, ...] = Field(default=(), description="further folders in which names of sets are looked up")
    splits: tuple[Split, ...] = Field(
        default=("learned", "held_out"),
        min_length=1,
        description="evaluated principles: those of training, those kept from it",
    )
    per_query: Count = Field(default=1, description="constitutions drawn for a query, per set and split")
    size: Count = Field(default=1, description="principles in a constitution")
    polarity: Polarity = Field(default="both", description="sides taken: principle, antithesis, both, random")


def api_only(options: RequestOptions) -> str | None:
    """The name of the first option that only an API model has; None where there is no such option."""
    for name, value in options.given().items():
        if name in ("reasoning", "extra") or value is None:
            return name
    return None


def reasoning_problem(path: str | None, options: RequestOptions) -> str | None:
    """Why a model cannot reason as its options say; None where it can."""
    from harness.models.families import family_of, thinking

    how, wanted = family_of(path).reasoning, options.reasoning
    if isinstance(wanted, int) and how != "budget":
        return f"'reasoning' is {wanted}, and '{path}' takes no number of tokens; write none, low, medium or high"
    most = options.max_new_tokens
    if how == "budget" and wanted not in (None, "none") and isinstance(most, int) and most <= thinking(path, wanted):
        return f"'max_new_tokens' is {most}, and reasoning alone may take {thinking(path, wanted)}; raise it"
    if how == "budget" and isinstance(wanted, int) and wanted < 1024:
        return f"'reasoning' is {wanted}, and '{path}' takes at least 1024 tokens; raise it"
    return None


class JudgeSpec(RequestOptions):
    """Who says which of two responses follows the constitution better, and how it is asked."""

    kind: Literal["verifiable", "llm"] = Field(description="verifiable: programs score the text; llm: a model compares")
    model: str | None = Field(default=None, description="llm: the model of this specification that judges")
    limit: Count | None = Field(default=None, description="queries judged per task and split, drawn; null: all")
    template: str | None = Field(
        default=None, description="llm: a judge prompt, by name or .yaml file; null: that of the task"
    )
    form: Literal["auto", "text", "choice"] = Field(
        default="auto",
        description="llm: text: it reasons and writes a verdict; choice: its probabilities of A and B are read (local "
        "models only); auto: choice for local models, text for others",
    )
    structured: Switch = Field(
        default="auto",
        description="llm, form text, API models: have the provider hold the answer to a JSON schema; auto: at OpenAI's and "
        "Anthropic's own addresses, for models that can; other servers when set to on",
    )
    epochs: Count = Field(
        default=1, description="llm: times each pair is judged, which tells the judge's noise from the queries'"
    )

    @model_validator(mode="after")
    def _fits(self) -> JudgeSpec:
        if self.kind == "llm" and self.model is None:
            raise ValueError("a judge of kind 'llm' needs 'model'; name one of the models")
        if self.form == "choice" and self.structured == "on":
            raise ValueError("with 'form: choice' nothing is written; leave 'structured' out, or set form: text")
        for option in ("model", "template", "form", "structured", *RequestOptions.model_fields):
            if self.kind == "verifiable" and getattr(self, option) != JudgeSpec.model_fields[option].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"a verifiable judge has no '{option}'; leave it out, or set kind: llm")
        if self.kind == "verifiable" and self.epochs > 1:
            raise ValueError("a verifiable judge says the same each time; leave 'epochs' out, or set kind: llm")
        return self


class ComparisonSpec(_Part):
    """A pair of models: win rates are those of `a` against `b`."""

    a: str = Field(description="a model of this specification")
    b: str = Field(description="another one")


class SamplingSpec(_Part):
    """How responses are generated."""

    max_new_tokens: Count = Field(default=350, description="longest response, in tokens")
    max_prompt_tokens: Annotated[int, Field(strict=True, ge=16)] = Field(
        default=1024, description="longest prompt, in tokens; the query is shortened to fit (local models only)"
    )
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] = Field(default=0.0, description="0 is greedy")
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        default=1.0, description="nucleus: probability kept"
    )
    epochs: Count = Field(default=1, description="responses per query and constitution")
    example: Flag = Field(default=False, description="put the template's worked example first (style completion)")
    reasoning: Flag = Field(
        default=False,
        description="reason before the answer, as the template's form of that name asks; only the answer counts",
    )


class RelevanceSpec(_Part):
    """Whether responses depend on their query (`sami_train.relevance`)."""

    scorer: str | None = Field(
        default=None,
        description="the local model that scores, by its name here or as embedded/NAME; null: one of this specification that "
        "is not the writer nor what the writer is trained from, or else embedded/smollm2-135m-instruct",
    )
    embedded: bool | None = Field(
        default=None,
        description="whether embedded/smollm2-135m-instruct scores where no other model may; null: where it is installed",
    )
    queries: Count = Field(default=60, description="queries per task and split whose responses are scored")
    others: Count = Field(default=4, description="other queries that a response is held against")


def _switch_or_part(value: object) -> object:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class MeasuresSpec(_Part):
    """What is measured besides win rates."""

    steerability: Flag = Field(
        default=True, description="responses under a principle against those under its antithesis"
    )
    infonce: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=0,
        description="queries per task and split, drawn, for the mutual information; 0: off; API models are passed over",
    )
    swapped: FlagOrCount = Field(
        default=False,
        description="the control: the same pairs judged by a constitution that neither model was given, on so many "
        "queries per task and split, drawn; true: all",
    )
    relevance: Annotated[RelevanceSpec | None, BeforeValidator(_switch_or_part)] = Field(
        default=RelevanceSpec(),
        description="the share of other queries under which a scorer finds a response less likely; false: off",
    )

    @field_serializer("relevance")
    def _off(self, relevance: RelevanceSpec | None) -> dict[str, Any] | Literal[False]:
        return False if relevance is None else relevance.model_dump(mode="json")


class StopSpec(_Part):
    """When a run has enough queries before all are judged: exactly one of `half_width`, `looks` and `anytime`."""

    half_width: Annotated[float, Field(strict=True, gt=0, lt=0.5)] | None = Field(
        default=None, description="half the width of the win rate's interval that is narrow enough, as a fraction"
    )
    at_least: Count | None = Field(default=None, description="with half_width: queries before that; null: 30")
    looks: tuple[Count, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="numbers of queries, over all tasks, ascending, at which one half is tested",
    )
    anytime: Flag = Field(default=False, description="stop as soon as the betting interval leaves one half")

    @model_validator(mode="after")
    def _one_rule(self) -> StopSpec:
        named = [name for name in ("half_width", "looks", "anytime") if getattr(self, name)]
        if len(named) != 1:
            has = "none of them" if not named else " and ".join(f"'{name}'" for name in named)
            raise ValueError(f"a rule has one of 'half_width', 'looks' and 'anytime: true'; this one has {has}")
        if self.at_least is not None and self.half_width is None:
            raise ValueError("'at_least' goes with 'half_width'; leave it out")
        if self.looks and list(self.looks) != sorted(set(self.looks)):
            raise ValueError("'looks' are ascending numbers of queries, such as [50, 100, 150]")
        return self

    def rule(self) -> StopRule:
        """What `harness.stats` takes."""
        from harness.stats import StopRule

        return StopRule(self.half_width, self.at_least or 30, self.looks or (), self.anytime)


class StatisticsSpec(_Part):
    """Of the figures."""

    level: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(default=0.95, description="of confidence intervals")
    max_unscored: Annotated[float, Field(strict=True, ge=0, le=1)] = Field(
        default=0.02, description="share of unscored verdicts above which the run fails its quality check"
    )
    stop: StopSpec | None = Field(
        default=None,
        description="end the run before all queries are judged, once every comparison has decided by the first judge",
    )


class EngineSpec(_Part):
    """Where and how local models run. None of it is meant to change what is measured."""

    device: Annotated[str, BeforeValidator(_device)] = Field(
        default="auto", description="auto, cpu, cuda, or cuda:NUMBER"
    )
    dtype: DType = Field(default="auto", description="of the weights, where the model says nothing else")
    batch_size: CountOrAuto = Field(default="auto", description="prompts generated together")
    threads: CountOrAuto = Field(default="auto", description="CPU threads; processes that train together share them")
    devices: CountOrAuto = Field(
        default="auto", description="processes that train together, with a device each; auto: all GPUs, or one CPU"
    )

    @model_validator(mode="after")
    def _enough_devices(self) -> EngineSpec:
        if ":" in self.device and self.devices not in ("auto", 1):
            raise ValueError(f"'device' is one GPU ({self.device}) and 'devices' {self.devices}; write device: cuda")
        return self


class Spec(_Part):
    """A run. Field by field what the YAML file has; names of models, tasks and judges become names of files."""

    name: str = Field(description="of the run")
    description: str = Field(default="", description="one sentence, for the report")
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = Field(default=0, description="of every draw")
    models: dict[str, ModelSpec] = Field(min_length=1, description="by the name that tables show")
    tasks: dict[str, RunTask] = Field(min_length=1, description="by the name that tables show")
    principles: PrinciplesSpec
    judges: dict[str, JudgeSpec] = Field(min_length=1, description="by the name that tables show")
    comparisons: tuple[ComparisonSpec, ...] = Field(
        default=(),
        description="which models meet; a model in none of them only judges or is trained from. Left out: nothing is compared, "
        "and every model that does not judge is measured by itself",
    )
    sampling: SamplingSpec = SamplingSpec()
    measures: MeasuresSpec = MeasuresSpec()
    statistics: StatisticsSpec = StatisticsSpec()
    engine: EngineSpec = EngineSpec()
    output: str = Field(min_length=1, description="the run's folder, relative to the current one; by default runs/NAME")

    _document: LinedDocument = PrivateAttr(default_factory=lambda: LinedDocument(Path("specification"), None))

    @model_validator(mode="before")
    @classmethod
    def _default_output(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("output") is None and isinstance(data.get("name"), str):
            return {**data, "output": f"runs/{data['name']}"}
        return data

    @property
    def path(self) -> Path:
        """The file that it was read from."""
        return self._document.path

    @property
    def document(self) -> LinedDocument:
        """Its values with their places in the file, for messages."""
        return self._document

    def trained(self, name: str) -> str | None:
        """The model whose training makes `name`: itself, or the one that it is an iteration of; None for one that exists."""
        model = self.models[name]
        return name if model.train is not None else model.iteration_of

    def training(self, name: str) -> TrainSpec | None:
        """How a model is trained; None for one that exists."""
        trained = self.trained(name)
        return None if trained is None else self.models[trained].train

    def answering(self) -> set[str]:
        """The models whose own responses are measured: those compared; where nothing is, those that do not judge, or all."""
        judging = {judge.model for judge in self.judges.values()}
        compared = {name for pair in self.comparisons for name in (pair.a, pair.b)}
        return compared or self.models.keys() - judging or set(self.models)

    def dump(self) -> str:
        """The whole specification as YAML, every default written out: loaded again, it says the same."""
        data = self.model_dump(mode="json", by_alias=True)
        return yaml.dump(_without_nulls(data), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


def _without_nulls(data: Any) -> Any:
    if isinstance(data, dict):
        return {
            key: value if key == "extra" else _without_nulls(value)
            for key, value in data.items()
            if value is not None or key in ("temperature", "top_p")  # whose default is another
        }
    return data


def model_backend(path: str) -> BackendName:
    """Which back end runs the model of a path. A folder or a hub id is one for transformers."""
    prefix = path.partition("/")[0]
    for name in ("embedded", "recorded", "openai", "anthropic"):
        if prefix == name and "/" in path:
            return name  # type: ignore[return-value]
    return "transformers"


# --- Reading


def list_presets() -> list[str]:
    """The names of the presets."""
    return sorted(file.relative_to(PRESETS).with_suffix("").as_posix() for file in PRESETS.rglob("*.yaml"))


def load_spec(
    name_or_path: str | Path, overrides: Mapping[str, Any] | None = None, *, preset_models: str | None = None
) -> Spec:
    """Read a preset or a file, and put the environment and `overrides` over it.

    Args:
        name_or_path: a preset's name (see `list_presets`) or a YAML file.
        overrides: dotted field to value, for example ``{"sampling.max_new_tokens": 64, "tasks.*.limit": 8}``; a value
            that is text counts as text, so read it as YAML before where numbers are meant.
        preset_models: other models to run it on, by a name in the file's block `preset_models`.

    Paths may begin with `~` or have variables such as $HOME. Relative paths in the file are taken from the file's folder if
    they are there, and from the current folder otherwise; those of overrides from the current folder.

    Raises:
        SpecError: there is no such preset or file, or what is wrong in it by itself, each with file, line and field.
    """
    try:
        layers = _Layers.of(read_yaml(_find(name_or_path), what="specification"))
        layers.choose_models(preset_models)
        for variable, key in ENVIRONMENT.items():
            if text := os.environ.get(variable, "").strip():
                layers.put(key, parse_yaml(text, Path(variable)).data, variable)
        for key, value in (overrides or {}).items():
            layers.put(key, value, f"option {key}")
        layers.resolve_paths()
    except Problems as error:
        raise SpecError(*error.problems) from None
    except UserError as error:
        raise SpecError(one_line(str(error))) from None
    try:
        spec = Spec.model_validate(layers.data)
    except ValidationError as error:
        wrong = SpecError(*(problem.sentence for problem in _problems(error, layers)))
        wrong.rest, wrong.replaced = _replaced(layers)
        raise wrong from None
    spec._document = layers
    return spec


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if text in list_presets():
        return PRESETS / f"{text}.yaml"
    if text.endswith((".yaml", ".yml")) or (is_there(Path(text)) and Path(text).is_file()):
        return expanded(text)
    raise UserError(f"there is no preset '{text}'; {nearest(text, list_presets())} (a file's name ends in .yaml)")


@dataclass(frozen=True)
class _Layers(LinedDocument):
    """A specification's values with where each comes from: a line of the file, a variable, an option."""

    origins: dict[Location, str] = field(default_factory=dict)

    @classmethod
    def of(cls, document: LinedDocument) -> _Layers:
        if not isinstance(document.data, dict):
            raise UserError(f"{document.path}:1: a specification is a mapping of fields; this is not one")
        return cls(document.path, document.data, document.lines)

    def where(self, location: Location) -> str:
        for end in range(len(location), -1, -1):
            if location[:end] in self.origins:
                return self.origins[location[:end]]
            if location[:end] in self.lines:
                below = [name for at, name in self.origins.items() if at[: len(location)] == location]
                return below[0] if end < len(location) and below else super().where(location)
        return super().where(location)

    def choose_models(self, name: str | None) -> None:
        """Take the block of changes for other models out, and make those of a name, as if the file had said so itself."""
        known = self.data.pop(PRESET_MODELS, None)
        known = {} if known is None else known
        for location in ((PRESET_MODELS,), *((PRESET_MODELS, key) for key in known if isinstance(known, dict))):
            block = known if len(location) == 1 else known[location[1]]
            if not isinstance(block, dict):
                shown = ".".join(location)
                raise UserError(
                    f"{self.where(location)}: '{shown}' must be a mapping, by name, of fields and their values"
                )
        if name is None:
            return
        if name not in known:
            hint = nearest(name, known) if known else f"it has no block '{PRESET_MODELS}'"
            raise UserError(f"{self.path}: this specification has no models '{name}' to run on instead; {hint}")
        for key, value in known[name].items():
            place = (PRESET_MODELS, name, key)
            lines = {line[len(place) :]: n for line, n in self.lines.items() if line[: len(place)] == place}
            for location in self.put(key, value, self.where(place)):
                del self.origins[location]
                self.lines.update({(*location, *below): n for below, n in lines.items()})

    def put(self, key: str, value: Any, origin: str) -> list[Location]:
        """Set the field of a dotted key, and say where; the blocks above it are made where they are missing."""
        if isinstance(value, str) and value != whole_characters(value):
            raise UserError(f"{origin}: this value is not UTF-8 text; write it in UTF-8")
        locations = self._locations(key, origin)
        for location in locations:
            node: Any = self.data
            for part in location[:-1]:
                if node.get(part) is None:
                    node[part] = {}
                node = node[part]
            node[location[-1]] = value
            for old in [known for known in self.origins if known[: len(location)] == location]:
                del self.origins[old]
            for line in [known for known in self.lines if known[: len(location)] == location]:
                del self.lines[line]
            self.origins[location] = origin
        return locations

    def _locations(self, key: str, origin: str) -> list[Location]:
        """The places that a dotted key means: one, or with `*` one for every name there. Names may have dots."""
        found: list[tuple[Location, Any, str]] = [((), self.data, key)]
        places: list[Location] = []
        while found:
            location, node, rest = found.pop(0)
            if node is not None and not isinstance(node, dict):
                shown = ".".join(map(str, location))
                raise UserError(f"{origin}: '{shown}' has no fields of its own; set it as a whole")
            node = node or {}
            names = list(node)
            if rest.startswith("*."):
                found += [((*location, name), node[name], rest[2:]) for name in names]
                continue
            fitting = [name for name in names if rest.startswith(f"{name}.")]
            if "." not in rest or rest in names:
                places.append((*location, rest))
            elif fitting:
                name = max(fitting, key=len)
                found.append(((*location, name), node[name], rest[len(name) + 1 :]))
            elif location in {("models",), ("tasks",), ("judges",)}:
                name = rest.partition(".")[0]
                raise UserError(f"{origin}: there is no '{location[0]}.{name}'; {nearest(name, names)}")
            else:
                name, _, rest = rest.partition(".")
                found.append(((*location, name), None, rest))
        return places

    def resolve_paths(self) -> None:
        """Put in what `~` and variables stand for, and make the paths absolute that are there."""
        for location, value in list(_walk(self.data)):
            if not _is_path(location, value):
                continue
            prefix = next((p for p in ("transformers/", "recorded/") if value.startswith(p)), "")
            named = value.removeprefix(prefix)
            path = expanded(named)
            in_file = self.where(location) not in self.origins.values()
            bases = [self.path.absolute().parent, Path()] if in_file else [Path()]
            there = next((base / path for base in bases if is_there(base / path)), None)
            if location == ("output",):  # relative to the current folder, wherever the file is
                there = None
            if there is not None or path != Path(named):
                node: Any = self.data
                for part in location[:-1]:
                    node = node[part]
                node[location[-1]] = f"{prefix}{path if there is None else there.absolute()}"


def _walk(node: Any, location: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Every value with its place, the document itself first."""
    yield location, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from _walk(value, (*location, key))


def _is_path(location: Location, value: object) -> bool:
    """Whether a value is a path, or may be one (a model's folder looks like a hub id)."""
    if not isinstance(value, str) or not value:
        return False
    is_yaml = value.endswith((".yaml", ".yml"))
    match location:
        case ("models", _, "path"):
            return model_backend(value) in ("transformers", "recorded")
        case ("models", _, "train", "recipe") | ("tasks" | "judges", _, "template"):
            return is_yaml
        case ("tasks", _, "source" | "train_source"):
            return value not in (BUNDLED, HUB)
        case ("principles", "sets", _):
            return is_yaml or os.sep in value
        case ("principles", "folders", _) | ("output",):
            return True
    return False


_HINTS = {
    "style": "add 'style: completion' for a base model, 'style: chat' for one that has a chat template",
    "kind": "add 'kind: verifiable' or 'kind: llm'",
}


def _problems(error: ValidationError, layers: _Layers) -> list[Problem]:
    """All of it; an option or a variable that is wrong in several places is one problem."""
    found: dict[object, Problem] = {}
    for problem in problems(error, layers, Spec, _HINTS):
        location = problem.location
        where = layers.where(location)
        if problem.kind == "extra_forbidden" and str(location[-1]).lower() in ("api_key", "key", "token"):
            shown = ".".join(map(str, location))
            said = "has no place in a specification; set the environment variable OPENAI_API_KEY or ANTHROPIC_API_KEY"
            problem = problem._replace(sentence=f"{where}: '{shown}' {said}")
        if location == ("output",) and ("name",) in found:  # it is made of the name
            continue
        is_given = where in layers.origins.values()
        found.setdefault((where, problem.kind, location[-1:]) if is_given else location, problem)
    return list(found.values())


_NAMED = ("models", "tasks", "judges")


def _replaced(layers: _Layers) -> tuple[Spec | None, tuple[Location, ...]]:
    """The specification without what is wrong, and the places that are not as the file has them; None where too much is."""
    data: Any = copy.deepcopy(layers.data)
    places: list[Location] = []
    for _ in range(5):
        try:
            spec = Spec.model_validate(data)
        except ValidationError as error:
            for location, _, kind in reversed(problems(error, LinedDocument(layers.path, data), Spec)):
                if not location or (place := _replace(data, location, is_missing=kind == "missing")) is None:
                    return None, ()
                places.append(place)
        else:
            spec._document = layers
            return spec, tuple(places)
    return None, ()


def _replace(data: Any, location: Location, *, is_missing: bool) -> Location | None:
    """Take a value out, or put something sound in the place of one that has to be there.

    Returns what is not as the file has it now; None where nothing can stand in.
    """
    block, *rest = location
    if block in _NAMED and (len(location) == 2 or (is_missing and len(location) > 2)):
        entry = data[block][rest[0]]
        old = entry if isinstance(entry, dict) else {}
        path, style, task = (old.get(key) for key in ("path", "style", "task"))
        data[block][rest[0]] = {
            "models": {
                "path": path if isinstance(path, str) else "some/model",
                "style": style if style in get_args(Style) else "chat",
            },
            "tasks": {"task": task if isinstance(task, str) else "unknown"},
            "judges": {"kind": "verifiable"},
        }[str(block)]
        return location[:2]
    if len(location) == 1 or is_missing:
        names = list(data["models"]) if isinstance(data.get("models"), dict) else []
        sound: dict[str | int, Any] = {
            "name": "run",
            "output": "runs/run",
            "principles": {"sets": ["verifiable"]},
            "judges": {"judge": {"kind": "verifiable"}},
        }
        if names:
            sound["comparisons"] = [{"a": names[0], "b": names[-1]}]
        if block in sound:
            data[block] = sound[block]
        elif is_missing or block in (*_NAMED, "comparisons"):
            return None
        else:
            del data[block]
        return location[:1]
    with suppress(KeyError, IndexError, TypeError):  # what is around it has been replaced
        node = data
        for part in location[:-1]:
            node = node[part]
        del node[location[-1]]
    is_item = any(isinstance(part, int) for part in location)
    return location[: 2 if block in _NAMED else 1] if is_item else location


def is_there(path: Path) -> bool:
    """Whether a path exists; what cannot be a path (too long, a null byte) does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def one_line(text: str) -> str:
    """A message without line breaks, whatever the values in it hold."""
    return " ".join(text.split("\n")).replace("\r", " ")
