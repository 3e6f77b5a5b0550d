"""Whether a judge is akin to a model that it judges: models tend to prefer what they, or their kin, wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_NAMES = {
    "claude": "claude",
    "command": r"command-?[ra]|aya|c4ai",
    "deepseek": "deepseek",
    "falcon": "falcon",
    "gemma": "gemma|gemini",
    "glm": "glm",
    "gpt": r"gpt|davinci|babbage|o[1-9](?:-mini|-preview|-pro)?$",
    "granite": "granite",
    "llama": "llama|vicuna|alpaca",
    "mistral": r"(?:mis|mix|minis|codes|magis|devs)tral|zephyr",
    "olmo": "olmo|tulu",
    "phi": r"phi-?\d",
    "pythia": "pythia",
    "qwen": "qwen|qwq",
    "smollm": "smollm",
    "yi": r"yi-\d",
}
_FAMILIES = {family: re.compile(rf"(?<![a-z])(?:{names})", re.IGNORECASE) for family, names in _NAMES.items()}


def families(path: str) -> frozenset[str]:
    """The families that the last part of a model's path names (a distilled model may name two); none where it names none."""
    name = path.rstrip("/").rpartition("/")[2].partition("@")[0]
    return frozenset(family for family, pattern in _FAMILIES.items() if pattern.search(name))


def same_family(judge: str, judged: Iterable[str], models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The judged models that the judge is akin to, each with how.

    Args:
        judge: the name of the judging model.
        judged: the names of the judged ones.
        models: by name, ``path`` (None of a trained model) and ``trained_from`` (None of the others).
    """
    found = {}
    for name in judged:
        one, other = _origin(judge, models), _origin(name, models)
        if judge == name:
            found[name] = "it is the judge itself"
        elif one and one == other:
            trained = any(models[m].get("trained_from") for m in (judge, name))
            found[name] = "it has the judge's base model" if trained else "it is the judge's own model"
        elif shared := families(one) & families(other):
            found[name] = f"it is of the judge's family ({', '.join(sorted(shared))})"
    return found


def _origin(name: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    """The path of the model that training goes back to; empty where it is not known."""
    seen = set()
    while name in models and name not in seen:
        seen.add(name)
        if (start := models[name].get("trained_from")) is None:
            return str(models[name].get("path") or "")
        name = start
    return ""
