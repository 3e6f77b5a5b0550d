"""A SAMI micro-step (forward, loss, backward for one query), packed against plain, in one process.

    python benchmarks/step.py [--models gemma-3-270m smollm2-135m-instruct] [--constitutions 2 4] [--repeats 5]

Plain is the definition: C^2 sequences of prompt and response with logits at every position, one at a time. Prints medians over
the repeats, taken in turns; memory is the peak of the process's resident size over what it was with the model loaded.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sami_train import response_logprobs, response_logprobs_naive, sami_loss
from sami_train.models import load_model, parse_source


def resident_bytes() -> int:
    """The process's resident size."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class PeakMemory:
    """Samples the resident size every few milliseconds; `.bytes` is the peak over the start."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._start = self._peak = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.bytes = self._peak - self._start

    def _watch(self) -> None:
        while not self._stop.wait(0.003):
            self._peak = max(self._peak, resident_bytes())


def measure(
    function: Callable[..., Any], model: Any, prompts: list[list[int]], responses: list[list[int]]
) -> tuple[float, int, float]:
    """Seconds, peak bytes and loss of one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    with PeakMemory() as memory:
        began = time.perf_counter()
        loss = sami_loss(function(model, prompts, responses))
        loss.backward()
        seconds = time.perf_counter() - began
    return seconds, memory.bytes, loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gemma-3-270m", "smollm2-135m-instruct"])
    parser.add_argument("--constitutions", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--prompt", type=int, default=300, help="tokens")
    parser.add_argument("--response", type=int, default=80, help="tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(title=f"prompt {options.prompt}, response {options.response} tokens, fp32, {options.threads} threads")
    for column in (
        "model",
        "C",
        "plain s",
        "packed s",
        "time ratio",
        "plain GiB",
        "packed GiB",
        "memory ratio",
        "loss difference",
    ):
        table.add_column(column, justify="right")
    rng = random.Random(0)
    for name in options.models:
        model = load_model(parse_source(f"embedded/{name}"))
        vocabulary = model.config.vocab_size
        for size in options.constitutions:
            prompts = [[rng.randrange(10, vocabulary) for _ in range(options.prompt)] for _ in range(size)]
            responses = [[rng.randrange(10, vocabulary) for _ in range(options.response)] for _ in range(size)]
            measure(response_logprobs, model, prompts, responses)
            runs = [
                (
                    measure(response_logprobs_naive, model, prompts, responses),
                    measure(response_logprobs, model, prompts, responses),
                )
                for _ in range(options.repeats)
            ]
            plain, packed = ([statistics.median(run[side][k] for run in runs) for k in range(3)] for side in (0, 1))
            table.add_row(
                name, str(size), f"{plain[0]:.2f}", f"{packed[0]:.2f}", f"{packed[0] / plain[0]:.2f}", f"{plain[1] / 2**30:.2f}",
                f"{packed[1] / 2**30:.2f}", f"{packed[1] / plain[1]:.2f}", f"{abs(plain[2] - packed[2]):.1e}",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
