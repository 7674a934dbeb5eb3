"""The trusted process beside a trial: feeds tokens, keeps the clock, scores logits, ends what does not end by itself.

    python -m lab.referee           spawn the trial that a JSON line on stdin describes; answer with JSON lines
    python -m lab.referee --serve   serve the train.py that started us by hand; print a summary

Promises: training tokens flow only while the budget lasts, validation inputs only afterwards, targets and byte counts
never; the metric is computed here, from logits; nothing a trial prints is parsed; when this process ends, so has every
process of the trial. It does not know what an experiment is, and decides nothing about keeping.
"""

import contextlib
import json
import mmap
import os
import random
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab import sandbox
from lab.corpus import Data
from prepare import (
    ANSWER,
    FINISH,
    LOGIT_DTYPES,
    LOGITS,
    PARAMS,
    PULL,
    REQUEST,
    TRIAL_VARIABLE,
    keep_freed_memory,
    logit_buffer,
    page_lock,
)

# How late finish() may come: a little and two of the trial's own longest steps, bounded: hoarding tokens buys nothing
OVERRUN_S, OVERRUN, STEP_OVERRUN_S = 1.0, 0.02, 10.0
MAX_PULL_ROWS = 1 << 16
MAX_PROCESSES = 512         # a fork bomb is ended here; compile workers and loaders need a few dozen
MAX_DISK_BYTES = 16e9       # that the disk may lose while a trial runs; its folder is on it
MEMORY_BACK_S, LEFT_GB = 15.0, 0.5  # how long GPU memory may take to come back; what drivers and desktops move by
WATCH_EVERY_S = 1.0         # how often processes, memory and disk are looked at
LOG_HEAD_BYTES = LOG_TAIL_BYTES = 32 * 1024
LEAST_ASKS = 64             # a scoring has at least so many where it has the rows, so that the few extra ones cost 5 %
CACHED_NUMBERS = 1 << 18    # logits that a CPU scores at a time: they stay in its cache, three times as fast
PROBE_SHARE = 25            # one ask in so many is asked blind before it counts
# How far the losses of tokens may move on average, in nats, when only later tokens or the row's company change. What is
# equal is computed equally up to rounding, which the logits' type and the kernels decide: 200 honest models of random
# shape and precision moved by 4e-5 at most on a CPU. A GPU's kernels may depend on the company: the rest is for them.
TOLERANCE = {"float32": 2e-3, "bfloat16": 0.03, "float16": 0.01}
NEAR = ((1, 5.0), (16, 2.0))  # so many tokens before a cut, where any leak shows: few, so the mean may move further
BLIND_ERRORS = 6.0          # standard errors by which tokens may be harder to predict when what follows is foreign
LEAST_BLIND = 8             # rows; the mean of fewer says nothing


@dataclass(frozen=True)
class Limits:
    """Seconds of patience; each ends the trial, and the reason in its row says which it was."""

    start_s: float = 300.0     # imports, model, compile and warm-up, until the first batch is asked for
    first_s: float = 30.0      # from finish() to its first logits, or a tenth of the budget: nothing trains there
    score_s: float = 180.0     # to the last logits, beside the budget itself: a slow model trains slowly too
    stop_s: float = 10.0       # from the last logits to the end of the process


DEFAULT_LIMITS = Limits()


class Foul(Exception):
    """The trial broke the contract, crashed or ran over; the message is the row's reason."""


class Log:
    """What a trial printed: a bounded head and tail, whatever the flood."""

    def __init__(self):
        self.head, self.tail, self.n_bytes = bytearray(), bytearray(), 0

    def add(self, data: bytes) -> None:
        self.n_bytes += len(data)
        room = LOG_HEAD_BYTES - len(self.head)
        self.head += data[:room]
        self.tail += data[room:]
        if len(self.tail) > 2 * LOG_TAIL_BYTES:
            del self.tail[:-LOG_TAIL_BYTES]

    def text(self) -> str:
        tail = self.tail[-LOG_TAIL_BYTES:]
        cut = self.n_bytes - len(self.head) - len(tail)
        gap = b"\n[%d bytes cut]\n" % cut if cut else b""
        return (self.head + gap + tail).decode("utf-8", "replace")


class Channel:
    """The referee's end of the pipes: never blocks on the trial, always ends at a deadline."""

    def __init__(self, tokens_fd: int, events_fd: int, log_fd: int | None):
        self.tokens_fd, self.events_fd, self.log_fd = tokens_fd, events_fd, log_fd
        self.log, self.last_line, self.told_at = Log(), b"", 0.0
        self.requests = bytearray()
        self.process_fd: int | None = None
        self.selector = selectors.DefaultSelector()
        self.watched_at, self.disk_bytes = time.monotonic(), free_bytes()
        self.gpu_gb: Callable[[], float] | None = None  # GPU memory beyond what was in use before; None without one
        for fd in filter(None, (tokens_fd, events_fd, log_fd)):
            os.set_blocking(fd, False)
        self.selector.register(events_fd, selectors.EVENT_READ)
        if log_fd:
            self.selector.register(log_fd, selectors.EVENT_READ)

    def follow(self, pid: int) -> None:
        """Notice at once when this process ends, though one that it left behind may hold its pipes open (Linux)."""
        if hasattr(os, "pidfd_open"):
            self.process_fd = os.pidfd_open(pid)
            self.selector.register(self.process_fd, selectors.EVENT_READ)

    def tell(self, event: str, value: object) -> None:
        """One JSON line to the runner; with no log to read there is no runner."""
        if self.log_fd is not None:
            print(json.dumps({"event": event, "value": value}), flush=True)

    def turn(self, deadline: float, why: str) -> list[int]:
        """Wait for something to happen, at most until the deadline; keep the log flowing; return the ready fds."""
        now = time.monotonic()
        if now >= deadline:
            raise Foul(why)
        if self.log_fd and now - self.watched_at > WATCH_EVERY_S:
            self.watched_at = now
            watch(self.disk_bytes)
            self.tell("memory", round((self.gpu_gb or resident_gb)(), 3))
        ready = [key.fd for key, _ in self.selector.select(min(deadline - now, WATCH_EVERY_S))]
        if self.log_fd in ready:
            self.read_log()
        if self.process_fd in ready and self.events_fd not in ready:
            raise Foul("ended before it was scored")
        return ready

    def read_log(self) -> None:
        data = os.read(self.log_fd, 1 << 16)
        if not data:
            self.selector.unregister(self.log_fd)
            self.log_fd = None
            return
        self.log.add(data)
        *lines, self.last_line = (self.last_line + data)[-4096:].split(b"\n")
        if lines and time.monotonic() - self.told_at > 0.5:
            self.told_at = time.monotonic()
            self.tell("line", lines[-1].decode("utf-8", "replace")[:300])

    def drain(self) -> None:
        """Read what is still in the log pipe; every writer is gone."""
        while self.log_fd and self.log_fd in [key.fd for key, _ in self.selector.select(0)]:
            self.read_log()

    def request(self, deadline: float, why: str) -> tuple[bytes, int]:
        """The trial's next request. Raises Foul at the deadline or when it hangs up."""
        while len(self.requests) < REQUEST.size:
            if self.events_fd in self.turn(deadline, why):
                data = os.read(self.events_fd, REQUEST.size - len(self.requests))
                if not data:
                    raise Foul("ended before it was scored")
                self.requests += data
        operation, count = REQUEST.unpack(self.requests)
        self.requests.clear()
        return operation, count

    def answer(self, value: float, tokens: np.ndarray | None, deadline: float, why: str) -> None:
        data = memoryview(ANSWER.pack(value) + (b"" if tokens is None else tokens.astype(np.int16).tobytes()))
        self.selector.register(self.tokens_fd, selectors.EVENT_WRITE)
        try:
            while data:
                if self.tokens_fd in self.turn(deadline, why):
                    data = data[os.write(self.tokens_fd, data):]
        except BrokenPipeError:
            raise Foul("ended before it was scored") from None
        finally:
            self.selector.unregister(self.tokens_fd)


def free_bytes() -> float:
    """Of the disk that holds the checkout, and so the folder of every trial."""
    disk = os.statvfs(Path(__file__).parent)
    return disk.f_bavail * disk.f_frsize


def watch(disk_bytes: float) -> None:
    """Raise Foul when the trial's processes are too many or leave the machine too little memory or disk."""
    n_processes = len(sandbox.descendants(os.getpid()))
    if n_processes > MAX_PROCESSES:
        raise Foul(f"too many processes ({n_processes})")
    if disk_bytes - free_bytes() > MAX_DISK_BYTES:
        raise Foul(f"wrote more than {MAX_DISK_BYTES / 1e9:.0f} GB")
    if sys.platform != "linux":
        return
    with open("/proc/meminfo", "rb") as f:
        kilobytes = {line.split(b":")[0]: int(line.split()[1]) for line in f}
    if kilobytes[b"MemAvailable"] < 0.04 * kilobytes[b"MemTotal"]:
        raise Foul("out of memory")


def resident_gb() -> float:
    """Memory that the trial's processes hold, shared pages counted in each; 0 where there is no /proc."""
    n_pages = 0
    for pid in sandbox.descendants(os.getpid()):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/statm", "rb") as f:
            n_pages += int(f.read().split()[1])
    return n_pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def feed(channel: Channel, data: Data, budget_s: float, start_limit_s: float, started_at: float, facts: dict) -> int:
    """Hand out training tokens until the trial calls finish(); write down the facts; return rows for an ask of scoring.

    The first pull starts the clock. A finish() later than the budget and a last step is a foul: whoever hoards tokens
    to train on afterwards gains nothing.
    """
    rows, next_row = data.split("train"), 0
    limit_s = (1 + OVERRUN) * budget_s + OVERRUN_S
    pulled_at, longest_s = None, 0.0
    deadline, why = started_at + start_limit_s, f"asked for no data within {start_limit_s:.0f} s of its start"
    while True:
        operation, count = channel.request(deadline, why)
        now = time.monotonic()
        if operation == PULL and count <= MAX_PULL_ROWS:
            if "clock" not in facts:
                facts["clock"] = now
                channel.tell("clock", budget_s)
            longest_s, pulled_at = max(longest_s, now - (pulled_at or now)), now
            allowed_s = limit_s + min(2 * longest_s, STEP_OVERRUN_S)
            deadline, why = facts["clock"] + allowed_s, f"trained past its budget: no finish() within {allowed_s:.1f} s"
            spent = (now - facts["clock"]) / budget_s
            if spent >= 1:
                why += ", though its stream had ended"
                channel.answer(1.0, None, deadline, why)
                continue
            taken = np.take(rows, range(next_row, next_row + count), axis=0, mode="wrap")
            next_row = (next_row + count) % len(rows)
            channel.answer(spent, taken, deadline, why)
            facts["tokens_m"] = facts.get("tokens_m", 0.0) + count * data.max_seq_len / 1e6
        elif operation == PARAMS:
            facts["params_m"] = count / 1e3
        elif operation == FINISH:
            facts["finish"] = now
            return max(1, count)
        else:
            raise Foul(f"protocol: request {operation!r} {count} while training")


@dataclass(frozen=True)
class Ask:
    """One batch of rows that the trial is asked for: their numbers, what it is shown, and how much of that is true."""

    kind: str            # "score", "probe" or "again"
    rows: np.ndarray     # (B,)
    inputs: np.ndarray   # (B, T)
    cuts: np.ndarray     # (B,) so many tokens at the start are the row's own: T, but for a probe


def plan(rows: np.ndarray, n_rows: int, rows_an_ask: int, vocab_size: int, dice: random.Random) -> list[Ask]:
    """The asks of one scoring of the first n_rows of `rows` (N, T + 1), all of one shape.

    Every row once. Some batches are asked blind at some time before: a row keeps its tokens up to a random cut, the
    rest is foreign; some rows are foreign altogether, so that the company changes too. One of the earlier batches is
    asked once more at the end. Nothing in an ask tells which kind it is.
    """
    batches = [np.arange(at, at + rows_an_ask) % n_rows for at in range(0, n_rows, rows_an_ask)]
    asks = [whole("score", rows, batch) for batch in batches]
    for number in sorted(dice.sample(range(len(batches)), max(1, len(batches) // PROBE_SHARE)), reverse=True):
        asks.insert(dice.randint(0, number), blind(rows, batches[number], vocab_size, dice))
    return [*asks, whole("again", rows, dice.choice(batches[: -(-len(batches) // 3)]))]


def whole(kind: str, rows: np.ndarray, batch: np.ndarray) -> Ask:
    inputs = rows[batch, :-1]
    return Ask(kind, batch, inputs, np.full(len(batch), inputs.shape[1]))


def blind(rows: np.ndarray, batch: np.ndarray, vocab_size: int, dice: random.Random) -> Ask:
    """The batch with all but the starts of its rows replaced, by the ends of other rows; every fourth row whole."""
    inputs = rows[batch, :-1].copy()
    length = inputs.shape[1]
    cuts = np.array([dice.randrange(1, length) for _ in batch])
    cuts[[i for i in range(1, len(batch)) if dice.random() < 0.25]] = 0
    for i, (row, cut) in enumerate(zip(batch, cuts, strict=True)):
        inputs[i, cut:] = rows[dice.randrange(len(rows)), cut:-1]
        if cut and inputs[i, cut] == rows[row, cut]:
            inputs[i, cut] = (inputs[i, cut] + dice.randrange(1, vocab_size)) % vocab_size
    return Ask("probe", batch, inputs, cuts)


def score(channel: Channel, data: Data, split: str, rows_an_ask: int, buffer_fd: int, buffer_bytes: int,
          budget_s: float, limits: Limits, device: str) -> float:
    """Ask for logits over the split's fixed rows; return bits per byte. Raises Foul."""
    import torch

    rows, n_rows = data.split(split), data.eval_rows[split]
    row_logits = data.max_seq_len * data.vocab_size
    shared = mmap.mmap(buffer_fd, buffer_bytes)
    slots = torch.frombuffer(shared, dtype=torch.uint8).chunk(2)
    if device == "cuda":
        page_lock(slots[0], buffer_bytes)
    rows_an_ask = max(1, min(rows_an_ask, n_rows // LEAST_ASKS, slots[0].numel() // (4 * row_logits)))
    finished_at, first_s = time.monotonic(), max(limits.first_s, budget_s / 10)
    deadline, why = finished_at + limits.score_s + budget_s, "was not scored in time"
    asks = plan(rows, n_rows, rows_an_ask, data.vocab_size, random.Random())  # fresh: nobody knows what is probed
    nats: list[torch.Tensor] = []
    dtype = ""
    channel.answer(float(len(asks[0].rows)), asks[0].inputs, deadline, why)
    for number, ask in enumerate(asks):
        operation, code = channel.request(deadline, why) if number else channel.request(
            finished_at + first_s, f"no logits within {first_s:.0f} s of finish(): compile before the first batch")
        if operation != LOGITS or code >= len(LOGIT_DTYPES):
            raise Foul(f"protocol: request {operation!r} {code} while it is scored")
        later = asks[number + 1 : number + 2]
        if later and device != "cpu":  # the trial computes the next while we score this; a CPU's cores we would share
            channel.answer(float(len(later[0].rows)), later[0].inputs, deadline, why)
        dtype = LOGIT_DTYPES[code]
        shape = (len(ask.rows), data.max_seq_len, data.vocab_size)
        kind_of = getattr(torch, dtype)
        logits = slots[number % 2][: len(ask.rows) * row_logits * kind_of.itemsize].view(kind_of).view(shape)
        nats.append(token_losses(logits, torch.from_numpy(rows[ask.rows, 1:].astype(np.int64)), device))
        if later and device == "cpu":
            channel.answer(float(len(later[0].rows)), later[0].inputs, deadline, why)
    channel.answer(0.0, None, deadline, why)
    losses = examine(asks, nats, TOLERANCE[dtype])
    n_bytes = torch.from_numpy(data.token_bytes())[torch.from_numpy(rows[:n_rows, 1:].astype(np.int64))]
    return float(losses.double()[n_bytes > 0].sum() / n_bytes.sum() / np.log(2))


def examine(asks: Sequence[Ask], nats: Sequence["torch.Tensor"], tolerance: float) -> "torch.Tensor":  # noqa: F821
    """The losses that count, (n_rows, T), from those of all asks, (B, T) each. Raises Foul where they contradict.

    Blind, nothing before a cut may change, and the token right after it, which the model then sees a foreign one in
    place of, must be no harder than others: whoever looks ahead is sure of the foreign one, and who answers later from
    memory, so that nothing changes, has already given himself away.
    """
    import torch

    scored = {int(row): loss for ask, asked in zip(asks, nats, strict=True) if ask.kind == "score"
              for row, loss in zip(ask.rows, asked, strict=True)}
    true = torch.stack([scored[row] for row in range(len(scored))])
    moved, last = [], []
    for ask, asked in zip(asks, nats, strict=True):
        if ask.kind == "again":
            moves = (asked - true[ask.rows]).abs().mean().item()
            if moves > tolerance:
                raise Foul(f"keeps state: asked the same twice, it answered otherwise (by {moves:.2g} nats on average)")
        if ask.kind == "probe":
            for row, cut, loss in zip(ask.rows, ask.cuts, asked, strict=True):
                moved.append((loss - true[row]).abs()[:cut])
                last += loss[cut - 1 : cut].tolist() if cut else []
    for reach, leeway in (*NEAR, (true.size(1), 1.0)):
        moves = torch.cat([before[-reach:] for before in moved if len(before)]).mean().item()
        if moves > leeway * tolerance:
            raise Foul("sees the future: other tokens, later or in other rows, changed what it said of earlier ones "
                       f"(by {moves:.2g} nats on average)")
    harder = (sum(last) / len(last) - true.mean().item()) / (true.std().item() / len(last) ** 0.5 + tolerance)
    if len(last) >= LEAST_BLIND and harder > BLIND_ERRORS:
        raise Foul(f"sees the future: blind, its predictions are worse by {harder:.0f} standard errors")
    return true


def token_losses(logits, targets, device: str):
    """(B, T) cross-entropy in nats, float32, of logits (B, T, V) against targets (B, T). Raises Foul if not finite."""
    import torch

    logits = logits.to(device, non_blocking=True).flatten(0, 1)
    n_tokens = max(1, CACHED_NUMBERS // logits.size(1)) if device == "cpu" else len(logits)
    nats = []
    for part, wanted in zip(logits.split(n_tokens), targets.flatten().to(device).split(n_tokens), strict=True):
        part = part.to(torch.float32, copy=True)  # the trial can still write to what it handed over
        low, high = torch.aminmax(part)
        if not torch.isfinite(low + high):
            raise Foul("its logits are not finite")
        nats.append(torch.nn.functional.cross_entropy(part, wanted, reduction="none"))
    nats = torch.cat(nats)
    if not torch.isfinite(nats.sum()):
        raise Foul("its logits are too large for a loss")
    return nats.view(targets.shape).cpu()


def spawn(spec: dict, tokens_fd: int, events_fd: int, buffer_fd: int, log_fd: int, data: Data) -> subprocess.Popen:
    """Start train.py, restricted, in its folder."""
    folder, cache = spec["folder"], spec["cache"]
    trial = {"budget": spec["budget"], "seed": spec["seed"], "vocab_size": data.vocab_size,
             "max_seq_len": data.max_seq_len, "buffer_bytes": spec["buffer_bytes"], "tokens_fd": tokens_fd,
             "events_fd": events_fd, "buffer_fd": buffer_fd}
    environment = sandbox.environment(folder, cache) | {TRIAL_VARIABLE: json.dumps(trial)}
    return subprocess.Popen(sandbox.command(folder, cache, [sys.executable, "train.py"]), cwd=folder, env=environment,
                            stdin=subprocess.DEVNULL, stdout=log_fd, stderr=log_fd, start_new_session=True,
                            pass_fds=(tokens_fd, events_fd, buffer_fd))


def judge(channel: Channel, data: Data, spec: dict, started_at: float) -> dict:
    """One trial from its first request to its last; the measured facts."""
    import torch

    from prepare import pick_device

    keep_freed_memory()
    torch.set_num_threads(spec.get("threads") or torch.get_num_threads())
    device = pick_device().split(":")[0]
    facts: dict = {"device": torch.cuda.get_device_name() if device == "cuda" else f"{device} x{os.cpu_count()}",
                   "val_bpb": None, "reason": ""}
    limits = Limits(**spec.get("limits", {}))
    if device == "cuda":
        idle_gb = gpu_gb()
        channel.gpu_gb = lambda: max(0.0, gpu_gb() - idle_gb)
    try:
        rows_an_ask = feed(channel, data, spec["budget"], limits.start_s, started_at, facts)
        facts["memory_gb"] = channel.gpu_gb() if channel.gpu_gb else 0.0
        channel.tell("score", facts["finish"] - started_at)
        facts["val_bpb"] = score(channel, data, spec["split"], rows_an_ask, spec["buffer_fd"],
                                 spec["buffer_bytes"], spec["budget"], limits, "cuda" if device == "cuda" else "cpu")
    except Foul as foul:
        facts["reason"] = str(foul)
    return facts | {"ended": time.monotonic()}


def gpu_gb() -> float:
    """GPU memory in use by everybody."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / 1e9


def given_back(held_gb: Callable[[], float], patience_s: float = MEMORY_BACK_S) -> str:
    """Wait until the trial's GPU memory is free for the next one; a note for the row when it is not."""
    import torch

    torch.cuda.empty_cache()  # what the scoring here took is not the trial's
    until = time.monotonic() + patience_s
    while (held := held_gb()) > LEFT_GB and time.monotonic() < until:
        time.sleep(0.05)
    return f"{held:.1f} GB of GPU memory were still held {patience_s:.0f} s after its end" if held > LEFT_GB else ""


def run(spec: dict) -> dict:
    """Spawn one trial, judge it, end it and all it started; return the fields of a ledger.Trial."""
    data = Data.load(Path(spec["data"]))
    tokens_read, tokens_write = os.pipe()
    events_read, events_write = os.pipe()
    log_read, log_write = os.pipe()
    with contextlib.suppress(AttributeError, PermissionError):  # Linux only, and the limit may be lower
        import fcntl

        fcntl.fcntl(tokens_write, fcntl.F_SETPIPE_SZ, 1 << 20)
    buffer_fd, spec["buffer_bytes"] = logit_buffer(data)
    spec["buffer_fd"] = buffer_fd
    shared_before, started_at = sandbox.shared_files(), time.monotonic()
    process = spawn(spec, tokens_read, events_write, buffer_fd, log_write, data)
    for fd in (tokens_read, events_write, log_write):
        os.close(fd)
    channel = Channel(tokens_write, events_read, log_read)
    channel.follow(process.pid)
    channel.tell("start", process.pid)
    facts = judge(channel, data, spec, started_at)
    patience_s = 1.0 if facts["reason"].startswith("ended") else 0.0
    if facts["val_bpb"] is not None:
        patience_s = Limits(**spec["limits"]).stop_s
    code, peak_gb = collect(process.pid, channel, patience_s)
    sandbox.sweep()
    sandbox.clear_shared(shared_before)
    channel.drain()
    if channel.gpu_gb:
        facts["note"] = given_back(channel.gpu_gb)
    if facts["val_bpb"] is None and facts["reason"].startswith("ended"):
        facts["reason"] = last_error(channel.log.text(), code)
    return finished(facts, spec, data, started_at, peak_gb) | {"log": channel.log.text()}


def collect(pid: int, channel: Channel, patience_s: float) -> tuple[int, float]:
    """Wait for the trial's end, kill it when patience is over; return (exit code or -signal, peak resident GB)."""
    until = time.monotonic() + patience_s
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        with contextlib.suppress(Foul):
            channel.turn(time.monotonic() + 0.02, "")


def last_error(log: str, code: int) -> str:
    """Why a trial ended by itself: the exception it named last, else its last line."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = [line[:200] for line in log.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    return f"{(named or lines)[-1]} ({how})" if lines and code else f"ended before it was scored ({how})"


def finished(facts: dict, spec: dict, data: Data, started_at: float, peak_gb: float) -> dict:
    """The fields of a ledger.Trial, from what was measured."""
    now = time.monotonic()
    clock = facts.pop("clock", None)
    ended = facts.pop("ended")
    finish = facts.pop("finish", ended)
    moments = [started_at, clock or finish, finish, ended, now]
    phases = {name: round(b - a, 3) for name, a, b in
              zip(("start", "train", "score", "stop"), moments, moments[1:], strict=False)}
    return facts | {"memory_gb": facts.get("memory_gb") or peak_gb, "seed": spec["seed"], "split": spec["split"],
                    "budget": spec["budget"], "data": data.hash[:8], "sandbox": sandbox.level(),
                    "train_seconds": phases["train"], "total_seconds": now - started_at, "phases": phases}


def serve(spec: dict) -> None:
    """Referee for the process that started us; what it prints goes to its own terminal, so there is no log."""
    data, started_at = Data.load(Path(spec["data"])), time.monotonic()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for train.py; its end is ours
    facts = judge(Channel(spec["tokens_fd"], spec["events_fd"], None), data, spec, started_at)
    trial = finished(facts, spec, data, started_at, 0.0)
    if trial["val_bpb"] is None:
        print(f"crash: {trial['reason']}", file=sys.stderr)
        return
    print(f"val_bpb: {trial['val_bpb']:.6f}")
    for name in ("train_seconds", "total_seconds", "tokens_m", "params_m", "seed", "budget", "device", "data"):
        value = trial[name]
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(sys.argv[2]))
        return
    spec = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the agent decides what a Ctrl-C means
    sandbox.die_with_parent(spec["parent"], signal.SIGTERM)
    sandbox.adopt_orphans()
    try:
        print(json.dumps({"event": "result", "value": run(spec)}), flush=True)
    finally:
        sandbox.sweep()


if __name__ == "__main__":
    main()
