"""Which model answers at an address: what enters the fingerprint of an API model besides its name."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.models._http import is_loopback, variables_of
from harness.spec import ModelSpec, model_backend
from sami_train.errors import UserError
from sami_train.models import Source, source_fingerprint

_OWN_HOST = {"openai": "api.openai.com", "anthropic": "api.anthropic.com"}
_TIMEOUT_S = 5
_LONGEST_LIST = 4 << 20
"""Bytes of a server's list of models that are read."""
_JUST_NOW_S = 60


def address_of(model: ModelSpec) -> str:
    """The base URL that requests to an API model go to; empty: the provider's own. The environment's counts too."""
    _, variable = variables_of(model_backend(model.path or ""))
    return model.base_url or os.environ.get(variable) or ""


def is_own(model: ModelSpec) -> bool:
    """Whether an API model is asked at its provider's own address."""
    address = address_of(model)
    return not address or urlsplit(address).hostname == _OWN_HOST[model_backend(model.path or "")]


def served(model: ModelSpec) -> dict[str, str] | None:
    """What another server than the provider's own says of a model: `id`, `root` and `created`; None where it says nothing.

    `root` is the checkpoint that the server loaded. Where that is a folder of this machine, `weights` is the hash of its
    files. A `created` that is the time of the answer (some servers send that) says nothing of the model and is left out.
    """
    if is_own(model):
        return None
    backend, _, name = (model.path or "").partition("/")
    base = address_of(model).rstrip("/")
    listed, now = _list_of_models(f"{base}/models" if backend == "openai" else f"{base}/v1/models", backend)
    entry = next((e for e in listed if isinstance(e, dict) and e.get("id") == name), None)
    if entry is None:
        return None
    found = {key: entry[key] for key in ("id", "root") if isinstance(entry.get(key), str)}
    created = entry.get("created", entry.get("created_at"))
    is_time_of_answer = isinstance(created, int | float) and abs(created - now) <= _JUST_NOW_S
    if isinstance(created, int | float | str) and not is_time_of_answer:
        found["created"] = str(created)
    if is_loopback(base) and Path(found.get("root", "")).is_dir():
        with suppress(UserError, OSError):
            found["weights"] = source_fingerprint(Source("folder", found["root"]))
    return found


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key goes to no other server than the one that is named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _list_of_models(url: str, backend: str) -> tuple[list[Any], float]:
    """The models that a server lists, none where it does not, and its time in seconds since 1970."""
    key = os.environ.get(variables_of(backend)[0], "").strip()
    of_key = {"Authorization": f"Bearer {key}"} if backend == "openai" else {"x-api-key": key}
    headers = {"anthropic-version": "2023-06-01"} if backend == "anthropic" else {}
    try:
        request = urllib.request.Request(url, headers={**headers, **(of_key if key else {})})
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=_TIMEOUT_S) as answer:
            date = answer.headers.get("Date")
            body = json.loads(answer.read(_LONGEST_LIST))
        data = body.get("data") if isinstance(body, dict) else None
        now = parsedate_to_datetime(date).timestamp() if date else time.time()
        return (data if isinstance(data, list) else []), now
    except (OSError, HTTPException, ValueError, RecursionError):
        return [], 0.0
