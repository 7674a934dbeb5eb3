"""What trials in flight cost and bring: the loop's own judge on a simulated night.  python tests/bench/bench_fleet.py

A stand-in for the task: an idea in five is good, by about as much as the published session's keeps (0.0005 to 0.004 of
val_bpb), the others are as much worse; the noise is sigma 0.0005. N trials run at once, each drafted when a slot is
free, from the incumbent of that moment, and judged by agent.judge against the incumbent at its own end. Two ideas from
the same parent add up only in a "combine" trial, as in the loop. DUPLICATES is how often a model that was told what
runs proposes it again all the same. Gain: true loss of the start less that of the last incumbent.
"""

import argparse
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from agent import judge  # noqa: E402
from lab.ledger import Proposal, Row, Status, Trial  # noqa: E402
from lab.session import Again, Candidate, New, Session  # noqa: E402
from lab.turns import Turn, next_step  # noqa: E402

SIGMA, GOOD, LEAST, MEAN = 0.0005, 0.2, 0.0003, 0.0012


class Night:
    """One simulated session. A train.py is the set of the ideas that it holds."""

    def __init__(self, seed: int, n_slots: int, duplicates: float, combine: bool):
        self.rng, self.n_slots, self.duplicates, self.combine = random.Random(seed), n_slots, duplicates, combine
        self.worth = random.Random(f"worth {seed}")
        self.gains: list[float] = []             # of each idea that the model has had
        self.code: dict[str, frozenset[int]] = {"": frozenset()}
        self.lacking: list[frozenset[int]] = []
        self.next_number = 0

    def loss(self, parts: frozenset[int]) -> float:
        return 1.0 - sum(self.gains[part] for part in parts)

    def draw(self, session: Session, in_flight: list[Candidate]) -> frozenset[int]:
        """The next train.py: a change that the incumbent lacks, something that runs already, or a new idea."""
        base = self.code[session.code]
        while self.lacking:
            if not (lost := self.lacking.pop()) <= base:
                return base | lost
        if in_flight and self.rng.random() < self.duplicates:
            return base | self.code[self.rng.choice(in_flight).proposal.code]
        size = LEAST + self.worth.expovariate(1 / MEAN)
        self.gains.append(size if self.worth.random() < GOOD else -size)
        return base | {len(self.gains) - 1}

    def run(self, n_trials: int) -> float:
        session, in_flight, started = Session("t", Path("."), 300.0, {}), [], 0
        while started < n_trials or in_flight:
            while len(in_flight) < self.n_slots and started < n_trials:
                step = next_step(session, in_flight, 0.0)
                if step is Turn.WAIT:
                    break
                in_flight.append(self.candidate(session, in_flight, step))
                started += 1
            candidate = in_flight.pop(self.rng.randrange(min(2, len(in_flight))))  # about the order of their starts
            session = self.judged(session, candidate)
        return 1.0 - self.loss(self.code[session.code])

    def candidate(self, session: Session, in_flight: list[Candidate], step: Again | Turn) -> Candidate:
        if isinstance(step, Again):
            return Candidate(step.number, "", 0, New(Proposal("", session.code, "llm")), is_repeat=True)
        parts = self.draw(session, in_flight) if session.incumbent else frozenset()
        code = f"parts = {sorted(parts)}"
        self.code[code] = parts
        number, self.next_number = self.next_number, self.next_number + 1
        parent = session.incumbent.commit if session.incumbent else ""
        return Candidate(number, f"c{number}", 0, New(Proposal("", code, "llm")), parent, session.code)

    def estimate(self, session: Session, commit: str) -> float:
        return next(e.val_bpb for e in session.history if e.commit == commit)

    def judged(self, session: Session, candidate: Candidate) -> Session:
        value = self.loss(self.code[candidate.proposal.code]) + self.rng.gauss(0, SIGMA)
        trial = Trial(value, "", 0, "val", 300.0, "", "", "", witnessed=True)
        status, _ = judge(session, candidate, trial)
        row = Row(candidate.commit or session.experiment(candidate.number).commit, value, status=status,
                  experiment=candidate.number, parent=candidate.parent)
        is_late = session.incumbent and candidate.parent != session.incumbent.commit
        if is_late and self.combine and status is Status.KEEP:
            self.lacking.append(self.code[session.code])
        elif is_late and self.combine and not candidate.is_repeat and value < self.estimate(session, candidate.parent):
            self.lacking.append(self.code[candidate.proposal.code])
        return session.after(row, candidate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--trials", type=int, default=100)
    options = parser.parse_args()
    print(f"{options.trials} trials a night, {options.seeds} seeds: gain +- standard error, share of the serial gain; "
          "and of four times the trials\n")
    heads = "no duplicate", "and no combining", "a third duplicates", "4 x the trials"
    print("slots  " + "  ".join(f"{head:>24}" for head in heads))
    serial = None
    for n_slots in (1, 4, 8, 16):
        cells = []
        for duplicates, combine, times in ((0.0, True, 1), (0.0, False, 1), (0.33, True, 1), (0.0, True, 4)):
            gains = [Night(seed, n_slots, duplicates, combine).run(times * options.trials)
                     for seed in range(options.seeds)]
            mean, error = statistics.fmean(gains), statistics.stdev(gains) / options.seeds**0.5
            serial = serial or mean
            cells.append(f"{mean:.4f} +- {error:.4f} {mean / serial:6.0%}")
        print(f"{n_slots:5}  " + "  ".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
