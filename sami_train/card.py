"""The model card of a checkpoint: a README.md whose head model hubs read, and whose text says what was done and measured.

Names, sources and warnings come from files of other people. They are put on one line and escaped, so that they can neither
format the page nor end a fence.
"""

from __future__ import annotations

import math
import platform
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from sami_train.config import Recipe
from sami_train.errors import UserError
from sami_train.models import EMBEDDED, Source, _hub_snapshot
from sami_train.yamlfile import parse_yaml

UNKNOWN = "unknown: see the base model"
HUB_IDS = {"gemma-3-270m": "google/gemma-3-270m", "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Where the embedded models come from."""
FIGURES = {
    "loss": "loss, nats",
    "accuracy": "accuracy",
    "mi_lower_bound": "bound on the mutual information, nats",
    "kl": "KL to the base, nats per response token",
    "completions/mean_length": "length of sampled responses, tokens",
    "completions/relevance": "relevance of sampled responses, 0.5 is chance",
}
"""What is shown of an evaluation on unseen queries: its keys, and what they are for people."""
_IDENTIFIERS = {
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "gemma": "gemma",
    "gemma terms of use": "gemma",
    "llama3": "llama3",
    "llama3.1": "llama3.1",
    "llama3.2": "llama3.2",
    "llama3.3": "llama3.3",
}
"""Licences as people write them, and the identifiers that hubs have for them."""


def model_card(
    *,
    recipe: Recipe,
    base: Source,
    licence: str,
    data: Mapping[str, Any],
    principles: Mapping[str, Any],
    metrics: Mapping[str, Any],
    versions: Mapping[str, str],
) -> str:
    """README.md of a checkpoint's folder. Absolute paths are cut down to their last part.

    Args:
        recipe: what was trained by.
        base: the model that training started from.
        licence: of the base, as `licence_of` gives it.
        data: ``{"queries": [{"file", "n", "sha256"}], "datasets": [hub ids, optional]}``.
        principles: ``{"principle_sets": [{"name", "version", "hash", "source"}]}``; `TrainingData.provenance` has both.
        metrics: an iteration's summary.json: ``iteration, pairs, filtered, steps, loss_first, loss_last, accuracy_last,
            mi_lower_bound_last, evaluation {n, before, after}``, optionally ``warnings`` (sentences). Losses in nats.
        versions: of the packages, as `versions` gives them.
    """
    sections = [
        _head(recipe, base, licence, data),
        _what_it_is(recipe, base, metrics),
        _how_to_load(recipe),
        f"## Recipe\n\n{_fence(_dump(recipe), 'yaml')}",
        _training_data(data, principles),
        _measured(recipe, metrics),
        _versions(versions),
        _licence(licence, base),
        _limits(recipe, metrics),
    ]
    return "\n\n".join(sections) + "\n"


def versions(recipe: Recipe) -> dict[str, str]:
    """Versions of Python and of the packages that a recipe's checkpoint depends on; nothing heavy is imported."""
    found = {"python": platform.python_version()}
    used = ["torch", "transformers", "sami-harness"]
    used += ["peft"] if recipe.use_peft else []
    used += ["trl"] if recipe.method != "sami" else []
    used += ["torchao"] if recipe.optim == "adamw_torch_8bit" else []
    for package in used:
        loaded = getattr(sys.modules.get(package), "__version__", None)
        try:
            found[package] = str(loaded or metadata.version(package))
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def licence_of(source: Source) -> str:
    """The licence of a base model, without asking the network: known (embedded), or out of its README or LICENSE file."""
    if source.kind == "embedded":
        return EMBEDDED[source.name].licence
    folder = Path(source.name) if source.kind == "folder" else _hub_snapshot(source)
    if folder is None:
        return UNKNOWN
    return _licence_in_readme(folder / "README.md") or _licence_in_file(folder) or UNKNOWN


def _licence_in_readme(file: Path) -> str | None:
    try:
        head = re.match(r"---[ \t]*\r?\n(.*?)\n---", file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        fields = parse_yaml(head[1], file, text_keys=False).data if head else None
    except (OSError, UserError):
        return None
    if not isinstance(fields, dict):
        return None
    named = fields.get("license_name") if fields.get("license") == "other" else None
    value = named or fields.get("license")
    names = value if isinstance(value, list) else [value] if value else []
    return ", ".join(_one_line(name)[:100] for name in names) or None


def _licence_in_file(folder: Path) -> str | None:
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"):
        try:
            text = (folder / name).read_text(encoding="utf-8", errors="replace")[:4000]
        except OSError:
            continue
        if "Apache License" in text and "Version 2.0" in text:
            return "apache-2.0"
        if "MIT License" in text:
            return "mit"
        first = next((_one_line(line) for line in text.splitlines() if line.strip()), "")
        return f"{first[:100]} (file {name} of the base model)" if first else None
    return None


# --- sections


def _head(recipe: Recipe, base: Source, licence: str, data: Mapping[str, Any]) -> str:
    fields: dict[str, Any] = {}
    hub_id = HUB_IDS.get(base.name) if base.kind == "embedded" else base.name if base.kind == "hub" else None
    if hub_id:
        fields["base_model"] = hub_id
    fields |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if identifier := _IDENTIFIERS.get(licence.lower()):
        fields["license"] = identifier
    elif licence != UNKNOWN:
        fields |= {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")[:60]}
    fields["tags"] = list(dict.fromkeys(["sami", recipe.method, "principles"]))
    if datasets := [name for name in data.get("datasets", ()) if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name))]:
        fields["datasets"] = datasets
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=False)}---"


def _what_it_is(recipe: Recipe, base: Source, metrics: Mapping[str, Any]) -> str:
    how = {
        "sami": "SAMI, which raises the mutual information between principles and responses without preference labels "
        "(Fränken et al., NeurIPS 2024, [arXiv 2404.14313](https://arxiv.org/abs/2404.14313))",
        "dpo": "DPO on pairs that the model sampled under contrary principles",
        "sft": "supervised fine-tuning on responses that the model sampled under principles",
    }[recipe.method]
    number = metrics.get("iteration")
    which = f"This is iteration {_number(number)} of {recipe.iterations}. " if number is not None else ""
    return (
        f"# {_plain(recipe.name)}\n\n"
        f"{_code(_shown(base))} trained with {how}. {which}Every iteration starts from the base weights and learns from "
        "responses of the iteration before."
    )


def _how_to_load(recipe: Recipe) -> str:
    prompt = (
        'prompt = template.render(["The response should be brief."], "How do I boil an egg?", "completion")\n'
        'inputs = tokenizer(prompt.text, return_tensors="pt")\n'
        if recipe.style == "completion"
        else 'prompt = template.render(["The response should be brief."], "How do I boil an egg?", "chat")\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    prompt.chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n)\n'
    )
    snippet = (
        "from sami_train.prompts import load_template\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'place = "."  # this folder, or the id that it was published under\n'
        "tokenizer = AutoTokenizer.from_pretrained(place)\n"
        'model = AutoModelForCausalLM.from_pretrained(place, dtype="auto")\n\n'
        'template = load_template("dialogue")  # or "summarization"; the form of prompt that it was trained on\n'
        f"{prompt}"
        f"output = model.generate(**inputs, max_new_tokens={recipe.max_new_tokens})\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n'
    )
    return f"## How to load it\n\n{_fence(snippet, 'python')}"


def _training_data(data: Mapping[str, Any], principles: Mapping[str, Any]) -> str:
    sets = _table(
        ["principle set", "version", "hash", "source"],
        [
            [
                _code(s.get("name", "")),
                _plain(s.get("version", "–")),
                _code(s.get("hash", "")),
                _plain(s.get("source") or "–"),
            ]
            for s in principles.get("principle_sets", ())
        ],
    )
    files = _table(
        ["queries", "n", "sha256"],
        [
            [_code(Path(str(q.get("file", ""))).name), _number(q.get("n")), _code(q.get("sha256", ""))]
            for q in data.get("queries", ())
        ],
    )
    parts = [sets or "The principle sets were not recorded.", files or "The queries were not recorded."]
    return "\n\n".join(["## Principles and data", *parts])


def _measured(recipe: Recipe, metrics: Mapping[str, Any]) -> str:
    rows = [
        ["gradient steps", _number(metrics.get("steps"))],
        ["pairs that they used", _number(metrics.get("pairs"))],
        ["loss of the first and the last step, nats", _span(metrics, "loss_first", "loss_last")],
        ["accuracy of the last step", _number(metrics.get("accuracy_last"))],
        ["bound on the mutual information in the last step, nats", _number(metrics.get("mi_lower_bound_last"))],
    ]
    filtered = metrics.get("filtered") or {}
    left_out = ", ".join(f"{_plain(rule)} {_number(n)}" for rule, n in filtered.items() if n)
    parts = ["## What was measured", _table(["training", "value"], rows)]
    if filtered:
        parts.append(f"Left out before training: {left_out or 'nothing'}.")
    parts.append(_on_unseen(recipe, metrics.get("evaluation")))
    if warnings := metrics.get("warnings"):
        parts.append("Warnings of the run:\n\n" + "\n".join(f"- {_plain(warning)}" for warning in warnings))
    return "\n\n".join(parts)


def _on_unseen(recipe: Recipe, evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation:
        return "Nothing was measured on unseen queries."
    before, after = (evaluation.get(when) or {} for when in ("before", "after"))
    rows = [
        [label, _interval(before, key), _interval(after, key)]
        for key, label in FIGURES.items()
        if key in before or key in after
    ]
    n = _number(evaluation.get("n"))
    changed = ""
    if evaluation.get("loss_change") is not None:
        changed = f"The loss changed by {_interval(evaluation, 'loss_change')} on the same queries (95%, paired). "
    top = math.log(recipe.constitutions_per_query)
    return (
        f"On {n} unseen queries, with responses of the base model:\n\n"
        f"{_table(['mean (95% interval)', 'base', 'this model'], rows)}\n\n"
        f"{changed}The bound is log {recipe.constitutions_per_query} minus the loss, at most {top:.3f}; it is nominal where "
        "log-probabilities are means over tokens."
    )


def _versions(versions: Mapping[str, str]) -> str:
    return "## Versions\n\n" + _table(["package", "version"], [[_plain(k), _plain(v)] for k, v in versions.items()])


def _licence(licence: str, base: Source) -> str:
    known = (
        f"The base model's licence: {_plain(licence)}."
        if licence != UNKNOWN
        else "The base model's licence is not known here."
    )
    return (
        f"## Licence\n\n{known} These weights are derived from {_code(_shown(base))}, so its terms hold for them too. Check them, "
        "and the terms of the queries, before you publish or use the model."
    )


def _limits(recipe: Recipe, metrics: Mapping[str, Any]) -> str:
    lines = [
        "The loss and the bound say how well constitutions and responses can be told apart. They do not say that responses are "
        "good, true or safe; compare the model with its base before you rely on it.",
        "Only the principles, tasks and languages of the training data were learned from. Others may have got worse.",
        "The model was trained on what it sampled itself, so faults of the base model may have been strengthened.",
    ]
    if not metrics.get("evaluation"):
        lines.append("Without figures on unseen queries nobody knows whether training helped.")
    if recipe.gradient_queries is not None:
        lines.append(
            f"Each step used {recipe.gradient_queries} of its batch's {recipe.batch_size} queries, as the recipe asks for."
        )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


# --- text that is safe in Markdown


def _dump(recipe: Recipe) -> str:
    """The recipe as YAML, absolute paths cut down to their last part, unusual characters escaped."""
    fields = recipe.model_dump(mode="json")
    for key in ("queries", "principles"):
        fields[key] = [_last_part(name) for name in fields[key]]
    if fields["model"]:
        fields["model"] = _last_part(fields["model"])
    text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    if text != _visible(text):
        text = yaml.safe_dump(fields, sort_keys=False, allow_unicode=False)
    return text


def _last_part(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() or path.startswith("~") else path


def _shown(source: Source) -> str:
    if source.kind == "folder":
        return Path(source.name).name
    snapshot = _hub_snapshot(source) if source.kind == "hub" else None
    revision = snapshot.name if snapshot else source.revision
    return f"{source}@{revision}" if revision else str(source)


def _visible(text: str) -> str:
    """Without control and format characters (line breaks excepted), which can hide or reorder text."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"})


def _one_line(text: object) -> str:
    return _visible(" ".join(str(text).split()))


def _plain(text: object) -> str:
    """Text on one line in which nothing is markup."""
    escaped = re.sub(r"([\\`*_{}\[\]()#|!~])", r"\\\1", _one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: object) -> str:
    """Text as a code span, its backticks and bars made harmless."""
    return f"`{_one_line(text).replace('`', chr(39)).replace('|', '/') or '–'}`"


def _fence(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: object) -> str:
    """A count as it is, a measure with three decimals, a dash for what was not measured."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _span(metrics: Mapping[str, Any], first: str, last: str) -> str:
    return f"{_number(metrics.get(first))} → {_number(metrics.get(last))}"


def _interval(figures: Mapping[str, Any], key: str) -> str:
    ends = figures.get(f"{key}_ci")
    return (
        f"{_number(figures.get(key))} ({_number(ends[0])} to {_number(ends[1])})" if ends else _number(figures.get(key))
    )
