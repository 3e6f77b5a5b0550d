"""How API models are asked in a stage: what ends it early, and what is said of it."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.asking import FAILURES_ALIKE, Terms
from harness.models.base import Completion, Request, Sampling
from harness.models.openai import OpenAIBackend
from sami_train.errors import UserError
from sami_train.prompts import Prompt

SERVER = Path(__file__).parent / "models" / "api_server.py"


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """The address of a server with these options."""
    servers = []

    def begin(*options: str) -> str:
        servers.append(subprocess.Popen([sys.executable, str(SERVER), *options], stdout=subprocess.PIPE, text=True))
        assert servers[-1].stdout
        return servers[-1].stdout.readline().strip()

    yield begin
    for server in servers:
        server.kill()
        server.wait()


def answers(
    url: str, n: int, folder: Path, done: frozenset[str] = frozenset(), connections: int = 2, retries: int = 0
) -> list[Completion]:
    model = OpenAIBackend("m", "any", "chat", base_url=f"{url}/v1", max_retries=retries, max_connections=connections)
    requests = [Request(f"r{i}", Prompt("chat", (("user", f"Say {i}."),))) for i in range(n)]
    batches = Terms().answers(model, requests, Sampling(20, 100), done, what="m on dialogue", folder=folder)
    found: list[Completion] = []
    try:
        for batch in batches:
            found += batch
    except UserError as error:
        error.add_note(str(len(found)))
        raise
    return found


def test_a_stage_whose_first_requests_fail_alike_ends_with_the_providers_sentence(
    serve: Callable[..., str], tmp_path: Path
) -> None:
    url = serve("--rate", "1", "--faults", "bad_request")
    with pytest.raises(UserError) as error:
        answers(url, 60, tmp_path)
    assert "requests of 'm on dialogue' failed alike (refused_request: HTTP 400: no)" in str(error.value)
    assert "run the same command again" in str(error.value)
    assert int(error.value.__notes__[0]) >= FAILURES_ALIKE, "what failed is kept"
    stats = urllib.request.urlopen(f"{url}/stats").read().decode()
    assert '"bad_request": 60' not in stats


@pytest.mark.parametrize(("fault", "ends"), [("bad_request", True), ("server_error", False), ("empty", False)])
def test_a_small_stage_ends_when_all_of_it_fails_for_good(
    fault: str, ends: bool, serve: Callable[..., str], tmp_path: Path
) -> None:
    url = serve("--rate", "1", "--faults", fault)
    if ends:
        with pytest.raises(UserError, match="the first 2 requests"):
            answers(url, 2, tmp_path)
    else:
        assert all(made.error for made in answers(url, 2, tmp_path))


def test_what_was_answered_before_keeps_a_stage_going(serve: Callable[..., str], tmp_path: Path) -> None:
    found = answers(serve("--rate", "1", "--faults", "bad_request"), 20, tmp_path, done=frozenset(("r0",)))
    assert len(found) == 19


def test_failures_of_several_kinds_end_nothing(serve: Callable[..., str], tmp_path: Path) -> None:
    found = answers(serve("--rate", "1", "--faults", "bad_request,empty,withheld"), 40, tmp_path)
    assert len(found) == 40
