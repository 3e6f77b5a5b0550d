"""Nothing reported done is lost: torn lines, kills, full disks, two processes; with real faults, not with mocks."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

import harness.store.lock
import sami_train.models
from harness.rows import Generation, Manifest
from harness.store import (
    RowFile,
    RunLock,
    SharedFolder,
    SharedRows,
    cache_folder,
    environment,
    fingerprint,
    git_state,
    read_json,
    read_manifest,
    write_atomic,
    write_json,
    write_manifest,
)
from sami_train.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

# Shared by the tests and by the processes they start.
MAKE_ROW = """
from harness.rows import Generation

def make_row(number, text="A tall plant, 木.", fingerprint=None):
    return Generation(
        id=f"row-{number}", fingerprint=fingerprint or f"{number:032x}", model="m", task="dialogue",
        query_id=str(number), constitution_id="short+", principle_set="verifiable", split="learned",
        prompt_hash="0" * 32, prompt="What is a tree?", text=text,
        finish_reason="stop", n_prompt_tokens=4, n_tokens=5, truncated=False,
    )
"""
_names: dict[str, object] = {}
exec(MAKE_ROW, _names)


def make_row(number: int, text: str = "A tall plant, 木.", fingerprint: str | None = None) -> Generation:
    row = _names["make_row"](number, text, fingerprint)  # type: ignore[operator]
    assert isinstance(row, Generation)
    return row


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that can import the harness and make rows."""
    head = "import os, resource, signal, sys, time\nfrom pathlib import Path\nfrom harness.store import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + MAKE_ROW + code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def kill(process: subprocess.Popen[str]) -> str:
    """What the process had printed when it was killed."""
    process.send_signal(signal.SIGKILL)
    return process.communicate(timeout=60)[0]


def rows_in(path: Path) -> list[Generation]:
    return list(RowFile(path, Generation).read().values())


def write_rows(path: Path, rows: list[Generation]) -> None:
    with RowFile(path, Generation) as file:
        file.append(rows)


# Rows


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "generations" / "m" / "dialogue.jsonl"
    rows = [make_row(n, text=f"line\nbreak \u2028 {n}") for n in range(5)]
    with RowFile(path, Generation) as file:
        assert file.read() == {}
        file.append(rows[:2])
        file.append([])
        file.append(rows[2:])
        assert list(file.read().values()) == rows
    assert rows_in(path) == rows
    assert path.read_bytes().count(b"\n") == 5


def test_no_rows_make_no_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [])
    assert list(tmp_path.iterdir()) == []


def test_a_later_row_replaces_an_earlier_one_with_its_id(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [make_row(1, "failed"), make_row(2), make_row(1, "better")])
    assert {row.id: row.text for row in rows_in(path)} == {"row-1": "better", "row-2": make_row(2).text}


def test_a_line_torn_at_any_byte_loses_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    earlier, last, next_row = [make_row(1), make_row(2)], make_row(3), make_row(4)
    write_rows(path, earlier)
    start_of_last = path.stat().st_size
    write_rows(path, [last])
    whole = path.read_bytes()
    for size in range(start_of_last, len(whole)):
        path.write_bytes(whole[:size])
        assert rows_in(path) == earlier
        write_rows(path, [next_row])
        assert rows_in(path) == [*earlier, next_row]
        assert path.read_bytes().startswith(whole[:start_of_last])
    path.write_bytes(whole)
    assert rows_in(path) == [*earlier, last]


def test_a_file_that_is_only_a_torn_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "' + b"x" * 200_000)
    assert rows_in(path) == []
    write_rows(path, [make_row(1)])
    assert rows_in(path) == [make_row(1)]


@pytest.mark.parametrize(
    "bad", [b'{"id": "row-9"}', b"{", b'{"id": "\xff\xfe"}', b"\x00\x00", b"[1]", b"[" * 100_000], ids=range(6)
)
def test_a_corrupt_line_before_the_end_is_named_and_never_dropped(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [make_row(1), make_row(2)])
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + bad + b"\n" + second)
    with pytest.raises(UserError, match=r"rows\.jsonl:2 is not a valid Generation row .*delete that line"):
        rows_in(path)
    path.write_bytes(first + b"\n" + second)  # the user emptied the line
    assert rows_in(path) == [make_row(1), make_row(2)]


def test_the_message_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [make_row(1)])
    path.write_text(path.read_text().replace('"n_tokens":5', '"n_tokens":"five"'))
    with pytest.raises(UserError, match="n_tokens: Input should be a valid integer"):
        rows_in(path)


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "rows.jsonl"
    with RowFile(path, Generation) as file, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: file.append([make_row(n, "long " * 2000)]), range(100)))
    assert {row.id for row in rows_in(path)} == {f"row-{n}" for n in range(100)}


def test_many_rows_share_one_sync_and_close_syncs_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("harness.store.row_file.os.fsync", synced.append)
    started = time.monotonic()
    file = RowFile(tmp_path / "rows.jsonl", Generation)
    for n in range(200):
        file.append([make_row(n)])
    before_close = len(synced)
    assert before_close <= 3 + (time.monotonic() - started)
    file.close()
    assert len(synced) == before_close + 1


# Kills


@pytest.mark.parametrize("rows_before_kill", [1, 10, 60, 200, 500])
def test_a_killed_process_loses_no_row_that_it_reported(tmp_path: Path, rows_before_kill: int) -> None:
    path = tmp_path / "rows.jsonl"
    process = start(
        """
file = RowFile(Path(sys.argv[1]), Generation)
for number in range(1_000_000):
    file.append([make_row(number, "word " * 500)])
    print(f"row-{number}", flush=True)
""",
        path,
    )
    assert process.stdout is not None
    reported = [process.stdout.readline().strip() for _ in range(rows_before_kill)]
    reported += [line for line in kill(process).splitlines(keepends=True) if line.endswith("\n")]
    kept = [row.id for row in rows_in(path)]
    assert kept == [f"row-{n}" for n in range(len(kept))]
    assert len(kept) >= len(reported) >= rows_before_kill
    write_rows(path, [make_row(-1)])
    assert [row.id for row in rows_in(path)] == [*kept, "row--1"]


# Full disks and folders that cannot be written


def test_a_full_disk_is_told_in_one_sentence() -> None:
    file = RowFile(Path("/dev/full"), Generation)
    with pytest.raises(UserError, match=r"^the disk is full while writing /dev/full; free some space"):
        file.append([make_row(1)])
    file.close()


LIMITED = """
file = RowFile(Path(sys.argv[1]), Generation)
file.append([make_row(0), make_row(1)])
size = os.path.getsize(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv[2]), resource.RLIM_INFINITY))
from sami_train.errors import UserError
try:
    file.append([make_row(2), make_row(3)])
except UserError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(os.path.getsize(sys.argv[1]) == size)
file.append([make_row(4)])
file.close()
"""


@pytest.mark.parametrize("room", [0, 1, 100, 600])
def test_what_a_full_disk_tore_is_cut_off_and_the_rest_is_kept(tmp_path: Path, room: int) -> None:
    path = tmp_path / "rows.jsonl"
    message, was_cut = finish(start(LIMITED, path, room)).splitlines()
    assert message == (
        f"the disk is full while writing {path}; free some space and run the same command again, finished rows are kept"
    )
    assert was_cut == "True"
    assert rows_in(path) == [make_row(0), make_row(1), make_row(4)]


def test_a_full_disk_keeps_the_old_content_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"n": 1})
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from sami_train.errors import UserError
try:
    write_json(Path(sys.argv[1]), "x" * 5000)
except UserError as error:
    print(error)
"""
    assert finish(start(code, path)).startswith(f"the disk is full while writing {path};")
    assert read_json(path) == {"n": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "rows.jsonl"  # works for root too, who may write everywhere else
    with pytest.raises(UserError, match=r"cannot write .*rows\.jsonl: .* is a file; make it writable or choose"):
        RowFile(inside, Generation).append([make_row(1)])
    with pytest.raises(UserError, match="cannot write"):
        write_atomic(inside, "text")
    with pytest.raises(UserError, match="cannot write"):
        RunLock(tmp_path / "file").__enter__()
    with pytest.raises(UserError, match="cannot write"):
        write_atomic(tmp_path, "text")
    with pytest.raises(UserError, match="cannot read"):
        rows_in(tmp_path)


def test_a_read_only_file_is_told_in_one_sentence() -> None:
    code = """
import tempfile
from sami_train.errors import UserError
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "rows.jsonl")
    path.write_text("")
    path.chmod(0o400)
    if os.geteuid() == 0:  # root may write everywhere
        os.chmod(folder, 0o755)
        os.seteuid(65534)
    try:
        RowFile(path, Generation).append([make_row(1)])
    except UserError as error:
        print(error)
    os.seteuid(os.getuid())
"""
    assert "rows.jsonl: Permission denied; make it writable or choose another folder" in finish(start(code))


# Whole files and manifests


def test_an_atomic_write_replaces_the_content(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.md"
    write_atomic(path, "old, longer")
    write_atomic(path, "new – 木\n")
    assert path.read_text(encoding="utf-8") == "new – 木\n"
    assert list(path.parent.iterdir()) == [path]


def test_json_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"b": [1, None, 0.1], "a": "木"})
    assert read_json(path) == {"b": [1, None, 0.1], "a": "木"}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))
    assert read_json(path) == {"b": [1, None, 0.1], "a": "木"}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000], ids=range(4))
def test_corrupt_json_and_manifests_name_their_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json is not valid JSON"):
        read_json(path)
    with pytest.raises(UserError, match=r"manifest\.json is not a valid manifest"):
        read_manifest(path)


def test_a_missing_json_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*results\.json"):
        read_json(tmp_path / "results.json")


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    assert read_manifest(path) is None
    revision, dirty = git_state(ROOT)
    manifest = Manifest(
        stage="generate",
        fingerprint=fingerprint({"model": "m"}),
        inputs={"model": "m"},
        versions=environment(),
        git=revision,
        dirty=dirty,
        seeds={"sampling": 0},
        started=datetime.now(UTC),
        expected=3,
        done=2,
        failed=1,
    )
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest


def test_the_environment_names_what_is_installed() -> None:
    versions = environment()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "pydantic" in versions
    assert None not in versions.values()


def test_git_state_tells_revision_and_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert git_state(tmp_path / "elsewhere") == (None, None)
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    (tmp_path / "untracked").write_text("")
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "file").write_text("two")
    (tmp_path / "sub").mkdir()
    assert git_state(tmp_path / "sub") == (git("rev-parse", "HEAD"), True)


# Fingerprints


def test_a_fingerprint_does_not_depend_on_the_order_of_keys_or_on_the_process() -> None:
    value = {"model": "m", "sampling": {"temperature": 0.1 + 0.2, "stop": ["木", None, True]}, "seed": 1}
    turned = {"seed": 1, "sampling": {"stop": ("木", None, True), "temperature": 0.1 + 0.2}, "model": "m"}
    assert len(fingerprint(value)) == 32
    assert fingerprint(turned) == fingerprint(value)
    assert finish(start("import json\nprint(fingerprint(json.loads(sys.argv[1])))", json.dumps(value))).strip() == (
        fingerprint(value)
    )


def test_a_fingerprint_does_not_change_between_versions() -> None:
    assert fingerprint({"b": [1, 2.5, None], "a": "é"}) == "84afbf1d4853005f9dd0c81cb1819b53"


def test_a_fingerprint_changes_with_any_value() -> None:
    values = [
        {"a": 1},
        {"a": 2},
        {"a": 1.0},
        {"a": True},
        {"a": "1"},
        {"a": None},
        {"a": [1]},
        {"b": 1},
        {},
        [],
        ["a", 1],
    ]
    assert len({fingerprint(value) for value in values}) == len(values)


@pytest.mark.parametrize("value", [Path("weights"), {"a": [Path("weights")]}, {1: "a"}, [{None: 1}], {1, 2}, b"a"])
def test_a_fingerprint_takes_plain_data_only(value: object) -> None:
    with pytest.raises(TypeError):
        fingerprint(value)


def test_a_fingerprint_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint([float("nan")])


# Locks

HOLD = """
with RunLock(Path(sys.argv[1])):
    {before}
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path, before: str = "pass") -> subprocess.Popen[str]:
    process = start(HOLD.format(before=before), folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    process = hold(tmp_path / "run")
    try:
        told = f"in use by process {process.pid} on {os.uname().nodename}, started {datetime.now(UTC):%Y-}"
        with pytest.raises(UserError, match=told):
            RunLock(tmp_path / "run").__enter__()
    finally:
        kill(process)
    with RunLock(tmp_path / "run"):  # the file is still there, the lock is not
        pass


def test_a_killed_process_frees_the_folder_though_its_forked_workers_live_on(tmp_path: Path) -> None:
    worker = "if (worker := os.fork()) == 0: time.sleep(60); os._exit(0)\n    print(worker, flush=True)"
    process = start(HOLD.format(before=worker), tmp_path)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use"):
            RunLock(tmp_path).__enter__()
        process.kill()
        process.wait(timeout=60)
        patience = time.monotonic() + 30
        while True:
            try:
                with RunLock(tmp_path):
                    os.kill(pid, 0)  # the worker is alive
                break
            except UserError:  # on a busy machine it may not have run since it was forked, and lets go when it does
                assert time.monotonic() < patience
                time.sleep(0.05)
    finally:
        os.kill(pid, signal.SIGKILL)
        kill(process)


def test_a_folder_stays_locked_when_its_lock_file_is_deleted(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        (tmp_path / ".lock").unlink()
        with pytest.raises(UserError, match="in use by another process"):
            RunLock(tmp_path).__enter__()
        with pytest.raises(UserError, match="in use by another process"):
            RunLock(tmp_path).__enter__()
    finally:
        kill(process)
    with RunLock(tmp_path):
        pass


def test_a_lock_on_a_file_that_was_deleted_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def open_and_delete(path: Path) -> int:
        opened.append(original(path))
        if len(opened) == 1:
            path.unlink()
        return opened[-1]

    original = harness.store.lock._open
    monkeypatch.setattr(harness.store.lock, "_open", open_and_delete)
    with RunLock(tmp_path) as lock:
        assert len(opened) == 2
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()


def test_a_folder_is_locked_where_locks_have_no_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = hold(tmp_path)
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    try:
        with pytest.raises(UserError, match=f"in use by process {process.pid} "):
            RunLock(tmp_path).__enter__()
    finally:
        kill(process)
    with RunLock(tmp_path):
        pass


def test_one_process_cannot_lock_twice_and_may_lock_again(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} "):
        RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("stale", ["", "{", "[]", '{"pid": 1}'])
def test_whatever_is_in_the_lock_file_blocks_nobody(tmp_path: Path, stale: str) -> None:
    (tmp_path / ".lock").write_text(stale)
    with RunLock(tmp_path) as lock:
        lock.path.write_text(stale)
        with pytest.raises(UserError, match="in use by another process"):
            RunLock(tmp_path).__enter__()


# Shared rows


@pytest.fixture
def shared(tmp_path: Path) -> SharedRows[Generation]:
    return SharedRows("generations", "m-1.0_x", Generation, tmp_path)


def test_shared_rows_are_taken_by_fingerprint(shared: SharedRows[Generation], tmp_path: Path) -> None:
    assert shared.take({"a"}) == []
    rows = [make_row(1, fingerprint="a"), make_row(1, fingerprint="b"), make_row(2, fingerprint="c")]
    shared.give(rows)
    again = SharedRows("generations", "m-1.0_x", Generation, tmp_path)
    assert again.take({"a", "c", "z"}) == [rows[0], rows[2]]
    assert again.take({"b"}) == [rows[1]]
    assert again.take(set()) == []
    assert SharedRows("generations", "other", Generation, tmp_path).take({"a"}) == []
    assert shared.path == tmp_path / "generations" / "m-1.0_x.jsonl"


def test_a_row_that_is_there_is_not_given_again(shared: SharedRows[Generation]) -> None:
    shared.give([make_row(1, "first", "a"), make_row(2, "second", "a")])
    shared.give([make_row(3, "third", "a"), make_row(4, "fourth", "b")])
    assert [row.text for row in shared.take({"a", "b"})] == ["first", "fourth"]
    assert shared.path.read_bytes().count(b"\n") == 2


def test_processes_that_give_at_once_make_no_duplicates(shared: SharedRows[Generation], tmp_path: Path) -> None:
    give = """
shared = SharedRows("generations", "m-1.0_x", Generation, Path(sys.argv[1]))
print("ready", flush=True)
while not Path(sys.argv[1], "go").exists():
    time.sleep(0.001)
for begin in range(0, 60, 4):
    shared.give(make_row(number) for number in range(begin, begin + 6))
"""
    processes = [start(give, tmp_path) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    for process in processes:
        finish(process)
    fingerprints = [json.loads(line)["fingerprint"] for line in shared.path.open()]
    assert len(fingerprints) == 62
    assert set(fingerprints) == {f"{n:032x}" for n in range(62)}


def test_a_torn_line_in_the_cache_is_repaired(shared: SharedRows[Generation]) -> None:
    shared.give([make_row(1, fingerprint="a")])
    shared.path.write_bytes(shared.path.read_bytes() + b'{"id": "row-')
    shared.give([make_row(2, fingerprint="b")])
    assert shared.take({"a", "b"}) == [make_row(1, fingerprint="a"), make_row(2, fingerprint="b")]


def test_a_corrupt_file_of_the_cache_is_put_aside(
    shared: SharedRows[Generation], caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        shared.path.parent.mkdir(exist_ok=True)
        shared.path.write_bytes(b"garbage\n")
        with caplog.at_level(logging.WARNING):
            assert shared.take({"a"}) == []
        assert f"renamed to m-1.0_x.jsonl.corrupt-{number}" in caplog.text
        assert shared.path.with_name(f"m-1.0_x.jsonl.corrupt-{number}").read_bytes() == b"garbage\n"
    shared.path.write_bytes(b"garbage\n")
    shared.give([make_row(1, fingerprint="a")])
    assert shared.take({"a"}) == [make_row(1, fingerprint="a")]


def test_a_cache_that_cannot_be_written_does_not_stop_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    shared = SharedRows("generations", "m", Generation, tmp_path / "file")
    shared.give([make_row(1)])
    assert shared.take({make_row(1).fingerprint}) == []
    assert "going on without the cache" in caplog.text


def test_a_row_that_was_edited_in_the_cache_is_not_taken(
    shared: SharedRows[Generation], caplog: pytest.LogCaptureFixture
) -> None:
    shared.give([make_row(1, "as it was", "a"), make_row(2, "another", "b")])
    for old, new in (("as it was", "as you like"), ('"fingerprint":"a"', '"fingerprint":"c"')):
        text = shared.path.read_text()
        shared.path.write_text(text.replace(old, new))
        assert shared.take({"a", "b", "c"}) == []
        assert "the row is not what was put there" in caplog.text
        shared.path.write_text(text)
        assert len(shared.take({"a", "b"})) == 2


def test_a_cache_that_cannot_be_written_is_read(
    shared: SharedRows[Generation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions stop nobody who is root, so the lock, which is all that a reader could write, is refused here."""
    shared.give([make_row(1, fingerprint="a")])
    monkeypatch.setattr("harness.store.shared.exclusive", None)
    assert shared.take({"a"}) == [make_row(1, fingerprint="a")]


@pytest.mark.parametrize("below", ["", "generations"])
def test_a_cache_that_others_can_write_in_is_not_used(
    shared: SharedRows[Generation], tmp_path: Path, below: str, caplog: pytest.LogCaptureFixture
) -> None:
    shared.give([make_row(1, fingerprint="a")])
    (tmp_path / below).chmod(0o777)
    assert shared.take({"a"}) == []
    shared.give([make_row(2, fingerprint="b")])
    assert caplog.text.count(f"other users can write in {tmp_path / below}") == 2
    (tmp_path / below).chmod(0o700)
    assert len(shared.take({"a", "b"})) == 1


def test_a_group_that_is_the_users_own_may_write_in_the_cache(
    shared: SharedRows[Generation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.give([make_row(1, fingerprint="a")])
    tmp_path.chmod(0o770)
    for name, n in ((pwd.getpwuid(os.geteuid()).pw_name, 1), ("staff", 0)):
        monkeypatch.setattr("grp.getgrgid", lambda _, name=name: SimpleNamespace(gr_name=name))
        assert len(shared.take({"a"})) == n


def test_a_new_cache_is_the_users_own(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        SharedRows("generations", "m", Generation, tmp_path / "cache").give([make_row(1)])
    finally:
        os.umask(before)
    assert {(tmp_path / f).stat().st_mode & 0o777 for f in ("cache", "cache/generations")} == {0o700}


# Shared folders


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_bytes(b"1234")
    (folder / ".lock").write_text("")
    return folder


def test_a_folder_is_taken_as_it_was_given(model: Path, tmp_path: Path) -> None:
    shared = SharedFolder("trained", "f", tmp_path / "cache")
    assert not shared.take(tmp_path / "run" / "one")
    shared.give(model)
    (model / "deep" / "weights").write_bytes(b"5678")
    shared.give(model)
    for name in ("one", "two"):
        target = tmp_path / "run" / name
        assert shared.take(target)
        assert {f.relative_to(target).as_posix(): f.read_bytes() for f in target.rglob("*") if f.is_file()} == {
            "deep/weights": b"1234"
        }
        with (target / "deep" / "weights").open("r+b") as file:
            file.write(b"0")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["one", "two"]


@pytest.mark.parametrize("damage", ["deep/weights", "deep/new", ""])
def test_a_folder_that_was_changed_in_the_cache_is_put_aside(
    model: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    shared = SharedFolder("trained", "f", tmp_path / "cache")
    shared.give(model)
    (shared.path / damage).write_bytes(b"other") if damage else (shared.path / "deep" / "weights").unlink()
    target = tmp_path / "target"
    target.mkdir()
    assert not shared.take(target)
    assert "renamed to f.corrupt-1" in caplog.text
    assert list(target.iterdir()) == []
    shared.give(model)
    assert shared.take(target)


def test_a_folder_is_given_to_no_cache_that_is_full_or_gone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    shared = SharedFolder("trained", "f", tmp_path / "file")
    shared.give(model)
    assert not shared.take(tmp_path / "target")

    def full(*_: object, **__: object) -> None:
        raise shutil.Error([("a", "b", "No space left on device")])

    monkeypatch.setattr(shutil, "copytree", full)
    shared = SharedFolder("trained", "f", tmp_path / "cache")
    shared.give(model)
    assert list((tmp_path / "cache" / "trained").iterdir()) == []
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/x", "a\\b", "a\n", "é", "a b", "x" * 129, "a\0"])
def test_nothing_untrusted_picks_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name rows in the cache"):
        SharedRows("generations", name, Generation, tmp_path)
    with pytest.raises(UserError, match="cannot name rows in the cache"):
        SharedRows(name, "m", Generation, tmp_path)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HARNESS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "sami-harness"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "sami-harness"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/sami-harness")
    monkeypatch.setenv("HARNESS_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    assert sami_train.models.cache_folder is cache_folder, "one definition"


def test_the_store_is_light_to_import() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'datasets', 'scipy'}"
    assert finish(start(f"print({heavy} & set(sys.modules))")).strip() == "set()"
