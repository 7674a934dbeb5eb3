"""One call of a model: over the Messages API, or through a command that reads stdin.

Promises: a call ends at its deadline, whatever the server sends, and says in a Reply what came of it.
The key's value is in no request text, answer or message. It does not retry, and it does not read the
answer: lab/model.py does.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from lab.ledger import SetupError, one_line
from lab.prompt import Prompt

HOST = "https://api.anthropic.com"
MAX_TOKENS = 64_000            # of one answer, thinking included; a whole train.py is 8 000
MAX_TOKENS_ELSEWHERE = 16_000  # local servers reserve it from a smaller context
MIN_TOKENS = 4_096             # an answer below this is not worth asking for
COMMAND_BYTES = 10_000_000     # of a command's answer
SECRET_CHARS = 8               # a shorter key ("none", "ollama") is no secret and may be a word of the text

_KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
_ADVICE = {
    401: "{host} rejected the key: check ANTHROPIC_API_KEY",
    402: "{host} reports no credit: add some, or start with --researcher tuner",
    403: "the key may not use {name}: check its permissions",
    404: "{host} does not know {name}: check --model",
    413: "the prompt is too large for {host}: shorten program.md",
}
_FATAL = (400, 401, 402, 403, 404, 405, 413, 422)
_FATAL_TYPES = (  # of an error in the middle of a stream, whose status is 200
    "invalid_request_error", "authentication_error", "billing_error",
    "permission_error", "not_found_error",
)
_SPENT = ("enforced_spend_limit_reached", "contract_spend_limit_reached")

Turns = Sequence[tuple[str, str]]  # after the prompt: the model's answer, our complaint about it


class Outage(str, Enum):
    """Why there is no answer."""

    SETUP = "setup"        # key, credit, model or request: asking again changes nothing
    BUDGET = "budget"      # the user's limit pays for no further call
    PASSING = "passing"    # too busy, not reached, broken, or what came is no answer
    DEADLINE = "deadline"  # no answer in time
    STOPPED = "stopped"    # the user wants to stop

    __str__ = str.__str__


class Unavailable(Exception):
    """There is no answer. The text is for the user, `kind` is for decisions."""

    def __init__(self, text: str, kind: Outage, retry_after_s: float | None = None):
        super().__init__(text)
        self.kind = kind
        self.retry_after_s = retry_after_s  # what the server asked for
        self.usd = 0.0                      # billed for answers that could not be used

    @property
    def fatal(self) -> bool:
        """Only the user can mend it."""
        return self.kind in (Outage.SETUP, Outage.BUDGET)


@dataclass(frozen=True)
class Limits:
    """Seconds that one call, its silence and its retries may take."""

    deadline_s: float = 900
    stall_s: float = 300
    patience_s: float = 60
    first_wait_s: float = 2
    check_s: float = 15


@dataclass(frozen=True)
class Reply:
    """What came of one call. Nothing of it is checked: counts may be text, or 1e300."""

    text: str = ""
    stop_reason: str = ""      # "" when the model did not finish
    usage: object = None
    iterations: object = None  # usage by model, where the server turned to a fallback
    hidden_chars: int = 0      # of thinking
    category: str = ""         # of a refusal
    request_id: str = ""
    fault: Unavailable | None = None
    refused: bool = False      # the server refused the request: one that asks for less may pass


@dataclass
class _Reading:
    """What the reading thread has seen so far."""

    client: object
    response: object = None
    message: object = None
    iterations: object = None
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)


def clean(text: str) -> str:
    """Text without a key's value, and without lone surrogates, which no file can hold."""
    for name in _KEYS:
        secret = (os.environ.get(name) or "").strip()
        if len(secret) >= SECRET_CHARS:
            text = text.replace(secret, "[key]")
    return text.encode("utf-8", "replace").decode()


def _wait(is_over: Callable[[], bool], limit_s: float, stopped: threading.Event,
          who: str) -> Unavailable | None:
    """Wait for the end of a call; the fault where a stop or the deadline comes first."""
    ends_at = time.monotonic() + limit_s
    while not is_over():
        if stopped.is_set():
            return Unavailable(f"{who} was stopped", Outage.STOPPED)
        if time.monotonic() > ends_at:
            return Unavailable(f"{who} took longer than {limit_s:g} s", Outage.DEADLINE)
        time.sleep(0.02)
    return None


class Api:
    """A model behind the Messages API: the official one, or a server at ANTHROPIC_BASE_URL."""

    def __init__(self, model: str, effort: str | None, fallback: str | None, limits: Limits):
        self.name, self.effort, self.fallback, self.limits = model, effort, fallback, limits
        self.key, self.token = ((os.environ.get(name) or "").strip() for name in _KEYS)
        self.url = (os.environ.get("ANTHROPIC_BASE_URL") or "").strip() or HOST
        self.is_anthropic = self.url.rstrip("/") == HOST
        name = re.sub(r"^https?://(?:[^/@]*@)?([^/?#]*).*", r"\1", self.url)
        self.host = "the API" if self.is_anthropic else name
        # A gateway to the same models understands effort and cache marks; a local server may not.
        self.understands = self.is_anthropic or model.startswith("claude-")
        self.max_tokens = MAX_TOKENS if self.understands else MAX_TOKENS_ELSEWHERE
        self.brief = False  # the context is too small for the history

    def check(self) -> str:
        """One line about the model. Raises SetupError, or Unavailable for what may pass."""
        if self.is_anthropic and not (self.key or self.token):
            raise SetupError("no ANTHROPIC_API_KEY: set it, or start with --researcher tuner")
        if not all(33 <= ord(c) < 127 for c in self.key + self.token):
            raise SetupError("ANTHROPIC_API_KEY holds a character that no key has: copy it again")
        if not re.match(r"https?://[^/\s]+", self.url):
            raise SetupError("ANTHROPIC_BASE_URL is not an http(s) address: correct or unset it")

        def retrieve(reading: _Reading) -> None:
            reading.message = reading.client.models.retrieve(self.name)

        reading, fault = self._within(self.limits.check_s, retrieve, threading.Event())
        is_unlisted = getattr(reading.error, "type", None) != "not_found_error"
        if getattr(reading.error, "status_code", 0) in (404, 405, 501) and is_unlisted:
            return f"{self.name} at {self.host}, which does not list its models"
        if fault:
            raise SetupError(str(fault)) if fault.fatal else fault
        sizes = [getattr(reading.message, size, None) for size in ("max_input_tokens", "max_tokens")]
        if not all(type(size) is int and size > 0 for size in sizes):
            return f"{self.name} at {self.host}"
        self.max_tokens = min(self.max_tokens, sizes[1])
        return f"{self.name} at {self.host}, {sizes[0]} tokens in, {sizes[1]} out"

    def call(self, prompt: Prompt, turns: Turns, max_tokens: int, stopped: threading.Event) -> Reply:
        """One request and what came of it until its end, its deadline or a stop."""
        request = self._request(prompt, turns, max_tokens)

        def read(reading: _Reading) -> None:
            with reading.client.messages.stream(**request) as stream:
                reading.response = stream.response
                for event in stream:
                    reading.message = stream.current_message_snapshot
                    if event.type == "message_delta":  # the SDK's message does not take these over
                        reading.iterations = getattr(event.usage, "iterations", None)

        return self._reply(*self._within(self.limits.deadline_s, read, stopped))

    def ask_for_less(self) -> bool:
        """After a refused request: give up one thing of it, or return False when nothing is left."""
        if self.understands and not self.is_anthropic:
            self.understands = False
        elif not self.brief:
            self.brief = True
        elif self.max_tokens > MIN_TOKENS:
            self.max_tokens = max(MIN_TOKENS, self.max_tokens // 2)
        else:
            return False
        return True

    def _request(self, prompt: Prompt, turns: Turns, max_tokens: int) -> dict:
        """What every server understands; effort and cache marks where they are understood."""
        system, *blocks = map(clean, (prompt.rules, *prompt.blocks(self.brief)))
        content = "\n\n".join(blocks)
        request = {"model": self.name, "max_tokens": max_tokens, "system": system}
        if self.understands:
            content = [{"type": "text", "text": text} for text in blocks]
            for at in _marks(len(prompt.fixed), len(blocks)):
                content[at]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
            if self.effort:
                request["output_config"] = {"effort": self.effort}
        if self.fallback:
            models = "default" if self.fallback == "default" else [{"model": self.fallback}]
            request["extra_body"] = {"fallbacks": models}
            request["extra_headers"] = {"anthropic-beta": "server-side-fallback-2026-07-01"}
        messages = [{"role": "user", "content": content}]
        for answer, complaint in turns:
            messages.append({"role": "assistant", "content": clean(answer)})
            messages.append({"role": "user", "content": clean(complaint)})
        return request | {"messages": messages}

    def _within(self, limit_s: float, work: Callable[[_Reading], None],
                stopped: threading.Event) -> tuple[_Reading, Unavailable | None]:
        """Run `work` in a thread: no read time-out ends a server that sends a byte at a time."""
        import anthropic
        import httpx2

        # The second line is what the SDK raises when a server sends other types than the API does.
        failures = (anthropic.AnthropicError, httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError,
                    AttributeError, LookupError, RuntimeError, TypeError, ValueError, AssertionError)
        secret = {"api_key": self.key or "none"}
        if self.token and not self.key:
            secret = {"auth_token": self.token}
        warnings.filterwarnings("ignore", "Pydantic serializer")  # of odd answers, on the terminal
        timeout = httpx2.Timeout(self.limits.stall_s, connect=15)
        client = anthropic.Anthropic(**secret, base_url=self.url, max_retries=0, timeout=timeout)
        reading = _Reading(client)

        def run() -> None:
            try:
                work(reading)
            except failures as error:
                reading.error = error
            finally:
                reading.done.set()

        threading.Thread(target=run, daemon=True).start()
        late = _wait(reading.done.is_set, limit_s, stopped, self.host)
        client.close()  # ends a slow drip; a silent socket ends at its stall limit
        return reading, late or self._fault(reading.error)

    def _reply(self, reading: _Reading, fault: Unavailable | None) -> Reply:
        message, headers = reading.message, getattr(reading.response, "headers", {})
        ending = str(getattr(message, "stop_reason", None) or "")
        details = getattr(message, "stop_details", None)
        if fault is None and not ending:
            said = "broke off its answer" if message else (
                f"sent {headers.get('content-type', 'nothing').split(';')[0]} in place of an answer")
            fault = Unavailable(f"{self.host} {said}", Outage.PASSING)
        too_long = ending == "model_context_window_exceeded"
        if too_long:
            fault = Unavailable(f"the prompt does not fit {self.name}: choose another --model", Outage.SETUP)
        status = getattr(reading.error, "status_code", 0)
        return Reply(
            text=clean(_joined(message, "text")).strip(), stop_reason=ending,
            usage=getattr(message, "usage", None), iterations=reading.iterations,
            hidden_chars=len(_joined(message, "thinking")),
            category=clean(str(getattr(details, "category", None) or "")),
            request_id=clean(headers.get("request-id", "")), fault=fault,
            refused=too_long or status == 413 or (status in (400, 422) and not self.is_anthropic))

    def _fault(self, error: Exception | None) -> Unavailable | None:
        """What an error of the SDK means, and what the user can do."""
        if error is None:
            return None
        status, error_type = getattr(error, "status_code", None), getattr(error, "type", None)
        if status is None:
            cause = error.__cause__ or error
            said = clean(one_line(f"{type(cause).__name__}: {cause}", 200))
            return Unavailable(f"{self.host} cannot be reached or understood: {said}", Outage.PASSING)
        is_fatal = status in _FATAL or getattr(error, "error_code", None) in _SPENT
        is_fatal |= status < 400 and error_type in _FATAL_TYPES
        if self.is_anthropic and status != 401 and not isinstance(error.body, dict):
            is_fatal = False  # a proxy or captive portal in between, not the API
        advice = _ADVICE.get(status, f"{{host}} answered {status}").format(host=self.host, name=self.name)
        said = one_line(str(getattr(error, "api_message", None) or error), 200)
        asked = re.fullmatch(r"\d{1,6}(\.\d{1,6})?", error.response.headers.get("retry-after", ""))
        return Unavailable(
            clean(f"{advice} ({status} {error_type or ''}: {said})"),
            Outage.SETUP if is_fatal else Outage.PASSING, float(asked[0]) if asked else None)


def _joined(message: object, part: str) -> str:
    """All text, or all thinking, of a message that a server may have made of anything."""
    blocks = getattr(message, "content", None)
    texts = [getattr(block, part, None) for block in blocks] if isinstance(blocks, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def _marks(n_fixed: int, n_blocks: int) -> list[int]:
    """Blocks that end a cached prefix, at most four: facts, incumbent, two in the history.

    A server looks back about twenty blocks from a mark for a prefix that it holds, so the last mark
    finds that of the call before. The round one still holds when many entries came in between.
    """
    last = n_blocks - 2  # the ask comes after it
    marks = {n_fixed - 2, n_fixed - 1, max(n_fixed - 1, last - last % 15), last}
    return sorted(at for at in marks if at >= 0)


class Command:
    """Any program that reads the prompt on stdin and answers on stdout."""

    def __init__(self, command: str, limits: Limits):
        self.limits, self.max_tokens, self.brief = limits, 0, False
        try:
            self.argv = shlex.split(command)
        except ValueError as error:
            raise SetupError(f"--researcher-command cannot be read ({error}): correct its quotes") from None
        self.name = f"command:{Path(self.argv[0]).name}" if self.argv else ""

    def check(self) -> str:
        """One line about the command; raises SetupError where there is no such program."""
        name = self.argv[0] if self.argv else ""
        if not shutil.which(name):
            raise SetupError(f"--researcher-command: there is no program {name!r}: install it or correct the path")
        return f"the {self.name.replace(':', ' ')}"

    def call(self, prompt: Prompt, turns: Turns, max_tokens: int, stopped: threading.Event) -> Reply:
        """One run. Files, not pipes: nothing blocks, and a grandchild that holds them does no harm."""
        said = (f"\n\n<your_answer>\n{answer}\n</your_answer>\n\n{complaint}" for answer, complaint in turns)
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(clean(prompt.text() + "".join(said)).encode())
            given.seek(0)
            fault = self._run(given, out, err, stopped)
            text = _end_of(out, COMMAND_BYTES).strip()
            if not fault and not text:
                fault = Unavailable(f"the {self.name} answered nothing", Outage.PASSING)
            if fault and (tail := one_line(_end_of(err, 300))):
                fault = Unavailable(f"{fault}; its stderr ends: {tail}", fault.kind)
        return Reply(text, "" if fault else "end_turn", fault=fault)

    def _run(self, given: object, out: object, err: object, stopped: threading.Event) -> Unavailable | None:
        """Run the command to its end or deadline, as a process group."""
        who = f"the {self.name}"
        try:
            child = subprocess.Popen(self.argv, stdin=given, stdout=out, stderr=err, start_new_session=True)
        except OSError as error:
            return Unavailable(f"{who} cannot be started: {error.strerror}", Outage.PASSING)

        def is_too_long() -> bool:
            return os.fstat(out.fileno()).st_size > COMMAND_BYTES

        late = _wait(lambda: child.poll() is not None or is_too_long(), self.limits.deadline_s, stopped, who)
        with suppress(ProcessLookupError, PermissionError):  # nobody is left in its group
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
        if is_too_long():
            return Unavailable(f"{who} answered more than {COMMAND_BYTES} bytes", Outage.PASSING)
        ended = Unavailable(f"{who} ended with exit code {code}", Outage.PASSING) if code else None
        return late or ended

    def ask_for_less(self) -> bool:
        return False


def _end_of(file: object, limit: int) -> str:
    """The last `limit` bytes of a temporary file, as text."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - limit))
    return clean(file.read().decode("utf-8", "replace"))
