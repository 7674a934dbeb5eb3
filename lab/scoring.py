"""From logits to losses: asks a process for every row, scores a private copy of what it says.

Promises: targets and byte counts stay here. An answer that comes too late ends the process:
nothing may train between two answers. All answers have one type. It does not know whether it asks
a trial or a witness.
"""

import mmap
import os
import statistics
import time
from collections.abc import Sequence

import numpy as np

from lab.child import Child, ContractBroken
from lab.corpus import Data
from lab.ledger import Ending
from lab.wire import LOGIT_DTYPES, LOGIT_SLOTS, LOGITS, page_lock

SLOW_S, SLOW_MEDIANS = 1.0, 3.0          # an answer may take SLOW_S, or so many medians if that is more ...
SLOW_TRAINED = 10.0                      # ... but then at most so many times the training time of its rows
LEAST_ASKS = 64                          # a scoring has at least so many where it has the rows
CACHED_NUMBERS = 1 << 18                 # logits a CPU scores at a time: 3 times as fast in its cache
GPU_TOKENS = 2048                        # a GPU scores at a time: 64 MB at a vocabulary of 8192
LATE = "was not scored in time"


class Scorer:
    """Asks for logits and scores them on the device; takes its memory there before the trial does."""

    def __init__(self, data: Data, split: str, device: str):
        import torch

        self.rows = data.split(split)[: data.eval_rows[split]]   # (N, T + 1)
        self.on_gpu, self.row_logits = device == "cuda", data.max_seq_len * data.vocab_size
        n_tokens = GPU_TOKENS if self.on_gpu else max(1, CACHED_NUMBERS // data.vocab_size)
        where = "cuda" if self.on_gpu else "cpu"
        self.piece = torch.zeros(n_tokens, data.vocab_size, device=where)
        self.piece.log_softmax(-1)  # starts torch's threads while there are some to be had

    def losses(self, logits, targets: np.ndarray) -> np.ndarray:
        """float32 (B, T), nats, of logits (B, T, V) for targets (B, T). Raises ContractBroken."""
        import torch
        from torch.nn.functional import cross_entropy

        flat, wanted = logits.flatten(0, 1), torch.from_numpy(targets.astype(np.int64)).flatten()
        nats = torch.empty(len(wanted))
        for at in range(0, len(wanted), len(self.piece)):
            part = self.piece[: len(wanted) - at]
            here = slice(at, at + len(part))
            part.copy_(flat[here])  # the trial can still write to what it handed over
            nats[here] = cross_entropy(part, wanted[here].to(part.device), reduction="none")
        if not torch.isfinite(nats).all():
            raise ContractBroken("its logits give a loss that is not finite", Ending.CRASHED)
        return nats.view(targets.shape).numpy()

    def rows_an_ask(self, wanted: int, logits_bytes: int) -> int:
        """Rows of an ask: those of a training batch, if they fit into a slot and leave enough asks."""
        doubled = wanted if self.on_gpu else 2 * wanted  # fewer, larger; a GPU's memory is full
        fit = logits_bytes // (LOGIT_SLOTS * 4 * self.row_logits)
        return max(1, min(doubled, len(self.rows) // LEAST_ASKS, fit))

    def ask_all(self, child: Child, order: np.ndarray, inputs: np.ndarray, wanted_rows: int,
                row_s: float, first_s: float, slowest_s: float, limit_s: float) -> tuple[np.ndarray, str]:
        """(losses (N, T), type of the logits) of `inputs` (N, T), each row asked for in this order.

        row_s: what a row of training took; first_s: for each of the first answers; slowest_s: for any answer of a
        process that is slow each time; limit_s: for all. Raises ContractBroken.
        """
        import torch

        logits_bytes, n_places = os.fstat(child.logits_fd).st_size, inputs.shape[1]
        asks = batches(order, self.rows_an_ask(wanted_rows, logits_bytes))
        rehearsal = np.random.default_rng().integers(0, self.piece.shape[1], (len(asks[0]), n_places))
        questions = Questions(child, [rehearsal, *(inputs[rows] for rows in asks)], limit_s)
        losses, dtype, waits_s = np.empty(inputs.shape, np.float32), "", []
        with mmap.mmap(child.logits_fd, logits_bytes) as shared:
            slots = torch.frombuffer(shared, dtype=torch.uint8).chunk(LOGIT_SLOTS)
            asked_at = questions.send(0)
            for number, rows in enumerate([asks[0], *asks]):  # the rehearsal is as large as the first ask
                limit_s = first_s if number < 3 else slow_s(waits_s, len(rows) * row_s, slowest_s)
                dtype = answer_type(child, min(questions.deadline, asked_at + limit_s), dtype)
                waits_s.append(time.monotonic() - asked_at)
                kind = getattr(torch, dtype)
                logits = slots[number % LOGIT_SLOTS][: len(rows) * self.row_logits * kind.itemsize]
                if self.on_gpu:  # it copies and computes while this answer is scored
                    asked_at = questions.send(number + LOGIT_SLOTS - 1)
                    if number < LOGIT_SLOTS:
                        page_lock(logits)
                logits = logits.view(kind).view(len(rows), n_places, -1)
                if number:
                    losses[rows] = self.losses(logits, self.rows[rows, 1:])
                if not self.on_gpu:
                    asked_at = questions.send(number + 1)
            del logits, slots
        check_waits(waits_s, slow_s(waits_s, len(asks[0]) * row_s, slowest_s))
        return losses, dtype


class Questions:
    """What a process is asked: random tokens, then batches of rows, then nothing more.

    The random ones are a rehearsal: an error occurs there first, where the researcher may still read the log.
    """

    def __init__(self, child: Child, inputs: Sequence[np.ndarray], limit_s: float):
        """inputs: (rows, T) each, the rehearsal first."""
        self.child, self.inputs, self.n_sent = child, [*inputs, inputs[0][:0]], 0
        self.deadline = time.monotonic() + limit_s

    def send(self, number: int) -> float:
        """Send all unsent ones up to this one; return the time after that."""
        while self.n_sent <= min(number, len(self.inputs) - 1):
            if self.n_sent == 1:
                self.child.begin_rows()
            tokens = self.inputs[self.n_sent]
            self.child.answer(float(len(tokens)), tokens, self.deadline, LATE)
            self.n_sent += 1
        return time.monotonic()


def batches(order: np.ndarray, rows_an_ask: int) -> list[np.ndarray]:
    """Row numbers of each ask, all of one shape: the last one wraps around."""
    starts = range(0, len(order), rows_an_ask)
    return [order[np.arange(at, at + rows_an_ask) % len(order)] for at in starts]


def slow_s(waits_s: list[float], trained_s: float, most_s: float) -> float:
    """Seconds that an answer may take, from the other answers and from the training time of its rows.

    The other answers alone are no measure: a process that is always slow could train in the first one. The training
    time alone is none either: a process that pulls few rows seems to train slowly.
    """
    return max(SLOW_S, min(SLOW_MEDIANS * statistics.median(waits_s), SLOW_TRAINED * trained_s, most_s))


def check_waits(waits_s: list[float], limit_s: float) -> None:
    """Raise ContractBroken where an answer, one of the first maybe, took too long."""
    slowest_s = max(waits_s)
    if slowest_s > limit_s:
        raise ContractBroken(f"slow to answer: {slowest_s:.1f} s, where {limit_s:.1f} s are allowed: "
                             "nothing may train there", Ending.CRASHED)


def answer_type(child: Child, deadline: float, before: str) -> str:
    """Wait for an answer; the type of its logits. Raises ContractBroken."""
    why = "slow to answer: nothing may train between two answers"
    operation, code = child.request(deadline, why)
    if operation != LOGITS or code >= len(LOGIT_DTYPES):
        raise ContractBroken(f"protocol: request {operation!r} {code} while it is scored")
    if before not in ("", LOGIT_DTYPES[code]):
        raise ContractBroken(f"its logits changed their type from {before} to {LOGIT_DTYPES[code]}")
    return LOGIT_DTYPES[code]


def bits_per_byte(losses: np.ndarray, n_bytes: np.ndarray) -> float:
    """Of losses (N, T), nats, and the bytes (N, T) of their targets; without bytes none counts."""
    return float(losses.astype(np.float64)[n_bytes > 0].sum() / n_bytes.sum() / np.log(2))
