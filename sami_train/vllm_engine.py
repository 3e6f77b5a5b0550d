"""Sampling with vLLM, in processes of its own: their memory is free when they end, and they end with whoever started them.

`generate_ids` starts ``python -m sami_train.vllm_engine JOB`` as the leader of a process group. The job is a JSON file; results
come back through a pipe as JSON lines, a chunk of prompts each. The engine's own workers belong to the group, which is ended as
a whole: by `generate_ids` when it is done, fails or is closed, and by a watching thread in the leader when its parent is gone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sami_train.errors import MissingPackage, UserError
from sami_train.models import check_source, parse_source

CHUNK = 256
"""Prompts handed to vLLM together, and results that come back together."""

GRACE = 10.0
"""Seconds the engine's processes get to end by themselves before they are killed."""

MEMORY_SHARE = 0.92
"""Part of a GPU's free memory that the engine may take."""

LONGEST_PLACE = 45
"""Bytes in the path of the folder for temporary files: a socket's path has at most 103, vLLM's name in our folder 56."""

COMMAND = (sys.executable, "-P", "-m", "sami_train.vllm_engine")


@dataclass(frozen=True)
class RawGenerated:
    """Token ids exactly as generated (an end token or stop string included) and why it ended: ``stop`` or ``length``."""

    ids: list[int]
    finish_reason: str


def installed() -> bool:
    """Whether vLLM can be imported. It is not imported to find out."""
    spec = importlib.util.find_spec("vllm")
    return spec is not None and spec.origin is not None


def generate_ids(
    folder: str,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    ends: Sequence[int] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    revision: str | None = None,
    dtype: str = "auto",
    tensor_parallel: int = 1,
    trust_remote_code: bool = False,
    work: Path,
) -> Iterator[dict[int, RawGenerated]]:
    """Generate for prompts given as token ids; yield results a chunk at a time, keyed by the prompt's index.

    `folder` is a model folder or a hub id (at `revision`, where given). A response ends at the strings `stop`, the tokens `ends`
    and the model's own end. `work` is a folder for the job and the engine's log, ``vllm.log``. A prompt's draws depend on `seed`
    and its tokens, not on its place, so that the rest of an interrupted job draws what the whole would have.

    Raises:
        MissingPackage: vLLM is not installed.
        UserError: the folder is no model folder, `work` cannot be written, or the engine fails.
    """
    if not installed():
        raise MissingPackage("vllm", extra="vllm")
    check_source(parse_source(folder))
    if not prompts:
        return iter(())
    job = {
        "folder": folder,
        "revision": revision,
        "prompts": [list(ids) for ids in prompts],
        "max_new_tokens": max_new_tokens,
        "stop": list(stop),
        "ends": list(ends),
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "dtype": dtype,
        "tensor_parallel": tensor_parallel,
        "trust_remote_code": trust_remote_code,
        "chunk": CHUNK,
    }
    return run_job(COMMAND, job, work)


def run_job(command: Sequence[str], job: Mapping[str, Any], work: Path) -> Iterator[dict[int, RawGenerated]]:
    """Start an engine (`command` with the job file as its last argument) and yield its results; end it in any case."""
    file, log = work / "vllm-job.json", work / "vllm.log"
    with tempfile.TemporaryDirectory(prefix="sami-vllm-", dir=_scratch_place(), ignore_cleanup_errors=True) as scratch:
        try:
            work.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({**job, "scratch": scratch}), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{file}: cannot be written ({error.strerror}); free some space or check the folder's permissions"
            ) from None
        try:
            with _process([*command, str(file)], _environment(os.environ, str(job["folder"]), scratch), log) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    rows = json.loads(line)
                    if rows is None:
                        _gone(process, GRACE)
                        return
                    yield {index: RawGenerated(ids, reason) for index, ids, reason in rows}
                raise UserError(_failure(str(job["folder"]), process, log))
        finally:
            file.unlink(missing_ok=True)


def _scratch_place() -> str:
    """The folder for temporary files, or /tmp where its path is too long for the sockets that vLLM makes in it."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= LONGEST_PLACE or not Path("/tmp").is_dir() else "/tmp"


_LAUNCHER = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|(TORCHELASTIC|ACCELERATE|FSDP)_.*"
)


def _environment(own: Mapping[str, str], folder: str, scratch: str) -> dict[str, str]:
    """The engine's environment: without torchrun's variables, on the loopback alone, temporary files in `scratch`."""
    environment = {name: value for name, value in own.items() if not _LAUNCHER.fullmatch(name)}
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment.update(
        PYTHONPATH=os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        TMPDIR=scratch,
        VLLM_WORKER_MULTIPROC_METHOD="spawn",
        VLLM_HOST_IP="127.0.0.1",
        GLOO_SOCKET_IFNAME=loopback,
        NCCL_SOCKET_IFNAME=loopback,
        VLLM_NO_USAGE_STATS="1",
    )
    environment.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    if Path(folder).is_dir():
        environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    return environment


@contextmanager
def _process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process group: with SIGTERM, on which vLLM gives back its shared memory, and then by force."""
    try:
        _signal(process, signal.SIGTERM)
        _gone(process, GRACE)
    finally:
        _signal(process, signal.SIGKILL)
        _gone(process, GRACE)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _gone(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the whole process group has ended, at the latest after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _failure(folder: str, process: subprocess.Popen[bytes], log: Path) -> str:
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    reason = _last_words(log.read_text(encoding="utf-8", errors="replace"))
    if process.returncode is not None and process.returncode < 0:
        reason = f"ended by signal {-process.returncode}, which may mean too little memory"
    return (
        f"vLLM failed with the model '{folder}' ({reason or 'it said nothing'}); "
        f"see {log}, or set use_vllm: false to sample without vLLM"
    )


_LOG_PREFIX = re.compile(r"^(\([^)]*pid=\d+\)\s*)?([A-Z]+ \d\d-\d\d [\d:]+ \[[^\]]*\] ?)?")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")
_WRAPPER = re.compile(r"initialization failed|EngineDeadError")


def _last_words(log: str) -> str:
    """The log's last exception that says what happened, or else its last line; one line of printable characters."""
    lines = [text for line in log.splitlines() if (text := _LOG_PREFIX.sub("", line).rstrip())]
    causes = [n for n, line in enumerate(lines) if _EXCEPTION.match(line) and not _WRAPPER.search(line)]
    if not lines:
        return ""
    at = causes[-1] if causes else len(lines) - 1
    if "validation error" in lines[at] and at + 1 < len(lines):
        at += 1
    said = "".join(character for character in lines[at] if character.isprintable())
    return said.partition(" [type=")[0].strip().rstrip(".")[:400]


def prompt_seeds(seed: int, prompts: Sequence[Sequence[int]]) -> list[int]:
    """A seed of 63 bits for each prompt, from its tokens and not its place; equal prompts get different ones."""
    seen: Counter[bytes] = Counter()
    seeds = []
    for ids in prompts:
        tokens = hashlib.sha256(json.dumps(list(ids)).encode()).digest()
        whole = hashlib.sha256(f"{seed} {seen[tokens]} {tokens.hex()}".encode()).digest()
        seeds.append(int.from_bytes(whole[:8], "big") >> 1)
        seen[tokens] += 1
    return seeds


def main(arguments: Sequence[str] | None = None) -> int:
    """The engine's process: reads the job file and writes results to standard output. Started by `generate_ids` alone."""
    (file,) = sys.argv[1:] if arguments is None else arguments
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    watch_parent(job["scratch"])
    for rows in _generate(job):
        print(json.dumps(rows), file=results, flush=True)
    print("null", file=results, flush=True)
    return 0


def watch_parent(scratch: str) -> None:
    """Start a thread that kills this process's whole group, and removes `scratch`, once the parent has gone.

    The parent is gone when standard input, a pipe from it, ends, or when this process has another parent.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            ready, _, _ = select.select([0], [], [], 1.0)
            if ready and not os.read(0, 1):
                break
        shutil.rmtree(scratch, ignore_errors=True)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()


def _generate(job: Mapping[str, Any]) -> Iterator[list[tuple[int, list[int], str]]]:
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    prompts: list[list[int]] = job["prompts"]
    # On the CPU a prompt is read in one piece: vLLM cannot put a seeded draw back there, as reading in pieces needs.
    options: dict[str, Any] = {"enforce_eager": True, "enable_chunked_prefill": False}
    if not current_platform.is_cpu():
        options = {"gpu_memory_utilization": _memory_share(job["tensor_parallel"])}
    engine = LLM(
        model=job["folder"],
        revision=job["revision"],
        dtype=job["dtype"],
        max_model_len=max(map(len, prompts)) + job["max_new_tokens"],
        tensor_parallel_size=job["tensor_parallel"],
        trust_remote_code=job["trust_remote_code"],
        load_format="safetensors",
        enable_prefix_caching=True,
        **options,
    )
    seeds = prompt_seeds(job["seed"], prompts)
    for start in range(0, len(prompts), job["chunk"]):
        chunk = range(start, min(start + job["chunk"], len(prompts)))
        outputs = engine.generate(
            [{"prompt_token_ids": prompts[index]} for index in chunk],
            [
                SamplingParams(
                    temperature=job["temperature"],
                    top_p=job["top_p"],
                    seed=seeds[index] if job["temperature"] > 0 else None,
                    max_tokens=job["max_new_tokens"],
                    stop=job["stop"],
                    stop_token_ids=job["ends"],
                )
                for index in chunk
            ],
            use_tqdm=False,
        )
        yield [_row(index, output.outputs[0]) for index, output in zip(chunk, outputs, strict=True)]


def _row(index: int, completion: Any) -> tuple[int, list[int], str]:
    if completion.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"the response to prompt {index} ended with '{completion.finish_reason}'")
    return index, list(completion.token_ids), completion.finish_reason


def _memory_share(devices: int) -> float:
    """The part of every GPU's whole memory that the engine may take: most of what is free on the fullest one."""
    import torch

    sizes = [torch.cuda.mem_get_info(device) for device in range(devices)]
    return MEMORY_SHARE * float(min(free / total for free, total in sizes))


if __name__ == "__main__":
    sys.exit(main())
