"""`harness doctor`: what this machine has, what is missing, and the command that puts each thing right."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.cli._arguments import add_json, add_verb
from sami_train.errors import UserError
from sami_train.launch import cores
from sami_train.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.cli._arguments import Subparsers

PYTHON = (3, 11)
Status = Literal["ok", "missing", "absent"]
"""ok; missing: required and not there; absent: optional and not there."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fix` is a command or a sentence, where something can be done."""

    group: str
    name: str
    status: Status
    detail: str
    fix: str | None = None


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "doctor",
        execute,
        usage="[options]",
        help="check this machine: packages, devices, memory, models, data, keys",
        description="Check this machine. Exits with 1 when something that is required is missing.",
        epilog="""\
examples:
  harness doctor
  harness doctor --json""",
    )
    add_json(parser)


def execute(options: argparse.Namespace) -> int:
    """0 when everything required is there, else 1."""
    from harness.cli._screen import print_json

    findings = list(examine())
    ok = not any(finding.status == "missing" for finding in findings)
    if options.json:
        print_json({"ok": ok, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings, ok)
    return 0 if ok else 1


def examine() -> Iterator[Finding]:
    """Look at everything, one finding at a time."""
    yield from _versions()
    yield from _machine()
    yield from _engines()
    yield from _embedded_models()
    yield from _data()
    yield from _cache()
    yield from _keys()


def _versions() -> Iterator[Finding]:
    import harness
    from harness.cli._installed import DISTRIBUTION, requirements, version_of

    python = platform.python_version()
    if sys.version_info >= PYTHON:
        yield Finding("versions", "python", "ok", f"{python}, {sys.executable}")
    else:
        wanted = ".".join(map(str, PYTHON))
        yield Finding("versions", "python", "missing", python, f"install Python {wanted} or newer")
    if version_of(DISTRIBUTION):
        yield Finding("versions", DISTRIBUTION, "ok", harness.__version__)
    else:
        yield Finding("versions", DISTRIBUTION, "missing", "not installed", "pip install -e .")
    for need in requirements():
        found = version_of(need.name)
        if found is not None and need.specifier.contains(found, prereleases=True):
            yield Finding("versions", need.name, "ok", found)
        else:
            detail = "not installed" if found is None else f"{found}; needs {need.specifier}"
            yield Finding("versions", need.name, "missing", detail, f"pip install '{need.name}{need.specifier}'")


def _machine() -> Iterator[Finding]:
    from harness.cli._screen import gigabytes

    yield Finding("machine", "system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}")
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that is missing
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        detail = f"cannot be imported ({reason})"
        yield Finding("machine", "torch", "missing", detail, "pip install --force-reinstall torch")
        yield Finding("machine", "CPU", "ok", f"{cores()} cores")
    else:
        from harness.models.local import best_dtype

        native = best_dtype("cpu") == "bfloat16"
        bf16 = "bfloat16 native" if native else "bfloat16 emulated (float32 is used)"
        yield Finding("machine", "CPU", "ok", f"{cores()} cores, {torch.get_num_threads()} torch threads, {bf16}")
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                device = torch.cuda.get_device_properties(index)
                yield Finding("machine", f"cuda:{index}", "ok", f"{device.name}, {gigabytes(device.total_memory)}")
        else:
            yield Finding("machine", "GPU", "absent", "none that torch can use; runs go to the CPU")
    yield Finding("machine", "memory", "ok", _memory())


def _memory() -> str:
    """What there is and what is free, with the limit of a container where there is one."""
    from harness.cli._screen import gigabytes

    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        parts = [f"{gigabytes(kib['MemTotal'] * 1024)}, {gigabytes(kib['MemAvailable'] * 1024)} free"]
    except (OSError, ValueError, KeyError, IndexError):
        try:
            parts = [gigabytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
        except (AttributeError, ValueError, OSError):
            return "not known on this system"
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        parts.append(f"this container may use {gigabytes(limit)}")
    return "; ".join(parts)


def _engines() -> Iterator[Finding]:
    from harness.cli._installed import ENGINES

    for engine in ENGINES:
        if engine.version:
            yield Finding("engines", engine.name, "ok", f"{engine.package} {engine.version}, {engine.what}")
        else:
            yield Finding("engines", engine.name, "absent", f"not installed; {engine.what}", engine.install)


def _embedded_models() -> Iterator[Finding]:
    from harness.cli._installed import CONVERT, is_converted, is_installed
    from sami_train.models import EMBEDDED

    for model in EMBEDDED.values():
        if is_converted(model):
            yield Finding("embedded models", model.name, "ok", f"installed and converted; {model.licence}")
        elif is_installed(model):
            yield Finding("embedded models", model.name, "ok", "installed; its first use converts it", CONVERT)
        else:
            detail = "not installed; the quickstart needs it"
            yield Finding("embedded models", model.name, "absent", detail, model.install)


def _data() -> Iterator[Finding]:
    from harness.spec import list_presets
    from harness.tasks import TaskSpec, load_task
    from sami_train.config import list_recipes
    from sami_train.constitutions import list_principle_sets, load_principle_set

    again = "install sami-harness again"
    for name in ("hh-rlhf", "tldr"):
        try:
            data = load_task(name, TaskSpec(task=name))
        except UserError as error:
            yield Finding("data", f"queries, {name}", "missing", str(error), again)
        else:
            detail = f"{len(data.train)} for training, {len(data.evaluation)} for evaluation"
            yield Finding("data", f"queries, {name}", "ok", detail)
    try:
        sets = [load_principle_set(file) for file in list_principle_sets().values()]
    except UserError as error:
        yield Finding("data", "principle sets", "missing", str(error), "harness principles lint")
    else:
        detail = f"{len(sets)} with {counted(sum(len(found.principles) for found in sets), 'principle')}"
        yield Finding("data", "principle sets", "ok" if sets else "missing", detail, None if sets else again)
    for what, found in (("presets", list_presets()), ("recipes", list_recipes())):
        yield Finding("data", what, "ok" if found else "missing", str(len(found)), None if found else again)


def _cache() -> Iterator[Finding]:
    from harness.cli._screen import gigabytes
    from harness.store import cache_folder

    try:
        folder = cache_folder()
    except UserError as error:
        yield Finding("places", "cache", "missing", str(error))
        return
    # Looked at, not tried by writing: a check leaves nothing behind.
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    detail = f"{folder}" if folder.exists() else f"{folder} (made when needed)"
    if writable:
        yield Finding("places", "cache", "ok", detail)
    else:
        fix = "set HARNESS_CACHE to a folder that you can write to"
        yield Finding("places", "cache", "missing", f"{detail} cannot be written", fix)
    yield Finding("places", "disk of the cache", "ok", f"{gigabytes(shutil.disk_usage(nearest).free)} free")
    here = Path.cwd()
    yield Finding("places", "disk of this folder", "ok", f"{gigabytes(shutil.disk_usage(here).free)} free, {here}")


def _keys() -> Iterator[Finding]:
    """Whether keys are there; never a part of one."""
    from harness.cli._installed import ENGINES

    for variable in [*(engine.key for engine in ENGINES if engine.key), "HF_TOKEN"]:
        there = bool(os.environ.get(variable, "").strip())
        yield Finding("keys", variable, "ok" if there else "absent", "yes" if there else "no")


def _print(findings: list[Finding], ok: bool) -> None:
    from rich.text import Text

    from harness.cli._screen import console, table

    screen = console()
    marks = {"ok": ("ok", "green"), "missing": ("missing", "bold red"), "absent": ("optional", "dim")}
    rows: list[list[str | Text]] = []
    group = ""
    for finding in findings:
        if finding.group != group:
            if group:
                rows.append(["", "", ""])
            group = finding.group
            rows.append([Text(group, style="bold"), "", ""])
        rows.append([f"  {finding.name}", Text(*marks[finding.status]), finding.detail])
    made = table(("", "", ""), rows)
    made.show_header = False
    screen.print(made)
    fixes = dict.fromkeys((finding.status, finding.fix) for finding in findings if finding.fix)
    titles = {"missing": "Required; put it right with:", "absent": "Optional; add it with:", "ok": "Saves time later:"}
    for status, title in titles.items():
        commands = [fix for found, fix in fixes if found == status]
        if commands:
            screen.print(f"\n{title}")
            for command in commands:
                screen.print(f"  {command}", markup=False, soft_wrap=True)
    screen.print(f"\n{_summary(findings, ok)}", markup=False)


def _summary(findings: list[Finding], ok: bool) -> str:
    if not ok:
        return "Something required is missing."
    if any(finding.group == "embedded models" and finding.status == "absent" for finding in findings):
        return "Everything required is here; 'harness run' (the quickstart) needs the embedded models as well."
    return "Everything required is here, and all that 'harness run' (the quickstart) needs."
