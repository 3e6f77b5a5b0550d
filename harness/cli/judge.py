"""`harness judge`: hold an LLM judge against pairs whose better answer is known."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.cli._arguments import HarnessParser, add_json, add_verb, count, names, whole_number
from harness.cli._errors import QualityError, running
from harness.cli._models import require_model_to_ask, style_of
from harness.cli._specification import add_api_options, add_cost_options, api_option, api_settings
from sami_train.errors import UserError, nearest

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers
    from harness.judge_costs import Payment
    from harness.judge_validation import Judge
    from harness.progress import Display
    from harness.reference import LabelledPair, Writing

WRITER = "embedded/gemma-3-270m"
LIMIT = 50
"""Pairs that are written when nothing else is said."""
JUDGE, WRITE = "judge", "write responses"
_OPTIONS = ("max_new_tokens", "temperature", "reasoning")
"""Options with a field of the judge each."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb and its one."""
    parser = add_verb(
        subparsers,
        "judge",
        None,
        usage="VERB [options]",
        help="measure an LLM judge against known labels (validate)",
    )
    parser.set_defaults(execute=lambda _: _no_verb(parser), parser=parser)
    verbs = parser.add_subparsers(
        title="verbs", prog=parser.prog, metavar="VERB", dest="judge_verb", parser_class=HarnessParser
    )
    validate = add_verb(
        verbs,
        "validate",
        execute,
        usage="--judge J --reference FILE [options]",
        help="print a judge's card: how it behaves, and how far it agrees with known labels",
        description="Ask a judge about pairs whose better answer is known, in both orders, and print its card: accuracy, "
        "kappa, sensitivity, specificity, position consistency, share of the first place, length preference, unscored. The "
        "pairs come from a file (--reference), or from the checkable principles (--on verifiable): responses of a model "
        "under a principle and under its antithesis, or those of a finished run (--run), labelled by programs. Verdicts are "
        "kept in a folder, so the same command goes on after a stop. Exits with 3 when too many are unscored, or at --max-cost.",
        epilog="""\
examples:
  harness judge validate --judge embedded/smollm2-135m-instruct \\
      --on verifiable --limit 40
  harness judge validate --judge anthropic/MODEL --reference labelled.jsonl
  harness judge validate --judge gpt --spec my-run.yaml \\
      --on verifiable --run runs/mine
  harness judge validate --judge openai/MODEL --structured on \\
      --base-url http://localhost:8000/v1 --reference labelled.jsonl
  harness judge validate --judge openai/MODEL --reference labelled.jsonl \\
      --batch --max-cost 5""",
    )
    what = validate.add_argument_group("the judge")
    what.add_argument(
        "--judge",
        required=True,
        metavar="J",
        help="embedded/NAME, a folder, a hub id, openai/NAME or anthropic/NAME; with --spec, the name of its judge",
    )
    what.add_argument("--spec", metavar="SPEC", help="take the judge from this specification")
    what.add_argument("--template", metavar="FILE", help="a judge prompt, by name or file (default: that of the task)")
    what.add_argument("--style", choices=("completion", "chat"), metavar="STYLE", help="completion or chat")
    what.add_argument("--form", choices=("auto", "text", "choice"), metavar="FORM", help="auto (default), text, choice")
    what.add_argument(
        "--structured", choices=("auto", "on", "off"), metavar="X", help="JSON by schema: auto (default), on, off"
    )
    what.add_argument(
        "--max-new-tokens", type=count, metavar="N", help="tokens of an answer at most, reasoning included"
    )
    what.add_argument("--temperature", type=float, metavar="T", help="0 (default) is greedy; 1 with --epochs above 1")
    what.add_argument(
        "--reasoning", type=_reasoning, metavar="R", help="API models: none, low, medium, high, or tokens"
    )
    what.add_argument("--base-url", metavar="URL", help="API models: another server's address")
    pairs = validate.add_argument_group("the pairs")
    pairs.add_argument(
        "--reference",
        metavar="FILE",
        help="labelled pairs, a JSON object a line: query, principles, response_a, response_b, label (a, b, tie)",
    )
    pairs.add_argument("--on", choices=("verifiable",), metavar="verifiable", help="pairs that programs can label")
    pairs.add_argument("--run", metavar="RUN", help="with --on verifiable: the responses of this run")
    pairs.add_argument(
        "--writer",
        metavar="PATH",
        help=f"with --on verifiable: the model that writes the responses (default: {WRITER})",
    )
    pairs.add_argument(
        "--tasks",
        type=names,
        metavar="A,B",
        help="with --on verifiable: dialogue, summarization (default: both, taking turns)",
    )
    pairs.add_argument(
        "-L", "--limit", type=count, metavar="N", help=f"pairs (default: all there are; {LIMIT} where they are written)"
    )
    how = validate.add_argument_group("how")
    how.add_argument("--epochs", type=count, default=1, metavar="K", help="judge each pair so many times (default: 1)")
    how.add_argument(
        "--max-unscored", type=_share, default=0.02, metavar="SHARE", help="unscored verdicts allowed (default: 0.02)"
    )
    how.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of the draws (default: 0)")
    how.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, or cuda:NUMBER")
    how.add_argument("-o", "--output-path", metavar="FOLDER", help="where verdicts are kept (default: runs/judges/...)")
    how.add_argument(
        "-n", "--dry-run", action="store_true", help="only show what is left to ask, and what that will cost"
    )
    how.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    add_api_options(validate)
    add_cost_options(validate, limit=True)
    add_json(validate)


class _Job(NamedTuple):
    """What the options come to."""

    judge: Judge
    writing: Writing | None
    """The pairs that are to be written; None where they are there."""
    payment: Payment
    folder: Path


def execute(options: argparse.Namespace) -> int:
    """0 when the card is there; QualityError when too many verdicts are unscored or the limit of cost is reached, RunError
    when a model fails.
    """
    _check_options(options)
    job = _job(options)
    if options.dry_run:
        _show_plan(options, job)
    else:
        _validate(options, job)
    return 0


def _validate(options: argparse.Namespace, job: _Job) -> None:
    from harness.cli._screen import console, print_json
    from harness.cli.run import commonest, is_retried
    from harness.judge_validation import prompts_for, validate_judge
    from harness.progress import Display
    from harness.report.terminal import print_judge_card

    with Display(console(stderr=True), quiet=options.quiet) as display:
        display.plan({JUDGE: None} if job.writing is None else {WRITE: None, JUDGE: None})
        pairs = _pairs(options) if job.writing is None else _write_pairs(job.writing, job, display)
        prompts_for(job.judge, pairs)  # a prompt that does not fit is bad input, not a failed run
        display.stage(JUDGE, 0, 2 * options.epochs * len(pairs))
        with running():
            card = validate_judge(
                job.judge,
                pairs,
                job.folder,
                reference=_reference(options),
                repeats=options.epochs,
                max_unscored=options.max_unscored,
                payment=job.payment,
                say=display.note,
                progress=lambda done, _: display.advance(JUDGE, done),
            )
        display.finish(JUDGE)
    if options.json:
        print_json(card)
    else:
        screen = console()
        print_judge_card(card, screen)
        screen.print(f"\nverdicts: {job.folder / 'verdicts.jsonl'}", markup=False, soft_wrap=True)
    if not card["passed"]:
        raise QualityError(
            f"{card['unscored_rate']:.1%} of the verdicts are unscored (--max-unscored allows {options.max_unscored:.1%})"
            f"{commonest({'judge': card})}"
            f"{'; run again to retry failed requests' if is_retried({'judge': card}) else ''}"
        )


def _show_plan(options: argparse.Namespace, job: _Job) -> None:
    """What is left to ask, in tokens and dollars."""
    from harness.cli._cost import print_cost
    from harness.cli._screen import console, print_json
    from harness.judge_validation import planned

    pairs = job.writing or _pairs(options)
    cost = planned(job.judge, pairs, job.folder, repeats=options.epochs, payment=job.payment)
    if options.json:
        print_json({"judge": job.judge.name, "folder": str(job.folder), "cost": cost})
        return
    screen = console()
    screen.print(f"{job.judge.name} → {job.folder}", markup=False, soft_wrap=True)
    if not any(stage["is_api"] for stage in cost["stages"]):
        screen.print("\nNothing is left to ask of an API model.")
    print_cost(cost, screen)


def _no_verb(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    raise UserError("name a verb, for example: harness judge validate --judge J --on verifiable")


def _share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share from 0 to 1, such as 0.02")
    return value


def _reasoning(text: str) -> str | int:
    """A word, or a number of tokens."""
    if text in ("none", "low", "medium", "high"):
        return text
    return count(text)


def _check_options(options: argparse.Namespace) -> None:
    if (options.reference is None) == (options.on is None):
        raise UserError("say what the judge is held against: --reference FILE, or --on verifiable")
    if options.on is None:
        given = [name for name in ("run", "writer", "tasks") if getattr(options, name) is not None]
        if given:
            raise UserError(f"--{given[0]} goes with --on verifiable; leave it out beside --reference")
    if options.run is not None:
        given = [name for name in ("writer", "tasks") if getattr(options, name) is not None]
        if given:
            raise UserError(f"--{given[0]} is for responses that are yet to be written; leave it out beside --run")
    if options.spec is not None:
        fields = ("template", "style", "form", "structured", "base_url", *_OPTIONS)
        given = [name for name in fields if getattr(options, name) is not None]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')} is set in the specification; leave one of the two out")


def _job(options: argparse.Namespace) -> _Job:
    """Judge, writer and prices. Raises UserError for what can be told before anything is loaded or asked."""
    from harness.costs import load_prices
    from harness.judge_costs import Payment
    from harness.plan import is_api

    judge = _judge(options)
    writing = _writing(options) if options.on is not None and options.run is None else None
    writer = writing.writer.model if writing is not None else None
    if (given := api_settings(options)) and not any(is_api(m) for m in (judge.model, writer) if m is not None):
        raise UserError(f"{api_option(next(iter(given)))} is for openai/NAME and anthropic/NAME; leave it out")
    payment = Payment(load_prices(options.prices), options.batch, options.max_cost, writer)
    payment.check(judge)
    return _Job(judge, writing, payment, Path(options.output_path) if options.output_path else _folder(options))


def _judge(options: argparse.Namespace) -> Judge:
    """The judge that the options name."""
    from harness.judge_validation import judge_of_path
    from harness.spec import EngineSpec, JudgeSpec, ModelSpec, model_backend, reasoning_problem

    if options.spec is not None:
        return _judge_of_spec(options)
    require_model_to_ask("--judge", options.judge, "judge")
    is_api = model_backend(options.judge) in ("openai", "anthropic")
    if options.base_url is not None and not is_api:
        raise UserError("--base-url is for openai/NAME and anthropic/NAME; leave it out")
    if options.form == "choice" and is_api:
        raise UserError("--form choice reads a local model's probabilities; leave it out for an API model")
    if options.structured == "on" and (not is_api or options.style == "completion"):
        raise UserError("--structured on is for API models in chat style; leave it out, and the last line is read")
    style = options.style or style_of(options.judge)
    given = {name: value for name in _OPTIONS if (value := getattr(options, name)) is not None}
    if given.get("temperature", 0) < 0 or given.get("temperature", 0) > 2:
        raise UserError(f"--temperature is {options.temperature}; choose a number from 0 to 2")
    model = ModelSpec(path=options.judge, style=style, base_url=options.base_url, **api_settings(options))
    spec = JudgeSpec(
        kind="llm",
        model="judge",
        template=options.template,
        form=options.form or "auto",
        structured=options.structured or "auto",
        **given,
    )
    if given and not is_api and (spec.form != "text" or options.reasoning is not None):
        name = "reasoning" if options.reasoning is not None else next(iter(given))
        hint = (
            "is for API models; leave it out" if options.reasoning is not None else "needs --form text of a local model"
        )
        raise UserError(f"--{name.replace('_', '-')} {hint}")
    if problem := reasoning_problem(options.judge, spec) if is_api else None:
        raise UserError(f"--reasoning: {problem}")
    if spec.form == "choice" and spec.structured == "on":
        raise UserError("--form choice writes nothing; leave --structured out")
    judge = judge_of_path(options.judge, model, spec, EngineSpec(device=options.device), options.seed)
    if is_api and not options.dry_run:
        judge.open().close()  # tells a missing key or package, or a wrong address, before responses are written
    return judge


def _judge_of_spec(options: argparse.Namespace) -> Judge:
    from harness.judge_validation import Judge
    from harness.plan import build_plan, is_local
    from harness.spec import load_spec
    from harness.validation import check

    spec = load_spec(options.spec, {})
    check(spec, to_run=not options.dry_run)
    named = {name: judge for name, judge in spec.judges.items() if judge.kind == "llm"}
    if options.judge not in named:
        told = nearest(options.judge, named) if named else "it has no judge of kind llm"
        raise UserError(f"--judge: '{spec.name}' has no LLM judge '{options.judge}'; {told}")
    judge = named[options.judge]
    assert judge.model is not None
    plan = build_plan(spec)
    name = judge.model
    origin = name
    while (train := spec.training(origin)) is not None:
        origin = train.from_
    if origin != name and not Path(plan.source(name).name).exists():
        raise UserError(f"--judge: its model '{name}' is not trained yet; train it with: harness run {options.spec}")
    local = {"dtype": plan.dtype(name)} if is_local(spec.models[name]) else {}
    return Judge(
        options.judge,
        judge,
        spec.models[name].model_copy(update={**api_settings(options), **local}),
        plan.model_fingerprints[name],
        plan.source,
        spec.engine.model_copy(update={"device": options.device}) if options.device != "auto" else spec.engine,
        spec.seed,
        spec.models[origin].path or "",
    )


def _writing(options: argparse.Namespace) -> Writing:
    """The pairs that are to be written."""
    from harness.judge_validation import model_fingerprint
    from harness.models import open_model
    from harness.plan import is_api
    from harness.reference import TASKS, Writer, Writing
    from harness.spec import EngineSpec, ModelSpec
    from sami_train.models import parse_source

    for task in options.tasks or ():
        if task not in TASKS:
            raise UserError(f"--tasks: there is no task '{task}' here; {nearest(task, TASKS)}")
    path = options.writer or WRITER
    require_model_to_ask("--writer", path, "write others")
    model = ModelSpec(path=path, style=style_of(path), **api_settings(options))
    engine = EngineSpec(device=options.device)
    writer = Writer(
        model,
        model_fingerprint(model, engine),
        lambda budget: open_model(path, model, lambda _: parse_source(path), engine, budget=budget),
    )
    if is_api(model) and not options.dry_run:
        writer.open(None).close()
    return Writing.draw(writer, tasks=options.tasks or tuple(TASKS), limit=options.limit or LIMIT, seed=options.seed)


def _pairs(options: argparse.Namespace) -> list[LabelledPair]:
    """The labelled pairs that are there."""
    from harness.reference import pairs_of_run, read_reference

    if options.reference is not None:
        return read_reference(Path(options.reference).expanduser(), options.limit)
    run = Path(options.run).expanduser()
    return pairs_of_run(run if run.is_dir() else Path("runs") / options.run, options.limit)


def _write_pairs(writing: Writing, job: _Job, display: Display) -> list[LabelledPair]:
    from harness.judge_costs import GENERATIONS
    from harness.rows import Generation
    from harness.store import RowFile, RunLock

    display.stage(WRITE, 0, 2 * len(writing.contrasts))
    with running(), RunLock(job.folder), RowFile(job.folder / GENERATIONS, Generation) as file:
        pairs = writing.pairs(
            file,
            terms=job.payment.terms(job.judge, job.folder, display.note),
            progress=lambda done, _: display.advance(WRITE, done),
        )
    display.finish(WRITE)
    return pairs


def _reference(options: argparse.Namespace) -> str:
    """Where the labels come from, in words."""
    if options.reference is not None:
        return f"labels in {Path(options.reference).name}"
    if options.run is not None:
        return f"checkers, on the responses of the run {Path(options.run).name}"
    return f"checkers, on responses of {options.writer or WRITER} under a principle and under its antithesis"


def _folder(options: argparse.Namespace) -> Path:
    """A folder that is the same for the same judge and reference."""
    from harness.store import fingerprint
    from harness.writer import slug

    if options.reference is not None:
        on = Path(options.reference).stem
    elif options.run is not None:
        on = f"run-{Path(options.run).name}"
    else:
        on = f"verifiable-{options.writer or WRITER}"
    chosen: list[Any] = [options.judge, options.spec, options.reference, options.run, options.writer, options.template]
    chosen += [options.style, options.form, options.structured, options.base_url]
    return Path("runs") / "judges" / slug(options.judge)[:60] / f"{slug(on)[:60]}-{fingerprint(chosen)[:6]}"
