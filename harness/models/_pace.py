"""How fast a provider is asked: as many requests at once as it takes, pauses that it asks for, and waits between tries.

Requests in flight follow additive increase and multiplicative decrease, as in TCP congestion control (Chiu and Jain,
1989): full speed at first, half of it when the provider is overloaded, and slowly up again. All workers share it.
"""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

LONGEST_PAUSE_S = 600.0
"""A provider that asks for a longer pause is not waited for: the run stops and can be taken up later."""
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_STEPS = 32  # windows from one request at a time to all of them


class Pace:
    """How many requests may be in flight, and from when on. Used from many threads."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic, seed: int | None = None) -> None:
        self.most = most
        self._limit = float(most)
        self._in_flight = 0
        self._resume_at = 0.0
        self._cut_at = float("-inf")
        self._clock = clock
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """Requests that may be in flight now, from 1 to `most`."""
        return max(1, int(self._limit))

    @contextmanager
    def turn(self) -> Iterator[float]:
        """Wait for a place among the requests in flight; gives the time it began. Raises Stopped after `stop`."""
        with self._changed:
            while not self._ended.is_set():
                pause = self._resume_at - self._clock()
                if pause <= 0 and self._in_flight < self.limit:
                    break
                self._changed.wait(pause if pause > 0 else None)
            if self._ended.is_set():
                raise Stopped
            self._in_flight += 1
        try:
            yield self._clock()
        finally:
            with self._changed:
                self._in_flight -= 1
                self._changed.notify()

    def answered(self) -> None:
        """The provider answered: a window of answers raises the limit by a fixed step."""
        with self._changed:
            if self._limit < self.most:
                before = self.limit
                self._limit = min(self.most, self._limit + max(1.0, self.most / _STEPS) / self._limit)
                if self.limit > before:
                    self._changed.notify(self.limit - before)

    def overloaded(self, began: float, retry_after_s: float | None = None) -> None:
        """The provider refused a request, begun at `began`, for its load: halve the limit, and pause as it asks.

        One overload is met by many requests at once: those begun before the last cut say nothing new.
        """
        with self._changed:
            if began >= self._cut_at:
                self._limit = max(1.0, self._limit / 2)
                self._cut_at = self._clock()
            if retry_after_s:
                self._resume_at = max(self._resume_at, self._clock() + min(retry_after_s, LONGEST_PAUSE_S))

    def wait(self, tries: int, retry_after_s: float | None = None) -> None:
        """Wait before the next try after `tries` failed ones. Raises Stopped after `stop`."""
        if self._ended.wait(self.seconds_to_wait(tries, retry_after_s)):
            raise Stopped

    def seconds_to_wait(self, tries: int, retry_after_s: float | None = None) -> float:
        """As long as was asked and up to a tenth more; otherwise twice as long each time, less up to a half."""
        with self._changed:
            if retry_after_s is not None:
                return retry_after_s * self._random.uniform(1.0, 1.1)
            return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(tries - 1, 16)) * self._random.uniform(0.5, 1.0)

    def stop(self) -> None:
        """Nobody waits any longer."""
        self._ended.set()
        with self._changed:
            self._changed.notify_all()


class Stopped(Exception):
    """The run is over; nobody wants this answer any more."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a provider asks to wait, from `retry-after-ms` or `retry-after` (seconds, or a date)."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            seconds = float(text) / unit
        except ValueError:
            seconds = _until(text) if unit == 1.0 else float("nan")
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _until(date: str) -> float:
    """The seconds until a date; NaN for what is not one, or one that no calendar here has."""
    try:
        parsed = email.utils.parsedate_tz(date)
        return email.utils.mktime_tz(parsed) - time.time() if parsed else float("nan")
    except (ValueError, OverflowError, TypeError):
        return float("nan")
