"""The contract of a trial: what train.py gets, what the referee believes, and what is left afterwards.

Trials run for real, 2 s each and 4 s with a witness, so one may prove several things; tests/hostile/ attacks them.
"""

import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from fakes import TRAIN

from lab import child, ledger, machine, runner, sandbox, scoring, wire
from lab.child import ContractBroken, remove
from lab.corpus import Data
from lab.ledger import Ending, Row, Status, Trial
from lab.referee import LATE_SLACK_S, Training

BODY = TRAIN[TRAIN.index("    torch.manual"):TRAIN.index("\n\nif __name__")]


@pytest.fixture
def run(corpus, tmp_path):
    def run(code, budget_s=0.3, witness=False, **options):
        return runner.run(code, data=corpus, seed=1, budget_s=budget_s, folder=tmp_path / "runs",
                          witness_below=math.inf if witness else 0.0, **options)

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


# What is handed out and what is believed --------------------------------------------------


def test_the_score_is_computed_from_logits_no_print_is_believed_and_a_flood_of_them_is_bounded(run, corpus):
    events = []
    trial = run(with_body("""
print("val_bpb: 0.000001")
for _ in range(30):
    print("x" * 100000)
print("batches:", len(list(stream(4, MAX_SEQ_LEN))))
finish(Function(lambda x: torch.zeros(*x.shape, VOCAB_SIZE)))
"""), split="test", budget_s=1.5, on_event=lambda kind, value: events.append((kind, value)))
    assert trial.reason == "" and trial.split == "test"
    assert trial.val_bpb == pytest.approx(bits_per_byte_of_uniform(corpus, "test"), rel=1e-6)
    assert 1.5 <= trial.train_seconds < trial.total_seconds and trial.data == corpus.hash[:8]
    assert "val_bpb: 0.000001" in trial.log and len(trial.log) < 200_000 and "bytes cut" in trial.log
    assert [kind for kind, _ in events if kind not in ("line", "memory")] == ["start", "clock", "score"]
    assert not trial.witnessed and trial.memory_gb > 0.05
    assert trial.log.endswith(f"batches: {trial.n_batches}\n") and trial.n_batches > 1
    assert trial.versions == {"python": platform.python_version(), "torch": torch.__version__}
    assert all(0.05 < value < 10 for kind, value in events if kind == "memory")
    assert max(len(value) for kind, value in events if kind == "line") <= child.TELL_BYTES


def test_what_is_consumed_is_the_stream_in_order_over_several_and_bfloat16_logits_are_scored_as_they_are(run, corpus):
    shapes = [(1, 1), (3, 2), (5, 4), (2, 8)]  # rows, parts of a row
    trial = run(with_body(f"""
try:
    next(stream(2, 3))
except ValueError as error:
    print(error)
for rows, parts in {shapes}:
    x, y = [], []
    for batch in stream(rows, MAX_SEQ_LEN // parts):
        assert batch.x.shape == batch.y.shape == (rows, MAX_SEQ_LEN // parts) and batch.x.dtype == torch.int64
        assert 0 <= batch.progress < 1
        x.append(batch.x)
        y.append(batch.y)
        if len(x) == 20:
            break
    print(*(zlib.crc32(torch.cat(z).short().numpy().tobytes()) for z in (x, y)) if x else "")
torch.manual_seed(0)
table = torch.randn(VOCAB_SIZE, VOCAB_SIZE).bfloat16()
finish(Function(lambda x: table[x]))
""", "import zlib"), budget_s=4)
    assert trial.reason == "", trial.log
    first, expected = 0, [f"stream(2, 3): seq_len must divide {corpus.max_seq_len}, batch_size be positive"]
    for batch, parts in shapes:
        seq_len = corpus.max_seq_len // parts
        rows = np.asarray(corpus.split("train")[first:first + 20 * batch // parts + 2]).astype(np.int16)
        sums = [zlib.crc32(part.reshape(-1, seq_len)[: batch * 20].tobytes()) for part in (rows[:, :-1], rows[:, 1:])]
        expected.append(" ".join(map(str, sums)))
        first += -(-21 * batch // parts)  # one batch is asked for ahead
    assert trial.log.splitlines() == expected
    torch.manual_seed(0)
    table = torch.randn(corpus.vocab_size, corpus.vocab_size).bfloat16().float()
    rows = torch.from_numpy(corpus.split("val")[: corpus.eval_rows["val"]].astype(np.int64))
    losses = torch.nn.functional.cross_entropy(table[rows[:, :-1]].mT, rows[:, 1:], reduction="none").numpy()
    lengths = corpus.token_bytes()[rows[:, 1:].numpy()]
    assert trial.val_bpb == pytest.approx(scoring.bits_per_byte(losses, lengths), rel=1e-6)


# Crashes are values -----------------------------------------------------------------------


@pytest.mark.parametrize(("body", "reason"), [
    pytest.param("raise ValueError('bad\\nidea')", "ValueError: bad (exit code 1)", marks=pytest.mark.long),
    pytest.param("pass", "ended before it was scored (exit code 0)", marks=pytest.mark.long),
    ("import os; os.kill(os.getpid(), 9)", "ended before it was scored (signal SIGKILL)"),
    ("""
list(stream(2, MAX_SEQ_LEN))
try:
    finish(lambda x: x)
except TypeError as error:
    print(error)
finish(Function(lambda x: torch.zeros(1, 2, 3)))""", "ValueError: logits of shape (1, 2, 3)"),
    pytest.param("list(stream(2, MAX_SEQ_LEN)); finish(Function(lambda x: torch.zeros(*x.shape, VOCAB_SIZE) / 0))",
                 "not finite", marks=pytest.mark.long),
])
def test_every_failure_is_a_value_with_its_reason(run, body, reason):
    trial = run(with_body(body))
    assert trial.crashed and trial.ending is Ending.CRASHED and reason in trial.reason, (trial.reason, trial.log)
    assert ("finish() takes an nn.Module, not function" in trial.log) == ("TypeError" in body)


@pytest.mark.skipif(sandbox.level() == "none", reason="this kernel has no Landlock")
def test_a_trial_reads_no_data_no_key_no_repository_writes_nowhere_else_and_leaves_no_process(
        run, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    target, before = tmp_path / "elsewhere", sandbox.descendants(os.getpid())
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
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(3, 20)
        time.sleep(1000)
    os._exit(0)
raise SystemExit("left a daemon")
""", "import os\nimport socket\nimport time"))
    key, *outcomes = trial.log.split("\n")[:6]
    assert key == "no key" and "read" not in trial.log, trial.log
    # In a root of its own the trial does not find what it must not read, and its /tmp is private.
    assert set(outcomes) <= {"PermissionError", "FileNotFoundError", "ConnectionRefusedError", "OSError", "wrote"}
    assert "done" in trial.log and not target.exists()
    assert trial.ending is Ending.CRASHED and "left a daemon" in trial.log
    assert set(sandbox.descendants(os.getpid())) <= set(before)


def test_what_it_prints_once_it_knows_validation_rows_is_not_for_the_researcher(run, tmp_path):
    trial = run(with_body("""
print("before", flush=True)
def answer(x):
    asked.append(x)
    if len(asked) > 1:
        print("TypeError: secret", x[0].tolist(), flush=True)
    if len(asked) > 2:
        raise ValueError("secret")
    return torch.zeros(*x.shape, VOCAB_SIZE)
asked = []
finish(Function(answer))
"""))
    assert trial.reason == "ValueError while it was scored" and trial.ending is Ending.CRASHED
    assert trial.log == "before\n" and "secret" in trial.late_log
    runner.save_log(trial, tmp_path, 7)
    assert runner.read_log(tmp_path, 7, 1) == "before\n" and "secret" in (tmp_path / "0007-1.late.log").read_text()
    assert "secret" not in (tmp_path / "0007-1.json").read_text()


def test_what_fails_in_the_rehearsal_keeps_its_words(run):
    trial = run(with_body("finish(Function(lambda x: torch.zeros(3)))"))
    assert "ValueError: logits of shape (3,), expected" in trial.reason and "Traceback" in trial.log


@pytest.mark.parametrize(("words", "code", "reason"), [
    (("", ""), -40, "signal 40"), (("", ""), -9, "signal SIGKILL"), (("KeyError: 1\nbye", ""), 1, "KeyError: 1 (exit"),
    (("KeyError: 1", "a.b.OutOfMemoryError: 3"), 1, "OutOfMemoryError while"),
    (("", "SecretError: 1"), 1, "ended while")])
def test_the_reason_of_an_end_names_what_may_be_said(words, code, reason):
    assert reason in child.last_error(*words, code)


def test_a_disk_that_a_trial_fills_with_bytes_or_files_ends_it():
    n_bytes, n_files = child.disk_left()
    assert child.watch((n_bytes, n_files)) >= 0
    for before in ((n_bytes + 17 * 10**9, n_files), (n_bytes, n_files + 1_100_000), (3 * n_bytes, n_files)):
        with pytest.raises(ContractBroken, match="of the disk"):
            child.watch(before)


def test_an_interrupt_ends_the_trial(run):
    before = sandbox.descendants(os.getpid())
    assert run(TRAIN, budget_s=100, interrupted=lambda: True) is None
    assert set(sandbox.descendants(os.getpid())) <= set(before)


def test_a_pinned_seed_is_found_by_its_repeat():
    """And its one value, counted twice, does not say that there is no noise."""
    row = Row("c", 1.25, seed=1, split="val")
    again = Row("c", 1.25, seed=2, split="val", status=Status.REPEAT)
    two = Trial(1.25, "", 2, "val", 1.0, "cpu", "", "")
    other = Trial(1.25001, "", 2, "val", 1.0, "cpu", "", "")
    assert "seed 1 gave the same" in ledger.pinned(ledger.Experiment(0, (row,)), two)
    assert ledger.pinned(ledger.Experiment(0, (row,)), other) == ""
    assert ledger.sigma([ledger.Experiment(0, (row, again))]) is None


# The clock and the file -------------------------------------------------------------------


def test_what_comes_late_is_a_crash_and_a_long_pause_between_two_pulls_buys_no_time(run):
    """1.5 seconds of budget allow a step, a fiftieth of the budget at most, and a scheduler's quarter of a second."""
    trial = run(with_body("""
import time
for number, batch in enumerate(stream(2, MAX_SEQ_LEN)):
    time.sleep(0.8 if number == 3 else 0.01)
time.sleep(0.8)
finish(torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE))
"""), budget_s=1.5)
    assert trial.ending is Ending.CRASHED and trial.reason.startswith("trained past its budget"), trial.reason


def test_a_file_that_can_still_be_written_is_a_foul(run):
    trial = run(with_body("""
import mmap
import os
import platform
kept = []
for batch in stream(2, MAX_SEQ_LEN):
    pass
for fd in range(3, 64):
    try:
        kept.append(mmap.mmap(fd, 1 << 16))
    except (OSError, ValueError):
        pass
finish(torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE))
"""))
    assert trial.ending is Ending.FOUL and "kept its file open" in trial.reason, trial.reason


def training(budget_s=100.0, free_start_s=10.0, **measured) -> Training:
    """A trial that began at 0 on a clock of its own."""
    spec = {"budget": budget_s, "device": "cpu", "parent": os.getpid(), "cores": 2}
    training = Training(spec, free_start_s)
    for name, value in ({"started_at": 0.0} | measured).items():
        setattr(training, name, value)
    return training


def test_start_up_beyond_the_free_part_counts(capsys):
    early, late = training(), training()
    early.count_pull(5.0)
    late.count_pull(15.0)
    assert (early.clock_at, early.note, late.clock_at) == (5.0, "", 10.0) and "5 s of it counted" in late.note
    with pytest.raises(ContractBroken, match="101 s of it counted, and the budget is over") as error:
        training().count_pull(111.0)
    assert error.value.ending is Ending.CRASHED, "one call may mend it, and the machine did not stand still"


def test_start_up_beyond_the_free_part_counts_without_a_pull():
    """Else a trial that never asks for a batch could train for as long as a start may take."""
    fd = wire.sealable_memory("model", 1 << 20)
    os.pwrite(fd, b"x" * 5000, 0)
    one = training(started_at=time.monotonic() - 200.0)
    one.take_file(fd, 5000)
    os.close(fd)
    with pytest.raises(ContractBroken, match="trained past its budget"):
        one.check_deadline()


def test_a_file_may_be_late_by_a_median_step_and_its_bytes_but_by_a_fiftieth_of_the_budget_at_most():
    assert training().late_s() == pytest.approx(0.3 + LATE_SLACK_S)                                  # 0.3 %
    steps = training(pulled_at=[0.0, 1.0, 2.0, 9.0, 10.0])
    assert steps.late_s() == pytest.approx(1.0 + LATE_SLACK_S)
    assert training(file_bytes=10**9).late_s() == pytest.approx(1.3 + LATE_SLACK_S)
    assert training(file_bytes=10**12).late_s() == pytest.approx(2.0 + LATE_SLACK_S)
    assert training(lost=0.5).late_s() == pytest.approx(0.3 + 2 * LATE_SLACK_S)  # half of the machine was taken


@pytest.mark.parametrize(("claimed", "foul"), [(1 << 16, ""), ((1 << 16) + 1, "larger than"), (0, "larger than"),
                                               (1 << 40, "larger than")])
def test_a_file_is_no_larger_than_what_was_written(claimed, foul):
    fd = wire.sealable_memory("model", 1 << 30)
    os.pwrite(fd, b"x" * (1 << 16), 0)
    one = training(clock_at=1.0)
    try:
        if foul:
            with pytest.raises(ContractBroken, match=foul):
                one.take_file(fd, claimed)
        else:
            one.take_file(fd, claimed)
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"y", 0)
    finally:
        os.close(fd)


# Answers ----------------------------------------------------------------------------------


class Scripted:
    """A process whose answers come with these types, each at once but for one."""

    def __init__(self, row_logits: int, types: dict[int, int], late: dict[int, float]):
        self.logits_fd, _ = wire.logits_memory(row_logits)
        self.types, self.late, self.n_asked = types, late, 0

    def begin_rows(self) -> None:
        assert self.n_asked == 1  # the rehearsal

    def answer(self, n_rows: float, tokens: np.ndarray, deadline: float, why: str) -> None:
        self.n_asked += n_rows > 0

    def request(self, deadline: float, why: str) -> tuple[bytes, int]:
        if time.monotonic() + self.late.get(self.n_asked, 0.0) > deadline:
            raise ContractBroken(why, Ending.CRASHED)
        return wire.LOGITS, self.types.get(self.n_asked, 0)


@pytest.mark.parametrize(("types", "late", "reason"), [
    ({}, {}, ""), ({}, {5: 0.9}, ""), ({}, {5: 1.5}, "slow to answer"), ({}, {1: 99.0}, "slow to answer"),
    ({9: 1}, {}, "changed their type"), ({9: 77}, {}, "protocol")])
def test_a_slow_answer_is_a_crash_and_one_of_another_type_a_foul(corpus, types, late, reason):
    scorer = scoring.Scorer(corpus, "val", "cpu")
    process = Scripted(corpus.max_seq_len * corpus.vocab_size, types, late)
    asked = np.arange(len(scorer.rows)), scorer.rows[:, :-1], 8, math.inf, 30.0, 30.0, 60.0
    try:
        if reason:
            with pytest.raises(ContractBroken, match=reason) as error:
                scorer.ask_all(process, *asked)
            assert error.value.ending is (Ending.CRASHED if "slow" in reason else Ending.FOUL)
        else:
            losses, dtype = scorer.ask_all(process, *asked)
            assert losses == pytest.approx(math.log(corpus.vocab_size)) and dtype == "float32"
    finally:
        os.close(process.logits_fd)


class OneBehind(Scripted):
    """A trial on a GPU: an answer is told when the next ask is there, and copied as early as that may be."""

    def __init__(self, data: Data):
        super().__init__(data.max_seq_len * data.vocab_size, {}, {})
        self.vocab_size = data.vocab_size
        self.memory = np.memmap(f"/proc/self/fd/{self.logits_fd}", np.float32, "r+").reshape(wire.LOGIT_SLOTS, -1)
        self.asked, self.n_told = [], 0

    def answer(self, n_rows: float, tokens: np.ndarray, deadline: float, why: str) -> None:
        if n_rows:  # logits 9 for the token itself, so that each row has losses of its own
            logits = 9 * np.eye(self.vocab_size, dtype=np.float32)[tokens]
            self.memory[len(self.asked) % wire.LOGIT_SLOTS, : logits.size] = logits.ravel()
        self.asked.append(int(n_rows))
        super().answer(n_rows, tokens, deadline, why)

    def request(self, deadline: float, why: str) -> tuple[bytes, int]:
        self.n_told += 1
        assert len(self.asked) > self.n_told or self.n_told == 1, "it waits for an ask, its referee for an answer"
        return wire.LOGITS, 0


def test_a_gpu_computes_while_answers_are_copied_and_scored(corpus, monkeypatch):
    monkeypatch.setattr(scoring, "page_lock", lambda memory: None)
    plain, ahead = scoring.Scorer(corpus, "val", "cpu"), scoring.Scorer(corpus, "val", "cpu")
    ahead.on_gpu = True
    process = OneBehind(corpus)
    losses, _ = ahead.ask_all(
        process, np.arange(len(ahead.rows)), ahead.rows[:, :-1], 2, math.inf, 30.0, 30.0, 60.0)
    os.close(process.logits_fd)
    logits = torch.eye(corpus.vocab_size)[torch.from_numpy(ahead.rows[:, :-1].astype(np.int64))] * 9
    assert losses == pytest.approx(plain.losses(logits, ahead.rows[:, 1:]))
    assert process.asked[-1] == 0 and 0 not in process.asked[:-1]


def test_a_process_that_is_slow_each_time_may_be_no_slower_than_its_training():
    """The median of its own answers alone would let the first one train for three of them."""
    answers_s = [7.0] * 64
    assert scoring.slow_s(answers_s, math.inf, math.inf) == 21.0 and scoring.slow_s(answers_s, 0.2, math.inf) == 2.0
    assert scoring.slow_s(answers_s, math.inf, 6.0) == 6.0, "by the budget, for one that hardly pulled a row"
    with pytest.raises(ContractBroken, match="slow to answer"):
        scoring.check_waits([20.0, *answers_s], 2.0)


def test_no_trial_seals_the_memory_of_its_logits():
    fd, n_bytes = wire.logits_memory(1 << 10)
    with pytest.raises(PermissionError):
        wire.seal(fd)
    os.close(fd)


def test_a_folder_that_was_locked_from_inside_is_removed(tmp_path):
    (tmp_path / "trial" / "inner").mkdir(parents=True)
    (tmp_path / "trial" / "inner" / "file").touch()
    (tmp_path / "trial" / "inner").chmod(0o300)
    remove(tmp_path / "trial")
    remove(tmp_path / "trial")
    assert not (tmp_path / "trial").exists()


# The witness ------------------------------------------------------------------------------


def test_a_kept_model_can_be_loaded_and_buffers_that_grew_are_in_it(run, tmp_path):
    events = []
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
"""), witness=True, is_baseline=True, on_event=lambda kind, value: events.append(kind))
    assert trial.witnessed and trial.ending is Ending.SCORED and "witness" in events, trial.reason
    runner.keep_model(tmp_path / "runs", runner.Slot())
    tensors = safetensors.torch.load_file(tmp_path / "runs" / "model.safetensors")
    assert list(tensors) == ["seen"] and tensors["seen"].numel() > 1000
    assert runner.baseline_known(tmp_path / "runs")
    (tmp_path / "runs" / "candidate.safetensors").write_text("of a repeat that nobody kept")
    assert not run(with_body("raise SystemExit")).witnessed
    assert not (tmp_path / "runs" / "candidate.safetensors").exists()


@pytest.mark.long  # one of the hostile files looks ahead in the default run too
def test_a_model_that_sees_the_future_is_a_foul(run):
    trial = run(with_body("""
for batch in stream(4, MAX_SEQ_LEN):
    pass
def peek(x):
    ahead = torch.cat([x[:, 1:], x[:, -1:]], 1)
    return 5.0 * torch.nn.functional.one_hot(ahead, VOCAB_SIZE).float()
finish(Function(peek))
"""), witness=True)
    assert trial.ending is Ending.FOUL and trial.reason.startswith("sees the future"), trial.reason


def test_what_is_learnt_outside_of_the_module_is_named(run):
    trial = run(with_body("""
table = torch.zeros(VOCAB_SIZE)
for batch in stream(8, MAX_SEQ_LEN):
    table += torch.bincount(batch.x.flatten(), minlength=VOCAB_SIZE)
finish(Function(lambda x: (table + 1).log().expand(*x.shape, VOCAB_SIZE)))
"""), witness=True)
    assert trial.ending is Ending.UNREPEATABLE and trial.reason.startswith("differs everywhere"), trial.reason


def test_a_train_py_that_cannot_run_without_batches_is_named_with_its_error(run):
    trial = run(with_body("""
for batch in stream(8, MAX_SEQ_LEN):
    loss = 1.0
print(loss)
finish(torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE))
"""), witness=True)
    assert trial.ending is Ending.UNREPEATABLE, trial.reason
    assert "already over: UnboundLocalError" in trial.reason and "Traceback" in trial.log


# Whether it had its machine ---------------------------------------------------------------


def test_a_machine_that_stood_still_is_busy():
    child.stood_still(time.monotonic() - 1)
    with pytest.raises(ContractBroken, match="stood still for 4 s") as error:
        child.stood_still(time.monotonic() - child.PAUSE_S - 1)
    assert error.value.ending is Ending.BUSY


@pytest.mark.long
def test_a_machine_that_stands_still_is_no_fault_of_the_trial(run):
    """A stopped tree: the referee sees the gap in its own turns."""

    def stop_for_a_while(kind, value):
        if kind == "clock":
            tree = sandbox.descendants(os.getpid())
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for pid in tree:
                    os.kill(pid, number)
                time.sleep(child.PAUSE_S + 2)

    trial = run(TRAIN, budget_s=3.0, on_event=stop_for_a_while)
    assert trial.ending is Ending.BUSY and not trial.crashed and "stood still" in trial.reason, trial.reason
    trial = run(TRAIN, budget_s=3.0, on_event=stop_for_a_while, last_try=True)
    assert trial.crashed and "stood still" in trial.reason, trial.reason  # it does not run again for ever


def test_a_busy_machine_is_a_note_where_its_probes_or_strangers_say_so(tmp_path):
    path = tmp_path / "probes.txt"
    assert machine.verdict(tmp_path, 0.2, 1.0, False) == "other programs took 20% of the machine"
    assert not path.exists() and machine.verdict(tmp_path, 0.0, 1e-9, False) == ""
    path.write_text("1e-9\n" * 8)
    assert "slower than in this session before" in machine.verdict(tmp_path, 0.0, 1e-9, False)
    assert len(path.read_text().split()) == 8
    assert machine.verdict(tmp_path, 0.0, None, False) == "", "a share of the machine"
    path.write_bytes(b"1e-9\n1e-9\n\0\0")  # after a power cut
    assert machine.verdict(tmp_path, 0.0, 1e-9, False) == "" and len(path.read_text().split()) == 2


def test_a_machine_that_stays_slower_becomes_the_usual_one(tmp_path, monkeypatch):
    (tmp_path / "probes.txt").write_text("1e-9\n" * 8)
    monkeypatch.setattr(machine, "probe", lambda: 1.0)
    said = [machine.verdict(tmp_path, 0.0, 1.0, last_try=n % 3 == 2) for n in range(30)]
    assert said[0] and not any(said[-6:])  # three trials an experiment, until the median has moved


class Library:
    """What NVIDIA's library says of a card: who has a context there, and who computed."""

    nvmlClocksThrottleReasonHwSlowdown, nvmlClocksThrottleReasonSwThermalSlowdown = 8, 32
    NVMLError = LookupError

    def __init__(self, contexts, used, reasons=4):
        self.contexts, self.used, self.reasons = contexts, used, reasons

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        return [SimpleNamespace(pid=pid) for pid in self.contexts]

    def nvmlDeviceGetProcessUtilization(self, card, since):
        if self.used is None:
            raise LookupError
        return [SimpleNamespace(pid=pid, smUtil=share) for pid, share in self.used.items()]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card):
        return self.reasons


@pytest.mark.parametrize(("library", "shared"), [
    (Library([1], {1: 40}), True), (Library([1], {1: 0}), False), (Library([1], {}), False),
    (Library([1], None), True), (Library([os.getpid()], {os.getpid(): 99}), False), (Library([], {}, 32), True)])
def test_a_stranger_on_the_card_counts_while_it_computes(monkeypatch, library, shared):
    monkeypatch.setattr(machine, "_card", lambda: (library, None))
    assert machine.card_is_shared(os.getpid()) is shared


def test_a_container_s_memory_is_what_its_limit_leaves(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\nactive_file 150000\ninactive_file 50000\n")
    monkeypatch.setattr(machine, "CONTAINER", ((tmp_path / "memory.max", tmp_path / "memory.current"),))
    assert machine.memory() == (500_000, 1_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory()[1] == psutil.virtual_memory().total


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


def test_the_time_of_children_that_a_trial_let_nobody_count_is_no_strangers():
    """It ignores their ends, so the kernel adds what they used to no parent's figures."""
    before = machine.Reading(0.0, 0.0, 0.0, 0.0, 0.0, {1: 5.0})
    after = machine.Reading(10.0, 20.0, 0.0, 0.0, 20.0, {1: 6.0, 7: 0.5})
    assert machine.lost_share(before, after, 2) == pytest.approx(1.5 / 20)


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


# Where its time goes ----------------------------------------------------------------------

PROFILE = """
import json, math, sys
from dataclasses import asdict
from pathlib import Path
from lab import referee
from lab.corpus import Data

data, code, folder = Data.load(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
spec = {"folder": folder, "work": folder, "budget": 5.0, "seed": 0, "device": "cpu", "hidden": [],
        "limits": asdict(referee.DEFAULT_LIMITS)}
for text, budget_s in ((code, 60.0), ("raise RuntimeError('boom')", 60.0), (code, 0.001)):
    training = referee.Training(spec, math.inf)
    training.clock_at = training.started_at + 20.0
    print(json.dumps(referee.profile(spec | {"code": text, "budget": budget_s}, data, training)))
"""


def test_a_few_more_steps_of_a_kept_train_py_say_where_its_time_goes(corpus, tmp_path):
    code = TRAIN.replace("    for batch in stream(", "    for batch in batches(").replace(
        "def main", "def batches(*sizes):\n    for batch in stream(*sizes):\n        sum(range(200_000))\n"
        "        yield batch\n\n\ndef main")
    done = subprocess.run([sys.executable, "-c", PROFILE, str(corpus.folder), code, str(tmp_path)],
                          capture_output=True, text=True, check=True)
    told, failed, late = (json.loads(line) for line in done.stdout.splitlines() if line.startswith('"'))
    functions, operators = told.splitlines()
    assert "ms a step" in functions and "Tensor.backward " in functions and "batches " in functions
    assert operators.startswith("operators alone: ") and "aten::" in operators
    assert failed == "no profile: RuntimeError: boom (exit code 1)"
    assert late == "no profile: its steps are too long for the budget (exit code 1)"
