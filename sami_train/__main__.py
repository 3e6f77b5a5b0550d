"""``python -m sami_train RECIPE``: train without the harness, from a recipe that names its model, queries and principles."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sami_train.config import Recipe, find_recipe, list_recipes, load_recipe, parse_changes
from sami_train.constitutions import load_principle_set
from sami_train.data import Query, read_queries, without_duplicates
from sami_train.errors import UserError
from sami_train.models import Source, default_device, parse_source
from sami_train.prompts import load_template
from sami_train.trainer import TrainingData, final_model, train


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0 done, 1 the run failed, 2 bad usage or an invalid recipe."""
    parser = argparse.ArgumentParser(prog="sami-train", description="Train a model with SAMI from a recipe.")
    parser.add_argument("recipe", help=f"a recipe file, or one of: {', '.join(list_recipes())}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe"
    )
    parser.add_argument("-o", "--output", type=Path, help="folder of the run (default: runs/sami/RECIPE)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe, parse_changes(options.set))
        source, data = _inputs(recipe, find_recipe(options.recipe).parent)
    except UserError as error:
        print(f"sami-train: {error}", file=sys.stderr)  # noqa: T201
        return 2
    folder = options.output or Path("runs/sami") / recipe.name.replace("/", "-")
    try:
        import torch

        if options.threads:
            torch.set_num_threads(options.threads)
        train(
            recipe,
            source,
            data,
            folder,
            device=default_device(),
            trust_remote_code=options.trust_remote_code,
            progress=_print_progress,
        )
    except UserError as error:
        print(f"sami-train: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("sami-train: stopped; run the same command again to go on", file=sys.stderr)  # noqa: T201
        return 130
    print(f"trained model: {final_model(folder, recipe)}")  # noqa: T201
    return 0


def _inputs(recipe: Recipe, beside: Path) -> tuple[Source, TrainingData]:
    for field in ("model", "queries", "principles"):
        if not getattr(recipe, field):
            raise UserError(f"the recipe '{recipe.name}' names no {field}; add the field, or use --set {field}=...")
    queries: list[Query] = []
    for name in recipe.queries:
        path = beside / name if (beside / name).exists() else Path(name)
        queries += read_queries(path, part="train")
    sets = [load_principle_set(name) for name in recipe.principles]
    kinds = sorted({query.task for query in queries})
    principles = {kind: [p for s in sets for p in s.select(kind, "learned")] for kind in kinds}
    for kind in kinds:
        if len(principles[kind]) < recipe.principles_per_constitution:
            raise UserError(
                f"the recipe '{recipe.name}' has too few learned principles for {kind}; name another principle set"
            )
    assert recipe.model is not None
    data = TrainingData(
        without_duplicates(queries, recipe.name), principles, {kind: load_template(kind) for kind in kinds}
    )
    return parse_source(recipe.model), data


_last_shown: dict[str, int] = {}


def _print_progress(what: str, done: int, total: int, figure: str) -> None:
    if _last_shown.get(what) != done:
        _last_shown[what] = done
        print(f"{what}: {done}/{total} {figure}".rstrip(), flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
