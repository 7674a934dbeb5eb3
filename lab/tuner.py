"""Proposes without a model: varies the ALL_CAPS numeric constants of train.py with optuna's TPE.

Promises: only digits change. An integer stays one, a power of two too, a float below 1 stays between 0
and 1. The same history and seed give the same proposals. Left alone: seeds, 0 and negative integers,
what nothing reads, names assigned twice, `# fixed` lines, and the other kind of device's (GPU_ on a CPU,
CPU_ elsewhere).
"""

import ast
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lab.ledger import Proposal

REACH = 1.5          # how far a float may move, in the log (or log-odds) of its value: a factor of 4.5
INTEGER_REACH = 0.7  # the same for an integer, which costs memory and time: a factor of 2
POWER_REACH = 2      # and for the exponent of a power of two
AT_ONCE = (1, 1, 2)  # constants a proposal, drawn from these; more find less in bench_tuner.py
SMALLEST_POWER = 32  # a plain integer counts as a power of two from here on: 8 layers may become 9
SMALLEST, LARGEST = 1e-15, 1e15  # constants beyond are left alone
ATTEMPTS = 200       # draws before the neighbourhood counts as exhausted

_ASSIGNED = re.compile(r"^([A-Z_][A-Z0-9_]*) *(?::[^=\n]*)?=", re.MULTILINE)
_CONSTANT = re.compile(  # a number alone on its line, whose comment does not begin with "fixed"
    r"^(?P<name>[A-Z_][A-Z0-9_]*) *(: *\w+ *)?= *(?P<text>2 ?\*\* ?\d\d?|-?[\d.][\w.+-]{0,39})"
    r"[ \t\r]*(?!#+ *fixed\b)(#.*)?$", re.MULTILINE)

Value = int | float


@dataclass(frozen=True)
class Knob:
    """A constant of train.py, and a coordinate for it in which equal steps matter equally."""

    name: str
    value: Value
    text: str              # as written: "2**18", "0.04", "200_000", "-3e-4"
    span: tuple[int, int]  # of the text, in characters of the file

    @property
    def is_power(self) -> bool:
        is_large = isinstance(self.value, int) and self.value >= SMALLEST_POWER
        return "**" in self.text or is_large and self.value.bit_count() == 1

    @property
    def is_share(self) -> bool:
        return isinstance(self.value, float) and 0 < abs(self.value) < 1

    @property
    def step(self) -> int:
        """The grain of an integer: 8 moves by 1, 640 by 128, 300 by 10, 200000 by 10000."""
        if self.value < SMALLEST_POWER:
            return 1
        return 10 ** (len(str(self.value)) - 2) if self.value % 100 == 0 else math.gcd(self.value, 128)

    def place(self, value: Value) -> float:
        """The coordinate: the exponent of a power, log-odds below 1, otherwise the logarithm."""
        if self.is_power:
            return round(math.log2(max(value, 1)))
        size = abs(value)
        return math.log(size / max(1 - size, SMALLEST)) if self.is_share else math.log(size)

    def at(self, place: float) -> Value:
        """The tidy value at a place: two significant digits, or a multiple of an integer's step."""
        if self.is_power:
            return 2**place
        size = min(1 / (1 + math.exp(-place)), 1 - 1e-12) if self.is_share else math.exp(place)
        if isinstance(self.value, int):
            return self.step * max(1, round(size / self.step))
        finest = min(size, 1 - size) if self.is_share else size
        return math.copysign(round(size, 1 - math.floor(math.log10(finest))), self.value)

    def neighbourhood(self) -> tuple[float, float]:
        """The lowest and highest place that a proposal may move to."""
        here, reach = self.place(self.value), REACH
        if self.is_power:
            return max(0, here - POWER_REACH), here + POWER_REACH
        if isinstance(self.value, int):  # at least two steps
            reach = max(INTEGER_REACH, math.log(1 + 2 * self.step / self.value))
        return here - reach, here + reach

    def written(self, value: Value) -> str:
        """The value in the style of the constant."""
        if "**" in self.text:
            return re.sub(r"\d+$", str(round(math.log2(value))), self.text)
        return f"{value:_}" if "_" in self.text else repr(value)


@lru_cache(maxsize=320)  # of 0.5 ms each; the tuner is told hundreds of files at every turn
def find(code: str) -> tuple[Knob, ...]:
    """The constants that may vary, those of every device."""
    counts = Counter(_ASSIGNED.findall(code))
    lines = [line for line in _CONSTANT.finditer(code)
             if counts[line["name"]] == 1 and "SEED" not in line["name"]]
    return tuple(Knob(line["name"], value, line["text"], line.span("text"))
                 for line in lines if (value := _value(line["text"])) is not None)


def _value(text: str) -> Value | None:
    try:
        value = 2 ** int(text.split("**")[1]) if "**" in text else ast.literal_eval(text)
    except (ValueError, SyntaxError):  # no number after all
        return None
    is_number = type(value) is float or type(value) is int and value > 0
    return value if is_number and SMALLEST <= abs(value) <= LARGEST else None


def knobs(code: str) -> dict[str, Value]:
    """The constants that may vary, by name."""
    return {knob.name: knob.value for knob in find(code)}


def rewrite(code: str, changes: Sequence[tuple[Knob, Value]]) -> str:
    """The file with other values of a few constants, in the order of the file."""
    for knob, value in reversed(changes):
        start, end = knob.span
        code = code[:start] + knob.written(value) + code[end:]
    return code


def variations(code: str, history: Sequence[tuple[str, float | None]], seed: int,
               device: str = "cpu") -> Iterator[Proposal]:
    """Proposals, some of them twice; `history` has train.py and val_bpb (None for a crash) in any order."""
    elsewhere = "GPU_" if device.lower() == "cpu" else "CPU_"
    # A constant that nothing reads would cost a trial and change nothing.
    uses = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    read = {node.id for node in uses if isinstance(node.ctx, ast.Load)}
    found = [knob for knob in find(code) if knob.name in read and not knob.name.startswith(elsewhere)]
    rng, names = random.Random(seed), knobs(code).keys()
    told = [(math.inf if bpb is None else bpb, knobs(earlier)) for earlier, bpb in history]
    told = [(bpb, values) for bpb, values in told if values.keys() == names]
    told.sort(key=lambda trial: (trial[0], sorted(trial[1].items())))  # best first, crashes last
    for attempt in range(ATTEMPTS if found else 0):
        if attempt == ATTEMPTS // 2:
            told = []  # all near the best is tried: sample the whole neighbourhood
        numbers = rng.sample(range(len(found)), min(len(found), rng.choice(AT_ONCE)))
        few = [found[number] for number in sorted(numbers)]
        places = _places(few, told, rng.randrange(2**31))
        changes = [(knob, value) for knob in few if (value := knob.at(places[knob.name])) != knob.value]
        if changes:
            words = [f"{knob.name} {knob.text} -> {knob.written(value)}" for knob, value in changes]
            yield Proposal(", ".join(words), rewrite(code, changes), "tuner")


def _places(few: Sequence[Knob], told: Sequence[tuple[float, dict[str, Value]]], seed: int) -> dict[str, float]:
    """Where TPE moves a few constants, by name, given the earlier trials."""
    import optuna
    from optuna.distributions import FloatDistribution, IntDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # One density a constant: a joint one, the default, finds 74 % in place of 86 %.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, multivariate=False)
    study, space = optuna.create_study(sampler=sampler), {}
    for knob in few:
        kind = IntDistribution if knob.is_power else FloatDistribution
        space[knob.name] = kind(*knob.neighbourhood())
    for bpb, values in told:
        places = {knob.name: knob.place(values[knob.name]) for knob in few}
        near = {name: min(max(place, space[name].low), space[name].high) for name, place in places.items()}
        study.add_trial(optuna.trial.create_trial(params=near, distributions=space, value=bpb))
    return study.ask(space).params
