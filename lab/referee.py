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
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lab import sandbox
from prepare import ANSWER, FINISH, LOGIT_DTYPES, LOGITS, PARAMS, PULL, REQUEST, TRIAL_VARIABLE, Data, logit_buffer

START_LIMIT_S = 300.0       # imports, model, compile and warm-up, until the first batch is asked for
SCORE_LIMIT_S = 180.0       # from finish() to the last logits, beside the budget itself: a slow model trains slowly too
STOP_LIMIT_S = 10.0         # from the last logits to the end of the process
# How late finish() may come: a little and two of the trial's own longest steps, bounded: hoarding tokens buys nothing
OVERRUN_S, OVERRUN, STEP_OVERRUN_S = 1.0, 0.02, 10.0
MAX_PULL_ROWS = 1 << 16
MAX_PROCESSES = 512         # a fork bomb is ended here; compile workers and loaders need a few dozen
WATCH_EVERY_S = 1.0         # how often processes and memory of the trial are looked at
LOG_HEAD_BYTES = LOG_TAIL_BYTES = 32 * 1024
PROBE_SHARE = 30            # one ask in so many is probed for causality before it counts
# How far the loss of a token may move, in nats, when only later tokens change: (mean, largest) by the logits' type.
# Equal inputs give equal results up to rounding, which type and kernel decide; a leak that pays moves whole tenths.
TOLERANCE = {"float32": (2e-3, 0.1), "bfloat16": (0.03, 1.0), "float16": (0.01, 0.5)}


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
        self.selector = selectors.DefaultSelector()
        self.watched_at = time.monotonic()
        for fd in filter(None, (tokens_fd, events_fd, log_fd)):
            os.set_blocking(fd, False)
        self.selector.register(events_fd, selectors.EVENT_READ)
        if log_fd:
            self.selector.register(log_fd, selectors.EVENT_READ)

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
            watch()
        ready = [key.fd for key, _ in self.selector.select(min(deadline - now, WATCH_EVERY_S))]
        if self.log_fd in ready:
            self.read_log()
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


def watch() -> None:
    """Raise Foul when the trial's processes are too many or leave the machine too little memory."""
    n_processes = len(sandbox.descendants(os.getpid()))
    if n_processes > MAX_PROCESSES:
        raise Foul(f"too many processes ({n_processes})")
    with open("/proc/meminfo", "rb") as f:
        kilobytes = {line.split(b":")[0]: int(line.split()[1]) for line in f}
    if kilobytes[b"MemAvailable"] < 0.04 * kilobytes[b"MemTotal"]:
        raise Foul("out of memory")


def feed(channel: Channel, data: Data, budget_s: float, started_at: float, facts: dict) -> int:
    """Hand out training tokens until the trial calls finish(); write down the facts; return rows for an ask of scoring.

    The first pull starts the clock. A finish() later than the budget and a last step is a foul: whoever hoards tokens
    to train on afterwards gains nothing.
    """
    rows, next_row = data.split("train"), 0
    limit_s = (1 + OVERRUN) * budget_s + OVERRUN_S
    pulled_at, longest_s = None, 0.0
    deadline, why = started_at + START_LIMIT_S, f"asked for no data within {START_LIMIT_S:.0f} s of its start"
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


def plan(n_rows: int, rows_an_ask: int, dice: random.Random) -> Iterator[tuple[str, np.ndarray]]:
    """The asks of one scoring: ("probe" | "score" | "again", row numbers).

    A share of the batches is probed first: in their own company, with a foreign suffix after a random cut. The first
    batch is asked again at the end. Every ask has as many rows as the others, so a compiled model meets one shape.
    """
    batches = [np.arange(i, i + rows_an_ask) % n_rows for i in range(0, n_rows, rows_an_ask)]
    for number in sorted(dice.sample(range(len(batches)), -(-len(batches) // PROBE_SHARE))):
        yield "probe", batches[number]
    for batch in batches:
        yield "score", batch
    yield "again", batches[0]


def score(channel: Channel, data: Data, split: str, rows_an_ask: int, buffer_fd: int, buffer_bytes: int,
          budget_s: float, device: str) -> float:
    """Ask for logits over the split's fixed rows; return bits per byte. Raises Foul."""
    import torch

    rows, n_rows = data.split(split), data.eval_rows[split]
    row_logits = data.max_seq_len * data.vocab_size
    shared = mmap.mmap(buffer_fd, buffer_bytes)
    slots = torch.frombuffer(shared, dtype=torch.uint8).chunk(2)
    if device == "cuda":
        torch.cuda.cudart().cudaHostRegister(slots[0].data_ptr(), buffer_bytes, 0)
    rows_an_ask = min(rows_an_ask, n_rows, slots[0].numel() // (4 * row_logits))
    token_bytes = torch.from_numpy(data.token_bytes())
    deadline, why = time.monotonic() + SCORE_LIMIT_S + budget_s, "was not scored in time"
    dice = random.Random()  # fresh in each trial: nobody knows which rows are probed
    asks = list(plan(n_rows, rows_an_ask, dice))
    losses: dict[int, torch.Tensor] = {}  # (T,) nats by row, from the asks that count
    probes: dict[int, tuple[int, torch.Tensor]] = {}  # (cut, loss before it) by row
    dtype = ""

    def send(number: int) -> None:
        kind, batch = asks[number]
        inputs = rows[batch, :-1]
        if kind == "probe":
            for i, row in enumerate(batch):
                cut = dice.randrange(1, data.max_seq_len)
                foreign = rows[dice.randrange(len(rows)), :-1]
                inputs[i, cut:] = np.roll(foreign, dice.randrange(data.max_seq_len))[cut:]
                inputs[i, cut] = (rows[row, cut] + dice.randrange(1, data.vocab_size)) % data.vocab_size
                probes[int(row)] = (cut, torch.empty(0))
        channel.answer(float(len(batch)), inputs, deadline, why)

    send(0)
    for number, (kind, batch) in enumerate(asks):
        operation, code = channel.request(deadline, why)
        if operation != LOGITS or code >= len(LOGIT_DTYPES):
            raise Foul(f"protocol: request {operation!r} {code} while it is scored")
        if number + 1 < len(asks):
            send(number + 1)  # the trial computes the next while we score this
        dtype = LOGIT_DTYPES[code]
        shape = (len(batch), data.max_seq_len, data.vocab_size)
        kind_of = getattr(torch, dtype)
        logits = slots[number % 2][: len(batch) * row_logits * kind_of.itemsize].view(kind_of).view(shape)
        targets = torch.from_numpy(rows[batch, 1:].astype(np.int64))
        nats = token_losses(logits, targets, device)
        for i, row in enumerate(map(int, batch)):
            if kind == "probe":
                probes[row] = (probes[row][0], nats[i, : probes[row][0]])
            elif kind == "score":
                losses[row] = nats[i]
            else:
                compare(losses[row], nats[i], dtype, "keeps state: asked the same twice, it answered otherwise")
    channel.answer(0.0, None, deadline, why)
    for row, (cut, before) in probes.items():
        compare(losses[row][:cut], before, dtype, "sees the future: later tokens changed the logits of earlier ones")
    targets = torch.from_numpy(rows[:n_rows, 1:].astype(np.int64))
    n_bytes = token_bytes[targets]
    nats = torch.stack([losses[row] for row in range(n_rows)]).double()
    return float(nats[n_bytes > 0].sum() / n_bytes.sum() / np.log(2))


def token_losses(logits, targets, device: str):
    """(B, T) cross-entropy in nats, float32, of logits (B, T, V) against targets (B, T). Raises Foul if not finite."""
    import torch

    logits = logits.to(device, non_blocking=True).float()
    low, high = torch.aminmax(logits)
    if not torch.isfinite(low + high):
        raise Foul("its logits are not finite")
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten().to(device), reduction="none")
    return nats.view(targets.shape).cpu()


def compare(losses, again, dtype: str, foul: str) -> None:
    """Raise Foul when two losses (T,) of the same tokens differ by more than rounding."""
    difference = (losses - again).abs()
    mean_limit, limit = TOLERANCE[dtype]
    mean, largest = float(difference.mean()), float(difference.max())
    if mean > mean_limit or largest > limit:
        raise Foul(f"{foul} (by {mean:.2g} nats on average, {largest:.2g} at most)")


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

    torch.set_num_threads(spec.get("threads") or torch.get_num_threads())
    device = pick_device()
    facts: dict = {"device": torch.cuda.get_device_name() if device == "cuda" else f"{device} x{os.cpu_count()}",
                   "val_bpb": None, "reason": ""}
    idle_bytes = used_bytes(device)
    try:
        rows_an_ask = feed(channel, data, spec["budget"], started_at, facts)
        facts["memory_gb"] = max(0, used_bytes(device) - idle_bytes) / 1e9
        channel.tell("score", facts["finish"] - started_at)
        facts["val_bpb"] = score(channel, data, spec["split"], rows_an_ask, spec["buffer_fd"],
                                 spec["buffer_bytes"], spec["budget"], "cuda" if device == "cuda" else "cpu")
    except Foul as foul:
        facts["reason"] = str(foul)
    return facts | {"ended": time.monotonic()}


def used_bytes(device: str) -> int:
    """GPU memory in use by everybody; 0 without CUDA."""
    import torch

    if device != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


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
    started_at = time.monotonic()
    process = spawn(spec, tokens_read, events_write, buffer_fd, log_write, data)
    for fd in (tokens_read, events_write, log_write):
        os.close(fd)
    channel = Channel(tokens_write, events_read, log_read)
    channel.tell("start", process.pid)
    facts = judge(channel, data, spec, started_at)
    patience_s = STOP_LIMIT_S if facts["val_bpb"] is not None else 1.0 if "ended" in facts["reason"] else 0.0
    code, peak_gb = collect(process.pid, channel, patience_s)
    sandbox.sweep()
    channel.drain()
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
