"""Recipes: what a training run is, as one YAML file. Field names follow TRL's where TRL has them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sami_train.errors import UserError, nearest
from sami_train.yamlfile import first_problem, parse_yaml, read_yaml

FOLDER = Path(__file__).resolve().parent / "recipes"
FilterRule = Literal["empty", "identical", "template_debris", "apology", "no_full_stop", "cut_off"]


class Recipe(BaseModel):
    """A SAMI training run. Paths are relative to the recipe's file; the harness sets model, queries and principles itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="what the recipe is called")
    description: str = Field("", description="one sentence for people")

    model: str | None = Field(
        None, description="embedded/NAME, a folder or a hub id; the base that every iteration starts from"
    )
    style: Literal["completion", "chat"] = Field("completion", description="form of the prompts")
    queries: tuple[str, ...] = Field(
        (), description="JSON-lines files with a field 'query' or 'post' (and 'part': train)"
    )
    principles: tuple[str, ...] = Field(
        (), description="principle sets, by name or file; only learned principles are used"
    )

    iterations: int = Field(2, ge=1, description="times that responses are sampled and the base is trained anew")
    batch_size: int = Field(16, ge=1, description="queries in a gradient step")
    batches_at_start: int = Field(2, ge=1, description="gradient steps in the first iteration")
    batch_increment: int = Field(2, ge=0, description="gradient steps that each further iteration adds")
    constitutions_per_query: int = Field(
        2, ge=2, multiple_of=2, description="C; half of them drawn, half their opposites"
    )
    principles_per_constitution: int = Field(1, ge=1, description="principles in a constitution")
    oversample: float = Field(
        1.25, ge=1, description="queries sampled for each one needed, to make up for filtered ones"
    )
    eval_queries: int = Field(0, ge=0, description="unseen queries on which the contrast is measured before and after")

    max_new_tokens: int = Field(350, ge=1, description="longest response, in tokens")
    max_prompt_tokens: int = Field(1024, ge=16, description="longest prompt, in tokens; the query is shortened to fit")
    sampling_example: bool = Field(
        False, description="sample with the template's worked example in front; train without it"
    )
    temperature: float = Field(0.0, ge=0, description="of sampling; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of sampling")
    sampling_batch_size: int | None = Field(
        None, ge=1, description="prompts generated together; null chooses by device"
    )
    filters: tuple[FilterRule, ...] = Field(
        ("empty", "identical", "template_debris"), description="why a pair is left out"
    )

    learning_rate: float = Field(gt=0, description="peak learning rate")
    lr_scheduler_type: Literal["constant", "linear"] = Field("constant", description="after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up in every iteration")
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    freeze_embeddings: bool = Field(False, description="leave the embeddings (and a tied head) as they are")
    save_steps: int = Field(0, ge=0, description="steps between checkpoints inside an iteration; 0 keeps none")
    seed: int = Field(0, description="of every draw")

    def batches(self, iteration: int) -> int:
        """Gradient steps of an iteration, counted from 1."""
        return self.batches_at_start + (iteration - 1) * self.batch_increment

    def queries_needed(self, iteration: int) -> int:
        """Queries that an iteration samples for, the ones to be filtered included."""
        return round(self.batch_size * self.batches(iteration) * self.oversample)

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step (from 0) among an iteration's `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        return self.learning_rate * (steps - step) / max(1, steps - self.warmup_steps)


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


def load_recipe(name_or_path: str, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and apply changes to its fields. Raises UserError with file, line and field."""
    document = read_yaml(find_recipe(name_or_path), what="recipe")
    if not isinstance(document.data, dict):
        raise UserError(f"{document.path}:1: a recipe is a mapping of fields; this is not one")
    for key in changes or {}:
        if key not in Recipe.model_fields:
            close = difflib.get_close_matches(key, Recipe.model_fields, n=1)
            raise UserError(f"a recipe has no field '{key}'" + (f"; did you mean '{close[0]}'?" if close else ""))
    try:
        return Recipe.model_validate({**document.data, **(changes or {})})
    except ValidationError as error:
        raise UserError(first_problem(error, document, Recipe)) from None


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
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
