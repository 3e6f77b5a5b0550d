"""Whether what a specification names exists and fits together: every problem at once, before anything heavy is loaded.

Each problem is one sentence: file and line, the field, what is wrong, and what to write instead. No model is loaded and
no network is asked, but by `out_of_reach`; what only they can tell (a hub id's files, a provider's models) is left to the run.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.judges.checks import validate_check
from harness.judges.llm import load_judge_template
from harness.models._http import check_base_url, resolve_key, variables_of
from harness.models.recorded import answers_file, read_answers
from harness.plan import EMBEDDED_SCORER
from harness.spec import (
    JudgeSpec,
    ModelSpec,
    RequestOptions,
    Spec,
    SpecError,
    api_only,
    is_there,
    model_backend,
    one_line,
    reasoning_problem,
)
from harness.tasks import TaskData, hh_rlhf, list_tasks, load_task, tldr
from harness.tasks.base import BUNDLED, HUB
from sami_train.config import Recipe, load_recipe
from sami_train.constitutions import (
    NEAR_DUPLICATE,
    Principle,
    PrincipleSet,
    distinct,
    list_principle_sets,
    load_principle_set,
    similarity,
)
from sami_train.errors import MissingPackage, Problems, UserError, nearest
from sami_train.inputs import folders_of, templates_of
from sami_train.models import EMBEDDED, check_reach, check_source, has_chat_template, parse_source
from sami_train.pairs import check_intents, split_queries
from sami_train.prompts import load_template
from sami_train.text import counted, expanded
from sami_train.yamlfile import LinedDocument, Location, problems, read_yaml

BACKENDS = ("embedded", "transformers", "recorded", "openai", "anthropic")
KINDS = {"hh-rlhf": hh_rlhf.KIND, "tldr": tldr.KIND}
"""Kind by task. What another package's task is shows only when it is loaded, so less of it is checked here."""
LIGHT_BYTES = 8 << 20
"""Files of queries up to this size are read here, so that a limit above their number is found."""

LONGEST_NAME = 80
"""Characters of a name, so that a file named after two models still fits on every disk."""
LONGEST_PART = 255
"""Bytes of a file's or a folder's name, on today's disks."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_API = ("openai", "anthropic")
_API_ONLY = ("base_url", "max_connections", "max_retries", "timeout_s")
_LOCAL_ONLY = ("revision", "dtype", "trust_remote_code")
_SET_BY_HARNESS = ("model", "queries", "principles", "style")


def check(spec: Spec, *, to_run: bool = True) -> None:
    """Raise SpecError, a line for each problem, unless there are none. See `validate`."""
    if found := validate(spec, to_run=to_run):
        raise SpecError(*found)


def validate(spec: Spec, *, to_run: bool = True, replaced: Sequence[Location] = ()) -> list[str]:
    """All problems, in the order of the file's blocks; an empty list means that the run can start.

    With `to_run` false, what a run needs and a plan does not, keys, packages and model folders, is left to `missing_for_run`: a
    run may be planned on another machine. Problems of what stands in for something else (`SpecError.replaced`) are left out.
    """
    found = _Problems(spec.document, replaced)
    _check_names(spec, found)
    tasks = _check_tasks(spec, found)
    sets = _check_sets(spec, found)
    _check_coverage(spec, sets, found)
    _check_judged_by(spec, sets, found)
    _check_models(spec, found, to_run)
    for name in spec.models:
        _check_training(spec, name, tasks, sets, found)
        _check_iteration(spec, name, found)
    _check_judges(spec, sets, found)
    _check_comparisons(spec, found)
    _check_swapped(spec, sets, found)
    _check_stop(spec, tasks, found)
    _check_relevance(spec, found, to_run)
    return found.sentences


def check_judging(spec: Spec, judges: Sequence[str]) -> None:
    """Raise SpecError unless these judges can judge what is there: they, their models and the principles are looked at."""
    found = _Problems(spec.document)
    _check_names(spec, found)
    own = spec.model_copy(update={"judges": {name: spec.judges[name] for name in judges}})
    models = {judge.model for judge in own.judges.values()}
    _check_judges(own, _check_sets(spec, found), found)
    _check_models(
        spec.model_copy(update={"models": {n: m for n, m in spec.models.items() if n in models}}), found, True
    )
    if found.sentences:
        raise SpecError(*found.sentences)


def missing_for_run(spec: Spec) -> list[str]:
    """Keys, packages and models that a run needs and that are not here, a sentence each."""
    found = _Problems(spec.document)
    _check_models(spec, found, to_run=True)
    here = _Problems(spec.document)
    _check_models(spec, here, to_run=False)
    missing = [sentence for sentence in found.sentences if sentence not in here.sentences]
    return missing + out_of_reach(spec)


def out_of_reach(spec: Spec) -> list[str]:
    """Hub models that are neither on this machine nor to be had, a sentence each. Asks the network where one is not here."""
    found = _Problems(spec.document)
    for name, model in spec.models.items():
        if model.path and model_backend(model.path) == "transformers" and not is_elsewhere(model.path):
            with found.at(("models", name, "path")):
                source = parse_source(model.path)
                check_reach(replace(source, revision=source.revision or model.revision))
    return found.sentences


class _Problems:
    """The problems found, each put together from its place."""

    def __init__(self, document: LinedDocument, replaced: Sequence[Location] = ()) -> None:
        self.document, self.replaced = document, replaced
        self.sentences: list[str] = []

    def add(self, location: Location, message: object) -> None:
        if any(location[: len(place)] == place for place in self.replaced):
            return
        shown = ".".join(map(str, location))
        sentence = one_line(f"{self.document.where(location)}: '{shown}': {message}")
        if sentence not in self.sentences:
            self.sentences.append(sentence)

    @contextmanager
    def at(self, location: Location) -> Iterator[None]:
        """Take down what a UserError raised inside says as problems of this place."""
        try:
            yield
        except UserError as error:
            for problem in error.problems if isinstance(error, Problems) else [error]:
                self.add(location, problem)
        except (OSError, ValueError) as error:  # a name that no disk takes: too long, or with a null byte
            reason = error.strerror if isinstance(error, OSError) else error
            self.add(location, f"this cannot be read ({reason}); check the path")


# --- Names


def _check_names(spec: Spec, found: _Problems) -> None:
    blocks: tuple[tuple[str, Iterable[str]], ...] = (
        ("models", spec.models),
        ("tasks", spec.tasks),
        ("judges", spec.judges),
    )
    for block, names in (("name", [spec.name]), *blocks):
        seen: dict[str, str] = {}
        for name in names:
            location: Location = ("name",) if block == "name" else (block, name)
            if not _NAME.fullmatch(name):
                found.add(
                    location, f"'{name}' becomes a file name; use letters, digits, '.', '_' and '-' only, no '.' first"
                )
            if len(name) > LONGEST_NAME:
                found.add(
                    location,
                    f"this name has {len(name)} characters and becomes a file name; use {LONGEST_NAME} at most",
                )
            if name.lower() in seen:
                found.add(
                    location, f"'{seen[name.lower()]}' and '{name}' are the same file name on some disks; rename one"
                )
            seen[name.lower()] = name
            if block == "models" and "-vs-" in name:
                found.add(location, "'-vs-' stands between the names of a comparison; leave it out of a model's name")
            if block == "tasks" and name == "all":
                found.add(location, "tables call all tasks together 'all'; give this task another name")
    if any(len(os.fsencode(part)) > LONGEST_PART for part in Path(spec.output).parts):
        found.add(("output",), f"no file's name may be longer than {LONGEST_PART} bytes; use a shorter one")
    elif is_there(Path(spec.output)) and not Path(spec.output).is_dir():
        found.add(("output",), f"'{spec.output}' is a file; name a folder")


# --- Tasks


def _check_tasks(spec: Spec, found: _Problems) -> dict[str, TaskData]:
    """The tasks whose queries could be read at once, by name."""
    data: dict[str, TaskData] = {}
    for name, task in spec.tasks.items():
        if task.task not in list_tasks():
            found.add(("tasks", name, "task"), f"there is no task '{task.task}'; {nearest(task.task, list_tasks())}")
        elif task.task in KINDS:
            sources = {"source": task.source, "train_source": task.train_source or task.source}
            missing = [field for field, source in sources.items() if not _is_there(source)]
            for field in missing[:1]:
                hint = _closest(sources[field], [BUNDLED, HUB]) or "check the path"
                found.add(("tasks", name, field), f"there is no data at '{sources[field]}'; {hint}")
            if not missing and all(map(_is_light, sources.values())):
                try:
                    data[name] = load_task(name, task.task_spec())
                except UserError as error:
                    message = str(error).removeprefix(f"task '{name}': ")
                    field = next((f for f in ("train_limit", "limit") if message.startswith(f"'{f}'")), "source")
                    found.add(("tasks", name, field), message)
        if task.template is not None:
            with found.at(("tasks", name, "template")):
                template = load_template(task.template)
                if (kind := KINDS.get(task.task, template.task)) != template.task:
                    raise UserError(f"'{task.template}' is for {template.task}, but this task is {kind}; name another")
        if spec.sampling.reasoning and (wanted := task.template or KINDS.get(task.task)):
            with suppress(UserError):  # an unreadable template is a problem of its own
                if load_template(wanted).reasoning is None:
                    message = f"the task '{name}' has no prompt that asks for reasoning (its template: '{wanted}')"
                    found.add(("sampling", "reasoning"), f"{message}; name a template that has one, or set it to false")
    if spec.sampling.reasoning and spec.measures.infonce:
        found.add(("measures", "infonce"), "an answer after reasoning has no likelihood of its own; set it to 0")
    return data


def _is_there(source: str) -> bool:
    return source in (BUNDLED, HUB) or is_there(expanded(source))


def _is_light(source: str) -> bool:
    path = expanded(source)
    return source == BUNDLED or (source != HUB and path.is_file() and path.stat().st_size <= LIGHT_BYTES)


# --- Principles


def _check_sets(spec: Spec, found: _Problems) -> dict[str, PrincipleSet]:
    """The principle sets that can be read, by name."""
    block = spec.principles
    for index, folder in enumerate(block.folders):
        if not expanded(folder).is_dir():
            found.add(("principles", "folders", index), f"there is no folder '{folder}'; check the path")
    for split in {s for s in block.splits if block.splits.count(s) > 1}:
        found.add(("principles", "splits"), f"'{split}' stands twice; keep one")
    sets: dict[str, PrincipleSet] = {}
    for index, name in enumerate(block.sets):
        location: Location = ("principles", "sets", index)
        with found.at(location):
            if _is_imported(name) and name not in list_principle_sets([Path(f) for f in block.folders]):
                raise UserError(f"there is no principle set named '{name}'; {_how_to_get(name)}")
            loaded = load_principle_set(name, [Path(folder) for folder in block.folders])
            if loaded.name in sets:
                raise UserError(
                    f"the set '{loaded.name}' stands twice ({sets[loaded.name].file}, {loaded.file}); keep one"
                )
            sets[loaded.name] = loaded
            _check_checks(loaded, location, found)
    _check_held_out(spec, sets, found)
    return sets


IMPORTED = "sami-"
"""What the names of principle sets made from the authors' files begin with; none of them is shipped."""


def _is_imported(name: str) -> bool:
    return name.startswith(IMPORTED) and not name.endswith((".yaml", ".yml"))


def _how_to_get(name: str) -> str:
    return (
        f"the paper's sentences are not shipped: 'harness import sami-paper DIR...' makes the set out of the authors' files, or "
        f"'harness principles write -o principles/{name}.yaml' lets a model write one ('--preset-models embedded' takes ours)"
    )


def _check_checks(principle_set: PrincipleSet, location: Location, found: _Problems) -> None:
    document: LinedDocument | None = None
    for number, principle in enumerate(principle_set.principles):
        if principle.check is None:
            continue
        try:
            validate_check(principle.check)
        except UserError as error:
            document = document or read_yaml(principle_set.file)
            place = document.where(("principles", number, "check"))
            found.add(location, f"{place}: principle '{principle.id}': {error}")


def _check_held_out(spec: Spec, sets: dict[str, PrincipleSet], found: _Problems) -> None:
    """A held-out principle must not be learned, in whatever set; and an id means one thing."""
    every = [(s, p) for s in sets.values() for p in s.principles]
    place: Location = ("principles", "sets")
    for (set_a, a), (set_b, b) in combinations(every, 2):
        sides = f"'{a.id}' of '{set_a.name}' ({_said(a)}) and '{b.id}' of '{set_b.name}' ({_said(b)})"
        if a.split != b.split:
            if "held_out" not in spec.principles.splits:
                continue
            if a.id == b.id:
                found.add(place, f"{sides} are one principle, so it is not held out; leave one of the sets out")
            elif similarity(a.definition, b.definition) >= NEAR_DUPLICATE:
                found.add(place, f"{sides} say nearly the same, so it is not held out; drop or reword one")
        elif a.id == b.id and (a.definition, a.antithesis, a.check) != (b.definition, b.antithesis, b.check):
            found.add(place, f"{sides} have one id and different texts or checks; rename one")


def _said(principle: Principle) -> str:
    return principle.split.replace("_", " ")


def _check_coverage(spec: Spec, sets: dict[str, PrincipleSet], found: _Problems) -> None:
    """Each task needs principles of each split, each set a task, and each constitution enough principles."""
    block = spec.principles
    kinds = {name: KINDS[task.task] for name, task in spec.tasks.items() if task.task in KINDS}
    if len(sets) < len(block.sets) or not kinds:
        return
    few: list[tuple[int, str]] = []
    repeating: list[tuple[int, str]] = []
    for task, kind in kinds.items():
        for split in block.splits:
            counts = {s.name: len(s.select(kind, split)) for s in sets.values()}
            one, of_task = f"{split.replace('_', '-')} principle", f"for the task '{task}' ({kind})"
            if not any(counts.values()):
                found.add(
                    ("principles", "splits"),
                    f"no set has {one}s {of_task}; leave '{split}' out or add a set that has some",
                )
            have = [(n, f"the set '{name}' has {counted(n, one)} {of_task}") for name, n in counts.items() if n]
            few += [entry for entry in have if entry[0] < block.size]
            repeating += [entry for entry in have if block.size <= entry[0] < block.size * block.per_query]
    if few:
        found.add(("principles", "size"), f"{min(few)[1]}, fewer than {block.size}; lower 'size'")
    if repeating:
        n, has = min(repeating)
        need = f"fewer than {block.per_query} constitutions of {block.size} need without repeating a principle"
        found.add(("principles", "per_query"), f"{has}, {need}; lower 'per_query' to {n // block.size}")
    if len(kinds) == len(spec.tasks):
        for index, principle_set in enumerate(sets.values()):
            if not any(principle_set.select(kind, split) for kind in kinds.values() for split in block.splits):
                about = " and ".join(sorted({kind for p in principle_set.principles for kind in p.task}))
                message = f"'{principle_set.name}' is for {about}: nothing for these tasks and splits; leave it out"
                found.add(("principles", "sets", index), message)


def _check_judged_by(spec: Spec, sets: dict[str, PrincipleSet], found: _Problems) -> None:
    """The principles that judges go by are principles, and every constitution of the task has one of them."""
    for task, settings in spec.tasks.items():
        if settings.judged_by is None or settings.task not in KINDS or len(sets) < len(spec.principles.sets):
            continue
        location: Location = ("tasks", task, "judged_by")
        kind = KINDS[settings.task]
        known = {p.id for s in sets.values() for p in s.select(kind)}
        for index, name in enumerate(settings.judged_by):
            if name not in known:
                found.add((*location, index), f"no set has a principle '{name}' for {kind}; {nearest(name, known)}")
        for split in spec.principles.splits:
            for principle_set in sets.values():
                others = [p.id for p in principle_set.select(kind, split) if p.id not in settings.judged_by]
                if known.issuperset(settings.judged_by) and len(others) >= spec.principles.size:
                    found.add(
                        location,
                        f"a constitution of {spec.principles.size} {split.replace('_', '-')} principles of '{principle_set.name}' "
                        f"can be without any of these ('{others[0]}' is none of them); name more, raise principles.size, or "
                        "leave the field out",
                    )


# --- Models


def _used(spec: Spec) -> set[str | None]:
    """The models that answer or judge."""
    return spec.answering() | {judge.model for judge in spec.judges.values()}


def _check_models(spec: Spec, found: _Problems, to_run: bool) -> None:
    for name, model in spec.models.items():
        location: Location = ("models", name)
        if model.path is None:
            _refuse(
                model, (*_API_ONLY, "revision", "trust_remote_code"), "a model that the run trains", location, found
            )
        elif (problem := _unknown_backend(model.path or "")) is not None:
            found.add((*location, "path"), problem)
        elif (backend := model_backend(model.path or "")) in _API:
            _refuse(model, _LOCAL_ONLY, "an API model", location, found)
            _check_api_model(name, model, backend, name in _used(spec), found, to_run)
        elif backend == "recorded":
            _refuse(
                model, (*_API_ONLY, *_LOCAL_ONLY, "sampling"), "a model whose answers are recorded", location, found
            )
            with found.at((*location, "path")):
                if to_run or not is_elsewhere(model.path or ""):
                    read_answers(answers_file(model.path or ""))
        else:
            _refuse(model, _API_ONLY, "a model that runs here", location, found)
            if to_run or not is_elsewhere(model.path or ""):
                _check_local_model(name, model, found)


def is_elsewhere(path: str) -> bool:
    """Whether what a path names, a folder or an embedded model's package, is not on this machine but may be on another."""
    backend = model_backend(path)
    if backend == "embedded":
        name = path.partition("/")[2]
        return name in EMBEDDED and any(importlib.util.find_spec(p) is None for p in EMBEDDED[name].packages)
    if backend in _API or is_there(expanded(path.removeprefix(f"{backend}/"))):
        return False
    try:
        return backend == "recorded" or parse_source(path).kind == "folder"
    except UserError:  # it looks like a folder's name, and there is no such folder
        return True
    except (OSError, ValueError):  # no disk takes it
        return False


def _unknown_backend(path: str) -> str | None:
    """A problem with the path's prefix: one like a back end's, or one before a hub id."""
    prefix, slash, rest = path.partition("/")
    if not slash or prefix in BACKENDS:
        return None if rest or prefix not in BACKENDS else f"'{path}' names no model; write {prefix}/NAME"
    if not prefix or prefix[0] in ".~" or Path(path).is_dir():
        return None
    is_like_one = bool(get_close_matches(prefix.lower(), BACKENDS, n=1, cutoff=0.8))
    if is_like_one or (re.fullmatch(r"[\w-]+", prefix) and rest.count("/") == 1 and "@" not in rest.partition("/")[0]):
        return f"there is no back end '{prefix}'; {nearest(prefix.lower(), BACKENDS)}"
    return None


def _refuse(model: ModelSpec, fields: Sequence[str], what: str, location: Location, found: _Problems) -> None:
    for field in fields:
        if getattr(model, field) != ModelSpec.model_fields[field].default:
            found.add((*location, field), f"{what} has no '{field}'; leave it out")


def _check_local_model(name: str, model: ModelSpec, found: _Problems) -> None:
    with found.at(("models", name, "path")):
        source = parse_source(model.path or "")
        check_source(source)
        if model.revision is not None and source.kind != "hub":
            found.add(("models", name, "revision"), "only a hub id has revisions; leave it out")
        elif source.revision is not None and model.revision not in (None, source.revision):
            found.add(("models", name, "revision"), f"the path says '@{source.revision}' already; keep one of them")
        if model.style == "chat" and has_chat_template(source) is False:
            message = (
                f"'{model.path}' has no chat template; write 'style: completion', or name its instruction-tuned version"
            )
            found.add(("models", name, "style"), message)


def _check_api_model(
    name: str, model: ModelSpec, backend: str, used: bool, found: _Problems, to_run: bool = True
) -> None:
    variable, address = variables_of(backend)
    if not (model.path or "").partition("/")[2]:
        found.add(("models", name, "path"), f"'{model.path}' names no model; write {backend}/NAME")
    if backend == "anthropic" and model.style != "chat":
        found.add(("models", name, "style"), "Anthropic's interface has chats only; write 'style: chat'")
    if to_run and importlib.util.find_spec(backend) is None:
        found.add(("models", name, "path"), MissingPackage(backend, extra=backend))
    try:
        base_url = check_base_url(model.base_url or os.environ.get(address) or None, name)
        if used and to_run:
            resolve_key(None, variable=variable, base_url=base_url, name=name)
    except UserError as error:
        message = str(error).removeprefix(f"model '{name}': ")
        found.add(("models", name, "base_url" if "'base_url'" in message else "path"), message)


# --- Training


def _check_training(
    spec: Spec, name: str, tasks: dict[str, TaskData], sets: dict[str, PrincipleSet], found: _Problems
) -> None:
    model = spec.models[name]
    if model.train is None:
        return
    location: Location = ("models", name, "train")
    with found.at((*location, "from")):
        start = _check_from(spec, name)
        with suppress(UserError, OSError, ValueError):  # a path that is no model is a problem of that other model
            if model.style == "chat" and start is not None and has_chat_template(parse_source(start)) is False:
                message = f"it is trained from '{start}', which has no chat template; write 'style: completion'"
                found.add(("models", name, "style"), message)
    for index, task in enumerate(model.train.tasks or ()):
        if task not in spec.tasks:
            found.add((*location, "tasks", index), f"there is no task '{task}' here; {nearest(task, spec.tasks)}")
        elif task in (model.train.tasks or ())[:index]:
            found.add((*location, "tasks", index), f"'{task}' stands twice; keep one")
    recipe = _check_recipe(spec, name, found)
    wanted = [task for task in (model.train.tasks or spec.tasks) if task in spec.tasks]
    if recipe is None:
        return
    if len(sets) == len(spec.principles.sets):
        for kind in sorted({KINDS[spec.tasks[task].task] for task in wanted if spec.tasks[task].task in KINDS}):
            n = len({principle.id for s in sets.values() for principle in s.select(kind, "learned")})
            if n < recipe.principles_per_constitution:
                need = f"training on {kind} needs {recipe.principles_per_constitution} learned principles or more"
                found.add(location, f"{need}, and the sets have {n}; add a set, or set 'tasks' to others")
    with found.at(location):
        of_recipe = templates_of(recipe, set(KINDS.values()), folders_of(model.train.recipe))
        for of_run in (spec.tasks[task] for task in wanted if recipe.reasoning and spec.tasks[task].task in KINDS):
            template = load_template(of_run.template) if of_run.template else of_recipe[KINDS[of_run.task]]
            template.answer_marker()
    if wanted and all(task in tasks for task in wanted):
        with found.at(location):
            queries = [query for task in wanted for query in tasks[task].train]
            split_queries(queries, recipe)
            known = recipe.needs_intents and len(sets) == len(spec.principles.sets)
            for kind in sorted({query.task for query in queries}) if known else ():
                learned = distinct(principle for s in sets.values() for principle in s.select(kind, "learned"))
                check_intents([query for query in queries if query.task == kind], learned, recipe)


def _check_iteration(spec: Spec, name: str, found: _Problems) -> None:
    """An iteration belongs to a model above it that is trained here, with as many iterations, and is spoken to like it."""
    model = spec.models[name]
    if model.iteration_of is None or model.iteration is None:
        return
    location: Location = ("models", name)
    whole = model.iteration_of
    of = spec.models.get(whole)
    if of is None or of.train is None:
        trained = [n for n, m in spec.models.items() if m.train is not None]
        hint = nearest(whole, trained) if trained else f"give '{name}' a 'path' too"
        what = f"there is no model '{whole}' here" if of is None else f"'{whole}' is not trained by this run"
        found.add((*location, "iteration_of"), f"{what}; {hint}")
        return
    if list(spec.models).index(whole) > list(spec.models).index(name):
        found.add((*location, "iteration_of"), f"put '{whole}' above '{name}', for models are made in their order")
    if model.style != of.style:
        found.add((*location, "style"), f"'{whole}' is trained with the style {of.style}; write that")
    with suppress(UserError, ValidationError):  # a problem of the training
        iterations = load_recipe(of.train.recipe, of.train.set).iterations
        if model.iteration > iterations:
            message = f"the training of '{whole}' ends with iteration {iterations}; lower it"
            found.add((*location, "iteration"), message)


def _check_from(spec: Spec, name: str) -> str | None:
    """The path of the local model that training goes back to; None where another problem hides it.

    Raises UserError unless the model can be trained from what it names.
    """
    seen = [name]
    while (start := _made_from(spec.models[seen[-1]])) is not None:
        if start not in spec.models:
            if len(seen) == 1:
                raise UserError(f"there is no model '{start}' here; {nearest(start, set(spec.models) - {name})}")
            return None  # a problem of that other model
        if start in seen:
            way = (
                f"'{name}' cannot be trained from itself"
                if len(seen) == 1
                else f"{' from '.join([*seen, start])} is a circle"
            )
            raise UserError(f"{way}; name a model that has a 'path'")
        seen.append(start)
    if len(seen) > 2 and list(spec.models).index(seen[1]) > list(spec.models).index(name):
        raise UserError(f"'{seen[1]}' is trained itself; put it above '{name}', for models are trained in their order")
    path = spec.models[seen[-1]].path or ""
    if (backend := model_backend(path)) in _API or backend == "recorded":
        if len(seen) == 2:
            what = (
                "has recorded answers and no weights"
                if backend == "recorded"
                else "is an API model, whose weights are not here"
            )
            raise UserError(f"'{seen[-1]}' {what}; name a local model")
        return None
    return path


def _made_from(model: ModelSpec) -> str | None:
    """The model that has to be there before this one is made."""
    return model.iteration_of if model.train is None else model.train.from_


def _check_recipe(spec: Spec, name: str, found: _Problems) -> Recipe | None:
    """The recipe with the specification's changes, as the run will use it; None when there is a problem with it."""
    model = spec.models[name]
    train = model.train
    assert train is not None
    location: Location = ("models", name, "train")
    before = len(found.sentences)
    with found.at((*location, "recipe")):
        load_recipe(train.recipe)
    if len(found.sentences) > before:
        return None
    for field, value in train.set.items():
        place = (*location, "set", field)
        if field in _SET_BY_HARNESS:
            found.add(place, f"the run sets '{field}' of a recipe itself; leave it out")
            continue
        if field not in Recipe.model_fields:
            known = set(Recipe.model_fields) - set(_SET_BY_HARNESS)
            found.add(place, f"a recipe has no field '{field}'; {nearest(field, known)}")
            continue
        document = LinedDocument(Path(train.recipe), {field: value})
        try:
            Recipe.model_validate({**load_recipe(train.recipe).model_dump(), field: value})
        except ValidationError as error:
            if not error.errors()[0]["loc"]:  # fields that do not fit together: all of them are checked below
                continue
            for _, sentence, _ in problems(error, document, Recipe):
                message = sentence.removeprefix(f"{document.path}: ")
                found.add(place, message.removeprefix(f"'{field}': "))
    if len(found.sentences) > before:
        return None
    changes: dict[str, Any] = {"seed": spec.seed, **train.set, "style": model.style}
    recipe: Recipe | None = None
    with found.at(location):
        recipe = load_recipe(train.recipe, changes)
    return recipe


# --- Judges and comparisons


def _check_judges(spec: Spec, sets: dict[str, PrincipleSet], found: _Problems) -> None:
    for name, judge in spec.judges.items():
        if judge.kind == "verifiable":
            _check_verifiable(spec, name, sets, found)
        if judge.model is not None and judge.model not in spec.models:
            found.add(
                ("judges", name, "model"),
                f"there is no model '{judge.model}' here; {nearest(judge.model, spec.models)}",
            )
        elif judge.model is not None and model_backend(spec.models[judge.model].path or "") == "recorded":
            found.add(
                ("judges", name, "model"), f"'{judge.model}' has recorded answers and cannot judge; name another model"
            )
        if judge.model in spec.models:
            _check_form(name, judge, spec.models[judge.model], found)
        if judge.template is not None:
            with found.at(("judges", name, "template")):
                template = load_judge_template(judge.template)
                for task, kind in ((name, KINDS.get(task.task)) for name, task in spec.tasks.items()):
                    if kind not in (None, template.task):
                        raise UserError(
                            f"'{judge.template}' is for {template.task}, but the task '{task}' is {kind}; "
                            "leave 'template' out, and each task gets the prompt of its kind"
                        )
                if judge.structured == "on" and template.structured is None:
                    raise UserError(
                        f"'{judge.template}' has no form 'structured', for which this judge asks; add the form to the file, "
                        "or set structured: off"
                    )


def _check_form(name: str, judge: JudgeSpec, model: ModelSpec, found: _Problems) -> None:
    """Whether the model can judge in the way that is asked of it."""
    is_api = model.train is None and model_backend(model.path or "") in _API
    if judge.form == "choice" and is_api:
        message = "an API model's probabilities are not read; write 'form: text', or leave 'form' out"
        found.add(("judges", name, "form"), message)
    if judge.structured == "on" and not (is_api and model.style == "chat"):
        which = f"the {'model in style completion' if is_api else 'local model'} '{judge.model}'"
        message = f"{which} is held to no schema; leave 'structured' out, and its last line is read"
        found.add(("judges", name, "structured"), message)
    if not is_api and (given := list(judge.given())):
        option = api_only(judge)
        if judge.form != "text":
            message = "a local model writes nothing in the form 'choice'; set form: text, or leave this out"
            found.add(("judges", name, option or given[0]), message)
        elif option is not None:
            found.add(("judges", name, option), "this is for API models; leave it out")
    elif is_api:
        options = RequestOptions(**{**model.sampling.given(), **judge.given()})
        if problem := reasoning_problem(model.path, options):
            found.add(("judges", name, "reasoning"), problem)


def _check_verifiable(spec: Spec, name: str, sets: dict[str, PrincipleSet], found: _Problems) -> None:
    """A verifiable judge is given every constitution of the run, so every principle evaluated needs a check."""
    kinds = {KINDS.get(task.task) for task in spec.tasks.values()}
    for principle_set in sets.values():
        used = [
            p
            for p in principle_set.principles
            if p.split in spec.principles.splits and (None in kinds or kinds & set(p.task))
        ]
        without = [p.id for p in used if p.check is None]
        if without:
            some = "none of its principles has one" if len(without) == len(used) else f"'{without[0]}' has none"
            message = f"this judge needs a check on every principle, but in the set '{principle_set.name}' {some}"
            found.add(("judges", name), f"{message}; add checks, leave the set out, or use a judge of kind llm")


def _check_comparisons(spec: Spec, found: _Problems) -> None:
    seen: set[frozenset[str]] = set()
    for index, pair in enumerate(spec.comparisons):
        location: Location = ("comparisons", index)
        for side, name in (("a", pair.a), ("b", pair.b)):
            if name not in spec.models:
                found.add((*location, side), f"there is no model '{name}' here; {nearest(name, spec.models)}")
        if pair.a == pair.b:
            found.add(location, f"'{pair.a}' is compared with itself; name two models")
        elif frozenset((pair.a, pair.b)) in seen:
            found.add(location, f"'{pair.a}' and '{pair.b}' are compared above already; keep one")
        seen.add(frozenset((pair.a, pair.b)))


def _check_swapped(spec: Spec, sets: dict[str, PrincipleSet], found: _Problems) -> None:
    """A swapped constitution shares no principle with the given one, so a set needs twice as many as one has."""
    if not spec.measures.swapped:
        return
    size = spec.principles.size
    few: list[tuple[int, str]] = []
    for principle_set in sets.values():
        for task, kind in ((name, KINDS.get(task.task)) for name, task in spec.tasks.items()):
            for split in spec.principles.splits:
                n = len(principle_set.select(kind, split)) if kind else 0
                if size <= n < 2 * size:
                    said = f"{counted(n, split.replace('_', '-') + ' principle')} for the task '{task}'"
                    few.append((n, f"the set '{principle_set.name}' has {said}"))
    if few:
        message = (
            f"{min(few)[1]}, and swapping needs {2 * size}; add principles, lower principles.size, or set it to false"
        )
        found.add(("measures", "swapped"), message)


def _check_stop(spec: Spec, tasks: dict[str, TaskData], found: _Problems) -> None:
    """The first judge sees every query that a rule for stopping counts, and no look lies beyond the last of them."""
    stop = spec.statistics.stop
    if stop is None:
        return
    if not spec.comparisons:
        found.add(
            ("statistics", "stop"),
            "nothing is compared, so nothing can be decided early; leave it out, or add 'comparisons'",
        )
    name, judge = next(iter(spec.judges.items()))
    if judge.limit is not None:
        message = (
            f"'{name}' decides when statistics.stop is met, and must see every query; set tasks.*.limit in its place"
        )
        found.add(("judges", name, "limit"), message)
    n = sum(len(data.evaluation) for data in tasks.values())
    if stop.looks and len(tasks) == len(spec.tasks) and stop.looks[-1] > n:
        message = (
            f"the last look is at {stop.looks[-1]} queries, and the tasks have {n}; lower it, or raise tasks.*.limit"
        )
        found.add(("statistics", "stop", "looks"), message)


def _check_relevance(spec: Spec, found: _Problems, to_run: bool) -> None:
    """Relevance is scored by a model that runs here: one of the specification, or an embedded one that is installed."""
    settings = spec.measures.relevance
    if settings is None:
        return
    place: Location = ("measures", "relevance")
    if settings.embedded and (to_run or not is_elsewhere(EMBEDDED_SCORER)):
        with found.at((*place, "embedded")):
            check_source(parse_source(EMBEDDED_SCORER))
    name = settings.scorer
    local = [n for n, m in spec.models.items() if model_backend(m.path or "") not in (*_API, "recorded")]
    if name is None or name in local:
        return
    with found.at((*place, "scorer")):
        if name in spec.models:
            raise UserError(f"'{name}' does not run here, so it gives no probabilities; {nearest(name, local)}")
        if not name.startswith("embedded/"):
            raise UserError(f"there is no model '{name}' here; {nearest(name, [*local, EMBEDDED_SCORER])}")
        if to_run or not is_elsewhere(name):
            check_source(parse_source(name))


def _closest(name: str, known: Sequence[str]) -> str | None:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else None
