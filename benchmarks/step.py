"""A SAMI micro-step (forward, loss, backward for one query): packed against plain, side by side.

    python benchmarks/step.py [--models gemma-3-270m smollm2-135m-instruct] [--constitutions 2 4 8] [--dtypes float32 bfloat16]

Plain is the definition: C^2 sequences of prompt and response with logits at every position, one at a time ("plain") or four at a
time, padded ("batched"); ratios are against the faster of the two. "packed" is what the trainer runs, "cached" the same with
gradient caching. bfloat16 is the trainer's: autocast over float32 weights.

`--shared 0 260` measures packed and cached on prompts with nothing alike and on prompts that begin alike; the plain paths, which
cannot gain from it, are timed on the first kind, and their loss is computed on both.

Times are medians of repeats taken in turns in one process. Memory is measured in a process of its own for every path: the peak
of its resident size over what it was with the model loaded, freed memory given back to the system. Rows are printed, and with
--output appended as JSON lines, as they come.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sami_train import response_logprobs_naive, sami_loss
from sami_train.config import Recipe
from sami_train.distributed import World
from sami_train.models import load_model, parse_source
from sami_train.pairs import Example
from sami_train.step import accumulate

Ids = list[list[int]]
PLAIN = ("plain", "batched")
BATCH = 4
"""Sequences that the batched plain path runs together."""


def batched_logprobs(model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> Tensor:
    """The plain matrix with BATCH sequences in a forward pass, padded on the right."""
    pairs = [(prompt, response) for prompt in prompts for response in responses]
    cells = []
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        width = max(len(p) + len(r) for p, r in part)
        ids = torch.tensor([[*p, *r, *[0] * (width - len(p) - len(r))] for p, r in part])
        mask = torch.tensor([[1] * (len(p) + len(r)) + [0] * (width - len(p) - len(r)) for p, r in part])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, (p, r) in zip(logits, part, strict=True):
            logprobs = row[len(p) - 1 : len(p) + len(r) - 1].float().log_softmax(-1)
            cells.append(logprobs.gather(1, torch.tensor(r)[:, None]).mean())
    return torch.stack(cells).view(len(prompts), len(responses))


def micro_step(path: str, model: Any, prompts: Ids, responses: Ids, bf16: bool) -> float:
    """One micro-step; returns the loss. Gradients are left on the model."""
    if path not in PLAIN:
        recipe = Recipe(
            name="benchmark", learning_rate=1.0, batch_size=1, bf16=bf16, gradient_caching=path == "cached",
            constitutions_per_query=len(prompts),
        )  # fmt: skip
        sides = tuple(str(n) for n in range(len(prompts)))
        example = Example("q", "dialogue", sides, tuple(map(tuple, prompts)), tuple(map(tuple, responses)), sides, None)
        return accumulate(model, [example], recipe, World()).figures["loss"]
    paths: dict[str, Callable[..., Tensor]] = {"plain": response_logprobs_naive, "batched": batched_logprobs}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = sami_loss(paths[path](model, prompts, responses))
    loss.backward()
    return loss.item()


def load(name: str) -> Any:
    """An embedded model in float32, without weight gradients of its embeddings left out: everything is trained."""
    return load_model(parse_source(f"embedded/{name}"))


class Variant(NamedTuple):
    """A path, and how many tokens the prompts begin with alike."""

    path: str
    shared: int


def data(vocabulary: int, size: int, prompt: int, response: int, shared: int) -> tuple[Ids, Ids]:
    """Random tokens: prompts of `prompt` tokens, the first `shared` of them alike, responses of about `response` (uneven)."""
    rng = random.Random(size)
    beginning = [rng.randrange(10, vocabulary) for _ in range(shared)]
    prompts = [beginning + [rng.randrange(10, vocabulary) for _ in range(prompt - shared)] for _ in range(size)]
    responses = [
        [rng.randrange(10, vocabulary) for _ in range(response + (-1) ** j * (j % 5) * 2)] for j in range(size)
    ]
    return prompts, responses


def resident_bytes() -> int:
    """The process's resident size."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def peak_over_start(found: list[int]) -> Iterator[None]:
    """Appends the peak of the resident size over the start, sampled every 2 ms."""
    gc.collect()
    start, peak, stop = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], resident_bytes() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        found.append(peak[0])


def variants(options: argparse.Namespace) -> list[Variant]:
    """What is timed, in turns."""
    return [
        Variant(path, shared)
        for path in options.paths
        for shared in (options.shared[:1] if path in PLAIN else options.shared)
    ]


def memory_in_child(options: argparse.Namespace, model: str, size: int, dtype: str, variant: Variant) -> int:
    """Peak bytes of one micro-step in a process of its own."""
    arguments = ["--models", model, "--constitutions", str(size), "--dtypes", dtype, "--memory-of", variant.path]
    lengths = ["--prompt", str(options.prompt), "--response", str(options.response), "--shared", str(variant.shared)]
    lengths += ["--threads", str(options.threads)]
    # freed blocks above 64 KiB go back to the system at once, so that the resident size is what is in use
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, *arguments, *lengths], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return -1  # killed: it did not fit
    return int(done.stdout.split()[-1])


def print_memory(options: argparse.Namespace) -> None:
    """What the child does."""
    (name,), (size,), (dtype,) = options.models, options.constitutions, options.dtypes
    model = load(name)
    found: list[int] = []
    micro_step(options.memory_of, model, *data(model.config.vocab_size, 2, 8, 4, 0), dtype == "bfloat16")  # lazy set-up
    for parameter in model.parameters():  # gradients belong to the loaded model: every path fills the same ones
        assert parameter.grad is not None
        parameter.grad.zero_()
    prompts, responses = data(model.config.vocab_size, size, options.prompt, options.response, options.shared[0])
    with peak_over_start(found):
        micro_step(options.memory_of, model, prompts, responses, dtype == "bfloat16")
    print(found[0])


def times(
    options: argparse.Namespace, model: Any, size: int, dtype: str
) -> tuple[dict[Variant, list[float]], dict[int, float], dict[Variant, float]]:
    """Seconds of every repeat by variant, taken in turns; the plain loss by tokens alike; the loss by variant."""
    given = {s: data(model.config.vocab_size, size, options.prompt, options.response, s) for s in options.shared}
    seconds: dict[Variant, list[float]] = {variant: [] for variant in variants(options)}
    losses: dict[Variant, float] = {}
    bf16 = dtype == "bfloat16"
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        plain = {shared: sami_loss(response_logprobs_naive(model, *pairs)).item() for shared, pairs in given.items()}
    for repeat in range(options.repeats + 1):
        for variant in seconds:
            if repeat == 0 and variant.path in PLAIN:
                continue  # a round to warm up, short: what is lazy is shared by all paths
            model.zero_grad(set_to_none=True)
            gc.collect()
            began = time.perf_counter()
            losses[variant] = micro_step(variant.path, model, *given[variant.shared], bf16)
            if repeat:
                seconds[variant].append(time.perf_counter() - began)
    return seconds, plain, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gemma-3-270m", "smollm2-135m-instruct"])
    parser.add_argument("--constitutions", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--paths", nargs="+", default=["plain", "batched", "packed", "cached"])
    parser.add_argument("--prompt", type=int, default=300, help="tokens")
    parser.add_argument("--response", type=int, default=80, help="tokens")
    parser.add_argument(
        "--shared", nargs="+", type=int, default=[0], help="tokens that the prompts begin with alike (the query)"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path, help="append a JSON line for every row")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print_memory(options)
        return
    alike = ", ".join(map(str, options.shared))
    print(
        f"prompt {options.prompt} ({alike} alike), response {options.response} tokens, {options.threads} threads, "
        f"medians of {options.repeats}; plain = the faster of one at a time and {BATCH} at a time"
    )
    for name in options.models:
        for dtype in options.dtypes:
            for size in options.constitutions:
                measure(options, name, dtype, size)


def measure(options: argparse.Namespace, name: str, dtype: str, size: int) -> None:
    """One model, one precision, one C: times, then memory, then the row."""
    model = load(name)
    seconds, plain_loss, losses = times(options, model, size, dtype)
    del model
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # back to the system, before the children need it
    memory = {} if options.no_memory else {v: memory_in_child(options, name, size, dtype, v) for v in seconds}
    median = {variant: statistics.median(values) for variant, values in seconds.items()}
    if options.output:
        rows = [
            {**variant._asdict(), "seconds": seconds[variant], "bytes": memory.get(variant), "loss": losses[variant],
             "plain loss": plain_loss[variant.shared], "model": name, "dtype": dtype, "C": size, "prompt": options.prompt,
             "response": options.response, "threads": options.threads}
            for variant in seconds
        ]  # fmt: skip
        with options.output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    print(f"\n{name}, {dtype}, C = {size}")
    plain = min((v for v in median if v.path in PLAIN), key=lambda v: median[v], default=None)
    for variant, took in median.items():
        ratio = f"  time x {took / median[plain]:.3f}" if plain else ""
        peak = memory.get(variant)
        used = "" if peak is None else f"  {peak / 2**30:6.2f} GiB" if peak >= 0 else "  did not fit"
        fits = plain and peak is not None and peak >= 0 and memory.get(plain, -1) > 0
        share = f"  memory x {peak / memory[plain]:.3f}" if fits else ""
        off = f"  loss {losses[variant]:.7f} (plain {plain_loss[variant.shared]:.7f})"
        print(f"  {variant.path:8} {variant.shared:4} alike {took:8.2f} s{ratio}{used}{share}{off}", flush=True)


if __name__ == "__main__":
    main()
