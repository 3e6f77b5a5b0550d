"""What lies in a model's folder: whether it is a whole causal language model, and the hash of all that loading it reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sami_train.errors import UserError
from sami_train.files import cache_folder

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, at most; the format's own limit."""
LONGEST_JSON = 256 << 20
"""Bytes of a JSON file, at most."""
_DOCUMENTS = {".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".log", ".lock"}
NOT_READ = _DOCUMENTS | {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"}
"""Ends of names of files that loading a model does not read."""


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder. Raises FileNotFoundError, and UserError where it cannot be read or is something else."""
    try:
        if file.stat().st_size > LONGEST_JSON:
            raise UserError(f"{file} has more than {LONGEST_JSON >> 20} MiB; restore the model folder")
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else _first_line(error)
        raise UserError(f"{file} cannot be read ({why}); restore the model folder") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object; restore the model folder")
    return value


def check_folder(folder: Path) -> None:
    """Raises UserError for a folder that is not that of a causal language model in whole safetensors files."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}: this is an adapter (LoRA), not a whole model{_base_of(folder)}; merge it into its base (peft: "
            "merge_and_unload), save that with save_pretrained, and name its folder"
        )
    try:
        config = read_object(folder / "config.json")
    except FileNotFoundError:
        raise UserError(f"{folder}: this is no model folder, it has no config.json") from None
    check_architecture(config, str(folder))
    for file in weight_files(folder):
        check_safetensors(file)


def check_architecture(config: Mapping[str, Any], where: str) -> None:
    """Raises UserError for the configuration of something else than a causal language model, such as a reward model.

    A configuration that names no architecture, or code of its own for a causal language model, is believed.
    """
    named = config.get("architectures") or []
    own = config.get("auto_map") or {}
    if not isinstance(named, list) or (isinstance(own, dict) and "AutoModelForCausalLM" in own):
        return
    known = ("CausalLM", "LMHead", "ForConditionalGeneration")
    if named and not any(part in str(name) for name in named for part in known):
        raise UserError(
            f"{where}: its config.json names the architecture {named[0]}, which is no causal language model and writes no "
            "text; name the language model that it was made from"
        )


EXTRA_PARTS = (
    *("vision", "visual", "image", "audio", "speech", "video", "multi_modal", "mm_"),
    *("mtp", "nextn", "rotary_emb", "position_ids", "masked_bias", "attn.bias", "attention.bias"),
)
"""Parts of the names of weights that the language model in a checkpoint may do without."""


def check_unused(names: Iterable[str], layers: int | None, where: str) -> None:
    """Raises UserError where a checkpoint has weights that the model which was made of it lacks, and is another model then.

    Parts for other media and for predicting several tokens (some stand as layers after the last of `layers`) are left out.
    """
    for name in sorted(names):
        layer = _LAYER.search(name)
        later = layers is not None and layer is not None and int(layer[1]) >= layers
        if later or any(part in name for part in EXTRA_PARTS):
            continue
        raise UserError(
            f"the model '{where}' cannot be loaded: its files hold weights that its architecture has no place for ({name}), so "
            "that it would be another model; name the causal language model that belongs to them"
        )


_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model is loaded from. Raises UserError where there are none, or one is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        shards = read_object(folder / INDEX).get("weight_map")
    except FileNotFoundError:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        others = sorted(file.name for file in folder.glob("*.safetensors"))
        if others:
            raise UserError(
                f"{folder}: this model folder has {others[0]}, and neither {WEIGHTS} nor {INDEX}, from which models are "
                "loaded; save the model with save_pretrained"
            ) from None
        advice = "only safetensors are loaded; convert it with save_pretrained" if pickled else "check the path"
        raise UserError(f"{folder}: this model folder has no *.safetensors file; {advice}") from None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{folder / INDEX} has no 'weight_map' of files; restore the model folder")
    files = [folder / name for name in sorted(set(shards.values()))]
    if missing := next((file for file in files if not file.is_file()), None):
        raise UserError(f"{missing}: this weights file, which {INDEX} names, is missing; restore the model folder")
    return files


def check_safetensors(file: Path) -> None:
    """Raises UserError for a file that is shorter than its header says (a half-written checkpoint), or has no whole header."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = file.stat().st_size
            header = handle.read(length) if length <= min(size, LONGEST_HEADER) else b""
        tensors = json.loads(header)
        end = max((spec["data_offsets"][1] for name, spec in tensors.items() if name != "__metadata__"), default=0)
    except OSError as error:
        raise UserError(f"{file}: this weights file cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise UserError(f"{file}: this is not a whole safetensors file; copy or train the model again") from None
    if size != 8 + length + end:
        raise UserError(
            f"{file}: this weights file is cut off ({size} of {8 + length + end} bytes); copy or train the model again"
        )


# Hashes


def folder_digest(folder: Path) -> list[tuple[str, str]]:
    """Name and SHA-256 of every file that loading the model in a folder reads: weights, settings, tokenizer, templates, code."""
    own = {file for file in folder.iterdir() if file.suffix.lower() not in NOT_READ}
    inside = {*folder.rglob("*.py"), *(folder / "additional_chat_templates").glob("*")}
    weights = set(weight_files(folder))
    files = sorted(
        file
        for file in own | inside
        if file.is_file()
        and not any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(folder).parts)
        and file.stem.upper() not in {"LICENSE", "LICENCE", "NOTICE"}
        and (file.suffix != ".safetensors" or file in weights)
    )
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(file_digest, files))
    return [(file.relative_to(folder).as_posix(), digest) for file, digest in zip(files, digests, strict=True)]


REMEMBERED_FROM = 1 << 20
"""Bytes from which a file's hash is remembered."""
SETTLED = 2.0
"""Seconds since its last change from which a file's times tell it from a later content."""


def file_digest(file: Path) -> str:
    """SHA-256 of a whole file; that of a large one is remembered in the cache, by its inode, size and times.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        stat = file.stat()
        key = f"{stat.st_dev:x}-{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}-{stat.st_ctime_ns:x}"
        note = cache_folder() / "hashes" / key
        large = stat.st_size >= REMEMBERED_FROM
        if large and len(known := _read_note(note)) == 64:
            return known
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: this file cannot be read ({error.strerror}); check its permissions") from None
    if large and time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED:
        with contextlib.suppress(OSError):  # the next one reads the file again
            note.parent.mkdir(parents=True, exist_ok=True)
            work = note.with_name(f".{key}-{os.getpid()}")
            work.write_text(digest, encoding="ascii")
            work.replace(note)
    return digest


def _read_note(note: Path) -> str:
    try:
        return note.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _base_of(folder: Path) -> str:
    try:
        base = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    except UserError:
        return ""
    return f"; its base is '{base}'" if isinstance(base, str) and base else ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__
