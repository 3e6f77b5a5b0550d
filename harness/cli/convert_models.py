"""`harness convert-models`: put the embedded models into the cache in the form they are loaded from."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from harness.cli._arguments import add_verb
from harness.cli._errors import RunError

if TYPE_CHECKING:
    from harness.cli._arguments import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb."""
    add_verb(
        subparsers,
        "convert-models",
        execute,
        usage="",
        help="convert the embedded models once, into the cache",
        description="Convert the embedded models into the cache, so that the first run need not. What is there stays.",
        epilog="""\
examples:
  harness convert-models
  HARNESS_CACHE=/data/cache harness convert-models""",
    )


def execute(options: argparse.Namespace) -> int:
    """0 when every embedded model is there in the end; raises RunError when packages are missing."""
    from harness.cli._installed import converted_folder, is_converted, is_installed
    from harness.cli._screen import console, duration
    from sami_train.models import EMBEDDED, local_folder, parse_source

    screen, missing = console(), []
    for name, model in EMBEDDED.items():
        if is_converted(model):
            screen.print(f"{name}: already in {converted_folder(model)}", markup=False, soft_wrap=True)
        elif not is_installed(model):
            missing.append(model)
        else:
            screen.print(f"{name}: converting (up to a minute) ...", markup=False)
            began = time.monotonic()
            folder = local_folder(parse_source(f"embedded/{name}"))
            took = duration(time.monotonic() - began)
            screen.print(f"{name}: converted in {took} into {folder}", markup=False, soft_wrap=True)
    if missing:
        names, commands = " and ".join(model.name for model in missing), " && ".join(model.install for model in missing)
        raise RunError(f"the packages of {names} are not installed; run: {commands}")
    return 0
