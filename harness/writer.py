"""Principles written by a model: what it is asked, how its answers are read, and what is refused.

A model is asked for names, one per line, and then for one principle at a time on two labelled lines. Whatever it answers
is untrusted: names become slugs, sentences are checked one by one, and nothing of an answer chooses a path or stands in
a later prompt but its slugs. What is refused is asked for again with the reason, and left out with that reason in the end.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.models.base import Request, Sampling
from harness.models.families import for_model
from harness.models.reasoning import without_reasoning
from harness.store import fingerprint
from harness.store.files import make_folder, writing
from sami_train.constitutions import (
    NEAR_DUPLICATE,
    Principle,
    PrincipleSet,
    Split,
    TaskKind,
    findings,
    nearest_sides,
    similarity,
)
from sami_train.errors import UserError, nearest
from sami_train.files import append_rows, read_rows
from sami_train.prompts import Prompt, Style
from sami_train.text import counted, printable
from sami_train.yamlfile import Dumper, all_problems, read_yaml

if TYPE_CHECKING:
    from harness.models.base import Backend, Completion

Reason = Literal[
    "request_failed", "no_definition", "no_antithesis", "out_of_order", "cut_off", "unreadable_characters", "markup",
    "several_sentences", "question", "too_short", "too_long", "copy", "unlike_lengths", "copies_example",
    "near_duplicate", "held_out_leak", "no_name",
]  # fmt: skip
"""Why an answer was refused, or a principle left out."""

TEMPLATE = Path(__file__).resolve().parent / "writer_prompts" / "principles.yaml"
MAX_WORDS = 60
MAX_CHARACTERS = 500
"""Of a sentence."""
MAX_NAME = 40
"""Characters of a name."""
MAX_NAME_WORDS = 3
MAX_ANSWER = 20_000
"""Characters of an answer that are kept."""
MAX_PRINCIPLES = 500
MAX_PROMPT_TOKENS = 3000

_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class Refused(NamedTuple):
    """Why an answer is not taken: a word, and a sentence that also tells the model."""

    reason: Reason
    message: str


class Sides(NamedTuple):
    """The two sentences of an answer, each on one line and with its full stop."""

    definition: str
    antithesis: str


@dataclass(frozen=True)
class Assignment:
    """What is to be written: `n` principles, those named `given` among them, the last `held_out` of them held out.

    Raises UserError when the numbers do not fit together or a given name is no id.
    """

    tasks: tuple[TaskKind, ...]
    given: tuple[str, ...]
    n: int
    held_out: int = 0
    style: Style = "chat"
    seed: int = 0
    max_tries: int = 3
    temperature: float = 0.7
    max_new_tokens: int = 400

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in get_args(TaskKind):
                raise UserError(f"--task: there is no task '{task}'; {nearest(task, get_args(TaskKind))}")
        for name in self.given:
            if not _SLUG.fullmatch(name) or len(name) > MAX_NAME:
                hint = slug(name)[:MAX_NAME].strip("-")
                raise UserError(
                    f"--principles: '{name}' is no id of a principle; use a-z, 0-9 and '-', {MAX_NAME} characters at "
                    f"most{f', for example: {hint}' if hint else ''}"
                )
        if len(set(self.given)) < len(self.given):
            twice = next(name for name in self.given if self.given.count(name) > 1)
            raise UserError(f"--principles: '{twice}' stands twice; name each principle once")
        if not len(self.given) <= self.n <= MAX_PRINCIPLES or self.n < 1:
            raise UserError(
                f"--n is {self.n}, with {counted(len(self.given), 'principle')} named; "
                f"choose a number from {max(1, len(self.given))} to {MAX_PRINCIPLES}"
            )
        if not 0 <= self.held_out <= self.n:
            raise UserError(f"--held-out is {self.held_out}; at most all {self.n} principles can be held out")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}; choose a number from 0 to {2**32 - 1}")

    def splits(self, names: Sequence[str]) -> dict[str, Split]:
        """The split of each of `names` (the given ones first): the last ones that the model named are held out.

        Given names are held out, the last ones first, only as far as `n` leaves no others.
        """
        others = [name for name in names if name not in self.given]
        n_given = max(0, self.held_out - (self.n - len(self.given)))
        held = set(self.given[len(self.given) - n_given :])
        held |= set(others[max(0, len(others) - (self.held_out - n_given)) :])
        return {name: "held_out" if name in held else "learned" for name in names}

    def sampling(self, attempt: int, stop: tuple[str, ...]) -> Sampling:
        """How the answer of an attempt (0, 1, ...) is sampled: each with a seed of its own."""
        return Sampling(
            max_new_tokens=self.max_new_tokens,
            max_prompt_tokens=MAX_PROMPT_TOKENS,
            temperature=self.temperature,
            stop=stop,
            seed=self.seed + attempt,
        )


# --- Asking -----------------------------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Kind(_Part):
    texts: str
    sentence: str


class _Example(_Part):
    name: str
    definition: str
    antithesis: str


class _Form(_Part):
    chat: str
    turn: str
    completion: str
    stop: tuple[str, ...] = ()


class WriterTemplate(_Part):
    """The prompt file: what texts are called per kind of task, worked examples, and the forms of the two questions."""

    name: str
    description: str = ""
    kinds: dict[Literal["dialogue", "summarization", "both"], _Kind]
    examples: tuple[_Example, ...] = Field(min_length=1)
    names: _Form
    principle: _Form

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]

    def kind(self, tasks: Sequence[TaskKind]) -> _Kind:
        """How the texts of these tasks are spoken of."""
        return self.kinds[tasks[0]] if len(set(tasks)) == 1 else self.kinds["both"]

    def sides_of_examples(self, tasks: Sequence[TaskKind]) -> list[Sides]:
        """The worked examples as they stand in a prompt."""
        sentence = self.kind(tasks).sentence
        return [
            Sides(e.definition.replace("{sentence}", sentence), e.antithesis.replace("{sentence}", sentence))
            for e in self.examples
        ]

    def ask_names(self, tasks: Sequence[TaskKind], n: int, taken: Sequence[str], style: Style, refusal: str) -> Prompt:
        """Ask for `n` names other than `taken`."""
        examples = [example.name for example in self.examples]
        join = ", " if style == "chat" else "\n- "
        fill = {"n": str(n), "taken": join.join(dict.fromkeys([*examples, *taken])), "refusal": _told(refusal)}
        if style == "completion":
            return Prompt(style, (("text", self._filled(self.names.completion, tasks, fill)),))
        before = (("user", self._filled(self.names.chat, tasks, fill)), ("assistant", "\n".join(examples)))
        return Prompt(style, (*before, ("user", self._filled(self.names.turn, tasks, fill))))

    def ask_principle(self, tasks: Sequence[TaskKind], name: str, style: Style, refusal: str) -> Prompt:
        """Ask for the two sides of one principle. An example of the same name is left out."""
        examples = [
            (example.name, f"Definition: {sides.definition}\nAntithesis: {sides.antithesis}")
            for example, sides in zip(self.examples, self.sides_of_examples(tasks), strict=True)
            if example.name != name
        ]
        if style == "completion":
            shown = "\n\n".join(f"Name: {other}\n{answer}" for other, answer in examples)
            return Prompt(
                style, (("text", self._filled(self.principle.completion, tasks, {"name": name, "examples": shown})),)
            )
        turns: list[tuple[str, str]] = []
        for other, answer in [*examples, (name, "")]:
            fill = {"name": other, "refusal": "" if answer else _told(refusal)}
            turns += [("user", self._filled(self.principle.turn, tasks, fill)), ("assistant", answer)]
        first = f"{self._filled(self.principle.chat, tasks, {})}\n\n{turns[0][1]}"
        return Prompt(style, (("user", first), *turns[1:-1]))

    def _filled(self, text: str, tasks: Sequence[TaskKind], fill: dict[str, str]) -> str:
        values = {**self.kind(tasks).model_dump(), **fill}
        return re.sub(r"\{(\w+)\}", lambda match: values.get(match.group(1), match.group()), text).strip()


def _told(refusal: str) -> str:
    return f"(Your last answer to this was refused: {refusal}.)" if refusal else ""


def load_writer_template(path: Path = TEMPLATE) -> WriterTemplate:
    """Read the prompt file. Raises UserError naming file, line and field."""
    document = read_yaml(path, what="prompt file")
    try:
        return WriterTemplate.model_validate(document.data)
    except ValidationError as error:
        raise all_problems(error, document, WriterTemplate) from None


class Reply(NamedTuple):
    """What came back for a question. `reused`: it was made by an earlier run of the same command."""

    text: str
    truncated: bool = False
    error: str | None = None
    reused: bool = False


class ModelUnusableError(UserError):
    """The model cannot be asked at all (no connection, no such model): asking for more is of no use."""


@dataclass
class Answers:
    """Asks a model, and keeps every answer in `file` as soon as it is there, so that no question is asked twice.

    `identity` is what makes the model this model (path, weights, address); the back end is opened when the first
    question comes up whose answer is not kept yet.
    """

    file: Path
    identity: dict[str, Any]
    open_backend: Callable[[], Backend]
    _kept: dict[str, Reply] | None = None
    _backend: Backend | None = None

    def ask(self, prompt: Prompt, sampling: Sampling) -> Reply:
        """The answer to a prompt: for a completion prompt, the line that it continues is part of it.

        Raises:
            ModelUnusableError: the request failed in a way that every other one will.
            UserError: the model cannot be loaded, or the answer cannot be kept.
        """
        if self._kept is None:
            self._kept = _kept_replies(self.file)
        key = self._key(prompt, sampling)
        if key in self._kept:
            return self._kept[key]
        made = self._generate(prompt, sampling)
        if made.error is not None:
            error = printable(" ".join(made.error.split()))
            if _is_hopeless(error):
                raise ModelUnusableError(
                    f"the model gave no answer ({error}); put that right and run the same command again, "
                    "the answers so far are kept"
                )
            return Reply("", error=error)
        text = _with_opening(prompt, made.text)[:MAX_ANSWER]
        row = {"key": key, "text": text, "truncated": made.finish_reason == "length", "prompt_hash": prompt.hash}
        with writing(self.file):
            make_folder(self.file.parent)
        append_rows(self.file, [row])
        self._kept[key] = Reply(text, made.finish_reason == "length", reused=True)
        return self._kept[key]._replace(reused=False)

    def forget(self) -> None:
        """Delete the file, once what was written from it is safe."""
        with writing(self.file):
            self.file.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the model, if it was opened."""
        if self._backend is not None:
            self._backend.close()

    def _key(self, prompt: Prompt, sampling: Sampling) -> str:
        return fingerprint([self.identity, prompt.hash, {**sampling.settings, "stop": list(sampling.stop)}])

    def _generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        if self._backend is None:
            self._backend = self.open_backend()
        asked = for_model(sampling, self.identity.get("path"))
        made = next(c for batch in self._backend.generate([Request("0", prompt)], asked) for c in batch)
        return without_reasoning(made)


def _kept_replies(file: Path) -> dict[str, Reply]:
    """The answers of earlier runs by key; rows of another shape are passed over."""
    return {
        row["key"]: Reply(row["text"][:MAX_ANSWER], row.get("truncated") is True, reused=True)
        for row in read_rows(file)
        if isinstance(row, dict) and isinstance(row.get("key"), str) and isinstance(row.get("text"), str)
    }


def _is_hopeless(error: str) -> bool:
    """Whether a failed request (``reason: message``) says that others will fail as well."""
    return error.startswith(("rate_limit:", "timeout:", "connection:", "server_error:", "refused_request: HTTP"))


def _with_opening(prompt: Prompt, text: str) -> str:
    """A continuation together with the line that it continues."""
    if prompt.style == "chat":
        return text
    opening = prompt.text.rpartition("\n")[2]
    return opening + (text if text[:1].isspace() else f" {text}")


# --- Reading ----------------------------------------------------------------------------------------------------------

_LINE_END = re.compile(r"\r\n|\r|\n")  # and no other character: str.splitlines would take control characters for ends
_LABELLED = re.compile(
    r"[ \t>#*_\-•\d.)]{0,12}(definition|antithesis)[*_ \t]{0,6}[:：][*_ \t]{0,6}(.*)", re.IGNORECASE | re.DOTALL
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_CLOSED = re.compile(r"[.!?][\"'”’)]*$")
_NEW_SENTENCE = re.compile(r"[.!?][\"'”’)]*(?=\s+[\"'“‘(]?[A-Z0-9])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|mr|mrs|ms|dr|st|no)|\b[a-z])\.$", re.IGNORECASE)
_MARKUP = re.compile(r"[<>{}\[\]|\\`*]|__|https?:")
_BULLET = re.compile(r"^[\s>*•+-]*(?:\d{1,3}[.):]\s*)?[\s*_\"'“`]*")
_AFTER_NAME = re.compile(r"\s*(?:[:：(–—]|\s-\s)")


def parse_answer(text: str, *, truncated: bool = False) -> Sides | Refused:
    """The two sentences of an answer: its last line ``Antithesis: ...`` and the last line ``Definition: ...`` before it.

    Lines without a label are passed over, unless a sentence seems to go on there. `truncated` says that the model ran
    out of tokens. The sentences are as they stand, without Markdown emphasis and quotes around the whole of them; a full
    stop is added where the line has none.
    """
    lines = [line.strip() for line in _LINE_END.split(text)]
    while lines and not lines[-1]:
        lines.pop()
    labelled: dict[int, tuple[str, str]] = {}
    for number, line in enumerate(lines):
        if match := _LABELLED.fullmatch(line):
            labelled[number] = (match.group(1).lower(), _bare(match.group(2)))
    places = {side: [n for n, (label, _) in labelled.items() if label == side] for side in ("definition", "antithesis")}
    for side, article in (("definition", "a"), ("antithesis", "an")):
        if not any(labelled[n][1] for n in places[side]):
            reason: Reason = "no_definition" if side == "definition" else "no_antithesis"
            return Refused(reason, f"it has no line with {article} {side} after '{side.capitalize()}:'")
    last = places["antithesis"][-1]
    before = [n for n in places["definition"] if n < last]
    if not before or places["definition"][-1] > last:
        return Refused("out_of_order", "its last line with a label must be 'Antithesis:', after 'Definition:'")
    found = []
    for number in (before[-1], last):
        label, sentence = labelled[number]
        follows = lines[number + 1] if number + 1 < len(lines) else ""
        goes_on = (truncated and number == len(lines) - 1) or (follows and number + 1 not in labelled)
        if not sentence or sentence[-1] in ",;:-–—" or (not _CLOSED.search(sentence) and goes_on):
            return Refused("cut_off", f"its {label} does not end on the line on which it begins")
        found.append(sentence if _CLOSED.search(sentence) else f"{sentence}.")
    return Sides(*found)


def _bare(sentence: str) -> str:
    """A sentence without emphasis or quotes around the whole of it."""
    bare = " ".join(part for part in re.split(r"[ \t]+", sentence.strip(" \t*_")) if part)
    for left, right in ('""', "“”", "''", "‘’"):
        if len(bare) > 1 and bare[0] == left and bare[-1] == right and left not in bare[1:-1]:
            return bare[1:-1].strip()
    return bare


def check_sentence(sentence: str, opening: str = "") -> Refused | None:
    """What is wrong with one sentence by itself. `opening` (``The summary should``) counts for nothing as its content."""
    if len(sentence) > MAX_CHARACTERS or len(_WORD.findall(sentence)) > MAX_WORDS:
        return Refused("too_long", f"a sentence may have {MAX_WORDS} words and {MAX_CHARACTERS} characters at most")
    if any(unicodedata.category(c) in _UNREADABLE or c == "\N{REPLACEMENT CHARACTER}" for c in sentence):
        return Refused("unreadable_characters", "it contains characters that cannot be shown")
    if _MARKUP.search(sentence):
        return Refused("markup", "a sentence must be plain words, without Markdown, brackets, placeholders or links")
    if len(_WORD.findall(sentence)) < 3 or len(_WORD.findall(sentence.removeprefix(opening))) < 2:
        return Refused("too_short", "both the definition and the antithesis must be full sentences")
    if _n_sentences(sentence) > 1:
        return Refused("several_sentences", "the definition and the antithesis must be one sentence each")
    if sentence.rstrip("\"'”’)").endswith("?"):
        return Refused("question", "the definition and the antithesis must be statements, not questions")
    return None


_UNREADABLE = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def _n_sentences(text: str) -> int:
    ends = (text[: match.end()].rstrip("\"'”’)") for match in _NEW_SENTENCE.finditer(text))
    return 1 + sum(not _ABBREVIATION.search(end) for end in ends)


def check_principle(one: Principle, accepted: Sequence[Principle], examples: Sequence[Sides] = ()) -> Refused | None:
    """What is wrong with a principle whose sentences are sound, by itself or beside the `accepted` ones."""
    sides = Sides(one.definition, one.antithesis)
    for example in examples:
        if nearest_sides(sides, example) >= NEAR_DUPLICATE:
            return Refused("copies_example", "it repeats an example instead of describing the principle asked for")
    if similarity(*sides) >= NEAR_DUPLICATE:
        return Refused("copy", "the antithesis must say the contrary in words of its own, not repeat the definition")
    for other in accepted:
        # The sides of a learned principle are both trained on, so a held-out one must be unlike either.
        if nearest_sides(sides, other) >= NEAR_DUPLICATE:
            reason: Reason = "near_duplicate" if one.split == other.split else "held_out_leak"
            return Refused(reason, f"it says nearly the same as the principle '{other.id}'")
    for found in findings(PrincipleSet(name="draft", principles=(*accepted, one))):
        if one.id in found.ids:
            return Refused(found.kind, found.message.removeprefix(f"{one.id}: "))
    return None


ALIKE = 0.5
"""Similarity of a principle's two sides from which a reader is told to look."""


def warnings_for(one: Principle, opening: str) -> tuple[str, ...]:
    """What a reader should look at in an accepted principle: no program can tell whether its sides are contraries."""
    sides = {"definition": one.definition, "antithesis": one.antithesis}
    found = [f"the {side} does not begin with '{opening}'" for side, s in sides.items() if not s.startswith(opening)]
    first, second = (_words(sentence.removeprefix(opening)) for sentence in sides.values())
    lead = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    if lead >= 3 or similarity(*sides.values()) >= ALIKE:
        found.append("both sides say much the same")
    if set(one.id.split("-")) <= set(second):
        found.append(f"the antithesis says '{one.id}' itself")
    return tuple(found)


def _words(sentence: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(sentence)]


def parse_names(text: str, taken: Sequence[str]) -> list[str]:
    """The names in an answer, one per line, as slugs: none that is taken, none twice, no headings, no sentences."""
    found: dict[str, None] = {}
    for line in _LINE_END.split(text):
        bare = _BULLET.sub("", line).strip().rstrip("*_.,;\"'”`")
        if bare.endswith((":", "：")) or not bare.isprintable():
            continue
        name = slug(_AFTER_NAME.split(bare, maxsplit=1)[0])
        is_name = 3 <= len(name) <= MAX_NAME and name.count("-") < MAX_NAME_WORDS and re.search("[a-z]", name)
        if is_name and name not in taken:
            found[name] = None
    return list(found)


def slug(text: str) -> str:
    """`text` in a-z, 0-9 and single hyphens; empty when nothing of it is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


# --- Writing ----------------------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """A principle that was accepted, after how many tries, and what a reader should look at."""

    principle: Principle
    tries: int
    warnings: tuple[str, ...] = ()


class LeftOut(NamedTuple):
    """A principle that was not: its id (empty when not even a name was found), the last reason, the last answer."""

    id: str
    split: Split
    refused: Refused
    tries: int
    answer: str = ""


@dataclass
class Draft:
    """What was written. `n_answers` counts the answers read, `n_reused` those of them from an earlier run."""

    written: list[Written] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    n_answers: int = 0
    n_reused: int = 0

    @property
    def principles(self) -> tuple[Principle, ...]:
        return tuple(written.principle for written in self.written)


def write_principles(
    assignment: Assignment,
    template: WriterTemplate,
    ask: Callable[[Prompt, Sampling], Reply],
    say: Callable[[str], None] = lambda _: None,
) -> Draft:
    """Ask for everything that the assignment wants; what is refused `max_tries` times is left out.

    Args:
        assignment: what to write.
        template: the prompts.
        ask: asks the model, see `Answers.ask`; what it raises is raised here.
        say: told about each answer, in a line.
    """
    return _Writer(assignment, template, ask, say).draft()


@dataclass
class _Writer:
    assignment: Assignment
    template: WriterTemplate
    ask: Callable[[Prompt, Sampling], Reply]
    say: Callable[[str], None]
    made: Draft = field(default_factory=Draft)

    def draft(self) -> Draft:
        """Names, then the learned principles, then the held-out ones, so that these are compared with all of those."""
        wanted, order = self.assignment, ("learned", "held_out")
        names = self._names()
        splits = wanted.splits(names)
        if held := [name for name in names if splits[name] == "held_out"]:
            self.say(f"held out: {', '.join(held)}")
        for name in sorted(names, key=lambda name: order.index(splits[name])):
            self._write(name, splits[name])
        n_held = sum(split == "held_out" for split in splits.values())
        for number in range(wanted.n - len(names)):
            split: Split = "held_out" if number < wanted.held_out - n_held else "learned"
            refused = Refused("no_name", "the model found no further name for a principle")
            self.made.left_out.append(LeftOut("", split, refused, wanted.max_tries))
        return self.made

    def _names(self) -> list[str]:
        """The given names and those that the model adds, fewer than wanted when it finds no more."""
        wanted = self.assignment
        names, refusal = list(wanted.given), ""
        stop, examples = self._stop(self.template.names), [example.name for example in self.template.examples]
        for attempt in range(wanted.max_tries):
            missing = wanted.n - len(names)
            if not missing:
                break
            prompt = self.template.ask_names(wanted.tasks, missing, names, wanted.style, refusal)
            reply = self._ask(prompt, wanted.sampling(attempt, stop))
            found = parse_names(reply.text, [*names, *examples])[:missing]
            names.extend(found)
            self.say(f"names: {', '.join(found) or 'none'}{' (kept from before)' if reply.reused else ''}")
            refusal = f"it had only {len(found)} of {missing} new names, each on a line of its own"
        return names

    def _write(self, name: str, split: Split) -> None:
        wanted = self.assignment
        stop = self._stop(self.template.principle)
        refused, text = Refused("request_failed", ""), ""
        for attempt in range(wanted.max_tries):
            refusal = "" if refused.reason == "request_failed" else refused.message  # a provider's words stay out of it
            prompt = self.template.ask_principle(wanted.tasks, name, wanted.style, refusal)
            reply = self._ask(prompt, wanted.sampling(attempt, stop))
            found, text = self._read(name, split, reply), reply.text
            said = "accepted" if isinstance(found, Principle) else f"refused, {found.reason}"
            self.say(f"{name}: try {attempt + 1}: {said}{' (kept from before)' if reply.reused else ''}")
            if isinstance(found, Principle):
                opening = self.template.kind(wanted.tasks).sentence
                self.made.written.append(Written(found, attempt + 1, warnings_for(found, opening)))
                return
            refused = found
        self.made.left_out.append(LeftOut(name, split, refused, wanted.max_tries, text))

    def _read(self, name: str, split: Split, reply: Reply) -> Principle | Refused:
        """The principle in a reply."""
        if reply.error is not None:
            return Refused("request_failed", f"there was no answer ({reply.error})")
        sides = parse_answer(reply.text, truncated=reply.truncated)
        if isinstance(sides, Refused):
            return sides
        opening = self.template.kind(self.assignment.tasks).sentence
        for sentence in sides:
            if refused := check_sentence(sentence, opening):
                return refused
        principle = Principle(
            id=name, definition=sides.definition, antithesis=sides.antithesis, split=split, task=self.assignment.tasks
        )
        examples = self.template.sides_of_examples(self.assignment.tasks)
        return check_principle(principle, self.made.principles, examples) or principle

    def _ask(self, prompt: Prompt, sampling: Sampling) -> Reply:
        reply = self.ask(prompt, sampling)
        self.made.n_answers += 1
        self.made.n_reused += reply.reused
        return reply

    def _stop(self, form: _Form) -> tuple[str, ...]:
        """Where an answer ends; an answer in a chat ends by itself."""
        return form.stop if self.assignment.style == "completion" else ()


def build_set(
    name: str, draft: Draft, assignment: Assignment, template: WriterTemplate, *, model: str, date: str
) -> PrincipleSet:
    """The accepted principles as a set that says where it comes from. At least one must have been accepted."""
    n_held = sum(p.split == "held_out" for p in draft.principles)
    texts = template.kind(assignment.tasks).texts
    given = f"the names {', '.join(assignment.given)} were given" if assignment.given else "no names were given"
    source = (
        f"Written by the model {model} ({assignment.style} prompts) on {date} with 'harness principles write'; {given}. "
        f"Prompt file {template.name} ({template.hash}), seed {assignment.seed}, temperature {assignment.temperature:g}, "
        f"{draft.n_answers} answers, at most {assignment.max_tries} tries per principle."
    )
    n = len(draft.principles)
    held = f"{n_held} of them held out, " if n_held else ""
    return PrincipleSet(
        name=name,
        description=f"{counted(n, 'principle')} for {texts}, {held}written by a model.",
        source=source,
        principles=tuple(p.model_copy(update={"source": source}) for p in draft.principles),
    )


def to_yaml(principle_set: PrincipleSet) -> str:
    """A set as the text of its file; loaded again, it is the same set (checks are not written)."""
    data = principle_set.model_dump(mode="json", include={"name", "version", "description", "source"})
    data["principles"] = [
        {
            "id": p.id,
            "task": p.task[0] if len(p.task) == 1 else list(p.task),
            "split": p.split,
            "definition": p.definition,
            "antithesis": p.antithesis,
        }
        for p in principle_set.principles
    ]
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
