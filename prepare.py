"""What train.py may call: constants, tokens until the budget is spent, the end of a trial.

    from prepare import VOCAB_SIZE, MAX_SEQ_LEN, SEED, BUDGET_S, device, stream, finish

    for batch in stream(batch_size, seq_len):   # batch.x, batch.y: int64 (B, T) on the device
        ...                                     # may be over at once: a witness runs the same file
    finish(model)

An experiment never changes this file. It judges nothing: clock, targets and score belong to
lab/referee.py, at the other end of the pipes. `python prepare.py` prepares a corpus, by lab/corpus.py.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from lab import wire

DEFAULT_BUDGET_S = 300.0
CONSTANTS = ("VOCAB_SIZE", "MAX_SEQ_LEN", "SEED", "BUDGET_S", "device")


@dataclass(frozen=True)
class Batch:
    """One batch of training tokens on the device."""

    x: "torch.Tensor"  # noqa: F821  int64 (B, T), contiguous
    y: "torch.Tensor"  # noqa: F821  int64 (B, T), the token after each of x, contiguous
    progress: float    # fraction of the budget spent, in [0, 1)


def default_device() -> str:
    """AUTORESEARCH_DEVICE, or the best of cuda, mps and cpu here, found without importing torch (seconds)."""
    if forced := os.environ.get("AUTORESEARCH_DEVICE"):
        return forced
    cards = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg")]  # dxg: WSL
    if cards and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        return "cuda"
    mac = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mps" if mac else "cpu"


@cache
def _trial() -> dict:
    """What the referee told this process. A train.py started by hand runs a trial of itself, then exits."""
    if text := os.environ.get(wire.TRIAL_VARIABLE):
        return json.loads(text)
    from lab import runner

    raise SystemExit(runner.by_hand(Path(sys.argv[0])))


@cache
def _link() -> wire.Link:
    return wire.Link(_trial())


@cache
def _constants() -> dict:
    import torch

    trial = _trial()
    if trial["device"] == "cuda" and not torch.cuda.is_available():
        raise SystemExit("the GPU cannot be used: torch.cuda.is_available() is false in this process")
    device = torch.device(trial["device"])
    values = trial["vocab_size"], trial["max_seq_len"], trial["seed"], trial["budget"], device
    return dict(zip(CONSTANTS, values, strict=True))


def __getattr__(name: str):
    """The constants are looked up when train.py imports them: importing this file costs nothing."""
    if name not in CONSTANTS:
        raise AttributeError(f"module 'prepare' has no attribute {name!r}")
    asker = sys._getframe(1).f_globals.get("__name__")
    if wire.TRIAL_VARIABLE in os.environ or asker == "__main__":  # one that is only imported starts no trial
        return _constants()[name]
    import torch

    from lab.corpus import SIZES, default_data

    values = *SIZES[default_data()], 0, DEFAULT_BUDGET_S, torch.device(default_device())
    return dict(zip(CONSTANTS, values, strict=True))[name]


def stream(batch_size: int, seq_len: int) -> Iterator[Batch]:
    """Batches of (batch_size, seq_len) until the budget is spent; the first one starts the clock.

    The next rows are asked for before a batch is handed over, so no step waits for them.
    """
    import torch

    max_seq_len, device = _constants()["MAX_SEQ_LEN"], _constants()["device"]
    link = _link()
    if batch_size < 1 or seq_len < 1 or max_seq_len % seq_len:
        raise ValueError(f"stream({batch_size}, {seq_len}): seq_len must divide {max_seq_len}, "
                         "batch_size be positive")
    _end_pull(link)
    parts = max_seq_len // seq_len  # per row; the last target of one is the first input of the next
    link.ask(wire.ROWS, max(1, batch_size // parts))
    if link.is_witness:
        return
    spare = np.empty((0, seq_len + 1), np.int16)
    link.pull(-(-batch_size // parts))
    while True:
        progress, rows = link.pulled(max_seq_len + 1)
        if progress >= 1:
            return
        windows = np.lib.stride_tricks.sliding_window_view(rows, seq_len + 1, axis=1)
        cut = windows[:, ::seq_len].reshape(-1, seq_len + 1)  # (rows * parts, T + 1)
        ready = np.concatenate([spare, cut])
        batch, spare = torch.from_numpy(ready[:batch_size]), ready[batch_size:]
        link.pull(-(-max(0, batch_size - len(spare)) // parts))
        if device.type == "cuda":
            batch = batch.pin_memory()  # torch reuses it only after the copy out of it has ended
        tokens = batch.to(device, non_blocking=True).long()
        yield Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), progress)


def _end_pull(link: wire.Link) -> None:
    """Read the rows that are still on their way if train.py left a stream early."""
    if link.pulled_rows is not None:
        link.pulled(_constants()["MAX_SEQ_LEN"] + 1)


def finish(model) -> None:
    """Hand over what was learnt, then answer for every validation row; nothing trains afterwards.

    model: nn.Module, model(x: int64 (B, T)) -> logits (B, T, VOCAB_SIZE). Its parameters and
    buffers, all that it learnt, go into the referee's memory before a validation row is seen.
    A witness, a second process that runs the same file, loads them instead.
    """
    import torch

    link = _link()
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"finish() takes an nn.Module, not {type(model).__name__}")
    _end_pull(link)
    model.eval()
    link.ask(wire.PARAMS, round(sum(p.numel() for p in model.parameters()) / 1000))
    if link.is_witness:
        _load(model, link)
        link.ask(wire.FILE, link.file_bytes)
    else:
        n_bytes = wire.write_tensors(_tensors(model), _settings(), link.file_fd)
        link.ask(wire.FILE, n_bytes)
    is_compiled = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
    with torch.no_grad(), eager:
        _answer(model, link)


def _answer(model, link: wire.Link) -> None:
    """Logits for every ask of the referee. On CUDA an answer is copied while the next is computed."""
    import torch

    V, T, _, _, device = _constants().values()
    slots = torch.frombuffer(link.logits, dtype=torch.uint8).chunk(wire.LOGIT_SLOTS)
    beside = torch.cuda.Stream() if device.type == "cuda" else None
    ask, under_way = 0, []  # answers still being copied: (event at the copy's end, code of the type)
    while n_rows := int(link.answer()):
        logits = model(torch.from_numpy(link.rows(n_rows, T).astype(np.int64)).to(device))
        if tuple(logits.shape) != (n_rows, T, V):
            raise ValueError(f"logits of shape {tuple(logits.shape)}, expected {(n_rows, T, V)}")
        if (dtype := wire.dtype_name(logits.dtype)) not in wire.LOGIT_DTYPES:
            raise ValueError(f"logits of type {dtype}, expected {' or '.join(wire.LOGIT_DTYPES)}")
        slot = slots[ask % wire.LOGIT_SLOTS][: logits.nbytes]
        if beside and ask < wire.LOGIT_SLOTS:
            wire.page_lock(slot)
        copied = _copy(logits, slot.view(logits.dtype), beside)
        under_way.append((copied, wire.LOGIT_DTYPES.index(dtype)))
        if beside is None or ask == 0 or len(under_way) > 1:  # the referee waits for the first one
            _hand_over(link, *under_way.pop(0))
        ask += 1
    for copied, code in under_way:
        _hand_over(link, copied, code)


def _copy(logits, slot, beside):
    """Copy to the referee's memory, on CUDA on a stream of its own; the event that ends it, or None."""
    import torch

    if beside is None:
        slot.copy_(logits.reshape(-1))
        return None
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        slot.copy_(logits.reshape(-1), non_blocking=True)
    logits.record_stream(beside)  # its memory is not used again before the copy has ended
    return beside.record_event()


def _hand_over(link: wire.Link, copied, code: int) -> None:
    if copied:
        copied.synchronize()
    link.ask(wire.LOGITS, code)


def _tensors(model) -> dict:
    """Parameters and all buffers by name, without the compiler's prefix."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in named}


def _settings() -> dict[str, str]:
    """The settings of torch that can change the last bit of a sum."""
    import torch

    return {
        "matmul_precision": torch.get_float32_matmul_precision(),
        "threads": str(torch.get_num_threads()),
        "default_dtype": wire.dtype_name(torch.get_default_dtype())}


def _load(model, link: wire.Link) -> None:
    """Load what the trial learnt into the model, and its settings into torch."""
    import torch

    tensors, settings = wire.read_tensors(link.file_fd, link.file_bytes)
    known = _tensors(model)
    for name, value in tensors.items():
        old, value = known.get(name), value.to(_constants()["device"])
        if old is None:  # it is new since the model was built
            path, _, last = name.rpartition(".")
            model.get_submodule(path).register_buffer(last, value)
        elif (old.shape, old.dtype) == (value.shape, value.dtype):
            old.data.copy_(value)
        else:
            old.data = value
    torch.set_float32_matmul_precision(settings["matmul_precision"])
    torch.set_default_dtype(getattr(torch, settings["default_dtype"]))
    torch.set_num_threads(int(settings["threads"]))


if __name__ == "__main__":
    from lab import corpus

    raise SystemExit(corpus.main())
