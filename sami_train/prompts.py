"""Prompt templates: how principles and a query become what a model reads.

A template is a YAML file with one form per style: ``completion`` (text that a base model continues) and ``chat`` (messages
that a chat template renders). The placeholders are ``{principles}`` and ``{query}``; everything else is taken literally.
With ``extends: NAME`` a file says only what differs from another one, beside it or shipped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sami_train.errors import UserError, nearest
from sami_train.yamlfile import LinedDocument, all_problems, read_yaml

Style = Literal["completion", "chat"]
FOLDER = Path(__file__).resolve().parent / "prompts"
BODY = "\x00body\x00"
"""Stands in a message where the body goes; no text that is put into a prompt can contain it."""


@dataclass(frozen=True)
class Prompt:
    """What a model is given: one text (style completion) or messages (style chat).

    `body` is the one stretch that may be shortened when the prompt is too long: the query or the post, never the principles.
    `prefill` is the end of a completion's text that belongs to the response already.
    """

    style: Style
    messages: tuple[tuple[str, str], ...]
    body: str = ""
    prefill: str = ""

    @property
    def text(self) -> str:
        """The whole text of a completion prompt; for chat, the contents one after another (for hashing and display)."""
        return "\n\n".join(content.replace(BODY, self.body) for _, content in self.messages)

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages as the chat interfaces take them."""
        return [{"role": role, "content": content.replace(BODY, self.body)} for role, content in self.messages]

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps([self.style, self.chat], ensure_ascii=False).encode()).hexdigest()[:32]

    @property
    def frame(self) -> str:
        """All that the prompt says beside its query: worked examples, principles, and the words around them."""
        return self.without_prefill().with_body("").text

    def with_body(self, body: str) -> Prompt:
        return replace(self, body=body)

    def without_prefill(self) -> Prompt:
        """The prompt that the whole response follows, what was put in front of it included."""
        if not self.prefill:
            return self
        ((role, text),) = self.messages
        return replace(self, messages=((role, text.removesuffix(self.prefill)),), prefill="")


Stop = Annotated[str, Field(min_length=1)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: str


class _Completion(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    text: str
    example: str = ""
    stop: tuple[Stop, ...] = ()
    prefill: str | None = Field(default=None, min_length=1)
    """How every response begins: sampling goes on from it, and it belongs to the response. A token must end before it."""


class _Chat(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    messages: tuple[_Message, ...] = Field(min_length=1)
    stop: tuple[Stop, ...] = ()


class _Reasoning(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    completion: _Completion
    chat: _Chat
    marker: str = Field(min_length=1)
    answer_stop: tuple[Stop, ...] | None = None
    """The strings at which the answer ends, where the reasoning before it may go on over them."""


class Template(BaseModel):
    """A prompt template file. `example` is a worked example that stands before the text when sampling, if it is wanted.

    `reasoning` is the form that asks for reasoning before the answer; the answer follows its `marker`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    task: Literal["dialogue", "summarization"]
    description: str = ""
    completion: _Completion
    chat: _Chat
    reasoning: _Reasoning | None = None
    number_one: bool | None = None
    """Whether a single principle is numbered too, as the paper's prompts do; by default it is not."""

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()[:32]

    def stop(self, style: Style, *, reasoning: bool = False) -> tuple[str, ...]:
        """The strings at which a response ends."""
        form = self._form(reasoning)
        return form.completion.stop if style == "completion" else form.chat.stop

    def labels(self, style: Style, *, reasoning: bool = False) -> tuple[str, ...]:
        """What begins a line of the prompt and announces what follows, such as ``Post:``; the response's own label last.

        With reasoning, that is the marker. A chat without reasoning has no label for the response.
        """
        form = self._form(reasoning)
        texts = [form.completion.text] if style == "completion" else [m.content for m in form.chat.messages]
        starts = [line.partition("{")[0].strip() for text in texts for line in text.splitlines()]
        labels = dict.fromkeys(start for start in starts if start.endswith(":"))
        return (*labels, self.answer_marker().strip()) if reasoning else tuple(labels)

    def run_on(self, text: str, principles: int, style: Style, *, reasoning: bool = False) -> int | None:
        """Where a response runs on with its own prompt, in characters; None where it does not.

        It does where a line begins with one of the prompt's labels, or with the item that would come next in the prompt's
        numbered list of `principles`. A list that the response itself has counted up to there is its own. The label after
        which the response was to begin may open it.
        """
        labels = self.labels(style, reasoning=reasoning)
        at_start = labels[:-1] if style == "completion" or reasoning else labels
        is_list = principles > 1 or bool(self.number_one)
        counted: set[int] = set()
        start = 0
        for line in text.splitlines(keepends=True):
            body = line.lstrip()
            if body.startswith(labels if start else at_start):
                return start
            if item := _ITEM.match(body):
                number = int(item.group(1))
                if is_list and number == principles + 1 and principles not in counted:
                    return start
                counted.add(number)
            start += len(line)
        return None

    def answer_marker(self) -> str:
        """The string that the answer follows when reasoning comes first."""
        return self._reasoning().marker

    def answer_bounds(self) -> list[str]:
        """The marker that the answer follows when reasoning comes first, and the strings at which it ends."""
        return [self.answer_marker(), *(self._reasoning().answer_stop or ())]

    def answer_end(self, answer: str) -> int | None:
        """Where an answer after reasoning ends before the text does, in characters; None where it goes to the text's end."""
        ends = [place for stop in self._reasoning().answer_stop or () if (place := answer.find(stop)) >= 0]
        return min(ends, default=None)

    def split_answer(self, text: str) -> tuple[str, str]:
        """Reasoning and answer in a text that was generated with reasoning first; without the marker there is no answer."""
        reasoning, _, answer = text.partition(self.answer_marker())
        return reasoning.strip(), answer.strip()

    def _form(self, reasoning: bool) -> Template | _Reasoning:
        return self._reasoning() if reasoning else self

    def _reasoning(self) -> _Reasoning:
        if self.reasoning is None:
            raise UserError(
                f"the prompt template '{self.name}' has no form 'reasoning'; add one, or set reasoning: false"
            )
        return self.reasoning

    def render(
        self,
        principles: Sequence[str],
        query: str,
        style: Style,
        *,
        example: bool = False,
        reasoning: bool = False,
        prefill: bool = False,
    ) -> Prompt:
        """The prompt for a query under the given principle sentences, in order: several are numbered, one is not.

        A numbered list of one invites the model to go on with the list. With `prefill` a completion ends with the template's
        beginning of a response, if it has one: for sampling, not for training.

        Raises:
            UserError: reasoning is wanted and the template has no such form.
        """
        form = self._form(reasoning)
        lines = listed(principles, number_one=bool(self.number_one))
        fill = {"{principles}": lines, "{query}": BODY}

        def filled(text: str) -> str:
            return re.sub(r"\{principles\}|\{query\}", lambda match: fill[match.group()], text)

        body = query.replace("\x00", "")
        if style == "completion":
            head = form.completion.example if example else ""
            begun = (form.completion.prefill or "") if prefill else ""
            return Prompt("completion", (("text", head + filled(form.completion.text).rstrip() + begun),), body, begun)
        return Prompt("chat", tuple((m.role, filled(m.content).strip()) for m in form.chat.messages), body)


_ITEM = re.compile(r"(\d{1,3})[.)]\s")


def listed(principles: Sequence[str], *, number_one: bool = False) -> str:
    """Principle sentences as a prompt shows them: a numbered list, or one sentence as it is unless `number_one`."""
    if len(principles) == 1 and not number_one:
        return principles[0]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(principles, start=1))


def load_template(name_or_path: str | Path) -> Template:
    """A template by name (those shipped in this package) or by file. Raises UserError naming file, line and field."""
    document = read_yaml(_find(str(name_or_path)), what="prompt template")
    try:
        template = Template.model_validate(_with_parent(document, ()))
    except ValidationError as error:
        raise all_problems(error, document, Template) from None
    forms = {
        "completion.text": template.completion.text,
        "chat.messages": "\n".join(m.content for m in template.chat.messages),
    }
    if template.reasoning is not None:
        forms["reasoning.completion.text"] = template.reasoning.completion.text
        forms["reasoning.chat.messages"] = "\n".join(m.content for m in template.reasoning.chat.messages)
    for field, form in forms.items():
        for placeholder in ("{principles}", "{query}"):
            if form.count(placeholder) != 1:
                where = document.where(tuple(field.split(".")))
                raise UserError(
                    f"{where}: '{field}' needs the placeholder {placeholder} exactly once; it has {form.count(placeholder)}"
                )
    return template


def list_templates() -> list[str]:
    """Names of the shipped templates."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    if name_or_path not in list_templates():
        raise UserError(
            f"there is no prompt template named '{name_or_path}'; {nearest(name_or_path, list_templates())}"
        )
    return FOLDER / f"{name_or_path}.yaml"


def _with_parent(document: LinedDocument, children: tuple[Path, ...]) -> Any:
    """The fields of a template file over those of the one that it `extends`, if any, form by form."""
    if not isinstance(document.data, dict) or "extends" not in document.data:
        return document.data
    fields = dict(document.data)
    parent = str(fields.pop("extends"))
    beside = document.path.parent / f"{parent}.yaml"
    file = beside if beside.is_file() else _find(parent)
    known = (*children, document.path.resolve())
    if file.resolve() in known:
        raise UserError(f"{document.where(('extends',))}: the prompt template extends itself; name another one")
    return _merged(_with_parent(read_yaml(file, what="prompt template"), known), fields)


def _merged(under: Any, over: Any) -> Any:
    """`over` in the place of `under`; of two mappings field by field."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return {**under, **{key: _merged(under.get(key), value) for key, value in over.items()}}
