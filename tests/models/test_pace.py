"""The pace that all requests of an API model share."""

from __future__ import annotations

import email.utils
import threading
import time

import pytest

from harness.models._pace import LONGEST_PAUSE_S, Pace, Stopped, retry_after


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_overload_halves_the_limit_once_for_all_that_was_in_flight() -> None:
    clock = Clock()
    pace = Pace(64, clock=clock)
    assert pace.limit == 64
    clock.now = 1.0
    for _ in range(20):
        pace.overloaded(began=0.5)
    assert pace.limit == 32
    clock.now = 2.0
    pace.overloaded(began=1.5)
    assert pace.limit == 16


def test_the_limit_is_never_below_one_or_above_the_most() -> None:
    pace = Pace(8, clock=Clock())
    for _ in range(10):
        pace.overloaded(began=0.0)
    assert pace.limit == 1
    for _ in range(1000):
        pace.answered()
    assert pace.limit == 8


def test_a_window_of_answers_adds_a_fixed_step() -> None:
    pace = Pace(64, clock=Clock())
    pace.overloaded(began=0.0)
    for _ in range(32):
        pace.answered()
    assert pace.limit in (33, 34)
    for _ in range(40):
        pace.answered()
    assert pace.limit in (35, 36)


def test_no_more_than_the_limit_are_in_flight() -> None:
    pace = Pace(8)
    pace.overloaded(began=0.0)
    pace.overloaded(began=time.monotonic() + 1)
    inside, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with pace.turn():
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with lock:
                    inside -= 1

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)
    assert most == pace.limit == 2


def test_a_pause_holds_everybody() -> None:
    pace = Pace(8)
    began = time.monotonic()
    pace.overloaded(began, retry_after_s=0.2)
    with pace.turn():
        assert time.monotonic() - began >= 0.2


def test_waits_grow_with_jitter_up_to_a_limit_and_follow_what_was_asked() -> None:
    pace = Pace(8, seed=1)
    for tries, longest in ((1, 0.5), (2, 1.0), (4, 4.0), (50, 30.0)):
        waits = {pace.seconds_to_wait(tries) for _ in range(50)}
        assert longest / 2 <= min(waits) < max(waits) <= longest
        assert len(waits) == 50
    assert 7.0 <= pace.seconds_to_wait(5, 7.0) <= 7.7


def test_the_end_frees_who_waits() -> None:
    pace = Pace(1)
    pace.overloaded(0.0, retry_after_s=100)
    ended: list[str] = []

    def wait_for_a_turn() -> None:
        with pytest.raises(Stopped), pace.turn():
            raise AssertionError
        ended.append("turn")

    def wait_to_try_again() -> None:
        with pytest.raises(Stopped):
            pace.wait(1, 100)
        ended.append("wait")

    workers = [threading.Thread(target=work) for work in (wait_for_a_turn, wait_to_try_again)]
    for worker in workers:
        worker.start()
    pace.stop()
    for worker in workers:
        worker.join(5)
    assert sorted(ended) == ["turn", "wait"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after(headers) == expected


def test_retry_after_as_a_date() -> None:
    found = retry_after({"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)})
    assert found is not None
    assert 55 < found <= 61
    assert retry_after({"retry-after": email.utils.formatdate(time.time() - 60, usegmt=True)}) is None


def test_no_pause_is_longer_than_the_longest() -> None:
    clock = Clock()
    pace = Pace(1, clock=clock)
    pace.overloaded(0.0, retry_after_s=1e300)
    clock.now = LONGEST_PAUSE_S
    with pace.turn():
        pass
