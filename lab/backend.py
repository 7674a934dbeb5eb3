"""One call of a model: over the Messages API, or through a command that reads stdin.

Promises: a call ends at its deadline, whatever the server sends, and a Reply says what came of it.
The key is in no request text, answer or message. lab/model.py retries, and reads the answers.
"""

import asyncio
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from lab.ledger import SetupError, one_line
from lab.prompt import Prompt

HOST = "https://api.anthropic.com"
MAX_TOKENS = 64_000            # of one answer, thinking included; a whole train.py is 8 000
MAX_TOKENS_ELSEWHERE = 12_000  # local servers reserve it from a context of 24 000 or more
COMMAND_BYTES = 10_000_000     # of a command's output
SECRET_CHARS = 8               # a shorter key ("none", "ollama") is no secret, and may be an ordinary word

KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
_ADVICE = {  # by status, for what only the user can mend
    400: "check --model, --effort and the context of your server", 401: f"check {' or '.join(KEYS)}",
    402: "add credit, or start with --researcher tuner", 403: "check the key's permissions",
    404: "check --model", 413: "shorten program.md", 422: "check --model and --effort",
}
_SPENT = ("enforced_spend_limit_reached", "contract_spend_limit_reached")
FULL = "model_context_window_exceeded"  # why an answer ended

Turns = Sequence[tuple[str, str]]  # after the prompt: the model's answer, our complaint about it


class Outage(StrEnum):
    """Why there is no answer."""

    SETUP = "setup"        # key, credit, model or request: asking again changes nothing
    TOO_LONG = "too long"  # likewise, but a shorter request may pass
    BUDGET = "budget"      # the user's limit pays for no further call
    PASSING = "passing"    # overloaded, late, unreachable, broken off or malformed: a retry may help
    STOPPED = "stopped"    # the user wants to stop


class Unavailable(Exception):
    """There is no answer. The text is for the user, `kind` is for decisions."""

    def __init__(self, text: str, kind: Outage = Outage.PASSING, retry_after_s: float | None = None):
        super().__init__(text)
        self.kind = kind
        self.retry_after_s = retry_after_s  # what the server asked for
        self.usd = 0.0                      # billed for answers that could not be used

    @property
    def fatal(self) -> bool:
        """Only the user can mend it."""
        return self.kind in (Outage.SETUP, Outage.TOO_LONG, Outage.BUDGET)


@dataclass(frozen=True)
class CallLimits:
    """Seconds that one call, its silence and its retries may take."""

    deadline_s: float = 900
    stall_s: float = 300
    patience_s: float = 60
    first_wait_s: float = 2
    check_s: float = 15


@dataclass(frozen=True)
class Reply:
    """What came of one call. Its counts are not checked: they may be text, or 1e300."""

    text: str = ""
    stop_reason: str = ""     # "" if the model did not finish
    usage: object = None
    n_written: int = 0        # characters that came, thinking included
    refusal: str = ""         # category and request id
    fault: Unavailable | None = None

    @property
    def is_too_long(self) -> bool:
        """Whether prompt and answer exceeded the model's context, for which no server has an error of its own."""
        is_refused = self.fault is not None and self.fault.kind is Outage.TOO_LONG
        return is_refused or self.stop_reason == FULL


def setting(name: str) -> str:
    return os.environ.get(name, "").strip()


def clean(text: str) -> str:
    """Text without a key's value, and without lone surrogates, which no file can hold."""
    for secret in map(setting, KEYS):
        if len(secret) >= SECRET_CHARS:
            text = text.replace(secret, "[key]")
    return text.encode("utf-8", "replace").decode()


def _run(work: Coroutine) -> object:
    """asyncio.run on poll, not epoll: a trial at the same time can use up the user's epoll watches."""
    loop_of_poll = partial(asyncio.SelectorEventLoop, selectors.PollSelector())
    with asyncio.Runner(loop_factory=loop_of_poll) as runner:
        return runner.run(work)


async def _wait(is_over: Callable[[], bool], limit_s: float, stopped: threading.Event,
                who: str) -> Unavailable | None:
    """Wait for the end of a call. Returns the fault if a stop or the deadline comes first."""
    ends_at = time.monotonic() + limit_s
    while not is_over():
        if stopped.is_set():
            return Unavailable(f"{who} was stopped", Outage.STOPPED)
        if time.monotonic() > ends_at:
            return Unavailable(f"{who} took longer than {limit_s:g} s")
        await asyncio.sleep(0.02)
    return None


class Api:
    """A model behind the Messages API: the official one, or a server at ANTHROPIC_BASE_URL."""

    def __init__(self, model: str, effort: str | None, fallback: str | None, limits: CallLimits):
        self.model, self.effort, self.fallback, self.limits = model, effort, fallback, limits
        self.name = f"{model} or {fallback}" if fallback else model  # usage does not tell which
        self.key = setting(KEYS[0]) or setting(KEYS[1])
        self.url = (setting("ANTHROPIC_BASE_URL") or HOST).rstrip("/")
        self.host = re.sub(r"^\w+://([^/@]*@)?|/.*", "", self.url)
        # A gateway to the same models understands effort and cache marks. A local server may not.
        self.understands = self.url == HOST or model.startswith("claude-")
        self.max_tokens = MAX_TOKENS if self.understands else MAX_TOKENS_ELSEWHERE

    def check(self) -> None:
        """Try key and model. Raises SetupError, or Unavailable for what may pass."""
        if self.url == HOST and not self.key:
            raise SetupError("no ANTHROPIC_API_KEY: set it, or start with --researcher tuner")
        if not (self.key.isascii() and self.key.isprintable() and self.url.startswith("http")):
            raise SetupError("ANTHROPIC_API_KEY or ANTHROPIC_BASE_URL is damaged: copy it again")
        found, error = self._within(self.limits.check_s, threading.Event(),
                                    lambda api: api.models.retrieve(self.model))
        if getattr(error, "status_code", 0) == 404 and error.type != "not_found_error":
            return  # many local servers do not list their models
        if fault := self._fault(error):
            raise SetupError(str(fault)) if fault.fatal else fault
        most = getattr(found, "max_tokens", None)
        if type(most) is int and most > 0:
            self.max_tokens = min(self.max_tokens, most)

    def call(self, prompt: Prompt, turns: Turns, max_tokens: int, stopped: threading.Event) -> Reply:
        """One request and what came of it until its end, its deadline or a stop."""
        streams, message, request_id = [], None, None

        async def read(api: object) -> None:
            async with api.messages.stream(**self._request(prompt, turns, max_tokens)) as stream:
                streams.append(stream)
                await stream.until_done()

        fault = self._fault(self._within(self.limits.deadline_s, stopped, read)[1])
        with suppress(AssertionError, IndexError):  # nothing came
            request_id = streams[0].request_id
            message = streams[0].current_message_snapshot
        ending = str(getattr(message, "stop_reason", None) or "")
        if not fault and not ending:
            fault = Unavailable(f"{self.host} broke off, or sent what is no answer")
        text, thinking = _joined(message, "text"), _joined(message, "thinking")
        category = getattr(getattr(message, "stop_details", None), "category", None) or "not named"
        refusal = clean(one_line(f"category {category}, request {request_id}", 120))
        return Reply(clean(text).strip(), ending, getattr(message, "usage", None),
                     len(text) + len(thinking), refusal, fault)

    def _request(self, prompt: Prompt, turns: Turns, max_tokens: int) -> dict:
        """What every server understands; effort and cache marks for those that understand them."""
        system, *blocks = map(clean, (prompt.rules, *prompt.blocks()))
        messages = [{"role": "user", "content": "\n\n".join(blocks)}]
        for answer, complaint in turns:
            messages.append({"role": "assistant", "content": clean(answer)})
            messages.append({"role": "user", "content": clean(complaint)})
        request = {
            "model": self.model, "max_tokens": max_tokens, "system": system, "messages": messages}
        if self.understands:
            content = messages[0]["content"] = [{"type": "text", "text": text} for text in blocks]
            n_fixed = len(prompt.fixed)
            for at in (n_fixed - 2, n_fixed - 1):  # facts and incumbent end a cached prefix
                content[max(0, at)]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
        if self.understands and self.effort:
            request["output_config"] = {"effort": self.effort}
        if self.fallback:
            models = "default" if self.fallback == "default" else [{"model": self.fallback}]
            request["extra_body"] = {"fallbacks": models}
            request["extra_headers"] = {"anthropic-beta": "server-side-fallback-2026-07-01"}
        return request

    def _within(self, limit_s: float, stopped: threading.Event,
                work: Callable[[object], Awaitable]) -> tuple[object, Exception | None]:
        """Return (result of `work` with a client, its error). The limit is ours: no read timeout ends a trickle."""
        import anthropic
        import httpx2

        warnings.filterwarnings("ignore", "Pydantic serializer")  # of odd answers, on the terminal
        timeout = httpx2.Timeout(self.limits.stall_s, connect=15)

        async def run() -> tuple[object, Exception | None]:
            async with anthropic.AsyncAnthropic(
                    api_key=self.key or "none", base_url=self.url, max_retries=0, timeout=timeout) as client:
                task = asyncio.ensure_future(work(client))
                late = await _wait(task.done, limit_s, stopped, self.host)
                task.cancel()  # does nothing to a task that is done
                (result,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, BaseException):
                return None, late or result
            return result, late

        return _run(run())

    def _fault(self, error: Exception | None) -> Unavailable | None:
        """What an error of the SDK means, and what the user can do."""
        if error is None or isinstance(error, Unavailable):
            return error
        cause = error.__cause__ or error
        text = f"{self.host} gave no answer ({one_line(f'{type(cause).__name__}: {cause}', 200)})"
        status, kind, asked = getattr(error, "status_code", None), Outage.PASSING, ""
        if status in _ADVICE and isinstance(error.body, dict):  # a captive portal sends HTML, not JSON
            text += f"; {_ADVICE[status]}"
            kind = Outage.TOO_LONG if status in (400, 413, 422) else Outage.SETUP
        if status:
            asked = error.response.headers.get("retry-after", "")
            kind = Outage.SETUP if getattr(error, "error_code", "") in _SPENT else kind
        return Unavailable(clean(text), kind, float(asked) if asked.isdecimal() else None)


def _joined(message: object, part: str) -> str:
    """All text, or all thinking, of a message; a server may have put anything into it."""
    blocks = getattr(message, "content", None)
    texts = [getattr(block, part, None) for block in blocks] if isinstance(blocks, list) else []
    return "".join(text for text in texts if isinstance(text, str))


class Command:
    """Any program that reads the prompt on stdin and answers on stdout."""

    def __init__(self, command: str, limits: CallLimits):
        self.limits, self.max_tokens = limits, 0
        try:
            self.argv = shlex.split(command)
        except ValueError:  # quotes that are not closed
            self.argv = []
        if not self.argv or not shutil.which(self.argv[0]):
            raise SetupError(f"--researcher-command: no program {command!r}: correct its path")
        self.name = f"command:{Path(self.argv[0]).name}"

    def check(self) -> None:
        """Nothing is left to check."""

    def call(self, prompt: Prompt, turns: Turns, max_tokens: int, stopped: threading.Event) -> Reply:
        """Run the command once. Files, not pipes: nothing blocks, even if a grandchild keeps them open."""
        said = (f"\n\n<your_answer>\n{answer}\n</your_answer>\n\n{complaint}" for answer, complaint in turns)
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(clean(prompt.text() + "".join(said)).encode())
            given.seek(0)
            try:
                child = subprocess.Popen(self.argv, stdin=given, stdout=out, stderr=err, start_new_session=True)
            except OSError as error:
                return Reply(fault=Unavailable(f"{self.name} cannot be started: {error.strerror}"))

            def is_over() -> bool:
                return child.poll() is not None or os.fstat(out.fileno()).st_size > COMMAND_BYTES

            try:
                fault = _run(_wait(is_over, self.limits.deadline_s, stopped, self.name))
            finally:  # also at a Ctrl-C during the start
                with suppress(ProcessLookupError, PermissionError):  # nobody is left in its group
                    os.killpg(child.pid, signal.SIGKILL)
                code = child.wait()
            text, errors = _read(out), _read(err)
        if not fault and (code or not text):
            fault = Unavailable(f"{self.name} gave no answer (exit code {code}, {len(text)} characters; "
                                f"stderr: {one_line(errors[-300:])!r})")
        return Reply(text, "" if fault else "end_turn", fault=fault)


def _read(file: object) -> str:
    file.seek(0)
    return clean(file.read(COMMAND_BYTES).decode("utf-8", "replace")).strip()
