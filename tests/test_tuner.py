"""The tuner: text in, text out, and nothing but digits changes."""

import ast
import math
import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lab import tuner
from lab.ledger import Proposal

CODE = '''"""Größe, naïve: ünï."""
from prepare import stream, finish

BATCH = 2**18          # tokens a step
ACCUMULATION = 2 ** 3  # spaces kept
DEPTH: int = 9         # layers
WIDTH = 640            # a multiple of 128
ROPE_BASE = 200_000
TOKENS = 524288
LR = 0.04
MOMENTUM = 0.95
DECAY = 3e-4
WARMUP = 0.0
OFFSET = -0.5
SCALE = 1.15
SEED = 42
HEAD_DIM = 128         # fixed: the kernel wants it
FLAG = True
NOTHING = 0
MINUS = -1
TWICE = 1
TWICE = 2
PAIR = (1, 2)
NAME = "LR = 3"
lower = 5
if DEPTH > 3:
    INNER = 7


def main():
    LOCAL = 3
    return LOCAL
'''
FREE = {"BATCH": 2**18, "ACCUMULATION": 8, "DEPTH": 9, "WIDTH": 640, "ROPE_BASE": 200_000, "TOKENS": 524288, "LR": 0.04,
        "MOMENTUM": 0.95, "DECAY": 3e-4, "OFFSET": -0.5, "SCALE": 1.15}


def drawn(code: str, history=(), seed: int = 0, device: str = "cpu") -> Iterator[Proposal]:
    """Proposals for a file that reads all of its constants."""
    reads = f"print({', '.join(tuner.knobs(code))})\n"
    for proposal in tuner.variations(code + reads, history, seed, device):
        yield replace(proposal, code=proposal.code.removesuffix(reads))


def first(code: str, history=(), seed: int = 0, device: str = "cpu") -> Proposal | None:
    return next(drawn(code, history, seed, device), None)


def shape(code: str) -> str:
    """The syntax tree with every number blanked."""
    return re.sub(r"Constant\(value=-?[0-9.e+-]+\)", "Constant()", ast.dump(ast.parse(code)))


def proposals(code: str = CODE, n: int = 60, history=()) -> list:
    return [first(code, history, seed) for seed in range(n)]


def test_finds_the_constants_that_may_vary_and_no_others():
    assert tuner.knobs(CODE) == FREE


def test_changes_only_digits_of_a_few_constants():
    for proposal in proposals():
        after = tuner.knobs(proposal.code)
        changed = [name for name in FREE if after[name] != FREE[name]]
        assert 1 <= len(changed) <= 2 and proposal.source == "tuner"
        assert shape(proposal.code) == shape(CODE)
        assert [part.split()[0] for part in proposal.description.split(", ")] == changed
        for before_line, after_line in zip(CODE.splitlines(), proposal.code.splitlines(), strict=True):
            assert before_line == after_line or any(name in before_line for name in changed)


def test_every_value_keeps_its_kind():
    for values in (tuner.knobs(proposal.code) for proposal in proposals(n=200)):
        assert {name: type(value) for name, value in values.items()} == {n: type(v) for n, v in FREE.items()}
        for name in ("BATCH", "ACCUMULATION", "TOKENS"):
            assert values[name].bit_count() == 1
        assert values["WIDTH"] % 128 == 0 and values["WIDTH"] > 0
        assert values["ROPE_BASE"] % 10_000 == 0
        assert 1 <= values["DEPTH"] <= 20
        for name in ("LR", "MOMENTUM", "DECAY"):
            assert 0 < values[name] < 1
        assert -1 < values["OFFSET"] < 0 < values["SCALE"]


def test_the_style_of_a_constant_stays():
    text = "\n".join(proposal.code for proposal in proposals(n=200))
    assert set(re.findall(r"BATCH = (\S+) ", text)) <= {f"2**{e}" for e in range(16, 21)}
    assert all(re.fullmatch(r"2 \*\* \d", value) for value in re.findall(r"ACCUMULATION = (.*?)  #", text))
    assert all("_" in value for value in re.findall(r"ROPE_BASE = (\S+)", text) if len(value) > 3)
    assert len(set(re.findall(r"LR = ([0-9.]+)", text))) > 5


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_any_line_ending_stays(newline):
    code = CODE.replace("\n", newline)
    for proposal in proposals(code, 10):
        assert shape(proposal.code) == shape(CODE)
        assert proposal.code.count("\r") == code.count("\r") and proposal.code.count("\n") == code.count("\n")


def test_small_depths_move_by_one():
    depths = {tuner.knobs(p.code)["DEPTH"] for p in proposals("DEPTH = 8\n", 60)}
    assert {7, 9} <= depths and max(depths) <= 16


def test_no_constants_or_nothing_new_is_none():
    assert first("def main():\n    pass\n") is None and first("OFF = 0.0\n") is None
    assert 1 < len(list(drawn(CODE))) <= tuner.ATTEMPTS


def test_draws_everything_that_is_near():
    code, tried = "A = 2**4\n", {"A = 2**4\n"}
    tried.update(proposal.code for proposal in drawn(code))
    assert tried == {f"A = 2**{exponent}\n" for exponent in range(2, 7)}


def test_the_same_history_in_any_order_gives_the_same_proposal():
    history = [(p.code, 1 + seed / 100) for seed, p in enumerate(proposals(n=20))]
    shuffled = history[:]
    random.Random(1).shuffle(shuffled)
    assert first(CODE, history, 7) == first(CODE, shuffled, 7) != first(CODE, history, 8)


def test_crashes_other_constants_and_broken_files_in_the_history_do_no_harm():
    history = [(CODE, 1.0), (CODE + "NEW = 3\n", 0.5), ("A = (", None), ("A = 1\0", None), ("", 0.1)]
    history += [(p.code, None) for p in proposals(n=10)]
    assert first(CODE, history) is not None
    assert first(CODE, [(CODE, None)] * 8) is not None


@pytest.mark.parametrize("text", ["1e308", "-1e308", "5e-324", "9" * 320, "2**63", "2**62", "3**63",
                                  "9223372036854775808", "1" + "0" * 15, "0." + "0" * 300 + "1", "1e999"])
def test_constants_beyond_reason_are_skipped(text):
    assert set(tuner.knobs(f"A = {text}\nB = 2.5\n")) <= {"A", "B"}
    for seed in range(20):
        proposal = first(f"A = {text}\nB = 2.5\n", [(f"A = {text}\nB = 2.0\n", 1.0)], seed)
        assert proposal is not None and "B" in tuner.knobs(proposal.code)


NUMBER = st.one_of(st.integers(), st.integers(-10**330, 10**330), st.floats(), st.integers(0, 70).map("2**{}".format),
                   st.from_regex(r"[0-9][0-9_]{0,8}(\.[0-9]{0,9})?(e-?[0-9]{1,3})?", fullmatch=True))


@given(st.lists(NUMBER, min_size=1, max_size=4), st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_no_train_py_that_parses_makes_the_tuner_raise(numbers, seed):
    code = "".join(f"K{i} = {number}\n" for i, number in enumerate(numbers))
    try:
        ast.parse(code)
    except SyntaxError:
        return
    first(code, [(code, 1.0), (code, None)], seed)


def test_learns_from_the_history_where_the_better_values_lie():
    def near(history) -> float:
        moves = [math.log(tuner.knobs(p.code)["LR"] / 0.04) for p in proposals("LR = 0.04\n", 60, history)]
        return sum(moves) / len(moves)

    values = [0.012, 0.016, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11]
    rising = [(f"LR = {v}\n", 1 + abs(math.log(v / 0.09))) for v in values]
    falling = [(f"LR = {v}\n", 1 + abs(math.log(v / 0.015))) for v in values]
    assert near(rising) > 0.3 > -0.3 > near(falling)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.integers(1, 10**9), st.floats(1e-9, 1e9), st.floats(-1e6, -1e-9)), st.integers(0, 99))
@example(1, 0)
@example(0.999999, 3)
@example(1e-12, 3)
def test_any_number_stays_of_its_kind_and_can_be_varied(value, seed):
    code = f"A = {value!r}\n"
    proposal = first(code, [(code, 1.0)], seed)
    result = tuner.knobs(proposal.code)["A"]
    assert type(result) is type(value) and result != value and math.isfinite(result)
    assert (result > 0) == (value > 0)
    assert not 0 < abs(value) < 1 or 0 < abs(result) < 1
    assert first(proposal.code, [(code, 1.0), (proposal.code, 0.9)], seed) is not None


@pytest.mark.parametrize(("device", "mine", "others"), [("cpu", "CPU_LAYERS", "GPU_LAYERS"),
                                                        ("NVIDIA H100 80GB HBM3", "GPU_LAYERS", "CPU_LAYERS")])
def test_constants_of_the_other_kind_of_device_are_left_alone(device, mine, others):
    code = "CPU_LAYERS = 2\nGPU_LAYERS = 8\n"
    proposal = first(code, [(code, 1.0)], device=device)
    before, after = tuner.knobs(code), tuner.knobs(proposal.code)
    assert after[others] == before[others] and after[mine] != before[mine]
    only_others = f"{others} = 8\n"
    assert first(only_others, device=device) is None


def test_two_constants_last_for_a_night():
    """Once all is tried that the history speaks for, it draws anywhere in the neighbourhood."""
    code = "RATE = 0.00014\nWIDTH = 2**16\nprint(RATE, WIDTH)\n"
    tried, history = {code}, []
    for number in range(60):
        made = next(idea.code for idea in tuner.variations(code, history, number) if idea.code not in tried)
        tried.add(made)
        history.append((made, 3.0))


def test_a_constant_that_nothing_reads_is_left_alone():
    code = "LR = 0.04\nWIDTH = 640\n\n\ndef main():\n    WIDTH = 3\n    return LR\n"
    assert {p.description.split()[0] for seed in range(20) for p in tuner.variations(code, [], seed)} == {"LR"}
