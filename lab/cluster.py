"""Slots on the GPUs of a Ray cluster; nothing of this is imported without --ray.

A trial is one Ray task with one GPU and no retries, in a worker process that is used once. The worker
calls runner.run, as the agent does on one machine. Ray kills only a worker and its direct child, so
the referee ends with its worker and kills the rest. To stop a trial, the agent interrupts its worker,
which ends the referee, and ignores the task's result. A host must have this checkout, this torch, the
same data and cards of the same name; the session's state stays with the agent.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lab import baseline, machine, runner, sandbox
from lab.corpus import Data, open_data
from lab.ledger import SetupError, Trial, one_line, write_durably
from lab.runner import ROOT, RefereeFailed, Slot
from lab.session import Session
from prepare import default_device

LOOK_EVERY_S = 10.0  # how often to look for new hosts, and to check rejected slots again
TURN_S = 0.2         # of one wait for Ray, after which a stop is noticed
STOP_S = 10.0        # how long a trial that is stopped may take to end


def facts(source: str, shards: int) -> dict[str, str]:
    """What must be the same on every host of a session; data that is missing is prepared."""
    import torch

    on_gpu, cores = default_device() == "cuda", f"{default_device()} x{os.cpu_count()}"
    torch.ones(8, device=default_device()).sum().item()  # a card that is lost fails here, not in a trial
    return {"data": open_data(source, shards=shards).hash, "code": code_hash(), "torch": torch.__version__,
            "sandbox": sandbox.level(), "device": torch.cuda.get_device_name() if on_gpu else cores}


def code_hash() -> str:
    paths = ROOT / "prepare.py", *sorted((ROOT / "lab").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def there(slot: Slot, tag: str, corpus: tuple[str, int], measured: bytes,
          spec: dict) -> Iterator[tuple[str, object]]:
    """Run a trial in a worker. Yields the referee's events, then ("ended", (trial, its baseline.npz or b""))."""
    os.chdir(ROOT)
    sandbox.hide()
    folder, told, stopped = ROOT / "runs" / tag, SimpleQueue(), Event()
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / baseline.NAME
    if measured:  # by a name of its own, since another slot of this host may do the same
        fresh = known.with_suffix(f".{slot.number}")
        fresh.write_bytes(measured)
        os.replace(fresh, known)
    if default_device() == "cuda":  # Ray gives a worker one card, which may not be the slot's last one
        card, hidden = machine.cards()[0]
        slot = replace(slot, card=card, hidden=hidden)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(
            runner.run, data=open_data(corpus[0], shards=corpus[1]), folder=folder, slot=slot,
            on_event=lambda *event: told.put(event), interrupted=stopped.is_set, **spec)
        running.add_done_callback(lambda done: told.put(None))
        try:
            for event in iter(told.get, None):  # noqa: UP028  Ray sends into a generator
                yield event
        finally:
            stopped.set()
    trial = replace(running.result(), slot=f"{os.uname().nodename} GPU {ray.get_gpu_ids()[0]}")
    yield "ended", (trial, known.read_bytes() if spec["is_baseline"] and known.exists() else b"")


class Cluster:
    """The hosts of a Ray cluster and what runs on them."""

    def __init__(self, address: str, session: Session, data: Data, say: Callable[[str], None]):
        """Raises SetupError where there is no cluster."""
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (RayError, ConnectionError, ValueError, RuntimeError) as error:
            raise SetupError(f"no Ray cluster at {address} ({one_line(str(error), 120)}): start one "
                             "with `ray start --head`, or see the README") from None
        self.say, self.said = say, set()
        self.corpus = data.source, data.shards
        self.expected = {"data": data.hash, "code": code_hash()}  # the rest as the first host says it
        self.expected |= {"device": session.device} if session.device else {}
        self.known: dict[tuple[str, int], Slot] = {}  # by node and number of the GPU there
        self.asked: dict[ray.ObjectRef, Slot] = {}    # checks under way
        self.look_at = 0.0

    def joined(self, have: Sequence[Slot]) -> list[Slot]:
        """Slots beside `have` that have passed their check. Raises SetupError where none can be."""
        if time.monotonic() >= self.look_at:
            self.look_at = time.monotonic() + LOOK_EVERY_S
            for slot in self._slots():
                if slot not in have and slot not in self.asked.values():
                    self.asked[on(slot, facts).remote(*self.corpus)] = slot
        if not have and not self.asked:
            raise SetupError("no host of the cluster has a GPU that this session can use")
        patience_s, n = 0 if have else TURN_S, max(1, len(self.asked))
        answers, _ = ray.wait([*self.asked], num_returns=n, timeout=patience_s)
        return [slot for answer in answers if self._passes(slot := self.asked.pop(answer), answer)]

    def run(self, code: str, *, data: Data, folder: Path, slot: Slot, interrupted: Callable[[], bool],
            on_event: Callable[[str, object], None], **spec: object) -> Trial | None:
        """runner.run on the slot's host. Raises RefereeFailed where that host is lost."""
        known, spec = folder / baseline.NAME, spec | {"code": code}
        measured = known.read_bytes() if known.exists() else b""
        try:
            told = on(slot, there).remote(slot, folder.name, self.corpus, measured, spec)
            while not interrupted():
                if not ray.wait([told], timeout=TURN_S)[0]:
                    continue
                kind, value = ray.get(next(told))
                if kind == "ended":
                    trial, measured = value
                    if measured:
                        write_durably(known, measured)
                    return trial
                on_event(kind, value)
            ray.cancel(told)
            ray.wait([told.completed()], timeout=STOP_S)
            return None
        except RayError as error:
            raise RefereeFailed(f"{slot.name} is lost: {last_line(error)}") from None

    def _slots(self) -> Iterator[Slot]:
        """A slot for every GPU of the hosts that are alive, the same ones at each call."""
        for node in ray.nodes():
            for index in range(int(node["Resources"].get("GPU", 0)) if node["Alive"] else 0):
                name = f"{node['NodeManagerHostname']} GPU {index}"
                fresh = Slot(len(self.known), name, host=node["NodeID"])
                yield self.known.setdefault((node["NodeID"], index), fresh)

    def _passes(self, slot: Slot, answer: ray.ObjectRef) -> bool:
        """Whether its host is as this session needs it; otherwise a line says what differs, once."""
        try:
            wrong = [f"{name} {value}, not {self.expected[name]}" for name, value in ray.get(answer).items()
                     if self.expected.setdefault(name, value) != value]
        except RayError as error:
            wrong = [last_line(error)]
        line = f"{slot.name} is left out: {'; '.join(wrong)}"
        if wrong and line not in self.said:
            self.said.add(line)
            self.say(line)
        return not wrong


def on(slot: Slot, function: Callable):
    """A Ray task on one GPU of the slot's host, whose worker is used once."""
    place = NodeAffinitySchedulingStrategy(slot.host, soft=False)
    return ray.remote(num_gpus=1, num_cpus=0, max_retries=0, max_calls=1, scheduling_strategy=place)(function)


def last_line(error: RayError) -> str:
    """What happened, without the worker's traceback."""
    return one_line(str(error).strip().splitlines()[-1], 200)

