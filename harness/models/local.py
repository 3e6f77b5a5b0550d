"""Models that run in this process through transformers: embedded ones, local folders and hub ids, on CPU or GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

from harness.models.base import Completion, Request, Sampling
from sami_train.config import has_bfloat16
from sami_train.errors import UserError
from sami_train.generation import Generated, context_length, encode_prompt, generate, not_finite, plan_batches
from sami_train.models import Source, default_device, load_model, load_tokenizer
from sami_train.prefill import with_prefill
from sami_train.prompts import Prompt, Style
from sami_train.relevance import mean_logprobs

CHOICE_BATCH = 8
"""Judge prompts run through the model together."""
CHOICE_PROMPT_TOKENS = 8192
"""Longest judge prompt, where the model's context is not shorter."""


def best_dtype(device: str) -> str:
    """bfloat16 where the device has instructions for it, float32 elsewhere (emulated bfloat16 is several times slower)."""
    return "bfloat16" if has_bfloat16(device) else "float32"


class TransformersBackend:
    """A causal language model in memory. Satisfies `LocalBackend`."""

    def __init__(
        self,
        name: str,
        source: Source,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.name = name
        self.device = default_device() if device == "auto" else device
        self.dtype = best_dtype(self.device) if dtype == "auto" else dtype
        self.batch_size = batch_size
        self.tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
        self.model: Any = load_model(source, dtype=self.dtype, device=self.device, trust_remote_code=trust_remote_code)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, *, done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[Completion]]:
        """Completions, a batch at a time; see `Backend.generate`. Raises UserError for a JSON schema."""
        if sampling.json_schema is not None:
            raise UserError(f"model '{self.name}': a local model takes no JSON schema; ask it for text")
        batches = generate(
            self.model,
            self.tokenizer,
            [request.prompt for request in requests],
            max_new_tokens=sampling.max_new_tokens,
            max_prompt_tokens=sampling.max_prompt_tokens,
            stop=sampling.stop,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            batch_size=self.batch_size,
            done={index for index, request in enumerate(requests) if request.id in done},
        )
        with self._enough_memory():
            for batch in batches:
                yield [
                    Completion(
                        id=requests[index].id,
                        text=made.text,
                        finish_reason="stop" if made.finish_reason == "stop" else "length",
                        prompt=made.prompt.text,
                        n_prompt_tokens=len(made.prompt.ids),
                        n_tokens=len(made.ids),
                        truncated=made.prompt.truncated,
                    )
                    for index, made in self._whole(batch, requests).items()
                ]

    def _whole(self, batch: Mapping[int, Generated], requests: Sequence[Request]) -> dict[int, Generated]:
        """Responses with the beginnings that their prompts ended with."""
        return {i: with_prefill(self.tokenizer, made, requests[i].prompt.prefill) for i, made in batch.items()}

    def choice_probabilities(
        self, prompts: Sequence[Prompt], choices: tuple[str, ...], *, max_prompt_tokens: int = CHOICE_PROMPT_TOKENS
    ) -> list[tuple[float, ...]]:
        """For each prompt, the probability of each choice as the next token, normalised over the choices.

        A choice is read by its first token, with and without a leading space (the two are added). A prompt that has
        more than `max_prompt_tokens`, or than the model's context, without its body gets zeros.
        """
        limit = min(max_prompt_tokens, self.prompt_room(0))
        encoded = [self._encode_if_it_fits(prompt, limit) for prompt in prompts]
        forms = self._first_tokens(choices)
        with self._enough_memory():
            found = self._choice_masses(encoded, forms)
        return [
            tuple(mass / sum(masses) for mass in masses) if sum(masses) else masses
            for masses in (found.get(index, (0.0,) * len(choices)) for index in range(len(prompts)))
        ]

    def _choice_masses(self, encoded: Sequence[list[int]], forms: Sequence[list[int]]) -> dict[int, tuple[float, ...]]:
        """Probability of each group of tokens as the next one, by the prompt's index; prompts without tokens are left out."""
        import torch

        found: dict[int, tuple[float, ...]] = {}
        for planned in plan_batches([len(ids) for ids in encoded], CHOICE_BATCH):
            batch = [i for i in planned if encoded[i]]
            if not batch:
                continue
            width = max(len(encoded[i]) for i in batch)
            pad = self.tokenizer.pad_token_id
            ids = torch.tensor(
                [[pad] * (width - len(encoded[i])) + encoded[i] for i in batch], device=self.model.device
            )
            mask = torch.tensor(
                [[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in batch], device=ids.device
            )
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits = self.model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1
                ).logits[:, -1]
            if not bool(logits.amax(-1).isfinite().all()):
                raise not_finite(self.model)
            probabilities = logits.float().softmax(-1)
            for row, index in enumerate(batch):
                found[index] = tuple(float(probabilities[row, form].sum()) for form in forms)
        return found

    def _encode_if_it_fits(self, prompt: Prompt, limit: int) -> list[int]:
        """A prompt's tokens, none where it is too long even without its body."""
        try:
            return encode_prompt(self.tokenizer, prompt, limit).ids
        except UserError:
            if len(encode_prompt(self.tokenizer, prompt.with_body(""), sys.maxsize).ids) > limit:
                return []
            raise

    def _first_tokens(self, choices: tuple[str, ...]) -> list[list[int]]:
        """The tokens that each choice may begin with, without those (a lone space) that begin several of them."""
        bare = [choice.strip() for choice in choices]
        firsts = [
            {self.tokenizer(text, add_special_tokens=False).input_ids[0] for text in (word, f" {word}")}
            for word in bare
        ]
        own = [sorted(f.difference(*(o for o in firsts if o is not f))) for f in firsts]
        if not all(own):
            raise UserError(
                f"model '{self.name}': its tokenizer begins {' and '.join(map(repr, bare))} alike, so that it cannot judge "
                "by their probabilities; name another model as the judge"
            )
        return own

    def prompt_room(self, max_new_tokens: int) -> int:
        """See `LocalBackend.prompt_room`; a model that states no context has room for everything."""
        return max(1, (context_length(self.model.config) or sys.maxsize) - max_new_tokens)

    def fits(self, prompt: Prompt, max_tokens: int) -> bool:
        """See `LocalBackend.fits`."""
        return bool(self._encode_if_it_fits(prompt, max_tokens))

    def encode(self, prompt: Prompt, max_tokens: int) -> list[int]:
        """A prompt's token ids, shortened as generation shortens it."""
        return encode_prompt(self.tokenizer, prompt, max_tokens).ids

    def response_ids(self, text: str, style: str) -> list[int]:
        """A response's token ids: after a completion prompt it begins with a space, after a chat prompt it does not."""
        lead = " " if style == "completion" else ""
        return list(self.tokenizer(lead + text, add_special_tokens=False).input_ids)

    def logprob_sums(
        self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """log p(response j | prompt i) in nats, summed over tokens. Raises UserError where they are not finite."""
        from sami_train.logprobs import reliable_logprobs

        with self._enough_memory():
            matrix = reliable_logprobs(self.model, prompt_ids, response_ids, reduction="sum")
        return [[float(value) for value in row] for row in matrix]

    def relevance_logprobs(
        self, queries: Sequence[str], responses: Sequence[str], style: Style, max_prompt_tokens: int
    ) -> list[list[float] | None]:
        """Each response's mean log-probability after each query; see `sami_train.relevance.mean_logprobs`."""
        with self._enough_memory():
            return mean_logprobs(self.model, self.tokenizer, queries, responses, style, max_prompt_tokens)

    def control_tokens(self) -> tuple[str, ...]:
        """The texts that its tokenizer reads as control tokens: the special ones, and those added to its vocabulary."""
        added = (str(token) for token in getattr(self.tokenizer, "added_tokens_decoder", {}).values())
        return tuple(dict.fromkeys((*self.tokenizer.all_special_tokens, *added)))

    def close(self) -> None:
        """Drop the weights."""
        import gc

        import torch

        self.model = None
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        """Tell what to do when the device's memory is full."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the memory of {self.device} is too small for model '{self.name}' at this batch size; set "
                "engine.batch_size to a smaller number and run the same command again, finished rows are kept"
            ) from error
