"""The fixed ground under every experiment: constants, data, tokenizer, and the two calls that train.py makes.

    from prepare import VOCAB_SIZE, MAX_SEQ_LEN, SEED, device, stream, finish

An experiment never changes this file. It promises the same bytes in the same order on every machine (the manifest's
hash says which bytes), and that a trial sees nothing but training tokens until its budget is spent. It does not judge:
clock, targets and score belong to lab/referee.py, at the other end of the pipes.
"""

import argparse
import ctypes
import fcntl
import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

DEFAULT_BUDGET_S = 300.0

# ---------------------------------------------------------------------------------------------------------------------
# The contract of a trial, both ends: what train.py calls, and the messages that lab/referee.py answers.
#
# Requests are five bytes, an operation and a count. Answers come down the token pipe. To PULL: a float64, the fraction
# of the budget spent, and while that is below 1, `count` rows of MAX_SEQ_LEN + 1 tokens. To FINISH and LOGITS: a
# float64, the number of rows to score next (0: done), and those rows of MAX_SEQ_LEN inputs. Tokens are int16. The
# logits of ask i go to slot i % 2 of the shared buffer: the referee scores one while the trial computes the other.
# ---------------------------------------------------------------------------------------------------------------------

REQUEST = struct.Struct("<cI")
ANSWER = struct.Struct("<d")
PULL, PARAMS, FINISH, LOGITS = b"p", b"n", b"f", b"l"  # counts: rows; thousands; rows an ask at most; dtype
LOGIT_DTYPES = ("float32", "bfloat16", "float16")      # LOGITS names one by its place here
LOGIT_SLOT_BYTES = 1 << 29                             # address space; only what a batch fills becomes memory
TRIAL_VARIABLE = "AUTORESEARCH_TRIAL"                  # JSON: what _Link and _constants read
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3            # of glibc's malloc.h


@dataclass(frozen=True)
class Batch:
    """One batch of training tokens on the device."""

    x: "torch.Tensor"  # noqa: F821  int64 (B, T)
    y: "torch.Tensor"  # noqa: F821  int64 (B, T), the token after each of x
    progress: float    # fraction of the budget spent, in [0, 1)


class _Link:
    """The trial's end of the contract: requests out, tokens in, logits into the shared buffer."""

    def __init__(self, trial: dict, referee: subprocess.Popen | None):
        self.referee = referee                # our own child when train.py was started by hand
        self.budget_s: float = trial["budget"]
        self.tokens = os.fdopen(trial["tokens_fd"], "rb", buffering=0)
        self.events_fd: int = trial["events_fd"]
        self.buffer = mmap.mmap(trial["buffer_fd"], trial["buffer_bytes"])
        self.started_at: float | None = None  # the local view of the referee's clock, for `progress` alone
        self.pulled_rows: int | None = None   # asked for and not yet read
        self.rows_an_ask = 1

    def ask(self, operation: bytes, count: int = 0) -> None:
        os.write(self.events_fd, REQUEST.pack(operation, count))

    def read(self, n_bytes: int) -> bytearray:
        data = bytearray(n_bytes)
        view, done = memoryview(data), 0
        while done < n_bytes:
            got = self.tokens.readinto(view[done:])
            if not got:
                raise SystemExit("the referee is gone")
            done += got
        return data

    def answer(self) -> float:
        return ANSWER.unpack(self.read(ANSWER.size))[0]

    def rows(self, n_rows: int, row_tokens: int) -> np.ndarray:
        return np.frombuffer(self.read(2 * n_rows * row_tokens), dtype=np.int16).reshape(n_rows, row_tokens)

    def pull(self, n_rows: int) -> None:
        self.ask(PULL, n_rows)
        self.pulled_rows = n_rows

    def pulled(self, row_tokens: int) -> tuple[float, np.ndarray]:
        """(progress, rows) of the pull under way; no rows once the budget is spent."""
        progress, n_rows, self.pulled_rows = self.answer(), self.pulled_rows, None
        rows = self.rows(n_rows if progress < 1 else 0, row_tokens)
        self.started_at = self.started_at or time.monotonic()
        return max(progress, (time.monotonic() - self.started_at) / self.budget_s), rows


@cache
def _link() -> _Link:
    """The one link of this process; a train.py that was started by hand gets a referee of its own."""
    text = os.environ.get(TRIAL_VARIABLE)
    return _Link(json.loads(text), None) if text else _Link(*_start_referee())


def _start_referee() -> tuple[dict, subprocess.Popen]:
    """Start a referee for this process, which nobody started as a trial: `python train.py`."""
    import torch

    from lab.corpus import default_data, open_data

    data = open_data(os.environ.get("AUTORESEARCH_DATA") or default_data())
    budget_s = float(os.environ.get("AUTORESEARCH_BUDGET") or DEFAULT_BUDGET_S)
    tokens_read, tokens_write = os.pipe()
    events_read, events_write = os.pipe()
    buffer_fd, buffer_bytes = logit_buffer(data)
    spec = {"data": str(data.folder), "split": "val", "budget": budget_s, "seed": _constants()["SEED"],
            "device": str(_constants()["device"]), "threads": torch.get_num_threads(), "tokens_fd": tokens_write,
            "events_fd": events_read, "buffer_fd": buffer_fd, "buffer_bytes": buffer_bytes}
    referee = subprocess.Popen([sys.executable, "-m", "lab.referee", "--serve", json.dumps(spec)],
                               cwd=Path(__file__).parent, pass_fds=(tokens_write, events_read, buffer_fd),
                               env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    os.close(tokens_write)
    os.close(events_read)
    return spec | {"tokens_fd": tokens_read, "events_fd": events_write}, referee


def logit_buffer(data) -> tuple[int, int]:
    """(descriptor, bytes) of anonymous shared memory for two slots of logits, sealed so that no trial can resize it."""
    row_bytes = 4 * data.max_seq_len * data.vocab_size
    n_bytes = 2 * row_bytes * max(1, LOGIT_SLOT_BYTES // row_bytes)
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("logits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, n_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return fd, n_bytes
    with tempfile.TemporaryFile() as file:  # macOS: the same memory, without seals
        os.ftruncate(file.fileno(), n_bytes)
        return os.dup(file.fileno()), n_bytes


def pick_device() -> str:
    """The best device torch can use here: cuda, mps or cpu (AUTORESEARCH_DEVICE overrides)."""
    import torch

    if forced := os.environ.get("AUTORESEARCH_DEVICE"):
        return forced
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free: to return megabytes and fetch them anew each time is 1/8 of a CPU step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that every version takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@cache
def _constants() -> dict:
    import torch

    keep_freed_memory()
    if text := os.environ.get(TRIAL_VARIABLE):
        trial = json.loads(text)
        sizes, seed = (trial["vocab_size"], trial["max_seq_len"]), trial["seed"]
    else:
        from lab.corpus import SIZES, default_data, open_data

        name, seed = os.environ.get("AUTORESEARCH_DATA") or default_data(), int(os.environ.get("AUTORESEARCH_SEED", 0))
        sizes = SIZES.get(name) or (open_data(name).vocab_size, open_data(name).max_seq_len)
    return {"VOCAB_SIZE": sizes[0], "MAX_SEQ_LEN": sizes[1], "SEED": seed, "device": torch.device(pick_device())}


def __getattr__(name: str):
    """VOCAB_SIZE, MAX_SEQ_LEN, SEED and device are looked up when train.py imports them: importing costs nothing."""
    if name not in ("VOCAB_SIZE", "MAX_SEQ_LEN", "SEED", "device"):
        raise AttributeError(f"module 'prepare' has no attribute {name!r}")
    return _constants()[name]


def stream(batch_size: int, seq_len: int) -> Iterator[Batch]:
    """Training batches of shape (batch_size, seq_len) until the budget is spent; the first one starts the clock.

    seq_len divides MAX_SEQ_LEN. The next rows are asked for before a batch is handed over, so no step waits for them.
    """
    link, max_seq_len = _link(), _constants()["MAX_SEQ_LEN"]
    if batch_size < 1 or seq_len < 1 or max_seq_len % seq_len:
        raise ValueError(f"stream({batch_size}, {seq_len}): seq_len must divide {max_seq_len}, batch_size be positive")
    parts = max_seq_len // seq_len  # sequences a row; neighbours share one token, the last target of one
    link.rows_an_ask = max(1, batch_size // parts)
    to_device = _stager(batch_size, seq_len)
    spare = np.empty((0, seq_len + 1), np.int16)
    link.pull(-(-batch_size // parts))
    while True:
        progress, rows = link.pulled(max_seq_len + 1)
        if progress >= 1:
            return
        cut = np.lib.stride_tricks.sliding_window_view(rows, seq_len + 1, axis=1)[:, ::seq_len]  # (rows, parts, T + 1)
        ready = np.concatenate([spare, cut.reshape(-1, seq_len + 1)])
        batch, spare = ready[:batch_size], ready[batch_size:]
        link.pull(-(-(batch_size - len(spare)) // parts) if len(spare) < batch_size else 0)
        tokens = to_device(batch)
        yield Batch(tokens[:, :-1].long(), tokens[:, 1:].long(), progress)


def _stager(batch_size: int, seq_len: int):
    """A function that brings int16 (B, T + 1) to the device.

    On CUDA through two pinned buffers in turn, each free again only when the copy out of it has ended: the copy of one
    batch overlaps the computation of another, and a buffer is never rewritten under a pending copy.
    """
    import torch

    device = _constants()["device"]
    if device.type != "cuda":
        return lambda batch: torch.from_numpy(batch.copy()).to(device)
    slots = [(torch.empty(batch_size, seq_len + 1, dtype=torch.int16).pin_memory(), torch.cuda.Event()) for _ in "ab"]

    def to_device(batch: np.ndarray) -> torch.Tensor:
        slots.reverse()
        pinned, copied = slots[0]
        copied.synchronize()
        pinned.copy_(torch.from_numpy(batch))
        tokens = pinned.to(device, non_blocking=True)
        copied.record()
        return tokens

    return to_device


def page_lock(start, n_bytes: int) -> None:
    """Have copies between this memory and the GPU run at the speed of the bus; where that is refused, they are slower.

    start: tensor at its beginning.
    """
    import torch

    runtime = torch.cuda.cudart()
    if runtime.cudaHostRegister(start.data_ptr(), n_bytes, 0) != runtime.cudaError.success:
        with suppress(RuntimeError):
            torch.ones(1, device="cuda").add_(1)  # takes up the error, which would else be raised by whoever is next


def finish(model) -> None:
    """Have the referee score `model(x: int64 (B, T)) -> logits (B, T, VOCAB_SIZE)`; nothing trains after this call."""
    import torch

    link, fixed = _link(), _constants()
    device, shape = fixed["device"], (fixed["MAX_SEQ_LEN"], fixed["VOCAB_SIZE"])
    if link.pulled_rows is not None:  # train.py left the loop before the stream ended
        link.pulled(fixed["MAX_SEQ_LEN"] + 1)
    if isinstance(model, torch.nn.Module):
        model.eval()
        link.ask(PARAMS, round(sum(p.numel() for p in model.parameters()) / 1000))
    link.ask(FINISH, link.rows_an_ask * (2 if device.type == "cpu" else 1))  # fewer, larger; a GPU's memory is full
    slots = torch.frombuffer(link.buffer, dtype=torch.uint8).chunk(2)
    if device.type == "cuda":
        page_lock(slots[0], len(link.buffer))
    ask = 0
    with torch.no_grad():
        while n_rows := int(link.answer()):
            x = torch.from_numpy(link.rows(n_rows, shape[0]).astype(np.int64)).to(device)
            logits = model(x)
            if tuple(logits.shape) != (n_rows, *shape):
                raise ValueError(f"logits of shape {tuple(logits.shape)}, expected {(n_rows, *shape)}")
            if (dtype := str(logits.dtype).removeprefix("torch.")) not in LOGIT_DTYPES:
                raise ValueError(f"logits of type {dtype}, expected one of {', '.join(LOGIT_DTYPES)}")
            slot = slots[ask % 2][: logits.numel() * logits.element_size()].view(logits.dtype)
            slot.copy_(logits.reshape(-1))  # on CUDA this waits for the copy
            link.ask(LOGITS, LOGIT_DTYPES.index(dtype))
            ask += 1
    if link.referee:
        link.referee.wait()  # it prints the summary


def main() -> int:
    """`python prepare.py --data builtin|climbmix|PATH`: prepare a corpus, and say what it holds."""
    from lab.corpus import default_data, open_data, progress_bar
    from lab.ledger import SetupError

    parser = argparse.ArgumentParser(description="Prepare a corpus once; agent.py does it by itself.")
    parser.add_argument("--data", metavar="D", default=default_data(), help="builtin, climbmix, or a .txt, .jsonl or "
                        ".parquet file or a folder of them (default here: %(default)s)")
    try:
        with progress_bar() as report:
            data = open_data(parser.parse_args().data, report)
    except SetupError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{data.name}: data {data.hash[:8]}, vocabulary {data.vocab_size}, rows of {data.max_seq_len} tokens: "
          + ", ".join(f"{split} {n}" for split, n in data.rows.items()) + f", in {data.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
