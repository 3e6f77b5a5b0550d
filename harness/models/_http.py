"""The HTTP side of the API back ends: addresses, keys, and a client whose answers are bounded in time and in size."""

from __future__ import annotations

import importlib
import ipaddress
import os
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from sami_train.errors import UserError

PLACEHOLDER_KEY = "no-key-needed"
"""What a server on the loopback gets when no key is set: the SDKs refuse to start without one."""
MOST_BYTES = 32 * 2**20
"""Of an answer, decompressed."""
MOST_BATCH_BYTES = 2**30
"""Of the results of a batch, decompressed."""
_PIECE = 2**16  # bytes that are decompressed at once


def http_client(sdk: Any, connections: int, timeout_s: float) -> Any:
    """An HTTP client as the SDK makes its own, with room for `connections`, which follows no redirection.

    A whole exchange, from connecting to the last byte, ends after `timeout_s` (or the timeout of the request), and an answer
    has at most `MOST_BYTES`, decompressed. The HTTP libraries' own timeouts begin again with each byte, and they decompress
    whatever comes.
    """
    limits = type(sdk.DEFAULT_CONNECTION_LIMITS)
    http = importlib.import_module(limits.__module__.partition(".")[0])  # httpx, or what has taken its place
    core = importlib.import_module(http.__name__.replace("httpx", "httpcore"))
    clock = _Clock()

    class Bounded(http.SyncByteStream):  # type: ignore[name-defined, misc]
        def __init__(self, stream: Any, is_gzip: bool, most: int) -> None:
            self._stream, self._is_gzip, self._most = stream, is_gzip, most

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            try:
                for piece in _unzipped(self._stream) if self._is_gzip else self._stream:
                    size += len(piece)
                    if size > self._most:
                        raise http.DecodingError(f"the answer has more than {self._most:,} bytes")
                    yield piece
            except zlib.error as error:
                raise http.DecodingError(f"the answer cannot be decompressed ({error})") from None

        def close(self) -> None:
            self._stream.close()

    def begun(request: Any) -> None:
        clock.start(request.extensions.get("timeout", {}).get("read") or timeout_s)
        request.headers["Accept-Encoding"] = "gzip"

    def answering(response: Any) -> None:
        encoding = response.headers.pop("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip"):
            raise http.DecodingError("the answer is compressed in a way that was not asked for")
        is_batch = response.request.url.path.endswith(("/content", "/results"))
        response.stream = Bounded(response.stream, encoding == "gzip", MOST_BATCH_BYTES if is_batch else MOST_BYTES)

    client = sdk.DefaultHttpxClient(
        limits=limits(max_connections=connections, max_keepalive_connections=connections),
        timeout=timeout_s,
        follow_redirects=False,
        event_hooks={"request": [begun], "response": [answering]},
    )
    for transport in (client._transport, *client._mounts.values()):  # the direct one, and those through proxies
        if transport is not None:
            transport._pool._network_backend = _Network(transport._pool._network_backend, clock, core)
    return client


def _unzipped(chunks: Any) -> Iterator[bytes]:
    """The content of a gzip stream, a bounded piece at a time."""
    unzip = zlib.decompressobj(wbits=31)
    for chunk in chunks:
        data = chunk
        while data:
            yield unzip.decompress(data, _PIECE)
            data = unzip.unconsumed_tail
    yield unzip.flush()


class _Clock(threading.local):
    """When the exchange of this thread has to be over."""

    end = float("inf")

    def start(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self, timeout: float | None, late: type[Exception]) -> float:
        """Seconds that a call may take; raises `late` where there are none."""
        left = min(self.end - time.monotonic(), float("inf") if timeout is None else timeout)
        if left <= 0:
            raise late("the exchange did not end in time")
        return left


class _Network:
    """A network back end of the HTTP library whose calls end when the clock says so."""

    def __init__(self, inner: Any, clock: _Clock, core: Any) -> None:
        self._inner, self._clock, self._core = inner, clock, core

    def connect_tcp(self, *args: Any, timeout: float | None = None, **more: Any) -> Any:
        left = self._clock.left(timeout, self._core.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(*args, timeout=left, **more), self._clock, self._core)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Stream(_Network):
    """An open connection."""

    def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        return self._inner.read(max_bytes, self._clock.left(timeout, self._core.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._clock.left(timeout, self._core.WriteTimeout))

    def start_tls(self, *args: Any, timeout: float | None = None, **more: Any) -> Any:
        left = self._clock.left(timeout, self._core.ConnectTimeout)
        return _Stream(self._inner.start_tls(*args, timeout=left, **more), self._clock, self._core)


def variables_of(package: str) -> tuple[str, str]:
    """The environment's variables of a provider's key and of another server's address, as its SDK names them."""
    return f"{package.upper()}_API_KEY", f"{package.upper()}_BASE_URL"


def resolve_key(given: str | None, *, variable: str, base_url: str | None, name: str) -> str:
    """The key to use: the given one, else the environment's; a placeholder for a server on the loopback.

    Raises UserError naming the variable when there is no key, or when it is not one (spaces inside).
    """
    key = (given or os.environ.get(variable, "")).strip()
    if not key and base_url and is_loopback(base_url):
        return PLACEHOLDER_KEY
    if not key:
        raise UserError(f"model '{name}': there is no API key; set the environment variable {variable}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"model '{name}': the API key has characters that no key has; check {variable}")
    return key


def check_base_url(base_url: str | None, name: str) -> str | None:
    """`base_url` unchanged. Raises UserError when it is not an HTTP address."""
    if base_url is not None and not (base_url.startswith(("http://", "https://")) and urlsplit(base_url).hostname):
        raise UserError(
            f"model '{name}': 'base_url' is '{base_url}'; write it as http://host:port/v1 or https://host/v1"
        )
    return base_url


def is_loopback(base_url: str) -> bool:
    """Whether an address is this machine's own."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
