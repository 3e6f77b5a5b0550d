"""How many threads a run computes with: what a probe finds faster, whatever else the machine does for a moment."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from harness import runner


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [(lambda probe: False, 2), (lambda probe: probe < 8, 2), (lambda probe: True, 1)],
    ids=["idle", "loaded at first", "loaded"],
)
def test_only_a_lasting_load_makes_one_thread_faster(monkeypatch, loaded, expected):
    """A second thread halves a probe's time, or makes it five times as long where another process has the core."""
    now, threads, probes, calls = [0.0], [2], itertools.count(), itertools.count()

    def clock() -> float:
        if next(calls) % 2:  # the end of a probe
            busy = loaded(next(probes))
            now[0] += {1: 1.0, 2: 5.0 if busy else 0.5}[threads[0]]
        return now[0]

    monkeypatch.setattr(runner, "cores", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    monkeypatch.setattr(time, "perf_counter", clock)
    assert runner.best_threads() == expected
