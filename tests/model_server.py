"""A loopback server that speaks the Messages API from a script: answers, faults, and usage from real prefix matching.

    with ModelServer([answer("..."), status(529), cut()]) as server:
        os.environ["ANTHROPIC_BASE_URL"] = server.url

Each request takes the next step; the last one repeats. A step is made by one of the functions below, or is a function
of the request's JSON that returns a step or an answer's text. Tokens are counted from the request's text; cache reads
and writes follow from the request's own cache_control blocks: longest stored prefix within twenty blocks of a mark,
time to live by the server's clock, nothing below 1024 tokens. `server.requests` and `server.usages` tell what happened.
"""

import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lab.model import HELLO

LEAST_CACHED = 1024   # tokens
LOOK_BACK = 20        # blocks before a mark that are looked up
LIVES_S = {"5m": 300, "1h": 3600}


@dataclass(frozen=True)
class Step:
    """How one request is answered."""

    kind: str = "answer"
    text: str = ""
    status: int = 200
    headers: dict = field(default_factory=dict)
    body: object = None
    stop_reason: str | None = "end_turn"
    category: str | None = None
    wait_s: float = 0.0       # before the first byte
    thinking: int = 0         # tokens billed as output beside the text


def answer(text: str, wait_s: float = 0.0, thinking: int = 0) -> Step:
    return Step(text=text, wait_s=wait_s, thinking=thinking)


def status(code: int, kind: str = "", message: str = "", retry_after: object = None, error_code: str = "") -> Step:
    """An error answer in the API's own form."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
             404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 529: "overloaded_error"}
    error = {"type": kind or kinds.get(code, "api_error"), "message": message or f"scripted {code}"}
    if error_code:
        error["details"] = {"error_code": error_code}
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return Step("body", status=code, headers=headers, body={"type": "error", "error": error})


def html(code: int = 200) -> Step:
    return Step("body", status=code, body="<html><body>Welcome to the hotel network</body></html>")


def cut(text: str, clean: bool = True) -> Step:
    """A stream that ends in the middle: with an orderly close, or without."""
    return Step("cut" if clean else "reset", text)


def stall(text: str = "") -> Step:
    """Headers and the text's start, then silence."""
    return Step("stall", text)


def drip(text: str) -> Step:
    """A character every 50 ms, so that no read ever times out."""
    return Step("drip", text)


def error_event(kind: str = "overloaded_error", text: str = "") -> Step:
    """An error in the middle of a stream that began with status 200."""
    return Step("error", text, body={"type": "error", "error": {"type": kind, "message": "scripted"}})


def refusal(category: str | None = "frontier_llm", text: str = "") -> Step:
    return Step(text=text, stop_reason="refusal", category=category)


def ended(stop_reason: str | None, text: str = "") -> Step:
    return Step(text=text, stop_reason=stop_reason)


def gone() -> Step:
    """The connection closes without a byte."""
    return Step("gone")


def garbage() -> Step:
    """A stream whose data is no JSON."""
    return Step("garbage")


def n_tokens(text: str) -> int:
    """Words in pieces of up to five letters, numbers of up to three digits, runs of blanks, single signs."""
    return len(re.findall(r"[^\W\d_]{1,5}|\d{1,3}|\s+|[^\w\s]|_", text))


def request_text(request: dict) -> str:
    """All text of a request, as the model would read it."""
    return "\n\n".join(text for text, _ in _blocks(request))


def _blocks(request: dict) -> list[tuple[str, dict | None]]:
    """Every text block in order, with its cache mark."""
    found = []
    for content in [request.get("system") or "", *(message["content"] for message in request["messages"])]:
        for part in [{"text": content}] if isinstance(content, str) else content:
            found.append((part["text"], part.get("cache_control")))
    return found


class ModelServer:
    """See the module's docstring. Options make it a lesser server: no streams, no cache marks, no effort, no models."""

    def __init__(self, script: Sequence[Step | str | Callable[[dict], Step | str]], *, key: str | None = None,
                 streams: bool = True, rejects: Sequence[str] = (), models: Sequence[str] | None = (), port: int = 0,
                 context: int | None = None, drips: bool = False, longest: int = 128_000,
                 clock: Callable[[], float] = time.monotonic, proof: Step = Step(text="yes")):
        self.script, self.key, self.streams, self.rejects, self.models = list(script), key, streams, rejects, models
        self.context, self.clock, self.drips, self.longest = context, clock, drips, longest
        self.proof, self.n_proofs = proof, 0   # the small call of a start, which is no step of the script
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.usages: list[dict] = []
        self.closing = threading.Event()
        self._cache: dict[str, float] = {}   # hash of a prefix -> until when it is stored
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "ModelServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def step(self, request: dict, headers: dict) -> Step:
        if request["system"] == HELLO.rules:
            self.n_proofs += 1
            return self.proof
        with self._lock:
            self.requests.append(request)
            self.headers.append(headers)
            step = self.script[min(len(self.requests), len(self.script)) - 1]
        if rejected := next((word for word in self.rejects if f'"{word}"' in json.dumps(request)), None):
            return status(400, message=f"{rejected}: extra inputs are not permitted")
        if self.context and n_tokens(request_text(request)) + request["max_tokens"] > self.context:
            return status(400, message=f"prompt is too long: more than {self.context} tokens")
        marks = [mark for _, mark in _blocks(request) if mark]
        if len(marks) > 4:
            return status(400, message=f"A maximum of 4 blocks with cache_control may be provided. Found {len(marks)}.")
        step = step(request) if callable(step) else step
        return Step(text=step) if isinstance(step, str) else step

    def input_usage(self, request: dict) -> dict:
        """Input tokens told apart into read from the cache, written to it, and neither."""
        hashes, totals, marks = [], [], {}
        running, total = hashlib.sha256(request["model"].encode()), 0
        for at, (text, mark) in enumerate(_blocks(request)):
            running.update(f"{len(text)}:{text}".encode())
            total += n_tokens(text)
            hashes.append(running.hexdigest())
            totals.append(total)
            if mark and total >= LEAST_CACHED:
                marks[at] = LIVES_S[mark.get("ttl", "5m")]
        with self._lock:
            now = self.clock()
            hits = [at for mark in marks for at in range(max(0, mark - LOOK_BACK), mark + 1)
                    if self._cache.get(hashes[at], -1) >= now]
            read = max((totals[at] for at in hits), default=0)
            written = max((totals[at] for at in marks), default=read)
            for at, lives_s in marks.items():
                self._cache[hashes[at]] = max(now + lives_s, self._cache.get(hashes[at], 0))
            usage = {"input_tokens": total - max(read, written), "cache_read_input_tokens": read,
                     "cache_creation_input_tokens": max(0, written - read), "output_tokens": 1}
            self.usages.append(usage)
        return usage


class _Handler(BaseHTTPRequestHandler):
    owner: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.split("?")[0].removeprefix("/v1/models/")
        if self._wrong_key():
            return self._send_json(status(401))
        if self.owner.drips:
            return self._drip()
        if self.owner.models is None:  # a server without that route
            return self._send_json(Step("body", status=404, body={"detail": "Not Found"}))
        if self.owner.models and name not in self.owner.models:
            return self._send_json(status(404, message=f"model: {name}"))
        return self._send_json(Step("body", body={
            "type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z",
            "max_input_tokens": 1_000_000, "max_tokens": self.owner.longest, "lifecycle": "active"}))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self._wrong_key():
            return self._send_json(status(401))
        step = self.owner.step(request, dict(self.headers))
        self.owner.closing.wait(step.wait_s)
        if step.kind == "gone":
            self.close_connection = True
            return None
        if step.kind == "body":
            return self._send_json(step)
        usage = self.owner.input_usage(request)
        usage_after = {"output_tokens": n_tokens(step.text) + step.thinking}
        if request.get("stream") and self.owner.streams:
            return self._send_stream(step, usage, usage_after, request["model"])
        usage |= usage_after
        return self._send_json(Step("body", body=self._message(step, usage, request["model"])))

    def _drip(self) -> None:
        """A byte every 50 ms, for ever."""
        self.send_response(200)
        self.send_header("content-length", "1000000")
        self.end_headers()
        self.close_connection = True
        with suppress(BrokenPipeError, ConnectionResetError):
            while not self.owner.closing.wait(0.05):
                self.wfile.write(b" ")
                self.wfile.flush()

    def _wrong_key(self) -> bool:
        given = self.headers.get("authorization", "").removeprefix("Bearer ") or self.headers.get("x-api-key", "")
        return self.owner.key is not None and given != self.owner.key

    def _message(self, step: Step, usage: dict, model: str) -> dict:
        content = [{"type": "text", "text": step.text}] if step.text else []
        details = {"type": "refusal", "category": step.category} if step.stop_reason == "refusal" else None
        return {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content,
                "stop_reason": step.stop_reason, "stop_sequence": None, "stop_details": details, "usage": usage}

    def _send_json(self, step: Step) -> None:
        body = step.body if isinstance(step.body, str) else json.dumps(step.body)
        kind = "text/html" if isinstance(step.body, str) else "application/json"
        self.send_response(step.status)
        for name, value in {"content-type": kind, "content-length": str(len(body.encode())), "request-id": "req_json",
                            **step.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def _send_stream(self, step: Step, usage: dict, usage_after: dict, model: str) -> None:
        self.send_response(200)
        for name, value in {"content-type": "text/event-stream", "transfer-encoding": "chunked",
                            "request-id": f"req_{len(self.owner.requests):04d}"}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self._send_events(step, usage, usage_after, model)
        except (BrokenPipeError, ConnectionResetError):  # the client gave up, as some tests want it to
            self.close_connection = True

    def _send_events(self, step: Step, usage: dict, usage_after: dict, model: str) -> None:
        if step.kind == "events":
            for event in step.body:
                self._event(event, "message_start" if not isinstance(event, dict) else "")
            return self._chunk("")
        if step.kind == "garbage":
            self._chunk("event: message_start\ndata: {no json\n\n")
            return self._chunk("")
        start = self._message(step, dict(usage), model) | {"content": [], "stop_reason": None, "stop_details": None}
        self._event({"type": "message_start", "message": start})
        self._event({"type": "ping"})
        self._event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        size = 1 if step.kind == "drip" else 400
        for at in range(0, len(step.text), size):
            self._event({"type": "content_block_delta", "index": 0,
                         "delta": {"type": "text_delta", "text": step.text[at:at + size]}})
            if step.kind == "drip" and self.owner.closing.wait(0.05):
                return None
        if step.kind == "stall":
            self.owner.closing.wait(60)
        if step.kind == "error":
            self._event(step.body, "error")
        if step.kind in ("stall", "reset"):  # without the chunk that ends a body
            self.close_connection = True
            return None
        if step.kind in ("answer", "drip"):
            self._event({"type": "content_block_stop", "index": 0})
            details = {"type": "refusal", "category": step.category} if step.stop_reason == "refusal" else None
            usage |= usage_after
            self._event({"type": "message_delta", "usage": usage_after, "delta": {
                "stop_reason": step.stop_reason, "stop_sequence": None, "stop_details": details}})
            self._event({"type": "message_stop"})
        return self._chunk("")

    def _event(self, data: object, name: str = "") -> None:
        self._chunk(f"event: {name or data['type']}\ndata: {json.dumps(data)}\n\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


if __name__ == "__main__":  # python tests/model_server.py ANSWER_FILE [PORT]: the same answer to every request
    with open(sys.argv[1]) as file, ModelServer([file.read()], port=int((sys.argv[2:] or ["0"])[0])) as server:
        print(f"export ANTHROPIC_BASE_URL={server.url}", flush=True)
        threading.Event().wait()
