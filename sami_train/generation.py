"""Batched text generation with a transformers model: fixed batches, left padding, exactly one BOS, stop strings.

Batches are composed from the whole list of prompts, sorted by length, and never from what happens to be pending: a run that
was interrupted makes the same text as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from sami_train.chat import NO_END, render_chat, turn_end
from sami_train.errors import UserError
from sami_train.prompts import Prompt
from sami_train.shared_prefix import prefix_cache, shared_prefix

DEFAULT_BATCH = {"cpu": 64, "cuda": 128}
"""Prompts generated together when the batch size is ``auto``, per device kind."""


FEWEST_BATCHES, SMALLEST_BATCH = 4, 8
"""On a CPU, where a batch takes minutes, prompts are spread over so many batches, as long as these have so many prompts."""


def automatic_batch(kind: str, prompts: int) -> int:
    """The batch size ``auto`` of `prompts` that belong together: an interrupted run loses the batch that it was in."""
    most = DEFAULT_BATCH.get(kind, 16)
    return min(most, max(SMALLEST_BATCH, -(-prompts // FEWEST_BATCHES))) if kind == "cpu" else most


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids, begun as its tokenizer begins a text; `truncated`: its body was shortened to fit, to so many of its
    characters (`kept`); `chat`: it is a conversation, whose next turn ends as its template says."""

    ids: list[int]
    text: str
    truncated: bool
    kept: int | None = None
    chat: bool = False


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
    chat = prompt.style == "chat"

    def encode(body: str) -> tuple[list[int], str]:
        shaped = prompt.with_body(body)
        text = render_chat(tokenizer, shaped.chat) if chat else shaped.text
        return with_beginning(tokenizer, tokenizer(text, add_special_tokens=False).input_ids, always=not chat), text

    body = without_control_tokens(tokenizer, prompt.body)
    ids, text = encode(body)
    if len(ids) <= max_tokens:
        return Encoded(ids, text, False, chat=chat)
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
    return Encoded(ids, text, True, kept, chat)


LONGEST_WORD = 100
"""Characters of a word, at most, that is left out rather than cut in two where a prompt is shortened."""


def _whole_words(body: str, length: int) -> int:
    """The length of a body cut at `length`, or before the word that it would be cut in."""
    if body[length : length + 1] == " ":
        return length
    space = body.rfind(" ", 0, length)
    return space if space > 0 and length - space <= LONGEST_WORD else length


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


def with_beginning(tokenizer: Any, ids: Sequence[int], *, always: bool = True) -> list[int]:
    """Put in front what the tokenizer itself begins a text with (its BOS, as a rule, or nothing), where it is missing.

    A chat template decides about its beginning by itself (`always=False`): none is added, but two BOS are refused.
    """
    ids = list(ids)
    if always and (beginning := _beginning(tokenizer)) and ids[: len(beginning)] != beginning:
        ids = [*beginning, *ids]
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise UserError("the prompt begins with two BOS tokens; the chat template and the tokenizer both add one")
    return ids


def _beginning(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before a text where it is let."""
    bare, whole = (list(tokenizer("a", add_special_tokens=special).input_ids) for special in (False, True))
    length = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return whole[:length]


def prompt_room(config: Any, max_new_tokens: int, max_prompt_tokens: int) -> int:
    """Tokens that a prompt may have: `max_prompt_tokens`, or what the model's context leaves beside a response.

    Raises:
        UserError: the response alone fills the context.
    """
    context = context_length(config)
    if context is None or context - max_new_tokens >= max_prompt_tokens:
        return max_prompt_tokens
    if context <= max_new_tokens:
        raise UserError(
            f"the model reads {context} tokens at most, and max_new_tokens is {max_new_tokens}, which leaves none for the prompt; "
            "lower max_new_tokens"
        )
    return context - max_new_tokens


def context_length(config: Any) -> int | None:
    """Tokens of prompt and response together that a model was made for; None where its configuration does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


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
    """Yield responses a batch at a time, keyed by the prompt's index. A batch whose indices are all in `done` is skipped.

    Prompts are shortened to `max_prompt_tokens`, or to what the model's context leaves (`prompt_room`).
    """
    limit = prompt_room(model.config, max_new_tokens, max_prompt_tokens) if prompts else max_prompt_tokens
    encoded = [encode_prompt(tokenizer, prompt, limit) for prompt in prompts]
    size = batch_size or automatic_batch(model.device.type, len(prompts))
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

    Raises:
        UserError: the tokenizer is another model's, or the model gives probabilities that are not finite.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    pad = tokenizer.pad_token_id
    known = len(model.get_input_embeddings().weight)
    if (highest := max(max(e.ids) for e in batch)) >= known:
        raise UserError(
            f"the tokenizer has a token {highest}, and the model knows {known}: they do not belong together; restore the "
            "model folder"
        )
    shared = [] if sharded else shared_prefix(model, [e.ids for e in batch], max_new_tokens)
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
    ends, strings = ends_of(model.generation_config, tokenizer, batch, stop)
    watch = StopWatch(tokenizer, strings, width)
    with torch.no_grad() if sharded else torch.inference_mode(), prefix_cache(model, shared, len(batch)) as cache:
        output = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=sorted(ends) or None,
            logits_processor=LogitsProcessorList([_finite(model)]),
            stopping_criteria=StoppingCriteriaList([watch] if strings else []),
            synced_gpus=sharded,
            use_cache=True,
            **cache,
            **sampling,
        )
    return [
        finish(tokenizer, encoded, row[width:].tolist(), ends=ends, stop=strings, max_new_tokens=max_new_tokens)
        for encoded, row in zip(batch, output, strict=True)
    ]


def not_finite(model: Any) -> UserError:
    """What to say of a model whose probabilities are not numbers: greedy text of it would be made of the first token."""
    return UserError(
        f"the model '{model.name_or_path}' gives no finite probabilities, so nothing can be made of it; restore it, train it "
        "again with a lower learning_rate, or set its dtype to float32 where float16 overflows"
    )


def _finite(model: Any) -> Any:
    """A logits processor that changes nothing and refuses scores whose largest is not finite."""

    def check(_: Any, scores: Any) -> Any:
        if not bool(scores.amax(-1).isfinite().all()):
            raise not_finite(model)
        return scores

    return check


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


def ends_of(
    settings: Any, tokenizer: Any, prompts: Sequence[Encoded], stop: Sequence[str]
) -> tuple[frozenset[int], tuple[str, ...]]:
    """The tokens and strings at which responses to prompts end: `end_ids` and `stop`, and in a chat the end of the turn."""
    turn = turn_end(tokenizer) if any(prompt.chat for prompt in prompts) else NO_END
    return end_ids(settings, tokenizer) | turn.ids, (*stop, *turn.strings)
