"""The contract of a trial: what train.py gets, what the referee believes, and what is left afterwards."""

import math
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import TRAIN

from lab import ledger, referee, runner, sandbox
from lab.ledger import Row

BODY = TRAIN[TRAIN.index("    torch.manual"):TRAIN.index("\n\nif __name__")]


@pytest.fixture
def run(corpus, tmp_path):
    def run(code, budget_s=0.3, split="val", seed=1, **options):
        return runner.run(code, data=corpus, seed=seed, budget_s=budget_s, folder=tmp_path / "runs", split=split,
                          **options)

    return run


def with_body(body: str, imports: str = "") -> str:
    """A train.py with this main()."""
    lines = "\n".join(f"    {line}" for line in body.strip("\n").split("\n"))
    return TRAIN.replace(BODY, lines).replace("import torch\n", f"import torch\n{imports}\n", 1)


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
print("sum", zlib.crc32(torch.cat(seen[0::2]).short().numpy().tobytes()), flush=True)
print("sum", zlib.crc32(torch.cat(seen[1::2]).short().numpy().tobytes()), flush=True)
finish(lambda x: torch.zeros(*x.shape, VOCAB_SIZE))
""", "import zlib"), budget_s=5)
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
finish(peek)
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
finish(learn)
"""))
    assert trial.crashed and "keeps state" in trial.reason or "sees the future" in trial.reason


@pytest.mark.parametrize(("body", "reason"), [
    ("raise ValueError('bad\\nidea')", "ValueError: bad (exit code 1)"),
    ("pass", "ended before it was scored (exit code 0)"),
    ("import os; os.kill(os.getpid(), 9)", "ended before it was scored (signal SIGKILL)"),
    ("next(iter(stream(2, 3)))", "ValueError: stream(2, 3)"),
    ("next(iter(stream(2, MAX_SEQ_LEN))); finish(lambda x: torch.zeros(1, 2, 3))",
     "ValueError: logits of shape (1, 2, 3)"),
    ("next(iter(stream(2, MAX_SEQ_LEN))); finish(lambda x: torch.full((*x.shape, VOCAB_SIZE), float('nan')))",
     "its logits are not finite"),
    ("import time; next(iter(stream(2, MAX_SEQ_LEN))); time.sleep(99)", "trained past its budget"),
    ("import prepare, time; list(stream(2, MAX_SEQ_LEN)); prepare._link().ask(b'z', 1); time.sleep(99)", "protocol"),
])
def test_every_failure_is_a_value_with_its_reason(run, body, reason):
    trial = run(with_body(body))
    assert trial.crashed and reason in trial.reason, (trial.reason, trial.log)


def test_bfloat16_logits_score_nearly_the_same(run):
    one, two = (run(with_body(f"""
torch.manual_seed(0)
table = torch.randn(VOCAB_SIZE, VOCAB_SIZE)
next(iter(stream(2, MAX_SEQ_LEN)))
finish(lambda x: table[x].{kind})
""")) for kind in ("float()", "bfloat16()"))
    assert one.val_bpb == pytest.approx(two.val_bpb, rel=1e-3) and one.val_bpb != two.val_bpb


def test_a_pinned_seed_is_found_by_its_repeat(run):
    """And its one value, counted twice, does not say that there is no noise."""
    one, two = (run(with_body("""
torch.manual_seed(1337)
next(iter(stream(2, MAX_SEQ_LEN)))
finish(torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE).to(device))
"""), seed=seed) for seed in (1, 2))
    row = Row("c", one.val_bpb, seed=one.seed, split=one.split)
    again = replace(row, val_bpb=two.val_bpb, seed=two.seed, status="repeat")
    other = replace(two, val_bpb=two.val_bpb + 1e-5)
    assert "seed 1 gave the same" in ledger.pinned(ledger.Experiment(0, (row,)), two)
    assert ledger.pinned(ledger.Experiment(0, (row,)), other) == ""
    assert ledger.sigma([ledger.Experiment(0, (row, again))]) is None


def test_gpu_memory_is_waited_for_and_said_in_the_row_when_it_stays():
    held = iter([20.0, 20.0, 9.0, 0.1])
    assert referee.given_back(lambda: next(held)) == ""
    assert next(held, None) is None
    assert referee.given_back(lambda: 20.0, 0.2) == "20.0 GB of GPU memory were still held 0 s after its end"


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
    assert trial.log.split("\n")[:6] == ["no key", *["PermissionError"] * 5], trial.log
    assert "done" in trial.log and not target.exists()


def test_a_flood_of_output_is_bounded(run):
    trial = run(with_body("""
for batch in stream(4, MAX_SEQ_LEN):
    print("x" * 100000)
finish(lambda x: torch.zeros(*x.shape, VOCAB_SIZE))
"""))
    assert not trial.crashed and len(trial.log) < 200_000 and "bytes cut" in trial.log


def test_an_interrupt_ends_the_trial(run):
    before = sandbox.descendants(os.getpid())
    assert run(TRAIN, budget_s=100, interrupted=lambda: True) is None
    assert set(sandbox.descendants(os.getpid())) <= set(before)
