"""What a run computes on: chosen once, kept in its folder (engine.json), and kept to by a resume, on another machine too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.spec import EngineSpec
from harness.store import read_json

FILE = "engine.json"
_KINDS = {"device": str, "threads": int, "bfloat16": bool}


def read_engine(folder: Path) -> dict[str, Any]:
    """The settings that an earlier start of the run in a folder chose, as far as they can be read."""
    file = folder / FILE
    found = read_json(file) if file.is_file() else {}
    return {k: found[k] for k, kind in _KINDS.items() if isinstance(found, dict) and isinstance(found.get(k), kind)}


def machine_has_bfloat16(device: str) -> bool:
    """Whether what is ``auto`` computes in bfloat16 on this machine's `device`, which may be ``auto`` itself."""
    from harness.models.local import best_dtype

    return best_dtype(device) == "bfloat16"


def auto_is_bfloat16(folder: Path, engine: EngineSpec) -> bool:
    """Whether what is ``auto`` (``engine.dtype``, a recipe's ``bf16``) is bfloat16: as the run was begun, or else as here."""
    known = read_engine(folder)
    if "bfloat16" in known:
        return bool(known["bfloat16"])
    return machine_has_bfloat16(known.get("device", "auto") if engine.device == "auto" else engine.device)
