"""`harness principles`: check principle sets, see what a model will read of them, or have a model write one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli._arguments import HarnessParser, add_json, add_verb, count, names, whole_number
from harness.cli._errors import QualityError, RunError
from harness.cli._models import require_model_to_ask, style_of
from sami_train.errors import Problems, UserError
from sami_train.text import counted, printable

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers
    from harness.models.base import Backend
    from harness.writer import Answers, Draft
    from sami_train.constitutions import PrincipleSet
    from sami_train.data import Query
    from sami_train.prompts import Style


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb and its three."""
    parser = add_verb(
        subparsers,
        "principles",
        None,
        usage="VERB [options]",
        help="check principle sets (lint), see them in prompts (sample), or have a model write one (write)",
    )
    parser.set_defaults(execute=lambda _: _no_verb(parser), parser=parser)
    verbs = parser.add_subparsers(
        title="verbs", prog=parser.prog, metavar="VERB", dest="principles_verb", parser_class=HarnessParser
    )
    lint = add_verb(
        verbs,
        "lint",
        execute_lint,
        usage="[SET ...] [--json]",
        help="look for mistakes in principle sets",
        description="Look for mistakes: near-duplicates, held-out principles among the learned ones, checks that "
        "cannot run, definitions that pass their own check. Exits with 0 when all is clean, 2 when a set cannot be read, 3 when "
        "something is suspicious. A definition that passes its own check is a warning in a set of yours, which leaves the exit "
        "code as it is, since copied text does not count in a comparison.",
        epilog="""\
examples:
  harness principles lint              every set at hand
  harness principles lint diverse my-principles.yaml""",
    )
    lint.add_argument("sets", nargs="*", metavar="SET", help="names or files (default: every set at hand)")
    add_json(lint)
    sample = add_verb(
        verbs,
        "sample",
        execute_sample,
        usage="SET [options]",
        help="draw constitutions and print the prompts that a model reads",
        description="Draw constitutions and print the prompts as a model reads them, each with a bundled query.",
        epilog="""\
examples:
  harness principles sample verifiable
  harness principles sample diverse -n 5 --split held-out --style chat
  harness principles sample my-principles.yaml --task dialogue --json""",
    )
    sample.add_argument("set", metavar="SET", help="a principle set, by name or file")
    sample.add_argument("-n", type=count, default=3, metavar="N", help="how many to draw (default: 3)")
    sample.add_argument(
        "--task",
        choices=("dialogue", "summarization"),
        metavar="TASK",
        help="dialogue or summarization (default: that of the set's first principle)",
    )
    sample.add_argument(
        "--style",
        choices=("completion", "chat"),
        default="completion",
        metavar="STYLE",
        help="completion (default) or chat",
    )
    sample.add_argument(
        "--split",
        type=lambda text: text.replace("-", "_"),
        choices=("learned", "held_out"),
        metavar="SPLIT",
        help="learned or held-out (default: any)",
    )
    sample.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of the draw (default: 0)")
    add_json(sample)
    _add_write(verbs)


def _add_write(verbs: Subparsers) -> None:
    write = add_verb(
        verbs,
        "write",
        execute_write,
        usage="--model PATH --task TASK [options]",
        help="have a model write a principle set, for review",
        description="Ask a model for definitions and antitheses of principles, one principle at a time. Answers are "
        "checked (form, length, copies, near-duplicates, held-out principles close to learned ones); a refused one is "
        "asked for again with the reason. The result is shown for review and written only when you agree, or with "
        "--yes. Every answer is kept beside FILE (.FILE.writing.jsonl) until all principles are written, so the same "
        "command goes on after a stop. Exits with 3 when principles had to be left out.",
        epilog="""\
examples:
  harness principles write --model anthropic/MODEL --task summarization \\
      --principles concise,comprehensive --n 20 --held-out 5 -o mine.yaml
  harness principles write --model openai/MODEL \\
      --base-url http://localhost:8000/v1 --task dialogue,summarization \\
      --n 10 --name styles --yes""",
    )
    write.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help="embedded/NAME, a folder, a hub id, openai/NAME or anthropic/NAME",
    )
    write.add_argument(
        "--task",
        required=True,
        type=names,
        action="extend",
        metavar="TASK",
        help="dialogue or summarization, or both with a comma: what each principle is for",
    )
    write.add_argument(
        "--principles",
        type=names,
        action="extend",
        default=[],
        metavar="A,B",
        help="names that the set must contain (default: none); the model names the others",
    )
    write.add_argument("--n", type=count, metavar="N", help="principles in all (default: as many as are named, or 10)")
    write.add_argument(
        "--held-out",
        type=whole_number,
        default=0,
        metavar="K",
        help="how many of them are held out: the last ones that the model named; those of --principles only where "
        "there are no others (default: 0)",
    )
    write.add_argument("-o", "--output", metavar="FILE", help="the .yaml file (default: principles/NAME.yaml)")
    write.add_argument("--name", metavar="NAME", help="of the set (default: FILE without folder and suffix)")
    write.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")
    write.add_argument("--yes", action="store_true", help="write without asking")
    write.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of the sampling (default: 0)")
    write.add_argument(
        "--temperature", type=_temperature, default=0.7, metavar="T", help="of the sampling, 0 to 2 (default: 0.7)"
    )
    write.add_argument(
        "--max-tries", type=count, default=3, metavar="N", help="answers asked for per principle (default: 3)"
    )
    write.add_argument(
        "--max-new-tokens", type=count, default=400, metavar="N", help="longest answer, in tokens (default: 400)"
    )
    write.add_argument(
        "--style",
        choices=("completion", "chat"),
        metavar="STYLE",
        help="completion or chat (default: chat for API models and where the tokenizer has a chat template)",
    )
    write.add_argument("--base-url", metavar="URL", help="API models: another server's address")
    add_json(write)


def execute_lint(options: argparse.Namespace) -> int:
    """0 when every set is clean, 2 when one cannot be read, 3 when something is suspicious."""
    from harness.cli._screen import print_json, write
    from sami_train.constitutions import list_principle_sets, load_principle_set

    named = options.sets or list(list_principle_sets())
    if not named:
        raise UserError("there are no principle sets at hand; name a file, or set HARNESS_PRINCIPLES to a folder")
    rows: list[dict[str, Any]] = []
    for name in named:
        try:
            found = load_principle_set(name)
        except UserError as error:
            said = {"problems": list(error.problems) if isinstance(error, Problems) else [str(error)], "warnings": []}
            rows.append({"set": name, "file": None, "principles": 0, "readable": False, **said})
        else:
            problems, warnings = _problems(found)
            said = {"problems": problems, "warnings": warnings}
            rows.append(
                {
                    "set": found.name,
                    "file": str(found.file),
                    "principles": len(found.principles),
                    "readable": True,
                    **said,
                }
            )
    if options.json:
        print_json(rows)
    else:
        for row in rows:
            lines = [*row["problems"], *(f"warning: {warning}" for warning in row["warnings"])]
            for line in lines or [f"{counted(row['principles'], 'principle')}, nothing found"]:
                has_place = not row["readable"] or line.startswith(f"{row['file']}:")
                write(f"{line}\n" if has_place else f"{row['set']}: {line}\n")
    return 2 if not all(row["readable"] for row in rows) else 3 if any(row["problems"] for row in rows) else 0


def execute_sample(options: argparse.Namespace) -> int:
    """Print the prompts of `n` constitutions and, below each, its opposite."""
    from harness.cli._screen import print_json
    from sami_train.constitutions import load_principle_set, sample_constitutions
    from sami_train.prompts import load_template

    found = load_principle_set(options.set)
    task = options.task or found.principles[0].task[0]
    principles = found.select(task, options.split)
    if not principles:
        which = f"{options.split.replace('_', '-')} " if options.split else ""
        raise UserError(f"the set '{found.name}' has no {which}principles for {task}; change --task or --split")
    queries = _example_queries(task, options.n)
    numbers = [str(number) for number in range(options.n)]
    drawn = sample_constitutions(principles, numbers, per_query=1, size=1, polarity="both", seed=options.seed)
    template = load_template(task)
    samples = []
    for query, (constitution, opposite) in zip(queries, drawn.values(), strict=True):
        prompt = template.render(constitution.lines(), query.text, options.style)
        samples.append(
            {
                "set": found.name,
                "task": task,
                "split": constitution.elements[0].principle.split,
                "style": options.style,
                "query_id": query.id,
                "constitution": constitution.id,
                "prompt": prompt.text if options.style == "completion" else prompt.chat,
                "opposite": opposite.id,
                "opposite_lines": opposite.lines(),
            }
        )
    if options.json:
        print_json(samples)
    else:
        _print_samples(samples)
    return 0


def execute_write(options: argparse.Namespace) -> int:
    """0 when all principles are there; QualityError when some had to be left out, RunError when the model fails."""
    from datetime import UTC, datetime

    from harness import writer
    from harness.cli._screen import console
    from sami_train.constitutions import lint

    require_model_to_ask("--model", options.model, "write principles")
    file, name = _written_file(options.output, options.name, overwrite=options.overwrite)
    given = tuple(options.principles)
    assignment = writer.Assignment(
        tasks=tuple(dict.fromkeys(options.task)),
        given=given,
        n=options.n or len(given) or 10,
        held_out=options.held_out,
        style=options.style or style_of(options.model),
        seed=options.seed,
        max_tries=options.max_tries,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
    )
    template = writer.load_writer_template()
    identity, open_backend = _model_to_ask(options.model, assignment.style, options.base_url)
    answers = writer.Answers(file.with_name(f".{file.name}.writing.jsonl"), identity, open_backend)
    screen = console(stderr=True)
    try:
        draft = writer.write_principles(
            assignment, template, answers.ask, lambda line: screen.print(line, markup=False, soft_wrap=True)
        )
    except writer.ModelUnusableError as error:
        raise RunError(str(error)) from error
    finally:
        answers.close()
    if not draft.written:
        if options.json:
            _print_written(file, None, draft, [], is_written=False)
        else:
            _print_review(None, draft, [])
        raise QualityError(f"none of the {assignment.n} principles could be written; {_what_to_do(options)}")
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    found = writer.build_set(name, draft, assignment, template, model=_shown_model(options), date=date)
    problems = lint(found)
    if not options.json:
        _print_review(found, draft, problems)
    is_written = _write_if_agreed(file, found, answers, options, is_complete=not draft.left_out)
    if options.json:
        _print_written(file, found, draft, problems, is_written=is_written)
    if draft.left_out:
        raise QualityError(
            f"{len(draft.left_out)} of {assignment.n} principles could not be written; {_what_to_do(options)}"
        )
    return 0


def _no_verb(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    raise UserError("name a verb, for example: harness principles lint")


def _problems(found: PrincipleSet) -> tuple[list[str], list[str]]:
    """What the lint finds and the checks that cannot run; and what is a warning in a set that is not shipped."""
    from harness.judges.checks import validate_check
    from harness.judges.verifiable import copy_findings
    from sami_train.constitutions import is_shipped, lint
    from sami_train.yamlfile import read_yaml

    problems, copies = lint(found), []
    for number, principle in enumerate(found.principles):
        if principle.check is not None:
            try:
                validate_check(principle.check)
            except UserError as error:
                place = read_yaml(found.file, "principle set").where(("principles", number, "check"))
                problems.append(f"{place}: {principle.id}: {error}")
            else:
                copies += copy_findings([principle])
    return ([*problems, *copies], []) if is_shipped(found) else (problems, copies)


def _example_queries(task: str, n: int) -> list[Query]:
    """`n` of the bundled evaluation queries of a kind of task, from the start again when they run out."""
    from harness.tasks import TaskSpec, load_task

    name = {"dialogue": "hh-rlhf", "summarization": "tldr"}[task]
    queries = load_task(name, TaskSpec(task=name)).evaluation
    return [queries[index % len(queries)] for index in range(n)]


RULE = 100
"""Columns of the line above a sample, at most."""


def _print_samples(samples: list[dict[str, Any]]) -> None:
    from rich.rule import Rule
    from rich.text import Text

    from harness.cli._screen import console

    screen = console()
    for number, sample in enumerate(samples, start=1):
        split = sample["split"].replace("_", "-")
        title = f" {number}/{len(samples)}  {sample['constitution']}  {split}, query {sample['query_id']} "
        screen.print(Rule(Text(title, style="bold"), align="left", style="dim"), width=min(screen.width, RULE))
        if sample["style"] == "completion":
            screen.print(Text(sample["prompt"]))
        else:
            for message in sample["prompt"]:
                screen.print(Text(f"[{message['role']}]", style="dim"))
                screen.print(Text(message["content"]))
        lines = " ".join(sample["opposite_lines"])
        screen.print(Text(f"\nThe opposite, {sample['opposite']}: {lines}\n", style="dim"))


def _temperature(text: str) -> float:
    """A number from 0 to 2."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 2")
    return value


def _written_file(output: str | None, name: str | None, *, overwrite: bool) -> tuple[Path, str]:
    """Where the set goes and what it is called. Raises UserError when neither is given, or the file may not be written."""
    from harness.writer import slug

    if output is None and name is None:
        raise UserError("say where the set goes: -o FILE, or --name NAME for principles/NAME.yaml")
    chosen = name if name is not None else slug(Path(str(output)).stem)
    if not chosen or slug(chosen) != chosen:
        raise UserError(f"--name: '{chosen}' cannot name a set; use a-z, 0-9 and single '-' between them")
    file = Path(output).expanduser() if output else Path("principles") / f"{chosen}.yaml"
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"-o: '{file}' is no YAML file; end its name in .yaml")
    if file.is_dir():
        raise UserError(f"-o: '{file}' is a folder; name a file")
    if file.exists() and not overwrite:
        raise UserError(f"{file} is there already; choose another file, or add --overwrite")
    return file, chosen


def _model_to_ask(path: str, style: Style, base_url: str | None) -> tuple[dict[str, Any], Callable[[], Backend]]:
    """What makes the model this model, and how it is opened. Raises UserError for what can be told beforehand."""
    from harness.models import open_model
    from harness.plan import api_fingerprint
    from harness.spec import EngineSpec, ModelSpec, model_backend
    from sami_train.models import check_source, parse_source, source_fingerprint

    model = ModelSpec(path=path, style=style, base_url=base_url)
    identity: dict[str, Any] = {"path": path, "base_url": base_url}
    if model_backend(path) not in ("openai", "anthropic"):
        if base_url is not None:
            raise UserError("--base-url is for openai/NAME and anthropic/NAME; leave it out for this model")
        source = parse_source(path)
        check_source(source)
        identity["weights"] = source_fingerprint(source)
    else:
        identity["served"] = api_fingerprint(model)
    return identity, lambda: open_model(path, model, lambda _: parse_source(path), EngineSpec())


def _shown_model(options: argparse.Namespace) -> str:
    """The model's path, and the server that it was asked at, without what else an address may hold."""
    from urllib.parse import urlsplit

    host = urlsplit(options.base_url or "").hostname
    return f"{options.model} at {host}" if host else str(options.model)


def _what_to_do(options: argparse.Namespace) -> str:
    return (
        f"try --max-tries {2 * options.max_tries} (answers so far are kept), another --seed or a more capable model, "
        "or write them by hand"
    )


def _write_if_agreed(
    file: Path, found: PrincipleSet, answers: Answers, options: argparse.Namespace, *, is_complete: bool
) -> bool:
    """Write the set with --yes, or when the person at the terminal says so; without one, print what would be written."""
    from harness.cli._screen import write
    from harness.store import write_atomic
    from harness.writer import to_yaml

    text = to_yaml(found)
    is_asked = not options.yes and not options.json and sys.stdin.isatty() and sys.stderr.isatty()
    if not options.yes and not (is_asked and _agrees(file)):
        if not is_asked and not options.json:
            write(text)
        _say(f"not written; the same command with --yes writes {file}, the answers are kept")
        return False
    if file.exists() and not options.overwrite:
        raise UserError(f"{file} was made in the meantime; choose another file, or add --overwrite")
    write_atomic(file, text)
    if is_complete:
        answers.forget()
    _say(
        f"wrote {counted(len(found.principles), 'principle')} to {file}; whether the sides are contraries only a reader can tell"
    )
    return True


def _agrees(file: Path) -> bool:
    sys.stderr.write(printable(f"write {file}? [y/N] "))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _say(line: str) -> None:
    from harness.cli._screen import console

    console(stderr=True).print(line, markup=False, soft_wrap=True)


def _print_review(found: PrincipleSet | None, draft: Draft, problems: list[str]) -> None:
    """What was accepted and what was not, on stderr: stdout is for the YAML."""
    from rich.text import Text

    from harness.cli._screen import console, table

    screen = console(stderr=True)
    if found is not None:
        rows = [
            (p.id, p.split.replace("_", "-"), p.definition, p.antithesis, "; ".join(warnings) or "–")
            for p, _, warnings in draft.written
        ]
        shown = table(["principle", "split", "definition", "antithesis", "warnings"], rows)
        shown.padding = (1, 2, 0, 0)  # type: ignore[assignment]
        for column, ratio in zip(shown.columns[2:], (3, 3, 2), strict=True):
            column.ratio, column.no_wrap = ratio, False
        screen.print(shown)
    for problem in problems:
        screen.print(Text(f"lint: {problem}", style="yellow"))
    for left in draft.left_out:
        split = left.split.replace("_", "-")
        screen.print(
            Text(f"left out: {left.id or '(no name)'}, {split}: {left.refused.reason} ({left.refused.message})")
        )
        if answer := printable(" ".join(left.answer[:400].split()))[:80]:
            screen.print(Text(f"  the last answer began: {answer}", style="dim"))


def _print_written(
    file: Path, found: PrincipleSet | None, draft: Draft, problems: list[str], *, is_written: bool
) -> None:
    from harness.cli._screen import print_json

    fields = {"id", "split", "task", "definition", "antithesis"}
    print_json(
        {
            "file": str(file),
            "written": is_written,
            "name": found.name if found else None,
            "source": found.source if found else None,
            "principles": [
                {**w.principle.model_dump(mode="json", include=fields), "tries": w.tries, "warnings": list(w.warnings)}
                for w in draft.written
            ],
            "left_out": [
                {"id": w.id or None, "split": w.split, "reason": w.refused.reason, "message": w.refused.message}
                for w in draft.left_out
            ],
            "lint": problems,
            "answers": draft.n_answers,
            "reused": draft.n_reused,
        }
    )
