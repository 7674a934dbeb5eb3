"""Asks a model for a proposal: the conversation, its retries and repairs, its price, its record.

Promises: an answer is used only if the model finished it and the resulting train.py passed every
check. What cannot be used is a ProposalError (what the model said) or Unavailable (the API is out),
both with a kind and with what was billed. Each call is on disk before its answer is used. A refusal
is an outcome: neither repeated nor reworded. What to do meanwhile is not decided here.
"""

import json
import math
import os
import random
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab import edits
from lab.backend import KEYS, Api, CallLimits, Command, Outage, Reply, Unavailable, clean
from lab.edits import Answer, Flaw, ProposalError
from lab.ledger import Proposal, SetupError, append_line, one_line, utc_now
from lab.prompt import Prompt, brief, form_alone, mend_prompt

DEFAULT_MODEL = "claude-opus-5-5"
# Dollars per million tokens: input, output, one-hour cache write, cache read. List prices of
# November 2026. The two cache columns of fable and haiku follow from the ratios of the others.
PRICES = {
    "claude-opus-5-5": (4, 20, 8, 0.20),
    "claude-sonnet-5-5": (2, 10, 4, 0.10),
    "claude-fable-5-1": (10, 50, 20, 0.50),
    "claude-haiku-5-5": (0.10, 0.50, 0.20, 0.005),
}
PLAUSIBLE_TOKENS = 10_000_000  # of one call; a server that reports more reports nonsense
CHARS_A_TOKEN = 2.5            # code in the densest tokenizers: an upper bound of tokens
MIN_TOKENS = 4_096             # an answer below this is not worth asking for
BRIEF_TOKENS = 2_000           # of an answer in a context of 8 000
REPAIRS = 2                    # calls that show the model what was wrong with its answer
TRIES = 3                      # calls in a row before Unavailable
MAX_WAIT_S, MAX_RETRY_AFTER_S = 300, 900
CHECK_S = 60                   # for the small call of a start; a local server may load its model first
HELLO = Prompt("You are asked whether you are there.", (), (), "Answer with one word: yes.", "")

_COUNTERS = (  # of usage, in the order of a price
    "input_tokens", "output_tokens",
    "cache_creation_input_tokens", "cache_read_input_tokens",
)


@dataclass(frozen=True)
class Draft:
    """A proposal, the answer that it came from, and the train.py that it changes."""

    proposal: Proposal
    answer: Answer
    base_code: str


def rebase(draft: Draft, code: str, tried: Collection[str]) -> Draft:
    """The same change made to `code`, the incumbent of now. Raises ProposalError."""
    merged = edits.merge(draft.base_code, draft.proposal.code, code)
    if merged is None:
        raise ProposalError("The idea and another one, which is being measured or was kept, change the same lines. "
                            "Make the change in other lines.", Flaw.CONFLICT)
    edits.check(merged, tried)
    notes = [draft.proposal.note, "merged with a newer incumbent" if code != draft.base_code else ""]
    proposal = replace(draft.proposal, code=merged, note="; ".join(filter(None, notes)))
    return replace(draft, proposal=proposal, base_code=code)


def has_key() -> bool:
    """Whether the environment names a key, or a server that may need none."""
    return any((os.environ.get(name) or "").strip() for name in (*KEYS, "ANTHROPIC_BASE_URL"))


def next_wait_s(failures: int, retry_after_s: float | None, chance: float,
                first_s: float = 2) -> float:
    """Seconds until the next try, after `failures` in a row; `chance` is the jitter in [0, 1)."""
    if retry_after_s is not None:
        return min(retry_after_s, MAX_RETRY_AFTER_S) + chance * first_s
    full = min(MAX_WAIT_S, first_s * 2 ** min(max(failures, 1), 20))
    return full * (0.5 + 0.5 * chance)


def _plausible(count: object) -> int:
    """A number of tokens that a server may mean; 0 for text, a negative number or 1e300."""
    return count if type(count) is int and 0 <= count <= PLAUSIBLE_TOKENS else 0


def cost_usd(price: Sequence[float] | None, usage: Mapping[str, object]) -> float:
    """List price of one call's usage; 0 without a price."""
    columns = zip(_COUNTERS, price or (0, 0, 0, 0), strict=True)
    return sum(_plausible(usage.get(name)) * usd / 1e6 for name, usd in columns)


def _dearest(*models: str) -> Sequence[float] | None:
    """The highest list price of these models, column by column; None if no price is known."""
    known = [PRICES[name] for name in PRICES for model in models if model.startswith(name)]
    return tuple(map(max, zip(*known, strict=True))) or None


class Purse:
    """What is left of --max-usd. Each call reserves its worst-case price, so parallel calls cannot exceed the limit."""

    def __init__(self, left_usd: float = math.inf):
        self.left_usd, self.n_holding = left_usd, 0  # what others hold is not left
        self.changed = threading.Condition()

    def hold(self, least_usd: float, most_usd: float, stopped: threading.Event) -> float:
        """Dollars for one call. Waits for calls under way to give theirs back. Raises Unavailable."""
        with self.changed:
            while self.left_usd < least_usd and self.n_holding and not stopped.is_set():
                self.changed.wait(0.2)
            if self.left_usd < least_usd and stopped.is_set():
                raise Unavailable("stopped before the model was asked", Outage.STOPPED)
            if self.left_usd < least_usd:
                raise Unavailable("what is left of --max-usd does not pay for one more call", Outage.BUDGET)
            held_usd = min(self.left_usd, most_usd)
            self.left_usd -= held_usd
            self.n_holding += 1
            return held_usd

    def pay(self, held_usd: float, usd: float) -> None:
        """Give back what was held but not spent."""
        with self.changed:
            self.left_usd += held_usd - usd
            self.n_holding -= 1
            self.changed.notify_all()


class Researcher:
    """The role that rewrites train.py: a model behind the Messages API, or a command."""

    def __init__(self, model: str, effort: str | None = None, command: str | None = None,
                 prices: Sequence[float] | None = None, fallback: str | None = None,
                 calls_path: Path | None = None, limits: CallLimits | None = None):
        self.limits = limits or CallLimits()
        self.calls_path = calls_path  # where each call is written down
        if command:
            self.backend, self.price = Command(command, self.limits), None
        else:
            self.backend = Api(model, effort, fallback, self.limits)
            others = PRICES if fallback == "default" else [fallback or ""]  # the server may choose any
            self.price = prices or _dearest(model, *others)
        if prices and len(prices) == 2:  # an upper bound: a cache write costs twice the input price, a read that price
            self.price = (*prices, 2 * prices[0], prices[0])
        self.name = self.backend.name

    def check(self, purse: Purse | None = None) -> None:
        """Prove key, model and command by one small call. Raises SetupError, or Unavailable for what may pass."""
        self.backend.check()
        try:
            self.write(HELLO, threading.Event(), CHECK_S, purse or Purse())
        except ProposalError:
            return  # it answers, if only to decline
        except Unavailable as error:
            if error.kind is Outage.BUDGET:
                return  # the loop will stop for it
            if error.kind is Outage.STOPPED:
                raise Unavailable(f"{self.name} took longer than {CHECK_S} s for one word") from None
            if error.fatal or isinstance(self.backend, Command):
                raise SetupError(str(error)) from None
            raise

    def write(self, prompt: Prompt, stopped: threading.Event, limit_s: float, purse: Purse) -> tuple[str, float]:
        """(a text in the model's own words, its cost); limit_s sets `stopped`. Raises what propose() does."""
        talk, timer = _Talk(self, prompt, (), stopped, purse), threading.Timer(limit_s, stopped.set)
        timer.daemon = True  # a Ctrl-C may come before it is cancelled
        timer.start()
        try:
            reply = talk.ask()
            _check_ending(reply)
        except (ProposalError, Unavailable) as error:
            error.usd = talk.usd
            raise
        finally:
            timer.cancel()
        return reply.text, talk.usd

    def propose(self, prompt: Prompt, tried: Collection[str], stopped: threading.Event | None = None,
                purse: Purse | None = None) -> Draft:
        """A checked proposal. Raises ProposalError or Unavailable, both with what was billed."""
        return _Talk(self, prompt, tried, stopped or threading.Event(), purse or Purse()).draft(REPAIRS)

    def repair(self, prompt: Prompt, candidate_code: str, log: str, tried: Collection[str] = (),
               stopped: threading.Event | None = None, purse: Purse | None = None) -> Draft:
        """One call after a candidate crashed. `prompt` is built on the candidate's parent.

        The draft holds the whole mended candidate, so that it merges with what was kept meanwhile.
        """
        asked = mend_prompt(prompt, candidate_code, log)
        talk = _Talk(self, asked, tried, stopped or threading.Event(), purse or Purse())
        return replace(talk.draft(repairs=0), base_code=prompt.code)


@dataclass
class _Talk:
    """The calls for one proposal, and what they have cost so far."""

    who: Researcher
    prompt: Prompt
    tried: Collection[str]
    stopped: threading.Event
    purse: Purse
    usd: float = 0.0
    turns: list[tuple[str, str]] = field(default_factory=list)  # the model's answer, our complaint

    def draft(self, repairs: int) -> Draft:
        """Ask until an answer passes every check, or the repairs are used up."""
        flaws, description, found = [], "", None  # found: passed, but in conflict with a trial in flight
        while True:
            try:
                reply = self.ask()
                _check_ending(reply)
                answer = edits.parse(reply.text)
                description = answer.description
                found = self._checked(answer, len(flaws))
                for code in self.prompt.beside:
                    rebase(found, code, self.tried)
                return self._paid(found)
            except Unavailable as error:
                if found:
                    return self._paid(found)
                error.usd = self.usd
                raise
            except ProposalError as error:
                flaws.append(error.kind)
                is_over = error.refused or len(flaws) > repairs or flaws.count(Flaw.CONFLICT) > 1
                if is_over and found:
                    return self._paid(found)
                if is_over:
                    error.usd, error.description = self.usd, description
                    raise
                self._complain(reply, flaws, str(error))

    def _complain(self, reply: Reply, flaws: Sequence[Flaw], complaint: str) -> None:
        """Show the model what was wrong; after two errors of form, or in a small context, beside the form alone."""
        said = reply.text if reply.stop_reason == "end_turn" else ""
        self.turns.append((said or "(no usable answer)", complaint))
        if self.prompt.is_brief or flaws[-2:] == [Flaw.FORM, Flaw.FORM]:
            self.prompt = form_alone(self.prompt, said, complaint)
            self.turns.clear()

    def _checked(self, answer: Answer, n_repairs: int) -> Draft:
        """The answer as a draft, with a note of how it came about. Raises ProposalError."""
        code = edits.apply(answer, self.prompt.code)
        edits.check(code, self.tried)
        notes = (("", "repaired once", "repaired twice")[n_repairs],
                 "no list price known, usd counted as 0" if self.who.price is None else "",
                 "asked briefly, for a small context" if self.prompt.is_brief else "")
        note = "; ".join(filter(None, notes))
        proposal = Proposal(answer.description, code, self.who.name, answer.reasoning, note=note)
        return Draft(proposal, answer, self.prompt.code)

    def _paid(self, draft: Draft) -> Draft:
        return replace(draft, proposal=replace(draft.proposal, usd=self.usd))

    def ask(self) -> Reply:
        """A finished answer, after a few tries if a fault may pass. Raises Unavailable."""
        limits, failures, waited_s = self.who.limits, 0, 0.0
        while True:
            reply = self._call()
            fault = reply.fault
            if reply.is_too_long and not self.prompt.is_brief:
                self.prompt = brief(self.prompt)
                self.turns.clear()
                continue
            if fault is None:
                return reply
            failures += 1
            wait_s = next_wait_s(failures, fault.retry_after_s, random.random(), limits.first_wait_s)
            waited_s += wait_s
            is_over = failures == TRIES or waited_s > limits.patience_s
            if is_over or fault.kind is not Outage.PASSING:
                raise fault
            self.stopped.wait(wait_s)

    def _call(self) -> Reply:
        """One call, priced and on disk. Raises Unavailable if it may not be made."""
        who = self.who
        if self.stopped.is_set():
            raise Unavailable("stopped before the model was asked", Outage.STOPPED)
        reply, usage, usd = self._paid_call()
        self.usd += usd
        if who.calls_path:
            call = {"when": utc_now(), "model": who.name, "prompt": self.prompt.text(), "turns": self.turns,
                    "answer": reply.text, "stop_reason": reply.stop_reason, "fault": str(reply.fault or ""),
                    "usage": usage, "usd": usd}
            append_line(who.calls_path, clean(json.dumps(call)))
        return reply

    def _paid_call(self) -> tuple[Reply, dict[str, int], float]:
        """(reply, its usage, its cost); no longer than the purse pays for in the worst case."""
        price, purse, most = self.who.price or (0, 0, 0, 0), self.purse, self.who.backend.max_tokens
        most = min(most, BRIEF_TOKENS) if self.prompt.is_brief else most
        n_chars = len(self.prompt.text()) + sum(len(said) for turn in self.turns for said in turn)
        read_usd = math.ceil(n_chars / CHARS_A_TOKEN) * price[2] / 1e6
        token_usd = max(price[1], 1e-9) / 1e6
        held_usd = purse.hold(read_usd + min(MIN_TOKENS, most) * token_usd, read_usd + most * token_usd, self.stopped)
        usd, paid = 0.0, min(most, int((held_usd - read_usd) / token_usd + 1e-3))  # a float may lie just below
        try:
            reply = self.who.backend.call(self.prompt, self.turns, paid, self.stopped)
            usage = {name: _plausible(getattr(reply.usage, name, 0)) for name in _COUNTERS}
            if not reply.stop_reason or not usage["output_tokens"]:  # broken off: an estimate
                n_written = math.ceil(reply.n_written / CHARS_A_TOKEN)
                usage["output_tokens"] = max(usage["output_tokens"], n_written)
            usd = cost_usd(price, usage)
        finally:
            purse.pay(held_usd, usd)
        return reply, usage, usd


def _check_ending(reply: Reply) -> None:
    """Raise ProposalError unless the model ended its answer itself."""
    if reply.stop_reason == "refusal":
        raise ProposalError(f"the model declined ({reply.refusal})", Flaw.REFUSED)
    if reply.stop_reason not in ("end_turn", "stop_sequence"):
        reason = one_line(reply.stop_reason, 40)
        raise ProposalError(f"The answer did not end by itself ({reason}); nothing was applied. If it "
                            "reached its length limit, think less and send fewer, smaller blocks. Answer "
                            "in text alone: a description and search/replace blocks.", Flaw.CONTENT)
