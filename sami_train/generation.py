"""Batched text generation with a transformers model: fixed batches, left padding, exactly one BOS, stop strings.

Batches are composed from the whole list of prompts, sorted by length, and never from what happens to be pending: a run that
was interrupted makes the same text as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from sami_train.errors import UserError
from sami_train.prompts import Prompt

DEFAULT_BATCH = {"cpu": 64, "cuda": 128}
"""Prompts generated together when the batch size is ``auto``, per device kind."""


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids (BOS first, once, where the model has one); `truncated`: its body was shortened to fit, to so many
    of its characters (`kept`)."""

    ids: list[int]
    text: str
    truncated: bool
    kept: int | None = None


@dataclass(frozen=True)
class Generated:
    """A response: its text without the stop string, its token ids as generated (without end or padding), why it ended."""

    text: str
    ids: list[int]
    finish_reason: str
    prompt: Encoded


def encode_prompt(tokenizer: Any, prompt: Prompt, max_tokens: int) -> Encoded:
    """Tokenise a prompt; shorten its body, and nothing else, until it has at most `max_tokens` tokens.

    It ends with a whole word, unless its last word is longer than LONGEST_WORD characters (or its language has no spaces).

    Raises:
        UserError: nothing of the body fits, the tokenizer puts its BOS more than once, or the chat template fails.
    """

    def encode(body: str) -> tuple[list[int], str]:
        shaped = prompt.with_body(body)
        if prompt.style == "chat":
            text = _chat_text(tokenizer, shaped)
            return with_bos(tokenizer, list(tokenizer(text, add_special_tokens=False).input_ids), always=False), text
        text = shaped.text
        return with_bos(tokenizer, list(tokenizer(text, add_special_tokens=False).input_ids)), text

    body = without_control_tokens(tokenizer, prompt.body)
    ids, text = encode(body)
    if len(ids) <= max_tokens:
        return Encoded(ids, text, False)
    low, high = 0, len(body) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if len(encode(body[:middle])[0]) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    kept = _whole_words(body, low)
    ids, text = encode(body[:kept])
    if len(ids) > max_tokens or not kept:
        raise UserError(
            f"a prompt has {len(encode('')[0])} tokens without its query and {max_tokens} are allowed, so nothing of the query "
            "fits; raise max_prompt_tokens or use fewer principles"
        )
    return Encoded(ids, text, True, kept)


LONGEST_WORD = 100
"""Characters of a word, at most, that is left out rather than cut in two where a prompt is shortened."""


def _whole_words(body: str, length: int) -> int:
    """The length of a body cut at `length`, or before the word that it would be cut in."""
    if body[length : length + 1] == " ":
        return length
    space = body.rfind(" ", 0, length)
    return space if space > 0 and length - space <= LONGEST_WORD else length


def _chat_text(tokenizer: Any, prompt: Prompt) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(prompt.chat, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise UserError(
            f"the chat template of the model's tokenizer fails ({str(error).strip().splitlines()[0][:200]}); mend it, or set "
            "style: completion"
        ) from None


def encode_alike(tokenizer: Any, prompts: Sequence[Prompt], max_tokens: int) -> list[Encoded]:
    """Prompts with one body between them, shortened in all to the length that fits the longest. Raises as `encode_prompt`."""
    encoded = [encode_prompt(tokenizer, prompt, max_tokens) for prompt in prompts]
    kept = [one.kept for one in encoded if one.kept is not None]
    if not kept:
        return encoded
    shortest = min(kept)
    bodies = [without_control_tokens(tokenizer, prompt.body)[:shortest] for prompt in prompts]
    return [
        replace(encode_prompt(tokenizer, prompt.with_body(body), max_tokens), truncated=True, kept=shortest)
        for prompt, body in zip(prompts, bodies, strict=True)
    ]


def without_control_tokens(tokenizer: Any, text: str) -> str:
    """The text with every control token that is spelled out in it broken up: a query must not end a turn or a document."""
    if "<" not in text and "[" not in text:
        return text
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and len(token.content) > 2 and token.content in text:
            text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    return text


def with_bos(tokenizer: Any, ids: list[int], *, always: bool = True) -> list[int]:
    """Put the BOS in front if it is missing (and the tokenizer has one of its own), never twice.

    A chat template decides about its BOS by itself (`always=False`): none is added, but two are refused.
    """
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    if always and ids[:1] != [bos] and bos != tokenizer.eos_token_id:
        ids = [bos, *ids]
    if ids[:2] == [bos, bos]:
        raise UserError("the prompt begins with two BOS tokens; the chat template and the tokenizer both add one")
    return ids


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, longest first (so that memory peaks at once, not after an hour)."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    max_prompt_tokens: int,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
    done: AbstractSet[int] = frozenset(),
) -> Iterator[dict[int, Generated]]:
    """Yield responses a batch at a time, keyed by the prompt's index. A batch whose indices are all in `done` is skipped."""
    encoded = [encode_prompt(tokenizer, prompt, max_prompt_tokens) for prompt in prompts]
    size = batch_size or DEFAULT_BATCH.get(model.device.type, 16)
    for number, batch in enumerate(plan_batches([len(e.ids) for e in encoded], size)):
        if all(index in done for index in batch):
            continue
        responses = generate_batch(
            model,
            tokenizer,
            [encoded[index] for index in batch],
            max_new_tokens=max_new_tokens,
            stop=stop,
            temperature=temperature,
            top_p=top_p,
            seed=seed * 1_000_003 + number,
        )
        yield dict(zip(batch, responses, strict=True))


def generate_batch(
    model: Any,
    tokenizer: Any,
    batch: Sequence[Encoded],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    sharded: bool = False,
) -> list[Generated]:
    """Generate for one batch. `seed` matters only when `temperature` is above 0.

    A `sharded` model runs on all processes at once: each has a batch of its own, and goes on until all are done.
    """
    import torch
    from transformers import StoppingCriteriaList

    pad = tokenizer.pad_token_id
    known = len(model.get_input_embeddings().weight)
    if (highest := max(max(e.ids) for e in batch)) >= known:
        raise UserError(
            f"the tokenizer has a token {highest}, and the model knows {known}: they do not belong together; restore the "
            "model folder"
        )
    shared = [] if sharded else _shared_prefix(model, [e.ids for e in batch], max_new_tokens)
    rests = [e.ids[len(shared) :] for e in batch]
    longest = max(len(rest) for rest in rests)
    width = len(shared) + longest
    input_ids = torch.tensor([shared + [pad] * (longest - len(r)) + r for r in rests], device=model.device)
    mask = torch.tensor(
        [[1] * len(shared) + [0] * (longest - len(r)) + [1] * len(r) for r in rests], device=model.device
    )
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    watch = StopWatch(tokenizer, stop, width)
    try:
        with torch.no_grad() if sharded else torch.inference_mode():
            output = model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                stopping_criteria=StoppingCriteriaList([watch] if stop else []),
                synced_gpus=sharded,
                use_cache=True,
                **_prefix_cache(model, shared, len(batch)),
                **sampling,
            )
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise UserError(
            "the model gives no finite probabilities, so nothing can be sampled from it; restore it, or train it again with a "
            "lower learning_rate"
        ) from None
    ends = end_ids(model.generation_config, tokenizer)
    return [
        finish(tokenizer, encoded, row[width:].tolist(), ends=ends, stop=stop, max_new_tokens=max_new_tokens)
        for encoded, row in zip(batch, output, strict=True)
    ]


SHARED_AT_LEAST = 24
"""Tokens that all prompts of a batch must begin with, so that running them once pays."""


def _shared_prefix(model: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[int]:
    """What all prompts begin with (worked examples, say), empty where sharing does not pay or would meet a sliding window."""
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    length = next((i for i in range(shortest - 1) if len({ids[i] for ids in prompts}) > 1), shortest - 1)
    window = getattr(model.config, "sliding_window", None)
    fits = window is None or longest + max_new_tokens <= window
    return list(prompts[0][:length]) if length >= SHARED_AT_LEAST and len(prompts) > 1 and fits else []


def _prefix_cache(model: Any, shared: list[int], rows: int) -> dict[str, Any]:
    """The keys and values of the shared tokens, computed once and repeated for every row, as an argument of `generate`."""
    if not shared:
        return {}
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model(
        input_ids=torch.tensor([shared], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    cache.batch_repeat_interleave(rows)
    return {"past_key_values": cache}


def finish(
    tokenizer: Any, prompt: Encoded, ids: list[int], *, ends: AbstractSet[int], stop: Sequence[str], max_new_tokens: int
) -> Generated:
    """Cut a raw generation at its end token or first stop string, whichever comes first."""
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    ids = ids if end is None else ids[:end]
    reason = "stop" if end is not None else "length"
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    if any(s in text for s in stop):
        reason = "stop"
        text = text[: min(text.index(s) for s in stop if s in text)]
        ids = cut_ids(tokenizer, ids, text)
    if reason == "length" and len(ids) < max_new_tokens:
        reason = "stop"
    return Generated(text.strip(), ids, reason, prompt)


def cut_ids(tokenizer: Any, ids: list[int], text: str) -> list[int]:
    """The most leading tokens of a response whose text lies within `text`, its beginning."""
    keep = len(ids)
    while keep and len(tokenizer.decode(ids[:keep], skip_special_tokens=True).rstrip()) > len(text.rstrip()):
        keep -= 1
    return ids[:keep]


class StopWatch:
    """A stopping criterion: a row is done once one of the strings stands in its last tokens' text."""

    TAIL = 12
    """Tokens looked at after each step; longer than any stop string in tokens."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_width: int) -> None:
        self.tokenizer, self.stop, self.prompt_width = tokenizer, tuple(stop), prompt_width

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        start = max(self.prompt_width, input_ids.shape[1] - self.TAIL)
        tails = self.tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
        done = [any(s in tail for s in self.stop) for tail in tails]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def end_ids(settings: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens at which generation ends: those of a model's generation settings, end and padding of its tokenizer."""
    configured = settings.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None)
