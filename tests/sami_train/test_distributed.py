"""Two real processes over gloo against one: the same weights, norms, metrics and files; kill, resume, refusals.

The processes run this file, started by torchrun, on a tiny model in float32.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
SETTINGS: dict[str, dict[str, Any]] = {
    # batches of 3 on two processes: one of them goes along with an example of weight 0
    "plain": {"eval_steps": 1, "eval_samples": 2, "beta": 0.1, "save_steps": 1, "relevance_scorer": "the model"},
    "cached, every": {
        "gradient_caching": True,
        "gradient_sync": "every",
        "per_device_train_batch_size": 2,
        "optim": "rmsprop",
    },
    **{
        f"16 queries, {size} at a time": {
            "batch_size": 16,
            "batches_at_start": 1,
            "iterations": 1,
            "eval_queries": 0,
            "per_device_train_batch_size": size,
        }
        for size in (1, 8, 16)
    },
    "frozen": {"freeze_embeddings": True},
    "lora": {"use_peft": True, "gradient_checkpointing": True, "constitutions_per_query": 3},
    "queries": {"query_contrast": 0.5, "gradient_caching": True, "beta": 0.1, "selection": "pmi", "oversample": 1.5},
}


def settings(name: str) -> dict[str, Any]:
    # epsilon is large because Adam's first steps divide a gradient by itself: rounding of a zero would be as large as the rate
    return {"max_new_tokens": 8, "adam_epsilon": 1e-3, "rmsprop_epsilon": 1e-3, **SETTINGS[name]}


def start(model: Path, folder: Path, name: str, processes: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    program = [str(Path(__file__)), str(model), str(folder), name]
    command = [sys.executable, *program]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [*launcher, *program]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def start_nodes(model: Path, runs: list[tuple[Path, str]]) -> list[subprocess.Popen[str]]:
    """A process for every (folder, settings), each the only one of its node."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(runs))}
    shared |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(model), str(folder), name],
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, (folder, name) in enumerate(runs)
    ]


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]
    return output


def weights(folder: Path, iteration: int) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / f"iteration-{iteration}" / "model" / "model.safetensors")


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def relevances(place: Path) -> list[float]:
    return [row.get("completions/relevance", -1) for row in rows(place / "evaluations.jsonl")]


def assert_same_run(one: Path, two: Path, tolerance: float) -> None:
    for iteration in (1, 2):
        a, b = weights(one, iteration), weights(two, iteration)
        assert a.keys() == b.keys()
        assert max((a[name] - b[name]).abs().max().item() for name in a) <= tolerance
        place = f"iteration-{iteration}"
        pairs = [rows(folder / place / "pairs.jsonl") for folder in (one, two)]
        told, too = ([row.pop("pmi", None) for row in part] for part in pairs)  # rounded otherwise by other batches
        assert told == pytest.approx(too, abs=1e-5)
        assert pairs[0] == pairs[1]
        assert relevances(one / place) == pytest.approx(relevances(two / place))
        for x, y in zip(rows(one / place / "metrics.jsonl"), rows(two / place / "metrics.jsonl"), strict=True):
            x.pop("tokens_per_second")
            y.pop("tokens_per_second")
            assert x == pytest.approx(y, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["plain", "cached, every", "lora", "queries"])
def test_two_processes_train_as_one(tiny_model: Path, tmp_path: Path, name: str) -> None:
    finish(start(tiny_model, tmp_path / "one", name, 1))
    finish(start(tiny_model, tmp_path / "two", name, 2))
    assert_same_run(tmp_path / "one", tmp_path / "two", 1e-6)
    base = __import__("safetensors.torch").torch.load_file(tiny_model / "model.safetensors")
    trained = weights(tmp_path / "two", 2)
    assert max((trained[n] - base[n]).abs().max().item() for n in base) > 1e-4
    if name == "lora":
        assert (tmp_path / "two" / "iteration-2" / "model" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.fixture(scope="module")
def tied_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head that is its embeddings' own matrix."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("tied") / "tied-llama")
    config = AutoConfig.from_pretrained(folder, tie_word_embeddings=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["plain", "frozen"])
def test_two_processes_train_a_tied_model_as_one(tied_model: Path, tmp_path: Path, name: str) -> None:
    finish(start(tied_model, tmp_path / "one", name, 1))
    finish(start(tied_model, tmp_path / "two", name, 2))
    assert_same_run(tmp_path / "one", tmp_path / "two", 1e-6)
    base = __import__("safetensors.torch").torch.load_file(tied_model / "model.safetensors")
    trained = weights(tmp_path / "two", 2)
    assert trained.keys() == base.keys()
    moved = {name for name in base if (trained[name] - base[name]).abs().max().item() > 1e-6}
    assert ("model.embed_tokens.weight" in moved) == (name == "plain")
    assert "model.layers.0.mlp.up_proj.weight" in moved


def test_neither_micro_batches_nor_processes_change_the_update(tiny_model: Path, tmp_path: Path) -> None:
    """16 queries as 1 x 16, 2 x 8 and 16 x 1 on one process, and as 2 x (8 x 1) and 2 x (1 x 8) on two."""
    found = {}
    for size, processes in ((1, 1), (8, 1), (16, 1), (1, 2), (8, 2)):
        folder = tmp_path / f"{size}-{processes}"
        finish(start(tiny_model, folder, f"16 queries, {size} at a time", processes))
        found[size, processes] = weights(folder, 1)
    first = found.pop((1, 1))
    base = __import__("safetensors.torch").torch.load_file(tiny_model / "model.safetensors")
    assert max((first[n] - base[n]).abs().max().item() for n in base) > 1e-4
    for other in found.values():
        assert max((first[n] - other[n]).abs().max().item() for n in first) <= 1e-6


def test_two_killed_processes_go_on_as_two_or_as_one(tiny_model: Path, tmp_path: Path) -> None:
    finish(start(tiny_model, tmp_path / "undisturbed", "plain", 1))
    for number, again in enumerate((2, 1)):
        folder = tmp_path / str(number)
        process = start(tiny_model, folder, "plain", 2)
        assert process.stdout is not None
        second = (line for line in process.stdout if line.startswith("iteration 2 steps 2"))
        next(second), next(second)  # said once more in the third step, when the checkpoint of the second is there
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert (folder / "iteration-2" / "checkpoint" / "progress.json").is_file()
        assert not list(folder.rglob("*.pt"))
        output = finish(start(tiny_model, folder, "plain", again))
        assert "iteration 1 steps" not in output
        assert "iteration 2 steps 1" not in output, "the step before the checkpoint was taken again"
        assert_same_run(tmp_path / "undisturbed", folder, 1e-6)


def children(pid: int) -> list[int]:
    return [int(p) for file in Path(f"/proc/{pid}/task").glob("*/children") for p in file.read_text().split()]


def test_the_processes_end_when_torchrun_is_killed(tiny_model: Path, tmp_path: Path) -> None:
    process = start(tiny_model, tmp_path, "plain", 2)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("iteration 1 steps 1"):
            break
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    output, _ = process.communicate(timeout=100)  # until the last of them has let go of the pipe
    assert "torchrun has gone" in output
    assert not any(Path(f"/proc/{worker}/exe").exists() for worker in workers)
    assert not (tmp_path / "summary.json").exists(), "the run was not finished by orphans"


@pytest.mark.parametrize(("kind", "backend"), [("cuda", "cpu:gloo,cuda:nccl"), ("cpu", "gloo")])
def test_objects_and_barriers_never_wait_on_a_gpu(kind: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here, so this holds what torch is asked for; torch takes gloo for objects where cpu is in it."""
    import torch

    from sami_train.distributed import start as start_world

    asked: list[str] = []
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda wanted, **_: asked.append(wanted))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    start_world(kind)
    assert asked == [backend]


def test_a_checkpoint_that_cannot_be_made_ends_all_processes(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "iteration-1").mkdir()
    (tmp_path / "iteration-1" / ".checkpoint-being-written").write_text(
        "a file where a folder is to be", encoding="utf-8"
    )
    process = start(tiny_model, tmp_path, "plain", 2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "checkpoint: the checkpoint cannot be written (File exists)" in output


def test_two_nodes_train_as_one_process(tiny_model: Path, tmp_path: Path) -> None:
    finish(start(tiny_model, tmp_path / "one", "plain", 1))
    for process in start_nodes(tiny_model, [(tmp_path / "two", "plain")] * 2):
        finish(process)
    assert_same_run(tmp_path / "one", tmp_path / "two", 1e-6)
    assert not list((tmp_path / "two").glob(".seen-*"))


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (("elsewhere", "plain"), "elsewhere: process 1 on"),
        (("here", "frozen"), "was started with another recipe than process 0"),
    ],
)
def test_nodes_that_do_not_belong_together_end(
    second: tuple[str, str], complaint: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Without the check the one would wait for the other, for hours, or keep half a checkpoint."""
    for process in start_nodes(tiny_model, [(tmp_path / "here", "plain"), (tmp_path / second[0], second[1])]):
        output, _ = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "UserError: " in output
        assert complaint in output
    assert not list(tmp_path.glob("*/*.jsonl"))


def test_an_error_ends_all_processes_with_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes()[:5000])
    began = time.monotonic()
    process = start(broken, tmp_path / "run", "plain", 2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "UserError" in output
    assert "this weights file is cut off" in output
    assert time.monotonic() - began < 200


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    import test_trainer
    import torch

    from sami_train.distributed import start as start_world
    from sami_train.models import parse_source
    from sami_train.trainer import train

    torch.set_num_threads(1)
    world = start_world("cpu")
    chosen = settings(sys.argv[3])
    if "relevance_scorer" in chosen:
        chosen["relevance_scorer"] = sys.argv[1]
    train(
        test_trainer.recipe(**chosen),
        parse_source(sys.argv[1]),
        test_trainer.data(40),
        Path(sys.argv[2]),
        world=world,
        progress=lambda what, done, total, figure: print(what, done, flush=True),  # noqa: T201
    )
    world.close()
