"""Whose idea comes next: the model's, drafted while a trial runs, or the tuner's, so that the GPU never waits long.

Promises: what could not be tried is remembered, in a file and in the next prompt; what was billed is never forgotten;
the model being out costs no turn. It runs no trial and decides nothing about keeping: agent.py does.
"""

import argparse
import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lab import confirm, edits, ledger, runner, tuner
from lab.corpus import Data
from lab.display import Display
from lab.ledger import Experiment, Proposal, SetupError, Trial, one_line
from lab.prompt import Situation, build_prompt
from lab.researcher import Draft, Researcher, Unavailable, next_wait_s, reapply
from lab.store import Store

PATIENCE_S = 60.0       # how long the GPU waits for a proposal under way before the tuner takes the turn
MEND_WITHIN_S = 60.0    # a crash this early is worth a call that mends it
TUNER_MEMORY = 300      # how many earlier experiments the tuner learns from


def tuner_credit(history: Sequence[Experiment], tuner_share: float) -> float:
    """Turns of its share that the tuner has not taken, the next one counted; -1 at least, when it took some ahead."""
    credit = tuner_share
    for experiment in history[1:]:
        credit = min(2.0, max(-1.0, credit - (experiment.own.source == "tuner"))) + tuner_share
    return credit


def read_program(root: Path) -> str:
    """program.md as it stands. Raises SetupError when there is nothing to steer by."""
    path = root / "program.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not text.strip():
        raise SetupError("program.md is missing or empty: write what to research, or restore it with "
                         "git checkout -- program.md")
    return text


class Proposer:
    """The ideas of one session. `history` is the loop's own list, which grows while this reads it."""

    def __init__(self, options: argparse.Namespace, store: Store, data: Data, display: Display,
                 researcher: Researcher | None, history: Sequence[Experiment], runs: Path,
                 asked_to_stop: threading.Event, more: Callable[[], bool]):
        """runs: folder of the session's logs; more: whether another idea will be wanted, after the one under way."""
        self.options, self.store, self.data, self.display = options, store, data, display
        self.researcher, self.history, self.asked_to_stop, self.more = researcher, history, asked_to_stop, more
        self.runs = runs
        self.tried = store.fingerprints()
        self.prior = ledger.experiments(store.earlier_rows())
        self.unapplied = _read_lines(self.runs / "unapplied.jsonl")
        self.running = ""                           # description of the experiment under way
        self.paid_usd = sum(row.usd for experiment in history for row in experiment.rows)
        self.owed_usd = 0.0                         # billed for answers that never became a row; the next row pays
        self.spent_out = False                      # what is left of --max-usd pays for no further call
        self.back_at, self.failures = 0.0, 0        # when the model may be asked again, after so many faults in a row
        self.drafter = ThreadPoolExecutor(1)
        self.drafts: deque[tuple[Future[Draft], str]] = deque()  # each with the incumbent's code it was made for
        self.known: deque[tuple[str, float | None]] = deque(maxlen=TUNER_MEMORY)
        ideas = confirm.ideas(history)[-TUNER_MEMORY:]
        codes = store.codes(experiment.number for experiment in ideas)
        self.known.extend((codes[e.number], e.val_bpb) for e in ideas if e.number in codes)

    def close(self) -> None:
        self.drafter.shutdown(wait=True, cancel_futures=True)

    @property
    def best(self) -> Experiment | None:
        return ledger.incumbent(self.history)

    @property
    def share(self) -> float:
        """Of the turns, the tuner's."""
        return self.options.tuner_share if self.researcher else 1.0

    def learn(self, proposal: Proposal, trial: Trial) -> None:
        """What came of an idea, for the tuner."""
        self.known.append((proposal.code, trial.val_bpb))
        self.running = ""

    # -- money

    @property
    def spent_usd(self) -> float:
        return self.owed_usd + self.paid_usd

    def left_usd(self) -> float:
        limit = self.options.max_usd
        return float("inf") if limit is None else limit - self.spent_usd

    def bill(self, proposal: Proposal) -> float:
        """What the row of this proposal pays: its own price and everything that became no row."""
        usd, self.owed_usd = proposal.usd + self.owed_usd, 0.0
        self.paid_usd += usd
        return usd

    # -- whose turn

    def propose(self, who: str) -> Proposal | None:
        """The next idea: the model's if it is its turn ("llm") and it can be had, else the tuner's; None when stopped.

        Raises SetupError when there is nothing left to propose with.
        """
        if who == "llm" and time.monotonic() >= self.back_at:
            proposal = self._ask_researcher()
            if proposal or self.asked_to_stop.is_set():
                return proposal
        return self._ask_tuner()

    def _ask_tuner(self) -> Proposal:
        code = self.store.code(self.best.number)
        proposal = tuner.propose(code, list(self.known), len(self.history),
                                 lambda candidate: edits.fingerprint(candidate) not in self.tried)
        if proposal is None:
            raise SetupError("train.py has no ALL_CAPS number left for the tuner to vary: add one, or set "
                             "ANTHROPIC_API_KEY for a model")
        return proposal

    def _ask_researcher(self) -> Proposal | None:
        """The draft made while the last trial ran, re-applied when the incumbent has changed; None if there is none."""
        for _ in range(2):
            self.draft_ahead()
            draft, drafted_on = self._await_draft()
            if draft is None:
                return None
            code = self.store.code(self.best.number)
            try:
                if code != drafted_on or edits.fingerprint(draft.proposal.code) in self.tried:
                    draft = reapply(draft, code, self.tried)
                return draft.proposal
            except edits.ProposalError as error:  # it no longer applies: ask once more
                error.usd, error.source = draft.proposal.usd, draft.proposal.source
                self._remember(draft.proposal.description, error)
        return None

    # -- the model

    def draft_ahead(self) -> None:
        """Have the next proposal made in the background, against the incumbent as it is now."""
        if not self.drafts and self.best and self._may_ask():
            self.display.researcher(f"{self.options.model} drafts the next proposal")
            self._draft(lambda now, *rest: self.researcher.propose(build_prompt(now), *rest))

    def mend_ahead(self, proposal: Proposal, trial: Trial) -> None:
        """Have an early crash mended in the background, by one call with what it printed: an experiment of its own."""
        if (proposal.source in ("tuner", "baseline") or trial.total_seconds >= MEND_WITHIN_S
                or proposal.note.startswith("mended") or not self._may_ask()):
            return

        def mend(now: Situation, *rest) -> Draft:
            draft = self.researcher.repair(build_prompt(now), proposal.code, trial.log, *rest)
            note = "; ".join(filter(None, (f"mended after: {trial.reason}", draft.proposal.note)))
            return replace(draft, proposal=replace(draft.proposal, note=note))

        self._draft(mend)

    def _draft(self, make: Callable[..., Draft]) -> None:
        now, tried, limit_usd = self.situation(), frozenset(self.tried), self.left_usd()
        self.drafts.append((self.drafter.submit(make, now, tried, self.asked_to_stop, limit_usd), now.code))

    def _may_ask(self) -> bool:
        """Whether one more proposal of the model is wanted and allowed."""
        return (self.researcher is not None and self.more() and time.monotonic() >= self.back_at
                and self.left_usd() > 0)

    def _await_draft(self) -> tuple[Draft | None, str]:
        """The oldest draft and the code it was made for; None when it failed or is late. What failed is remembered.

        Nobody waits for the model while the tuner has turns of its share left, or can take the next one ahead.
        """
        if not self.drafts:
            return None, ""
        draft, drafted_on = self.drafts[0]
        ahead = self.share > 0 and tuner_credit(self.history, self.share) > 0
        until = time.monotonic() + (0 if ahead else PATIENCE_S)
        while not draft.done() and time.monotonic() < until and not self.asked_to_stop.is_set():
            self.display.event("tick", None)
            time.sleep(0.05)
        if not draft.done():
            self.display.say("the model has not answered yet: the tuner takes this turn")
            return None, ""
        self.drafts.popleft()
        try:
            answer = draft.result()
        except edits.ProposalError as error:
            self._remember(error.description, error)
        except Unavailable as error:
            self._without_model(error)
        else:
            self.failures = 0
            return answer, drafted_on
        return None, ""

    def _remember(self, description: str, error: edits.ProposalError) -> None:
        """Write down an idea that never ran, so that it is not proposed again, and what it cost."""
        self.owed_usd += error.usd
        self.display.say(f"an idea that could not be tried: {one_line(str(error), 160)}")
        idea = {"when": ledger.utc_now(), "description": description, "source": error.source,
                "reason": one_line(str(error), 500), "usd": error.usd}
        self.unapplied.append(idea)
        self.runs.mkdir(parents=True, exist_ok=True)
        with open(self.runs / "unapplied.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(idea) + "\n")

    def _without_model(self, error: Unavailable) -> None:
        """The API is out: for a while, and the tuner works meanwhile; or for good, which only `auto` survives."""
        self.owed_usd += error.usd
        if error.fatal and "--max-usd" in str(error):
            self.spent_out = True
            return
        if error.fatal and self.options.researcher != "auto":
            raise SetupError(str(error))
        if error.fatal:
            self.display.say(f"{error}; the tuner goes on alone")
            self.researcher = None
            return
        wait_s = next_wait_s(self.failures, error.retry_after_s, random.random())
        self.failures += 1
        self.back_at = time.monotonic() + wait_s
        self.display.say(f"{error}; the tuner works, the model is asked again in {wait_s:.0f} s")

    def situation(self) -> Situation:
        """All that a proposal may depend on, as it stands now."""
        best, history = self.best, tuple(self.history)
        facts = {"budget": f"{self.options.budget:g} s of training", "device": best.own.device,
                 "corpus": self.data.name, "VOCAB_SIZE": self.data.vocab_size, "MAX_SEQ_LEN": self.data.max_seq_len,
                 "training tokens": self.data.rows["train"] * self.data.max_seq_len}
        logs = {e.number: log for e in history[-3:] if (log := runner.read_log(self.runs, e.number, e.own.seed))}
        return Situation(read_program(self.store.root), facts, self.store.code(best.number), history,
                         tuple(self.unapplied), logs, self.prior, ledger.sigma(history),
                         ledger.misses(confirm.ideas(history)),
                         self.running if self.running != best.own.description else "")


def _read_lines(path: Path) -> list[dict]:
    """The objects of a JSON lines file; a torn last line is skipped."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
