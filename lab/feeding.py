"""The training part of a trial: hands out tokens while the budget lasts, and takes the file of what was learnt.

Promises: the first token starts the clock, nothing else does; a file that is whole too late, or that the trial could
still write to, ends it. It does not score and knows no witness.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lab import machine
from lab.channel import Channel, ContractBroken, stood_still, tell
from lab.corpus import Data
from lab.wire import FILE, PARAMS, PULL, ROWS, file_capacity, seal

LATE_SHARE, LATE_MOST = 0.003, 0.02      # of the budget: how late a file may be whole, beside its own median step
LATE_SLACK_S = 0.25                      # what a scheduler may add ...
LATE_STRETCH = 10.0                      # ... and how many times that where strangers take the machine
COPY_BYTES_A_S = 1e9                     # at which a file is written into memory that nobody has touched
MAX_PULL_ROWS = 1 << 16
CARD_EVERY_S = 1.0                       # how often a GPU is looked at


@dataclass
class Facts:
    """What is measured of one process, as it comes."""

    started_at: float
    clock_at: float | None = None    # when the budget began
    file_at: float | None = None     # when the file was whole
    ended_at: float | None = None
    tokens_m: float = 0.0
    params_m: float = 0.0
    rows_an_ask: int = 1
    file_bytes: int = 0
    memory_gb: float = 0.0
    at_clock: machine.Reading | None = None
    card_lost: list[bool] = field(default_factory=list)  # by the second: others used the GPU, or heat slowed it
    lost: float = 0.0                # share of the machine that it wanted and did not get
    steps_s: list[float] = field(default_factory=list)   # between two pulls
    notes: list[str] = field(default_factory=list)

    def start_s(self) -> float:
        return (self.clock_at or self.file_at or time.monotonic()) - self.started_at


def feed(channel: Channel, data: Data, spec: dict, limits_s: tuple[float, float], facts: Facts) -> None:
    """Hand out training tokens until the trial has written its file. Raises ContractBroken.

    The first pull starts the clock, or the end of the free start-up does. A file later than the budget and a step of
    the trial's own is a foul: tokens that were hoarded gain nothing. limits_s: of the whole start-up, and of its free
    part.
    """
    (start_limit_s, free_start_s), budget_s = limits_s, spec["budget"]
    rows, next_row, pulled_at = data.split("train"), 0, None
    deadline, why = facts.started_at + start_limit_s, f"asked for no data within {start_limit_s:.0f} s of its start"
    while True:
        operation, count = channel.request(deadline, why)
        now = time.monotonic()
        if operation == PULL and count <= MAX_PULL_ROWS:
            if facts.clock_at is None:
                facts.clock_at = start_clock(now, free_start_s, facts)
                facts.at_clock = machine.read(spec["parent"])
                if not channel.by_hand:
                    tell("clock", budget_s)
            if pulled_at is not None:
                facts.steps_s.append(now - pulled_at)
            pulled_at = now
            if spec["device"] == "cuda" and now - facts.clock_at > CARD_EVERY_S * len(facts.card_lost):
                facts.card_lost.append(machine.card_is_shared(spec["parent"]))
            deadline = facts.clock_at + budget_s + lateness(budget_s, facts.steps_s, 0, LATE_STRETCH)
            why = "trained past its budget: its file was not whole in time"
            spent = (now - facts.clock_at) / budget_s
            if spent >= 1:
                channel.answer(1.0, None, deadline, why)
                continue
            taken = np.take(rows, range(next_row, next_row + count), axis=0, mode="wrap")
            next_row = (next_row + count) % len(rows)
            stood_still(now)
            channel.answer(spent, taken, deadline, why)
            facts.tokens_m += count * data.max_seq_len / 1e6
        elif operation == PARAMS and not facts.params_m:
            facts.params_m = count / 1e3
            # While it writes; check_file asks more exactly.
            deadline += min(4000 * count, file_capacity()) / COPY_BYTES_A_S
        elif operation == ROWS and 0 < count <= MAX_PULL_ROWS:
            facts.rows_an_ask = count
        elif operation == FILE:
            facts.file_at, facts.file_bytes = now, count
            facts.lost = lost(spec, facts)
            check_file(budget_s, facts)
            return
        else:
            raise ContractBroken(f"protocol: request {operation!r} {count} while training")


def lost(spec: dict, facts: Facts) -> float:
    """Share of the machine that the trial wanted and did not get; of a GPU, the share of seconds."""
    if spec["device"] == "cuda":
        return sum(facts.card_lost) / max(1, len(facts.card_lost))
    return machine.lost_share(facts.at_clock, machine.read(spec["parent"]), spec["cores"])


def start_clock(now: float, free_start_s: float, facts: Facts) -> float:
    """When the budget begins: at the first pull, or where the free start-up ended before."""
    over_s = now - facts.started_at - free_start_s
    if over_s <= 0:
        return now
    facts.notes.append(f"start-up took {now - facts.started_at:.0f} s: {over_s:.0f} s of it counted")
    return now - over_s


def lateness(budget_s: float, steps_s: Sequence[float], n_bytes: int, stretch: float) -> float:
    """Seconds after the budget by which the file must be whole.

    stretch: how many times slower than alone the process may have been at the end.
    """
    step_s = statistics.median(steps_s) if steps_s else 0.0
    late_s = max(step_s, LATE_SHARE * budget_s) + n_bytes / COPY_BYTES_A_S
    return min(late_s, LATE_MOST * budget_s) + LATE_SLACK_S * stretch


def check_file(budget_s: float, facts: Facts) -> None:
    """Raise ContractBroken for a file that came too late or is too large."""
    if facts.file_bytes > file_capacity():
        raise ContractBroken(f"its file of {facts.file_bytes / 1e9:.1f} GB is larger than half of the memory")
    stretch = min(LATE_STRETCH, 1 / max(1 - facts.lost, 1e-6))
    late_s = lateness(budget_s, facts.steps_s, facts.file_bytes, stretch)
    if facts.clock_at is not None and facts.file_at > facts.clock_at + budget_s + late_s:
        late = facts.file_at - facts.clock_at - budget_s
        raise ContractBroken(f"trained past its budget: its file came {late:.2f} s after it, {late_s:.2f} are allowed")


def seal_file(file_fd: int) -> None:
    """Let nobody write to the file any more. Raises ContractBroken where the trial still holds it open for writing."""
    try:
        seal(file_fd)
    except OSError:
        raise ContractBroken("kept its file open for writing after it had said that it was whole") from None
