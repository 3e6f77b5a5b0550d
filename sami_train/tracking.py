"""Trackers: the metrics of a run sent to TensorBoard, Weights & Biases or trackio, besides the trainer's own metrics.jsonl.

A tracker is never worth a training: one that fails is named in a warning and left out from there on. ``trackers.json`` in the
run's folder keeps the run's id and how far every tracker has got, so that a resumed training goes on in the same run and
logs nothing twice.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, get_args

from sami_train import config as recipes
from sami_train import hub
from sami_train.errors import MissingPackage, UserError, nearest
from sami_train.files import write_json

NAMES: tuple[str, ...] = get_args(recipes.Tracker)
STATE_FILE = "trackers.json"
FINISH_TIMEOUT_S = 60.0
"""How long the end of a training waits for wandb's uploads, unless WANDB_FINISH_TIMEOUT says otherwise."""

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """One place that metrics go to. Any method may raise; `Trackers` sees to that."""

    def log(self, row: Mapping[str, float | int | str], step: int) -> None:
        """Take the metrics of a step, counted over the whole run."""

    def text(self, name: str, rows: Sequence[Mapping[str, str]], step: int) -> None:
        """Take texts, one row per response; all of it is to be shown as it is, not as markup."""

    def close(self) -> None:
        """Send what is left."""


def require_trackers(names: Iterable[str]) -> None:
    """Check, before a training starts, that every tracker can be used.

    Raises:
        UserError: a name is unknown, a package is missing (MissingPackage), or wandb is to send but nobody is logged in.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in NAMES:
            raise UserError(f"there is no tracker named '{name}' (field report_to); {nearest(name, NAMES)}")
    if missing := [name for name in wanted if not _installed(name)]:
        raise MissingPackage("' and '".join(missing), extra=",".join(missing))
    if "wandb" in wanted:
        _require_wandb_login()


def open_trackers(
    names: Sequence[str],
    *,
    project: str,
    run: str,
    config: Mapping[str, Any],
    folder: Path,
    note: Callable[[str], None] = _log.warning,
) -> Trackers:
    """Open the trackers of a run, a resumed one included. To be used as a context manager; raises nothing.

    Args:
        names: out of "trackio", "wandb" and "tensorboard"; see `require_trackers`.
        project: what the run is filed under; WANDB_PROJECT goes before it for wandb.
        run: the run's name for people; the id that tells runs apart is kept in the folder.
        config: settings to show beside the metrics, as JSON would hold them.
        folder: the run's folder. TensorBoard's files go to ``tensorboard``, wandb's to ``wandb``, trackio's to ``trackio``
            (or where TRACKIO_DIR says).
        note: gets one sentence for every tracker that fails.
    """
    trackers = Trackers(folder, note)
    for name in dict.fromkeys(names):
        trackers.add(name, partial(_OPEN[name], project, run, config, folder))
    return trackers


@dataclass
class _Logged:
    """How far a tracker has got: its last step, and the names that were logged at it."""

    step: int = -1
    names: list[str] = field(default_factory=list)

    def missing(self, names: Iterable[str], step: int) -> list[str]:
        if step < self.step:
            return []
        return [name for name in names if step > self.step or name not in self.names]

    def add(self, names: Iterable[str], step: int) -> None:
        if step > self.step:
            self.step, self.names = step, []
        self.names += names


class Trackers:
    """All trackers of a run as one.

    Steps count over the whole run and never go back. A name is taken once per step: what was logged before an interruption is
    left out when the training repeats it.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] = _log.warning) -> None:
        self._file, self._note = folder / STATE_FILE, note
        self._open: dict[str, Tracker] = {}
        self._recording = True
        self.run_id, self._logged = self._read()

    @property
    def working(self) -> tuple[str, ...]:
        """Names of the trackers that have not failed."""
        return tuple(self._open)

    def add(self, name: str, make: Callable[[str], Tracker]) -> None:
        """Open one more tracker with ``make(run id)``."""
        self._logged.setdefault(name, _Logged())
        try:
            self._open[name] = make(self.run_id)
        except Exception as error:  # noqa: BLE001 - whatever fails in a tracker, the training goes on
            self._note(_sentence(name, error))
        self._record()

    def log(self, row: Mapping[str, float | int | str], step: int) -> None:
        """Send a row of metrics to every tracker."""
        self._send(row, step, lambda tracker, names: tracker.log({name: row[name] for name in names}, step))

    def text(self, name: str, rows: Sequence[Mapping[str, str]], step: int) -> None:
        """Send texts, one row per response, to every tracker."""
        if rows:
            self._send([name], step, lambda tracker, _: tracker.text(name, rows, step))

    def close(self) -> None:
        """Close every tracker; wandb may take a minute for what it has not sent yet."""
        for name, tracker in self._open.items():
            try:
                tracker.close()
            except Exception as error:  # noqa: BLE001 - the training is over and its result does not depend on this
                self._note(_sentence(name, error))
        self._open.clear()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, names: Iterable[str], step: int, send: Callable[[Tracker, list[str]], None]) -> None:
        sent = False
        for kind, tracker in list(self._open.items()):
            if not (missing := self._logged[kind].missing(names, step)):
                continue
            try:
                send(tracker, missing)
            except Exception as error:  # noqa: BLE001 - whatever fails in a tracker, the training goes on
                self._drop(kind, error)
            else:
                self._logged[kind].add(missing, step)
                sent = True
        if sent:
            self._record()

    def _drop(self, kind: str, error: Exception) -> None:
        tracker = self._open.pop(kind)
        self._note(_sentence(kind, error))
        with suppress(Exception):
            tracker.close()

    def _read(self) -> tuple[str, dict[str, _Logged]]:
        try:
            state = json.loads(self._file.read_text(encoding="utf-8"))
            logged = {
                str(name): _Logged(int(entry["step"]), [str(n) for n in entry["names"]])
                for name, entry in state["logged"].items()
            }
            return str(state["run"]), logged
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            self._note(f"{self._file}: this file is damaged; the trackers begin a new run")
        return secrets.token_hex(8), {}

    def _record(self) -> None:
        if not self._recording:
            return
        logged = {name: {"step": entry.step, "names": entry.names} for name, entry in self._logged.items()}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, {"run": self.run_id, "logged": logged})
        except (UserError, OSError) as error:
            self._recording = False
            self._note(f"{error}; a resumed training may log some steps to its trackers twice")


class _TensorBoard:
    """An event file, from torch's summaries. Written here and not through SummaryWriter, whose thread would print a traceback
    where the disk is full; every call is on the disk when it returns.
    """

    def __init__(self, project: str, run: str, config: Mapping[str, Any], folder: Path, run_id: str) -> None:
        from torch.utils.tensorboard import RecordWriter, summary

        place = folder / "tensorboard"
        place.mkdir(parents=True, exist_ok=True)
        begun = any(place.iterdir())
        self._event, self._summary = import_module("tensorboard.compat.proto.event_pb2").Event, summary
        self._file = (place / f"events.out.tfevents.{time.time_ns()}.{run_id}").open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if not begun:
            self.text("config", [{"config": json.dumps(config, indent=1, ensure_ascii=False, default=str)}], 0)

    def log(self, row: Mapping[str, float | int | str], step: int) -> None:
        for name, value in row.items():
            if not isinstance(value, str):
                self._write(step=step, summary=self._summary.scalar(name, value))

    def text(self, name: str, rows: Sequence[Mapping[str, str]], step: int) -> None:
        self._write(step=step, summary=self._summary.text(name, "\n\n---\n\n".join(map(_markdown, rows))))

    def close(self) -> None:
        self._file.close()

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()


class _Wandb:
    """Weights & Biases. Every call is a row of its own; the step is a column, which charts are drawn over."""

    def __init__(self, project: str, run: str, config: Mapping[str, Any], folder: Path, run_id: str) -> None:
        self._wandb = import_module("wandb")
        settings: dict[str, Any] = {"console": "off"}
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            settings["finish_timeout"] = FINISH_TIMEOUT_S
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or project,
            id=run_id,
            name=run,
            resume="allow",
            config=dict(config),
            dir=str(folder),
            settings=self._wandb.Settings(**settings),
        )
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")

    def log(self, row: Mapping[str, float | int | str], step: int) -> None:
        self._run.log({**row, "global_step": step})

    def text(self, name: str, rows: Sequence[Mapping[str, str]], step: int) -> None:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        data = [[row.get(column, "") for column in columns] for row in rows]
        self._run.log({name: self._wandb.Table(columns=columns, data=data), "global_step": step})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """trackio on this machine alone: its database in a folder, no Space, no server, no dashboard.

    trackio catches most of its own errors, warns of each kind once and goes on without what it could not write.
    """

    def __init__(self, project: str, run: str, config: Mapping[str, Any], folder: Path, run_id: str) -> None:
        place = os.environ.get("TRACKIO_DIR") or str(folder.resolve() / "trackio")
        # offline: trackio asks the hub for the user's name where there is a token
        local = _environment(TRACKIO_DIR=place, TRACKIO_SPACE_ID=None, TRACKIO_SERVER_URL=None)
        with local, hub.offline(), redirect_stdout(sys.stderr):
            self._trackio = _import_trackio(Path(place))
            self._run = self._trackio.init(
                project=project,
                name=f"{run}-{run_id}",
                config=dict(config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, row: Mapping[str, float | int | str], step: int) -> None:
        taken = {"step": "iteration_step"}  # trackio keeps the first name for itself
        self._run.log({taken.get(name, name): value for name, value in row.items()}, step=step)

    def text(self, name: str, rows: Sequence[Mapping[str, str]], step: int) -> None:
        self._run.log({name: self._trackio.Table(data=[dict(row) for row in rows])}, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


_OPEN: dict[str, Callable[[str, str, Mapping[str, Any], Path, str], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}


def _import_trackio(place: Path) -> Any:
    """trackio, keeping its files in `place`. It settles on a folder when it is imported: for another one it is imported again."""
    loaded = sys.modules.get("trackio.utils")
    if loaded is not None and place != loaded.TRACKIO_DIR:
        for module in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
            del sys.modules[module]
    return import_module("trackio")


def _installed(package: str) -> bool:
    # A folder of that name that is no package, such as the one wandb writes to, has no origin.
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _require_wandb_login() -> None:
    wandb = import_module("wandb")
    try:
        usable = wandb.setup().settings.mode != "online" or wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise UserError(f"report_to names wandb, whose credentials are refused: {error}") from None
    except TypeError:
        raise UserError("wandb is older than 0.30; run: pip install --upgrade 'sami-harness[wandb]'") from None
    if not usable:
        raise UserError(
            "report_to names wandb, but nobody is logged in to it; run 'wandb login', set WANDB_API_KEY, "
            "or set WANDB_MODE=offline to keep the metrics on this machine"
        )


@contextmanager
def _environment(**changes: str | None) -> Iterator[None]:
    """Environment variables for a moment; None takes one away."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set_variables(changes)
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _markdown(row: Mapping[str, str]) -> str:
    """A row as markdown with every text in a code block, where nothing in it means anything."""
    blocks = []
    for column, text in row.items():
        lines = "\n".join(f"    {line}" for line in text.splitlines())
        blocks.append(f"**{column}**\n\n{lines}")
    return "\n\n".join(blocks)


def _sentence(name: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
    return (
        f"{name} gets no metrics from here on ({type(error).__name__}{': ' if reason else ''}{reason}); "
        "the training goes on, and metrics.jsonl has everything"
    )
