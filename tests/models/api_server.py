"""A server on the loopback that speaks OpenAI's and Anthropic's interfaces, batches included, and fails as often as it is told.

    python tests/models/api_server.py --latency 0.5 --rate 0.3 --faults rate_limit,server_error

It prints its address. It judges by the hash of the prompt, so that the same prompt always gets the same verdict. `GET /stats`
tells what it did; `POST /settings` changes an option while it runs. Batches end `--batch-seconds` after they were handed in.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
import time
from collections import Counter
from typing import Any

FAULTS = (
    "rate_limit", "overloaded", "server_error", "dropped", "cut_off", "not_json", "wrong_type", "odd_shape", "empty",
    "withheld", "refusal", "bad_request", "hang",
)  # fmt: skip


class State:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.random = random.Random(options.seed)
        self.count: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()  # by hash of the prompt
        self.running = self.most_running = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.authorizations: set[str] = set()

    def stats(self) -> dict[str, Any]:
        return {
            "count": dict(self.count),
            "answered": dict(self.answered),
            "most_running": self.most_running,
            "batches": [{k: v for k, v in b.items() if k != "lines"} for b in self.batches.values()],
        }


def prompt_of(body: dict[str, Any]) -> str:
    if "prompt" in body:
        return str(body["prompt"])
    return "\n".join([str(body.get("system", "")), *(str(m["content"]) for m in body["messages"])])


def said(body: dict[str, Any]) -> str:
    digest = hashlib.sha256(prompt_of(body).encode()).digest()
    verdict = ("A", "B", "tie")[digest[0] % 3]
    if "response_format" in body or "output_config" in body:
        return json.dumps({"reasoning": "It keeps to them.", "verdict": verdict})
    if "Verdict:" in prompt_of(body):
        return f"The one keeps to the principles better.\nVerdict: {verdict}"
    return f"An answer of {body['model']}, number {digest.hex()[:8]}."


def answer(path: str, body: dict[str, Any], text: str | None, finish: str | None = None) -> dict[str, Any]:
    n_prompt, n = max(1, len(prompt_of(body).encode()) // 4), max(1, len(text or "") // 4)
    if path == "/v1/messages":
        content = [] if text is None else [{"type": "text", "text": text}]
        usage = {"input_tokens": n_prompt, "cache_read_input_tokens": 0, "output_tokens": n}
        return {
            "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": content,
            "stop_reason": finish or "end_turn", "stop_sequence": None, "usage": usage,
        }  # fmt: skip
    shown = {"text": text} if path == "/v1/completions" else {"message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n, "total_tokens": n_prompt + n}
    choice = {"index": 0, "finish_reason": finish or "stop", **shown}
    return {"id": "1", "object": "x", "created": 1, "model": body["model"], "choices": [choice], "usage": usage}


def problem(path: str, kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, "code": None}}


class Connection:
    def __init__(self, state: State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.state, self.reader, self.writer = state, reader, writer

    async def serve(self) -> None:
        try:
            while True:
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, path, _ = head.split("\r\n", 1)[0].split(" ")
                length = re.search(r"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
                body = await self.reader.readexactly(int(length[1]) if length else 0)
                if not await self.respond(method, path.partition("?")[0], head, body):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.writer.close()

    def reply(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
        self.writer.write(f"HTTP/1.1 {status} x\r\n{head}\r\n".encode() + data)

    async def respond(self, method: str, path: str, head: str, body: bytes) -> bool:
        """Answer one request; False when the connection was broken on purpose."""
        state = self.state
        if path == "/stats":
            self.reply(200, state.stats())
        elif path == "/settings":
            vars(state.options).update(json.loads(body))
            self.reply(200, {})
        elif method == "POST" and path in ("/v1/chat/completions", "/v1/completions", "/v1/messages"):
            state.running += 1
            state.most_running = max(state.most_running, state.running)
            try:
                return await self.generate(path, json.loads(body))
            finally:
                state.running -= 1
        elif path.startswith(("/v1/files", "/v1/batches", "/v1/messages/batches")):
            state.count[f"{method} {re.sub('(file|batch|msgbatch)_[0-9]+', 'ID', path)}"] += 1
            return await self.batches(method, path, head, body)
        else:
            self.reply(404, problem(path, "not_found_error", "there is no such page"))
        await self.writer.drain()
        return True

    async def generate(self, path: str, body: dict[str, Any]) -> bool:
        state, options = self.state, self.state.options
        await asyncio.sleep(options.latency * state.random.uniform(0.9, 1.1))
        fault = state.random.choice(options.faults.split(",")) if state.random.random() < options.rate else "none"
        if fault == "none" and options.capacity and state.running > options.capacity:
            fault = "rate_limit"
        state.count[fault] += 1
        if fault == "none":
            text = said(body)
            state.answered[hashlib.sha256(f"{body['model']} {prompt_of(body)}".encode()).hexdigest()[:16]] += 1
            self.reply(200, answer(path, body, text))
        elif fault == "rate_limit":
            self.reply(429, problem(path, "rate_limit_error", "slow down"), Retry_After=options.retry_after)
        elif fault == "overloaded":
            self.reply(529, problem(path, "overloaded_error", "overloaded"))
        elif fault == "server_error":
            self.reply(500, problem(path, "api_error", "oops"))
        elif fault == "bad_request":
            self.reply(400, problem(path, "invalid_request_error", "no"))
        elif fault == "not_json":
            self.reply(200, b'{"choices": [{"mess')
        elif fault == "odd_shape":
            self.reply(200, {"choices": [3], "content": [3]})
        elif fault == "wrong_type":
            self.reply(200, b"<html>Bad gateway</html>", Content_Type="text/html")
        elif fault == "empty":
            self.reply(200, answer(path, body, "" if path != "/v1/messages" else None))
        elif fault == "withheld":
            withheld = "refusal" if path == "/v1/messages" else "content_filter"
            self.reply(200, answer(path, body, "half", withheld))
        elif fault == "refusal":
            self.reply(200, answer(path, body, "I'm sorry, I can't help with that."))
        elif fault == "hang":
            await asyncio.sleep(3600)
        else:
            if fault == "cut_off":
                self.writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"choices": [')
                await self.writer.drain()
            return False
        await self.writer.drain()
        return True

    # Batches

    async def batches(self, method: str, path: str, head: str, body: bytes) -> bool:
        state = self.state
        parts = path.strip("/").split("/")[1:]
        if path == "/v1/files" and method == "POST":
            boundary = re.search(r"boundary=([^\r\n;]+)", head)
            assert boundary
            content = b""
            for part in body.split(b"--" + boundary[1].strip('"').encode()):
                if b'name="file"' in part:
                    content = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
            self.reply(200, self.file(content))
        elif parts[0] == "files":
            self.reply(200, state.files[parts[1]], Content_Type="application/octet-stream")
        elif path == "/v1/batches" and method == "POST":
            asked = json.loads(body)
            lines = [json.loads(line) for line in state.files[asked["input_file_id"]].split(b"\n") if line]
            self.created("batch", lines, asked.get("metadata"))
        elif path == "/v1/messages/batches" and method == "POST":
            self.created("msgbatch", json.loads(body)["requests"], None)
        elif parts[-1] == "batches":
            kind = "msgbatch" if parts[0] == "messages" else "batch"
            found = [self.shown(b) for b in reversed(state.batches.values()) if b["kind"] == kind]
            self.reply(200, {"object": "list", "data": found, "has_more": False})
        elif parts[-1] == "results":
            lines = [json.dumps(self.result(line)).encode() for line in state.batches[parts[-2]]["lines"]]
            state.random.shuffle(lines)
            self.reply(200, b"\n".join(lines), Content_Type="application/x-jsonl")
        elif parts[-1] in state.batches:
            self.reply(200, self.shown(state.batches[parts[-1]]))
        else:
            self.reply(404, problem(path, "not_found_error", "there is no such batch"))
        if state.options.drop_created and method == "POST" and path != "/v1/files":
            state.options.drop_created = False
            return False  # the batch is there, its id never arrives
        await self.writer.drain()
        return True

    def file(self, content: bytes) -> dict[str, Any]:
        name = f"file_{len(self.state.files)}"
        self.state.files[name] = content
        about = {"object": "file", "bytes": len(content), "created_at": 1, "filename": "x", "purpose": "batch"}
        return {"id": name, "status": "processed", **about}

    def created(self, kind: str, lines: list[dict[str, Any]], metadata: Any) -> None:
        state = self.state
        name = f"{kind}_{len(state.batches)}"
        batch = {"id": name, "kind": kind, "lines": lines, "metadata": metadata, "at": time.time(), "n": len(lines)}
        state.batches[name] = batch
        if not state.options.drop_created:
            self.reply(200, self.shown(batch))

    def enqueued(self, batch: dict[str, Any]) -> int:
        """Requests under way, this batch's included."""
        ends = time.time() - self.state.options.batch_seconds
        before = [b for b in self.state.batches.values() if b["at"] > ends and not b.get("too_many")]
        return sum(b["n"] for b in before if b is not batch) + int(batch["n"])

    def shown(self, batch: dict[str, Any]) -> dict[str, Any]:
        options, n = self.state.options, batch["n"]
        if options.batch_limit and batch.setdefault("too_many", self.enqueued(batch) > options.batch_limit):
            problem = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
            return {
                "id": batch["id"], "object": "batch", "endpoint": "x", "completion_window": "24h", "created_at": 1,
                "input_file_id": "x", "metadata": batch["metadata"], "status": "failed",
                "errors": {"object": "list", "data": [problem]},
            }  # fmt: skip
        over = time.time() >= batch["at"] + options.batch_seconds
        if batch["kind"] == "msgbatch":
            counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
            counts["succeeded" if over else "processing"] = n
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(batch["at"]))
            host = self.writer.get_extra_info("sockname")
            url = f"http://{host[0]}:{host[1]}/v1/messages/batches/{batch['id']}/results"
            return {
                "id": batch["id"], "type": "message_batch", "created_at": at, "expires_at": at, "request_counts": counts,
                "processing_status": "ended" if over else "in_progress", "results_url": url if over else None,
            }  # fmt: skip
        found: dict[str, Any] = {
            "id": batch["id"], "object": "batch", "endpoint": "x", "completion_window": "24h", "created_at": int(batch["at"]),
            "input_file_id": "x", "metadata": batch["metadata"], "status": "in_progress",
        }  # fmt: skip
        if over:
            results = [self.openai_result(line) for line in batch["lines"]]
            good = [r for r in results if r["error"] is None and r["response"]["status_code"] == 200]
            bad = [r for r in results if r not in good]
            found["status"] = options.batch_status
            for field, rows in (("output_file_id", good), ("error_file_id", bad)):
                if rows and options.batch_status != "failed":
                    found[field] = self.file(b"\n".join(json.dumps(r).encode() for r in rows))["id"]
            if options.batch_status == "failed":
                found["errors"] = {"object": "list", "data": [{"code": "x", "message": "no such model"}]}
        return found

    def fault_of(self, line: dict[str, Any]) -> str:
        """Every so many requests of a batch fail, one kind after the other."""
        every = self.state.options.batch_fault_every
        number = int(hashlib.sha256(line["custom_id"].split("-")[-1].encode()).hexdigest(), 16)
        return (
            ("expired", "canceled", "bad", "overloaded")[number // every % 4] if every and number % every == 0 else ""
        )

    def result(self, line: dict[str, Any]) -> dict[str, Any]:
        fault, body = self.fault_of(line), line["params"]
        if self.state.options.refuse in body:
            told = problem("", "invalid_request_error", f"{self.state.options.refuse}: Extra inputs are not permitted")
            return {"custom_id": line["custom_id"], "result": {"type": "errored", "error": told}}
        if fault in ("expired", "canceled"):
            result: dict[str, Any] = {"type": fault}
        elif fault:
            kind = "invalid_request_error" if fault == "bad" else "overloaded_error"
            result = {"type": "errored", "error": problem("", kind, "no")}
        else:
            result = {"type": "succeeded", "message": answer("/v1/messages", body, said(body))}
        return {"custom_id": line["custom_id"], "result": result}

    def openai_result(self, line: dict[str, Any]) -> dict[str, Any]:
        fault, body = self.fault_of(line), line["body"]
        found: dict[str, Any] = {"id": "x", "custom_id": line["custom_id"], "response": None, "error": None}
        if self.state.options.refuse in body:
            told = problem("", "x", f"{self.state.options.refuse}: Extra inputs are not permitted")
            return {**found, "response": {"status_code": 400, "body": told}}
        if fault in ("expired", "canceled"):
            code = "batch_expired" if fault == "expired" else "batch_cancelled"
            return {**found, "error": {"code": code, "message": "not done"}}
        if fault:
            status = 400 if fault == "bad" else 503
            return {**found, "response": {"status_code": status, "body": problem("", "x", "no")}}
        return {**found, "response": {"status_code": 200, "body": answer(line["url"], body, said(body))}}


async def main(options: argparse.Namespace) -> None:
    state = State(options)
    server = await asyncio.start_server(
        lambda reader, writer: Connection(state, reader, writer).serve(),
        "127.0.0.1",
        options.port,
        backlog=1024,
        limit=1 << 26,
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201
    await server.serve_forever()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds, give or take a tenth")
    parser.add_argument("--rate", type=float, default=0.0, help="share of requests that fail")
    parser.add_argument("--faults", default=",".join(FAULTS), help="which ways to fail, with commas")
    parser.add_argument("--retry-after", default="0.1")
    parser.add_argument("--capacity", type=int, default=0, help="requests at once above which it answers 429; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-seconds", type=float, default=0.5)
    parser.add_argument("--batch-limit", type=int, default=0, help="requests under way at once; more fail; 0: no limit")
    parser.add_argument("--refuse", default="", help="a field with which requests of a batch are refused")
    parser.add_argument("--batch-status", default="completed")
    parser.add_argument("--batch-fault-every", type=int, default=0)
    parser.add_argument("--drop-created", action="store_true", help="lose the answer to the first batch handed in")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asyncio.run(main(parse()))
