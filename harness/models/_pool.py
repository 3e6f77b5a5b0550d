"""Many requests in flight at once, on threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from harness.models.base import Completion, Request


def as_they_finish(
    requests: Sequence[Request], complete: Callable[[Request], Completion | None], connections: int
) -> Iterator[list[Completion]]:
    """Run `complete` on `connections` threads and yield what is ready, in batches of whatever has arrived.

    A request for which `complete` gives None is passed over. At most 2 x `connections` requests are ahead of the
    consumer, so that stopping loses little of what was paid for. An exception of `complete` is raised here, after what
    had already finished. The threads are daemons: an interrupted run does not wait for slow answers.
    """
    waiting = iter(requests)
    take = threading.Lock()
    stop = threading.Event()
    room = threading.Semaphore(2 * connections)
    finished: queue.SimpleQueue[Completion | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        while True:
            room.acquire()
            with take:
                request = None if stop.is_set() else next(waiting, None)
            if request is None:
                return
            try:
                finished.put(complete(request))
            except BaseException as error:  # noqa: BLE001 - carried over to the consumer's thread
                finished.put(error)
                return

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(connections, len(requests)))]
    for worker in workers:
        worker.start()
    left = len(requests)
    try:
        while left:
            batch: list[Completion] = []
            failure: BaseException | None = None
            item = finished.get()
            while True:
                room.release()
                if isinstance(item, BaseException):
                    failure = failure or item
                else:
                    left -= 1
                    batch += [item] if item is not None else []
                try:
                    item = finished.get_nowait()
                except queue.Empty:
                    break
            if failure:
                stop.set()
            if batch:
                yield batch
            if failure:
                raise failure
    finally:
        stop.set()
        for _ in workers:
            room.release()
