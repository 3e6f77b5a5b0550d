"""Other judges on responses that are there: nothing is generated, and the run's folder then holds all judges' verdicts.

A judge is named as briefly as possible: a judge of the run, a model of the run, a model's path, ``verifiable``, or a YAML
file with the fields of a judge; ``NAME=`` before any of them gives it the name that tables show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from harness.plan import Plan, is_api
from harness.rescore import plan_in, plan_of_run
from harness.spec import JudgeSpec, ModelSpec, RequestOptions, Spec, is_there, model_backend
from harness.validation import check_judging
from sami_train.errors import UserError, nearest
from sami_train.models import has_chat_template, parse_source
from sami_train.yamlfile import LinedDocument, all_problems, read_yaml

_PartT = TypeVar("_PartT", bound=BaseModel)


class NamedJudge(NamedTuple):
    """A judge by name, and its model by name where that is not one of the run's yet."""

    name: str
    judge: JudgeSpec
    model: ModelSpec | None = None


def prepare(
    folder: Path,
    judges: Sequence[str],
    *,
    limit: int | None = None,
    epochs: int | None = None,
    base_url: str | None = None,
    api: Mapping[str, Any] | None = None,
) -> tuple[Plan, list[str]]:
    """The plan of a run with these judges in it, and their names, for `harness.runner.judge_again`.

    Args:
        folder: the run's folder. Its responses must be complete.
        judges: what is typed for them (see the module).
        limit: queries that new judges see per task and split; None: as their file says, or all.
        epochs: times that new judges judge each pair.
        base_url: the server of judges that are named by a path; None: the provider's own.
        api: fields of those of the judges' models that are behind APIs, for example `max_connections`.

    Raises:
        UserError: a judge cannot be read or used, responses are missing, or `api` is given and no judge is behind an API.
    """
    plan = plan_of_run(folder)
    _require_responses(plan)
    spec = plan.spec
    names = []
    for text in judges:
        found = parse_judge(text, spec, base_url)
        changes = {key: value for key, value in (("limit", limit), ("epochs", epochs)) if value is not None}
        if found.name not in plan.spec.judges and changes:
            fields = {**found.judge.model_dump(), **changes}
            found = found._replace(judge=_valid(JudgeSpec, fields, _typed(text, fields)))
        for key, value in changes.items():
            if getattr(found.judge, key) != value:
                has = getattr(found.judge, key) or "none"
                raise UserError(
                    f"--{key} {value}: the run's judge '{found.name}' has {key} {has}; leave it out, or give the judge a name of "
                    f"its own: --judge NAME={text}"
                )
        spec = _with(spec, found)
        names.append(found.name)
    if base_url is not None and all(model.base_url != base_url for model in spec.models.values()):
        raise UserError(
            "--base-url is for judges named by a path (openai/NAME, anthropic/NAME); a judge's file has a field 'base_url'"
        )
    if api:
        spec = _asked_so(spec, names, api)
    check_judging(spec, names)
    models = {m for name in names if (m := spec.judges[name].model) and spec.models[m].path is not None}
    again = plan_in(folder, spec, look_at=models)  # a judge's model may be another one by now under the same path
    _require_unchanged(plan, again)
    return again if plan.upto is None else again.first(plan.upto), names


def _asked_so(spec: Spec, judges: Sequence[str], api: Mapping[str, Any]) -> Spec:
    """The specification with changes to the models of judges that are behind APIs."""
    models = {m: spec.models[m] for name in judges if (m := spec.judges[name].model) and is_api(spec.models[m])}
    if not models:
        raise UserError(
            f"'{next(iter(api))}' is of models behind an API, and none of these judges has one; leave it out"
        )
    changed = {name: model.model_copy(update=dict(api)) for name, model in models.items()}
    return spec.model_copy(update={"models": {**spec.models, **changed}})


def _require_responses(plan: Plan) -> None:
    for stage in plan.stages:
        if stage.kind == "generate" and (done := stage.done(plan.folder)) < stage.expected():
            raise UserError(
                f"{plan.folder}: {stage.name} has {done} of {stage.expected()} responses, and only complete ones are "
                f"judged again; go on with: harness run {plan.folder / 'spec.yaml'}"
            )


def _require_unchanged(plan: Plan, again: Plan) -> None:
    """Refuse to judge responses by what their own model is now, where that is another model."""
    for name, before in plan.model_fingerprints.items():
        is_writer = any(stage.kind == "generate" and stage.model == name for stage in plan.stages)
        if is_writer and again.model_fingerprints.get(name) != before:
            raise UserError(
                f"{plan.folder}: the model '{name}' wrote responses of this run and is another one now "
                f"({plan.model(name).path} has changed); copy the changed model to another path and name that as the judge"
            )


def _with(spec: Spec, new: NamedJudge) -> Spec:
    """The specification with one more judge, and its model."""
    judges = {**spec.judges, new.name: new.judge}
    models = spec.models if new.model is None else {**spec.models, str(new.judge.model): new.model}
    return spec.model_copy(update={"judges": judges, "models": models})


# --- What is typed for a judge


def parse_judge(text: str, spec: Spec, base_url: str | None = None) -> NamedJudge:
    """The judge that `text` means in the run of `spec`; where it is a model's path, the one on the server `base_url`.

    Raises:
        UserError: it means none, or another judge of that name is there.
    """
    before, equals, after = text.partition("=")
    name, what = (before.strip(), after.strip()) if equals else (None, text.strip())
    if name is None and what in spec.judges:
        return NamedJudge(what, spec.judges[what])
    if not what or name == "":
        raise UserError(f"--judge {text}: this is not NAME=JUDGE; write, for example, --judge gpt=openai/gpt-4o-mini")
    if what.endswith((".yaml", ".yml")):
        found = _from_file(name, Path(what).expanduser(), spec)
    elif what == "verifiable":
        found = NamedJudge(name or what, JudgeSpec(kind="verifiable"))
    elif what in spec.models:
        found = NamedJudge(name or what, JudgeSpec(kind="llm", model=what))
    elif "/" in what or is_there(Path(what).expanduser()):
        model = {"path": _absolute(what, Path()), "base_url": base_url}
        found = _by_model(name or _short(what), {"kind": "llm"}, model, spec, _typed(text, {"model": model}))
    else:
        known = [*spec.judges, *spec.models, "verifiable"]
        raise UserError(
            f"--judge {text}: '{what}' is no judge and no model of this run; {nearest(what, known)} (others are written "
            "as openai/NAME, anthropic/NAME, embedded/NAME, a folder, or a .yaml file)"
        )
    there = spec.judges.get(found.name)
    if there is not None and not _same(there, found.judge):
        raise UserError(
            f"--judge {text}: the run has another judge named '{found.name}'; give this one a name of its own: "
            f"--judge NAME={what}"
        )
    return found if there is None else NamedJudge(found.name, there)


def _same(there: JudgeSpec, wanted: JudgeSpec) -> bool:
    """Whether a judge of the run is the wanted one; what is `auto` there was decided when the run was made."""
    fields = ["kind", "model", "template", "form", *RequestOptions.model_fields] + ["structured"] * (
        wanted.structured != "auto"
    )
    return all(getattr(there, field) == getattr(wanted, field) for field in fields)


def _from_file(name: str | None, file: Path, spec: Spec) -> NamedJudge:
    document = read_yaml(file, what="judge")
    if not isinstance(document.data, dict):
        raise UserError(f"{file}:1: a judge is a mapping with 'kind' and, for kind llm, 'model'; this is not one")
    fields = dict(document.data)
    chosen = name or str(fields.pop("name", file.stem))
    fields.pop("name", None)
    if isinstance(fields.get("template"), str) and fields["template"].endswith((".yaml", ".yml")):
        fields["template"] = _absolute(fields["template"], file.parent)
    model = fields.pop("model", None)
    if model is None or (isinstance(model, str) and model in spec.models):
        return NamedJudge(chosen, _valid(JudgeSpec, {**fields, "model": model}, document))
    described = {"path": model, "base_url": fields.pop("base_url", None)} if isinstance(model, str) else model
    if not isinstance(described, dict):
        raise UserError(
            f"{document.where(('model',))}: 'model': name a model of the run, a path, or a mapping with 'path'"
        )
    if isinstance(described.get("path"), str):
        described = {**described, "path": _absolute(described["path"], file.parent)}
    return _by_model(chosen, fields, described, spec, document)


def _by_model(
    name: str, judge: dict[str, Any], model: dict[str, Any], spec: Spec, document: LinedDocument
) -> NamedJudge:
    """An LLM judge whose model the specification does not have yet, or has under another name."""
    place = document.where(("model",))
    if "style" not in model and isinstance(model.get("path"), str):
        model = {**model, "style": _style(model["path"], place)}
    lines = {at[1:]: line for at, line in document.lines.items() if at[:1] == ("model",)}
    described = _valid(ModelSpec, model, LinedDocument(document.path, model, lines))
    called = next((known for known, there in spec.models.items() if there == described), None)
    new = None if called else described
    called = called or next(n for n in _candidates(name) if n not in spec.models)
    return NamedJudge(name, _valid(JudgeSpec, {**judge, "model": called}, document), new)


def _candidates(name: str) -> Iterator[str]:
    yield name
    yield f"{name}-judge"
    number = 2
    while True:
        yield f"{name}-judge-{number}"
        number += 1


def _style(path: str, where: str) -> str:
    """How a judge's model is spoken to, where nothing is said: as a chat where it has a template."""
    backend = model_backend(path)
    if backend in ("openai", "anthropic"):
        return "chat"
    if backend == "recorded":
        raise UserError(
            f"{where}: '{path}' has recorded answers to a run's queries and cannot judge; name another model"
        )
    has = has_chat_template(parse_source(path))
    if has is None:
        raise UserError(
            f"{where}: whether '{path}' has a chat template shows only when it is downloaded; say so in a file: "
            f"{{kind: llm, model: {{path: {path}, style: chat}}}}"
        )
    return "chat" if has else "completion"


def _short(path: str) -> str:
    """A model's path as a name for tables and files."""
    last = path.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip(".-_") or "judge"


def _absolute(text: str, folder: Path) -> str:
    """A path that is there, from `folder`; anything else as it is."""
    if text.partition("/")[0] in ("openai", "anthropic", "embedded"):
        return text
    path = folder / Path(text).expanduser()
    return str(path.absolute()) if is_there(path) else text


def _typed(text: str, fields: dict[str, Any]) -> LinedDocument:
    """What was typed, in the place of a file, for messages."""
    return LinedDocument(Path(f"--judge {text}"), fields)


def _valid(part: type[_PartT], fields: dict[str, Any], document: LinedDocument) -> _PartT:
    try:
        return part.model_validate(fields)
    except ValidationError as error:
        raise all_problems(error, document, part) from None
