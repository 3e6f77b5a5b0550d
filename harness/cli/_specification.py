"""The options that name a specification and change it: shared by `run`, `plan` and `validate`. Those about API models alone
are shared by all verbs that ask them.

What is given here wins over the environment, that over the file, and that over the defaults (see `harness.spec`).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from harness.cli._arguments import count, count_or_auto, count_or_none, dollars, names, seconds, whole_number
from sami_train.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.spec import Spec

DEFAULT = "quickstart"

_FIELDS = {
    "output_path": "output",
    "limit": "tasks.*.limit",
    "seed": "seed",
    "device": "engine.device",
    "dtype": "engine.dtype",
    "batch_size": "engine.batch_size",
    "threads": "engine.threads",
    "max_new_tokens": "sampling.max_new_tokens",
}
"""Options with a field of the specification each."""
_API_FIELDS = {"max_connections": "max_connections", "max_retries": "max_retries", "timeout": "timeout_s"}
"""Options with a field of every API model each."""


def add_spec_options(parser: argparse.ArgumentParser, *, default: str | None = DEFAULT) -> None:
    """Add SPEC (with a default it may be left out) and the options that change it."""
    if default is None:
        parser.add_argument("spec", metavar="SPEC", help="a preset (harness ls presets) or a .yaml file")
    else:
        parser.add_argument(
            "spec",
            metavar="SPEC",
            nargs="?",
            default=default,
            help=f"a preset (harness ls presets) or a .yaml file (default: {default})",
        )
    what = parser.add_argument_group("what is measured")
    what.add_argument("-t", "--tasks", type=names, metavar="A,B", help="only these tasks of the specification")
    what.add_argument("-L", "--limit", type=count, metavar="N", help="evaluation queries per task")
    what.add_argument(
        "-M",
        "--model",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="take a model from there, instead of training it where it would be trained; repeatable",
    )
    what.add_argument(
        "--principles",
        action="append",
        default=[],
        metavar="FOLDER",
        help="look for principle sets here too; repeatable",
    )
    what.add_argument(
        "--preset-models",
        metavar="NAME",
        help="run it on other models, as its block preset_models says; presets of the paper have 'embedded'",
    )
    what.add_argument("--max-new-tokens", type=count, metavar="N", help="longest response, in tokens")
    what.add_argument("--seed", type=whole_number, metavar="N", help="of every draw")
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any field, dotted, the value as in YAML: --set measures.infonce=0; repeatable",
    )
    what.add_argument(
        "--epochs",
        type=count,
        metavar="K",
        help="judge each pair K times (LLM judges), which tells the judge's noise from the queries'",
    )
    where = parser.add_argument_group("where and how it runs")
    where.add_argument("-o", "--output-path", metavar="FOLDER", help="the run's folder (default: the one in SPEC)")
    where.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, or cuda:NUMBER")
    where.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        metavar="NAME",
        help="of the weights: auto, float32, bfloat16, float16",
    )
    where.add_argument("--batch-size", type=count_or_auto, metavar="N", help="prompts generated together, or auto")
    where.add_argument("--threads", type=count_or_auto, metavar="N", help="CPU threads, or auto")
    add_api_options(parser)


def add_api_options(parser: argparse.ArgumentParser) -> None:
    """Add how API models are asked; see `api_settings`."""
    apis = parser.add_argument_group("API models")
    apis.add_argument("--max-connections", type=count, metavar="N", help="requests in flight, at most")
    apis.add_argument("--max-retries", type=count_or_none, metavar="N", help="tries after a failed one")
    apis.add_argument("--timeout", type=seconds, metavar="S", help="seconds for one try")


def add_cost_options(parser: argparse.ArgumentParser, *, limit: bool = False) -> None:
    """Add what decides the cost of API models; with `limit`, `--max-cost` too."""
    costs = parser.add_argument_group("cost of API models")
    costs.add_argument("--batch", action="store_true", help="ask through the providers' batch interfaces")
    costs.add_argument(
        "--prices", metavar="FILE", help="a price file in the form of harness/prices.yaml; it wins over that"
    )
    if limit:
        costs.add_argument(
            "--max-cost",
            type=dollars,
            metavar="DOLLARS",
            help="stop before API models have cost more, earlier starts included",
        )


def read_spec(options: argparse.Namespace) -> Spec:
    """The specification that the options name, with their changes. Raises UserError for what is wrong in either."""
    from harness.spec import load_spec

    overrides = {**_settings(options.set), **_models(options.model)}
    overrides |= {field: value for name, field in _FIELDS.items() if (value := getattr(options, name)) is not None}
    chosen = options.preset_models
    spec = load_spec(options.spec, overrides, preset_models=chosen)
    if changes := _api_changes(spec, options):
        overrides |= changes
        spec = load_spec(options.spec, overrides, preset_models=chosen)
    if options.principles:
        # The first match wins: the command line's.
        overrides["principles.folders"] = [*options.principles, *spec.principles.folders]
        spec = load_spec(options.spec, overrides, preset_models=chosen)
    if options.epochs is not None:
        spec = load_spec(options.spec, {**overrides, **_repeats(spec, options.epochs)}, preset_models=chosen)
    return _only(spec, options.tasks) if options.tasks else spec


def api_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of an API model (`harness.spec.ModelSpec`) that the options set."""
    return {field: value for name, field in _API_FIELDS.items() if (value := getattr(options, name)) is not None}


def api_option(field: str) -> str:
    """The option that sets a field of `api_settings`."""
    return "--" + next(name for name, known in _API_FIELDS.items() if known == field).replace("_", "-")


def _api_changes(spec: Spec, options: argparse.Namespace) -> dict[str, Any]:
    """The changes of the options that are about API models, to these alone."""
    from harness.plan import is_api

    given = api_settings(options)
    models = [name for name, model in spec.models.items() if is_api(model)]
    if given and not models:
        raise UserError(f"{api_option(next(iter(given)))}: no model of '{spec.name}' is behind an API; leave it out")
    return {f"models.{model}.{field}": value for model in models for field, value in given.items()}


def _repeats(spec: Spec, epochs: int) -> dict[str, Any]:
    """The changes that make every LLM judge judge each pair so often."""
    judges = [name for name, judge in spec.judges.items() if judge.kind == "llm"]
    if not judges:
        raise UserError(
            f"--epochs: '{spec.name}' has no LLM judge, and a program says the same each time; for several responses per "
            f"query: --set sampling.epochs={epochs}, with a temperature above 0"
        )
    return {f"judges.{name}.epochs": epochs for name in judges}


def _settings(settings: list[str]) -> dict[str, Any]:
    from sami_train.config import parse_changes

    for setting in settings:
        if not setting.partition("=")[0].strip() or "=" not in setting:
            raise UserError(f"--set {setting}: this is not KEY=VALUE; write, for example, --set sampling.epochs=3")
    return parse_changes(settings)


def _models(replacements: list[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for replacement in replacements:
        name, _, path = (part.strip() for part in replacement.partition("="))
        if not name or not path:
            raise UserError(f"--model {replacement}: this is not NAME=PATH; write, for example, --model base=my/folder")
        changes |= {f"models.{name}.path": path} | {
            f"models.{name}.{field}": None for field in ("train", "iteration_of", "iteration")
        }
    return changes


def _only(spec: Spec, tasks: list[str]) -> Spec:
    """The specification with these tasks alone."""
    for name in tasks:
        if name not in spec.tasks:
            raise UserError(f"--tasks: '{spec.name}' has no task '{name}'; {nearest(name, spec.tasks)}")
    for model, settings in spec.models.items():
        left_out = [t for t in (settings.train.tasks if settings.train else None) or () if t not in tasks]
        if left_out:
            raise UserError(f"--tasks leaves out '{left_out[0]}', on which the model '{model}' is trained; name it too")
    return spec.model_copy(update={"tasks": {name: task for name, task in spec.tasks.items() if name in tasks}})
