"""Trials in flight: the slots of a machine, what is kept out of order, and a slot that fails.

Sessions of two slots are real ones with the stand-in of stand_in.py. A cluster's need Ray, an extra.
"""

import math
import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import invariants
import psutil
import pytest
from fakes import TRAIN, environment, git, make_checkout, run_agent
from test_recovery import processes, recovered, started

from lab import fleet, ledger, machine, runner
from lab.fleet import alike, slots_here
from lab.ledger import SetupError, Status
from lab.runner import Slot
from lab.sandbox import level

TWO_CORES = pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
                               reason="needs two cores")


# Which slots there are --------------------------------------------------------------------------


class Cards:
    """NVIDIA's library on a machine with these cards."""

    NVMLError = RuntimeError

    def __init__(self, *names: str):
        self.names = names
        self.nvmlDeviceGetName = names.__getitem__
        self.nvmlDeviceGetUUID = "GPU-{}".format
        self.nvmlDeviceGetMinorNumber = self.nvmlDeviceGetHandleByIndex = int

    def nvmlInit(self) -> None:
        if not self.names:
            raise self.NVMLError

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)


@pytest.mark.parametrize("names, visible, card, hidden", [
    ((), None, "", ()), (("A",), None, "", ()), (("A", "B"), None, "", ()),
    (("A", "A"), None, "GPU-0", ("/dev/nvidia1",)), (("A", "A"), "1,0", "GPU-1", ("/dev/nvidia0",)),
    (("A", "A"), "GPU-1", "GPU-1", ("/dev/nvidia0",)), (("A", "A"), "MIG-x", "", ())])
def test_one_slot_is_the_whole_machine_but_for_cards_that_were_not_asked_for(names, visible, card, hidden, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", Cards(*names))
    monkeypatch.setattr(machine.glob, "glob", lambda pattern: [f"/dev/nvidia{n}" for n in range(len(names))])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert slots_here(1, 1, "cuda") == [Slot(card=card, hidden=hidden)]
    assert slots_here(1, 1, "cpu") == [Slot()]


@TWO_CORES
def test_slots_share_the_cores_without_overlap():
    first, second = slots_here(2, 1, "cpu")
    assert (first.number, second.number) == (0, 1) and first.name != second.name
    assert set(first.cores).isdisjoint(second.cores) and len(first.cores) == len(second.cores) > 0
    assert first.folder(Path("runs")) != second.folder(Path("runs"))


@pytest.mark.parametrize("n_slots, n_gpus, device, words", [
    (2, 1, "cuda", "--gpus"), (1, 2, "cpu", "--slots"), (1, 0, "mps", "--slots"), (1023, 1, "cpu", "cores")])
def test_places_that_a_machine_lacks_are_refused(n_slots, n_gpus, device, words):
    with pytest.raises(SetupError, match=words):
        slots_here(n_slots, n_gpus, device)


def test_only_cards_of_one_name_and_speed_run_together():
    assert alike({"a": ("A", 100.0), "b": ("A", 102.9), "c": ("A", 101.0)}) == ["a", "b", "c"]
    assert alike({"a": ("A", 100.0), "b": ("A", 103.1), "c": ("A", 103.0)}) in (["b", "c"], ["a", "c"])
    assert alike({"a": ("A", 100.0), "b": ("B", 100.0), "c": ("B", 101.0)}) == ["b", "c"]


def test_cards_that_differ_are_refused_with_those_that_may_run_together(monkeypatch):
    speeds = {"GPU-a": 700.0, "GPU-b": 650.0, "GPU-c": 705.0}
    monkeypatch.setattr(machine, "cards", lambda: [(uuid, (f"not {uuid}",)) for uuid in speeds])
    monkeypatch.setattr(fleet, "speed_of", lambda uuid: ("H200", speeds[uuid]))
    with pytest.raises(SetupError, match="CUDA_VISIBLE_DEVICES=GPU-a,GPU-c,"):
        slots_here(1, 0, "cuda")
    with pytest.raises(SetupError, match="there are 3 here"):
        slots_here(1, 4, "cuda")
    speeds["GPU-b"] = 701.0
    found = slots_here(1, 2, "cuda")
    assert [slot.card for slot in found] == ["GPU-a", "GPU-b"] and len({slot.name for slot in found}) == 2
    assert [slot.hidden for slot in found] == [("not GPU-a",), ("not GPU-b",)]


@TWO_CORES
@pytest.mark.skipif(level() == "none", reason="needs a filter")
def test_a_trial_cannot_leave_its_share_of_the_cores(tmp_path, corpus):
    leave = "import os\n\ntry:\n    os.sched_setaffinity(0, range(os.cpu_count()))\nexcept PermissionError:\n    pass\n"
    told = "    print('cores', sorted(os.sched_getaffinity(0)))\n    finish(model)"
    code = TRAIN.replace("import torch\n", f"{leave}\nimport torch\n").replace("    finish(model)", told)
    slot = slots_here(2, 1, "cpu")[1]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, slot.cores)
    try:
        trial = runner.run(code, data=corpus, seed=1, budget_s=0.3, folder=tmp_path, slot=slot,
                           witness_below=-math.inf)
    finally:
        os.sched_setaffinity(0, before)
    assert trial.val_bpb and f"cores {sorted(slot.cores)}" in trial.log, trial
    assert trial.device == f"cpu x{len(slot.cores)}"


# A session --------------------------------------------------------------------------------------


def overlaps(rows) -> int:
    """How many trials had started before the one in the row before them ended."""
    ends = [datetime.fromisoformat(row.when).timestamp() for row in rows]
    return sum(end - row.total_seconds < before for row, end, before in zip(rows[1:], ends[1:], ends, strict=False))


@TWO_CORES
def test_two_slots_train_at_once_and_their_rows_obey_every_invariant(tmp_path, corpus, corpus_path):
    checkout = make_checkout(tmp_path / "checkout")
    done = run_agent(checkout, "--experiments", "2", "--researcher", "tuner", "--tag", "t", "--slots", "2",
                     "--data", str(corpus_path), "--budget", "1")
    assert (done.returncode, done.stderr) == (0, ""), done
    rows = ledger.read(checkout / "results.tsv")
    assert sorted(row.experiment for row in rows) == [0, 1, 2]
    assert {note for row in rows for note in row.note.split("; ") if "on " in note} == {"on slot 0", "on slot 1"}
    assert len({row.seed for row in rows}) == 3 and overlaps(rows) >= 1
    invariants.check(checkout)
    assert git(checkout, "status", "--porcelain") == ""
    again = run_agent(checkout, "--experiments", "1", "--researcher", "tuner", "--data", str(corpus_path))
    assert again.returncode == 2 and "cpu x" in again.stderr  # one slot has other cores


@TWO_CORES
def test_a_slot_that_fails_is_taken_out_and_its_trial_runs_elsewhere(root, agents, arguments):
    pid = agents.start(root, *arguments, "--slots", "2")
    path, until = root / "results.tsv", time.monotonic() + 30
    while path.read_bytes().count(b"\n") < 4 and time.monotonic() < until:
        time.sleep(0.02)
    (root / "runs" / "nov23" / "slot-1" / "lost").touch()
    wanted = path.read_bytes().count(b"\n") + 8
    while path.read_bytes().count(b"\n") < wanted and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(pid, signal.SIGINT)
    code, out = agents.wait()
    assert code == 0 and "slot 1 is out" in out, out
    rows = ledger.read(path)
    assert len(rows) >= wanted - 1 and Status.CRASH not in {row.status for row in rows}
    numbers = [row.experiment for row in rows if row.status is not Status.REPEAT]
    assert sorted(numbers) == list(range(len(numbers)))  # the lost one too
    recovered(root, path.read_bytes())


@TWO_CORES
def test_the_last_slot_that_fails_ends_the_session(root, agents, arguments):
    pid = agents.start(root, *arguments, "--slots", "2")
    started(root, agents)
    (root / "referee_lost").touch()
    code, out = agents.wait()
    assert pid and code == 2 - 1 and "the machine is at fault" in out, out
    recovered(root, b"")


KILLS_A_REFEREE = """\
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from lab import runner
from lab.checkout import Checkout
from lab.corpus import open_data

def kill(kind, value):
    [referee] = [child for child in psutil.Process().children() if "lab.referee" in child.cmdline()]
    referee.kill()

here, data = Path.cwd(), open_data(sys.argv[1])
with ThreadPoolExecutor(1) as thread:
    trial = thread.submit(runner.run, Path("train.py").read_text(), data=data, seed=1, budget_s=1.0,
                          folder=here / "runs", on_event=kill)
    while not trial.done():
        status, _, said = Checkout(here).run("-c", "alias.nap=!sleep 0.5", "nap")
        assert not status, (status, said)
        time.sleep(0.01)
print(type(trial.exception()).__name__)
"""


def test_the_sweep_after_a_killed_referee_spares_the_git_beside_it(root, corpus_path, corpus):
    done = subprocess.run([sys.executable, "-c", KILLS_A_REFEREE, str(corpus_path)], cwd=root, env=environment(),
                          capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("RefereeFailed\n", "")


# A cluster --------------------------------------------------------------------------------------


class Ray:
    """A head and nodes of one machine, each with two GPUs that are none."""

    def __init__(self, root: Path):
        self.root, self.nodes = root, []
        self.command = str(Path(sysconfig.get_path("scripts")) / "ray")
        self.environment = environment(PYTHONPATH=str(root), AUTORESEARCH_DEVICE="cpu", RAY_DISABLE_IMPORT_WARNING="1",
                                       RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_USAGE_STATS_ENABLED="0")
        self.port = random.randint(20000, 30000)
        self.start("--head", f"--port={self.port}", "--num-gpus=0", "--include-dashboard=false")

    def start(self, *words: str) -> None:
        """A node that lives in the foreground."""
        self.nodes.append(subprocess.Popen(
            [self.command, "start", "--block", "--num-cpus=4", "--object-store-memory=100000000", *words],
            cwd=self.root, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True))

    def join(self) -> None:
        self.start(f"--address=127.0.0.1:{self.port}", "--num-gpus=2")

    def wait(self, n_gpus: int) -> None:
        """Until the nodes are there; a busy machine takes its time."""
        look = f"import ray; ray.init('127.0.0.1:{self.port}'); print(ray.cluster_resources().get('GPU'))"
        until, told = time.monotonic() + 120, b""
        while told != b"%d.0\n" % n_gpus and time.monotonic() < until:
            told = subprocess.run([sys.executable, "-c", look], env=self.environment, capture_output=True).stdout

    def kill(self, node: subprocess.Popen) -> None:
        for child in [node, *psutil.Process(node.pid).children(recursive=True)]:
            with suppress(psutil.Error, ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        node.wait()

    def close(self) -> None:
        for node in self.nodes:
            if node.poll() is None:
                self.kill(node)
        for pid, words in processes(self.root).items():
            with suppress(ProcessLookupError):
                if "ray::" in words:  # an agent of Ray that a dying raylet had just started
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def cluster(root, monkeypatch):
    pytest.importorskip("ray")
    found = Ray(root)
    yield found
    found.close()


def change_train(root: Path, old: str, new: str) -> None:
    train = root / "train.py"
    train.write_text(train.read_text().replace(old, new))
    git(root, "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "-qam", "another train.py")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("n_rows", "n_kills"), [(40, 5), (200, 50)])
def test_a_cluster_that_loses_and_wins_a_node_loses_no_row(root, cluster, arguments, n_rows, n_kills):
    for n_gpus in (2, 4):  # two nodes at once on one machine may take each other's ports
        cluster.join()
        cluster.wait(n_gpus)
    names = [f"WIDTH{n}" for n in range(8)]  # enough to vary
    change_train(root, "WIDTH = 200", "\n".join([*(f"{name} = 200" for name in names), f"WIDTH = {' + '.join(names)}"]))
    rng, path, kills = random.Random(0), root / "results.tsv", 0
    command = [sys.executable, "agent.py", *arguments, "--ray", f"127.0.0.1:{cluster.port}", "--experiments", "1000"]
    agent, changed = None, False
    while path.read_bytes().count(b"\n") <= n_rows or kills < n_kills:
        if agent is None or agent.poll() is not None:
            assert agent is None or agent.returncode == -signal.SIGKILL, (root / "out.txt").read_text()
            with open(root / "out.txt", "a") as file:
                agent = subprocess.Popen(command, cwd=root, env=cluster.environment, stdout=file, stderr=file,
                                         start_new_session=True)
        time.sleep(rng.uniform(0, 20))
        if path.read_bytes().count(b"\n") > n_rows / 2 and not changed:
            cluster.kill(cluster.nodes[1])
            cluster.join()
            changed = True
        if kills < n_kills:
            agent.kill()
            agent.wait()
            kills += 1
    agent.send_signal(signal.SIGINT)
    agent.wait(60)
    rows = ledger.read(path)
    print(f"{len(rows)} rows, {kills} kills of the agent, by slot: "
          f"{Counter(note for row in rows for note in row.note.split('; ') if note.startswith('on '))}")
    assert Counter(row.status for row in rows)[Status.CRASH] == 0
    cluster.close()  # its processes work in this folder too
    recovered(root, path.read_bytes())


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("end", ["stop", "head"])
def test_a_second_ctrl_c_ends_the_trials_of_a_cluster_and_its_heads_death_the_session(root, cluster, arguments, end):
    change_train(root, "SLEEP_S = 0.1", "SLEEP_S = 25")
    cluster.join()
    cluster.wait(2)
    agent = subprocess.Popen([sys.executable, "agent.py", *arguments, "--ray", f"127.0.0.1:{cluster.port}"], cwd=root,
                             env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 120
    while not any("lab.referee" in words for words in processes(root).values()) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(2)
    if end == "head":
        cluster.kill(cluster.nodes[0])
    else:
        agent.send_signal(signal.SIGINT)
        time.sleep(1)
        agent.send_signal(signal.SIGINT)
    out, _ = agent.communicate(timeout=200)
    print(f"{end}: exit code {agent.returncode}: {out.splitlines()[-1][:120]}")
    assert (agent.returncode == 0) == (end == "stop"), out
    left = [words for words in processes(root).values() if "train.py" in words or "lab.referee" in words]
    assert end == "head" or not left
    cluster.close()
    recovered(root, (root / "results.tsv").read_bytes())
