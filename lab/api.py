"""One call to a model: over the Messages API, or by a command that reads the prompt on stdin and answers on stdout.

Promises: a call ends at its deadline; what came of it stands in a Call, the fault as Unavailable, fatal or passing; a
server is asked for no more than it understands; the key stands in no prompt and no error text. It does not retry and
does not read the answer: lab/researcher.py does.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.ledger import SetupError, one_line
from lab.prompt import Prompt

HOST = "https://api.anthropic.com"
MAX_TOKENS = 64_000            # of one answer, thinking included; a whole train.py is 8 000
MAX_TOKENS_ELSEWHERE = 16_000  # local servers reserve it from a smaller context
LEAST_TOKENS = 4_096           # an answer below this is not worth asking for
COMMAND_BYTES = 10_000_000     # of a command's answer

_FATAL_STATUS = (400, 401, 402, 403, 404, 405, 413, 422)
_FATAL_TYPES = ("invalid_request_error", "authentication_error", "billing_error", "permission_error", "not_found_error")
_SPENT_CODES = ("enforced_spend_limit_reached", "contract_spend_limit_reached")
_FEATURE_WORDS = {"effort": ("output_config", "effort"), "cache": ("cache_control", "ttl"), "fallback": ("fallback",),
                  "stream": ("stream",)}
_TOO_LONG = re.compile(r"too (long|large)|context.{0,20}(length|window|size|limit)|exceeds?.{0,40}context", re.I)

Turns = Sequence[tuple[str, str]]  # after the prompt: the model's answer, our complaint about it


class Unavailable(Exception):
    """The API is out: do something useful instead. Fatal when only the user can mend it."""

    def __init__(self, text: str, fatal: bool = False, retry_after_s: float | None = None):
        super().__init__(text)
        self.fatal = fatal                  # key, permission, model, credit, request: the LLM's part is over
        self.retry_after_s = retry_after_s  # what the server asked for, else None
        self.usd = 0.0                      # billed for answers that could not be used


@dataclass(frozen=True)
class Limits:
    """Seconds that one call, its silence and its retries may take."""

    deadline_s: float = 900
    stall_s: float = 300
    patience_s: float = 60
    first_wait_s: float = 2


@dataclass
class Call:
    """One request and what has come of it so far; another thread may still be writing to it."""

    text: list[str] = field(default_factory=list)
    hidden_chars: int = 0     # of thinking
    usage: dict = field(default_factory=dict)
    stop_reason: str | None = None
    category: str = ""        # of a refusal
    request_id: str = ""
    content_type: str = ""
    error: Exception | None = None
    fault: Unavailable | None = None
    client: object = None
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def answer(self) -> str:
        return "".join(self.text).strip()

    def hops(self) -> list[dict]:
        """Usage by model, where the server turned to a fallback model; else nothing."""
        hops = [hop for hop in self.usage.get("iterations") or [] if isinstance(hop, dict)]
        return hops if any(hop.get("type") == "fallback_message" for hop in hops) else []


class Api:
    """A model behind the Messages API, at home or behind ANTHROPIC_BASE_URL."""

    def __init__(self, model: str, effort: str | None, fallback: str | None, limits: Limits):
        self.model, self.effort, self.fallback, self.limits = model, effort, fallback, limits
        self.name = model
        self.brief = False   # the context turned out too small for the history
        self._key = (os.environ.get("ANTHROPIC_API_KEY") or "").strip()
        self._token = "" if self._key else (os.environ.get("ANTHROPIC_AUTH_TOKEN") or "").strip()
        self._url = (os.environ.get("ANTHROPIC_BASE_URL") or "").strip() or HOST
        self._home = self._url.rstrip("/") == HOST
        understood = self._home or model.startswith("claude-")  # a gateway to the same models, not a local server
        wanted = {"stream": True, "cache": understood, "effort": understood and effort, "fallback": fallback}
        self._features = {feature for feature, wants in wanted.items() if wants}
        self.max_tokens = MAX_TOKENS if understood else MAX_TOKENS_ELSEWHERE

    def check(self) -> str:
        """One line about the model; raises SetupError for what the user must mend, Unavailable for what may pass."""
        import anthropic
        import httpx2

        if self._home and not (self._key or self._token):
            raise SetupError("no ANTHROPIC_API_KEY: set it, or start with --researcher tuner")
        if not all(33 <= ord(c) < 127 for c in self._key + self._token):
            raise SetupError("ANTHROPIC_API_KEY holds a character that no key has: copy it again")
        if not re.match(r"https?://[^/\s]+", self._url):
            raise SetupError("ANTHROPIC_BASE_URL is not an http(s) address: correct or unset it")
        try:
            with self._client(min(15, self.limits.stall_s)) as client:
                info = client.models.retrieve(self.model)
        except anthropic.APIStatusError as error:
            return self._check_refused(error)
        except (anthropic.APIError, httpx2.HTTPError, httpx2.InvalidURL, json.JSONDecodeError) as error:
            raise Unavailable(self._redact(f"{self._where()} cannot be reached: {_named(error)}")) from None
        limit, room = getattr(info, "max_tokens", None), getattr(info, "max_input_tokens", None)
        if isinstance(limit, int) and limit > 0:
            self.max_tokens = min(self.max_tokens, limit)
        return f"{self.model} at {self._where()}" + (f", {room} tokens in, {limit} out" if room and limit else "")

    def _check_refused(self, error: "anthropic.APIStatusError") -> str:  # noqa: F821
        """What an error of the models route means at the start."""
        unknown_model = self._home or self.model in str(error.message)
        if error.status_code in (404, 405, 501) and not unknown_model:
            return f"{self.model} at {self._where()}, which does not list its models"
        fault = self._status_fault(error)
        raise SetupError(str(fault)) if fault.fatal else fault

    def call(self, call: Call, prompt: Prompt, turns: Turns, max_tokens: int, stop: threading.Event | None) -> None:
        """Fill `call`; on return it is finished, failed, or abandoned at its deadline."""
        import anthropic  # noqa: F401  here, so that its seconds do not count against the server's

        request = self._request(prompt, turns, max_tokens)
        threading.Thread(target=self._read, args=(call, request), daemon=True).start()
        ends_at = time.monotonic() + self.limits.deadline_s
        while not call.done.wait(0.1):
            if time.monotonic() > ends_at or (stop and stop.is_set()):
                call.fault = Unavailable(f"{self._where()} took longer than {self.limits.deadline_s:g} s")
                if call.client:
                    call.client.close()  # ends a slow drip; a silent socket ends at its stall limit
                return
        call.fault = self._fault(call)

    def adapt(self, call: Call) -> bool:
        """Give up what the server does not understand; True when asking again makes sense."""
        status = getattr(call.error, "status_code", 0)
        text = str(getattr(call.error, "message", "")) if status in (400, 413, 422) else ""
        if call.error is None and call.stop_reason is None and call.content_type == "application/json":
            text = "stream"  # a whole message where events were asked for
        for feature, words in _FEATURE_WORDS.items():
            if feature in self._features and any(word in text for word in words):
                self._features.discard(feature)
                return True
        too_long = status == 413 or call.stop_reason == "model_context_window_exceeded" or _TOO_LONG.search(text)
        if ("max_tokens" in text or (too_long and self.brief)) and self.max_tokens > LEAST_TOKENS:
            self.max_tokens = max(LEAST_TOKENS, self.max_tokens // 2)
            return True
        if too_long and not self.brief:
            self.brief = True
            return True
        return False

    def _request(self, prompt: Prompt, turns: Turns, max_tokens: int) -> dict:
        """The Messages API request: what every server understands, and the features that this one does."""
        system, *blocks = map(self._redact, (prompt.rules, *prompt.blocks(self.brief)))
        content = "\n\n".join(blocks)
        if "cache" in self._features:
            system = [{"type": "text", "text": system}]
            content = [{"type": "text", "text": text} for text in blocks]
            for at in _marks(len(prompt.fixed), len(blocks)):
                content[at]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
        messages = [{"role": role, "content": self._redact(text)}
                    for turn in turns for role, text in zip(("assistant", "user"), turn, strict=True)]
        request = {"model": self.model, "max_tokens": max_tokens, "system": system,
                   "messages": [{"role": "user", "content": content}, *messages], "stream": "stream" in self._features}
        if "effort" in self._features:
            request["output_config"] = {"effort": self.effort}
        if "fallback" in self._features:
            models = "default" if self.fallback == "default" else [{"model": self.fallback}]
            request["extra_body"] = {"fallbacks": models}
            request["extra_headers"] = {"anthropic-beta": "server-side-fallback-2026-07-01"}
        return request

    def _client(self, read_s: float) -> "anthropic.Anthropic":  # noqa: F821
        import anthropic
        import httpx2

        secret = {"auth_token": self._token} if self._token else {"api_key": self._key or "none"}
        timeout = httpx2.Timeout(read_s, connect=15)
        return anthropic.Anthropic(**secret, base_url=self._url, max_retries=0, timeout=timeout)

    def _read(self, call: Call, request: dict) -> None:
        """The reading thread: everything that the server sends goes into the call."""
        import anthropic
        import httpx2

        try:
            with self._client(self.limits.stall_s if request["stream"] else self.limits.deadline_s) as client:
                call.client = client
                answer = client.messages.with_raw_response.create(**request)
                call.request_id = answer.headers.get("request-id", "")
                call.content_type = answer.headers.get("content-type", "").split(";")[0]
                for event in answer.parse() if request["stream"] else [answer.parse()]:
                    _absorb(call, event)
        except (anthropic.AnthropicError, httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, json.JSONDecodeError,
                UnicodeDecodeError, OSError) as error:
            call.error = error
        finally:
            call.done.set()

    def _fault(self, call: Call) -> Unavailable | None:
        """Why the call gave no finished answer; None when it did, whatever the answer says."""
        if hasattr(call.error, "status_code"):
            return self._status_fault(call.error)
        if call.error is not None:
            return Unavailable(self._redact(f"{self._where()} cannot be reached: {_named(call.error)}"))
        if call.stop_reason is None:
            instead = f"sent {call.content_type or 'nothing'} in place of an answer"
            return Unavailable(f"{self._where()} {'broke off its answer' if call.usage else instead}")
        if call.stop_reason == "model_context_window_exceeded":
            return Unavailable(f"the prompt does not fit {self.model}: choose another --model", fatal=True)
        return None

    def _status_fault(self, error: "anthropic.APIStatusError") -> Unavailable:  # noqa: F821
        """What an error answer means, and what the user can do."""
        status, kind = error.status_code, getattr(error, "type", None) or ""
        said = one_line(str(getattr(error, "api_message", None) or error.message), 200)
        line = {401: f"{self._where()} rejected the key: check ANTHROPIC_API_KEY",
                402: f"{self._where()} reports no credit: add some, or start with --researcher tuner",
                403: f"the key may not use {self.model}: check its permissions",
                404: f"{self._where()} does not know {self.model}: check --model",
                413: f"the prompt is too large for {self._where()}: shorten program.md"}.get(
                    status, f"{self._where()} answered {status}")
        fatal = (status in _FATAL_STATUS or (status < 400 and kind in _FATAL_TYPES)
                 or getattr(error, "error_code", None) in _SPENT_CODES)
        if self._home and status != 401 and not isinstance(error.body, dict):
            fatal = False  # a proxy or captive portal in between, not the API
        retry_after_s = _retry_after_s(error.response.headers)
        return Unavailable(self._redact(f"{line} ({status} {kind}: {said})"), fatal, retry_after_s)

    def _where(self) -> str:
        return "the API" if self._home else re.sub(r"^https?://(?:[^/@]*@)?([^/?#]*).*", r"\1", self._url)

    def _redact(self, text: str) -> str:
        for secret in filter(None, (self._key, self._token)):
            text = text.replace(secret, "[key]")
        return text


class Command:
    """Any program that reads the prompt on stdin and answers on stdout: a subscription's client, a local model."""

    def __init__(self, command: str, limits: Limits):
        self.command, self.limits = command, limits
        self.max_tokens, self.brief = 0, False
        try:
            self._argv = shlex.split(command)
        except ValueError as error:
            raise SetupError(f"--researcher-command cannot be read ({error}): correct its quotes") from None
        self.name = f"command:{Path(self._argv[0]).name}" if self._argv else ""

    def check(self) -> str:
        """One line about the command; raises SetupError where there is no such program."""
        if not self._argv or not shutil.which(self._argv[0]):
            name = self._argv[0] if self._argv else ""
            raise SetupError(f"--researcher-command: there is no program {name!r}: install it or correct the path")
        return f"the {self.name.replace(':', ' ')}"

    def call(self, call: Call, prompt: Prompt, turns: Turns, max_tokens: int, stop: threading.Event | None) -> None:
        """Fill `call`. Files in place of pipes: nothing blocks, and a grandchild that keeps them open does no harm."""
        text = prompt.text() + "".join(f"\n\n<your_answer>\n{answer}\n</your_answer>\n\n{complaint}"
                                       for answer, complaint in turns)
        for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
            secret = (os.environ.get(name) or "").strip()
            text = text.replace(secret, "[key]") if secret else text
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(text.encode("utf-8", "replace"))
            given.seek(0)
            why = self._run((given, out, err), stop)
            said = _read_back(out, COMMAND_BYTES)
            why = why or ("" if said.strip() else "answered nothing")
            if why:
                tail = one_line(_read_back(err, 2_000)[-300:])
                call.fault = Unavailable(f"the {self.name} {why}" + (f"; its stderr ends: {tail}" if tail else ""))
            call.text, call.stop_reason = [said], "end_turn"

    def _run(self, files: Sequence, stop: threading.Event | None) -> str:
        """Run the command to its end or deadline, as a process group; return what was wrong."""
        given, out, err = files
        try:
            child = subprocess.Popen(self._argv, stdin=given, stdout=out, stderr=err, start_new_session=True)
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        ends_at, why = time.monotonic() + self.limits.deadline_s, ""
        while child.poll() is None and not why:
            time.sleep(0.02)
            if time.monotonic() > ends_at:
                why = f"took longer than {self.limits.deadline_s:g} s"
            elif os.fstat(out.fileno()).st_size > COMMAND_BYTES:
                why = f"answered more than {COMMAND_BYTES} bytes"
            elif stop and stop.is_set():
                why = "was stopped"
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left in its group
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
        return why or (f"ended with exit code {code}" if code else "")

    def adapt(self, call: Call) -> bool:
        return False


def _absorb(call: Call, event: object) -> None:
    """Take over what one stream event, or one whole message, says; unknown shapes say nothing."""
    kind = getattr(event, "type", "")
    message = event if kind == "message" else getattr(event, "message", None)
    for usage in (getattr(message, "usage", None), getattr(event, "usage", None)):
        if hasattr(usage, "model_dump"):
            call.usage |= {name: value for name, value in usage.model_dump().items() if value is not None}
    delta, block = getattr(event, "delta", None), getattr(event, "content_block", None)
    parts = {"message": getattr(message, "content", None) or [], "content_block_start": [block],
             "content_block_delta": [delta]}.get(kind, [])
    for part in parts:
        if getattr(part, "type", "") in ("text", "text_delta"):
            call.text.append(part.text or "")
        call.hidden_chars += len(getattr(part, "thinking", None) or "")
    ending = message if kind == "message" else delta
    if getattr(ending, "stop_reason", None):
        call.stop_reason = str(ending.stop_reason)
        call.category = str(getattr(getattr(ending, "stop_details", None), "category", None) or "")


def _marks(n_fixed: int, n_blocks: int) -> list[int]:
    """Blocks that end a cached prefix, at most four: the facts, the incumbent, and two in the history.

    A server looks back about twenty blocks from a mark for a prefix that it holds, so the last mark finds that of the
    call before; the round one still stands when many entries came in between.
    """
    last = n_blocks - 2  # the ask comes after it
    return sorted({n_fixed - 2, n_fixed - 1, max(n_fixed - 1, last - last % 15), last})


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for; a date, or nonsense, says nothing."""
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*", headers.get("retry-after", ""))
    return float(match.group(1)) if match else None


def _named(error: Exception) -> str:
    cause = error.__cause__ if type(error).__name__ == "APIConnectionError" and error.__cause__ else error
    return one_line(f"{type(cause).__name__}: {cause}", 200)


def _read_back(file: object, limit: int) -> str:
    """The last `limit` bytes of a temporary file, as text."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - limit))
    return file.read().decode("utf-8", "replace")
