"""The pairwise judge that is a language model: what it is asked, how its word is read, and how far it can be trusted.

Nothing here runs a model. `LLMJudge` makes a prompt for a comparison; whoever runs the model gives back what it wrote,
or the probabilities of its two letters. What cannot be read for certain is unscored, with a reason; it is never a tie.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.models.reasoning import split_reasoning
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

    def prompt(self, comparison: Comparison, control: Sequence[str] = ()) -> Prompt:
        """What the model is asked; `control` are the control tokens of its own tokenizer, where they are known."""
        a, b = comparison.a, comparison.b
        first, second = (a, b) if comparison.order == "ab" else (b, a)
        return build_judge_prompt(
            self.template, comparison.principles, comparison.query, first, second, style=self.style, form=self.form,
            control=control,
        )  # fmt: skip

    def read_text(
        self, comparison: Comparison, text: str, *, truncated: bool = False, error: str | None = None
    ) -> Judgement:
        """The judgement in what the model wrote. `error` is that of a failed request, ``reason: message``."""
        if error is not None:
            reason = error.partition(":")[0]
            # What did not fit into its tokens will not fit when it is asked again.
            return Judgement("unscored", reason, details={"note" if reason == "truncated" else "error": error})
        found = split_reasoning(text)
        details = {"reasoning": found.reasoning} if found.reasoning else {}
        if self.form == "structured":
            return _judgement(parse_structured(text, truncated=truncated), comparison.order, raw=text, details=details)
        said = text
        if self.style == "completion" and (end := _first_verdict_line(text)) is not None:
            # A base model goes on after its answer, with a text of its own: its answer ends with its first verdict line.
            said, truncated = text[:end], False
        return _judgement(parse_verdict(said, truncated=truncated), comparison.order, raw=text, details=details)

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
# A verdict as any reader below sees it begins so; what is under judgement has no such beginning left.
_VERDICT_WORD = re.compile(r"""(?<![^\W_])(verdict[*_`"'\\\s]*):""", re.IGNORECASE)
# What chat models read as the end of a turn, as reasoning or as a call of a tool, not as text. A blank after the first
# character breaks each of them.
_CONTROL = re.compile(
    r"<(?=[|｜]|[/\w]{1,40}[|｜]>)"  # <|im_end|>, <|channel>, <turn|>
    r"|<(?=/?(?:s|bos|eos|pad|unk|sop|eop|(?:start|end)_of_turn|(?:beginning|end)_of_sentence|extra_id_\d+|SPECIAL_\d+)>)"
    r"|<(?=/?(?:think|thinking|thought|seed:think|tool_call|tool_response|arg_key|arg_value|minimax:\w+)>)"
    r"|<(?=</?SYS>>)"
    r"|\[(?=[|｜]|e~\[|gMASK\])"  # [|endofturn|], [e~[
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID|THINK|IMG|PREFIX|SUFFIX"
    r"|MIDDLE|MODEL_SETTINGS)\])"
    r"|\](?=~!?b[\]\[])",  # ]~b], ]~!b[
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
    control: Sequence[str] = (),
) -> Prompt:
    """The prompt that compares `first` (shown as A) and `second` (shown as B) under numbered principles.

    The answers stand between marks that carry a token known from the template alone. Where an answer or the query has
    that token, a chat model's control token or the beginning of a verdict, it is broken up, so that no text under
    judgement can close its own mark, end the turn or speak as the judge. The query is the prompt's body: the stretch
    that is shortened when the prompt is too long.
    """
    token = fence_token(template)

    def fenced(letter: str, answer: str) -> str:
        return f"<<{token} {letter}>>\n{neutralised(answer, token, control).strip()}\n<</{token} {letter}>>"

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
    body = neutralised(query, token, control).strip()
    if style == "chat":
        return Prompt("chat", (("user", content),), body)
    return Prompt("completion", (("text", content + ("\n\nReasoning:" if form == "text" else "")),), body)


def fence_token(template: JudgeTemplate) -> str:
    """Eight characters that look random and depend on the template alone, never on what is judged."""
    return hashlib.sha256(f"fence {template.hash}".encode()).hexdigest()[:8]


def neutralised(text: str, token: str, control: Sequence[str] = ()) -> str:
    """`text` with the fence's token and the control tokens of chat models broken up, and no beginning of a verdict.

    `control` are further tokens, those of the judge's own tokenizer. Characters that a reader may take for others (full-width and
    mathematical letters, Cyrillic ones of the same look) count as these, and invisible ones as absent.
    """
    text = text.replace("\x00", "")
    pattern = re.compile(re.escape(token), re.IGNORECASE)
    while pattern.search(text):  # again, because occurrences may overlap
        text = pattern.sub(lambda match: f"{match.group()[:4]}-{match.group()[4:]}", text)
    if own := sorted((one for one in control if len(one) > 2 and one.strip() == one), key=len, reverse=True):
        known = re.compile("|".join(map(re.escape, own)))
        text = known.sub(lambda match: f"{match.group()[:1]} {match.group()[1:]}", text)
    text = _broken(text, _CONTROL, lambda match: (match.end(), match.end(), " "))
    return _broken(text, _VERDICT_WORD, lambda match: (match.end() - 1, match.end(), " -"))


def _broken(text: str, pattern: re.Pattern[str], cut: Callable[[re.Match[str]], tuple[int, int, str]]) -> str:
    """`text` with the part that `cut` names (start, end, what stands there instead) replaced at each match in its plain form."""
    plain, places = _plain(text)
    parts, end = [], 0
    for match in pattern.finditer(plain):
        start, stop, instead = cut(match)
        at, to = places[start], places[stop]
        parts += [text[end:at], instead]
        end = max(to, at)
    return "".join([*parts, text[end:]])


def _plain(text: str) -> tuple[str, Sequence[int]]:
    """`text` in the characters that it looks like, and where each of them, and the end, stands in it."""
    if text.isascii():
        return text, range(len(text) + 1)
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        if character.isascii():
            shown = character
        elif unicodedata.category(character) in ("Cf", "Mn", "Me"):
            continue
        else:
            shown = unicodedata.normalize("NFKC", character).translate(_LOOKS_LIKE)
        characters.append(shown)
        places += [place] * len(shown)
    return "".join(characters), [*places, len(text)]


_LOOKS_LIKE = str.maketrans("ѵѴеЕгԁсСіІтТνеΕιΙτΤ∶꞉ː։", "vVeErdcCiItTveEiItT::::")


# --- Reading ----------------------------------------------------------------------------------------------------------

_MARKUP = r"[*_`]{0,3}"
_QUOTE = r"[\"'“”‘’«»„]?"
_WORD = r"(?:\[\[(?:a|b|tie)\]\]|\[(?:a|b|tie)\]|\((?:a|b|tie)\)|(?:a|b|tie))"
_VERDICT = re.compile(
    rf"(?:#{{1,6}} )?{_QUOTE}{_MARKUP}(?:final )?verdict{_MARKUP} ?[:：] ?{_MARKUP} ?{_QUOTE}(?P<word>{_WORD})"
    rf"{_QUOTE}{_MARKUP}\.?{_MARKUP}{_QUOTE}",
    re.IGNORECASE | re.ASCII,
)
_LIKE_A_VERDICT = re.compile(r"[\s#*_`]{0,8}(?:final )?verdict\b", re.IGNORECASE)
# Lines that say nothing: a fence of code, a rule.
_DECORATION = re.compile(r"(?:`{3,}|~{3,})\w{0,20}|[-*_=]{3,}")
# Ends of a turn that a server left in the text.
_END = re.compile(
    r"(?:<[|｜][\w▁]{1,40}[|｜]>|</s>|<eos>|<end_of_turn>|<turn[|]>|\[[|]endofturn[|]\])\Z", re.IGNORECASE
)
_LONGEST_END = 48  # characters
_SAID: dict[str, Shown] = {"a": "first", "b": "second", "tie": "tie"}
_NAMED = re.compile(r"\b(?:a|b|tie)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:can['’]?t|can ?not|won['’]?t|will not|(?:unable|not able|not going|decline|refuse) to)"
    r" (?:help|assist|judge|compare|choose|decide|answer|comply|evaluate|rate|provide|engage|continue|do (?:that|this))"
    r"|^(?:i(?:['’]m| am) (?:very )?(?:sorry|afraid)\b|sorry\b|as an ai\b)",
    re.IGNORECASE,
)


def parse_verdict(text: str, *, truncated: bool = False) -> Shown | Unscored:
    """What the judge decided, read from its own text alone: the last line that says something must be a verdict line.

    A verdict line is ``Verdict: A``, ``Verdict: B`` or ``Verdict: tie`` in any case, with Markdown emphasis, quotation marks,
    brackets around the letter, ``Final`` before it or a full stop after it. Fences, rules and ends of a turn say nothing. An
    earlier verdict line that says otherwise makes it ambiguous. What stands before the end of a block of reasoning is not read.
    `truncated` says that the judge ran out of tokens: its last line may have gone on, so that it counts for nothing.
    """
    thought, answer, is_closed = split_reasoning(text)
    every = [" ".join(line.split()) for line in _without_ends(answer).splitlines() if line.strip()]
    lines = [line for line in every if not _DECORATION.fullmatch(line)]
    if truncated or not is_closed:
        return Unscored("truncated")
    if not lines:
        return Unscored("no_verdict" if thought else "empty")
    said = [_SAID[match.group("word").strip("[]()").lower()] for line in lines if (match := _VERDICT.fullmatch(line))]
    if _VERDICT.fullmatch(lines[-1]):
        return said[-1] if len(set(said)) == 1 else Unscored("ambiguous")
    if _LIKE_A_VERDICT.match(lines[-1]):
        named = {word.lower() for word in _NAMED.findall(lines[-1])}
        return Unscored("ambiguous" if len(named) > 1 else "unreadable_verdict")
    if said:
        return Unscored("verdict_not_last")
    return Unscored("refusal" if _REFUSAL.search(answer.strip()) else "no_verdict")


def _first_verdict_line(text: str) -> int | None:
    """Where the first verdict line of a continuation ends; None without one that is known to be whole."""
    end = 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        if _VERDICT.fullmatch(" ".join(line.split())) and line.splitlines()[0] != line:
            return end
    return None


def _without_ends(text: str) -> str:
    """`text` without the ends of a turn at its end."""
    text = text.rstrip()
    while end := _END.search(text, max(0, len(text) - _LONGEST_END)):
        text = text[: end.start()].rstrip()
    return text


def _unfenced(text: str) -> str:
    """What stands in the one fence of code that `text` consists of; `text` itself where it does not."""
    first, _, rest = text.strip().partition("\n")
    inside, _, last = rest.rpartition("\n")
    fence = re.match(r"(`{3,}|~{3,})[\w-]{0,20}\s*\Z", first)
    return inside if fence and last.strip() == fence.group(1) else text


def parse_structured(text: str, *, truncated: bool = False) -> Shown | Unscored:
    """What a judge decided that was to write JSON of `VERDICT_SCHEMA`, whoever held it to that.

    The whole text, or all of it in one fence of code, must be one object with the text `reasoning` and `verdict`, which is A, B or
    tie; case, order and further fields do not matter. The field must stand there as such: escapes in its name are not read,
    because nothing under judgement can name it otherwise.
    """
    thought, answer, is_closed = split_reasoning(text)
    if truncated or not is_closed:
        return Unscored("truncated")
    answer = _unfenced(_without_ends(answer))
    if not answer.strip():
        return Unscored("no_verdict" if thought else "empty")
    try:
        found = json.loads(answer, object_pairs_hook=_Pairs, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return Unscored("refusal" if _REFUSAL.search(answer.strip()) else "not_json")
    if not isinstance(found, _Pairs):
        return Unscored("not_the_schema")
    fields = [(key.strip().lower(), value) for key, value in found if key.strip().lower() in ("reasoning", "verdict")]
    verdicts = [value for key, value in fields if key == "verdict"]
    if not verdicts or not _VERDICT_WORD.search(answer):
        return Unscored("no_verdict")
    if not all(isinstance(value, str) for _, value in fields):
        return Unscored("not_the_schema")
    said = {value.strip().lower() for value in verdicts}
    if len(said) > 1:
        return Unscored("ambiguous")
    if sorted(key for key, _ in fields) != ["reasoning", "verdict"]:
        return Unscored("not_the_schema")
    return _SAID.get(said.pop(), Unscored("unreadable_verdict"))


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
