"""Asks a model for a proposal: the conversation, its retries and repairs, its price, its record.

Promises: an answer is used only when the model finished it and the resulting train.py passed every check.
What cannot be used is a ProposalError (what the model said) or Unavailable (the API is out), both with a
kind and with what was billed. Each call is on disk before its answer is used. A refusal is an outcome:
neither repeated nor reworded. What to do meanwhile is not decided here.
"""

import json
import math
import os
import random
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab import edits
from lab.backend import MIN_TOKENS, Api, Command, Limits, Outage, Reply, Unavailable, clean
from lab.edits import Answer, Flaw, ProposalError
from lab.ledger import Proposal, one_line, utc_now
from lab.prompt import Prompt, crash_ask, form_alone

DEFAULT_MODEL = "claude-opus-5-5"
# Dollars per million tokens: input, output, one-hour cache write, cache read. List prices of November
# 2026. The two cache columns of fable and haiku follow from the ratios of the others.
PRICES = {
    "claude-opus-5-5": (4, 20, 8, 0.20),
    "claude-sonnet-5-5": (2, 10, 4, 0.10),
    "claude-fable-5-1": (10, 50, 20, 0.50),
    "claude-haiku-5-5": (0.10, 0.50, 0.20, 0.005),
}
PLAUSIBLE_TOKENS = 10_000_000  # of one call; a server that reports more reports nonsense
CHARS_A_TOKEN = 2.5            # code in the densest tokenizers: an upper bound of tokens
REPAIRS = 2                    # calls that show the model what was wrong with its answer
TRIES = 3                      # calls in a row before Unavailable
MAX_WAIT_S, MAX_RETRY_AFTER_S = 300, 900

_COUNTERS = (
    "input_tokens", "output_tokens",
    "cache_creation_input_tokens", "cache_read_input_tokens",
)


@dataclass(frozen=True)
class Draft:
    """A proposal, the answer that it came from, and the train.py that it changes."""

    proposal: Proposal
    answer: Answer
    base_code: str
    spare: tuple["Draft", ...] = ()  # the answer's further ideas, the best first


def rebase(draft: Draft, code: str, tried: Collection[str]) -> Draft:
    """The same change made to `code`, the incumbent of now. Raises ProposalError where it cannot be."""
    if code == draft.base_code:
        edits.check(draft.proposal.code, tried)
        return draft
    merged = edits.merge(draft.base_code, draft.proposal.code, code)
    if merged is None:
        raise ProposalError("The idea and what was kept since change the same lines.", Flaw.CONFLICT)
    edits.check(merged, tried)
    note = _joined(draft.proposal.note, "merged with a newer incumbent")
    return replace(draft, proposal=replace(draft.proposal, code=merged, note=note), base_code=code)


def has_key() -> bool:
    """Whether the environment names a key, or a server that may need none."""
    names = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL")
    return any((os.environ.get(name) or "").strip() for name in names)


def next_wait_s(failures: int, retry_after_s: float | None, chance: float, first_s: float = 2) -> float:
    """Seconds until the next try, after `failures` in a row; `chance` in [0, 1) is the jitter.

    Doubling from first_s to 5 minutes, or what the server asked for, at most 15 minutes.
    """
    if retry_after_s is not None:
        return min(retry_after_s, MAX_RETRY_AFTER_S) + chance * first_s
    full = min(MAX_WAIT_S, first_s * 2 ** min(max(failures, 1), 20))
    return full * (0.5 + 0.5 * chance)


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


# Price and record ------------------------------------------------------------------------------------


def list_price(model: object) -> Sequence[float] | None:
    return next((price for name, price in PRICES.items() if str(model).startswith(name)), None)


def _plausible(count: object) -> int:
    """A number of tokens that a server may mean; 0 for text, a negative number or 1e300."""
    return count if type(count) is int and 0 <= count <= PLAUSIBLE_TOKENS else 0


def cost_usd(price: Sequence[float] | None, usage: Mapping[str, object]) -> float:
    """List price of one call's usage; 0 without a price."""
    if price is None:
        return 0.0
    input_usd, output_usd, write_usd, read_usd = (
        _plausible(usage.get(name)) * usd / 1e6 for name, usd in zip(_COUNTERS, price, strict=True))
    return input_usd + output_usd + write_usd + read_usd


def _usage(reply: Reply) -> list[dict]:
    """Counts by model where the server turned to a fallback model, otherwise one entry.

    What a broken answer wrote is estimated from its characters.
    """
    hops = reply.iterations if isinstance(reply.iterations, list) else []
    hops = [hop for hop in hops if isinstance(hop, dict)]
    if any(map(_is_fallback, hops)):
        return hops
    counts = {name: _plausible(getattr(reply.usage, name, 0)) for name in _COUNTERS}
    if not reply.stop_reason or not counts["output_tokens"]:
        written = math.ceil((len(reply.text) + reply.hidden_chars) / CHARS_A_TOKEN)
        counts["output_tokens"] = max(counts["output_tokens"], written)
    return [counts]


def _is_fallback(hop: Mapping[str, object]) -> bool:
    return hop.get("type") == "fallback_message"


def write_call(path: Path, call: Mapping[str, object]) -> None:
    """Append one line, on disk when this returns. A torn last line is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        is_torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * is_torn + json.dumps(call).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


# The role --------------------------------------------------------------------------------------------


@dataclass
class _Talk:
    """The calls for one proposal: what is asked, what it may cost, and what came of it so far."""

    prompt: Prompt
    stopped: threading.Event | None
    limit_usd: float
    turns: list[tuple[str, str]] = field(default_factory=list)  # the model's answer, our complaint
    flaws: list[Flaw] = field(default_factory=list)
    usd: float = 0.0
    source: str = ""
    description: str = ""

    def complain(self, reply: Reply, error: ProposalError) -> None:
        """Show the model what was wrong; after two answers out of form, the form and the file alone."""
        answer = reply.text if reply.stop_reason == "end_turn" else ""
        self.flaws.append(error.kind)
        self.turns.append((answer or "(no usable answer)", str(error)))
        if self.flaws[-2:] == [Flaw.FORM, Flaw.FORM]:
            self.prompt, self.turns = form_alone(self.prompt, answer, str(error)), []

    def chars(self, brief: bool) -> int:
        return len(self.prompt.text(brief)) + sum(len(said) for turn in self.turns for said in turn)


@dataclass
class Researcher:
    """The role that rewrites train.py: a model behind the Messages API, or a command."""

    model: str
    effort: str | None = None
    command: str | None = None
    prices: Sequence[float] | None = None  # dollars per million tokens: input, output, or all of PRICES
    fallback: str | None = None
    calls_path: Path | None = None         # where each call is written down
    limits: Limits | None = None

    def __post_init__(self):
        self.limits = self.limits or Limits()
        if self.command:
            self.backend, self.price = Command(self.command, self.limits), None
        else:
            self.backend = Api(self.model, self.effort, self.fallback, self.limits)
            self.price = list_price(self.model)
        self.name = self.backend.name
        if self.prices:  # of two: a cache write counts twice the input, a read the input; never too little
            first, *_ = given = tuple(self.prices)
            self.price = given if len(given) == 4 else (*given, 2 * first, first)

    def check(self) -> str:
        """One line about the model. Raises SetupError, or Unavailable for what may pass."""
        return self.backend.check()

    def propose(self, prompt: Prompt, tried: Collection[str], stopped: threading.Event | None = None,
                limit_usd: float = math.inf) -> Draft:
        """A checked proposal. Raises ProposalError or Unavailable, both with what was billed."""
        return self._converse(_Talk(prompt, stopped or threading.Event(), limit_usd), tried, REPAIRS)

    def repair(self, prompt: Prompt, candidate_code: str, log: str, tried: Collection[str] = (),
               stopped: threading.Event | None = None, limit_usd: float = math.inf) -> Draft:
        """One call after a candidate crashed. `prompt` is built on the candidate's parent.

        The draft holds the whole mended candidate, so that it merges with what was kept meanwhile.
        """
        ask = crash_ask(prompt.code, candidate_code, log)
        asked = replace(prompt, ask=ask, code=candidate_code)
        draft = self._converse(_Talk(asked, stopped or threading.Event(), limit_usd), tried, 0)
        return replace(draft, base_code=prompt.code)

    def _converse(self, talk: _Talk, tried: Collection[str], repairs: int) -> Draft:
        """Ask until an answer passes every check, or the repairs are used up."""
        while True:
            try:
                reply = self._ask(talk)
                return self._draft(talk, reply, tried)
            except Unavailable as error:
                error.usd = talk.usd
                raise
            except ProposalError as error:
                if error.refused or len(talk.flaws) == repairs:
                    error.usd, error.source, error.description = talk.usd, talk.source, talk.description
                    raise
                talk.complain(reply, error)

    def _draft(self, talk: _Talk, reply: Reply, tried: Collection[str]) -> Draft:
        """The answer as a draft; raises ProposalError where it cannot be used."""
        _check_ending(reply)
        answer = edits.parse(reply.text)
        talk.description = answer.description
        draft = _applied(talk, answer, tried)
        tried = (*tried, edits.fingerprint(draft.proposal.code))
        spare = []
        for further in answer.spare:
            with suppress(ProposalError):  # a further idea is a gift, not worth a repair
                spare.append(_applied(talk, further, tried))
        repaired = ("", "repaired once", "repaired twice")[len(talk.flaws)]
        note = _joined(repaired, *self._notes(talk))
        proposal = replace(draft.proposal, usd=talk.usd, note=note)
        return replace(draft, proposal=proposal, spare=tuple(spare))

    def _ask(self, talk: _Talk) -> Reply:
        """One finished answer; passing faults are tried again for a short while."""
        failures, waited_s = 0, 0.0
        while True:
            if talk.stopped.is_set():
                raise Unavailable("stopped before the model was asked", Outage.STOPPED)
            reply = self._call(talk)
            fault = reply.fault
            if fault is None:
                return reply
            if reply.refused and self.backend.ask_for_less():
                continue
            failures += 1
            first_s = self.limits.first_wait_s
            wait_s = next_wait_s(failures, fault.retry_after_s, random.random(), first_s)
            waited_s += wait_s
            if fault.fatal or failures == TRIES or waited_s > self.limits.patience_s:
                raise fault
            talk.stopped.wait(wait_s)

    def _call(self, talk: _Talk) -> Reply:
        """One call, priced and on disk."""
        max_tokens = self._affordable(talk)
        reply = self.backend.call(talk.prompt, talk.turns, max_tokens, talk.stopped)
        usage = _usage(reply)
        served = [str(hop.get("model")) for hop in usage if _is_fallback(hop)]
        talk.source = served[-1] if served else self.name
        usd = sum(cost_usd(list_price(hop.get("model")) or self.price, hop) for hop in usage)
        talk.usd += usd
        if self.calls_path:
            write_call(self.calls_path, {
                "when": utc_now(), "model": talk.source,
                "prompt": clean(talk.prompt.text(self.backend.brief)),
                "turns": [[clean(said) for said in turn] for turn in talk.turns],
                "answer": reply.text, "stop_reason": reply.stop_reason,
                "fault": str(reply.fault or ""), "usage": usage, "usd": usd})
        return reply

    def _affordable(self, talk: _Talk) -> int:
        """Output tokens that what is left of the limit pays for in the worst case."""
        left_usd = talk.limit_usd - talk.usd
        if self.price is None or left_usd == math.inf:
            return self.backend.max_tokens
        n_input = math.ceil(talk.chars(self.backend.brief) / CHARS_A_TOKEN)
        left_usd -= cost_usd(self.price, {"cache_creation_input_tokens": n_input})
        tokens = int(left_usd * 1e6 / max(self.price[1], 1e-9))
        if tokens < MIN_TOKENS:
            raise Unavailable("what is left of --max-usd does not pay for one more call", Outage.BUDGET)
        return min(tokens, self.backend.max_tokens)

    def _notes(self, talk: _Talk) -> tuple[str, ...]:
        """What the row should say of how the answer came about."""
        return (
            f"{self.name} declined, {talk.source} answered" if talk.source != self.name else "",
            "no list price known, usd counted as 0" if self.price is None else "",
            "history shortened to fit the model's context" if self.backend.brief else "")


def _applied(talk: _Talk, answer: Answer, tried: Collection[str]) -> Draft:
    code = edits.apply(answer, talk.prompt.code)
    edits.check(code, tried)
    proposal = Proposal(answer.description, code, talk.source, answer.reasoning)
    return Draft(proposal, answer, talk.prompt.code)


def _check_ending(reply: Reply) -> None:
    """Raise ProposalError unless the model ended its answer itself."""
    if reply.stop_reason == "refusal":
        category = one_line(reply.category, 40) or "not named"
        request = one_line(reply.request_id, 60) or "not named"
        raise ProposalError(f"the model declined (category {category}, request {request})", Flaw.REFUSED)
    if reply.stop_reason not in ("end_turn", "stop_sequence"):
        reason = one_line(reply.stop_reason, 40)
        raise ProposalError(f"The answer did not end by itself ({reason}); nothing was applied. If it "
                            "reached its length limit, think less and send fewer, smaller blocks. Answer "
                            "in text alone: a description and search/replace blocks.", Flaw.CONTENT)
