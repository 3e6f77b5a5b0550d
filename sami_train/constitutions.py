"""Principle sets as data, and the constitutions drawn from them.

A principle has a definition and an antithesis. A constitution takes, for each of its principles, one of the two; its
opposite takes the other one everywhere. Both the trainer (contrasts) and the harness (evaluation) sample from here.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sami_train.errors import UserError, nearest
from sami_train.text import expanded
from sami_train.yamlfile import NAME_PATTERN, LinedDocument, all_problems, read_yaml

TaskKind = Literal["dialogue", "summarization"]


def _as_split(value: object) -> object:
    return "held_out" if value == "held-out" else value  # as it is printed


Split = Annotated[Literal["learned", "held_out"], BeforeValidator(_as_split)]
Polarity = Literal["principle", "antithesis", "both", "random"]


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _as_check(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and "options" not in value:
        return {"name": value.get("name"), "options": {k: v for k, v in value.items() if k != "name"}}
    return value


class Check(BaseModel):
    """A program that scores how far a text follows a principle: its registered name and its options."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Principle(BaseModel):
    """One principle: what a response should be (definition) and the contrary (antithesis), each a sentence."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str = Field(pattern=NAME_PATTERN)
    definition: str = Field(min_length=1)
    antithesis: str = Field(min_length=1)
    split: Split
    task: Annotated[tuple[TaskKind, ...], BeforeValidator(_as_tuple)] = Field(min_length=1)
    check: Annotated[Check | None, BeforeValidator(_as_check)] = None
    source: str = ""


class PrincipleSet(BaseModel):
    """A named list of principles, each learned (used in training) or held out (never seen in training)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=NAME_PATTERN)
    version: int = 1
    description: str = ""
    source: str = ""
    principles: tuple[Principle, ...] = Field(min_length=1)
    file: Path = Path()

    @model_validator(mode="after")
    def _unique_ids(self) -> PrincipleSet:
        ids = [principle.id for principle in self.principles]
        twice = ", ".join(f"'{name}'" for name in dict.fromkeys(name for name in ids if ids.count(name) > 1))
        if twice:
            raise ValueError(f"the principle id {twice} is listed twice; give each principle its own id")
        return self

    @property
    def hash(self) -> str:
        """Hash of everything but the file's place: the same principles give the same hash wherever they lie."""
        content = json.dumps(self.model_dump(mode="json", exclude={"file"}), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def select(self, task: str, split: str | None = None) -> tuple[Principle, ...]:
        """The principles that apply to `task` (a kind: dialogue or summarization), of one split or of both."""
        return tuple(p for p in self.principles if task in p.task and split in (None, p.split))


class Element(NamedTuple):
    """A principle inside a constitution: taken by its definition (follows) or by its antithesis."""

    principle: Principle
    follows: bool

    @property
    def text(self) -> str:
        return self.principle.definition if self.follows else self.principle.antithesis


class Constitution(NamedTuple):
    """An ordered choice of principles and of their sides. Hashable; the order is the order the model sees."""

    elements: tuple[Element, ...]

    @property
    def id(self) -> str:
        """For example ``ends-with-question+.short-``: principle ids, + for the definition, - for the antithesis."""
        return ".".join(f"{e.principle.id}{'+' if e.follows else '-'}" for e in self.elements)

    def opposite(self) -> Constitution:
        """The element-wise opposite: every definition becomes its antithesis and the other way round."""
        return Constitution(tuple(Element(e.principle, not e.follows) for e in self.elements))

    def lines(self) -> list[str]:
        """The sentences, in order, as they are put before a model."""
        return [e.text for e in self.elements]

    def sentences(self) -> list[str]:
        """Both sides of every principle: what a response must not copy."""
        return [text for e in self.elements for text in (e.principle.definition, e.principle.antithesis)]

    def shuffled(self, rng: random.Random) -> Constitution:
        """The same elements in a random order."""
        return Constitution(tuple(rng.sample(self.elements, len(self.elements))))


def distinct(principles: Iterable[Principle]) -> list[Principle]:
    """The principles of several sets, one that is in two of them once.

    Raises:
        UserError: two have one id and different texts.
    """
    found: dict[str, Principle] = {}
    for principle in principles:
        known = found.setdefault(principle.id, principle)
        if (known.definition, known.antithesis) != (principle.definition, principle.antithesis):
            raise UserError(
                f"the principle id '{principle.id}' has different texts in two of the sets; rename one of them"
            )
    return list(found.values())


def sample_constitutions(
    principles: Sequence[Principle],
    query_ids: Sequence[str],
    *,
    per_query: int,
    size: int,
    polarity: Polarity,
    seed: int,
) -> dict[str, list[Constitution]]:
    """Draw constitutions for every query, each principle about equally often and never twice for one query.

    Args:
        principles: where to draw from.
        query_ids: the queries, in any order; what a query gets depends on the list of ids and the seed alone.
        per_query: constitutions per query (with polarity ``both``: pairs of opposites).
        size: principles in a constitution.
        polarity: ``principle`` (definitions), ``antithesis``, ``random`` (each element flipped by a coin), or ``both``
            (the definitions and their element-wise opposite, so twice `per_query` constitutions).
        seed: the same seed gives the same constitutions on every machine.

    Raises:
        UserError: there are fewer principles than one query needs.
    """
    if polarity not in get_args(Polarity):
        raise UserError(f"polarity '{polarity}' is unknown; {nearest(polarity, get_args(Polarity))}")
    if len(principles) < per_query * size:
        raise UserError(
            f"a query needs {per_query} x {size} different principles, but only {len(principles)} apply; "
            "draw fewer constitutions per query, smaller ones, or add principles"
        )
    rng = random.Random(f"constitutions-{seed}")
    deck: list[Principle] = []
    drawn: dict[str, list[Constitution]] = {}
    for query_id in query_ids:
        chosen: list[Constitution] = []
        for _ in range(per_query):
            taken = {e.principle.id for c in chosen for e in c.elements}
            picked: list[Principle] = []
            while len(picked) < size:
                blocked = taken | {p.id for p in picked}
                index = next((i for i, p in enumerate(deck) if p.id not in blocked), None)
                if index is None:
                    deck.extend(rng.sample(list(principles), len(principles)))
                else:
                    picked.append(deck.pop(index))
            coins = [rng.random() < 0.5 for _ in picked]
            follows = coins if polarity == "random" else [polarity != "antithesis"] * len(picked)
            constitution = Constitution(tuple(Element(p, f) for p, f in zip(picked, follows, strict=True)))
            chosen.append(constitution)
        if polarity == "both":
            chosen = [side for c in chosen for side in (c, c.opposite())]
        drawn[query_id] = chosen
    return drawn


def _shipped_folders() -> list[Path]:
    here = Path(__file__).resolve().parent
    return [folder for folder in (here / "_principles", here.parent / "principles") if folder.is_dir()]


def is_shipped(principle_set: PrincipleSet) -> bool:
    """Whether a set's file is one of those that come with this project."""
    return principle_set.file.resolve().parent in [folder.resolve() for folder in _shipped_folders()]


def principle_folders(extra: Sequence[Path] = ()) -> list[Path]:
    """Where principle sets are looked for, first match wins: `extra`, $HARNESS_PRINCIPLES, ./principles, the shipped ones."""
    named = [expanded(p) for p in os.environ.get("HARNESS_PRINCIPLES", "").split(os.pathsep) if p]
    folders = [*extra, *named, Path("principles"), *_shipped_folders()]
    seen: set[Path] = set()
    return [f for f in folders if f.is_dir() and not (f.resolve() in seen or seen.add(f.resolve()))]  # type: ignore[func-returns-value]


def list_principle_sets(folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Name to file, for every set in the principle folders. A YAML file without principles is none.

    Raises:
        UserError: two sets of a folder have one name.
    """
    found: dict[str, Path] = {}
    for folder in principle_folders(folders):
        here: dict[str, Path] = {}
        for file in sorted(f for f in folder.iterdir() if f.suffix in {".yaml", ".yml"} and f.is_file()):
            stat = file.stat()
            name = _name_in(file, stat.st_mtime_ns, stat.st_size)
            if name in here:
                raise UserError(f"{file}: a set named '{name}' is in {here[name]} too; rename one ('name')")
            if name is not None:
                here[name] = file
        found |= {name: file for name, file in here.items() if name not in found}
    return found


@lru_cache(maxsize=1024)
def _name_in(file: Path, mtime_ns: int, size: int) -> str | None:
    """The name of the set in a file as it was then: the file's own where none can be read; None where it is no set."""
    try:
        data = read_yaml(file).data
    except UserError:
        return file.stem
    if not isinstance(data, dict) or "principles" not in data:
        return None
    name = data.get("name")
    return name if isinstance(name, str) else file.stem


def load_principle_set(name_or_path: str | Path, folders: Sequence[Path] = ()) -> PrincipleSet:
    """Read one principle set by name or by file.

    Raises:
        UserError: the name is unknown (with the nearest one), or the file is not a principle set (file, line, field).
    """
    text = str(name_or_path)
    path = expanded(text)
    if not (path.suffix in {".yaml", ".yml"} or os.sep in text):
        known = list_principle_sets(folders)
        if text not in known:
            raise UserError(f"there is no principle set named '{text}'; {nearest(text, known)}")
        path = known[text]
    document = read_yaml(path, what="principle set")
    return parse_principle_set(document)


def parse_principle_set(document: LinedDocument) -> PrincipleSet:
    """Validate a YAML document as a principle set. Raises UserError with file, line and field."""
    data = document.data
    if not isinstance(data, dict):
        raise UserError(
            f"{document.path}:1: a principle set is a mapping with 'name' and 'principles'; this is not one"
        )
    default_source = data.get("source", "")
    rows = data.get("principles")
    if isinstance(rows, list):
        rows = [{"source": default_source, **row} if isinstance(row, dict) else row for row in rows]
    try:
        return PrincipleSet.model_validate(
            {**data, **({"principles": rows} if rows is not None else {}), "file": document.path}
        )
    except ValidationError as error:
        raise all_problems(error, document, PrincipleSet) from None


_WORD = re.compile(r"[a-z0-9']+")


FindingKind = Literal["copy", "too_short", "unlike_lengths", "near_duplicate", "held_out_leak"]


class Finding(NamedTuple):
    """One suspicious thing in a principle set: its kind, the principles that it concerns, and a sentence."""

    kind: FindingKind
    ids: tuple[str, ...]
    message: str


def lint(principle_set: PrincipleSet) -> list[str]:
    """What is suspicious in a principle set, a sentence each; an empty list means clean. See `findings`."""
    return [found.message for found in findings(principle_set)]


def findings(principle_set: PrincipleSet) -> list[Finding]:
    """What is suspicious in a principle set; an empty list means clean.

    Looks for a held-out principle whose wording, of either side, is nearly that of a side of a learned one (both sides are
    trained on), for near-duplicates in general, for an antithesis that is a copy of its definition or no sentence at all,
    and for two sides so unlike in length that a judge could tell them apart by it.
    """
    found: list[Finding] = []
    principles = principle_set.principles
    for index, one in enumerate(principles):
        if similarity(one.definition, one.antithesis) > 0.95:
            message = f"{one.id}: the antithesis repeats the definition; say the contrary"
            found.append(Finding("copy", (one.id,), message))
        words = {side: len(_WORD.findall(getattr(one, side).lower())) for side in ("definition", "antithesis")}
        for side in (side for side, n in words.items() if n < 3):
            message = f"{one.id}: the {side} has fewer than three words; write a full sentence"
            found.append(Finding("too_short", (one.id,), message))
        short, long = sorted(words.values())
        if short >= 3 and long > UNLIKE_LENGTHS * short:
            message = (
                f"{one.id}: its sides have {words['definition']} and {words['antithesis']} words; "
                "make them about equally long"
            )
            found.append(Finding("unlike_lengths", (one.id,), message))
        for other in principles[index + 1 :]:
            if not set(one.task) & set(other.task):
                continue
            if nearest_sides(one, other) >= NEAR_DUPLICATE:
                is_leak = one.split != other.split
                leak = " (one is learned, the other held out)" if is_leak else ""
                message = f"{one.id} and {other.id}: nearly the same sentence{leak}; drop or reword one"
                found.append(Finding("held_out_leak" if is_leak else "near_duplicate", (one.id, other.id), message))
    return found


UNLIKE_LENGTHS = 3
"""How many times as many words one side of a principle may have as the other."""

NEAR_DUPLICATE = 0.8
"""Jaccard similarity of word sets from which two definitions count as near-duplicates."""

_COMMON = frozenset(
    {"the", "a", "an", "and", "or", "of", "to", "in", "on", "by", "for", "with", "is", "are", "be", "it", "its"}
    | {"that", "this", "as", "should", "not", "response", "summary", "summaries"}
)


class TwoSided(Protocol):
    """What has the two sentences of a principle."""

    @property
    def definition(self) -> str: ...

    @property
    def antithesis(self) -> str: ...


def nearest_sides(one: TwoSided, other: TwoSided) -> float:
    """The greatest similarity of a side of one principle and a side of the other."""
    return max(similarity(a, b) for a in (one.definition, one.antithesis) for b in (other.definition, other.antithesis))


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the two sentences' words, common words left out; 1 for equal sets."""
    a, b = (set(_WORD.findall(text.lower())) - _COMMON for text in (one, other))
    return len(a & b) / len(a | b) if a | b else 1.0
