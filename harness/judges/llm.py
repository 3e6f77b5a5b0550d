"""The pairwise judge that is a language model: what it is asked, how its word is read, and how far it can be trusted.

Nothing here runs a model. `LLMJudge` makes a prompt for a comparison; whoever runs the model gives back what it wrote,
or the probabilities of its two letters. What cannot be read for certain is unscored, with a reason; it is never a tie.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sami_train.errors import UserError, nearest
from sami_train.prompts import BODY as BODY
from sami_train.prompts import Prompt, Style
from sami_train.yamlfile import all_problems, read_yaml

Form = Literal["text", "structured", "choice"]
"""text: the judge reasons and ends with a verdict line; structured: it does so as JSON of `VERDICT_SCHEMA`, to which its
provider holds it; choice: the probabilities of "A" and "B" are read."""
Shown = Literal["first", "second", "tie"]
"""A verdict by the places in the prompt."""
Order = Literal["ab", "ba"]
Outcome = Literal["a", "b", "tie", "unscored"]
"""A verdict by the models of the pair."""

CHOICES: dict[Style, tuple[str, str]] = {"completion": (" A", " B"), "chat": ("A", "B")}
"""The two continuations whose probabilities are compared in the form `choice`."""

VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reasoning": {"type": "string"}, "verdict": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["reasoning", "verdict"],
    "additionalProperties": False,
}
"""What a judge writes in the form `structured`. The reasoning stands first, so that the verdict follows from it."""

FOLDER = Path(__file__).resolve().parent / "prompts"


@dataclass(frozen=True)
class Unscored:
    """No verdict, and why: empty, truncated, refusal, no_verdict, verdict_not_last, unreadable_verdict, ambiguous; of
    JSON also not_json and not_the_schema; of probabilities not_a_probability."""

    reason: str


class JudgeTemplate(BaseModel):
    """A judge prompt file: one text per form, with the placeholders {principles}, {query}, {first} and {second}.

    A file without the form `structured` serves every judge that is not held to a schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    task: Literal["dialogue", "summarization"]
    description: str = ""
    text: str
    structured: str | None = None
    choice: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Comparison:
    """Two answers to one query, `a` and `b` by model, to be compared in one order."""

    id: str
    principles: tuple[str, ...]
    query: str
    a: str
    b: str
    order: Order


@dataclass(frozen=True)
class Judgement:
    """What a judge said of a comparison, in the terms of `harness.rows.Verdict`."""

    outcome: Outcome
    reason: str | None = None
    raw: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LLMJudge:
    """A judge prompt and how its answers are read. The model itself is the caller's."""

    template: JudgeTemplate
    style: Style
    form: Form
    tie_margin: float = 0.0

    def without_asking(self, comparison: Comparison) -> Judgement | None:
        """The tie of two equal texts, which no judge needs to see; None for all others."""
        return Judgement("tie", details={"identical": True}) if identical(comparison.a, comparison.b) else None

    def prompt(self, comparison: Comparison) -> Prompt:
        """What the model is asked."""
        a, b = comparison.a, comparison.b
        first, second = (a, b) if comparison.order == "ab" else (b, a)
        return build_judge_prompt(
            self.template, comparison.principles, comparison.query, first, second, style=self.style, form=self.form
        )

    def read_text(
        self, comparison: Comparison, text: str, *, truncated: bool = False, error: str | None = None
    ) -> Judgement:
        """The judgement in what the model wrote. `error` is that of a failed request, ``reason: message``."""
        if error is not None:
            return Judgement("unscored", reason=error.partition(":")[0], details={"error": error})
        if self.form == "structured":
            return _judgement(parse_structured(text, truncated=truncated), comparison.order, raw=text)
        said = text
        if self.style == "completion" and (end := _first_verdict_line(text)) is not None:
            # A base model goes on after its answer, with a text of its own: its answer ends with its first verdict line.
            said, truncated = text[:end], False
        return _judgement(parse_verdict(said, truncated=truncated), comparison.order, raw=text)

    def read_choice(self, comparison: Comparison, p_first: float, p_second: float) -> Judgement:
        """The judgement in the probabilities of the two letters."""
        shown = choice_outcome(p_first, p_second, self.tie_margin)
        # A row takes no NaN, and a probability that is one says no more than its reason.
        details = {} if isinstance(shown, Unscored) else {"p_first": p_first, "p_second": p_second}
        return _judgement(shown, comparison.order, details=details)


def _judgement(
    shown: Shown | Unscored, order: Order, *, raw: str = "", details: dict[str, Any] | None = None
) -> Judgement:
    if isinstance(shown, Unscored):
        return Judgement("unscored", shown.reason, raw, details or {})
    return Judgement(model_of(shown, order), None, raw, details or {})


def model_of(shown: Shown, order: Order) -> Literal["a", "b", "tie"]:
    """Which model of the pair a verdict by place means."""
    if shown == "tie":
        return "tie"
    return "a" if (shown == "first") == (order == "ab") else "b"


def identical(first: str, second: str) -> bool:
    """Whether two answers are the same text, blanks around them aside."""
    return first.strip() == second.strip()


# --- Asking -----------------------------------------------------------------------------------------------------------

PLACEHOLDERS = ("{principles}", "{query}", "{first}", "{second}")
_VERDICT_WORD = re.compile(r"""(?<![^\W_])(verdict[*_`"'\\\s]{0,8})[:：]""", re.IGNORECASE)
# What chat models read as the end of a turn, not as text: <|im_end|>, <end_of_turn>, </s>, [/INST] and their like.
_CONTROL = re.compile(
    r"<(?=[|｜]|/?(?:s|bos|eos|pad|unk|(?:start|end)_of_turn)>)|\[(?=/?(?:INST|SYSTEM_PROMPT)\])|<(?=</?SYS>>)",
    re.IGNORECASE,
)


def load_judge_template(name_or_path: str | Path) -> JudgeTemplate:
    """A judge prompt by name (those shipped here) or by file. Raises UserError naming file, line and field."""
    text = str(name_or_path)
    path = Path(text) if text.endswith((".yaml", ".yml")) else FOLDER / f"{text}.yaml"
    if not path.is_file() and path.parent == FOLDER:
        raise UserError(
            f"there is no judge prompt named '{text}'; {nearest(text, [f.stem for f in FOLDER.glob('*.yaml')])}"
        )
    document = read_yaml(path, what="judge prompt")
    try:
        template = JudgeTemplate.model_validate(document.data)
    except ValidationError as error:
        raise all_problems(error, document, JudgeTemplate) from None
    for form in ("text", "structured", "choice"):
        prompt: str | None = getattr(template, form)
        if prompt is None:
            continue
        where = document.where((form,))
        for placeholder in PLACEHOLDERS:
            if (n := prompt.count(placeholder)) != 1:
                raise UserError(f"{where}: '{form}' needs the placeholder {placeholder} exactly once; it has {n}")
        if prompt.index("{first}") > prompt.index("{second}"):
            raise UserError(f"{where}: '{form}' has {{second}} before {{first}}; show them in order, as A and B")
    if not all(f"Verdict: {word}" in template.text for word in ("A", "B", "tie")):
        where = document.where(("text",))
        raise UserError(
            f"{where}: 'text' must ask for a last line 'Verdict: A', 'Verdict: B' or 'Verdict: tie'; add them"
        )
    if template.structured is not None and not all(
        f'"{key}"' in template.structured for key in ("reasoning", "verdict")
    ):
        where = document.where(("structured",))
        raise UserError(
            f'{where}: \'structured\' must ask for the fields "reasoning" and "verdict"; name both in quotes'
        )
    return template


def build_judge_prompt(
    template: JudgeTemplate,
    constitution_lines: Sequence[str],
    query: str,
    first: str,
    second: str,
    *,
    style: Style,
    form: Form,
) -> Prompt:
    """The prompt that compares `first` (shown as A) and `second` (shown as B) under numbered principles.

    The answers stand between marks that carry a token known from the template alone. Where an answer or the query has
    that token, a chat model's control token or the beginning of a verdict, it is broken up, so that no text under
    judgement can close its own mark, end the turn or speak as the judge. The query is the prompt's body: the stretch
    that is shortened when the prompt is too long.
    """
    token = fence_token(template)

    def fenced(letter: str, answer: str) -> str:
        return f"<<{token} {letter}>>\n{neutralised(answer, token).strip()}\n<</{token} {letter}>>"

    lines = [line.replace("\x00", "") for line in constitution_lines]
    fill = {
        "{principles}": "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1)),
        "{query}": BODY,
        "{first}": fenced("A", first),
        "{second}": fenced("B", second),
    }
    wanted: str | None = getattr(template, form)
    if wanted is None:
        raise UserError(f"the judge prompt '{template.name}' has no form '{form}'; add it, or set structured: off")
    content = re.sub("|".join(map(re.escape, PLACEHOLDERS)), lambda match: fill[match.group()], wanted).strip()
    body = neutralised(query, token).strip()
    if style == "chat":
        return Prompt("chat", (("user", content),), body)
    return Prompt("completion", (("text", content + ("\n\nReasoning:" if form == "text" else "")),), body)


def fence_token(template: JudgeTemplate) -> str:
    """Eight characters that look random and depend on the template alone, never on what is judged."""
    return hashlib.sha256(f"fence {template.hash}".encode()).hexdigest()[:8]


def neutralised(text: str, token: str) -> str:
    """`text` with the fence's token and the control tokens of chat models broken up, and no beginning of a verdict."""
    text = text.replace("\x00", "")
    pattern = re.compile(re.escape(token), re.IGNORECASE)
    while pattern.search(text):  # again, because occurrences may overlap
        text = pattern.sub(lambda match: f"{match.group()[:4]}-{match.group()[4:]}", text)
    return _VERDICT_WORD.sub(r"\1 -", _CONTROL.sub(r"\g<0> ", text))


# --- Reading ----------------------------------------------------------------------------------------------------------

_MARKUP = r"[*_`]{0,3}"
_VERDICT = re.compile(
    rf"(?:#{{1,6}} )?{_MARKUP}verdict{_MARKUP} ?: ?{_MARKUP} ?(a|b|tie){_MARKUP}\.?{_MARKUP}",
    re.IGNORECASE | re.ASCII,
)
_LIKE_A_VERDICT = re.compile(r"[\s#*_`]{0,8}verdict\b", re.IGNORECASE)
_SAID: dict[str, Shown] = {"a": "first", "b": "second", "tie": "tie"}
_IN_SCHEMA: dict[str, Shown] = {"A": "first", "B": "second", "tie": "tie"}
_NAMED = re.compile(r"\b(?:a|b|tie)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:can['’]?t|can ?not|won['’]?t|will not|(?:unable|not able|not going|decline|refuse) to)"
    r" (?:help|assist|judge|compare|choose|decide|answer|comply|evaluate|rate|provide|engage|continue|do (?:that|this))"
    r"|^(?:i(?:['’]m| am) (?:very )?(?:sorry|afraid)\b|sorry\b|as an ai\b)",
    re.IGNORECASE,
)


def parse_verdict(text: str, *, truncated: bool = False) -> Shown | Unscored:
    """What the judge decided, read from its own text alone: the last line that is not blank must be a verdict line.

    A verdict line is ``Verdict: A``, ``Verdict: B`` or ``Verdict: tie`` in any case, with Markdown emphasis or a full
    stop at most. An earlier verdict line that says otherwise makes it ambiguous. `truncated` says that the judge ran
    out of tokens: its last line may have gone on, so that it counts for nothing.
    """
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not lines:
        return Unscored("empty")
    if truncated:
        return Unscored("truncated")
    said = [_SAID[match.group(1).lower()] for line in lines if (match := _VERDICT.fullmatch(line))]
    if _VERDICT.fullmatch(lines[-1]):
        return said[-1] if len(set(said)) == 1 else Unscored("ambiguous")
    if _LIKE_A_VERDICT.match(lines[-1]):
        named = {word.lower() for word in _NAMED.findall(lines[-1])}
        return Unscored("ambiguous" if len(named) > 1 else "unreadable_verdict")
    if said:
        return Unscored("verdict_not_last")
    return Unscored("refusal" if _REFUSAL.search(text.strip()) else "no_verdict")


def _first_verdict_line(text: str) -> int | None:
    """Where the first verdict line of a continuation ends; None without one that is known to be whole."""
    end = 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        if _VERDICT.fullmatch(" ".join(line.split())) and line.splitlines()[0] != line:
            return end
    return None


def parse_structured(text: str, *, truncated: bool = False) -> Shown | Unscored:
    """What a judge decided that was to write JSON of `VERDICT_SCHEMA`: as strict as the schema, whoever held it to that.

    The whole text must be one object with the text `reasoning` and then `verdict`, one of "A", "B" and "tie"; not a field
    more, none twice.
    """
    if not text.strip():
        return Unscored("empty")
    if truncated:
        return Unscored("truncated")
    try:
        found = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return Unscored("refusal" if _REFUSAL.search(text.strip()) else "not_json")
    if not isinstance(found, _Pairs):
        return Unscored("not_the_schema")
    verdicts = [value for key, value in found if key == "verdict"]
    if not verdicts:
        return Unscored("no_verdict")
    if not all(isinstance(value, str) for _, value in found):
        return Unscored("not_the_schema")
    if len(set(verdicts)) > 1:
        return Unscored("ambiguous")
    if sorted(key for key, _ in found) != ["reasoning", "verdict"]:
        return Unscored("not_the_schema")
    if found[-1][0] != "verdict":
        return Unscored("verdict_not_last")
    return _IN_SCHEMA.get(verdicts[0], Unscored("unreadable_verdict"))


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its fields in their order, those that come twice included."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def choice_outcome(p_first: float, p_second: float, tie_margin: float = 0.0) -> Shown | Unscored:
    """The likelier of the two letters; a tie only when they are no further apart than `tie_margin` (a probability)."""
    usable = all(math.isfinite(p) and p >= 0 for p in (p_first, p_second))
    if not usable or p_first + p_second == 0:
        return Unscored("not_a_probability")
    if abs(p_first - p_second) <= tie_margin:
        return "tie"
    return "first" if p_first > p_second else "second"


# --- Putting together -------------------------------------------------------------------------------------------------

_SCORE: dict[str, float] = {"a": 1.0, "tie": 0.5, "b": 0.0}


def combine_orders(ab: Outcome | None, ba: Outcome | None) -> float | None:
    """The score of model a, in [0, 1]: the mean of its two orders; None when either is missing or unscored."""
    if ab is None or ba is None or "unscored" in (ab, ba):
        return None
    return (_SCORE[ab] + _SCORE[ba]) / 2
