"""Sampling the responses of contrasts: by batched transformers, on one device or many, or by vLLM where it is installed.

Every response is a row of a file as soon as it exists; what is there is not sampled again. Batches follow from the whole list
of contrasts and never from what is missing, so an interrupted run makes the same text as one that was not.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sami_train.config import Recipe
from sami_train.copying import tokens_of_own_words
from sami_train.distributed import World
from sami_train.errors import MissingPackage
from sami_train.files import append_rows, read_rows, replace_rows
from sami_train.generation import (
    DEFAULT_BATCH,
    Encoded,
    Generated,
    encode_alike,
    encode_prompt,
    ends_of,
    finish,
    generate_batch,
    plan_batches,
)
from sami_train.models import Source, generation_settings, local_folder, resolved
from sami_train.pairs import Contrast, Example, answer_of, filter_rule
from sami_train.prefill import with_prefill
from sami_train.prompts import Prompt, Template
from sami_train.scorer import Scorer
from sami_train.selection import measure

SAVED_TOGETHER, MOST_SAVES = 16, 20
"""Pairs, at least, that are measured before the file is written again, and how often that is done at most."""

Row = dict[str, Any]
Progress = Callable[[int, int], None]


def uses_vllm(recipe: Recipe, world: World) -> bool:
    """Whether responses are sampled with vLLM. Raises MissingPackage when the recipe asks for it and it is not there."""
    from sami_train.vllm_engine import installed

    if recipe.use_vllm and not installed():
        raise MissingPackage("vllm", extra="vllm")
    return installed() and world.device_type == "cuda" if recipe.use_vllm is None else recipe.use_vllm


class Sampler:
    """Samples the contrasts of one recipe. `load` gives the model of a source on this process, sharded where there are many."""

    def __init__(
        self,
        recipe: Recipe,
        templates: Mapping[str, Template],
        tokenizer: Any,
        world: World,
        load: Callable[[Source], Any],
        *,
        trust_remote_code: bool = False,
        release: Callable[[], None] = lambda: None,
        scorer: Scorer | None = None,
        max_prompt_tokens: int | None = None,
    ) -> None:
        self.recipe, self.templates, self.tokenizer, self.world = recipe, templates, tokenizer, world
        self.load, self.release, self.trust_remote_code = load, release, trust_remote_code
        self.scorer = scorer
        self.max_prompt_tokens = max_prompt_tokens or recipe.max_prompt_tokens
        self._last: tuple[tuple[Prompt, ...], list[Encoded]] | None = None

    def examples(self, contrasts: Sequence[Contrast], source: Source, file: Path, progress: Progress) -> list[Example]:
        """One example per contrast, filtered ones marked. Rows already in `file` are used, the others are sampled."""
        places = [(contrast, side) for contrast in contrasts for side in range(len(contrast.prompts))]
        known = {(row["query_id"], row["side"]): row for row in self.world.gather(self._rows(file))[0]}
        missing = {index for index, (c, side) in enumerate(places) if (c.query.id, side) not in known}
        if missing:
            engine = self._vllm if uses_vllm(self.recipe, self.world) else self._transformers
            for made in engine(places, missing, source, file.parent):
                rows = [self._row(*places[index], generated) for index, generated in made.items() if index in missing]
                missing -= made.keys()
                if self.world.main:
                    append_rows(file, rows)
                known.update({(row["query_id"], row["side"]): row for row in rows})
                progress(len(places) - len(missing), len(places))
        self._score(known, file)
        return [self._example(contrast, known) for contrast in contrasts]

    def informative(
        self, contrasts: Sequence[Contrast], examples: Sequence[Example], source: Source, file: Path, progress: Progress
    ) -> list[Example]:
        """The examples with the `pmi` of those that no rule took out, by the model that they were sampled from; kept in `file`."""
        known = {(row["query_id"], row["side"]): row for row in self.world.gather(self._rows(file))[0]}
        usable = [place for place, example in enumerate(examples) if example.filtered is None]
        rows = {
            place: [known[examples[place].query_id, side] for side in range(len(examples[place].responses))]
            for place in usable
        }
        missing = [place for place in usable if any("pmi" not in row for row in rows[place])]
        if missing:
            model = self.load(source)
            together = max(SAVED_TOGETHER, -(-len(missing) // MOST_SAVES))
            for start in range(0, len(missing), together):
                some = missing[start : start + together]
                places = [
                    ([e.ids for e in self._alike(contrasts[place].sampling_prompts)], examples[place]) for place in some
                ]
                for place, values in zip(some, measure(model, places, self.world), strict=True):
                    for row, value in zip(rows[place], values, strict=True):
                        row["pmi"] = value
                if self.world.main:
                    replace_rows(file, list(known.values()))
                progress(len(usable) - len(missing) + start + len(some), len(usable))
        found = list(examples)
        for place in usable:
            found[place] = replace(examples[place], pmi=statistics.fmean(row["pmi"] for row in rows[place]))
        return found

    def _score(self, known: Mapping[tuple[str, int], Row], file: Path) -> None:
        """Give each row its `relevance`, and keep it in the file: what is scored is not scored again."""
        missing = [row for row in known.values() if "relevance" not in row]
        if self.scorer is None or not missing:
            return
        for row, value in zip(missing, self.scorer.scores(missing), strict=True):
            row["relevance"] = value
        if self.world.main:
            replace_rows(file, list(known.values()))

    def texts(self, contrasts: Sequence[Contrast], model: Any) -> list[Row]:
        """Responses that are looked at and not learned from, by the model given; rows in the order of contrasts and sides."""
        places = [(contrast, side) for contrast in contrasts for side in range(len(contrast.prompts))]
        rows: dict[int, Row] = {}
        for made in self._batched(places, set(range(len(places))), model):
            rows.update({index: self._row(*places[index], generated) for index, generated in made.items()})
        return [rows[index] for index in range(len(places))]

    def _rows(self, file: Path) -> list[Row]:
        return read_rows(file) if self.world.main else []

    # Engines

    def _transformers(
        self, places: Sequence[tuple[Contrast, int]], missing: set[int], source: Source, _: Path
    ) -> Iterator[dict[int, Generated]]:
        return self._batched(places, missing, self.load(source))

    def _batched(
        self, places: Sequence[tuple[Contrast, int]], missing: set[int], model: Any
    ) -> Iterator[dict[int, Generated]]:
        """Batches of like length; with many processes each takes one of as many batches at a time."""
        encoded = [self._encode(contrast, side) for contrast, side in places]
        size = self.recipe.sampling_batch_size or DEFAULT_BATCH.get(self.world.device_type, 16)
        batches = list(self._batches(places, encoded, size))
        world = self.world
        for start in range(0, len(batches), world.size):
            together = batches[start : start + world.size]
            if all(index not in missing for _, batch in together for index in batch):
                continue
            number = min(start + world.rank, len(batches) - 1)  # a process without a batch goes along with the last one
            task, batch = batches[number]
            responses = generate_batch(
                model,
                self.tokenizer,
                [encoded[index] for index in batch],
                max_new_tokens=self.recipe.max_new_tokens,
                stop=self._stop(task),
                temperature=self.recipe.temperature,
                top_p=self.recipe.top_p,
                seed=self.recipe.seed * 1_000_003 + number,
                sharded=world.size > 1,
            )
            made: dict[int, Generated] = {}
            for found in world.gather(dict(zip(batch, responses, strict=True))):
                made.update(found)
            yield made

    def _batches(
        self, places: Sequence[tuple[Contrast, int]], encoded: Sequence[Encoded], size: int
    ) -> Iterator[tuple[str, list[int]]]:
        by_task: dict[str, list[int]] = {}
        for index, (contrast, _) in enumerate(places):
            by_task.setdefault(contrast.query.task, []).append(index)
        for task, indices in by_task.items():
            for batch in plan_batches([len(encoded[i].ids) for i in indices], size):
                yield task, [indices[place] for place in batch]

    def _vllm(
        self, places: Sequence[tuple[Contrast, int]], missing: set[int], source: Source, folder: Path
    ) -> Iterator[dict[int, Generated]]:
        """The first process runs vLLM over all GPUs of its node while the others wait; the training model is let go first."""
        from sami_train.vllm_engine import generate_ids

        self.release()
        world, recipe = self.world, self.recipe
        indices = sorted(missing)
        encoded = {index: self._encode(*places[index]) for index in indices}
        settings = generation_settings(source)
        for task in sorted({contrast.query.task for contrast, _ in places}):
            mine = [index for index in indices if places[index][0].query.task == task]
            if not mine:
                continue
            ends, stop = ends_of(settings, self.tokenizer, [encoded[index] for index in mine], self._stop(task))
            pieces: Iterator[dict[int, Any]] = iter(())
            if world.main:
                pieces = generate_ids(
                    local_folder(source),
                    [encoded[index].ids for index in mine],
                    max_new_tokens=recipe.max_new_tokens,
                    stop=stop,
                    ends=sorted(ends),
                    temperature=recipe.temperature,
                    top_p=recipe.top_p,
                    seed=recipe.seed,
                    revision=resolved(source).revision,
                    dtype="bfloat16" if recipe.bf16 else "float32",
                    tensor_parallel=world.local_size,
                    trust_remote_code=self.trust_remote_code,
                    work=folder,
                )
            while True:
                (piece, *_) = world.gather(next(pieces, None))
                if piece is None:
                    break
                yield {
                    mine[place]: finish(
                        self.tokenizer,
                        encoded[mine[place]],
                        list(raw.ids),
                        ends=ends,
                        stop=stop,
                        max_new_tokens=recipe.max_new_tokens,
                    )
                    for place, raw in piece.items()
                }

    # Rows and examples

    def _stop(self, task: str) -> tuple[str, ...]:
        return self.templates[task].stop(self.recipe.style, reasoning=self.recipe.reasoning)

    def _encode(self, contrast: Contrast, side: int) -> Encoded:
        return self._alike(contrast.sampling_prompts)[side]

    def _other_ids(self, contrast: Contrast, side: int) -> list[int]:
        """The prompt that puts the side's constitution to another query; empty where queries are not contrasted."""
        if not contrast.other_prompts:
            return []
        return encode_prompt(self.tokenizer, contrast.other_prompts[side], self.max_prompt_tokens).ids

    def _alike(self, prompts: tuple[Prompt, ...]) -> list[Encoded]:
        """The prompts of a query, whose constitutions differ and whose query must not. The last ones are kept for the next side."""
        if self._last is None or self._last[0] is not prompts:
            self._last = (prompts, encode_alike(self.tokenizer, prompts, self.max_prompt_tokens))
        return self._last[1]

    def _row(self, contrast: Contrast, side: int, generated: Generated) -> Row:
        trained_on = self._alike(contrast.prompts)[side]
        generated = with_prefill(self.tokenizer, generated, contrast.sampling_prompts[side].prefill)
        answer = answer_of(self.tokenizer, generated, self.templates[contrast.query.task], self.recipe)
        row = {
            "query_id": contrast.query.id,
            "task": contrast.query.task,
            "side": side,
            "constitution": contrast.constitutions[side].id,
            "training_order": contrast.training_orders[side].id,
            "prompt": generated.prompt.text,
            "prompt_truncated": generated.prompt.truncated,
            "prompt_ids": trained_on.ids,
            "other_prompt_ids": self._other_ids(contrast, side),
            "response_ids": answer.ids,
            "text": answer.text,
            "finish_reason": "stop" if answer.stopped else generated.finish_reason,
            "tail": answer.tail,
        }
        return {**row, "reasoning": answer.reasoning} if self.recipe.reasoning else row

    def _example(self, contrast: Contrast, known: Mapping[tuple[str, int], Mapping[str, Any]]) -> Example:
        rows = [known[contrast.query.id, side] for side in range(len(contrast.prompts))]
        texts = tuple(str(row["text"]) for row in rows)
        ids = tuple(tuple(row["response_ids"]) for row in rows)
        sentences = [s for c in contrast.constitutions for s in c.sentences()]
        counted = () if self.recipe.count_copied_words else self._counted(ids, [*sentences, contrast.query.text])
        rule = filter_rule(
            self.recipe,
            contrast.query.task,
            texts,
            ids,
            [row["finish_reason"] for row in rows],
            sentences=sentences,
            labels=self.templates[contrast.query.task].labels(self.recipe.style, reasoning=self.recipe.reasoning),
            ran_on=any(row.get("tail") for row in rows),
            query=contrast.query.text,
            relevances=[row["relevance"] for row in rows] if self.scorer else (),
            counted=counted,
        )
        return Example(
            contrast.query.id,
            contrast.query.task,
            tuple(c.id for c in contrast.constitutions),
            tuple(tuple(row["prompt_ids"]) for row in rows),
            ids,
            texts,
            rule,
            tuple(
                tuple(other) for row in rows if (other := row.get("other_prompt_ids"))
            ),  # rows of older runs have none
            counted=counted,
        )

    def _counted(self, responses: Sequence[Sequence[int]], sources: Sequence[str]) -> tuple[tuple[bool, ...], ...]:
        """Which tokens of every response have no part in a word of `sources`."""
        found = []
        for ids in responses:
            text = self.tokenizer.decode(ids)
            so_far = [self.tokenizer.decode(ids[:n]).rstrip("\N{REPLACEMENT CHARACTER}") for n in range(1, len(ids))]
            # Half a character belongs to the token that ends it.
            places = [0, *map(len, so_far), len(text)][: len(ids) + 1]
            found.append(tokens_of_own_words([text[a:b] for a, b in itertools.pairwise(places)], sources))
        return tuple(found)
