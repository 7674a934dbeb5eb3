"""Slots on the GPUs of a Ray cluster; nothing of this is imported without --ray.

A trial is one Ray task with one GPU and no retries, in a worker process that is used once; inside
it runner.run does what it does here. Ray ends a worker and its direct child, no more: the referee
dies with its worker, and sweeps. A trial is stopped by a word to its worker, never by a cancel,
which Ray also reports of tasks that had finished. A host must have this checkout, this torch, the
same data and cards of the same name; the session's state stays with the agent.
"""

import glob
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lab import machine, runner, sandbox
from lab.corpus import Data, open_data
from lab.ledger import SetupError, Trial, one_line, write_durably
from lab.runner import ROOT, RefereeFailed, Slot
from lab.session import Session
from prepare import default_device

LOOK_EVERY_S = 5.0   # for hosts that joined
TURN_S = 0.2         # how often events are fetched
AGAIN_S = 60.0       # until a slot that did not pass its check is asked once more
CHECK_S = 3600.0     # a host may have to download and prepare the data first


class Post:
    """An actor beside the agent: events of all trials go one way, the word to stop the other."""

    def __init__(self):
        self.events, self.stopped = [], False

    def tell(self, *event: object) -> bool:
        """Take an event; whether its trial must stop. A referee says something every second."""
        self.events.append(event)
        return self.stopped

    def collect(self) -> list:
        events, self.events = self.events, []
        return events

    def stop(self) -> None:
        self.stopped = True


# On a host --------------------------------------------------------------------------------------


def facts(source: str, shards: int) -> dict[str, str]:
    """What must be the same on every host of a session; its data is prepared here if it is not yet."""
    import torch

    code = hashlib.sha256()
    for path in (ROOT / "prepare.py", *sorted((ROOT / "lab").glob("*.py"))):
        code.update(path.read_bytes())
    device = torch.cuda.get_device_name() if default_device() == "cuda" else f"{default_device()} x{os.cpu_count()}"
    return {"data": open_data(source, shards=shards).hash, "torch": torch.__version__, "device": device,
            "code of lab/ and prepare.py": code.hexdigest()[:12]}


def there(tag: str, corpus: tuple[str, int], slot: Slot, measured: bytes, post: ray.actor.ActorHandle,
          spec: dict) -> tuple[Trial | None, bytes]:
    """One trial in a worker. What the session's baseline measured comes along, and goes back with a baseline."""
    os.chdir(ROOT)
    sandbox.hide()
    folder, stopped = ROOT / "runs" / tag, threading.Event()
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "baseline.npz"
    if measured:  # by a name of its own, since another GPU of this host may do the same
        fresh = known.with_suffix(f".{slot.number}")
        fresh.write_bytes(measured)
        os.replace(fresh, known)
    if default_device() == "cuda":
        uuid, file = machine.cards()[0]  # Ray shows one to this worker
        slot = replace(slot, card=uuid, hidden=tuple(set(glob.glob("/dev/nvidia[0-9]*")) - {file}))

    def hear(kind: str, value: object) -> None:
        if ray.get(post.tell.remote(slot.number, kind, value)):
            stopped.set()

    trial = runner.run(data=open_data(corpus[0], shards=corpus[1]), folder=folder, slot=slot, on_event=hear,
                       interrupted=stopped.is_set, **spec)
    return trial, known.read_bytes() if spec["is_baseline"] and known.exists() else b""


# Beside the agent -------------------------------------------------------------------------------


class Cluster:
    """The hosts of a Ray cluster and what runs on them."""

    def __init__(self, address: str, session: Session, data: Data, say: Callable[[str], None]):
        """Raises SetupError where there is no cluster."""
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR", namespace=session.tag)
        except (RayError, ConnectionError, ValueError, RuntimeError) as error:
            raise SetupError(f"no Ray cluster at {address} ({one_line(str(error), 120)}): start one with `ray start "
                             "--head`, or see the README") from None
        self.say, self.corpus = say, (data.source, data.shards)
        self.expected = {"data": data.hash}  # of every host; the first one that works says the rest
        if session.history:
            self.expected["device"] = session.history[0].own.device
        self.known: dict[tuple[str, int], Slot] = {}  # by node and number of the GPU there
        self.hear: dict[int, Callable[[str, object], None]] = {}
        self.have: set[Slot] = set()                  # those of the fleet
        self.new: SimpleQueue[Slot] = SimpleQueue()   # those that the fleet does not have yet ...
        self.waiting: set[Slot] = set()               # ... which are these
        self.asked_at: dict[Slot, float] = {}         # when a slot did not pass its check
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.post = ray.remote(Post).options(num_cpus=0, scheduling_strategy=here).remote()

    def first_slots(self) -> list[Slot]:
        """The slots of the hosts that are there now. Raises SetupError where there is none."""
        slots = self._look()
        if not slots:
            raise SetupError("no host of the cluster has a GPU that this session can use")
        self.have = set(slots)
        threading.Thread(target=self._watch, daemon=True).start()
        return slots

    def _watch(self) -> None:
        """Look for hosts that joined or came back, until the cluster is gone."""
        with suppress(RayError):
            while True:
                time.sleep(LOOK_EVERY_S)
                for slot in self._look():
                    self.waiting.add(slot)
                    self.new.put(slot)

    def joined(self, slots: Sequence[Slot]) -> list[Slot]:
        """Slots that passed their check since the last call; the fleet has `slots`."""
        found = [self.new.get() for _ in range(self.new.qsize())]
        self.have = {*slots, *found}
        self.waiting.difference_update(found)
        return found

    def run(self, code: str, *, data: Data, folder: Path, slot: Slot, on_event: Callable[[str, object], None],
            interrupted: Callable[[], bool], **spec: object) -> Trial | None:
        """runner.run on the slot's host. Raises RefereeFailed where that host is lost."""
        known = folder / "baseline.npz"
        measured = known.read_bytes() if known.exists() else b""
        self.hear[slot.number] = on_event
        try:
            asked = on(slot, there).remote(folder.name, self.corpus, slot, measured, self.post, spec | {"code": code})
            while not ray.wait([asked], timeout=TURN_S)[0]:
                if interrupted():
                    self.post.stop.remote()
                self._deliver()
            trial, measured = ray.get(asked)
        except RayError as error:
            raise RefereeFailed(f"{slot.name} is lost: {one_line(str(error), 200)}") from None
        self._deliver()
        if measured:
            write_durably(known, measured)
        return trial

    def _deliver(self) -> None:
        """Pass on what the trials told, each to its slot's listener."""
        for number, kind, value in ray.get(self.post.collect.remote()):
            self.hear[number](kind, value)

    def _look(self) -> list[Slot]:
        """The slots that nobody has yet and that pass the check, on all hosts at once."""
        now, asked = time.monotonic(), {}
        for node in ray.nodes():
            for index in range(int(node["Resources"].get("GPU", 0)) if node["Alive"] else 0):
                name = f"{node['NodeManagerHostname']} GPU {index}"
                slot = self.known.setdefault((node["NodeID"], index), Slot(len(self.known), name, host=node["NodeID"]))
                is_due = now - self.asked_at.get(slot, -math.inf) > AGAIN_S
                if slot not in self.have | self.waiting and is_due:
                    asked[slot] = on(slot, facts).remote(*self.corpus)
        return [slot for slot, answer in asked.items() if self._passes(slot, answer)]

    def _passes(self, slot: Slot, answer: ray.ObjectRef) -> bool:
        """Whether its host is as this session needs it; otherwise a line says what differs."""
        try:
            told = ray.get(answer, timeout=CHECK_S)
            wrong = [f"{name} {value}, not {self.expected[name]}" for name, value in told.items()
                     if self.expected.setdefault(name, value) != value]
        except RayError as error:
            wrong = [one_line(str(error).strip().splitlines()[-1], 200)]
        if wrong:
            self.asked_at[slot] = time.monotonic()
            self.say(f"{slot.name} is left out: {'; '.join(wrong)}")
        return not wrong


def on(slot: Slot, function: Callable):
    """A Ray task on one GPU of the slot's host, whose worker is used once."""
    place = NodeAffinitySchedulingStrategy(slot.host, soft=False)
    once = ray.remote(num_gpus=1, num_cpus=0, max_retries=0, max_calls=1)(function)
    return once.options(scheduling_strategy=place)
