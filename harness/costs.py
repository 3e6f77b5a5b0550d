"""What API models cost: prices, what was spent, what may still be spent, and what a plan will come to.

Dollars come from tokens as the provider counts them and from `prices.yaml`, or the user's own file. Before there are counts
they are estimated: 4 bytes of text a token, which is about right for English.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.judges.llm import Comparison
from harness.models._http import is_loopback
from harness.models.base import Sampling, most_tokens
from harness.models.served import address_of
from harness.plan import JUDGE_SAMPLING, GenerationUnit, Plan, Stage, VerdictUnit, is_api, is_local
from harness.rows import Generation, Verdict
from harness.spec import ModelSpec, model_backend
from harness.store import RowFile
from sami_train.errors import UserError, nearest
from sami_train.prompts import Prompt
from sami_train.yamlfile import all_problems, read_yaml

PRICES = Path(__file__).resolve().parent / "prices.yaml"
PRICES_VARIABLE = "HARNESS_PRICES"
BYTES_PER_TOKEN = 4
"""Of English text, about."""
SHORTEST_VERDICT = 5
"""Tokens of a verdict line."""
_MILLION = 1_000_000


# --- Prices


class InvalidCosts(UserError):
    """A price file, or an option about costs, that a run cannot go by: bad usage, not a failed run."""


class Price(BaseModel):
    """US dollars for a million tokens; see the head of `prices.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(default=None, ge=0)
    cache_write: float | None = Field(default=None, ge=0)
    batch: float | None = Field(default=None, ge=0, le=1)
    date: str = ""
    source: str = ""


class _PriceFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    prices: dict[str, Price]


FREE = Price(input=0, output=0, source="a server on this machine")


class Prices(NamedTuple):
    """Prices by a model's path: the user's own, and those that come with the harness."""

    own: Mapping[str, Price]
    shipped: Mapping[str, Price]

    def of(self, model: ModelSpec) -> Price | None:
        """The price of an API model; None where it is unknown.

        The shipped ones are the providers', and say nothing of another server; one on this machine is free.
        """
        path = model.path or ""
        if path in self.own:
            return self.own[path]
        if model_backend(path) in ("openai", "anthropic") and (base_url := address_of(model)):
            return FREE if is_loopback(base_url) else None
        return self.shipped.get(path)


def load_prices(file: str | Path | None = None) -> Prices:
    """The prices to go by; `file` is the user's own (by default the one that HARNESS_PRICES names).

    Raises UserError naming file, line and field for what is wrong in it.
    """
    own = file or os.environ.get(PRICES_VARIABLE) or None
    return Prices(_read_prices(Path(own)) if own else {}, _read_prices(PRICES))


def _read_prices(file: Path) -> dict[str, Price]:
    try:
        document = read_yaml(file, what="price file")
    except UserError as error:
        raise InvalidCosts(str(error)) from None
    try:
        return _PriceFile.model_validate(document.data).prices
    except ValidationError as error:
        raise InvalidCosts(str(all_problems(error, document, _PriceFile))) from None


def api_models(plan: Plan) -> dict[str, ModelSpec]:
    """The API models that a plan asks, by name."""
    used = {stage.model for stage in plan.stages}
    return {name: model for name, model in plan.spec.models.items() if name in used and is_api(model)}


# --- What was spent


class Tokens(NamedTuple):
    """Tokens of answers: new input, input from the provider's cache, input put there, output."""

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    output: int = 0

    def dollars(self, price: Price, *, batch: bool = False) -> float:
        """What they cost. Where there is no price for cached input, it costs what input does."""
        of_cached = price.input if price.cached_input is None else price.cached_input
        of_written = price.input if price.cache_write is None else price.cache_write
        sums = self.input * price.input + self.cached_input * of_cached + self.cache_write * of_written
        share = price.batch if batch and price.batch is not None else 1.0
        return (sums + self.output * price.output) * share / _MILLION

    def __add__(self, other: Tokens) -> Tokens:  # type: ignore[override]
        return Tokens(*(a + b for a, b in zip(self, other, strict=True)))


def tokens(usage: Mapping[str, Any]) -> Tokens:
    """The tokens in a provider's `usage`. OpenAI counts cached input as part of the prompt, Anthropic beside it."""

    def number(source: object, field: str) -> int:
        value = source.get(field) if isinstance(source, Mapping) else None
        return max(0, value) if isinstance(value, int) and not isinstance(value, bool) else 0

    if "prompt_tokens" in usage:
        prompt = number(usage, "prompt_tokens")
        cached = min(prompt, number(usage.get("prompt_tokens_details"), "cached_tokens"))
        return Tokens(prompt - cached, cached, 0, number(usage, "completion_tokens"))
    return Tokens(
        number(usage, "input_tokens"),
        number(usage, "cache_read_input_tokens"),
        number(usage, "cache_creation_input_tokens"),
        number(usage, "output_tokens"),
    )


def spent(plan: Plan, folder: Path, prices: Prices) -> dict[str, Any]:
    """What the rows of a run's folder cost, failed and replaced ones included.

    ``{"models": {name: {requests, estimated, input_tokens, cached_input_tokens, output_tokens, dollars, price}},
    "dollars"}``; dollars are null where no price is known. `estimated` counts requests whose tokens the provider did not tell:
    they count for the most that they can have taken. Rows from the cache cost nothing here.
    """
    return spent_by({name: (model, _usages(plan, folder, name)) for name, model in api_models(plan).items()}, prices)


def spent_by(models: Mapping[str, tuple[ModelSpec, Iterable[Mapping[str, Any]]]], prices: Prices) -> dict[str, Any]:
    """What these API models cost, as `spent` has it: each with the `usage` of everything that it was asked for, by name."""
    found: dict[str, Any] = {}
    for name, (model, usages) in models.items():
        price = prices.of(model)
        sums = {False: Tokens(), True: Tokens()}  # by batch
        requests = estimated = 0
        for usage in usages:
            requests += 1
            estimated += usage.get("estimated") is True
            sums[usage.get("batch") is True] += tokens(usage)
        every = sums[False] + sums[True]
        found[name] = {
            "path": model.path,
            "requests": requests,
            "estimated": estimated,
            "input_tokens": every.input + every.cache_write,
            "cached_input_tokens": every.cached_input,
            "output_tokens": every.output,
            "dollars": None if price is None else sum(s.dollars(price, batch=batch) for batch, s in sums.items()),
            "price": None if price is None else price.model_dump(exclude_none=True),
        }
    return {"models": found, "dollars": _sum(m["dollars"] for m in found.values())}


def _usages(plan: Plan, folder: Path, model: str) -> Iterable[Mapping[str, Any]]:
    """The usage of every row that a model was asked for, replaced ones included."""
    for stage in plan.stages:
        if stage.model == model and stage.kind in ("generate", "judge"):
            for row in RowFile(folder / stage.path, stage.row_type).rows():
                if usage := cast("Generation | Verdict", row).usage:
                    yield usage


# --- What may be spent


class CostLimitReached(UserError):
    """The next request would have passed the limit. Everything paid for is kept."""


class Allowance:
    """What is left of `--max-cost`; a `harness.models.base.Budget`. `spent`: dollars, before and during this run."""

    def __init__(self, limit: float, spent: float, prices: Mapping[str, Price]) -> None:
        self.limit = limit
        self.spent = spent
        self.exhausted = False
        self._prices = prices
        self._reserved = 0.0
        self._online = 0
        self._changed = threading.Condition()

    def reserve(self, model: str, prompt: Prompt, sampling: Sampling, *, batch: bool = False) -> float | None:
        """Put aside the most that a request can cost; see `Budget`."""
        most = at_most(self._prices[model], prompt, sampling, batch=batch)
        with self._changed:
            while not self.exhausted and self.spent + self._reserved + most > self.limit:
                if self._reserved == 0:
                    self.exhausted = True
                elif batch:
                    return None  # who asks for batches also collects them: to wait here would be for ever
                else:
                    self._changed.wait()
            if self.exhausted:
                self._changed.notify_all()
                return None
            self._put_aside(most)
            return most

    def commit(self, model: str, prompt: Prompt, sampling: Sampling) -> float:
        """Put aside what a request of a batch can cost that was handed in before."""
        most = at_most(self._prices[model], prompt, sampling, batch=True)
        with self._changed:
            self._put_aside(most)
            return most

    def settle(self, model: str, reserved: float, usage: Mapping[str, Any]) -> None:
        """Give back what was put aside, and count what the request did cost."""
        cost = tokens(usage).dollars(self._prices[model], batch=usage.get("batch") is True)
        with self._changed:
            self.spent += cost
            self._online -= 1
            # The last one leaves exactly nothing, whatever rounding left over.
            self._reserved = self._reserved - reserved if self._online else 0.0
            self._changed.notify_all()

    def _put_aside(self, most: float) -> None:
        self._reserved += most
        self._online += 1


def allowance(plan: Plan, folder: Path, limit: float, prices: Prices) -> Allowance:
    """What a run may spend under `--max-cost`. Raises UserError for a model whose price is unknown."""
    return allow(limit, api_models(plan), spent(plan, folder, prices), prices)


def allow(limit: float, models: Mapping[str, ModelSpec], before: Mapping[str, Any], prices: Prices) -> Allowance:
    """What these API models may spend, `before` (as of `spent`) included. Raises UserError for one whose price is unknown."""
    known: dict[str, Price] = {}
    for name, model in models.items():
        if (price := prices.of(model)) is None:
            where = f" at {model.base_url}" if model.base_url else ""
            raise InvalidCosts(
                f"--max-cost: the price of '{model.path}'{where} (model '{name}') is unknown "
                f"({nearest(model.path or '', prices.shipped)}); "
                f"write it into a file as harness/prices.yaml does and name that with --prices FILE"
            )
        known[name] = price
    return Allowance(limit, before["dollars"] or 0.0, known)


def at_most(price: Price, prompt: Prompt, sampling: Sampling, *, batch: bool = False) -> float:
    """The most that a request can cost, in dollars; see `most_tokens`."""
    size, answer = most_tokens(prompt, sampling)
    dearest = price.model_copy(update={"input": max(price.input, price.cache_write or 0.0)})
    return Tokens(input=size, output=answer).dollars(dearest, batch=batch)


def _texts(prompt: Prompt) -> list[str]:
    return [message["content"] for message in prompt.chat] if prompt.style == "chat" else [prompt.text]


# --- What a plan comes to


Count = Callable[[Sequence[Prompt]], list[int]]


def planned(
    plan: Plan, folder: Path, prices: Prices | None = None, *, batch: bool = False, exact: bool = False
) -> dict[str, Any]:
    """Tokens and dollars of what is left to do, per stage and in all, between the shortest and the longest answers.

    Shortest: an answer of one token, a verdict of a bare verdict line; longest: as many tokens as are allowed. Prompts of
    judges hold the answers, where they are there already; otherwise the shortest and the longest ones. With `exact` the
    prompts are counted by the tokenizers of local models and by Anthropic; `counted` says of each stage which it is.
    """
    counts: dict[tuple[str, str], Count] = {}
    prices = prices or load_prices()
    rows: list[dict[str, Any]] = []
    for stage in plan.stages:
        if stage.model is None or stage.kind not in ("generate", "judge"):
            continue
        model = plan.spec.models[stage.model]
        finished = stage.finished_rows(folder)
        left = [unit for unit in stage.units if unit.id not in finished]
        if not left:
            continue
        use = (stage.model, stage.kind)
        if use not in counts:
            longest = plan.spec.sampling if stage.kind == "generate" else JUDGE_SAMPLING
            counts[use] = (
                _counter(plan, stage.model, longest.max_prompt_tokens) if exact else None
            ) or estimated_tokens
        count = counts[use]
        if stage.kind == "generate":
            low, high = _answers(cast("list[GenerationUnit]", left), plan, stage, count)
        else:
            low, high = _judgements(cast("list[VerdictUnit]", left), plan, stage, folder, count)
        is_exact = count is not estimated_tokens
        rows.append(
            stage_left(stage.name, stage.model, model, len(left), low, high, prices, batch=batch, is_exact=is_exact)
        )
    return in_all(rows, spent(plan, folder, prices))


def stage_left(
    stage: str,
    name: str,
    model: ModelSpec,
    requests: int,
    low: Tokens,
    high: Tokens,
    prices: Prices,
    *,
    batch: bool = False,
    is_exact: bool = False,
) -> dict[str, Any]:
    """A stage of `planned`: the requests that are left to a model, with all their tokens between two ends."""
    price = prices.of(model) if is_api(model) else None
    return {
        "stage": stage,
        "model": name,
        "requests": requests,
        "prompt_tokens": {"low": low.input, "high": high.input},
        "output_tokens": {"low": low.output, "high": high.output},
        "counted": "exact" if is_exact else "estimate",
        "is_api": is_api(model),
        "dollars": None
        if price is None
        else {"low": low.dollars(price, batch=batch), "high": high.dollars(price, batch=batch)},
    }


def in_all(stages: Sequence[dict[str, Any]], before: Mapping[str, Any]) -> dict[str, Any]:
    """What `planned` says, from its stages and what was spent `before` (as of `spent`)."""
    of_apis = [row for row in stages if row["is_api"]]
    return {
        "stages": list(stages),
        "bytes_per_token": BYTES_PER_TOKEN,
        "spent": before["dollars"],
        "unpriced": sorted({str(row["model"]) for row in of_apis if row["dollars"] is None}),
        "dollars": {end: _sum(r["dollars"] and r["dollars"][end] for r in of_apis) for end in ("low", "high")},
    }


def _counter(plan: Plan, name: str, limit: int) -> Count | None:
    """What counts a model's prompts; None where there is no tokenizer at hand."""
    model = plan.spec.models[name]
    if is_local(model):
        return _local_counter(plan, name, limit)
    if model_backend(model.path or "") == "anthropic":
        from harness.models import open_model
        from harness.models.anthropic import AnthropicBackend

        return cast(AnthropicBackend, open_model(name, model, plan.source, plan.spec.engine)).count_tokens
    return None


def _local_counter(plan: Plan, name: str, limit: int) -> Count:
    from sami_train.generation import encode_prompt
    from sami_train.models import load_tokenizer

    untrained = name  # training keeps the tokenizer
    while (train := plan.spec.training(untrained)) is not None:
        untrained = train.from_
    source = plan.source(untrained)
    tokenizer = load_tokenizer(source, trust_remote_code=plan.spec.models[untrained].trust_remote_code)
    return lambda prompts: [len(encode_prompt(tokenizer, prompt, limit).ids) for prompt in prompts]


def _answers(left: list[GenerationUnit], plan: Plan, stage: Stage, count: Count) -> tuple[Tokens, Tokens]:
    assert stage.model is not None
    longest = plan.sampling(stage.model, stage.task).max_new_tokens
    prompts = sum(count([unit.prompt for unit in left]))
    return Tokens(prompts, output=len(left)), Tokens(prompts, output=len(left) * longest)


def _judgements(left: list[VerdictUnit], plan: Plan, stage: Stage, folder: Path, count: Count) -> tuple[Tokens, Tokens]:
    answers: dict[str, str] = {}
    lengths: dict[str, int] = {}
    for task in plan.tasks:
        for model in dict.fromkeys(stage.pair):
            options = plan.spec.models[model].sampling.given()
            lengths[model] = options.get("max_new_tokens", plan.spec.sampling.max_new_tokens)  # without reasoning
            answers |= {
                i: row.text for i, row in plan.stage("generate", model=model, task=task).finished_rows(folder).items()
            }
    judges = {task: plan.judge(stage.judge, task) for task in plan.tasks}
    longest = plan.judge_sampling(stage.judge).max_new_tokens
    prompts: list[Prompt] = []
    low = high = 0  # tokens of answers that are not there yet
    written = 0
    for unit in left:
        judge = judges[unit.a.task]
        texts = [answers.get(unit.a.id), answers.get(unit.b.id)]
        unknown = sum(lengths[m] for m, text in zip((stage.pair[0], stage.pair[1]), texts, strict=True) if text is None)
        shown = [text or "" for text in texts]
        comparison = Comparison(
            unit.id, tuple(unit.constitution.lines()), unit.a.query.text, shown[0], shown[1], unit.order
        )
        if None not in texts and judge.without_asking(comparison) is not None:
            continue
        prompts.append(judge.prompt(comparison))
        low, high = low + texts.count(None), high + unknown
        written += judge.form != "choice"
    known = sum(count(prompts))
    return (
        Tokens(known + low, output=written * SHORTEST_VERDICT),
        Tokens(known + high, output=written * longest),
    )


def estimated_tokens(prompts: Sequence[Prompt]) -> list[int]:
    """The tokens of each prompt, at `BYTES_PER_TOKEN`."""
    sizes = (sum(len(text.encode("utf-8", "replace")) for text in _texts(prompt)) for prompt in prompts)
    return [-(-size // BYTES_PER_TOKEN) for size in sizes]


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None when one of them is unknown."""
    found = list(values)
    return None if any(value is None for value in found) else float(sum(cast("list[float]", found)))
