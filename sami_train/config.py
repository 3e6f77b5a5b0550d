"""Recipes: what a training run is, as one YAML file. Field names follow TRL's where TRL has them."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sami_train.errors import Problems, UserError, nearest
from sami_train.text import counted
from sami_train.yamlfile import Dumper, LinedDocument, parse_yaml, problems, read_yaml

FOLDER = Path(__file__).resolve().parent / "recipes"
FilterRule = Literal[
    "empty",
    "identical",
    "template_debris",
    "runs_on",
    "copies_constitution",
    "repeats_query",
    "apology",
    "no_full_stop",
    "cut_off",
    "no_answer",
    "substring",
    "length_ratio",
    "irrelevant",
]
ContrastKind = Literal["opposites", "positive_vs_rest", "positive_vs_intent"]
Optimizer = Literal["adamw_torch", "rmsprop", "adamw_torch_8bit"]
Tracker = Literal["trackio", "wandb", "tensorboard"]


class Limits(BaseModel):
    """Signs that a model runs away from its base. A limit of null is not looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    length_ratio: float | None = Field(
        default=None,
        gt=0,
        description="mean length of the evaluation's sampled responses, as a multiple of the base's (or 1 / it)",
    )
    kl: float | None = Field(default=None, gt=0, description="KL to the base on response tokens, in nats per token")
    logps_drop: float | None = Field(
        default=None, gt=0, description="fall of the mean diagonal log-probability below the base's, in nats per token"
    )
    relevance_drop: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="fall of the mean relevance of the evaluation's sampled responses below the base's (a share; needs "
        "relevance_scorer)",
    )


def _listed(value: object) -> object:
    """One name as a list of it."""
    return [value] if isinstance(value, str) else value


class Recipe(BaseModel):
    """A training run. Paths are relative to the recipe's file; the harness sets model, queries and principles itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="what the recipe is called")
    description: str = Field("", description="one sentence for people")
    method: Literal["sami", "dpo", "sft"] = Field(
        "sami", description="sami; or a baseline on pairs of the same kind, through TRL: dpo, sft"
    )

    model: str | None = Field(
        None, description="embedded/NAME, a folder or a hub id; the base that every iteration starts from"
    )
    style: Literal["completion", "chat"] = Field("completion", description="form of the prompts")
    queries: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        (), description="JSON-lines files with a field 'query' or 'post' (and 'part': train)"
    )
    principles: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        (), description="principle sets, by name or file; only learned principles are used"
    )
    templates: Annotated[tuple[str, ...], BeforeValidator(_listed)] = Field(
        (),
        description="prompt templates, by name or file, at most one for each kind of task; a kind without one takes the template "
        "of its name (dialogue, summarization); in a run of the harness a task's own template comes first",
    )

    iterations: int = Field(2, ge=1, description="times that responses are sampled and the base is trained again")
    alternate_halves: bool = Field(
        True,
        description="iterations learn from the two halves of the queries in turn, as in the paper; false: from all",
    )
    batch_size: int = Field(16, ge=1, description="queries in a gradient step, over all devices")
    batches_at_start: int = Field(2, ge=1, description="gradient steps of a pass in the first iteration")
    batch_increment: int = Field(2, ge=0, description="gradient steps that each further iteration adds")
    num_train_epochs: int = Field(
        1, ge=1, description="passes over an iteration's pairs, so that it takes that many times as many steps"
    )
    constitutions_per_query: int = Field(
        2, ge=2, description="C: constitutions, and so responses, of a query; the side of its matrix"
    )
    principles_per_constitution: int = Field(1, ge=1, description="principles in a constitution")
    contrast: ContrastKind = Field(
        "opposites",
        description="opposites: constitutions drawn at random, each beside its element-wise opposite; positive_vs_rest: the "
        "definitions of all drawn principles against other choices of sides, drawn at random (experiment 2); positive_vs_intent: "
        "the same, among the choices that negate the principle that the query is about, its 'intent' (experiment 1)",
    )
    polarity: Literal["principle", "random"] = Field(
        "principle",
        description="with opposites: the first of the two takes every principle's definition, or flips a coin for each",
    )
    shuffle_principles: bool = Field(True, description="the training prompt has the principles in an order of its own")
    oversample: float = Field(
        1.25, ge=1, le=1000, description="queries sampled for each one needed (a factor), to make up for filtered ones"
    )
    eval_queries: int = Field(
        0, ge=0, description="unseen queries on which the contrast is measured before and after training; 0: none"
    )
    eval_steps: int = Field(0, ge=0, description="gradient steps between evaluations during training; 0: none during")
    eval_samples: int = Field(
        0,
        ge=0,
        description="responses sampled at every evaluation, kept as text, their length watched; at most eval_queries",
    )

    max_new_tokens: int = Field(350, ge=1, description="longest response, in tokens")
    max_prompt_tokens: int = Field(1024, ge=16, description="longest prompt, in tokens; the query is shortened to fit")
    sampling_example: bool = Field(
        False, description="sample with the template's worked example in front; train without it"
    )
    reasoning: bool = Field(
        False, description="sample with reasoning before the answer and keep the answer alone; train without it"
    )
    temperature: float = Field(0.0, ge=0, description="of sampling (the logits are divided by it); 0 is greedy")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of sampling: draw from the likeliest tokens that make up this share of the probability (0 to 1)",
    )
    sampling_batch_size: int | None = Field(
        None, ge=1, description="prompts generated together; null chooses by device"
    )
    use_vllm: bool | None = Field(None, description="sample with vLLM; null: where it is installed and a GPU is there")
    filters: tuple[FilterRule, ...] = Field(
        ("empty", "identical", "template_debris"),
        description="why a query's responses are left out; the first rule that holds is counted",
    )
    max_length_ratio: float = Field(
        2.0,
        gt=1,
        description="for the filter length_ratio: longest over shortest response of a query (a factor, lengths in tokens)",
    )
    selection: Literal["first", "pmi"] = Field(
        "first",
        description="which of the usable pairs an iteration learns from, where it needs fewer: the first ones, or those "
        "whose responses have the highest pointwise mutual information with their constitution, by the model and the prompts that "
        "they were sampled with",
    )
    filter_substrings: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_listed)] = Field(
        (), description="for the filter substring: what no response may contain, capitals and small letters told apart"
    )
    relevance_scorer: str | None = Field(
        None,
        description="embedded/NAME, a folder or a hub id; another model than the one that is trained, which scores whether "
        "responses depend on their query; null: nothing is scored",
    )
    min_relevance: float = Field(
        0.5,
        ge=0,
        le=1,
        description="for the filter irrelevant: least relevance of a response, the share of other queries after which the scorer "
        "finds it less likely (0 to 1; 0.5 is chance)",
    )

    loss_sides: Literal["both", "rows", "columns"] = Field(
        "both",
        description="cross-entropies in the loss: of rows (over responses), of columns (over constitutions), or both",
    )
    query_contrast: float = Field(
        0.0,
        ge=0,
        description="factor on a contrast over queries: each response after its own query against the same constitution put to "
        "another query (a cross-entropy of two, in nats); the paper has none, and without it small models stop answering",
    )
    count_copied_words: bool = Field(
        True,
        description="whether words of a response that stand in its query or in its constitutions count in the contrasts and in "
        "pmi, as in the paper; false: copying them gains nothing",
    )
    logprob_reduction: Literal["mean", "sum"] = Field(
        "mean", description="a response's log-probability, in nats: mean or sum over its tokens"
    )
    beta: float = Field(
        0.0,
        ge=0,
        description="pull to the base: factor on the KL to it, in nats per response token (sami), or DPO's beta (dpo)",
    )

    optim: Optimizer = Field(
        "adamw_torch", description="optimizer; adamw_torch_8bit keeps its moments in 8 bits (needs torchao)"
    )
    learning_rate: float = Field(
        gt=0,
        description="peak learning rate, in units of the weights: AdamW moves a weight by about this much in a step, RMSprop by "
        "more in its first steps",
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="course of the learning rate after the warm-up; linear and cosine fall to 0"
    )
    lr_scheduler_steps: int | None = Field(
        None, ge=1, description="gradient steps that the schedule is laid out for; null: those of the iteration"
    )
    warmup_steps: int = Field(0, ge=0, description="gradient steps of linear warm-up in every iteration")
    warmup_from_zero: bool = Field(False, description="the first warm-up step has the rate 0, as in transformers")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's first moment per step")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of AdamW's second moment per step")
    adam_epsilon: float = Field(1e-8, gt=0, description="added to AdamW's denominator (in units of the gradient)")
    rmsprop_alpha: float = Field(0.99, ge=0, lt=1, description="decay of RMSprop's mean square per step")
    rmsprop_epsilon: float = Field(1e-8, gt=0, description="added to RMSprop's denominator (in units of the gradient)")
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="decay of the weights: a share of the learning rate for AdamW (decoupled), added to the gradient for RMSprop",
    )
    max_grad_norm: float = Field(
        1.0,
        ge=0,
        description="the gradient of a step is clipped to this length (2-norm over all weights), after loss_scale; 0: never",
    )
    gradient_queries: int | None = Field(
        None, ge=1, description="queries of a batch that its gradient comes from, the last ones; null: all of them"
    )
    loss_scale: float = Field(
        1.0, gt=0, description="factor on a step's mean loss before the backward pass; 1 leaves it"
    )

    per_device_train_batch_size: int = Field(1, ge=1, description="queries in one forward pass of a device")
    gradient_caching: bool | None = Field(
        None, description="two forward passes, the second a constitution at a time: less memory; null: from C = 8 on"
    )
    gradient_checkpointing: bool = Field(False, description="recompute a layer's activations in the backward pass")
    gradient_sync: Literal["last", "every"] = Field(
        "last", description="many devices: reduce gradients at a batch's last micro-step, or at every one (less memory)"
    )
    bf16: bool = Field(
        False, description="compute in bfloat16; auto in a file: where this machine multiplies it in hardware"
    )
    master_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="number format of the weights that are trained; bfloat16 halves their memory and loses small updates",
    )
    freeze_embeddings: bool = Field(False, description="leave the embeddings (and a tied head) as they are")

    use_peft: bool = Field(False, description="train a LoRA adapter (needs peft); it is merged into the exported model")
    lora_r: int = Field(16, ge=1, description="rank of the adapter's matrices")
    lora_alpha: int = Field(32, ge=1, description="the adapter is scaled by lora_alpha / lora_r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="share of the adapter's inputs dropped in training")
    lora_target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        "all-linear", description="names of the layers that get an adapter"
    )

    report_to: tuple[Tracker, ...] = Field((), description="trackers that get the metrics besides metrics.jsonl")
    warn_if: Limits = Field(
        Limits(length_ratio=1.5, kl=0.5, logps_drop=0.5), description="limits that a warning is given beyond"
    )
    stop_if: Limits = Field(Limits(), description="limits that the training stops beyond, its checkpoint kept")
    save_steps: int = Field(0, ge=0, description="gradient steps between checkpoints inside an iteration; 0 keeps none")
    seed: int = Field(0, ge=0, lt=2**32, description="of every draw (a whole number from 0 to 2^32 - 1)")

    @model_validator(mode="after")
    def _fields_agree(self) -> Recipe:
        if self.method == "dpo" and self.beta == 0:
            raise ValueError("method dpo needs 'beta' above 0; TRL's default is 0.1")
        if 0 < self.temperature < 0.01:
            raise ValueError("'temperature' is above 0 and below 0.01; set 0 for greedy sampling")
        if self.contrast != "opposites":
            choices = 2**self.principles_per_constitution
            which = "choices of sides"
            if self.needs_intents:
                choices = 1 + choices // 2
                which = "choices of sides for positive_vs_intent"
            if self.constitutions_per_query > choices:
                raise ValueError(
                    f"{counted(self.principles_per_constitution, 'principle')} with {choices} {which}: fewer than "
                    f"constitutions_per_query ({self.constitutions_per_query}); raise principles_per_constitution"
                )
        if bool(self.filter_substrings) != ("substring" in self.filters):
            raise ValueError(
                "the filter 'substring' and the field 'filter_substrings' go together; set both, or neither of them"
            )
        if self.gradient_queries is not None and self.gradient_queries > self.batch_size:
            raise ValueError("'gradient_queries' is above 'batch_size'; lower it, or set it to null for all of them")
        if self.master_dtype == "bfloat16" and not self.bf16:
            raise ValueError("'master_dtype: bfloat16' needs 'bf16: true'")
        if not self.eval_queries and any(v is not None for v in self.stop_if.model_dump().values()):
            raise ValueError(
                "'stop_if' looks at unseen queries: set 'eval_queries' (and 'eval_steps' to look during training)"
            )
        if self.stop_if.length_ratio is not None and not self.eval_samples:
            raise ValueError("'stop_if.length_ratio' looks at sampled responses: set 'eval_samples'")
        if self.stop_if.relevance_drop is not None and not (self.eval_samples and self.relevance_scorer):
            raise ValueError(
                "'stop_if.relevance_drop' looks at the relevance of sampled responses: set 'eval_samples' and 'relevance_scorer'"
            )
        if "irrelevant" in self.filters and self.relevance_scorer is None:
            raise ValueError(
                "the filter 'irrelevant' needs a model that scores relevance: set 'relevance_scorer', for example to "
                "embedded/smollm2-135m-instruct"
            )
        if self.eval_queries == 1:
            raise ValueError("'eval_queries' is 1, which gives no interval; set 0, or 2 at least")
        if self.eval_samples > self.eval_queries:
            raise ValueError("'eval_samples' is above 'eval_queries'; they are drawn from them")
        if self.caches_gradients and self.use_peft and self.lora_dropout:
            raise ValueError("gradient caching runs every row twice, which must agree: set 'lora_dropout' to 0")
        return self

    @property
    def rules(self) -> tuple[FilterRule, ...]:
        """The filters, and that of empty responses, which is never off."""
        return self.filters if "empty" in self.filters else (*self.filters, "empty")

    @property
    def needs_intents(self) -> bool:
        """Whether constitutions depend on the principle that a query is about."""
        return self.contrast == "positive_vs_intent"

    @property
    def contrasts_queries(self) -> bool:
        """Whether the step holds responses against other queries, which only SAMI's does."""
        return self.method == "sami" and self.query_contrast > 0

    @property
    def prompts_per_query(self) -> int:
        """Prompts that a query's responses are put after in a step: P, the height of its matrix."""
        return self.constitutions_per_query * (2 if self.contrasts_queries else 1)

    @property
    def not_trained_by(self) -> frozenset[str]:
        """Fields that do not say what is trained: those of `NOT_TRAINED_BY`, and those of filters that are off."""
        off = set() if "irrelevant" in self.filters else {"relevance_scorer", "min_relevance"}
        return NOT_TRAINED_BY | off | (set() if "substring" in self.filters else {"filter_substrings"})

    @property
    def caches_gradients(self) -> bool:
        """Whether the step runs with gradient caching, which only SAMI's does."""
        if self.method != "sami":
            return False
        if self.gradient_caching is None:
            return self.constitutions_per_query >= 8
        return self.gradient_caching

    def batches(self, iteration: int) -> int:
        """Gradient steps of one pass over the pairs of an iteration, counted from 1."""
        return self.batches_at_start + (iteration - 1) * self.batch_increment

    def steps(self, iteration: int) -> int:
        """Gradient steps of an iteration."""
        return self.batches(iteration) * self.num_train_epochs

    def queries_needed(self, iteration: int) -> int:
        """Queries that an iteration samples for, the ones to be filtered included."""
        return round(self.batch_size * self.batches(iteration) * self.oversample)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 0) among an iteration's `steps`.

        `warmup_from_zero` gives the factors of transformers' schedules (0, 1/w, ... 1, then the decay), which waste the first
        step; without it every step counts (1/(w + 1), ... 1).
        """
        if step < self.warmup_steps:
            done = step / self.warmup_steps if self.warmup_from_zero else (step + 1) / (self.warmup_steps + 1)
            return self.learning_rate * done
        total = self.lr_scheduler_steps or steps
        left = max(0.0, (total - step) / max(1, total - self.warmup_steps))
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        if self.lr_scheduler_type == "linear":
            return self.learning_rate * left
        return self.learning_rate * (1 + math.cos(math.pi * (1 - left))) / 2


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(str(file.relative_to(FOLDER).with_suffix("")) for file in FOLDER.rglob("*.yaml"))


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe named by a shipped name or a path. Raises UserError with the nearest name."""
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    if name_or_path not in list_recipes():
        raise UserError(f"there is no recipe named '{name_or_path}'; {nearest(name_or_path, list_recipes())}")
    return FOLDER / f"{name_or_path}.yaml"


def load_recipe(name_or_path: str, changes: Mapping[str, Any] | None = None, *, bf16: bool | None = None) -> Recipe:
    """Read a recipe and apply changes to its fields. Raises UserError with file, line and field.

    `bf16` is what ``bf16: auto`` stands for; None: what this machine has.
    """
    document = read_yaml(find_recipe(name_or_path), what="recipe")
    fields = {**_with_parent(document, ()), **(changes or {})}
    if fields.get("bf16") == "auto":
        fields["bf16"] = has_bfloat16() if bf16 is None else bf16
    wrong = [
        f"a recipe has no field '{key}'; {nearest(key, Recipe.model_fields)}"
        for key in changes or {}
        if key not in Recipe.model_fields
    ]
    if wrong:
        raise Problems(*wrong)
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        found = problems(error, LinedDocument(document.path, fields, document.lines), Recipe)
        raise Problems(
            *(
                sentence.replace(document.where(location), f"--set {location[0]}", 1)
                if location and location[0] in (changes or {})
                else sentence
                for location, sentence, _ in found
            )
        ) from None


@functools.cache
def has_bfloat16(device: str = "auto") -> bool:
    """Whether a device multiplies bfloat16 in hardware: an NVIDIA GPU, or a CPU with AVX-512 BF16 or AMX.

    Elsewhere it is emulated and slower than float32. ``auto`` is a GPU where there is one and torch is built for it. Told without
    torch, whose import takes seconds.
    """
    if device.startswith("cuda"):
        return True
    if device == "auto" and Path("/dev/nvidia0").exists():
        with contextlib.suppress(metadata.PackageNotFoundError):
            return not metadata.version("torch").endswith("+cpu") or has_bfloat16("cpu")
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _with_parent(document: LinedDocument, children: tuple[Path, ...]) -> dict[str, Any]:
    """The fields of a recipe file over those of the recipe that it `extends`, if any."""
    if not isinstance(document.data, dict):
        raise UserError(f"{document.path}:1: a recipe is a mapping of fields; this is not one")
    fields = dict(document.data)
    parent = fields.pop("extends", None)
    if parent is None:
        return fields
    beside = document.path.parent / f"{parent}.yaml"
    file = beside if beside.is_file() else find_recipe(str(parent))
    if file.resolve() in (*children, document.path.resolve()):
        raise UserError(f"{document.where(('extends',))}: the recipe extends itself; name another one")
    return {**_with_parent(read_yaml(file, what="recipe"), (*children, document.path.resolve())), **fields}


def parse_changes(settings: list[str]) -> dict[str, Any]:
    """``["learning_rate=1e-5"]`` as a dictionary, values read as YAML."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"'{setting}' is not of the form field=value")
        changes[key.strip()] = parse_yaml(value, Path(f"--set {key}")).data
    return changes


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every field, ready to be run again."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True)


NOT_TRAINED_BY = frozenset(
    {
        "name",
        "description",
        "report_to",
        "warn_if",
        "stop_if",
        "save_steps",
        "eval_steps",
        "sampling_batch_size",
        "use_vllm",
    }
    | {"per_device_train_batch_size", "gradient_caching", "gradient_checkpointing", "gradient_sync", "model", "queries"}
    | {"principles", "templates"}
)
"""Fields that may change between two starts of one run: they do not say what is trained, or are compared by content."""


def same_run(file: Path, recipe: Recipe) -> None:
    """Make sure that the recipe written down in a run's folder is this one, but for what does not change the result.

    Raises:
        UserError: it is another one; names the first field that differs.
    """
    if not file.is_file():
        return
    known = read_yaml(file, what="recipe").data
    if not isinstance(known, dict):
        return
    begun = {**Recipe.model_construct().model_dump(mode="json"), **known}  # a field newer than the run had its default
    for field, value in recipe.model_dump(mode="json").items():
        if field not in recipe.not_trained_by and begun.get(field, value) != value:
            raise UserError(
                f"{file.parent}: a run with {field} = {begun[field]} was begun here, now it is {value}; name another folder "
                "with -o, or delete this one"
            )
