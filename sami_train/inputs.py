"""What a recipe is applied to: the model, queries, principles and prompt templates that it names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami_train.config import Recipe, find_recipe
from sami_train.constitutions import PrincipleSet, distinct, list_principle_sets, load_principle_set, principle_folders
from sami_train.data import read_queries, without_duplicates
from sami_train.errors import UserError, nearest
from sami_train.models import Source, parse_source
from sami_train.prompts import Template, load_template
from sami_train.text import expanded
from sami_train.yamlfile import read_yaml

if TYPE_CHECKING:
    from sami_train.trainer import TrainingData


def inputs(recipe: Recipe, folders: Sequence[Path]) -> tuple[Source, TrainingData]:
    """The base model, the queries and the principles that a recipe names.

    Args:
        recipe: a recipe that names all three.
        folders: where its files are looked for, besides the current folder: see `folders_of`.

    Raises:
        UserError: something is not named, not found, or too little for the recipe.
    """
    from sami_train.trainer import TrainingData

    for field in ("model", "queries", "principles"):
        if not getattr(recipe, field):
            raise UserError(f"the recipe '{recipe.name}' names no {field}; add the field, or use --set {field}=...")
    sets = [_principle_set(name, folders) for name in recipe.principles]
    parts = {file: read_queries(file, part="train") for file in (_beside(name, folders) for name in recipe.queries)}
    queries = without_duplicates([query for part in parts.values() for query in part], recipe.name)
    if not queries:
        files = ", ".join(map(str, parts))
        raise UserError(
            f"{files}: there is no training query (rows that say 'part: train', or no part); name another file"
        )
    kinds = sorted({query.task for query in queries})
    principles = {kind: distinct(p for s in sets for p in s.select(kind, "learned")) for kind in kinds}
    for kind in kinds:
        if len(principles[kind]) < recipe.principles_per_constitution:
            raise UserError(
                f"the recipe '{recipe.name}' has too few learned principles for {kind}; name another principle set"
            )
    assert recipe.model is not None
    templates = templates_of(recipe, kinds, folders)
    where_from = provenance({file: len(part) for file, part in parts.items()}, sets)
    return parse_source(recipe.model), TrainingData(queries, principles, templates, provenance=where_from)


def templates_of(recipe: Recipe, kinds: Iterable[str], folders: Sequence[Path]) -> dict[str, Template]:
    """The prompt templates that a recipe names, by kind of task; a kind without one has the template of its name.

    Raises:
        UserError: a template is not found or invalid, or two are for one kind of task.
    """
    named: dict[str, Template] = {}
    for name in recipe.templates:
        template = load_template(_beside(name, folders) if name.endswith((".yaml", ".yml")) else name)
        if named.setdefault(template.task, template) is not template:
            raise UserError(
                f"the recipe '{recipe.name}' names two templates for {template.task}, '{named[template.task].name}' and "
                f"'{template.name}'; leave one of them out"
            )
    return {kind: named.get(kind) or load_template(kind) for kind in kinds}


def provenance(queries: dict[Path, int], sets: Iterable[PrincipleSet]) -> dict[str, Any]:
    """Where training data comes from, for the checkpoint's model card.

    Args:
        queries: number of queries taken from each file.
        sets: the principle sets.

    Returns:
        ``{"queries": [{"file", "n", "sha256"}], "principle_sets": [{"name", "version", "hash", "file", "source"}]}``.
    """
    return {
        "queries": [
            {"file": str(file), "n": n, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file, n in queries.items()
        ],
        "principle_sets": [
            {"name": s.name, "version": s.version, "hash": s.hash, "file": str(s.file), "source": s.source}
            for s in sets
        ],
    }


def folders_of(name_or_path: str) -> list[Path]:
    """The folders that a recipe's relative paths may be meant from: its own, then those of the recipes it extends."""
    file: Path | None = find_recipe(name_or_path)
    folders = []
    while file is not None:
        folders.append(file.parent)
        file = parent_of(file)
    return list(dict.fromkeys(folders))


def parent_of(file: Path) -> Path | None:
    """The file of the recipe that a (valid) recipe extends: beside it, else shipped; None where it extends none."""
    parent = read_yaml(file, what="recipe").data.get("extends")
    if parent is None:
        return None
    beside = file.parent / f"{parent}.yaml"
    return beside if beside.is_file() else find_recipe(str(parent))


def located(recipe: Recipe, folders: Sequence[Path]) -> Recipe:
    """The recipe with the files that it names given by whole paths, so that it can be run from anywhere."""

    def whole(name: str) -> str:
        found = _beside(name, folders)
        return str(found.resolve()) if found.is_file() else name

    return recipe.model_copy(
        update={field: tuple(map(whole, getattr(recipe, field))) for field in ("queries", "principles", "templates")}
    )


def _beside(name: str, folders: Iterable[Path]) -> Path:
    path = expanded(name)
    return next((folder / path for folder in folders if (folder / path).exists()), path)


def _principle_set(name: str, folders: Iterable[Path]) -> PrincipleSet:
    if Path(name).suffix in {".yaml", ".yml"} or os.sep in name:
        return load_principle_set(_beside(name, folders))
    known = list_principle_sets()
    if name not in known:
        looked = ", ".join(map(str, principle_folders())) or "no folder: there is none"
        raise UserError(
            f"there is no principle set named '{name}' (looked in {looked}); have a model write it with 'harness principles "
            f"write ... -o principles/{name}.yaml', or name one at hand with --set principles=[SET]; {nearest(name, known)}"
        )
    return load_principle_set(known[name])
