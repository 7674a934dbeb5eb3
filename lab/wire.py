"""The bytes between a trial and its referee: requests, answers, logits, and a model's file.

Both ends import this. It is copied beside prepare.py into a trial's folder and imports nothing of the
project. In a trial's process nothing of it can be trusted: the referee checks what it reads.
"""

import fcntl
import json
import mmap
import os
import struct
import sys
import tempfile
import time
from contextlib import suppress

import numpy as np

# A request is nine bytes, an operation and a count. Answers come down the token pipe: a float64, and
# rows of int16 tokens.
#   PULL rows                 -> the fraction of the budget spent; while below 1, rows of T + 1 tokens
#   FILE bytes, LOGITS dtype  -> how many rows to answer for next (0: done), and their T inputs
#   ROWS of a batch, PARAMS   -> nothing
# The logits of ask i go to slot i % 3 of the shared memory. On a GPU one ask is scored there while the
# trial copies the next one and computes the one after it.
REQUEST = struct.Struct("<cQ")
ANSWER = struct.Struct("<d")
PULL, ROWS, PARAMS, FILE, LOGITS = b"p", b"r", b"n", b"f", b"l"
LOGIT_DTYPES = ("float32", "bfloat16", "float16")  # LOGITS names one by its place here
LOGIT_SLOTS = 3
LOGIT_SLOT_BYTES = 1 << 29             # address space; only what a batch fills becomes memory
TRIAL_VARIABLE = "AUTORESEARCH_TRIAL"  # JSON: what Link and prepare.py read
# Make glibc keep the memory of freed tensors, in huge pages. Returning and fetching it again takes 1/8
# of a CPU step, and the placement of small pages made equal code differ by another 1/8.
KEEP_FREED_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
DTYPE_NAMES = {  # safetensors' names of torch's types
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


class Link:
    """The trial's end of the wire."""

    def __init__(self, trial: dict):
        self.is_witness: bool = trial["file_bytes"] > 0
        self.budget_s: float = trial["budget"]
        self.tokens = os.fdopen(trial["tokens_fd"], "rb")
        self.events_fd: int = trial["events_fd"]
        self.logits = mmap.mmap(trial["logits_fd"], trial["logits_bytes"])
        self.file_fd: int = trial["file_fd"]
        self.file_bytes: int = trial["file_bytes"]  # of what the witness loads
        self.started_at: float | None = None        # on a clock of its own, for `progress` alone
        self.pulled_rows: int | None = None         # asked for and not yet read

    def ask(self, operation: bytes, count: int) -> None:
        os.write(self.events_fd, REQUEST.pack(operation, count))

    def read(self, n_bytes: int) -> bytes:
        data = self.tokens.read(n_bytes)
        if len(data) < n_bytes:
            raise SystemExit("the referee is gone")
        return data

    def answer(self) -> float:
        return ANSWER.unpack(self.read(ANSWER.size))[0]

    def rows(self, n_rows: int, row_tokens: int) -> np.ndarray:
        data = self.read(2 * n_rows * row_tokens)
        return np.frombuffer(data, np.int16).reshape(n_rows, row_tokens)

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
    """A descriptor of shared memory that can be sealed (Linux); only written pages take memory."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, n_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return fd
    with tempfile.TemporaryFile() as file:  # macOS: the same memory, without seals
        os.ftruncate(file.fileno(), n_bytes)
        return os.dup(file.fileno())


def take_pages(fd: int, n_bytes: int) -> None:
    """Allocate its first pages in advance (Linux): the first write to untouched memory takes 1 s a GB."""
    if sys.platform == "linux" and n_bytes:
        os.posix_fallocate(fd, 0, min(n_bytes, os.fstat(fd).st_size))


def seal(fd: int) -> None:
    """Let nobody write to it any more (Linux). Raises OSError while it is mapped for writing."""
    if hasattr(fcntl, "F_ADD_SEALS"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)


def mapped(fd: int, n_bytes: int) -> mmap.mmap:
    """Map the memory for reading, privately: Linux before 6.7 refuses a shared map of sealed memory."""
    return mmap.mmap(fd, n_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)


def sealed_copy(file_fd: int, n_bytes: int) -> int:
    """Copy the bytes into a new sealed file, and close the old one.

    A trial could leave the witness a message in the old file's position, locks and holes.
    """
    copy_fd = sealable_memory("copy", n_bytes)
    with mapped(file_fd, n_bytes) as content, open(copy_fd, "wb", closefd=False) as target:
        target.write(content)
    os.lseek(copy_fd, 0, os.SEEK_SET)
    seal(copy_fd)
    os.close(file_fd)
    return copy_fd


def logits_memory(row_logits: int) -> tuple[int, int]:
    """(descriptor, bytes) of the slots of logits, each of whole rows."""
    n_bytes = LOGIT_SLOTS * 4 * row_logits * max(1, LOGIT_SLOT_BYTES // (4 * row_logits))
    fd = sealable_memory("logits", n_bytes)
    if hasattr(fcntl, "F_ADD_SEALS"):  # a trial that seals it would shut the referee out
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    return fd, n_bytes


def page_lock(memory) -> None:
    """Let copies between this tensor's memory and the GPU run at the bus's full speed, if possible."""
    import torch

    runtime = torch.cuda.cudart()
    if runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0) != runtime.cudaError.success:
        with suppress(RuntimeError):
            torch.ones(1, device="cuda").add_(1)  # takes up the error, else the next call raises it


def dtype_name(dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write_tensors(tensors: dict, settings: dict[str, str], fd: int) -> int:
    """Write tensors in safetensors' layout; return the bytes. It is unmapped then, to be sealed."""
    import torch

    # Wide types first: each tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda pair: (-pair[1].element_size(), pair[0]))
    header, end = {"__metadata__": settings}, 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        kind = DTYPE_NAMES[dtype_name(tensor.dtype)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    with mmap.mmap(fd, len(head) + end) as memory:
        memory[: len(head)] = head
        data = torch.frombuffer(memory, dtype=torch.uint8)[len(head):]
        for name, tensor in ordered:
            begin, end = header[name]["data_offsets"]
            data[begin:end].copy_(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
    return len(head) + end


def read_tensors(fd: int, n_bytes: int) -> tuple[dict, dict[str, str]]:
    """(tensors by name, settings) of such a file, on the CPU."""
    from safetensors.torch import load

    with mapped(fd, n_bytes) as memory:
        content = memory[:]
    length = struct.unpack("<Q", content[:8])[0]
    return load(content), json.loads(content[8:8 + length])["__metadata__"]
