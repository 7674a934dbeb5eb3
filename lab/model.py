"""Asks a model for a proposal: the conversation, its retries and repairs, its price, its record.

Promises: an answer is used only if the model finished it and the resulting train.py passed every check.
What cannot be used is a ProposalError (what the model said) or Unavailable (the API is out), both with a
kind and with what was billed. Each call is on disk before its answer is used. A refusal is an outcome: it
is neither repeated nor reworded. What to do meanwhile is not decided here.
"""

import json
import math
import os
import random
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lab import edits
from lab.backend import KEYS, Api, Command, Limits, Outage, Reply, Turns, Unavailable, clean
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
MIN_TOKENS = 4_096             # an answer below this is not worth asking for
REPAIRS = 2                    # calls that show the model what was wrong with its answer
TRIES = 3                      # calls in a row before Unavailable
MAX_WAIT_S, MAX_RETRY_AFTER_S = 300, 900

_COUNTERS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


@dataclass(frozen=True)
class Draft:
    """A proposal, the answer that it came from, and the train.py that it changes."""

    proposal: Proposal
    answer: Answer
    base_code: str
    spare: tuple["Draft", ...] = ()  # the answer's further ideas, the best first


def rebase(draft: Draft, code: str, tried: Collection[str]) -> Draft:
    """The same change made to `code`, the incumbent of now. Raises ProposalError if that cannot be."""
    merged = edits.merge(draft.base_code, draft.proposal.code, code)
    if merged is None:
        raise ProposalError("The idea and what was kept since change the same lines.", Flaw.CONFLICT)
    edits.check(merged, tried)
    notes = [draft.proposal.note, "merged with a newer incumbent" if code != draft.base_code else ""]
    proposal = replace(draft.proposal, code=merged, note="; ".join(filter(None, notes)))
    return replace(draft, proposal=proposal, base_code=code)


def has_key() -> bool:
    """Whether the environment names a key, or a server that may need none."""
    return any((os.environ.get(name) or "").strip() for name in (*KEYS, "ANTHROPIC_BASE_URL"))


def next_wait_s(failures: int, retry_after_s: float | None, chance: float, first_s: float = 2) -> float:
    """Seconds until the next try, after `failures` in a row; `chance` in [0, 1) is the jitter.

    They double from first_s to 5 minutes. What the server asked for is obeyed up to 15 minutes.
    """
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


def write_call(path: Path, call: Mapping[str, object]) -> None:
    """Append one line, on disk when this returns. A torn last line is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        is_torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * is_torn + clean(json.dumps(call)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class Researcher:
    """The role that rewrites train.py: a model behind the Messages API, or a command."""

    def __init__(self, model: str, effort: str | None = None, command: str | None = None,
                 prices: Sequence[float] | None = None, fallback: str | None = None,
                 calls_path: Path | None = None, limits: Limits | None = None):
        """`prices`: dollars per million tokens, input and output or all of PRICES; `calls_path`: the record."""
        self.limits, self.calls_path = limits or Limits(), calls_path
        self.backend = Command(command, self.limits) if command else Api(model, effort, fallback, self.limits)
        self.name, self.check = self.backend.name, self.backend.check
        self.is_brief = False  # the model's context is too small for the history
        known = [PRICES[name] for name in PRICES for given in (model, fallback or "") if given.startswith(name)]
        if prices and len(prices) == 2:  # never too little: a cache write at twice the input, a read at the input
            known = [(*prices, 2 * prices[0], prices[0])]
        elif prices:
            known = [prices]
        is_priced = known and not command
        self.price = [max(column) for column in zip(*known, strict=True)] if is_priced else None

    def propose(self, prompt: Prompt, tried: Collection[str], stopped: threading.Event | None = None,
                limit_usd: float = math.inf) -> Draft:
        """A checked proposal. Raises ProposalError or Unavailable, both with what was billed."""
        return self._converse(prompt, tried, REPAIRS, stopped or threading.Event(), limit_usd)

    def repair(self, prompt: Prompt, candidate_code: str, log: str, tried: Collection[str] = (),
               stopped: threading.Event | None = None, limit_usd: float = math.inf) -> Draft:
        """One call after a candidate crashed. `prompt` is built on the candidate's parent.

        The draft holds the whole mended candidate, so that it merges with what was kept meanwhile.
        """
        asked = replace(prompt, ask=crash_ask(prompt.code, candidate_code, log), code=candidate_code)
        draft = self._converse(asked, tried, 0, stopped or threading.Event(), limit_usd)
        return replace(draft, base_code=prompt.code)

    def _converse(self, prompt: Prompt, tried: Collection[str], repairs: int, stopped: threading.Event,
                  limit_usd: float) -> Draft:
        """Ask until an answer passes every check, or the repairs are used up."""
        turns, flaws, usd, description = [], [], 0.0, ""
        while True:
            reply, cost = self._ask(prompt, turns, stopped, limit_usd - usd)
            usd += cost
            try:
                _check_ending(reply)
                answer = edits.parse(reply.text)
                description = answer.description
                draft = self._draft(prompt, answer, tried)
            except Unavailable as error:
                error.usd = usd
                raise
            except ProposalError as error:
                flaws.append(error.kind)
                if error.refused or len(flaws) > repairs:
                    error.usd, error.source, error.description = usd, self.name, description
                    raise
                said = reply.text if reply.stop_reason == "end_turn" else ""
                turns.append((said or "(no usable answer)", str(error)))
                if flaws[-2:] == [Flaw.FORM, Flaw.FORM]:
                    prompt, turns = form_alone(prompt, said, str(error)), []
            else:
                proposal = replace(draft.proposal, usd=usd, note=self._note(len(flaws)))
                return replace(draft, proposal=proposal)

    def _note(self, n_repairs: int) -> str:
        """What a row should say of how the answer came about."""
        return "; ".join(filter(None, (
            ("", "repaired once", "repaired twice")[n_repairs],
            "no list price known, usd counted as 0" if self.price is None else "",
            "history shortened to fit the model's context" if self.is_brief else "")))

    def _draft(self, prompt: Prompt, answer: Answer, tried: Collection[str]) -> Draft:
        """The answer as a draft. Raises ProposalError if its first idea cannot be used."""
        code = edits.apply(answer, prompt.code)
        edits.check(code, tried)
        spare, tried = [], (*tried, edits.fingerprint(code))
        for idea in answer.spare:
            with suppress(ProposalError):  # a further idea is a gift, not worth a repair
                spare.append(self._draft(prompt, idea, tried))
        proposal = Proposal(answer.description, code, self.name, answer.reasoning)
        return Draft(proposal, answer, prompt.code, tuple(spare))

    def _ask(self, prompt: Prompt, turns: Turns, stopped: threading.Event, limit_usd: float) -> tuple[Reply, float]:
        """A reply and what it cost. Passing faults are tried again for a short while."""
        usd, failures, waited_s = 0.0, 0, 0.0
        while True:
            reply, cost = self._call(prompt, turns, stopped, limit_usd - usd)
            usd += cost
            if reply.fault is None:
                return reply, usd
            if reply.fault.kind is Outage.TOO_LONG and not self.is_brief:
                self.is_brief = True
                continue
            failures += 1
            wait_s = next_wait_s(failures, reply.fault.retry_after_s, random.random(), self.limits.first_wait_s)
            waited_s += wait_s
            is_over = failures == TRIES or waited_s > self.limits.patience_s
            if is_over or reply.fault.kind is not Outage.PASSING:
                return reply, usd
            stopped.wait(wait_s)

    def _call(self, prompt: Prompt, turns: Turns, stopped: threading.Event, limit_usd: float) -> tuple[Reply, float]:
        """One call, on disk when this returns, and its price."""
        if stopped.is_set():
            return Reply(fault=Unavailable("stopped before the model was asked", Outage.STOPPED)), 0.0
        if self.is_brief:
            prompt = replace(prompt, history=prompt.brief)
        max_tokens = self._affordable(prompt, turns, limit_usd)
        if max_tokens < min(MIN_TOKENS, self.backend.max_tokens // 2):
            left = "what is left of --max-usd does not pay for one more call"
            return Reply(fault=Unavailable(left, Outage.BUDGET)), 0.0
        reply = self.backend.call(prompt, turns, max_tokens, stopped)
        usage = {name: _plausible(getattr(reply.usage, name, 0)) for name in _COUNTERS}
        if not reply.stop_reason or not usage["output_tokens"]:  # broken off: an estimate
            usage["output_tokens"] = max(usage["output_tokens"], math.ceil(reply.n_written / CHARS_A_TOKEN))
        usd = cost_usd(self.price, usage)
        if self.calls_path:
            write_call(self.calls_path, {
                "when": utc_now(), "model": self.name, "prompt": prompt.text(), "turns": turns,
                "answer": reply.text, "stop_reason": reply.stop_reason, "fault": str(reply.fault or ""),
                "usage": usage, "usd": usd})
        return reply, usd

    def _affordable(self, prompt: Prompt, turns: Turns, limit_usd: float) -> int:
        """Output tokens that the limit pays for in the worst case, at most what the model may write."""
        most = self.backend.max_tokens // (2 if self.is_brief else 1)  # a small context holds both
        if self.price is None or limit_usd == math.inf:
            return most
        n_chars = len(prompt.text()) + sum(len(said) for turn in turns for said in turn)
        input_usd = cost_usd(self.price, {_COUNTERS[2]: math.ceil(n_chars / CHARS_A_TOKEN)})
        return min(most, int((limit_usd - input_usd) * 1e6 / max(self.price[1], 1e-9)))


def _check_ending(reply: Reply) -> None:
    """Raise Unavailable if there is no answer, ProposalError unless the model ended it itself."""
    if reply.fault:
        raise reply.fault
    if reply.stop_reason == "refusal":
        raise ProposalError(f"the model declined ({reply.refusal})", Flaw.REFUSED)
    if reply.stop_reason not in ("end_turn", "stop_sequence"):
        reason = one_line(reply.stop_reason, 40)
        raise ProposalError(f"The answer did not end by itself ({reason}); nothing was applied. If it "
                            "reached its length limit, think less and send fewer, smaller blocks. Answer "
                            "in text alone: a description and search/replace blocks.", Flaw.CONTENT)
