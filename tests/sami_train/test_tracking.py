"""Metrics reach real trackers, a resumed training goes on in them, and one that fails stops nothing."""

from __future__ import annotations

import importlib
import json
import resource
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sami_train.errors import MissingPackage, UserError
from sami_train.tracking import Trackers, open_trackers, require_trackers

CONFIG = {"name": "small", "learning_rate": 1e-5, "queries": ["a.jsonl"]}
HOSTILE = "<img src=x onerror=alert(1)> **bold** [link](http://example.org)\n\n# heading\u2028<script>"


def opened(folder: Path, *names: str, notes: list[str] | None = None) -> Trackers:
    note = (notes if notes is not None else []).append
    return open_trackers(names, project="sami", run="small", config=CONFIG, folder=folder, note=note)


def train_twice(folder: Path, *names: str, notes: list[str] | None = None) -> None:
    """Three steps, an interruption, and a second call that repeats the third one and adds a fourth."""
    with opened(folder, *names, notes=notes) as trackers:
        for step in (1, 2, 3):
            trackers.log({"loss": 1.0 / step, "phase": "train"}, step)
        trackers.text("samples", [{"query": "q", "response": HOSTILE}], 3)
    with opened(folder, *names, notes=notes) as trackers:
        trackers.log({"loss": 99.0, "phase": "train"}, 3)
        trackers.text("samples", [{"query": "q", "response": "again"}], 3)
        trackers.log({"eval/loss": 0.5}, 3)
        trackers.log({"loss": 0.25, "phase": "train"}, 4)


class Memory:
    """A tracker that remembers, and fails on the call it is told to."""

    def __init__(self, failing: int = -1) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing = failing
        self.closed = False

    def _call(self, *call: Any) -> None:
        if len(self.calls) == self.failing:
            raise ConnectionError("the network is down\nand a traceback")
        self.calls.append(call)

    def log(self, row: Mapping[str, float | int | str], step: int) -> None:
        self._call(dict(row), step)

    def text(self, name: str, rows: Sequence[Mapping[str, str]], step: int) -> None:
        self._call(name, step)

    def close(self) -> None:
        self.closed = True


# TensorBoard


def event_files(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def tensorboard_text(event: Any) -> str:
    return str(event.tensor_proto.string_val[0].decode())


def test_tensorboard_gets_every_step_once(tmp_path: Path) -> None:
    notes: list[str] = []
    train_twice(tmp_path, "tensorboard", notes=notes)
    events = event_files(tmp_path)
    assert notes == []
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
        (4, 0.25),
    ]
    assert [(e.step, e.value) for e in events.Scalars("eval/loss")] == [(3, 0.5)]
    assert events.Tags()["scalars"] == ["loss", "eval/loss"], "a text among the metrics is no scalar"
    assert len(events.Tensors("samples/text_summary")) == 1
    assert len(events.Tensors("config/text_summary")) == 1
    assert '"learning_rate": 1e-05' in tensorboard_text(events.Tensors("config/text_summary")[0])


def test_tensorboard_shows_responses_as_text(tmp_path: Path) -> None:
    from tensorboard import plugin_util

    with opened(tmp_path, "tensorboard") as trackers:
        trackers.text("samples", [{"query": "q", "response": HOSTILE}, {"query": "p", "response": ""}], 1)
    html = plugin_util.markdown_to_safe_html(tensorboard_text(event_files(tmp_path).Tensors("samples/text_summary")[0]))
    for tag in ("<img", "<script", "<a ", "<h1", "<strong>bold"):
        assert tag not in html
    assert "**bold** [link](http://example.org)" in html
    assert html.count("<strong>query</strong>") == 2


def test_tensorboard_is_on_the_disk_after_every_call(tmp_path: Path) -> None:
    trackers = opened(tmp_path, "tensorboard")
    trackers.log({"loss": 0.5, "kl": float("nan")}, 7)
    assert [e.step for e in event_files(tmp_path).Scalars("loss")] == [7], "a kill right after a step loses nothing"
    trackers.close()


def test_a_full_disk_drops_tensorboard_with_one_warning(tmp_path: Path) -> None:
    notes: list[str] = []
    other = Memory()
    with opened(tmp_path, "tensorboard", notes=notes) as trackers:
        trackers.add("memory", lambda _: other)
        trackers.log({"loss": 1.0}, 1)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
        try:
            trackers.text("samples", [{"response": "x" * 200_000}], 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        trackers.log({"loss": 0.5}, 3)
        assert trackers.working == ("memory",)
    assert len(notes) == 1
    assert notes[0].startswith("tensorboard gets no metrics from here on (OSError")
    assert other.calls[-1] == ({"loss": 0.5}, 3)


def test_a_tracker_that_cannot_be_opened_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    notes: list[str] = []
    with opened(tmp_path, "tensorboard", notes=notes) as trackers:
        trackers.log({"loss": 1.0}, 1)
    assert len(notes) == 1
    assert "the training goes on" in notes[0]


# What holds for all


def test_a_failing_tracker_is_named_once_and_dropped(tmp_path: Path) -> None:
    notes: list[str] = []
    bad, good = Memory(failing=1), Memory()
    with Trackers(tmp_path, notes.append) as trackers:
        trackers.add("bad", lambda _: bad)
        trackers.add("good", lambda _: good)
        for step in (1, 2, 3):
            trackers.log({"loss": 0.1 * step}, step)
    assert notes == [
        "bad gets no metrics from here on (ConnectionError: the network is down); "
        "the training goes on, and metrics.jsonl has everything"
    ]
    assert [step for _, step in bad.calls] == [1]
    assert [step for _, step in good.calls] == [1, 2, 3]
    assert bad.closed
    assert good.closed


def test_an_interruption_is_no_failure_of_a_tracker(tmp_path: Path) -> None:
    class Interrupted(Memory):
        def _call(self, *call: Any) -> None:
            raise KeyboardInterrupt

    with Trackers(tmp_path) as trackers:
        trackers.add("slow", lambda _: Interrupted())
        with pytest.raises(KeyboardInterrupt):
            trackers.log({"loss": 1.0}, 1)


def test_a_tracker_that_failed_goes_on_where_it_was_when_the_training_is_resumed(tmp_path: Path) -> None:
    with Trackers(tmp_path, [].append) as trackers:
        trackers.add("bad", lambda _: Memory(failing=1))
        trackers.add("good", lambda _: Memory())
        for step in (1, 2, 3):
            trackers.log({"loss": 1.0}, step)
    bad, good = Memory(), Memory()
    with Trackers(tmp_path) as again:
        assert again.run_id == trackers.run_id
        again.add("bad", lambda _: bad)
        again.add("good", lambda _: good)
        for step in (2, 3, 4):
            again.log({"loss": 1.0}, step)
    assert [step for _, step in bad.calls] == [2, 3, 4]
    assert [step for _, step in good.calls] == [4]


def test_the_run_keeps_its_id_from_before_the_first_metric(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with Trackers(tmp_path / "run") as trackers:
            trackers.add("memory", lambda run_id: ids.append(run_id) or Memory())
    assert ids[0] == ids[1]
    with Trackers(tmp_path / "other run") as trackers:
        assert trackers.run_id != ids[0]


@pytest.mark.parametrize("content", ["{", "[]", '{"run": "x"}', '{"run": "x", "logged": {"wandb": {"step": "?"}}}'])
def test_a_damaged_state_begins_a_new_run_and_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "trackers.json").write_text(content)
    notes: list[str] = []
    memory = Memory()
    with Trackers(tmp_path, notes.append) as trackers:
        trackers.add("memory", lambda _: memory)
        trackers.log({"loss": 1.0}, 1)
    assert len(notes) == 1
    assert "trackers.json" in notes[0]
    assert memory.calls == [({"loss": 1.0}, 1)]
    assert json.loads((tmp_path / "trackers.json").read_text())["run"] == trackers.run_id


def test_a_state_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    notes: list[str] = []
    memory = Memory()
    with Trackers(tmp_path / "folder", notes.append) as trackers:
        trackers.add("memory", lambda _: memory)
        trackers.log({"loss": 1.0}, 1)
        trackers.log({"loss": 0.5}, 2)
    assert len(memory.calls) == 2
    assert "twice" in notes[-1]


def test_no_trackers_leave_nothing_behind(tmp_path: Path) -> None:
    with opened(tmp_path) as trackers:
        trackers.log({"loss": 1.0}, 1)
    assert list(tmp_path.iterdir()) == []


# What is asked for before a training starts


def test_an_unknown_tracker_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        require_trackers(["tensorbord"])


def test_a_missing_package_is_named_with_its_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in ("wandb", "trackio"):
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingPackage, match=r"'wandb' and 'trackio'.*pip install 'sami-harness\[wandb,trackio\]'"):
        require_trackers(["wandb", "trackio"])
    importlib.invalidate_caches()


def test_what_is_installed_may_be_asked_for() -> None:
    require_trackers([])
    require_trackers(["tensorboard", "tensorboard"])


# wandb and trackio, where they are installed


def in_a_process(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """wandb settles its settings once per process, trackio leaves a thread: each test of them has a process of its own."""
    import os

    ours = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "TRACKIO_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**ours, **variables},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


TRAIN = """
import sys; sys.path[:0] = {path!r}
asked = []
sys.addaudithook(lambda event, call: asked.append(event) if event in ("socket.getaddrinfo", "socket.bind") else None)
from pathlib import Path
from test_tracking import train_twice
notes = []
for folder in {folders!r}:
    train_twice(Path(folder), {name!r}, notes=notes)
assert notes == [], notes
assert not asked or {name!r} == "wandb", asked
"""


def train_in_a_process(name: str, folders: list[Path], **variables: str) -> None:
    code = TRAIN.format(path=[str(Path(__file__).parent), *sys.path], folders=[str(f) for f in folders], name=name)
    done = in_a_process(code, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "standard output is for the training's result"


def test_wandb_offline_keeps_the_run_in_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    train_in_a_process("wandb", [tmp_path], WANDB_MODE="offline", WANDB_DATA_DIR=str(tmp_path / "data"))
    run_id = json.loads((tmp_path / "trackers.json").read_text())["run"]
    parts = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(parts) == 2, "both calls belong to one run"
    assert [wandb_history(part) for part in parts] == [
        [
            (1, {"loss": 1, "phase": "train"}),
            (2, {"loss": 0.5, "phase": "train"}),
            (3, {"loss": 1 / 3, "phase": "train"}),
            (3, {"samples": "table"}),
        ],
        [(3, {"eval/loss": 0.5}), (4, {"loss": 0.25, "phase": "train"})],
    ]


def wandb_history(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows that wandb would upload, read from its own file: (global_step, metrics)."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            metrics = {
                name.partition(".")[0]: "table" if "." in name else value
                for name, value in row.items()
                if not name.startswith("_")
            }
            step = metrics.pop("global_step")
            rows.append((step, metrics))
    return rows


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log (blocks of 32 KiB; checksum, length, type, data) after wandb's own first seven bytes."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_without_a_login_is_said_before_the_training(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from sami_train.errors import UserError\nfrom sami_train.tracking import require_trackers\n"
        "try: require_trackers(['wandb'])\nexcept UserError as error: print(error)\nelse: print('fine')"
    )
    home = {"NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    assert "wandb login" in in_a_process(code, **home).stdout
    assert in_a_process(code, **home, WANDB_API_KEY="too-short").stdout.startswith("report_to names wandb")
    assert in_a_process(code, **home, WANDB_MODE="offline").stdout == "fine\n"


def trackio_rows(folder: Path) -> list[tuple[str, int, dict[str, Any]]]:
    with sqlite3.connect(folder / "sami.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    return [(name, step, json.loads(metrics)) for name, step, metrics in rows]


def test_trackio_keeps_every_run_in_its_folder_and_to_itself(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    folders = [tmp_path / "one", tmp_path / "two"]
    elsewhere = {"TRACKIO_SPACE_ID": "nobody/space", "TRACKIO_SERVER_URL": "http://127.0.0.1:9"}
    train_in_a_process("trackio", folders, HF_TOKEN="hf_x", HF_HOME=str(tmp_path / "hf"), **elsewhere)
    for folder in folders:
        run_id = json.loads((folder / "trackers.json").read_text())["run"]
        rows = trackio_rows(folder / "trackio")
        assert {name for name, _, _ in rows} == {f"small-{run_id}"}
        assert [(step, row["loss"]) for _, step, row in rows if "loss" in row] == [
            (1, 1.0),
            (2, 0.5),
            (3, 1 / 3),
            (4, 0.25),
        ]
        assert [row["eval/loss"] for _, _, row in rows if "eval/loss" in row] == [0.5]
        assert [row["samples"]["_value"][0]["response"] for _, _, row in rows if "samples" in row] == [HOSTILE]


def test_trackio_goes_where_the_user_says(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    folders = [tmp_path / "one", tmp_path / "two"]
    train_in_a_process("trackio", folders, TRACKIO_DIR=str(tmp_path / "mine"))
    assert len({name for name, _, _ in trackio_rows(tmp_path / "mine")}) == 2
    assert not (folders[0] / "trackio").exists()
