"""The providers' batch interfaces: many requests handed in at once, answered within a day, for less.

A chunk of requests is written down before it is handed in, and its id as soon as there is one, so that a run that was killed
finds its batches again and pays for none of them twice. A request is told from another of the same id by the hash of its body.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from harness.models._api import ApiBackend
from harness.models._pace import Pace
from harness.models._replies import Ended, RequestError, clean
from harness.models.base import Completion, Request, Sampling
from harness.store.files import read_json, write_json
from sami_train.errors import UserError
from sami_train.text import counted

FIRST_POLL_S = 1.0
LONGEST_POLL_S = 60.0
_ROWS = 256  # completions that are handed over together

_T = TypeVar("_T")


@dataclass
class Chunk:
    """What was, or is about to be, handed in together.

    `requests`: hash of the body by id, as it is before fields that the model refuses are left out (`left_out`).
    """

    token: str
    created: float
    requests: dict[str, str]
    batch: str | None = None
    collected: bool = False
    left_out: list[str] = field(default_factory=list)


def open_requests(folder: Path) -> int:
    """How many requests of a stage are in batches that were not collected yet."""
    return sum(len(chunk.requests) for _, chunk in _chunks(folder) if not chunk.collected)


def in_batches(
    backend: ApiBackend, todo: Sequence[Request], sampling: Sampling, folder: Path, say: Callable[[str], None]
) -> Iterator[list[Completion]]:
    """The completions of `todo`, as their batches end. `folder` holds the chunks, a file each.

    Raises UserError when a batch is refused, or the provider cannot be reached; batches under way go on, and the same call
    takes them up again.
    """
    driver = _Driver(backend, sampling, folder, say)
    wanted = {request.id: request for request in todo}
    under_way = driver.take_up(wanted)
    pending = deque(r for r in todo if not any(r.id in chunk.requests for _, chunk in under_way))
    pause = FIRST_POLL_S
    while True:
        under_way += driver.hand_in(pending, len(under_way))
        if not under_way:
            return
        ended = [(file, chunk, end) for file, chunk in under_way if (end := driver.ended(chunk)) is not None]
        for file, chunk, end in ended:
            under_way.remove((file, chunk))
            if end.too_many and driver.can_be_smaller(chunk, len(under_way)):
                pending.extendleft(driver.take_back(file, chunk, wanted))
                continue
            yield from driver.collect(chunk, end, wanted)
            driver.keep(file, chunk, collected=True)  # after its rows are on disk
            pending.extendleft(driver.again)
            driver.again = []
        pause = FIRST_POLL_S if ended else min(LONGEST_POLL_S, 1.5 * pause)
        if under_way and not ended:
            time.sleep(pause)


class _Driver:
    def __init__(self, backend: ApiBackend, sampling: Sampling, folder: Path, say: Callable[[str], None]) -> None:
        self.backend, self.sampling, self.folder, self.say = backend, sampling, folder, say
        self.pace = Pace(1)
        self.reserved: dict[str, float] = {}
        self.most = backend.batch_requests
        """Requests in a batch."""
        self.together: int | None = None
        """Batches under way at once; None: as many as there are."""
        self.again: list[Request] = []
        """Requests of collected batches that are worth another try without what the model refused."""

    def take_up(self, wanted: Mapping[str, Request]) -> list[tuple[Path, Chunk]]:
        """The chunks of earlier calls that are still under way and wanted."""
        found = []
        for file, chunk in _chunks(self.folder):
            if chunk.collected:
                continue
            chunk.requests = {
                i: key for i, key in chunk.requests.items() if i in wanted and self._key(wanted[i]) == key
            }
            if chunk.requests and chunk.batch is None:
                # Killed while it was handed in: the provider may have it all the same.
                chunk.batch = self._ask(partial(self._find, chunk), "look for a batch")
            if not chunk.requests or chunk.batch is None:
                file.unlink()
                continue
            self.keep(file, chunk)
            if self.backend.budget is not None:
                for i in chunk.requests:
                    self.reserved[i] = self.backend.budget.commit(self.backend.name, wanted[i].prompt, self.sampling)
            self.say(f"{self.backend.name}: waiting for batch {chunk.batch}, {counted(len(chunk.requests), 'request')}")
            found.append((file, chunk))
        return found

    def can_be_smaller(self, chunk: Chunk, others: int) -> bool:
        """After the provider took no chunk of this size beside `others`: whether fewer requests at once are worth a try."""
        if others:
            self.together = others
        elif len(chunk.requests) == 1:
            return False
        else:
            self.together, self.most = 1, max(1, len(chunk.requests) // 2)
        self.say(
            f"{self.backend.name}: the provider took no more than is under way now; the rest follows in batches of at most "
            f"{counted(self.most, 'request')}"
        )
        return True

    def take_back(self, file: Path, chunk: Chunk, wanted: Mapping[str, Request]) -> list[Request]:
        """The requests of a chunk that the provider did not take, last first; nothing was paid for them."""
        file.unlink(missing_ok=True)
        if self.backend.budget is not None:
            for i in chunk.requests:
                self.backend.budget.settle(self.backend.name, self.reserved.pop(i, 0.0), {})
        return [wanted[i] for i in reversed(chunk.requests)]

    def hand_in(self, pending: deque[Request], under_way: int) -> list[tuple[Path, Chunk]]:
        """Hand in as much of `pending` as the budget allows, in chunks as large as the provider takes."""
        found: list[tuple[Path, Chunk]] = []
        while pending and (self.together is None or under_way + len(found) < self.together):
            if not (lines := self._lines(pending)):
                break
            token = secrets.token_hex(4)
            keys = {request.id: key for request, _, key in lines}
            chunk = Chunk(token, time.time(), keys, left_out=sorted(self.backend.left_out))
            file = self.folder / f"{len(list(self.folder.glob('*.json'))):04d}-{token}.json"
            data = [
                json.dumps(self.backend._batch_line(f"{token}-{request.id}", body), ensure_ascii=False).encode()
                for request, body, _ in lines
            ]
            prepared = self._ask(partial(self.backend._batch_prepare, data), "take a batch")
            self.keep(file, chunk)
            chunk.batch = self._create(chunk, prepared)
            self.keep(file, chunk)
            self.say(
                f"{self.backend.name}: handed in batch {chunk.batch}, {counted(len(keys), 'request')}; it can take a day"
            )
            found.append((file, chunk))
        return found

    def ended(self, chunk: Chunk) -> Ended | None:
        assert chunk.batch is not None
        batch = chunk.batch
        return self._ask(lambda: self.backend._batch_ended(batch), f"tell of batch {batch}")

    def collect(self, chunk: Chunk, end: Ended, wanted: Mapping[str, Request]) -> Iterator[list[Completion]]:
        """Completions for every request of a chunk, whatever the results hold."""
        left = dict.fromkeys(chunk.requests)
        rows: list[Completion] = []

        def row(i: str, result: Any) -> None:
            cost: Mapping[str, Any] = {}
            if (
                isinstance(result, RequestError)
                and result.reason == "refused_request"
                and self._worth_another_try(chunk, wanted[i], result)
            ):
                self.again.append(wanted[i])
            else:
                rows.append(self._completion(wanted[i], result))
                cost = rows[-1].usage
            if self.backend.budget is not None:
                self.backend.budget.settle(self.backend.name, self.reserved.pop(i, 0.0), cost)

        for custom_id, result in end.found:
            i = custom_id.removeprefix(f"{chunk.token}-")
            if i not in left or custom_id == i:
                continue  # of another call, or given twice
            del left[i]
            row(i, result)
            if len(rows) >= _ROWS:
                yield rows
                rows = []
        for i in left:
            row(i, end.others)
        yield rows

    def keep(self, file: Path, chunk: Chunk, *, collected: bool = False) -> None:
        chunk.collected = collected
        write_json(file, asdict(chunk))

    def _worth_another_try(self, chunk: Chunk, request: Request, problem: RequestError) -> bool:
        """Whether the model refused a field that later requests leave out."""
        body = self._body(request)
        sent = {name: value for name, value in body.items() if name not in self.sampling.extra}
        return self.backend._learn(sent, problem) or not self.backend.left_out.keys() <= set(chunk.left_out)

    def _completion(self, request: Request, result: Any) -> Completion:
        sampling = self.backend.sampled(request, self.sampling)
        cost: dict[str, Any] = {}
        try:
            if isinstance(result, RequestError):
                raise result
            cost = self.backend._cost(result, request.prompt, sampling)
            made = self.backend._completion(request, sampling, self.backend._read_checked(result))
        except RequestError as error:
            made = self.backend._failure(request, error)
        return replace(made, usage={**cost, **self.backend._about(request.prompt, sampling), "batch": True})

    def _lines(self, pending: deque[Request]) -> list[tuple[Request, dict[str, Any], str]]:
        taken: list[tuple[Request, dict[str, Any], str]] = []
        size = 0
        budget = self.backend.budget
        while pending and len(taken) < min(self.most, self.backend.batch_requests):
            request = pending[0]
            body = self._body(request)
            size += len(json.dumps(self.backend._batch_line("", body), ensure_ascii=False).encode()) + 128
            if taken and size > self.backend.batch_bytes:
                break
            if budget is not None:
                reserved = budget.reserve(self.backend.name, request.prompt, self.sampling, batch=True)
                if reserved is None:
                    break
                self.reserved[request.id] = reserved
            pending.popleft()
            taken.append((request, body, self._key(request)))
        return taken

    def _create(self, chunk: Chunk, prepared: Any) -> str:
        """Hand in. A try whose answer was lost may have succeeded, so that every other looks for it first."""
        tries = itertools.count()

        def create() -> str:
            found = self._find(chunk) if next(tries) else None
            return found or self.backend._batch_create(prepared, chunk.token)

        return self._ask(create, "take a batch")

    def _find(self, chunk: Chunk) -> str | None:
        return self.backend._batch_find(chunk.token, len(chunk.requests), chunk.created)

    def _key(self, request: Request) -> str:
        return _hash(self._body(request, learned=False))

    def _body(self, request: Request, *, learned: bool = True) -> dict[str, Any]:
        return self.backend._body(request.prompt, self.backend.sampled(request, self.sampling), learned=learned)

    def _ask(self, ask: Callable[[], _T], what: str) -> _T:
        try:
            return self.backend._patiently(ask, self.pace)[0]
        except RequestError as error:
            said = clean(str(error), self.backend._secret)
            raise UserError(
                f"model '{self.backend.name}': the provider did not {what} ({error.reason}: {said}); "
                "run the same command again, or without --batch where it has no batch interface"
            ) from error


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def _chunks(folder: Path) -> list[tuple[Path, Chunk]]:
    found = []
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            found.append((file, Chunk(**read_json(file))))
        except TypeError:
            raise UserError(f"{file} is no record of a batch; restore it or delete it") from None
    return found
