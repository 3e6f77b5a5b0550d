"""A whole run on a tiny real model: figures, resume after kills, the cache, and what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import run
from harness.plan import build_plan
from harness.spec import load_spec
from sami_train.errors import UserError

SPEC = """
name: tiny
models:
  base: {{path: {model}, style: completion}}
  instruct: {{path: {model}, style: chat}}
  sami:
    style: completion
    train:
      recipe: embedded/gemma-3-270m
      from: base
      tasks: [dialogue]
      set: {{batch_size: 2, batches_at_start: 1, batch_increment: 1, eval_queries: 2, max_new_tokens: 8,
            max_prompt_tokens: 1400, freeze_embeddings: false, learning_rate: 1.0e-3, sampling_batch_size: 4, save_steps: 1}}
tasks:
  dialogue: {{task: hh-rlhf, source: bundled, limit: 6, train_limit: 16}}
  summarization: {{task: tldr, source: bundled, limit: 3}}
principles: {{sets: [verifiable]}}
judges:
  verifiable: {{kind: verifiable}}
  own: {{kind: llm, model: instruct, limit: 2}}
comparisons: [{{a: sami, b: base}}, {{a: sami, b: instruct}}]
sampling: {{max_new_tokens: 8, max_prompt_tokens: 1400}}
measures: {{infonce: 2, relevance: false}}
engine: {{threads: 1, batch_size: 5}}
output: {output}
"""


def write_spec(folder: Path, model: Path, output: str = "run") -> Path:
    file = folder / f"{output}.yaml"
    file.write_text(SPEC.format(model=model, output=folder / output))
    return file


def command(spec: Path, cache: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HARNESS_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    return [sys.executable, "-m", "harness", "run", str(spec), *options], env


def figures(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in results.items() if key != "created"}


def row_ids(folder: Path) -> dict[str, list[str]]:
    files = [f for kind in ("generations", "verdicts", "likelihoods") for f in (folder / kind).rglob("*.jsonl")]
    return {str(f.relative_to(folder)): [json.loads(line)["id"] for line in f.open()] for f in files}


SERVER = """
import json, os, resource, signal, sys
import torch, harness.cli, harness.runner, harness.models.local, sami_train.trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
torch.set_num_threads(1)
for line in sys.stdin:
    job = json.loads(line)
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts with &
        os.environ["HARNESS_CACHE"] = job["cache"]
        os.dup2(os.open(job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(harness.cli.main(["run", job["spec"], "--quiet"]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Starter:
    """Starts `harness run` in a process of its own, again and again, without importing torch again and again."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, spec: Path, cache: Path) -> int:
        """The process's id. Its standard error goes to the file `stderr` beside the specification."""
        job = {"spec": str(spec), "cache": str(cache), "stderr": str(spec.with_name("stderr"))}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> int:
        """The exit code of what was started last; minus the signal's number where one ended it."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def run(self, spec: Path, cache: Path) -> None:
        """Run to the end."""
        self.start(spec, cache)
        code = self.wait()
        assert code == 0, spec.with_name("stderr").read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    found = Starter()
    yield found
    found.close()


@pytest.fixture(scope="module")
def undisturbed(starter: Starter, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    starter.run(write_spec(folder, tiny_model), folder / "cache")
    return folder / "run"


def test_results_carry_what_is_promised(undisturbed: Path) -> None:
    results = json.loads((undisturbed / "results.json").read_text())
    assert results["schema_version"] == 2
    promised = {
        "task",
        "principle_set",
        "split",
        "a",
        "b",
        "judge",
        "n",
        "n_expected",
        "wins",
        "ties",
        "losses",
        "unscored",
    }
    promised |= {"win_rate", "ci_low", "ci_high", "ci_level", "ci_method", "mean_length_a", "mean_length_b"}
    assert len(results["comparisons"]) == 2 * 2 * 3 * 2  # judges x pairs x (two tasks and all) x splits
    for row in results["comparisons"]:
        assert promised <= row.keys()
        assert row["wins"] + row["ties"] + row["losses"] == row["n"] == row["n_expected"]
        assert 0 <= row["ci_low"] <= row["win_rate"] <= row["ci_high"] <= 1
    pooled = next(r for r in results["comparisons"] if r["task"] == "all" and r["judge"] == "verifiable")
    assert pooled["n"] == 9
    assert {row["split"] for row in results["steerability"]} == {"learned", "held_out"}
    assert {row["model"] for row in results["infonce"]} == {"base", "instruct", "sami"}
    assert results["training"]["sami"]["evaluation"]["n"] > 0
    assert "sami" in (undisturbed / "report.md").read_text()


def test_every_planned_row_is_there_once(undisturbed: Path) -> None:
    plan = build_plan(load_spec(str(undisturbed / "spec.yaml"), {}))
    found = row_ids(undisturbed)
    expected = {str(s.path): sorted(u.id for u in s.units) for s in plan.stages if s.kind != "train"}
    assert {name: sorted(ids) for name, ids in found.items()} == expected


def test_a_finished_run_is_read_back_without_loading_a_model(undisturbed: Path, tiny_model: Path) -> None:
    code = (
        "import sys, harness; outcome = harness.run(sys.argv[1], quiet=True); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; print(outcome.results['created'])"
    )
    spec, cache = undisturbed.parent / "run.yaml", undisturbed.parent / "cache"
    _, env = command(spec, cache)
    done = subprocess.run([sys.executable, "-c", code, str(spec)], env=env, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == json.loads((undisturbed / "results.json").read_text())["created"]


def rows_written(folder: Path) -> int:
    """Lines of all row files; folders are renamed meanwhile, so a look that meets one half way is taken again."""
    while True:
        try:
            return sum(f.read_bytes().count(b"\n") for f in folder.rglob("*.jsonl"))
        except FileNotFoundError:
            time.sleep(0.01)


def signal_after(pid: int, rows: int, folder: Path, number: signal.Signals) -> None:
    """Send a signal as soon as so many rows are written, unless the process ends before."""
    while Path(f"/proc/{pid}/exe").exists() and rows_written(folder) < rows:
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def test_kill_at_ten_moments_then_resume(starter: Starter, undisturbed: Path, tiny_model: Path, tmp_path: Path) -> None:
    """SIGKILL after ever more rows, ten times over; the run that is left to end has the undisturbed run's figures."""
    spec, cache = write_spec(tmp_path, tiny_model), tmp_path / "cache"
    total = rows_written(undisturbed)
    ends = []
    for moment in sorted(random.Random(7).sample(range(1, int(total * 0.9)), 10)):
        signal_after(starter.start(spec, cache), moment, tmp_path, signal.SIGKILL)
        ends.append(starter.wait())
        assert not (tmp_path / "run" / "results.json").exists()
    assert ends == [-signal.SIGKILL] * 10
    starter.run(spec, cache)
    assert figures(tmp_path / "run") == figures(undisturbed)
    found, expected = row_ids(tmp_path / "run"), row_ids(undisturbed)
    assert {name: sorted(ids) for name, ids in found.items()} == {name: sorted(ids) for name, ids in expected.items()}
    assert all(len(set(ids)) == len(ids) for ids in found.values())


def test_interrupt_is_one_sentence_and_goes_on(
    starter: Starter, undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    spec, cache = write_spec(tmp_path, tiny_model), tmp_path / "cache"
    signal_after(starter.start(spec, cache), rows_written(undisturbed) // 2, tmp_path, signal.SIGINT)
    assert starter.wait() == 130
    assert (tmp_path / "stderr").read_text() == "harness: stopped; run the same command again to go on\n"
    starter.run(spec, cache)
    assert figures(tmp_path / "run") == figures(undisturbed)


def test_another_run_takes_everything_from_the_cache(undisturbed: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Rows and the trained model are there already, so only the LLM judge needs a model again; the figures are equal."""
    file = write_spec(tmp_path, tiny_model)
    text = file.read_text().replace("  own: {kind: llm, model: instruct, limit: 2}\n", "")
    file.write_text(text)
    code = "import sys, harness; harness.run(sys.argv[1], quiet=True); assert 'torch' not in sys.modules"
    _, env = command(file, undisturbed.parent / "cache")
    subprocess.run([sys.executable, "-c", code, str(file)], env=env, check=True)
    mine = [row for row in figures(undisturbed)["comparisons"] if row["judge"] == "verifiable"]
    assert figures(tmp_path / "run")["comparisons"] == mine


def test_changed_principles_recompute_only_what_depends_on_it(tiny_model: Path, tmp_path: Path, root: Path) -> None:
    text = (root / "principles" / "verifiable.yaml").read_text()
    folder = tmp_path / "principles"
    folder.mkdir()
    units: list[dict[str, str]] = []
    stages: list[dict[str, str]] = []
    for version in (text, text.replace("definition: ", "definition: Please. ", 6)):
        (folder / "mine.yaml").write_text(version.replace("name: verifiable", "name: mine"))
        spec = load_spec(str(write_spec(tmp_path, tiny_model)), {"principles.sets": [str(folder / "mine.yaml")]})
        plan = build_plan(spec)
        stages.append({s.name: s.fingerprint for s in plan.stages})
        units.append(
            {u.id: u.fingerprint for s in plan.stages if s.kind == "generate" and s.model == "base" for u in s.units}
        )
    assert units[0].keys() == units[1].keys()
    changed = [i for i in units[0] if units[0][i] != units[1][i]]
    assert 0 < len(changed) < len(units[0]) / 2
    assert stages[0]["train sami"] != stages[1]["train sami"]


def test_engine_settings_change_no_fingerprint_and_sampling_changes_all(tiny_model: Path, tmp_path: Path) -> None:
    file = str(write_spec(tmp_path, tiny_model))

    def prints(**overrides: Any) -> set[str]:
        plan = build_plan(load_spec(file, {k.replace("__", "."): v for k, v in overrides.items()}))
        return {u.fingerprint for s in plan.stages for u in s.units}

    base = prints()
    assert prints(engine__batch_size=2, engine__threads=2, output=str(tmp_path / "other")) == base
    assert not prints(sampling__max_new_tokens=9) & base


def test_held_out_principles_never_reach_training(tiny_model: Path, tmp_path: Path) -> None:
    plan = build_plan(load_spec(str(write_spec(tmp_path, tiny_model)), {}))
    assert {p.split for ps in plan.training_principles("sami").values() for p in ps} == {"learned"}
    evaluated = {q.id for data in plan.tasks.values() for q in data.evaluation}
    assert not evaluated & {q.id for q in plan.training_queries("sami")}


def test_a_corrupt_row_file_is_named_and_kept(undisturbed: Path, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(undisturbed, tmp_path / "run")
    file = tmp_path / "run" / "generations" / "base" / "dialogue.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:2], "{broken\n", *lines[3:]]))
    before = file.read_bytes()
    spec = write_spec(tmp_path, tiny_model)
    with pytest.raises(UserError, match=r"dialogue\.jsonl:3.*(restore|delete)"):
        run(str(spec), quiet=True)
    assert file.read_bytes() == before


def test_two_processes_on_one_run(undisturbed: Path, tiny_model: Path) -> None:
    from harness.store import RunLock

    with RunLock(undisturbed), pytest.raises(UserError, match=str(os.getpid())):
        run(str(undisturbed.parent / "run.yaml"), quiet=True)


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    starter: Starter, undisturbed: Path, tiny_model: Path, tmp_path: Path
) -> None:
    spec, cache = write_spec(tmp_path, tiny_model), tmp_path / "cache"
    line, env = command(spec, cache, "--quiet")

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))

    full = subprocess.run(line, env=env, preexec_fn=small_files, capture_output=True, text=True)
    assert full.returncode == 1
    assert len(full.stderr.strip().splitlines()) == 1
    assert "free some space" in full.stderr
    assert not (tmp_path / "run" / "results.json").exists()
    starter.run(spec, cache)
    assert figures(tmp_path / "run") == figures(undisturbed)


def test_an_unreadable_model_folder_is_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    line, env = command(write_spec(tmp_path, broken), tmp_path / "cache")
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr
    assert "cut off" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content",
    [
        '{"a": "fast", "b": [1], "c": null, "d": NaN, "e": -1, "f": true, "g": 1e999, "h": 0.5}',
        "[" * 100_000,
        "[1]",
        "\x00",
    ],
)
def test_remembered_rates_that_are_none_are_passed_over(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.runner import known_rates, remember_rate

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    (tmp_path / "rates.json").write_text(content)
    before = {"h": 0.5} if "h" in content else {}
    assert known_rates() == before
    remember_rate("new", 2.0)
    assert known_rates() == {**before, "new": 2.0}
