"""A training in several processes of its own, for a program that is one process: what torchrun does, on one machine.

The processes get everything as JSON in a file, tell how far they are on a pipe, write whatever else they print to
``processes.log`` in the run's folder, and end with their parent, however that ends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sami_train.errors import UserError
from sami_train.files import read_json, write_json

if TYPE_CHECKING:
    from sami_train.config import Recipe
    from sami_train.models import Source
    from sami_train.trainer import Progress, TrainingData

LOG = "processes.log"
LOOK = 0.5
"""Seconds between two looks at whether a process has ended."""


def train_on_many(
    recipe: Recipe,
    source: Source,
    data: TrainingData,
    folder: Path,
    *,
    devices: int,
    kind: str,
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """`train`, by `devices` processes with a device each of a kind, cuda or cpu; returns the summary.

    They share `threads` threads of the CPU evenly, by default OMP_NUM_THREADS each, or one for every core.

    Raises:
        UserError: what `train` raises, or a process ended by itself; its last words are in ``processes.log``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix="sami-train-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: the training cannot be started here ({error.strerror})") from None
    with scratch as place:
        job = Path(place) / "job.json"
        write_json(job, _as_json(recipe, source, data, folder, kind, trust_remote_code))
        with (folder / LOG).open("ab") as log, _processes(job, devices, kind, threads, log) as processes:
            for event in _events(processes, folder / LOG):
                if "error" in event:
                    raise UserError(event["error"])
                if "note" in event:
                    note(event["note"])
                else:
                    progress(*event["progress"])
    summary = read_json(folder / "summary.json")
    if summary is None:
        raise UserError(f"{folder / LOG}: the training ended without a summary; look into this file")
    return dict(summary)


def _as_json(
    recipe: Recipe, source: Source, data: TrainingData, folder: Path, kind: str, trust_remote_code: bool
) -> dict[str, Any]:
    return {
        "recipe": recipe.model_dump(mode="json"),
        "source": [source.kind, source.name, source.revision],
        "queries": [[query.id, query.text, query.task, query.intent] for query in data.queries],
        "principles": {k: [p.model_dump(mode="json") for p in found] for k, found in data.principles.items()},
        "templates": {k: template.model_dump(mode="json") for k, template in data.templates.items()},
        "provenance": dict(data.provenance),
        "folder": str(folder.absolute()),
        "kind": kind,
        "trust_remote_code": trust_remote_code,
    }


@contextmanager
def _processes(
    job: Path, devices: int, kind: str, threads: int | None, log: IO[bytes]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes, each in a group of its own; ended when the block is left."""
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    environment |= {"WORLD_SIZE": str(devices), "LOCAL_WORLD_SIZE": str(devices)}
    if threads or "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, (threads or cores()) // devices))
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(devices):
            process = subprocess.Popen(
                [sys.executable, "-m", "sami_train.launch", str(job)],
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=log if rank else subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
            started.append(process)
        yield started
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _events(processes: Sequence[subprocess.Popen[bytes]], log: Path) -> Iterator[dict[str, Any]]:
    """What the first process tells until all have ended. Raises UserError when one ends with a failure that it did not tell."""
    told: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def listen(stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                told.put(json.loads(line))
        told.put(None)

    first = processes[0].stdout
    assert first is not None
    threading.Thread(target=listen, args=(first,), daemon=True).start()
    open_ended = True
    while open_ended or any(process.poll() is None for process in processes):
        try:
            event = told.get(timeout=LOOK)
        except queue.Empty:
            event = {}
        if event is None:
            open_ended = False
        elif event:
            yield event
        elif failed := [process.returncode for process in processes if process.poll()]:
            how = f"by signal {-failed[0]}" if failed[0] < 0 else f"with code {failed[0]}"
            raise UserError(
                f"{log}: a process of the training ended {how}; look into this file, then run again: finished work is kept"
            )
    if any(process.returncode for process in processes):
        raise UserError(f"{log}: a process of the training failed; look into this file, then run again")


# --- In each of the processes


def _work(job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> int:
    """Train as one of the processes; the first one tells how it goes."""
    from sami_train.config import Recipe
    from sami_train.constitutions import Principle
    from sami_train.data import Query
    from sami_train.distributed import start
    from sami_train.models import Source
    from sami_train.prompts import Template
    from sami_train.trainer import TrainingData, train

    data = TrainingData(
        [Query(*fields) for fields in job["queries"]],
        {k: [Principle.model_validate(fields) for fields in found] for k, found in job["principles"].items()},
        {k: Template.model_validate(fields) for k, fields in job["templates"].items()},
        job["provenance"],
    )
    try:
        world = start(job["kind"])
        try:
            train(
                Recipe.model_validate(job["recipe"]),
                Source(*job["source"]),
                data,
                Path(job["folder"]),
                world=world,
                trust_remote_code=job["trust_remote_code"],
                progress=lambda *event: tell({"progress": event}),
                note=lambda sentence: tell({"note": sentence}),
            )
        finally:
            world.close()
    except UserError as error:
        tell({"error": str(error)})
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run one process: ``python -m sami_train.launch JOB``, its place among the others in torchrun's variables."""
    from sami_train.vllm_engine import watch_parent

    file = Path(arguments[0])
    job = json.loads(file.read_text(encoding="utf-8"))
    watch_parent(str(file.parent))
    first = os.environ["RANK"] == "0"
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as pipe:
        os.dup2(2, 1)  # what libraries print goes to the log

        def tell(event: dict[str, Any]) -> None:
            if first:
                print(json.dumps(event), file=pipe, flush=True)

        return _work(job, tell)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
