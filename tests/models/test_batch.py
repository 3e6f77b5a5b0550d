"""The batch interfaces, through the real SDKs, against a server of ours: handed in once, whatever happens between."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from harness.models._api import ApiBackend
from harness.models._batch import open_requests
from harness.models.anthropic import AnthropicBackend
from harness.models.base import Completion, Request, Sampling
from harness.models.openai import OpenAIBackend
from sami_train.errors import UserError
from sami_train.prompts import Prompt

SAMPLING = Sampling(20, 100)
Provider = Literal["openai", "anthropic"]
PROVIDERS: list[Provider] = ["openai", "anthropic"]


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """The address of a server with these options."""
    servers = []

    def begin(*options: str) -> str:
        command = [sys.executable, str(Path(__file__).with_name("api_server.py")), "--batch-seconds", "0.3", *options]
        servers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert servers[-1].stdout
        return servers[-1].stdout.readline().strip()

    yield begin
    for server in servers:
        server.kill()
        server.wait()


def opened(provider: Provider, url: str, **options: Any) -> ApiBackend:
    if provider == "anthropic":
        return AnthropicBackend("m", "any", "chat", base_url=url, **options)
    return OpenAIBackend("m", "any", "chat", base_url=f"{url}/v1", **options)


def asked(n: int, text: str = "Number") -> list[Request]:
    return [Request(f"{i:024x}", Prompt("chat", (("user", f"{text} {i}"),))) for i in range(n)]


def begun(backend: ApiBackend, requests: list[Request], folder: Path, **more: Any) -> Iterator[list[Completion]]:
    more = {"done": frozenset(), "say": lambda _: None, **more}
    return backend.generate_in_batches(requests, SAMPLING, folder=folder, **more)


def collected(backend: ApiBackend, requests: list[Request], folder: Path, **more: Any) -> list[Completion]:
    return [c for rows in begun(backend, requests, folder, **more) for c in rows]


def stats(url: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(urllib.request.urlopen(f"{url}/stats").read())
    return found


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_says_what_single_requests_say(provider: Provider, serve: Callable[..., str], tmp_path: Path) -> None:
    url, requests = serve(), asked(30)
    backend = opened(provider, url)
    single = {c.id: c for rows in backend.generate(requests, SAMPLING) for c in rows}
    found = collected(backend, requests, tmp_path)
    assert len(found) == 30
    for c in found:
        assert (c.text, c.n_tokens, c.finish_reason) == (single[c.id].text, single[c.id].n_tokens, "stop")
        assert c.usage["batch"] is True
    assert open_requests(tmp_path) == 0


@pytest.mark.parametrize("provider", PROVIDERS)
def test_chunks_are_as_large_as_the_provider_takes(
    provider: Provider, serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, requests = serve(), asked(30)
    backend = opened(provider, url)
    monkeypatch.setattr(backend, "batch_requests", 12)
    assert len({c.id for c in collected(backend, requests, tmp_path / "number")}) == 30
    assert [b["n"] for b in stats(url)["batches"]] == [12, 12, 6]
    monkeypatch.setattr(backend, "batch_bytes", 2500)
    assert len({c.id for c in collected(backend, requests, tmp_path / "size")}) == 30
    sizes = [b["n"] for b in stats(url)["batches"]][3:]
    assert sum(sizes) == 30
    assert len(sizes) > 3


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_failed_in_a_batch_is_typed_and_goes_into_the_next_one(
    provider: Provider, serve: Callable[..., str], tmp_path: Path
) -> None:
    url, requests = serve("--batch-fault-every", "3"), asked(60)
    found = collected(opened(provider, url), requests, tmp_path)
    reasons = Counter((c.error or "ok").partition(":")[0] for c in found)
    assert sum(reasons.values()) == 60
    assert reasons.keys() == {"ok", "expired", "canceled", "refused_request", "server_error"}
    good = {c.id for c in found if c.error is None}
    again = collected(opened(provider, url), requests, tmp_path, done=good)
    assert {c.id for c in again} == {r.id for r in requests} - good
    assert [b["n"] for b in stats(url)["batches"]] == [60, 60 - len(good)]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_under_way_is_taken_up_by_its_id(provider: Provider, serve: Callable[..., str], tmp_path: Path) -> None:
    url, requests = serve(), asked(10)
    first = begun(opened(provider, url), requests, tmp_path)
    assert len(next(first)) == 10  # and stopped before it knows that the rows are on disk
    first.close()  # type: ignore[attr-defined]
    assert open_requests(tmp_path) == 10
    done = {requests[0].id}
    assert {c.id for c in collected(opened(provider, url), requests, tmp_path, done=done)} == {
        r.id for r in requests[1:]
    }
    assert len(stats(url)["batches"]) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_whose_id_was_never_written_down_is_found(
    provider: Provider, serve: Callable[..., str], tmp_path: Path
) -> None:
    url, requests = serve(), asked(10)
    next(begun(opened(provider, url), requests, tmp_path))
    (file,) = tmp_path.glob("*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "batch": None}))
    assert len(collected(opened(provider, url), requests, tmp_path)) == 10
    assert len(stats(url)["batches"]) == 1
    lost = tmp_path / "lost"
    record = {"token": "00000000", "created": 4e9, "requests": json.loads(file.read_text())["requests"]}
    lost.mkdir()
    (lost / "0.json").write_text(json.dumps({**record, "batch": None, "collected": False}))
    assert len(collected(opened(provider, url), requests, lost)) == 10
    assert len(stats(url)["batches"]) == 2, "where there is none it is handed in"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_whose_answer_was_lost_on_the_way_is_not_handed_in_again(
    provider: Provider, serve: Callable[..., str], tmp_path: Path
) -> None:
    url = serve("--drop-created")
    assert len(collected(opened(provider, url), asked(10), tmp_path)) == 10
    assert len(stats(url)["batches"]) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_changed_prompt_gets_no_answer_to_the_old_one(
    provider: Provider, serve: Callable[..., str], tmp_path: Path
) -> None:
    url = serve()
    next(begun(opened(provider, url), asked(10), tmp_path))
    changed = [*asked(4), *asked(10, "Another")[4:]]
    found = {c.id: c for c in collected(opened(provider, url), changed, tmp_path)}
    single = {c.id: c for rows in opened(provider, url).generate(changed, SAMPLING) for c in rows}
    assert {i: c.text for i, c in found.items()} == {i: c.text for i, c in single.items()}
    assert [b["n"] for b in stats(url)["batches"]] == [10, 6]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("failed", "refused_request: the batch failed: no such model"),
        ("expired", "expired: "),
        ("cancelled", "canceled: "),
    ],
)
def test_a_batch_that_failed_as_a_whole(
    status: str, error: str, serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenAIBackend, "_file_lines", lambda *_: iter(()))  # nothing was done before the end
    found = collected(opened("openai", serve("--batch-status", status)), asked(5), tmp_path)
    assert len(found) == 5
    assert all((c.error or "").startswith(error) for c in found)


@pytest.mark.parametrize("most", [3, 1])
def test_a_batch_beyond_what_the_account_may_have_under_way_is_handed_in_smaller(
    most: int, serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, said, requests = serve("--batch-limit", str(most)), list[str](), asked(8)
    monkeypatch.setattr("harness.models._batch.FIRST_POLL_S", 0.05)
    found = collected(opened("openai", url), requests, tmp_path, say=said.append)
    assert {c.id for c in found} == {r.id for r in requests}
    assert len(found) == 8
    assert [c.error for c in found] == [None] * 8
    assert any("the provider took no more than is under way" in line for line in said)
    assert open_requests(tmp_path) == 0


def test_a_request_that_is_too_much_by_itself_fails_with_the_reason(serve: Callable[..., str], tmp_path: Path) -> None:
    url = serve("--batch-limit", "-1")
    (found,) = collected(opened("openai", url), asked(1), tmp_path)
    assert found.error == "rate_limit: the batch failed: Enqueued token limit reached"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_field_that_a_batch_is_refused_for_is_left_out_of_the_next(
    provider: Provider, serve: Callable[..., str], tmp_path: Path
) -> None:
    url = serve("--refuse", "temperature")
    backend = opened(provider, url)
    found = collected(backend, asked(4), tmp_path)
    assert [(c.error, c.usage["left_out"]) for c in found] == [(None, ["temperature"])] * 4
    assert [b["n"] for b in stats(url)["batches"]] == [4, 4]
    assert "temperature is left out" in backend.take_notes()[0]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_server_without_batches_is_one_sentence(
    provider: Provider, serve: Callable[..., str], tmp_path: Path
) -> None:
    backend = opened(provider, serve() + "/elsewhere")
    with pytest.raises(UserError, match=r"did not take a batch .* or without --batch"):
        collected(backend, asked(5), tmp_path)


def test_a_record_of_another_shape_is_one_sentence(serve: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text('{"x": 1}')
    with pytest.raises(UserError, match="is no record of a batch"):
        collected(opened("openai", serve()), asked(1), tmp_path)
