"""What a session remembers beside its rows, for the next prompt: under runs/TAG/, and gone with that folder.

unapplied.jsonl   ideas that never ran, so that they are not proposed again
ideas.jsonl       kind, area and reasoning of each experiment that a model proposed
notes.md          the model's own notebook
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab import confirm, ledger, runner
from lab.ledger import Experiment, Row, write_durably
from lab.prompt import Situation
from lab.session import Candidate, Session

N_LOGS = 3       # trials whose output the prompt quotes, beside the incumbent's


class Memory:
    """All three, read once and written as they grow; beside them the rows of earlier sessions."""

    def __init__(self, runs: Path, earlier: Sequence[Sequence[Row]] = ()):
        self.runs, self.earlier = runs, earlier
        self.unapplied = read_objects(runs / "unapplied.jsonl")
        ideas = read_objects(runs / "ideas.jsonl")
        self.ideas = {idea["experiment"]: idea for idea in ideas if "experiment" in idea}

    def add_unapplied(self, idea: Mapping[str, object]) -> None:
        self.unapplied.append(dict(idea))
        self._append("unapplied.jsonl", idea)

    def add_idea(self, number: int, kind: str, area: str, reasoning: str) -> None:
        """A number that a stop left without a row comes again: the later line counts."""
        idea = {"experiment": number, "kind": kind, "area": area, "reasoning": reasoning[:2000]}
        self.ideas[number] = idea
        self._append("ideas.jsonl", idea)

    def situation(self, session: Session, in_flight: Sequence[Candidate], program: str) -> Situation:
        """All that a proposal may depend on, as it is now."""
        history = session.history
        facts = {"budget": f"{session.budget_s:g} s of training", "device": history[0].own.device, **session.corpus}
        quoted = {e.number: e for e in (*history[-N_LOGS:], session.incumbent)}
        logs = {number: runner.read_log(session.runs, number, e.own.seed) for number, e in quoted.items()}
        running = [(c.proposal.description, c.proposal.code) for c in in_flight if not c.is_repeat]
        return Situation(
            program=program, facts=facts, code=session.code, rows=session.rows, earlier=self.earlier,
            unapplied=tuple(self.unapplied), ideas=dict(self.ideas), notes=self.notes(),
            logs={number: log for number, log in logs.items() if log}, running=running,
            sigma=ledger.sigma(history), misses=ledger.misses(confirm.ideas(history)),
            profile=profile(session.runs, session.incumbent))

    def notes(self) -> str:
        path = self.runs / "notes.md"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def write_notes(self, text: str) -> None:
        self.runs.mkdir(parents=True, exist_ok=True)
        write_durably(self.runs / "notes.md", text.encode("utf-8", "replace"))

    def _append(self, name: str, value: Mapping[str, object]) -> None:
        self.runs.mkdir(parents=True, exist_ok=True)  # somebody may have cleaned up
        with open(self.runs / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")


def profile(runs: Path, best: Experiment) -> str:
    """Where the seconds of the incumbent's trial went; "" where its file is gone."""
    told = read_objects(runs / f"{best.number:04d}-{best.own.seed}.json")
    phases = told[0].get("phases") if told else None
    parts = [f"{name} {seconds} s" for name, seconds in (phases or {}).items()]
    return f"the incumbent's trial: {', '.join(parts)}" if parts else ""


def read_objects(path: Path) -> list[dict]:
    """The objects of a JSON lines file, what is torn or damaged left out."""
    return parse_objects(path.read_bytes()) if path.is_file() else []


def parse_objects(data: bytes) -> list[dict]:
    found = []
    for line in data.split(b"\n"):
        try:
            found.append(json.loads(line))
        except ValueError:  # a torn line; what only helps the eye stops nothing
            continue
    return [value for value in found if isinstance(value, dict)]
