"""A checkout of the authors' repositories (sami, typo) as the harness's own files, outside of the harness.

    OUT/principles/NAME.yaml             principle sets, under the names that the shipped recipes use (sami-...)
    OUT/prompts/.../constants.yaml       the string constants of each prompts.py; and a template from each that can be one
    OUT/responses/.../FILE/              recorded answers, for a model with the path recorded/OUT/responses/.../FILE
    OUT/verdicts/.../FILE.jsonl          verdict rows, for harness score --format harness
    OUT/information/.../FILE.json        mutual-information values; OUT/information.jsonl their means
    OUT/import.json                      what came from where, by hash, what was left out and why, and the files written

Which file is what follows from the layout (`harness.paper.layout`). Python files are parsed, never run: only constants are
taken from them. The sentences are the authors' and stay where the user puts them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from harness.importers.folder import RECORD, record, to_json, write_import
from harness.importers.responses import Choice, answer_files, read_responses, slug
from harness.paper import layout
from harness.paper.layout import WRITERS, Found, Place
from harness.paper.tables import mean_interval, read_values
from harness.rows import Verdict
from harness.store import fingerprint
from harness.store.files import reading
from harness.verdict_files import Judged, read_verdicts
from harness.writer import to_yaml
from sami_train.constitutions import Principle, PrincipleSet, TaskKind
from sami_train.errors import UserError
from sami_train.prompts import Template
from sami_train.text import counted
from sami_train.yamlfile import told

SOURCE = "the authors' public repositories, Fränken et al., NeurIPS 2024, arXiv 2404.14313"
HELD_OUT = 5
"""Of twenty varied principles the last so many were kept from training."""
JUDGE = "recorded-gpt-4"
KINDS: dict[str, TaskKind] = {"hh-rlhf": "dialogue", "tldr": "summarization"}
QUERY_PREFIX = {"hh-rlhf": "Human: ", "tldr": "POST: "}
"""What their code puts before a query; their files of dialogue questions leave it out."""


@dataclass
class _Import:
    """What is to be written, and what was left out."""

    files: dict[str, str] = field(default_factory=dict)
    """Text by name below OUT."""
    written: Counter[str] = field(default_factory=Counter)
    sources: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file that was used, by its name."""
    left_out: list[dict[str, str]] = field(default_factory=list)
    sets: dict[str, PrincipleSet] = field(default_factory=dict)

    def skip(self, name: str, why: object) -> None:
        self.left_out.append({"file": name, "why": str(why)})


def import_sami_paper(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write everything that the layout has below `folders` into `out`; give back the content of `import.json`.

    A file that cannot be read is left out and named. An earlier import in `out` is replaced. Raises UserError when `out`
    lies inside the harness or has a file in the way that no import wrote, when a folder is not there, or when nothing of
    the layout is in them.
    """
    refuse_inside_harness(out)
    done = _Import()
    files = list(layout.find([folder.expanduser() for folder in folders], done.skip))
    if not files:
        raise UserError(
            f"{', '.join(map(str, folders))}: there is nothing of the authors' layout in it (experiments/hh-rlhf, "
            "experiments/tldr); name a checkout of their repositories"
        )
    constitutions: dict[Path, list[Found]] = {}
    summaries: list[dict[str, Any]] = []
    for file in files:
        if file.kind == "constitutions":
            constitutions.setdefault(file.path.parent, []).append(file)
            continue
        try:
            if file.kind == "prompts":
                _prompts(file, done)
            elif file.kind == "responses":
                _responses(file, done)
            elif file.kind == "verdicts":
                _verdicts(file, done)
            else:
                summaries.append(_information(file, done))
        except UserError as error:
            done.skip(file.name, error)
        else:
            done.sources[file.name] = _sha256(file.path)
    for group in constitutions.values():
        _constitution_folder(group, done)
    for name, found in sorted(done.sets.items()):
        done.files[f"principles/{name}.yaml"] = to_yaml(found)
    done.written["principle sets"] = len(done.sets)
    if summaries:
        done.files["information.jsonl"] = "".join(json.dumps(row) + "\n" for row in summaries)
    about = {
        "source": SOURCE,
        "written": {what: n for what, n in sorted(done.written.items()) if n},
        "principle_sets": {
            name: {"hash": s.hash, "principles": len(s.principles)} for name, s in sorted(done.sets.items())
        },
        "sha256": dict(sorted(done.sources.items())),
        "left_out": done.left_out,
    }
    return write_import(out, "sami-paper", done.files, about)


def refuse_inside_harness(out: Path) -> None:
    """Raise UserError for a folder inside the installed package or its checkout: what is imported is not ours to carry."""
    import harness

    package = Path(harness.__file__).resolve().parent
    top = package.parent if (package.parent / "pyproject.toml").is_file() else package
    target = out.expanduser().resolve()
    if target == top or top in target.parents:
        raise UserError(
            f"-o: '{out}' lies inside the harness ({top}), which carries nobody else's texts; name a folder elsewhere"
        )


def _sha256(path: Path) -> str:
    with reading(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _place_in(what: str, file: Found) -> Path:
    """The same place below WHAT as in the checkout, without the file's suffix."""
    name = Path(file.name)
    return Path(what) / name.parent / name.name.removesuffix(name.suffix)


# --- Principles


def _constitution_folder(files: Sequence[Found], done: _Import) -> None:
    """A folder `constitutions_WRITER`: pairs of constitutions with the names of their principles, or one list of principles."""
    first = files[0]
    data = layout.data_of(first.path)
    assert data is not None
    label = first.path.parent.name.removeprefix("constitutions").strip("_")
    writer = WRITERS.get(label)
    name = (
        "sami-diverse"
        if label.endswith("diverse")
        else f"sami-{data}-{f'{writer}-writer' if writer else slug(label).lower()}"
    )
    sides: dict[str, dict[str, str]] = {}
    for file in files:
        try:
            _collect(json.loads(file.path.read_text(encoding="utf-8")), sides, file, done)
            done.sources[file.name] = _sha256(file.path)
        except (OSError, ValueError, RecursionError) as error:
            done.skip(file.name, f"it is not JSON ({' '.join(str(error).split())})")
    _add_set(name, data, sides, Path(first.name).parent.as_posix(), done)


def _collect(content: Any, sides: dict[str, dict[str, str]], file: Found, done: _Import) -> None:
    """Add the principles of one file to `sides`: name -> {definition, antithesis}; the first wording of each stays."""
    if not isinstance(content, dict):
        done.skip(file.name, "it holds no object")
        return
    identifiers = content.get("identifiers")
    if isinstance(identifiers, dict):
        for side, names in identifiers.items():
            lines = _sentences(content.get(side))
            if not isinstance(names, list) or len(names) != len(lines):
                done.skip(file.name, f"'{side}' has {len(lines)} sentences, and its identifiers do not name as many")
                continue
            for label, sentence in zip(names, lines, strict=True):
                sign, _, name = str(label).partition(" ")
                sides.setdefault(name, {}).setdefault("definition" if sign == "pos" else "antithesis", sentence)
        return
    found = {name: value for name, value in content.items() if isinstance(value, dict) and "definition" in value}
    if not found:
        done.skip(file.name, "it has neither identifiers nor definitions")
    for name, value in found.items():
        for side in ("definition", "antithesis"):
            sides.setdefault(name, {}).setdefault(side, str(value.get(side, "")).strip())


def _sentences(text: Any) -> list[str]:
    """The sentences of a numbered constitution."""
    lines = text.splitlines() if isinstance(text, str) else []
    return [re.sub(r"^\s*\d+[.)]\s+", "", line).strip() for line in lines if line.strip()]


def _add_set(name: str, data: str, sides: dict[str, dict[str, str]], source: str, done: _Import) -> None:
    """Make a principle set of `sides`; the last five of twenty are held out. What is incomplete is left out and named."""
    if name in done.sets:
        done.skip(source, f"the set '{name}' has been imported from {done.sets[name].source.rpartition('; ')[2]}")
        return
    complete = {key: value for key, value in sides.items() if value.get("definition") and value.get("antithesis")}
    for key in sides.keys() - complete.keys():
        done.skip(source, f"the principle '{key}' has only one of its two sides")
    origin = f"{SOURCE}; {source}"
    learned = len(complete) - HELD_OUT if len(complete) >= 4 * HELD_OUT else len(complete)
    try:
        done.sets[name] = PrincipleSet(
            name=name,
            description=f"Imported: {counted(len(complete), 'principle')} for {KINDS[data]}.",
            source=origin,
            principles=tuple(
                Principle(
                    id=re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-"),
                    definition=value["definition"],
                    antithesis=value["antithesis"],
                    split="learned" if place < learned else "held_out",
                    task=(KINDS[data],),
                    source=origin,
                )
                for place, (key, value) in enumerate(complete.items())
            ),
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        done.skip(source, f"it makes no principle set ({'.'.join(map(str, problem['loc']))}: {told(problem)})")


def _set_from_constants(constants: dict[str, Any], data: str, source: str, done: _Import) -> None:
    """A dictionary {key: {"positive": constitution, "negative": constitution or list of them}} as a principle set.

    Line k of a negative constitution that is not line k of the positive one is the antithesis of that principle.
    """
    sides: dict[str, dict[str, str]] = {}
    for value in constants.values():
        for pair in value.values() if isinstance(value, dict) else ():
            if not isinstance(pair, dict) or not {"positive", "negative"} <= pair.keys():
                continue
            positive = _sentences(pair["positive"])
            negatives = pair["negative"] if isinstance(pair["negative"], list) else [pair["negative"]]
            for lines in map(_sentences, negatives):
                for definition, line in zip(positive, lines, strict=False) if len(lines) == len(positive) else ():
                    if line != definition and line not in positive:
                        sides.setdefault(
                            _principle_name(definition, len(sides)), {"definition": definition}
                        ).setdefault("antithesis", line)
    if sides:
        _add_set(f"sami-{data}", data, sides, source, done)


def _principle_name(definition: str, place: int) -> str:
    """The paper's name of a principle where its sentence has the word; a number elsewhere."""
    words = ("helpful", "harmless", "concise", "comprehensive")
    return next((word for word in words if re.search(rf"\b{word}", definition, re.I)), f"principle-{place + 1}")


# --- Prompts


def _prompts(file: Found, done: _Import) -> None:
    """Constants of a Python file; templates from those that have a place for a constitution and for a query, once each."""
    data = layout.data_of(file.path)
    assert data is not None
    constants, others = read_constants(file.path)
    texts = {name: value for name, value in constants.items() if isinstance(value, str)}
    _set_from_constants(constants, data, file.name, done)
    for name in others:
        done.skip(f"{file.name}: {name}", "it is computed, and nothing here is run")
    if file.path.name != "prompts.py" or not texts:
        return
    place = _place_in("prompts", file).parent
    about = {
        name: {"placeholders": sorted(set(re.findall(r"\{(\w+)\}", text))), "text": text}
        for name, text in texts.items()
    }
    done.files[f"{place.as_posix()}/constants.yaml"] = _yaml({"source": f"{SOURCE}; {file.name}", "constants": about})
    done.written["prompt constants"] += len(texts)
    for name, text in texts.items():
        template = _template(name, text, data, file.name)
        if template is not None:
            content = template.model_dump(mode="json", exclude_none=True)
            done.files[f"{place.as_posix()}/{template.name}.yaml"] = _yaml(content)
            done.written["prompt templates"] += 1


def read_constants(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The plain constants that a Python file assigns at its top level, and the names of what is computed. Nothing is run.

    Raises UserError when the file is not Python.
    """
    with reading(path):
        data = path.read_bytes()
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: this is not Python that can be read ({error}); nothing is taken from it") from None
    constants: dict[str, Any] = {}
    others: list[str] = []
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                try:
                    constants[target.id] = _constant(value)
                except (ValueError, TypeError, RecursionError, MemoryError):
                    constants.pop(target.id, None)
                    others.append(target.id)
    return constants, others


def _constant(node: ast.expr) -> Any:
    """The value of a literal, of texts joined by +, or of a text that is stripped. Raises ValueError for anything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _constant(node.left), _constant(node.right)
        if isinstance(left, str) and isinstance(right, str):
            return left + right
        raise ValueError("a sum of other things than texts")
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "strip"
        and not node.args
    ):
        text = _constant(node.func.value)
        if isinstance(text, str) and not node.keywords:
            return text.strip()
    return ast.literal_eval(node)


def _template(name: str, text: str, data: str, source: str) -> Template | None:
    """A constant as a template: {constitution} and {question} once each, nothing else to fill in.

    The completion ends where a line of the prompt's own begins again ("Human:", say). What stands behind a label at its end
    ("Summary: The post") is how the response begins.
    """
    if sorted(re.findall(r"\{(\w*)\}", text)) != ["constitution", "question"]:
        return None
    prefix = QUERY_PREFIX[data]
    has_prefix = re.search(rf"{re.escape(prefix.strip())}\s*\{{question\}}", text) is not None
    filled = text.replace("{constitution}", "{principles}").replace(
        "{question}", f"{'' if has_prefix else prefix}{{query}}"
    )
    labels = dict.fromkeys(re.findall(r"^([A-Z][\w ]{0,40}):", filled, re.MULTILINE))
    begun = re.search(r"^[A-Z][\w ]{0,40}:([^\n{}]*[^\s{}])\Z", filled, re.MULTILINE)
    completion: dict[str, Any] = {"text": filled, "stop": [f"\n{label}:" for label in labels]}
    if begun is not None:
        completion |= {"text": filled[: begun.start(1)], "prefill": begun.group(1)}
    return Template.model_validate(
        {
            "name": f"sami-{data}-{slug(name).lower().replace('_', '-')}",
            "task": KINDS[data],
            "description": f"Imported: {name} of {source}.",
            "completion": completion,
            "chat": {"messages": [{"role": "user", "content": filled}]},
            "number_one": True,
        }
    )


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)


# --- Responses, verdicts, values


def _responses(file: Found, done: _Import) -> None:
    data = layout.data_of(file.path)
    assert data is not None
    found = read_responses(file.path, Choice(format="sami", kind=KINDS[data]))
    place = _place_in("responses", file)
    files, about = answer_files(found, model=slug(place.name), file=file.name)
    for name, text in {**files, RECORD: to_json(record("responses", files, about))}.items():
        done.files[f"{place.as_posix()}/{name}"] = text
    done.written["files of responses"] += 1
    done.written["responses"] += found.n


def _verdicts(file: Found, done: _Import) -> None:
    place = layout.place_of(file)
    (table,) = read_verdicts(file.path, "sami")
    if any(score not in (0, 0.5, 1) for score in table.scores):
        raise UserError("it has scores between win, tie and loss, which no verdict row can hold; score the file itself")
    rows = [_verdict(row, place, file) for row in table.rows]
    name = f"{_place_in('verdicts', file).as_posix()}.jsonl"
    done.files[name] = "".join(row.model_dump_json() + "\n" for row in rows)
    done.written["files of verdicts"] += 1
    done.written["verdicts"] += len(rows)


def _verdict(row: Judged, place: Place | None, file: Found) -> Verdict:
    """A row as a verdict. What their files do not keep (the order, the judge's words, the constitution) is said to be so."""
    a, b = ("test", "baseline")
    task = layout.data_of(file.path) or ""
    split = "learned"
    set_name = f"sami-{task}"
    if place is not None:
        a = f"{place.model}-iteration-{place.iteration}" if place.iteration else f"{place.model}-base"
        b = f"{place.model if place.against == 'base' else 'mistral'}-{place.against}"
        task = f"{task}-{place.subset}" if place.subset else task
        split = place.principles or split
        set_name = (
            "sami-diverse" if place.principles else f"{set_name}-{place.writer}-writer" if place.writer else set_name
        )
    outcomes: dict[float | None, Literal["a", "b", "tie", "unscored"]] = {1: "a", 0.5: "tie", 0: "b", None: "unscored"}
    outcome = outcomes[row.score]
    lengths = {"length_a": row.length_test, "length_b": row.length_baseline}
    return Verdict(
        id=fingerprint(["recorded", file.name, row.query])[:24],
        fingerprint=fingerprint([file.name, row.query, row.score, row.length_test, row.length_baseline]),
        judge=JUDGE,
        kind="win_rate",
        a=a,
        b=b,
        task=task,
        query_id=f"{int(row.query):04d}",
        constitution_id="not-recorded",
        principle_set=set_name,
        split=split,
        order="ab",
        outcome=outcome,
        reason="no verdict in the file" if outcome == "unscored" else None,
        raw="",
        details={
            **{name: value for name, value in lengths.items() if value is not None},
            "order": "not recorded",
        },
        usage={},
        latency_s=0.0,
    )


def _information(file: Found, done: _Import) -> dict[str, Any]:
    values = read_values(file.path)
    done.files[f"{_place_in('information', file).as_posix()}.json"] = to_json(values)
    done.written["files of mutual information"] += 1
    place = layout.place_of(file)
    low, high = mean_interval(values) if values else (None, None)
    about = ("data", "model", "iteration", "subset", "writer")
    return {
        "file": file.name,
        **({name: getattr(place, name) for name in about} if place else {}),
        "n": len(values),
        "mean_nats": sum(values) / len(values) if values else None,
        "ci_low": low,
        "ci_high": high,
    }
