"""Does the tuner find what can be found, and what share of the turns should it have?  python tests/bench/bench_tuner.py

A stand-in for the task: a train.py of 12 constants whose true loss is a quadratic with interactions around an optimum
that is drawn anew for every seed. What each constant is worth is what the field published for it (0.0119 for the batch
down to 0.0003), the noise is sigma 0.0005, a night is 100 experiments, and the loop is the project's: keep what is
lower, measure the incumbent once more after 8 misses. Says nothing about a real LLM: its stand-in has a list of
structural ideas (a fifth of them good) that the tuner cannot reach, and half of the time turns a constant by hand.
"""

import math
import random
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from lab import tuner  # noqa: E402
from lab.ledger import Proposal  # noqa: E402

SIGMA = 0.0005
NIGHT = 100
REMEASURE_AFTER = 8

# name, as written at the start, distance to the optimum (in the log of the value), what the way there is worth
KNOBS = (("BATCH_TOKENS", "2**19", -0.9, 0.0119), ("DEPTH", "8", 0.18, 0.0043), ("EMBEDDING_LR", "0.6", 0.9, 0.0033),
         ("ROPE_BASE", "10_000", 1.6, 0.0024), ("WARMDOWN", "0.5", 0.8, 0.0015), ("HEAD_LR", "4e-3", 0.4, 0.0012),
         ("FIRST_LAMBDA", "0.1", -0.7, 0.0010), ("INIT_SCALE", "1.0", -0.4, 0.0008), ("FINAL_LR", "0.02", 0.9, 0.0006),
         ("MUON_STEPS", "300", -0.5, 0.0005), ("MATRIX_LR", "0.04", 0.3, 0.0004), ("BETA2", "0.95", 0.5, 0.0003))
PAIRS = ((0, 10), (2, 5), (4, 8), (7, 10), (1, 3))  # knobs that interact
START = "".join(f"{name} = {text}\n" for name, text, _, _ in KNOBS)
START += f"print({', '.join(name for name, *_ in KNOBS)})\n"


def axis(value: float) -> float:
    return math.log(value / (1 - value)) if 0 < value < 1 else math.log(value)


@dataclass(frozen=True)
class Problem:
    """One drawing of the true loss."""

    optimum: tuple[float, ...]
    interaction: tuple[float, ...]

    def loss(self, code: str) -> float:
        """val_bpb above the best reachable, without noise; structural ideas are lines `# idea GAIN`."""
        values = tuner.knobs(code)
        start = tuner.knobs(START)
        z = [(axis(values[name]) - best) / abs(axis(start[name]) - best)
             for (name, *_), best in zip(KNOBS, self.optimum, strict=True)]
        worth = [k[3] for k in KNOBS]
        total = sum(w * x * x for w, x in zip(worth, z, strict=True))
        for (i, j), rho in zip(PAIRS, self.interaction, strict=True):
            total += 2 * rho * math.sqrt(worth[i] * worth[j]) * z[i] * z[j]
        return total - sum(float(gain) for gain in re.findall(r"# idea (\S+)", code))


def draw(seed: int) -> Problem:
    rng = random.Random(seed)
    values = tuner.knobs(START)
    optimum = [axis(values[name]) + distance * rng.uniform(0.6, 1.4) for name, _, distance, _ in KNOBS]
    optimum[0], optimum[1] = math.log(2 ** rng.choice((17, 18))), math.log(rng.choice((9, 10)))  # whole numbers
    return Problem(tuple(optimum), tuple(rng.uniform(-0.4, 0.4) for _ in PAIRS))


@dataclass
class Night:
    """The loop's view while it runs."""

    code: str = START
    tried: set[str] = field(default_factory=lambda: {START})
    history: list[tuple[str, float]] = field(default_factory=list)
    rng: random.Random = field(default_factory=random.Random)
    step: int = 0

    def is_new(self, code: str) -> bool:
        return code not in self.tried


Proposer = Callable[[Night], Proposal | None]


def run(problem: Problem, propose: Proposer, seed: int) -> Night:
    """One night of the loop; the result's code is the last incumbent."""
    night = Night(rng=random.Random(1000 + seed))

    def measure(code: str) -> float:
        bpb = 1.0 + problem.loss(code) + night.rng.gauss(0, SIGMA)
        night.history.append((code, bpb))
        return bpb

    trials, misses = [measure(START)], 0
    for night.step in range(NIGHT):
        if misses and misses % REMEASURE_AFTER == 0:
            trials.append(measure(night.code))
            misses += 1
            continue
        proposal = propose(night)
        if proposal is None:
            break
        night.tried.add(proposal.code)
        bpb = measure(proposal.code)
        if bpb < statistics.fmean(trials):
            night.code, trials, misses = proposal.code, [bpb], 0
        else:
            misses += 1
    return night


def by_tuner(night: Night) -> Proposal | None:
    drawn = tuner.variations(night.code, night.history, night.rng.randrange(2**31))
    return next((proposal for proposal in drawn if night.is_new(proposal.code)), None)


def by_random(night: Night) -> Proposal | None:
    """Every constant anywhere within 1.5 times the tuner's reach of the start: what a sweep does."""
    return _draw_values(START, range(len(KNOBS)), 1.5, night)


def by_one_knob(night: Night) -> Proposal | None:
    """One constant of the incumbent at a time, uniform within the tuner's reach."""
    return _draw_values(night.code, [], 1.0, night)


def _draw_values(code: str, chosen: Sequence[int], reach: float, night: Night) -> Proposal:
    found = tuner.find(code)
    while True:
        changes = []
        for i in chosen or [night.rng.randrange(len(KNOBS))]:
            here, (low, high) = found[i].place(found[i].value), found[i].neighbourhood()
            place = here + reach * night.rng.uniform(low - here, high - here)
            changes.append((found[i], found[i].at(place)))
        result = tuner.rewrite(code, changes)
        if night.is_new(result):
            return Proposal("", result, "drawn")


def by_llm(seed: int) -> Proposer:
    """Half a structural idea (a fifth gain 0.0003 to 0.003, ever less, the rest cost), half a knob by hand."""
    ideas = random.Random(seed)

    def propose(night: Night) -> Proposal:
        if ideas.random() < 0.5:
            return by_one_knob(night)
        good = ideas.random() < 0.2
        fading = 1 / (1 + night.code.count("# idea") / 6)
        gain = ideas.uniform(0.0003, 0.003) * fading if good else -ideas.expovariate(1 / 0.002)
        return Proposal("", night.code + f"# idea {gain:.6f} {night.step}\n", "llm")

    return propose


def mixed(share: float, seed: int) -> Proposer:
    llm = by_llm(seed)

    def propose(night: Night) -> Proposal | None:
        turn = math.floor((night.step + 1) * share) > math.floor(night.step * share)
        return by_tuner(night) if turn else llm(night)

    return propose


METHODS = {"tuner": lambda seed: by_tuner, "one knob at a time": lambda seed: by_one_knob,
           "random search": lambda seed: by_random}
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def one(kind: str, name: str | float, seed: int) -> tuple[float, float]:
    """(true gain, reachable gain of the constants) of one night."""
    problem = draw(seed)
    night = run(problem, METHODS[name](seed) if kind == "method" else mixed(name, seed), seed)
    return problem.loss(START) - problem.loss(night.code), problem.loss(START)


def main() -> None:
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    with ProcessPoolExecutor(2) as pool:
        for kind, names in (("method", METHODS), ("share", SHARES)):
            print(f"\n{kind:20s} gain in 1e-3 (se)   share of the 12 constants' gain   worst seed   n={len(seeds)}")
            for name in names:
                results = list(pool.map(one, [kind] * len(seeds), [name] * len(seeds), seeds))
                gains = [1000 * gain for gain, _ in results]
                found = [gain / reachable for gain, reachable in results]
                error = statistics.stdev(gains) / math.sqrt(len(gains))
                print(f"{name!s:20s} {statistics.fmean(gains):6.2f} ({error:.2f})   {statistics.fmean(found):31.1%}"
                      f"   {min(found):12.1%}", flush=True)


if __name__ == "__main__":
    main()
