"""Generation from prompts that begin with the same worked examples, three ways in turns: the shared tokens kept once, copied to
every row, and run for every row.

    python benchmarks/generation.py [--model embedded/gemma-3-270m] [--dtype bfloat16] [--rows 64] [--tokens 32] [--rounds 5]

Medians of the rounds after one that is not counted, and each way's time over that of the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import sami_train.generation
from sami_train import shared_prefix
from sami_train.generation import encode_prompt, generate_batch
from sami_train.models import load_model, load_tokenizer, parse_source
from sami_train.prompts import load_template

QUERIES = Path(sami_train.__file__).parent.parent / "harness/tasks/samples/dialogue.jsonl"
WAYS = ("kept once", "copied", "not shared")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded/gemma-3-270m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=64, help="prompts of the batch")
    parser.add_argument("--tokens", type=int, default=32, help="of each response; no response ends before")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    source = parse_source(options.model)
    model, tokenizer = load_model(source, dtype=options.dtype).eval(), load_tokenizer(source)
    template = load_template("dialogue")
    queries = [json.loads(line)["query"] for line in QUERIES.read_text().splitlines()][: options.rows]
    prompts = [
        encode_prompt(tokenizer, template.render(["Be kind."], query, "completion", example=True), 10_000)
        for query in queries
    ]
    once, least = shared_prefix._kept_once, shared_prefix.SHARED_AT_LEAST
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_ in range(options.rounds + 1):
        for way in WAYS:
            shared_prefix._kept_once = once if way == "kept once" else lambda *_: None
            shared_prefix.SHARED_AT_LEAST = 10**9 if way == "not shared" else least
            started = time.perf_counter()
            generate_batch(model, tokenizer, prompts, max_new_tokens=options.tokens)
            if round_:
                seconds[way].append(time.perf_counter() - started)
    table = Table("way", "median, s", "over the first", title=f"{len(prompts)} prompts, {options.dtype}")
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    for way, median in medians.items():
        table.add_row(way, f"{median:.1f}", f"{median / medians[WAYS[0]]:.2f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
