"""Chat templates: messages as text, and the end of an assistant's turn. A template is code of others, so it runs under limits."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sami_train.errors import UserError

SECONDS = 10.0
"""Time that a chat template may take for one conversation (where the system has timers, in the main thread)."""
MEMORY = 2 << 30
"""Bytes that the process may grow by meanwhile, where the system has such a limit."""

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class TurnEnd:
    """What ends an assistant's message: tokens, and strings where the tokenizer has no token for it."""

    ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()


NO_END = TurnEnd()


def render_chat(tokenizer: Any, messages: Messages) -> str:
    """The conversation as text, up to where the assistant begins. A template that wants lists of content parts gets them.

    Raises:
        UserError: the template fails, takes too long, or leaves out a message or a part of one.
    """
    text = _render(tokenizer, messages, begin=True)
    if _left_out(messages, text):
        parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        try:
            again = _render(tokenizer, parts, begin=True)
        except UserError:
            again = ""
        if left := _left_out(messages, again):
            raise UserError(
                f"the chat template of the model's tokenizer leaves out the {left} message or a part of it, so that the model "
                "would not read its prompt; fix the template, or set style: completion"
            )
        return again
    return text


def check_templates(template: object, where: str) -> None:
    """Raises UserError for named chat templates without one named 'default', none of which is the one to use."""
    if isinstance(template, list):
        template = {str(one.get("name")): one for one in template if isinstance(one, dict)}
    if isinstance(template, dict) and template and "default" not in template:
        raise UserError(
            f"{where} has several chat templates ({', '.join(sorted(template))}), and none is named 'default'; name the one to "
            "use so, or set style: completion"
        )


_USER, _REPLY = "Say one word.", "Certainly."


def turn_end(tokenizer: Any) -> TurnEnd:
    """What the chat template puts right behind an assistant's message: its first token, or its text where that has no token.

    A model that was tuned with the template writes it, whatever the tokenizer's end of text is.
    """
    kept: tuple[object, TurnEnd] | None = getattr(tokenizer, "_sami_turn_end", None)
    template = tokenizer.chat_template
    if kept is None or kept[0] != template:
        kept = (template, _turn_end(tokenizer))
        tokenizer._sami_turn_end = kept
    return kept[1]


def _turn_end(tokenizer: Any) -> TurnEnd:
    turns = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}]
    for messages in ([*turns, turns[0]], turns):
        try:
            text = _render(tokenizer, messages, begin=False)
        except UserError:
            continue
        _, found, after = text.rpartition(_REPLY)
        if found:
            return _end_in(tokenizer, after.partition(_USER)[0])
    return NO_END


_MARK = re.compile(r"\s*(<[^<>\s]+>|\[/?[A-Z_]+\])")


def _end_in(tokenizer: Any, after: str) -> TurnEnd:
    """The end in what stands between an assistant's message and the user's next one."""
    ids = tokenizer(after.strip(), add_special_tokens=False).input_ids
    special = {*tokenizer.added_tokens_decoder}
    if ids and ids[0] in special:
        return TurnEnd(frozenset(ids[:1]))
    if mark := _MARK.match(after):
        return TurnEnd(strings=(mark[1],))
    if after.startswith("\n") and len(after.strip()) > 1:  # the name of who speaks next
        return TurnEnd(strings=(after.rstrip(),))
    return NO_END


def _left_out(messages: Messages, text: str) -> str | None:
    """The role of a message whose content the text lacks, but for white space."""
    whole = " ".join(text.split())
    return next((m["role"] for m in messages if " ".join(m["content"].split()) not in whole), None)


def _render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, begin: bool) -> str:
    check_templates(tokenizer.chat_template, "the model's tokenizer")
    try:
        with _limited():
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=begin))
    except Exception as error:  # noqa: BLE001 - whatever code of others raises
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"the chat template of the model's tokenizer fails ({said}); fix it, or set style: completion"
        ) from None


@contextmanager
def _limited() -> Iterator[None]:
    """Ends what takes longer than `SECONDS` or more than `MEMORY`, by TimeoutError or MemoryError."""
    with _memory_limited():
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
            yield
            return

        def stop(_: int, __: FrameType | None) -> None:
            raise TimeoutError(f"it takes longer than {SECONDS:g} seconds")

        before = signal.signal(signal.SIGALRM, stop)
        left, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, left)
            signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory_limited() -> Iterator[None]:
    try:
        import resource

        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError, ValueError):
        yield
        return
    soft, hard = before
    limits = [limit for limit in (soft, hard, held + MEMORY) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
