"""The recorded GPT-4 verdicts on the paper's TL;DR summaries as labelled pairs, for `harness judge validate --reference`.

    python benchmarks/judge_card.py SAMI TYPO -o tldr-gpt4.jsonl

SAMI and TYPO are checkouts of the authors' repositories (or parts of them in the same layout). A verdict file has rows
[win of the test model, length of the opponent's response, length of the test model's], in the order of the queries, but
not the responses; those lie in files of their own. Whether a file of responses is the one that was judged shows in the
lengths, which are counts of tokens: where they do not go with the words of the responses (correlation below 0.95) the pair
is left out and named. With --tokenizer (a sentencepiece model: Mistral's for these files) they must agree to the token,
the BOS token included.

The first pairs written are on different queries, the kept comparisons taking turns.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LEAST = 0.95
_VERDICTS = re.compile(r"(\d+)-vs-(base|instruct)-(.+)")
_EPOCHS = re.compile(r"epoch-[\d.]+-(?:from-epoch-[\d.]+-)?")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make labelled pairs of the paper's TL;DR verdicts.")
    parser.add_argument("sami", type=Path, help="checkout of the repository with experiments/tldr/results/responses")
    parser.add_argument("typo", type=Path, help="checkout of the one with experiments/tldr/results_fixed/win_rates")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the reference file to write")
    parser.add_argument("--tokenizer", type=Path, help="a sentencepiece model: compare lengths exactly")
    options = parser.parse_args(arguments)
    lengths = exact_lengths(options.tokenizer) if options.tokenizer else word_lengths
    kept: list[list[dict[str, Any]]] = []
    for file in sorted((options.typo / "experiments/tldr/results_fixed/win_rates").glob("*.json")):
        told, rows = comparison(
            file, options.sami / "experiments/tldr/results/responses", lengths, bool(options.tokenizer)
        )
        print(f"{file.stem}: {told}")
        if rows:
            kept.append(rows)
    if not kept:
        print("no comparison could be matched; nothing is written", file=sys.stderr)
        return 1
    turns = [(index + turn) % len(kept) for turn in range(len(kept)) for index in range(min(map(len, kept)))]
    numbers = [index for _ in kept for index in range(min(map(len, kept)))]
    with options.output.open("w", encoding="utf-8") as out:
        for which, number in zip(turns, numbers, strict=True):
            out.write(json.dumps(kept[which][number], ensure_ascii=False) + "\n")
    print(f"{options.output}: {len(numbers)} pairs of {len(kept)} comparisons")
    return 0


def comparison(
    file: Path, folder: Path, lengths: Callable[[Sequence[str]], Any], exact: bool
) -> tuple[str, list[dict[str, Any]]]:
    """What became of a verdict file, in words, and its pairs (none where its responses are not there)."""
    match = _VERDICTS.fullmatch(file.stem)
    if match is None:
        return "left out, its name says no pair", []
    iteration, opponent, rest = match.groups()
    test = f"base-{rest}" if iteration == "0" else f"iteration-{iteration}-{rest}"
    files = [folder / f"{test}.json", folder / f"{opponent}-{_EPOCHS.sub('', rest)}.json"]
    if missing := [f.name for f in files if not f.is_file()]:
        return f"left out, there is no {missing[0]}", []
    a, b = (json.loads(f.read_text(encoding="utf-8")) for f in files)
    verdicts = json.loads(file.read_text(encoding="utf-8"))
    keys = [str(index) for index in range(len(verdicts))]
    if any(list(data[part]) != keys for data in (a, b) for part in ("question", "constitution", "response")):
        return "left out, verdicts and responses are not on the same queries", []
    if a["question"] != b["question"] or a["constitution"] != b["constitution"]:
        return "left out, the two models answered different prompts", []
    found = []
    for name, data, column in (("test", a, 2), ("opponent", b, 1)):
        recorded = np.array([row[column] for row in verdicts], dtype=float)
        counted = np.array(lengths([data["response"][key] for key in keys]), dtype=float)
        same = int((recorded == counted).sum())
        fits = float(np.corrcoef(recorded, counted)[0, 1])
        found.append(f"{name} {same} of {len(keys)} lengths equal" if exact else f"{name} lengths correlate {fits:.3f}")
        if (same < len(keys)) if exact else (fits < LEAST):
            return f"left out, these are not the responses that were judged ({found[-1]})", []
    label = {1: "a", 0.5: "tie", 0: "b"}
    rows = [
        {
            "id": f"{iteration}-vs-{opponent}-{key}",
            "task": "summarization",
            "query": a["question"][key].removeprefix("POST:").strip(),
            "constitution": a["constitution"][key],
            "response_a": a["response"][key],
            "response_b": b["response"][key],
            "label": label[verdict[0]],
        }
        for key, verdict in zip(keys, verdicts, strict=True)
    ]
    return f"kept ({'; '.join(found)})", rows


def word_lengths(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def exact_lengths(tokenizer: Path) -> Callable[[Sequence[str]], list[int]]:
    try:
        import sentencepiece  # type: ignore[import-not-found]
    except ImportError:
        sys.exit("--tokenizer needs the package sentencepiece: pip install sentencepiece")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    return lambda texts: [1 + len(model.encode(text)) for text in texts]


if __name__ == "__main__":
    sys.exit(main())
