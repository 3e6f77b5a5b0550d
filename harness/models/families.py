"""How API models are asked that differ from the rest, by the families of `models.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness.models.base import Sampling
from sami_train.yamlfile import read_yaml

FILE = Path(__file__).with_name("models.yaml")
WORDS = {"low": 2048, "medium": 8192, "high": 16384}
"""Tokens that are put aside for reasoning of these efforts."""


class Family(BaseModel):
    """What a family of models takes; see the head of `models.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    pattern: str
    omit: tuple[Literal["temperature", "top_p", "seed", "stop"], ...] = ()
    one_of: bool = False
    limit: Literal["max_tokens", "max_completion_tokens"] | None = None
    reasoning: Literal["effort", "budget", "adaptive", "template"] | None = None
    none: str | None = None
    thinks: int = 0
    json_schema: bool = True


class _Families(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    families: tuple[Family, ...]


PLAIN = Family(pattern="")
"""A model of which nothing is known."""


@cache
def _families() -> tuple[Family, ...]:
    return _Families.model_validate(read_yaml(FILE, what="model families").data).families


@cache
def family_of(path: str | None) -> Family:
    """The family of a model's path, such as ``openai/gpt-5`` or ``openai/org/gpt-oss-20b``; `PLAIN` for an unknown one."""
    backend, _, name = (path or "").partition("/")
    short = f"{backend}/{name.rpartition('/')[2]}"
    return next((family for family in _families() if re.fullmatch(family.pattern, short)), PLAIN)


def for_model(sampling: Sampling, path: str | None, options: Mapping[str, Any] | None = None) -> Sampling:
    """`sampling` as the model at a path takes it.

    Args:
        sampling: what is wanted of any model. Its `max_new_tokens` are the answer's; those of the reasoning of a model that is
            known to think are added.
        path: the model's path; None for a model that the run trains.
        options: what the user says of this model, see `harness.spec.RequestOptions.given`; it wins. `max_new_tokens` is taken as
            it stands.
    """
    options, family = options or {}, family_of(path)
    omit = set(family.omit)
    chosen: dict[str, Any] = {name: options[name] for name in ("reasoning", "extra") if options.get(name)}
    for name in ("temperature", "top_p"):
        if options.get(name, 0) is None:
            omit.add(name)
        elif name in options:
            omit.discard(name)
            chosen[name] = options[name]
    reasoning = chosen.get("reasoning")
    if reasoning not in (None, "none") and family.reasoning in ("budget", "adaptive"):
        omit |= {"temperature", "top_p"}
    elif family.one_of and chosen.get("top_p", sampling.top_p) != 1.0 and "temperature" not in omit:
        omit.add("temperature" if "top_p" in options and "temperature" not in options else "top_p")
    chosen["max_new_tokens"] = options.get("max_new_tokens", sampling.max_new_tokens + thinking(path, reasoning))
    return replace(sampling, **chosen, omit=tuple(sorted(omit)))


def thinking(path: str | None, reasoning: str | int | None = None) -> int:
    """Tokens that are put aside for a model's reasoning, of the kind that is asked for."""
    family = family_of(path)
    if isinstance(reasoning, int):
        return reasoning
    if reasoning == "none" and family.none is not None:
        return 0
    return WORDS.get(reasoning or "", family.thinks)
