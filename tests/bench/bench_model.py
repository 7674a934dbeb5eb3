"""Do notes, dead ends and spare ideas pay?  python tests/bench/bench_model.py [--seeds 40] [--late 0.1] [ARM ...]

A simulated night: the problem of bench_tuner.py and 60 mechanisms beside its constants, a fifth of them good, each
worth less the more are kept. Prompt, keep rule, repeats, turns and tuner are the project's own; no trial
runs and no model is asked. The stand-in model loves knobs (half of its answers turn one by hand) and what comes to mind
first (mechanisms are drawn by 1/rank). It knows of a lost mechanism only what stands in its prompt, and obeys that nine
times in ten; a mechanism that it forgot comes again as a variant, a new train.py with the old worth. Its notes name the
last mechanisms that it has seen lose, 60 characters each. In a tenth of its turns it is late: then a spare idea of its
last answers runs, where there are any, otherwise the tuner. Says nothing of how a real model reads.

26 November 2026, 40 seeds, gain in 1e-3 bits per byte (standard error), differences of the same seeds:

                              gain    less all three    mechanisms tried again
    all three        28.78 (0.61)                                 4.5
    without notes    27.88 (0.69)      -0.90 (0.76)              11.8
    dead ends        28.15 (0.63)      -0.63 (0.66)               4.5
    spare ideas      28.94 (0.70)      +0.16 (0.77)               3.3
    any of them      26.11 (0.76)      -2.67 (0.95)              12.2

160 seeds: without notes -1.23 (0.41), without dead ends -0.35 (0.41): these alone are within the noise beside notes.
Late in three tenths of its turns: without spare ideas +1.99 (0.86). So they are simulated here alone: the tuner's turn
is worth more than a second thought, and no idea became cheaper.
"""

import argparse
import math
import random
import re
import statistics
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "bench")]

from bench_tuner import NIGHT, SIGMA, START, Night, Problem, by_one_knob, draw  # noqa: E402

from agent import judge  # noqa: E402
from lab import ledger, prompt, tuner  # noqa: E402
from lab.commandline import TUNER_SHARE  # noqa: E402
from lab.edits import AREAS, MAX_NOTES  # noqa: E402
from lab.ledger import Proposal, Status, Trial  # noqa: E402
from lab.prompt import Situation, build_prompt  # noqa: E402
from lab.session import Again, Candidate, New, Session, row_of  # noqa: E402
from lab.turns import Turn, next_step  # noqa: E402

N_MECHANISMS, GOOD = 60, 0.2
KNOBBY, OBEYS = 0.5, 0.9
NOTE_CHARS, N_SPARE, MOST_SPARE = 60, 2, 6
ASK_USD, SPARE_USD = 0.10, 0.006  # as night_cost.py counts them; 300 tokens more for each spare idea
FEATURES = ("notes", "dead ends", "spare ideas")
ARMS = {"all three": FEATURES, **{f"without {name}": tuple({*FEATURES} - {name}) for name in FEATURES}, "none": ()}


@dataclass
class Model:
    """The stand-in, and what a night keeps of it."""

    rng: random.Random
    features: tuple[str, ...]
    gains: list[float]
    notes: str = ""
    spare: list[int] = field(default_factory=list)
    n_asked: int = 0
    n_again: int = 0  # trials of a mechanism that had been tried

    def mechanism(self, session: Session, but: set[int]) -> int:
        """The one that comes to mind first of those that are neither in the file nor, as it were, forbidden."""
        kept = {int(n) for n in re.findall(r"# idea \S+ M(\d+)", session.code)}
        left = [n for n in range(N_MECHANISMS) if n not in kept and n not in but] or [0]
        return self.rng.choices(left, [1 / (1 + n) for n in left])[0]

    def answer(self, session: Session, text: str, is_stuck: bool) -> Proposal:
        self.n_asked += 1
        seen = {int(n) for n in re.findall(r"\bM(\d+) ", text)}
        if "notes" in self.features:
            lost = dict.fromkeys(re.findall(r"discard [^\n]*?: (M\d+) ", text))
            names = [name for name in re.findall(r"M\d+", self.notes) if name not in lost] + list(lost)
            names = names[-(MAX_NOTES // NOTE_CHARS):]
            self.notes = "\n".join(f"{name} lost".ljust(NOTE_CHARS - 1, ".") for name in names)
        if not is_stuck and self.rng.random() < KNOBBY:
            return replace(by_one_knob(Night(session.code, rng=self.rng)), source="llm")
        avoided = {n for n in seen if self.rng.random() < OBEYS}
        first = self.mechanism(session, avoided)
        if "spare ideas" in self.features:
            for _ in range(N_SPARE):
                self.spare.append(self.mechanism(session, {*avoided, first, *self.spare}))
            self.spare = self.spare[-MOST_SPARE:]
        return self.written(session, first)

    def written(self, session: Session, number: int) -> Proposal:
        """The file with a mechanism, worth less the more are in it."""
        fading = 1 / (1 + session.code.count("# idea") / 6) if self.gains[number] > 0 else 1
        self.n_again += any(f"M{number} " in row.description for row in session.rows)
        line = f"# idea {self.gains[number] * fading:.6f} M{number} {len(session.rows)}\n"
        return Proposal(f"M{number} of a kind", session.code + line, "llm", "because it may help")


def by_tuner(session: Session, codes: dict[int, str], seed: int) -> Proposal:
    told = [(codes[e.number], e.val_bpb) for e in session.history]
    tried = {*codes.values()}
    return next(idea for idea in tuner.variations(session.code, told, seed) if idea.code not in tried)


def propose(session: Session, model: Model, codes: dict[int, str], ideas: dict[int, dict], late: float,
            is_tuners: bool) -> Proposal:
    seed = model.rng.randrange(2**31)
    if is_tuners:
        return by_tuner(session, codes, seed)
    if model.rng.random() < late:
        while model.spare:
            number = model.spare.pop(0)
            if f"M{number} " not in session.code:
                return model.written(session, number)
        return by_tuner(session, codes, seed)
    misses = ledger.misses(session.history)
    now = Situation("", {}, session.code, session.rows, ideas=ideas, sigma=ledger.sigma(session.history),
                    misses=misses, notes=model.notes)
    asked = build_prompt(now)
    return model.answer(session, "\n".join((*asked.history, asked.ask)), misses >= prompt.PLATEAU)


def night(problem: Problem, seed: int, features: tuple[str, ...], late: float) -> tuple[float, Model, Session]:
    """(true gain, the model, the session) of one night."""
    rng = random.Random(seed)
    gains = [rng.uniform(0.0003, 0.003) if rng.random() < GOOD else -rng.expovariate(1 / 0.002)
             for _ in range(N_MECHANISMS)]
    model, noise = Model(random.Random(1000 + seed), features, gains), random.Random(2000 + seed)
    session, codes, ideas = Session("t", Path("none"), 300.0, {}, code=START), {}, {}

    def run(step: New, number: int, is_repeat: bool) -> Session:
        code = codes.setdefault(number, step.proposal.code)
        value = 1.0 + problem.loss(code) + noise.gauss(0, SIGMA)
        trial = Trial(value, "", len(session.rows), "val", 300.0, "sim", "sim", "none", tokens_m=480, params_m=95,
                      witnessed=True)
        candidate = Candidate(number, f"c{number:06d}", trial.seed, step, is_repeat=is_repeat)
        row = row_of(candidate, trial, judge(session, candidate, trial)[0], "")
        return session.after(row, candidate)

    session = run(New(Proposal("baseline", START, "baseline")), 0, False)
    while len(session.rows) <= NIGHT:
        step = next_step(session, (), TUNER_SHARE)
        if isinstance(step, Again):
            known = session.experiment(step.number).own
            session = run(New(Proposal(known.description, codes[step.number], known.source)), step.number, True)
            continue
        number = max(codes) + 1
        proposal = propose(session, model, codes, ideas, late, step is Turn.TUNER)
        if proposal.source == "llm":
            is_knob = "# idea" not in proposal.code.removeprefix(session.code)
            ideas[number] = {"kind": "knob" if is_knob else "mechanism", "area": AREAS[number % len(AREAS)],
                             "reasoning": proposal.reasoning}
        session = run(New(proposal), number, False)
    return problem.loss(START) - problem.loss(session.code), model, session


def without_findings(*arguments: object) -> list[str]:
    return []


def measure(arm: str, seeds: int, late: float) -> list[tuple[float, float, float, float]]:
    """(gain, mechanisms tried again, experiments by the model, dollars) of each night."""
    findings = prompt.findings
    if "dead ends" not in ARMS[arm]:
        prompt.findings = without_findings
    nights = []
    for seed in range(seeds):
        gain, model, session = night(draw(seed), seed, ARMS[arm], late)
        n_ideas = sum(row.source == "llm" and row.status is not Status.REPEAT for row in session.rows)
        usd = model.n_asked * (ASK_USD + N_SPARE * SPARE_USD * ("spare ideas" in ARMS[arm]))
        nights.append((1000 * gain, model.n_again, n_ideas, usd / n_ideas))
    prompt.findings = findings
    return nights


def mean_and_error(values: list[float]) -> str:
    return f"{statistics.fmean(values):7.3f} ({statistics.stdev(values) / math.sqrt(len(values)):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--late", type=float, default=0.1, help="share of the model's turns in which it is late")
    options = parser.parse_args()
    print(f"n={options.seeds}, late {options.late:.0%}, mean (standard error); the difference is of the same seeds")
    print(f"{'':20s} {'gain in 1e-3':>16s} {'less all three':>16s} {'tried again':>16s} {'model ideas':>16s} $ an idea")
    whole = measure("all three", options.seeds, options.late)
    for arm in options.arms or ARMS:
        nights = whole if arm == "all three" else measure(arm, options.seeds, options.late)
        gains, again, ideas, usd = map(list, zip(*nights, strict=True))
        less = [a - b[0] for a, b in zip(gains, whole, strict=True)]
        print(f"{arm:20s} {mean_and_error(gains)} {mean_and_error(less)} {mean_and_error(again)} "
              f"{mean_and_error(ideas)} {statistics.fmean(usd):.3f}", flush=True)


if __name__ == "__main__":
    main()
