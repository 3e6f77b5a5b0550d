"""A run's folder: one run holds it at a time, and it is the run of one recipe on the same inputs, seen by every process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami_train.config import Recipe, dump_recipe, same_run
from sami_train.distributed import World
from sami_train.errors import UserError
from sami_train.files import read_json, write_json
from sami_train.models import Source, source_fingerprint
from sami_train.yamlfile import read_yaml

if TYPE_CHECKING:
    from sami_train.trainer import TrainingData

PATIENCE = 10.0
"""Seconds that a file written on one node may take to be seen on another."""


def inputs_of(source: Source, data: TrainingData, world: World, *, intents: bool = False) -> dict[str, str]:
    """Digests of all that a recipe is applied to; `intents`: what queries are about counts too.

    Raises:
        UserError: on every process, where one cannot read the model.
    """
    error, model = None, f"{source} {source.revision or ''}".strip()
    try:
        if source.kind != "embedded":
            model = source_fingerprint(source)
    except UserError as reason:
        error = reason
    world.together(error)
    return {
        "model": model,
        "queries": _digest([[q.id, q.text, q.task, *([q.intent] if intents else [])] for q in data.queries]),
        "principles": _digest(
            {k: [[p.id, p.definition, p.antithesis] for p in ps] for k, ps in data.principles.items()}
        ),
        "templates": _digest({kind: template.hash for kind, template in data.templates.items()}),
    }


def begun_in_bf16(folder: Path) -> bool | None:
    """`bf16` of the recipe of the run begun in a folder, which ``bf16: auto`` goes on with on any machine; None: none was begun."""
    file = folder / "recipe.yaml"
    known = read_yaml(file, what="recipe").data if file.is_file() else None
    found = known.get("bf16") if isinstance(known, dict) else None
    return found if isinstance(found, bool) else None


def check_nodes(folder: Path, recipe: Recipe, inputs: Mapping[str, str], world: World) -> None:
    """Make sure that all processes were started on the same run, and that all nodes see its folder.

    Raises:
        UserError: on every process, where one has another recipe, model, principles or queries, or does not see what the first
            process writes: it would wait for the others in vain, and checkpoints would lack its part.
    """
    host = socket.gethostname()
    settings = recipe.model_copy(
        update={"model": None, "queries": (), "principles": (), "templates": ()}
    )  # what they name is in `inputs`
    known = {"recipe": _digest(dump_recipe(settings)), **inputs}
    own = (host, known, str(folder.absolute()), world.local_size, f".seen-{secrets.token_hex(8)}")
    everywhere = world.gather(own)
    first_host, first, first_folder, _, name = everywhere[0]
    for rank, (other_host, other, *_) in enumerate(everywhere):
        if other != first:
            what = ", ".join(key for key in first if first[key] != other[key])
            raise UserError(
                f"process {rank} on {other_host} was started with another {what} than process 0 on {first_host}; start the "
                "same command on the same files on every node"
            )
    if all(local == world.size and other_host == first_host for other_host, _, _, local, _ in everywhere):
        return
    error, mark = None, folder / str(name)
    if world.main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as reason:
            error = _not_writable(folder, reason)
    world.together(error)
    latest = time.monotonic() + PATIENCE
    while not (seen := _sees(mark)) and time.monotonic() < latest:
        time.sleep(0.2)
    blind = [rank for rank, sees in enumerate(world.gather(seen)) if not sees]
    if world.main:
        with contextlib.suppress(OSError):
            mark.unlink()
    if blind:
        other_host, _, other_folder, *_ = everywhere[blind[0]]
        raise UserError(
            f"{other_folder}: process {blind[0]} on {other_host} does not see in this folder what process 0 on {first_host} "
            f"writes to {first_folder}; name one with -o on a disk that all nodes share"
        )


def _sees(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:
        return False


def finished(folder: Path, recipe: Recipe, inputs: Mapping[str, str]) -> dict[str, Any] | None:
    """The summary of a finished run of this recipe on these inputs. Raises UserError where it is another run's."""
    try:
        is_file = folder.exists() and not folder.is_dir()
    except OSError as reason:
        raise UserError(f"{folder}: the folder cannot be read ({reason.strerror}); name another one with -o") from None
    if is_file:
        raise UserError(f"{folder}: this is a file; name a folder with -o")
    summary = read_json(folder / "summary.json")
    if summary is not None:
        _same_inputs(folder, recipe, inputs)
        if not (final_model(folder, recipe) / "config.json").is_file():
            raise UserError(
                f"{final_model(folder, recipe)}: the run is finished, and its model is gone; delete {folder} to train it again"
            )
    return summary


def final_model(folder: Path, recipe: Recipe) -> Path:
    """Where the trained model of a finished run lies."""
    return folder / f"iteration-{recipe.iterations}" / "model"


@contextlib.contextmanager
def alone(folder: Path, world: World) -> Iterator[None]:
    """Hold the run's folder, which the first process makes, so that no second run writes there.

    Raises:
        UserError: another run holds it, or it cannot be made.
    """
    error, handle = None, None
    if world.main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = (folder / ".training.lock").open("ab")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            error = UserError(
                f"{folder}: another run is training here; wait for it, stop it, or name another folder with -o"
            )
        except OSError as reason:
            error = _not_writable(folder, reason)
    try:
        world.together(error)
        yield
    finally:
        if handle is not None:
            handle.close()  # which lets go; so does the end of the process, however it ends


def claim(folder: Path, recipe: Recipe, inputs: Mapping[str, str], world: World) -> None:
    """Write down what the folder's run is, or make sure that the run begun there, which has made something, is this one.

    Raises:
        UserError: the folder holds the run of another recipe, model, principles or queries, or cannot be made.
    """
    error = None
    made = (*folder.glob("*.jsonl"), *folder.glob("iteration-*/*.jsonl"))
    begun = (folder / "inputs.json").is_file() and bool(made)
    world.barrier()  # all have looked before the first process writes
    try:
        if begun:
            _same_inputs(folder, recipe, inputs)
        elif world.main:
            (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
            write_json(folder / "inputs.json", dict(inputs))
    except OSError as reason:
        error = _not_writable(folder, reason)
    except UserError as reason:
        error = reason
    world.together(error)


def _same_inputs(folder: Path, recipe: Recipe, inputs: Mapping[str, str]) -> None:
    """Raises UserError when the folder's run is of another recipe, model, principles or queries."""
    same_run(folder / "recipe.yaml", recipe)
    known = read_json(folder / "inputs.json") or {}
    for key, value in inputs.items():
        if known.get(key) != value:
            raise UserError(f"{folder}: a run with other {key} was begun here; name another folder with -o")


def _not_writable(folder: Path, reason: OSError) -> UserError:
    return UserError(f"{folder}: the folder cannot be written ({reason.strerror}); name another one with -o")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:32]
