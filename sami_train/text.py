"""Text that others wrote, made fit for files and terminals, and counts in words."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def printable(text: str) -> str:
    """`text` with nothing in it that a terminal acts on: what is not printable becomes U+FFFD; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT or _is_space(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


_KEPT = "\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"


def _is_space(character: str) -> bool:
    return unicodedata.category(character) == "Zs"


def whole_characters(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def counted(n: int, one: str, many: str | None = None) -> str:
    """``1 response``, ``2 responses``; `many` for a plural that is not `one` with an s."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def expanded(path: str) -> Path:
    """A path as people write it in files: `~` and variables such as $HOME are what they stand for."""
    return Path(os.path.expandvars(path)).expanduser()
