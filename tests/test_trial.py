"""The contract of a trial: what train.py gets, what the referee believes, and what is left afterwards."""

import math
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from fakes import TRAIN

from lab import channel, feeding, ledger, machine, runner, sandbox
from lab.ledger import Ending, Row

BODY = TRAIN[TRAIN.index("    torch.manual"):TRAIN.index("\n\nif __name__")]


@pytest.fixture
def run(corpus, tmp_path):
    def run(code, budget_s=0.3, split="val", seed=1, **options):
        return runner.run(code, data=corpus, seed=seed, budget_s=budget_s, folder=tmp_path / "runs", split=split,
                          **options)

    return run


FUNCTION = """

class Function(torch.nn.Module):
    \"\"\"A model without a tensor.\"\"\"

    def __init__(self, function):
        super().__init__()
        self.forward = function


"""


def with_body(body: str, imports: str = "") -> str:
    """A train.py with this main(), in which Function(f) is a module that answers f(x)."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").split("\n"))
    code = TRAIN.replace(BODY, lines).replace("import torch\n", f"import torch\n{imports}\n", 1)
    return code.replace("\n\ndef main", FUNCTION + "def main", 1)


def bits_per_byte_of_uniform(data, split="val"):
    targets = data.split(split)[: data.eval_rows[split], 1:]
    lengths = data.token_bytes()[targets]
    return (lengths > 0).sum() * math.log2(data.vocab_size) / lengths.sum()


UNIFORM = """
class Uniform(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(*x.shape, VOCAB_SIZE)
for batch in stream(4, MAX_SEQ_LEN):
    pass
print("val_bpb: 0.000001")
finish(Uniform())
"""


def test_the_score_is_computed_from_logits_and_no_print_is_believed(run, corpus):
    trial = run(with_body(UNIFORM), split="test")
    assert trial.reason == "" and trial.split == "test"
    assert trial.val_bpb == pytest.approx(bits_per_byte_of_uniform(corpus, "test"), rel=1e-6)
    assert "val_bpb: 0.000001" in trial.log
    assert trial.train_seconds == pytest.approx(0.3, abs=0.3) and trial.data == corpus.hash[:8]


@pytest.mark.parametrize(("batch", "parts"), [(1, 1), (3, 2), (5, 4), (2, 8)])
def test_what_is_consumed_is_the_stream_in_order(run, corpus, batch, parts):
    seq_len = corpus.max_seq_len // parts
    trial = run(with_body(f"""
seen, first = [], 0
for batch in stream({batch}, {seq_len}):
    assert batch.x.shape == batch.y.shape == ({batch}, {seq_len}) and batch.x.dtype == torch.int64
    assert 0 <= batch.progress < 1
    seen += [batch.x, batch.y]
    if len(seen) == 40:
        break
if seen:
  print("sum", zlib.crc32(torch.cat(seen[0::2]).short().numpy().tobytes()), flush=True)
  print("sum", zlib.crc32(torch.cat(seen[1::2]).short().numpy().tobytes()), flush=True)
finish(Function(lambda x: torch.zeros(*x.shape, VOCAB_SIZE)))
""", "import zlib"), budget_s=4)
    assert trial.reason == "", trial.log
    rows = np.asarray(corpus.split("train")[: batch * 20 // parts + 2]).astype(np.int16)
    x = rows[:, :-1].reshape(-1, seq_len)[: batch * 20]
    y = rows[:, 1:].reshape(-1, seq_len)[: batch * 20]
    assert trial.log.split() == ["sum", str(zlib.crc32(x.tobytes())), "sum", str(zlib.crc32(y.tobytes()))]


def test_a_model_that_sees_the_future_is_a_crash(run):
    trial = run(with_body("""
for batch in stream(4, MAX_SEQ_LEN):
    pass
def peek(x):
    ahead = torch.cat([x[:, 1:], x[:, -1:]], 1)
    return 5.0 * torch.nn.functional.one_hot(ahead, VOCAB_SIZE).float()
finish(Function(peek))
"""))
    assert trial.crashed and trial.reason.startswith("sees the future")


def test_a_model_that_keeps_state_is_a_crash(run):
    trial = run(with_body("""
for batch in stream(4, MAX_SEQ_LEN):
    pass
bias = torch.zeros(VOCAB_SIZE)
def learn(x):
    logits = bias.expand(*x.shape, VOCAB_SIZE).clone()
    bias.add_(0.01 * torch.bincount(x.flatten(), minlength=VOCAB_SIZE))
    return logits
finish(Function(learn))
"""))
    assert trial.crashed and re.match("differs everywhere|sees the future", trial.reason), trial.reason


@pytest.mark.parametrize(("body", "reason"), [
    ("raise ValueError('bad\\nidea')", "ValueError: bad (exit code 1)"),
    ("pass", "ended before it was scored (exit code 0)"),
    ("import os; os.kill(os.getpid(), 9)", "ended before it was scored (signal SIGKILL)"),
    ("next(iter(stream(2, 3)), None)", "ValueError: stream(2, 3)"),
    ("next(iter(stream(2, MAX_SEQ_LEN)), None); finish(Function(lambda x: torch.zeros(1, 2, 3)))",
     "ValueError: logits of shape (1, 2, 3)"),
    ("list(stream(2, MAX_SEQ_LEN)); finish(Function(lambda x: torch.zeros(*x.shape, VOCAB_SIZE) / 0))",
     "not finite"),
    ("import time; next(iter(stream(2, MAX_SEQ_LEN)), None); time.sleep(99)", "trained past its budget"),
    ("import prepare, time; list(stream(2, MAX_SEQ_LEN)); prepare._link().ask(b'z', 1); time.sleep(99)", "protocol"),
])
def test_every_failure_is_a_value_with_its_reason(run, body, reason):
    trial = run(with_body(body))
    assert trial.crashed and reason in trial.reason, (trial.reason, trial.log)


def test_bfloat16_logits_score_nearly_the_same(run):
    one, two = (run(with_body(f"""
torch.manual_seed(0)
table = torch.randn(VOCAB_SIZE, VOCAB_SIZE)
next(iter(stream(2, MAX_SEQ_LEN)), None)
finish(Function(lambda x: table[x].{kind}))
""")) for kind in ("float()", "bfloat16()"))
    assert one.val_bpb == pytest.approx(two.val_bpb, rel=1e-3) and one.val_bpb != two.val_bpb


def test_a_pinned_seed_is_found_by_its_repeat(run):
    """And its one value, counted twice, does not say that there is no noise."""
    one, two = (run(with_body("""
torch.manual_seed(1337)
next(iter(stream(2, MAX_SEQ_LEN)), None)
finish(torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE).to(device))
"""), seed=seed) for seed in (1, 2))
    row = Row("c", one.val_bpb, seed=one.seed, split=one.split)
    again = replace(row, val_bpb=two.val_bpb, seed=two.seed, status="repeat")
    other = replace(two, val_bpb=two.val_bpb + 1e-5)
    assert "seed 1 gave the same" in ledger.pinned(ledger.Experiment(0, (row,)), two)
    assert ledger.pinned(ledger.Experiment(0, (row,)), other) == ""
    assert ledger.sigma([ledger.Experiment(0, (row, again))]) is None


def test_nothing_of_a_trial_outlives_it(run):
    before = sandbox.descendants(os.getpid())
    trial = run(with_body("""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3, 20):
            try:
                os.close(fd)
            except OSError:
                pass
        time.sleep(1000)
    os._exit(0)
raise SystemExit("left a daemon")
""", "import os\nimport time"))
    assert "left a daemon" in trial.reason or trial.crashed
    assert set(sandbox.descendants(os.getpid())) <= set(before)


@pytest.mark.skipif(sandbox.level() == "none", reason="this kernel has no Landlock")
def test_a_trial_reads_no_data_no_key_no_repository_and_writes_nowhere_else(run, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    target = tmp_path / "elsewhere"
    trial = run(with_body(f"""
print("key" if "sk-secret" in str(os.environ) else "no key")
for path in ({str(corpus.folder / 'val.bin')!r}, {str(Path(runner.__file__))!r}, "/proc/{os.getpid()}/environ"):
    try:
        print("read", path, open(path, "rb").read(1))
    except OSError as error:
        print(type(error).__name__)
try:
    open({str(target)!r}, "w")
    print("wrote")
except OSError as error:
    print(type(error).__name__)
try:
    socket.create_connection(("127.0.0.1", 80), 1)
except OSError as error:
    print(type(error).__name__)
open("mine", "w").write("x")
print("done", flush=True)
""", "import os\nimport socket"))
    key, *outcomes = trial.log.split("\n")[:6]
    assert key == "no key" and "read" not in trial.log, trial.log
    # In a root of its own the trial does not find what it must not read, and its /tmp is private.
    assert set(outcomes) <= {"PermissionError", "FileNotFoundError", "ConnectionRefusedError", "OSError", "wrote"}
    assert "done" in trial.log and not target.exists()


def test_a_flood_of_output_is_bounded(run):
    trial = run(with_body("""
for batch in stream(4, MAX_SEQ_LEN):
    print("x" * 100000)
finish(Function(lambda x: torch.zeros(*x.shape, VOCAB_SIZE)))
"""))
    assert not trial.crashed and len(trial.log) < 200_000 and "bytes cut" in trial.log


def test_an_interrupt_ends_the_trial(run):
    before = sandbox.descendants(os.getpid())
    assert run(TRAIN, budget_s=100, interrupted=lambda: True) is None
    assert set(sandbox.descendants(os.getpid())) <= set(before)


# The clock, the file and the witness ----------------------------------------------------------------------------------


def test_a_kept_model_can_be_loaded_into_its_train_py(run, tmp_path):
    trial = run(TRAIN)
    assert trial.witnessed and trial.ending is Ending.SCORED, trial.reason
    runner.keep_model(tmp_path / "runs")
    tensors = safetensors.torch.load_file(tmp_path / "runs" / "model.safetensors")
    assert list(tensors) == ["weight"] and tensors["weight"].abs().sum() > 0


def test_only_what_would_count_gets_a_witness(run):
    events = []
    trial = run(TRAIN, witness_below=0.0, on_event=lambda kind, value: events.append(kind))
    assert trial.val_bpb > 0 and not trial.witnessed and "witness" not in events


LATE = """
import time
for batch in stream(2, MAX_SEQ_LEN):
    time.sleep(0.01)
if batch_was_seen := "batch" in locals():
    time.sleep(SECONDS)
finish(torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE))
"""


def test_a_file_that_comes_late_is_a_foul_and_one_in_time_is_none(run):
    """Two seconds of budget allow a step, a fiftieth of the budget at most, and a quarter of a second."""
    late, in_time = (run(with_body(LATE.replace("SECONDS", s)), budget_s=2.0, witness_below=0.0) for s in ("1", "0"))
    assert late.ending is Ending.FOUL and late.reason.startswith("trained past its budget"), late.reason
    assert in_time.ending is Ending.SCORED, in_time.reason


def test_a_long_pause_between_two_pulls_buys_no_time_after_the_budget(run):
    trial = run(with_body("""
import time
for number, batch in enumerate(stream(2, MAX_SEQ_LEN)):
    time.sleep(1.0 if number == 3 else 0.01)
time.sleep(0.8)
finish(torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE))
"""), budget_s=2.0)
    assert trial.ending is Ending.FOUL and trial.reason.startswith("trained past its budget"), trial.reason


def test_a_file_that_can_still_be_written_is_a_foul(run):
    trial = run(with_body("""
import mmap
import prepare
for batch in stream(2, MAX_SEQ_LEN):
    pass
mine = mmap.mmap(prepare._link().file_fd, 1 << 16)
finish(torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE))
"""))
    assert trial.ending is Ending.FOUL and "kept its file open" in trial.reason, trial.reason


def test_start_up_beyond_the_free_part_counts():
    facts = feeding.Facts(started_at=100.0)
    assert feeding.start_clock(105.0, 10.0, facts) == 105.0 and facts.notes == []
    assert feeding.start_clock(115.0, 10.0, facts) == 110.0 and "5 s of it counted" in facts.notes[0]


def test_a_slow_answer_is_a_foul(run):
    trial = run(with_body("""
import time
list(stream(2, MAX_SEQ_LEN))
asked = []
def answer(x):
    asked.append(x)
    if len(asked) == 5:
        time.sleep(1.5)
    return torch.zeros(*x.shape, VOCAB_SIZE)
finish(Function(answer))
"""))
    assert trial.ending is Ending.FOUL and trial.reason.startswith("slow to answer"), trial.reason


def test_logits_that_change_their_type_are_a_foul(run):
    trial = run(with_body("""
list(stream(2, MAX_SEQ_LEN))
asked = []
def answer(x):
    asked.append(x)
    return torch.zeros(*x.shape, VOCAB_SIZE, dtype=torch.float32 if len(asked) < 9 else torch.bfloat16)
finish(Function(answer))
"""))
    assert trial.ending is Ending.FOUL and "changed their type" in trial.reason, trial.reason


def test_what_is_learnt_outside_of_the_module_is_named(run):
    trial = run(with_body("""
table = torch.zeros(VOCAB_SIZE)
for batch in stream(8, MAX_SEQ_LEN):
    table += torch.bincount(batch.x.flatten(), minlength=VOCAB_SIZE)
finish(Function(lambda x: (table + 1).log().expand(*x.shape, VOCAB_SIZE)))
"""))
    assert trial.ending is Ending.UNREPEATABLE and trial.reason.startswith("differs everywhere"), trial.reason


def test_a_train_py_that_cannot_run_without_batches_is_named_with_its_error(run):
    trial = run(with_body("""
for batch in stream(8, MAX_SEQ_LEN):
    loss = 1.0
print(loss)
finish(torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE))
"""))
    assert trial.ending is Ending.UNREPEATABLE, trial.reason
    assert "already over: UnboundLocalError" in trial.reason and "Traceback" in trial.log


def test_counts_in_a_buffer_that_grows_are_loaded(run):
    trial = run(with_body("""
class Counts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(0, dtype=torch.int64), persistent=False)
    def forward(self, x):
        counts = torch.bincount(self.seen, minlength=VOCAB_SIZE) + 1.0
        return counts.log().expand(*x.shape, VOCAB_SIZE)
model = Counts()
for batch in stream(8, MAX_SEQ_LEN):
    model.seen = batch.x.flatten()
finish(model)
"""))
    assert trial.witnessed, trial.reason


def test_nothing_that_is_not_a_module_is_scored(run):
    trial = run(with_body("list(stream(2, MAX_SEQ_LEN)); finish(lambda x: x)"))
    assert trial.ending is Ending.CRASHED and "TypeError: finish() takes an nn.Module" in trial.reason


def test_a_machine_that_stands_still_is_no_fault_of_the_trial(run):
    """A stopped tree: the referee sees the gap in its own turns."""

    def stop_for_a_while(kind, value):
        if kind == "clock":
            tree = sandbox.descendants(os.getpid())
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in tree:
                    os.kill(pid, number)
                time.sleep(channel.PAUSE_S + 2)

    trial = run(TRAIN, budget_s=3.0, on_event=stop_for_a_while)
    assert trial.ending is Ending.BUSY and not trial.crashed and "stood still" in trial.reason, trial.reason


# Whether it had its machine -------------------------------------------------------------------------------------------


def test_gpu_memory_is_waited_for_and_said_in_the_row_when_it_stays(monkeypatch):
    held = iter([21.0, 21.0, 10.0, 1.1])
    monkeypatch.setattr(machine, "card_used_gb", lambda: next(held))
    assert machine.wait_for_card(1.0) == "" and next(held, None) is None
    monkeypatch.setattr(machine, "card_used_gb", lambda: 21.0)
    assert machine.wait_for_card(1.0, 0.2) == "20.0 GB of GPU memory were still held 0 s after its end"


def reading(wall=0.0, busy=0.0, stolen=0.0, own=0.0, waited=0.0):
    return machine.Reading(wall, busy, stolen, own, waited)


@pytest.mark.parametrize(("after", "lost"), [
    (reading(wall=10, busy=20, own=20), 0.0),                        # it had both cores
    (reading(wall=10, busy=20, own=20, waited=15), 0.0),             # its own threads waited for each other
    (reading(wall=10, busy=20, own=15, waited=6), 0.25),             # strangers took five seconds that it wanted
    (reading(wall=10, busy=20, own=15, waited=0.5), 0.025),          # they ran where it wanted nothing
    (reading(wall=10, busy=10, own=10, stolen=4), 0.2),              # the host took them
])
def test_what_counts_is_what_it_wanted_and_strangers_took(after, lost):
    assert machine.lost_share(reading(), after, 2) == pytest.approx(lost)


def test_a_slower_machine_is_told_from_the_sessions_usual_noise():
    steady, noisy = [1.0, 1.01, 0.99, 1.0, 1.0, 1.01, 0.99], [1.0, 1.2, 0.9, 1.1, 0.8, 1.15, 0.95]
    assert machine.slower([1.0, 1.2], steady) == pytest.approx(0.2)
    assert machine.slower([1.0, 1.02], steady) == 0 and machine.slower([1.0, 1.2], noisy) == 0
    assert machine.slower([1.0, 5.0], steady[:3]) == 0  # too few to know


def test_strangers_are_told_from_the_agents_own():
    """The kernel's own figures: what strangers use is seen, and is not the agent's."""
    strangers = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    keeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        before = machine.read(keeper.pid)
        time.sleep(1.0)
        after = machine.read(keeper.pid)
        assert after.busy - before.busy > 0.5 and after.own == pytest.approx(before.own, abs=0.2)
    finally:
        for process in (*strangers, keeper):
            process.kill()
            process.wait()
