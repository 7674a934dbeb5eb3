"""From logits to losses: asks an untrusted process for every row, scores a private copy of what it says.

Promises: targets and byte counts stay here; an answer that comes too late ends the process, for nobody may train
between two answers; all answers have one type. It does not know who is asked, a trial or a witness.
"""

import mmap
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lab.channel import Channel, ContractBroken
from lab.corpus import Data
from lab.ledger import Ending
from lab.wire import HOLDS, LOGIT_DTYPES, LOGITS, keep_freed_memory, page_lock

SLOW_S, SLOW_MEDIANS = 1.0, 3.0          # an answer takes at most so long; nobody trains there
LEAST_ASKS = 64                          # a scoring has at least so many where it has the rows
CACHED_NUMBERS = 1 << 18                 # logits that a CPU scores at a time: in its cache it is three times as fast
GPU_TOKENS = 2048                        # that a GPU scores at a time: 64 MB of float32 at a vocabulary of 8192
LATE = "was not scored in time"
SLOW = "slow to answer: nothing may train between two answers"


@dataclass(frozen=True)
class Answers:
    """What a process said of all rows."""

    losses: np.ndarray       # float32 (N, T), nats
    dtype: str               # of its logits
    holds_bytes: int         # of its parameters and buffers, when it first answered


class Scorer:
    """Losses of logits in shared memory, on the device, with a buffer that is taken before the trial needs memory."""

    def __init__(self, data: Data, split: str, device: str, n_threads: int | None):
        import torch

        keep_freed_memory()
        torch.set_num_threads(n_threads or torch.get_num_threads())
        self.data, self.device = data, device
        self.rows = data.split(split)[: data.eval_rows[split]]   # (N, T + 1)
        n_tokens = GPU_TOKENS if device == "cuda" else max(1, CACHED_NUMBERS // data.vocab_size)
        self.piece = torch.empty(n_tokens, data.vocab_size, device="cuda" if device == "cuda" else "cpu")

    def losses(self, logits, targets: np.ndarray) -> np.ndarray:
        """float32 (B, T), nats, of logits (B, T, V) against targets (B, T). Raises ContractBroken."""
        import torch

        flat, wanted = logits.flatten(0, 1), torch.from_numpy(targets.astype(np.int64)).flatten()
        nats = torch.empty(len(wanted))
        for at in range(0, len(wanted), len(self.piece)):
            part = self.piece[: len(wanted) - at]
            part.copy_(flat[at : at + len(part)])  # the trial can still write to what it handed over
            goal = wanted[at : at + len(part)].to(part.device)
            nats[at : at + len(part)] = torch.nn.functional.cross_entropy(part, goal, reduction="none")
        if not torch.isfinite(nats).all():
            raise ContractBroken("its logits give a loss that is not finite", Ending.CRASHED)
        return nats.view(targets.shape).numpy()

    def rows_an_ask(self, wanted: int, logits_bytes: int) -> int:
        """Rows of an ask: those of a training batch, as far as they fit into a slot and leave enough asks."""
        row_bytes = 4 * self.data.max_seq_len * self.data.vocab_size
        doubled = wanted if self.device == "cuda" else 2 * wanted  # fewer, larger; a GPU's memory is full
        return max(1, min(doubled, len(self.rows) // LEAST_ASKS, logits_bytes // 2 // row_bytes))


def batches(order: np.ndarray, rows_an_ask: int) -> list[np.ndarray]:
    """Row numbers of each ask, all of one shape: the last one wraps around."""
    n_rows = len(order)
    return [order[np.arange(at, at + rows_an_ask) % n_rows] for at in range(0, n_rows, rows_an_ask)]


def ask_all(channel: Channel, scorer: Scorer, asks: Sequence[np.ndarray], inputs: np.ndarray, logits_fd: int,
            first_s: float, deadline: float) -> Answers:
    """Ask for every row once. Raises ContractBroken.

    asks: row numbers (B,) of each ask; inputs (N, T). A GPU computes the next answer while this one is scored; on a CPU
    both would share its cores and slow each other.
    """
    import torch

    overlaps, waits_s, dtype, holds_bytes = scorer.device == "cuda", [], "", 0
    losses = np.empty(inputs.shape, np.float32)

    def send(number: int) -> None:
        if number < len(asks):
            rows = asks[number]
            channel.answer(float(len(rows)), inputs[rows], deadline, LATE)

    with mmap.mmap(logits_fd, os.fstat(logits_fd).st_size) as shared:
        slots = torch.frombuffer(shared, dtype=torch.uint8).chunk(2)
        sent_at = time.monotonic()
        send(0)
        for number, rows in enumerate(asks):
            until = min(deadline, sent_at + _patience(waits_s, first_s))
            if number == 0:
                holds_bytes = _holds(channel, until)
            dtype = _answer_type(channel, until, dtype)
            waits_s.append(time.monotonic() - sent_at)
            if overlaps:
                send(number + 1)
                sent_at = time.monotonic()
            kind = getattr(torch, dtype)
            shape = (len(rows), scorer.data.max_seq_len, scorer.data.vocab_size)
            logits = slots[number % 2][: int(np.prod(shape)) * kind.itemsize].view(kind).view(shape)
            if overlaps and number < 2:
                page_lock(logits, logits.numel() * kind.itemsize)
            losses[rows] = scorer.losses(logits, scorer.rows[rows, 1:])
            if not overlaps:
                sent_at = time.monotonic()
                send(number + 1)
        del logits, slots
    channel.answer(0.0, None, deadline, LATE)
    _check(waits_s)
    return Answers(losses, dtype, holds_bytes)


def _holds(channel: Channel, deadline: float) -> int:
    """What the module holds at its first answer, by its own word. Raises ContractBroken."""
    operation, count = channel.request(deadline, SLOW)
    if operation != HOLDS:
        raise ContractBroken(f"protocol: request {operation!r} {count} while it is scored")
    return count


def _answer_type(channel: Channel, deadline: float, before: str) -> str:
    """Wait for an answer; the type of its logits. Raises ContractBroken."""
    operation, code = channel.request(deadline, SLOW)
    if operation != LOGITS or code >= len(LOGIT_DTYPES):
        raise ContractBroken(f"protocol: request {operation!r} {code} while it is scored")
    if before not in ("", LOGIT_DTYPES[code]):
        raise ContractBroken(f"its logits changed their type from {before} to {LOGIT_DTYPES[code]}")
    return LOGIT_DTYPES[code]


def _patience(waits_s: Sequence[float], first_s: float) -> float:
    """Seconds that the next answer may take; the first ones are looked at again when all are known."""
    return first_s if len(waits_s) < 3 else _limit_s(waits_s)


def _limit_s(waits_s: Sequence[float]) -> float:
    return max(SLOW_S, SLOW_MEDIANS * statistics.median(waits_s))


def _check(waits_s: Sequence[float]) -> None:
    """Raise ContractBroken where an answer took longer than three medians of the others."""
    limit_s = _limit_s(waits_s)
    if max(waits_s) > limit_s:
        raise ContractBroken(f"slow to answer: {max(waits_s):.1f} s, where {limit_s:.1f} s are allowed: nothing may "
                             "train there")


def bits_per_byte(losses: np.ndarray, n_bytes: np.ndarray) -> float:
    """Of losses (N, T) in nats and the bytes (N, T) of their targets; a target without bytes does not count."""
    return float(losses.astype(np.float64)[n_bytes > 0].sum() / n_bytes.sum() / np.log(2))
