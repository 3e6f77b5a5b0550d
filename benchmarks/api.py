"""How close API requests come to what latency allows, and what they take of processor and memory.

    python benchmarks/api.py [--requests 10000] [--connections 256] [--latency 2] [--rate 0] [--provider openai]

A server in a process of its own answers after `--latency` seconds, give or take a tenth. The bound is what `--connections` requests
at once could do with such answers if everything else took no time. Judge prompts of about 500 tokens, through the provider's SDK.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

from harness.models._api import ApiBackend
from harness.models.anthropic import AnthropicBackend
from harness.models.base import Request, Sampling
from harness.models.openai import OpenAIBackend
from sami_train.prompts import Prompt

SERVER = Path(__file__).resolve().parent.parent / "tests" / "models" / "api_server.py"


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def measure(options: argparse.Namespace, url: str) -> None:
    settings = {"max_connections": options.connections, "max_retries": 8, "timeout_s": max(10.0, 5 * options.latency)}
    backend: ApiBackend
    if options.provider == "openai":
        backend = OpenAIBackend("judge", "judge", "chat", base_url=f"{url}/v1", **settings)
    else:
        backend = AnthropicBackend("judge", "judge", "chat", base_url=url, **settings)
    filler = "Which of the two keeps to the principles? " * 48
    requests = [
        Request(str(n), Prompt("chat", (("user", f"{n} {filler}Verdict: ?"),))) for n in range(options.requests)
    ]
    began, processor = time.perf_counter(), time.process_time()
    done = failed = 0
    memory: list[float] = []
    for batch in backend.generate(requests, Sampling(300, 8192)):
        done += len(batch)
        failed += sum(c.error is not None for c in batch)
        while len(memory) < 9 and done >= (len(memory) + 1) * options.requests // 10:
            memory.append(resident_mib())
    took = time.perf_counter() - began
    bound = options.requests * options.latency / options.connections
    print(
        f"{options.provider}: {done:,} requests, {failed:,} failed, {took:.1f} s; bound {bound:.1f} s; {bound / took:.3f} of it"
    )
    print(f"processor: {1000 * (time.process_time() - processor) / options.requests:.2f} ms a request")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("memory at 10% ... 90% of the requests: " + " ".join(f"{m:.0f}" for m in memory) + f" MiB; peak {peak:.0f}")
    backend.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="share of requests that fail, in every way the server knows"
    )
    parser.add_argument("--provider", choices=("openai", "anthropic"), default="openai")
    options = parser.parse_args()
    command = [sys.executable, str(SERVER), "--latency", str(options.latency), "--rate", str(options.rate)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        measure(options, server.stdout.readline().strip())
    finally:
        server.kill()


if __name__ == "__main__":
    main()
