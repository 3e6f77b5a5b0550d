"""Content addresses: the same plain data has the same fingerprint in every process, on every machine."""

from __future__ import annotations

import hashlib
import json


def fingerprint(obj: object) -> str:
    """First 32 hex digits of the SHA-256 of `obj` as canonical JSON: sorted keys, no white space, ASCII.

    Takes what JSON has a word for, with strings as keys; a list and a tuple are the same, 1 and 1.0 are not. Raises
    TypeError for the rest: a path in particular, because a fingerprint must not depend on where a file lies. Raises
    ValueError for NaN and infinity.
    """
    _require_string_keys(obj)
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_refuse)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def _require_string_keys(obj: object) -> None:
    """json.dumps would write the keys 1 and "1" alike."""
    if isinstance(obj, dict):
        for key, value in obj.items():
            if not isinstance(key, str):
                raise TypeError(f"a key of fingerprinted data must be a string, not {type(key).__name__}: {key!r}")
            _require_string_keys(value)
    elif isinstance(obj, list | tuple):
        for value in obj:
            _require_string_keys(value)


def _refuse(value: object) -> object:
    raise TypeError(f"cannot fingerprint {type(value).__name__}: {value!r}; pass what it contains as plain data")
