"""Proposes without an LLM: varies the ALL_CAPS numeric constants of train.py with optuna's TPE.

Promises: text in, text out; only the digits of a few constants change; an integer stays an integer, a power of two a
power of two, a float below 1 stays between 0 and 1; the same history and seed give the same proposal.
Does not touch: seeds, integers below 1 (switches and indices), names assigned twice, lines with a comment `# fixed`.
"""

import ast
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lab.ledger import Proposal

REACH = 1.5             # how far a float may move, in the log (or log-odds) of its value: a factor of 4.5
INTEGER_REACH = 0.7     # the same for an integer, which costs memory and time: a factor of 2
POWER_REACH = 2         # and for the exponent of a power of two
AT_ONCE = (1, 1, 2)     # constants a proposal, drawn from these; more find less in tests/bench/bench_tuner.py
TOLD = 150              # trials told at most, the best of those it is given: optuna copies each, 0.1 ms apiece
SMALLEST_POWER = 32     # a plain integer counts as a power of two from here on: 8 layers may become 9
ZERO_FLOOR = 3e-4       # what 0.0 means on a logarithmic scale; a constant that is 0.0 may rise from here ...
ZERO_CEILING = 0.1      # ... to here: decays, fractions and warm-ups all live below
ATTEMPTS = 200          # draws before the neighbourhood counts as exhausted
FIXED = re.compile(rb"[^#\r\n]*#+\s*fixed\b")  # what follows a constant that must stay


@dataclass(frozen=True)
class Knob:
    """One constant of train.py and where its digits stand."""

    name: str
    value: int | float
    text: str                # as written: "2**18", "0.04", "200_000", "-3e-4"
    span: tuple[int, int]    # bytes of the UTF-8 source; for a power those of its exponent


def knobs(code: str) -> dict[str, int | float]:
    """The constants that the tuner may vary, by name. Raises SyntaxError for code that does not parse."""
    return {knob.name: knob.value for knob in _find(code)}


def propose(code: str, history: Sequence[tuple[str, float | None]], seed: int,
            is_new: Callable[[str], bool]) -> Proposal | None:
    """A variation of `code` that `is_new` accepts; None when it has no knobs or nothing new was found near it.

    history: (train.py, val_bpb or None for a crash) of the earlier trials, in any order.
    """
    found = _find(code)
    if not found:
        return None
    rng = random.Random(seed)
    told, studies = _told(found, history), {}
    for _ in range(ATTEMPTS):
        chosen = tuple(sorted(rng.sample(range(len(found)), min(len(found), rng.choice(AT_ONCE)))))
        few = [found[i] for i in chosen]
        if chosen not in studies:
            studies[chosen] = _study(few, told, rng.randrange(2**31))
        trial = studies[chosen].ask({knob.name: _distribution(knob) for knob in few})
        changes = [(knob, _decode(knob, trial.params[knob.name])) for knob in few]
        changes = [(knob, value) for knob, value in changes if value != knob.value]
        if changes and is_new(candidate := _rewrite(code, changes)):
            words = ", ".join(f"{knob.name} {knob.text} -> {_write(knob, value)}" for knob, value in changes)
            return Proposal(words, candidate, "tuner")
    return None


# Reading and writing constants


@lru_cache(maxsize=320)  # of some 30 KB; a few more than agent.py remembers
def _find(code: str) -> tuple[Knob, ...]:
    source = code.encode()
    line_starts = [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", source))]
    found: dict[str, list[Knob | None]] = {}
    for statement in ast.parse(code).body:
        target = _target(statement)
        if target is None:
            continue
        knob = _knob(target, statement.value, source, line_starts)
        end = line_starts[statement.end_lineno - 1] + statement.end_col_offset
        found.setdefault(target, []).append(None if FIXED.match(source, end) else knob)
    return tuple(same[0] for same in found.values() if len(same) == 1 and same[0] is not None)


def _target(statement: ast.stmt) -> str | None:
    """The ALL_CAPS name that a statement assigns, alone, if it does."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) or not isinstance(targets[0], ast.Name):
        return None
    name = targets[0].id
    return name if len(targets) == 1 and name.isupper() and "SEED" not in name else None


def _knob(name: str, node: ast.expr | None, source: bytes, line_starts: Sequence[int]) -> Knob | None:
    def span(part: ast.expr) -> tuple[int, int]:
        return (line_starts[part.lineno - 1] + part.col_offset, line_starts[part.end_lineno - 1] + part.end_col_offset)

    if node is None:
        return None
    start, end = digits = span(node)
    text = source[start:end].decode()
    number = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        if not (_is_int(node.left) and _is_int(node.right) and node.left.value > 1 and 0 < node.right.value < 64):
            return None
        return Knob(name, node.left.value ** node.right.value, text, span(node.right))
    if _is_int(node) and node.value >= 1 and text.replace("_", "").isdigit():
        return Knob(name, node.value, text, digits)
    if isinstance(number, ast.Constant) and type(number.value) is float and math.isfinite(number.value):
        return Knob(name, -number.value if number is not node else number.value, text, digits)
    return None


def _is_int(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _base(knob: Knob) -> int:
    """The base whose powers the constant keeps to; 0 for none."""
    if "**" in knob.text:
        return int(knob.text.split("**")[0].replace("_", ""))
    return 2 if isinstance(knob.value, int) and knob.value >= SMALLEST_POWER and knob.value.bit_count() == 1 else 0


def _write(knob: Knob, value: int | float) -> str:
    """The value in the style of the constant."""
    if "**" in knob.text:
        return re.sub(r"(\*\*\s*).*", lambda match: match[1] + str(_exponent(value, _base(knob))), knob.text)
    if "e" in knob.text.lower() and value:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:_}" if "_" in knob.text else repr(value)


def _rewrite(code: str, changes: Sequence[tuple[Knob, int | float]]) -> str:
    source = code.encode()
    for knob, value in sorted(changes, key=lambda change: change[0].span, reverse=True):
        text = _write(knob, value)
        digits = text.split("**")[1].strip() if "**" in text else text
        source = source[: knob.span[0]] + digits.encode() + source[knob.span[1]:]
    result = source.decode()
    wanted = knobs(code) | {knob.name: value for knob, value in changes}
    assert knobs(result) == wanted, f"rewrote {changes} to {knobs(result)}"
    return result


# A coordinate for every constant, in which equal steps matter equally


def _exponent(value: int, base: int) -> int:
    return round(math.log(value, base))


def _encode(knob: Knob, value: int | float) -> float:
    """Where `value` lies on the axis of `knob`: log-odds below 1, the logarithm above, the exponent of a power."""
    if base := _base(knob):
        return math.log(max(value, 1), base)
    size = max(abs(value), ZERO_FLOOR)
    if isinstance(knob.value, float) and 0 < abs(knob.value) < 1:
        size = min(size, 1 - ZERO_FLOOR)
        return math.log(size / (1 - size))
    return math.log(size)


def _decode(knob: Knob, place: float) -> int | float:
    """The tidy value at a place of the axis: two significant digits, or a multiple of what the integer divides by."""
    if base := _base(knob):
        return base ** round(place)
    if isinstance(knob.value, int):
        step = _step(knob.value)
        return max(step, step * round(math.exp(place) / step))
    below_one = 0 < abs(knob.value) < 1
    size = 1 / (1 + math.exp(-place)) if below_one else math.exp(place)
    if knob.value == 0:
        return 0.0 if size < 2 * ZERO_FLOOR else round(size, 1 - math.floor(math.log10(size)))
    finest = min(size, 1 - size) if below_one else size
    return math.copysign(round(size, 1 - math.floor(math.log10(finest))), knob.value)


def _step(value: int) -> int:
    """The grain of an integer: 8 moves by 1, 640 by 128, 300 by 10, 200000 by 10000."""
    if value < SMALLEST_POWER:
        return 1
    return 10 ** (len(str(value)) - 2) if value % 100 == 0 else math.gcd(value, 128)


def _distribution(knob: Knob):
    """The neighbourhood of the constant's present value."""
    import optuna

    here = _encode(knob, knob.value)
    if base := _base(knob):
        reach = POWER_REACH if base == 2 else 1
        return optuna.distributions.IntDistribution(max(0, round(here) - reach), round(here) + reach)
    if knob.value == 0:
        return optuna.distributions.FloatDistribution(here, math.log(ZERO_CEILING))
    reach = REACH
    if isinstance(knob.value, int):  # at least two steps
        reach = max(INTEGER_REACH, math.log(1 + 2 * _step(knob.value) / knob.value))
    return optuna.distributions.FloatDistribution(here - reach, here + reach)


def _told(found: Sequence[Knob], history: Sequence[tuple[str, float | None]]) -> list[tuple[float, dict]]:
    """(val_bpb, values by name) of the trials whose train.py has the same constants: best first, crashes last."""
    names = {knob.name for knob in found}
    told = [(values, bpb) for values, bpb in ((_values(code), bpb) for code, bpb in history) if values.keys() == names]
    worst = max((bpb for _, bpb in told if bpb is not None), default=0.0)
    scored = sorted((worst if bpb is None else bpb, sorted(values.items())) for values, bpb in told)
    return [(bpb, dict(values)) for bpb, values in scored[:TOLD]]


def _study(few: Sequence[Knob], told: Sequence[tuple[float, dict]], seed: int):
    """An in-memory study of a few knobs: the sampler looks at each alone, and optuna copies all that it is told."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # one density a constant: a joint one, the default, knows too little from a hundred trials (74 % found, not 86 %)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, multivariate=False)
    study = optuna.create_study(sampler=sampler)
    space = {knob.name: _distribution(knob) for knob in few}
    for bpb, values in told:
        places = {knob.name: _within(space[knob.name], _encode(knob, values[knob.name])) for knob in few}
        study.add_trial(optuna.trial.create_trial(params=places, distributions=space, value=bpb))
    return study


def _values(code: str) -> dict[str, int | float]:
    """Like knobs(), for an earlier train.py that may not even parse: none then."""
    try:
        return knobs(code)
    except (SyntaxError, ValueError):  # ValueError: a null byte, before Python 3.12
        return {}


def _within(distribution, place: float) -> float:
    place = min(max(place, distribution.low), distribution.high)
    return round(place) if isinstance(distribution.low, int) else place
