"""Asks a model for a proposal: the conversation, its retries, its repairs, its price.

Promises: an answer is used only when the model finished it and the resulting train.py passed every check; what cannot
be used is ProposalError (what the model said) or Unavailable (the API is out), with the dollars billed on the way. A
refusal is an outcome: neither repeated nor reworded. It does not decide what to do meanwhile: agent.py does.
"""

import math
import os
import random
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from lab import edits
from lab.api import LEAST_TOKENS, Api, Call, Command, Limits, Turns, Unavailable
from lab.edits import Answer, ProposalError
from lab.ledger import Proposal, one_line
from lab.prompt import Prompt, crash_ask

DEFAULT_MODEL = "claude-opus-5-5"
# Dollars per million tokens: input, output, one-hour cache write, cache read. List prices of November 2026; the two
# cache columns of fable and haiku follow from the ratios of the others.
PRICES = {"claude-opus-5-5": (4, 20, 8, 0.20), "claude-sonnet-5-5": (2, 10, 4, 0.10),
          "claude-fable-5-1": (10, 50, 20, 0.50), "claude-haiku-5-5": (0.10, 0.50, 0.20, 0.005)}
CHARS_A_TOKEN = 2.5         # code in the densest tokenizers: an upper bound of tokens, for limits and cut streams
REPAIRS = 2                 # calls that show the model what was wrong with its answer
TRIES = 3                   # calls in a row before Unavailable
MAX_WAIT_S, MAX_RETRY_AFTER_S = 300, 900

_COUNTERS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def has_key() -> bool:
    """Whether the environment names a key, or a server that may need none."""
    names = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL")
    return any((os.environ.get(name) or "").strip() for name in names)


@dataclass(frozen=True)
class Draft:
    """A proposal and the answer it came from, which can be applied to another incumbent."""

    proposal: Proposal
    answer: Answer


def reapply(draft: Draft, code: str, tried: Collection[str]) -> Draft:
    """The same edits on another incumbent; raises ProposalError where they no longer apply."""
    if draft.answer.whole is not None:
        raise ProposalError("A whole file was written against an older incumbent; it would undo what was kept since.")
    new = edits.apply(draft.answer, code)
    edits.check(new, tried)
    note = "; ".join(filter(None, (draft.proposal.note, "re-applied to a newer incumbent")))
    return replace(draft, proposal=replace(draft.proposal, code=new, note=note))


def next_wait_s(failures: int, retry_after_s: float | None, chance: float, first_s: float = 2) -> float:
    """Seconds until the next try, after `failures` in a row; `chance` in [0, 1) is the jitter.

    Doubling from first_s to 5 minutes, or what the server asked for, at most 15 minutes.
    """
    if retry_after_s is not None:
        return min(retry_after_s, MAX_RETRY_AFTER_S) + chance * first_s
    full = min(MAX_WAIT_S, first_s * 2 ** min(max(failures, 1), 20))
    return full * (0.5 + 0.5 * chance)


def list_price(model: str) -> Sequence[float] | None:
    return next((price for name, price in PRICES.items() if model.startswith(name)), None)


def cost_usd(price: Sequence[float] | None, usage: Mapping[str, object]) -> float:
    """List price of one call's usage; 0 without a price."""
    tokens = [usage.get(name) or 0 for name in _COUNTERS]
    return sum(count * dollars for count, dollars in zip(tokens, price, strict=True)) / 1e6 if price else 0.0


class Researcher:
    """The role that rewrites train.py: a model behind the Messages API, or a command."""

    def __init__(self, model: str, effort: str | None = None, command: str | None = None,
                 prices: Sequence[float] | None = None, fallback: str | None = None, limits: Limits | None = None):
        """`prices` are dollars per million tokens: input and output, or all four columns of PRICES."""
        self._limits = limits or Limits()
        self._line = Command(command, self._limits) if command else Api(model, effort, fallback, self._limits)
        self._price = _four_prices(prices) if prices else None if command else list_price(model)
        self._now: Call | None = None
        self.spent_usd = 0.0

    @property
    def in_flight_usd(self) -> float:
        """What the call that is under way has cost so far."""
        return self._usd(self._now) if self._now else 0.0

    def most_usd(self, prompt: Prompt) -> float:
        """An upper bound of one call's list price."""
        return self._input_usd(prompt, ()) + cost_usd(self._price, {"output_tokens": self._line.max_tokens})

    def check(self) -> str:
        """One line about the model; raises SetupError for what the user must mend, Unavailable for what may pass."""
        return self._line.check()

    def propose(self, prompt: Prompt, tried: Collection[str], stop: threading.Event | None = None,
                limit_usd: float = math.inf) -> Draft:
        """A checked proposal; raises ProposalError (after the repairs) or Unavailable, both with what was billed."""
        return self._converse(prompt, tried, stop, limit_usd, REPAIRS)

    def repair(self, prompt: Prompt, code: str, printed: str, tried: Collection[str] = (),
               stop: threading.Event | None = None, limit_usd: float = math.inf) -> Draft:
        """One call after `code` crashed at once; what it printed goes along bounded and quoted."""
        return self._converse(replace(prompt, ask=crash_ask(code, printed), code=code), tried, stop, limit_usd, 0)

    def _converse(self, prompt: Prompt, tried: Collection[str], stop: threading.Event | None, limit_usd: float,
                  repairs: int) -> Draft:
        calls: list[Call] = []
        turns: list[tuple[str, str]] = []
        description = ""
        while True:
            try:
                call = self._ask(prompt, turns, calls, stop, limit_usd)
                _complain_of_end(call)
                answer = edits.parse(call.answer)
                description = answer.description
                code = edits.apply(answer, prompt.code)
                edits.check(code, tried)
            except Unavailable as error:
                error.usd = self._billed(calls)
                raise
            except ProposalError as error:
                if error.refused or len(turns) == repairs:
                    error.usd, error.source, error.description = self._billed(calls), self._source(calls), description
                    raise
                usable = call.stop_reason == "end_turn" and call.answer
                turns.append((call.answer if usable else "(no usable answer)", str(error)))
                continue
            source, usd, note = self._source(calls), self._billed(calls), self._note(calls, len(turns))
            return Draft(Proposal(description, code, source, answer.reasoning, usd, note), answer)

    def _ask(self, prompt: Prompt, turns: Turns, calls: list[Call], stop: threading.Event | None,
             limit_usd: float) -> Call:
        """One finished answer; passing faults are tried again for a short while."""
        failures, waited_s = 0, 0.0
        while True:
            if stop and stop.is_set():
                raise Unavailable("stopped while the model was being asked")
            max_tokens = self._affordable(prompt, turns, limit_usd - self._billed(calls))
            call = self._now = Call()
            self._line.call(call, prompt, turns, max_tokens, stop)
            calls.append(call)
            self._now = None
            self.spent_usd += self._usd(call)
            if call.fault is None:
                return call
            if self._line.adapt(call):
                continue
            failures += 1
            wait_s = next_wait_s(failures, call.fault.retry_after_s, random.random(), self._limits.first_wait_s)
            waited_s += wait_s
            if call.fault.fatal or failures == TRIES or waited_s > self._limits.patience_s:
                raise call.fault
            (stop or threading.Event()).wait(wait_s)

    def _affordable(self, prompt: Prompt, turns: Turns, left_usd: float) -> int:
        """Output tokens that what is left of the limit pays for in the worst case."""
        if self._price is None or left_usd == math.inf:
            return self._line.max_tokens
        tokens = int((left_usd - self._input_usd(prompt, turns)) * 1e6 / max(self._price[1], 1e-9))
        if tokens < LEAST_TOKENS:
            left = f"${max(0.0, left_usd):.2f}"
            raise Unavailable(f"what is left of --max-usd, {left}, does not pay for one more call", fatal=True)
        return min(tokens, self._line.max_tokens)

    def _input_usd(self, prompt: Prompt, turns: Turns) -> float:
        chars = len(prompt.text(self._line.brief)) + sum(len(part) for turn in turns for part in turn)
        return cost_usd(self._price, {"cache_creation_input_tokens": math.ceil(chars / CHARS_A_TOKEN)})

    def _usd(self, call: Call) -> float:
        """List price of a call; what a broken one wrote beyond its last report is estimated from its characters."""
        if call.hops():
            return sum(cost_usd(list_price(str(hop.get("model"))) or self._price, hop) for hop in call.hops())
        usage = dict(call.usage)
        if usage and call.stop_reason is None:
            written = math.ceil((sum(map(len, call.text)) + call.hidden_chars) / CHARS_A_TOKEN)
            usage["output_tokens"] = max(usage.get("output_tokens") or 0, written)
        return cost_usd(self._price, usage)

    def _billed(self, calls: Sequence[Call]) -> float:
        return sum(map(self._usd, calls))

    def _source(self, calls: Sequence[Call]) -> str:
        """Who answered: the model, the fallback that the server turned to, or the command."""
        served = [str(hop.get("model")) for hop in calls[-1].hops() if hop.get("type") == "fallback_message"]
        return served[-1] if served else self._line.name

    def _note(self, calls: Sequence[Call], repairs: int) -> str:
        source = self._source(calls)
        return "; ".join(filter(None, (
            ("", "repaired once", "repaired twice")[repairs],
            f"{self._line.name} declined, {source} answered" if source != self._line.name else "",
            "no list price known, usd counted as 0" if self._price is None else "",
            "history shortened to fit the model's context" if self._line.brief else "")))


def _complain_of_end(call: Call) -> None:
    """Raise ProposalError unless the model ended its answer itself."""
    if call.stop_reason == "refusal":
        category, request = one_line(call.category, 40) or "not named", one_line(call.request_id, 60) or "not named"
        raise ProposalError(f"the model declined (category {category}, request {request})", refused=True)
    if call.stop_reason == "max_tokens":
        raise ProposalError("The answer reached its length limit before it ended; nothing was applied. Think less and "
                            "send fewer, smaller search/replace blocks, not the whole file.")
    if call.stop_reason not in ("end_turn", "stop_sequence"):
        raise ProposalError(f"The answer ended with {one_line(call.stop_reason, 40)!r}, not by itself. Answer in text "
                            "alone: a description and search/replace blocks.")


def _four_prices(prices: Sequence[float]) -> Sequence[float]:
    """Input and output suffice: cache writes then count double the input, and reads the input; never too little."""
    return tuple(prices) if len(prices) == 4 else (prices[0], prices[1], 2 * prices[0], prices[0])
