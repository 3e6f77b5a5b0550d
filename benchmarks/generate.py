"""Generating from prompts that begin alike: with the shared cache, with transformers' own layers in it, and without it.

    python benchmarks/generate.py [--model embedded/gemma-3-270m] [--dtype bfloat16] [--rows 64] [--new-tokens 32] [--rounds 5]

The prompts are dialogue queries behind the template's worked examples. The ways take turns; prints medians in seconds, and
their ratio to the first.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from transformers import DynamicCache

from sami_train import cache, generation
from sami_train.models import load_model, load_tokenizer, parse_source
from sami_train.prompts import load_template


def own_layers(model: Any, shared: list[int], rows: int, tokens: int) -> DynamicCache:
    """The shared tokens in transformers' own layers, which are made anew at every step."""
    known = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([shared]), past_key_values=known, use_cache=True, logits_to_keep=1)
    known.batch_repeat_interleave(rows)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded/gemma-3-270m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    source = parse_source(options.model)
    model, tokenizer = load_model(source, dtype=options.dtype), load_tokenizer(source)
    template = load_template("dialogue")
    prompts = [
        template.render(["Be kind."], f"What is {n} times {n + 1}, and why?", "completion", example=True)
        for n in range(options.rows)
    ]
    batch = [generation.encode_prompt(tokenizer, prompt, 448) for prompt in prompts]
    ways: dict[str, Callable[[], Any]] = {
        "shared, with room": lambda: patch.object(cache, "prefix_cache", cache.prefix_cache),
        "shared, joined at every step": lambda: patch.object(cache, "prefix_cache", own_layers),
        "not shared": lambda: patch.object(generation, "SHARED_AT_LEAST", 10**9),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for round_, (way, change) in itertools.product(range(options.rounds + 1), ways.items()):
        with change():
            began = time.perf_counter()
            generation.generate_batch(model, tokenizer, batch, max_new_tokens=options.new_tokens)
            if round_:  # the first round warms up
                times[way].append(time.perf_counter() - began)
    medians = {way: statistics.median(found) for way, found in times.items()}
    first = next(iter(medians.values()))
    for way, median in medians.items():
        print(f"{way:30} {median:7.2f} s  {median / first:5.2f}")


if __name__ == "__main__":
    main()
