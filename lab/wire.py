"""The bytes between a trial and its referee: requests, answers, logits, and the file of what a model learnt.

Both ends import this, so each fact of the wire stands once. It is copied beside prepare.py into a trial's folder and
imports nothing of the project. Nothing here is trusted in a trial's process; the referee checks what it reads.
"""

import ctypes
import fcntl
import json
import mmap
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

# ---------------------------------------------------------------------------------------------------------------------
# The wire. A request is nine bytes, an operation and a count; answers come down the token pipe.
# PULL rows -> a float64, the fraction of the budget spent, and while that is below 1, rows of MAX_SEQ_LEN + 1 tokens.
# FILE bytes, LOGITS dtype -> a float64, the number of rows to answer for next (0: done), and their MAX_SEQ_LEN inputs.
# ROWS and PARAMS, and HOLDS, the bytes of the module's tensors at its first answer, have no answer. Tokens are int16.
# The logits of ask i go to slot i % 2 of the shared logits, so that the referee scores one ask while the trial
# computes the next.
# ---------------------------------------------------------------------------------------------------------------------

REQUEST = struct.Struct("<cQ")
ANSWER = struct.Struct("<d")
PULL, ROWS, PARAMS, FILE, HOLDS, LOGITS = b"p", b"r", b"n", b"f", b"h", b"l"
LOGIT_DTYPES = ("float32", "bfloat16", "float16")  # LOGITS names one by its place here
LOGIT_SLOT_BYTES = 1 << 29                         # address space; only what a batch fills becomes memory
BLOCK_BYTES = 1 << 20                              # copied at a time: in a cache, three times as fast as 16 MB
HEADER_BYTES = 1 << 20                             # a file's header is shorter
TRIAL_VARIABLE = "AUTORESEARCH_TRIAL"              # JSON: what Link and prepare.py read
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3        # of glibc's malloc.h
DTYPE_NAMES = {  # safetensors' names of torch's types
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


class Link:
    """The trial's end of the wire."""

    def __init__(self, trial: dict, referee: subprocess.Popen | None):
        self.referee = referee                # our own child when train.py was started by hand
        self.is_witness: bool = trial["is_witness"]
        self.budget_s: float = trial["budget"]
        self.tokens = os.fdopen(trial["tokens_fd"], "rb", buffering=0)
        self.events_fd: int = trial["events_fd"]
        self.logits = mmap.mmap(trial["logits_fd"], trial["logits_bytes"])
        self.file_fd: int = trial["file_fd"]
        self.file_bytes: int = trial["file_bytes"]  # of what the witness loads
        self.started_at: float | None = None  # the local view of the referee's clock, for `progress` alone
        self.pulled_rows: int | None = None   # asked for and not yet read

    def ask(self, operation: bytes, count: int) -> None:
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


def sealable_memory(name: str, n_bytes: int) -> int:
    """A descriptor of anonymous shared memory that can be sealed (Linux); pages become memory when they are written."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, n_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return fd
    with tempfile.TemporaryFile() as file:  # macOS: the same memory, without seals
        os.ftruncate(file.fileno(), n_bytes)
        return os.dup(file.fileno())


def seal(fd: int) -> None:
    """Let nobody write to the memory any more (Linux). Raises OSError while it is mapped for writing anywhere."""
    if hasattr(fcntl, "F_ADD_SEALS"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)


def blocks(fd: int, n_bytes: int) -> Iterator[bytes]:
    """The first bytes of a file, without its position, which whoever shares the descriptor could move."""
    for at in range(0, n_bytes, BLOCK_BYTES):
        yield os.pread(fd, min(BLOCK_BYTES, n_bytes - at), at)


def sealed_copy(fd: int, n_bytes: int) -> int:
    """A new file of the same bytes. Position, locks and holes of the old one are words that a trial could leave."""
    copy_fd = sealable_memory("copy", n_bytes)
    for block in blocks(fd, n_bytes):
        os.write(copy_fd, block)
    os.lseek(copy_fd, 0, os.SEEK_SET)
    seal(copy_fd)
    return copy_fd


def logits_memory(row_logits: int) -> tuple[int, int]:
    """(descriptor, bytes) of two slots of logits, each of whole rows."""
    n_bytes = 2 * 4 * row_logits * max(1, LOGIT_SLOT_BYTES // (4 * row_logits))
    return sealable_memory("logits", n_bytes), n_bytes


def file_capacity() -> int:
    """Bytes that a model's file may have: half of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free: to return megabytes and fetch them anew each time is 1/8 of a CPU step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that every version takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def page_lock(start, n_bytes: int) -> None:
    """Have copies between this memory and the GPU run at the speed of the bus; where that is refused, they are slower.

    start: tensor at its beginning.
    """
    import torch

    runtime = torch.cuda.cudart()
    if runtime.cudaHostRegister(start.data_ptr(), n_bytes, 0) != runtime.cudaError.success:
        with suppress(RuntimeError):
            torch.ones(1, device="cuda").add_(1)  # takes up the error, which the next call would raise otherwise


def dtype_name(dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write_tensors(tensors: dict, settings: dict[str, str], fd: int) -> int:
    """Write tensors in safetensors' layout; return the bytes. The memory is unmapped again, so it can be sealed."""
    import torch

    ordered = sorted(tensors.items(), key=lambda pair: (-pair[1].element_size(), pair[0]))  # keeps each one aligned
    header: dict = {"__metadata__": settings}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPE_NAMES[dtype_name(tensor.dtype)], "shape": list(tensor.shape),
                        "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    memory = mmap.mmap(fd, start + end)
    memory[:start] = struct.pack("<Q", len(text)) + text
    data = torch.frombuffer(memory, dtype=torch.uint8)[start:]
    for name, tensor in ordered:
        begin, stop = header[name]["data_offsets"]
        if begin < stop:
            data[begin:stop].copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
    del data
    memory.close()
    return start + end


def read_tensors(fd: int, n_bytes: int) -> tuple[dict, dict[str, str]]:
    """(tensors by name, settings) of such a file, on the CPU."""
    from safetensors.torch import load

    with mmap.mmap(fd, n_bytes, prot=mmap.PROT_READ) as memory:
        content = memory[:]
    length = struct.unpack("<Q", content[:8])[0]
    return load(content), json.loads(content[8:8 + length])["__metadata__"]
