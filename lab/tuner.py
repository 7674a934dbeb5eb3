"""Proposes without an LLM: varies the ALL_CAPS numeric constants of train.py with optuna's TPE.

Promises: text in, text out. Only the digits of a few constants change: an integer stays an integer, a power
of two a power of two, a float below 1 stays between 0 and 1. The same history and seed give the same
proposal. Not touched: seeds, integers below 1 (switches and indices), names assigned twice, lines with a
comment `# fixed`, and the constants of the other kind of device (GPU_ on a CPU, CPU_ elsewhere).
"""

import ast
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lab.ledger import Proposal

REACH = 1.5          # how far a float may move, in the log (or log-odds) of its value: a factor of 4.5
INTEGER_REACH = 0.7  # the same for an integer, which costs memory and time: a factor of 2
POWER_REACH = 2      # and for the exponent of a power of two
AT_ONCE = (1, 1, 2)  # constants a proposal, drawn from these; more find less in bench_tuner.py
TOLD = 150           # trials told at most, the best ones: optuna copies each, 0.1 ms apiece
SMALLEST_POWER = 32  # a plain integer counts as a power of two from here on: 8 layers may become 9
ZERO_FLOOR = 3e-4    # what 0.0 means on a logarithmic scale; a constant that is 0.0 may rise from here ...
ZERO_CEILING = 0.1   # ... to here: decays, fractions and warm-ups all live below
LARGEST = 10**15     # larger constants, and smaller ones than its inverse, are left alone
MAX_DIGITS = 40      # characters of a constant as it is written
ATTEMPTS = 200       # draws before the neighbourhood counts as exhausted
FIXED = re.compile(rb"[^#\r\n]*#+\s*fixed\b")  # what follows a constant that must stay

Value = int | float


@dataclass(frozen=True)
class Knob:
    """One constant of train.py and where its digits are."""

    name: str
    value: Value
    text: str              # as written: "2**18", "0.04", "200_000", "-3e-4"
    span: tuple[int, int]  # bytes of the UTF-8 source
    base: int = 0          # whose powers the constant keeps to; 0 for none


def knobs(code: str) -> dict[str, Value]:
    """The constants that may vary, by name. Raises SyntaxError for code that does not parse."""
    return {knob.name: knob.value for knob in _find(code)}


def propose(code: str, history: Sequence[tuple[str, float | None]], seed: int,
            is_new: Callable[[str], bool], device: str = "cpu") -> Proposal | None:
    """A variation of `code` that `is_new` accepts; None when nothing new is near it.

    history: (train.py, val_bpb or None for a crash) of the earlier trials, in any order.
    device: "cpu", or the kind or name of another one.
    """
    elsewhere = "GPU_" if device.lower() == "cpu" else "CPU_"
    found = [knob for knob in _find(code) if not knob.name.startswith(elsewhere)]
    if not found:
        return None
    rng, told, studies = random.Random(seed), _told(_find(code), history), {}
    for _ in range(ATTEMPTS):
        n_changed = min(len(found), rng.choice(AT_ONCE))
        chosen = tuple(sorted(rng.sample(range(len(found)), n_changed)))
        few = [found[i] for i in chosen]
        if chosen not in studies:
            studies[chosen] = _study(few, told, rng.randrange(2**31))
        trial = studies[chosen].ask({knob.name: _distribution(knob) for knob in few})
        drawn = [(knob, _decode(knob, trial.params[knob.name])) for knob in few]
        changes = [(knob, value) for knob, value in drawn if value != knob.value and _is_moderate(value)]
        if changes and is_new(candidate := _rewrite(code, changes)):
            words = [f"{knob.name} {knob.text} -> {_write(knob, value)}" for knob, value in changes]
            return Proposal(", ".join(words), candidate, "tuner")
    return None


# Reading and writing constants -----------------------------------------------------------------------


@lru_cache(maxsize=320)  # of some 30 KB; a few more than agent.py remembers
def _find(code: str) -> tuple[Knob, ...]:
    source = code.encode()
    line_starts = [0, *(match.end() for match in re.finditer(rb"\r\n|\r|\n", source))]

    def span(node: ast.AST) -> tuple[int, int]:
        return (line_starts[node.lineno - 1] + node.col_offset,
                line_starts[node.end_lineno - 1] + node.end_col_offset)

    found: dict[str, list[Knob | None]] = {}
    for statement in ast.parse(code).body:
        name = _target(statement)
        if name:
            stays = statement.value is None or FIXED.match(source, span(statement)[1])
            knob = None if stays else _knob(name, statement.value, source, span)
            found.setdefault(name, []).append(knob)
    return tuple(same[0] for same in found.values() if len(same) == 1 and same[0])


def _target(statement: ast.stmt) -> str:
    """The ALL_CAPS name that a statement assigns, alone, if it does."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return ""
    targets = getattr(statement, "targets", None) or [statement.target]
    name = getattr(targets[0], "id", "") if len(targets) == 1 else ""
    return name if name.isupper() and "SEED" not in name else ""


def _knob(name: str, node: ast.expr, source: bytes, span: Callable) -> Knob | None:
    """The constant, if it is a number that the tuner can encode."""
    start, end = span(node)
    text = source[start:end].decode()
    try:
        value = ast.literal_eval(node)
    except ValueError:  # no plain number, perhaps a power
        value = None
    if end - start > MAX_DIGITS:
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, exponent = getattr(node.left, "value", None), getattr(node.right, "value", None)
        if type(base) is type(exponent) is int and base > 1 and 0 < exponent < 64:
            value = base ** exponent
            return Knob(name, value, text, span(node.right), base) if value <= LARGEST else None
    if type(value) is int and 1 <= value <= LARGEST and text.replace("_", "").isdigit():
        is_power = value >= SMALLEST_POWER and value.bit_count() == 1
        return Knob(name, value, text, (start, end), 2 if is_power else 0)
    if type(value) is float and _is_moderate(value):
        return Knob(name, value, text, (start, end))
    return None


def _is_moderate(value: Value) -> bool:
    return value == 0 or 1 / LARGEST <= abs(value) <= LARGEST


def _write(knob: Knob, value: Value) -> str:
    """The value in the style of the constant."""
    if "**" in knob.text:
        exponent = round(math.log(value, knob.base))
        return re.sub(r"(\*\*\s*).*", lambda match: f"{match[1]}{exponent}", knob.text)
    if "e" in knob.text.lower() and value:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:_}" if "_" in knob.text else repr(value)


def _rewrite(code: str, changes: Sequence[tuple[Knob, Value]]) -> str:
    source = code.encode()
    for knob, value in sorted(changes, key=lambda change: change[0].span, reverse=True):
        start, end = knob.span
        digits = _write(knob, value).split("**")[-1].strip()
        source = source[:start] + digits.encode() + source[end:]
    result = source.decode()
    wanted = knobs(code) | {knob.name: value for knob, value in changes}
    assert knobs(result) == wanted, f"rewrote {changes} to {knobs(result)}"
    return result


# A coordinate for every constant, in which equal steps matter equally --------------------------------


def _is_share(knob: Knob) -> bool:
    return isinstance(knob.value, float) and 0 < abs(knob.value) < 1


def _encode(knob: Knob, value: Value) -> float:
    """The place of `value`: log-odds below 1, the logarithm above, the exponent of a power."""
    if knob.base:
        return math.log(max(value, 1), knob.base)
    size = max(abs(value), ZERO_FLOOR)
    if _is_share(knob):
        size = min(size, 1 - ZERO_FLOOR)
        return math.log(size / (1 - size))
    return math.log(size)


def _decode(knob: Knob, place: float) -> Value:
    """The tidy value at a place: two significant digits, or a multiple of an integer's step."""
    if knob.base:
        return knob.base ** round(place)
    size = 1 / (1 + math.exp(-place)) if _is_share(knob) else math.exp(place)
    if isinstance(knob.value, int):
        step = _step(knob.value)
        return max(step, step * round(size / step))
    if knob.value == 0 and size < 2 * ZERO_FLOOR:
        return 0.0
    finest = min(size, 1 - size) if _is_share(knob) else size
    return math.copysign(round(size, 1 - math.floor(math.log10(finest))), knob.value)


def _step(value: int) -> int:
    """The grain of an integer: 8 moves by 1, 640 by 128, 300 by 10, 200000 by 10000."""
    if value < SMALLEST_POWER:
        return 1
    return 10 ** (len(str(value)) - 2) if value % 100 == 0 else math.gcd(value, 128)


def _distribution(knob: Knob):
    """The neighbourhood of the constant's present value."""
    from optuna.distributions import FloatDistribution, IntDistribution

    here = _encode(knob, knob.value)
    if knob.base:
        reach = POWER_REACH if knob.base == 2 else 1
        return IntDistribution(max(0, round(here) - reach), round(here) + reach)
    if knob.value == 0:
        return FloatDistribution(here, math.log(ZERO_CEILING))
    reach = REACH
    if isinstance(knob.value, int):  # at least two steps
        reach = max(INTEGER_REACH, math.log(1 + 2 * _step(knob.value) / knob.value))
    return FloatDistribution(here - reach, here + reach)


# What the sampler is told ----------------------------------------------------------------------------


def _told(found: Sequence[Knob], history: Sequence[tuple[str, float | None]]) -> list[tuple[float, dict]]:
    """(val_bpb, values by name) of the trials with the same constants: best first, crashes last."""
    names = {knob.name for knob in found}
    told = [(_values(code), bpb) for code, bpb in history]
    told = [(values, bpb) for values, bpb in told if values.keys() == names]
    worst = max((bpb for _, bpb in told if bpb is not None), default=0.0)
    scored = sorted((worst if bpb is None else bpb, sorted(values.items())) for values, bpb in told)
    return [(bpb, dict(values)) for bpb, values in scored[:TOLD]]


def _values(code: str) -> dict[str, Value]:
    """Like knobs(), for an earlier train.py that may not even parse: none then."""
    try:
        return knobs(code)
    except (SyntaxError, ValueError):  # ValueError: a null byte, before Python 3.12
        return {}


def _study(few: Sequence[Knob], told: Sequence[tuple[float, dict]], seed: int):
    """An in-memory study of a few constants, told the earlier trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # One density a constant: a joint one, the default, finds 74 % in place of 86 %.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, multivariate=False)
    study = optuna.create_study(sampler=sampler)
    space = {knob.name: _distribution(knob) for knob in few}
    for bpb, values in told:
        places = {knob.name: _within(space[knob.name], _encode(knob, values[knob.name])) for knob in few}
        study.add_trial(optuna.trial.create_trial(params=places, distributions=space, value=bpb))
    return study


def _within(distribution, place: float) -> float:
    place = min(max(place, distribution.low), distribution.high)
    return round(place) if isinstance(distribution.low, int) else place
