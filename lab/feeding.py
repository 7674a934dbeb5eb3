"""The training part of a trial: hands out tokens while the budget lasts, and takes the file of what was learnt.

Promises: the first token starts the clock, nothing else does. A file that is whole too late, that the trial can still
write to, or that is larger than what the trial wrote ends it. It does not score and knows no witness.

How large may a file be? It is whole before the trial sees a validation row, so whatever it holds was learnt in time: a
larger one gives nobody a better number. What a module holds is untrusted code's own word, in the trial as in the
witness, and a buffer of zeros makes it as large as one likes, so no bound comes from there. The bound is memory: the
referee's copy, what the witness reads, the tensors made of it and its module are four times the file, so the file may
fill a quarter of what was free at the trial's start. Pages that nobody wrote do not count, so that no file can be
claimed that the trial has not paid for with memory and time of its own.
"""

import os
import time

import numpy as np
import psutil

from lab import machine
from lab.child import Child, ContractBroken, stood_still, tell
from lab.corpus import Data
from lab.wire import FILE, PARAMS, PULL, ROWS, seal, sealable_memory

LATE_SHARE, LATE_MOST = 0.003, 0.02  # of the budget: how late a file may be whole, beside its own median step
LATE_SLACK_S = 0.25                  # what a scheduler may add, more where strangers take the machine ...
LEAST_OWN = 0.1                      # ... by 1 / the share of it that the trial had, at least this
COPY_BYTES_A_S = 1e9                 # at which a file is written into memory that nobody has touched
FILE_PART = 4                        # a file may fill this part of the free memory
MAX_PULL_ROWS = 1 << 16
CARD_EVERY_S = 1.0                   # how often a GPU is looked at


def file_memory() -> int:
    """Memory for the file of a trial that is about to start."""
    return sealable_memory("model", psutil.virtual_memory().available // FILE_PART)


class Training:
    """One trial until its file is whole, and what was measured of it so far."""

    def __init__(self, spec: dict, free_start_s: float):
        """free_start_s: beyond so much start-up the clock runs."""
        self.spec, self.budget_s, self.free_start_s = spec, spec["budget"], free_start_s
        self.started_at = time.monotonic()
        self.clock_at: float | None = None    # when the budget began
        self.file_at: float | None = None     # when the file was whole
        self.file_bytes = 0
        self.tokens_m = self.params_m = 0.0
        self.rows_an_ask = 1
        self.lost = 0.0                       # share of the machine that it wanted and did not get
        self.note = ""
        self.pulled_at: list[float] = []
        self.card_lost: list[bool] = []       # by the second: others used the GPU, or heat slowed it
        self.at_clock: machine.Reading | None = None

    def start_s(self) -> float:
        return (self.clock_at or self.file_at or time.monotonic()) - self.started_at

    def feed(self, child: Child, data: Data, file_fd: int, limit_s: float) -> None:
        """Hand out training tokens until the trial has written its file. Raises ContractBroken.

        limit_s: of the start-up. Tokens that were hoarded gain nothing: see `check_file`.
        """
        rows, next_row = data.split("train"), 0
        deadline, why = self.started_at + limit_s, f"asked for no data within {limit_s:.0f} s of its start"
        while self.file_at is None:
            operation, count = child.request(deadline, why)
            now = time.monotonic()
            if operation == PULL and count <= MAX_PULL_ROWS:
                self.count_pull(now)
                deadline = self.clock_at + (1 + LATE_MOST) * self.budget_s + LATE_SLACK_S / LEAST_OWN
                why = "trained past its budget: its file was not whole in time"
                if now >= self.clock_at + self.budget_s:
                    child.answer(1.0, None, deadline, why)
                    continue
                taken = np.take(rows, range(next_row, next_row + count), axis=0, mode="wrap")
                next_row = (next_row + count) % len(rows)
                stood_still(now)
                child.answer((now - self.clock_at) / self.budget_s, taken, deadline, why)
                self.tokens_m += count * data.max_seq_len / 1e6
            elif operation == PARAMS and not self.params_m:
                self.params_m = count / 1e3
            elif operation == ROWS and 0 < count <= MAX_PULL_ROWS:
                self.rows_an_ask = count
            elif operation == FILE:
                self.file_at, self.file_bytes = now, count
            else:
                raise ContractBroken(f"protocol: request {operation!r} {count} while training")
        self.lost = self.lost_share()
        self.check_file(file_fd)

    def count_pull(self, now: float) -> None:
        """The first pull starts the budget, or the end of the free start-up does."""
        if self.clock_at is None:
            over_s = now - self.started_at - self.free_start_s
            if over_s > 0:
                self.note = f"start-up took {now - self.started_at:.0f} s: {over_s:.0f} s of it counted"
            self.clock_at = now - max(0.0, over_s)
            self.at_clock = machine.read(self.spec["parent"])
            tell("clock", self.budget_s)
        self.pulled_at.append(now)
        if self.spec["device"] == "cuda" and now - self.clock_at > CARD_EVERY_S * len(self.card_lost):
            self.card_lost.append(machine.card_is_shared(self.spec["parent"]))

    def lost_share(self) -> float:
        """Of the machine's cores; of a GPU, the share of seconds."""
        if self.spec["device"] == "cuda":
            return sum(self.card_lost) / max(1, len(self.card_lost))
        return machine.lost_share(self.at_clock, machine.read(self.spec["parent"]), self.spec["cores"])

    def late_s(self) -> float:
        """How long after the budget the file may be whole: a step of its own, its bytes, and a scheduler's slack."""
        step_s = float(np.median(np.diff(self.pulled_at))) if len(self.pulled_at) > 1 else 0.0
        own_s = max(step_s, LATE_SHARE * self.budget_s) + self.file_bytes / COPY_BYTES_A_S
        return min(own_s, LATE_MOST * self.budget_s) + LATE_SLACK_S / max(LEAST_OWN, 1 - self.lost)

    def check_file(self, file_fd: int) -> None:
        """Let nobody write to the file any more. Raises ContractBroken where it is late, too large or held open."""
        late_s = self.file_at - self.clock_at - self.budget_s if self.clock_at else 0.0
        if late_s > self.late_s():
            raise ContractBroken(f"trained past its budget: its file came {late_s:.2f} s after it, {self.late_s():.2f} "
                                 "are allowed")
        try:
            seal(file_fd)
        except OSError:
            raise ContractBroken("kept its file open for writing after it had said that it was whole") from None
        facts = os.fstat(file_fd)
        written = facts.st_blocks * 512 if hasattr(os, "memfd_create") else facts.st_size
        if not 0 < self.file_bytes <= written:
            raise ContractBroken(f"its file of {self.file_bytes} bytes is larger than the {written} that it wrote")
