"""What a session knows beside its rows: program.md, and under runs/TAG/ what a model said.

ideas.jsonl: kind, area and reasoning of the model's experiments, and ideas that never ran. notes.md: its notebook.
lessons.md: what it wrote at the end, the first notes of the next session on the same data.
A deleted folder or a damaged line loses only its own content, and the session goes on.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lab import confirm, ledger, runner
from lab.ledger import Experiment, Proposal, Row, SetupError, Status, append_line, one_line, write_durably
from lab.prompt import Situation
from lab.session import Session

N_LOGS = 8  # trials whose facts the prompt quotes, beside those of the incumbent
IDEAS = "ideas.jsonl"
LESSONS, MAX_LESSONS = "lessons.md", 12  # and its most lines; ten are asked for


class Memory:
    """What a model said, read once and written as it grows. Beside it the rows of earlier sessions, by name."""

    def __init__(self, runs: Path, earlier: Mapping[str, Sequence[Row]] | None = None):
        self.runs, self.ideas = runs, list(read_objects(runs / IDEAS))
        self.earlier = {tag: Situation("", {}, "", rows, ideas=by_number(read_objects(runs.parent / tag / IDEAS)))
                        for tag, rows in (earlier or {}).items()}

    def add_idea(self, **idea: object) -> None:
        """Of an experiment: experiment, kind, area, is_mend, reasoning; what never ran: rows, description, reason."""
        self.ideas.append(idea)
        append_line(self.runs / IDEAS, json.dumps(idea))

    def is_mend(self, number: int) -> bool:
        """Whether an experiment whose row is written was a mend."""
        return any(idea.get("experiment") == number and idea.get("is_mend") for idea in self.ideas)

    def write_notes(self, text: str) -> None:
        """Write notes.md, without control characters."""
        plain = "".join(letter for letter in text if letter.isprintable() or letter == "\n")
        self.runs.mkdir(parents=True, exist_ok=True)
        write_durably(self.runs / "notes.md", plain.encode("utf-8", "replace"))

    def write_lessons(self, title: str, text: str) -> list[str]:
        """Keep the model's lessons, bounded; the lines of the file."""
        lines = [one_line(line, 240) for line in text.splitlines() if line.strip()]
        self.runs.mkdir(parents=True, exist_ok=True)
        write_durably(self.runs / LESSONS, "\n".join([title, *lines[:MAX_LESSONS]]).encode("utf-8", "replace"))
        return read_lessons(self.runs)

    def situation(self, session: Session, known: Sequence[Proposal], program: str) -> Situation:
        """All that a proposal may depend on, as it is now; `known`: the proposals in flight."""
        history, best = session.history, session.incumbent
        quoted = {e.number: e for e in (*history[-N_LOGS:], best)}
        return Situation(
            program, {"budget": f"{session.budget_s:g} s of training", "device": history[0].own.device,
                      **session.corpus},
            session.code, session.rows, earlier=[*self.earlier.values()],
            ideas=by_number(self.ideas),
            unapplied=[idea for idea in self.ideas if "experiment" not in idea],
            logs={n: runner.read_log(session.runs, n, e.own.seed) for n, e in quoted.items()},
            profiles={n: profile_of(session.runs, e, is_whole=e is best) for n, e in quoted.items()},
            running=[(proposal.description, proposal.code) for proposal in known],
            sigma=ledger.sigma(history), misses=ledger.misses(confirm.ideas(history)),
            notes=self.notes(history[0].own.data))

    def notes(self, data: str) -> str:
        """The model's notebook; until it writes one, the lessons of the newest earlier session on this data."""
        if (path := self.runs / "notes.md").is_file():
            return path.read_text(encoding="utf-8", errors="replace")
        same = [tag for tag, other in self.earlier.items() if other.rows[0].data == data]
        lessons = (read_lessons(self.runs.parent / tag) for tag in reversed(same))
        return "\n".join(next(filter(None, lessons), ()))


def by_number(ideas: Iterable[dict]) -> dict[int, dict]:
    """What was said of experiments."""
    return {idea["experiment"]: idea for idea in ideas if "experiment" in idea}


def profile_of(runs: Path, experiment: Experiment, is_whole: bool) -> str:
    """Facts of its trial in a line, of the whole also shares of a step's time; "" when its file is gone."""
    row = next((row for row in reversed(experiment.rows) if row.status is Status.KEEP), experiment.own)
    text = str(facts(runs, row).get("profile") or "")
    return text if is_whole else text.partition("\n")[0]


def facts(runs: Path | None, row: Row) -> dict:
    """What was measured of its trial; {} when its file is gone."""
    return next(read_objects(runs / f"{row.experiment:04d}-{row.seed}.json"), {}) if runs else {}


def called_usd(runs: Path) -> float:
    """List price of all calls of the model that are on the disk."""
    prices = [call.get("usd") for call in read_objects(runs / "calls.jsonl")]
    return sum(usd for usd in prices if isinstance(usd, int | float))


def billed_usd(runs: Path, rows: Iterable[Row]) -> float:
    """What the session has cost: by its calls, or by its rows where runs/ was deleted."""
    return max(called_usd(runs), sum(row.usd for row in rows))


def read_lessons(runs: Path | None) -> list[str]:
    """What the model wrote at the end of a session, under a line that says so; none where it wrote nothing."""
    there = runs and (runs / LESSONS).is_file()
    return (runs / LESSONS).read_text(encoding="utf-8", errors="replace").splitlines() if there else []


def read_objects(path: Path) -> Iterator[dict]:
    """The objects of a JSON lines file, without what is torn or damaged."""
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def read_program(root: Path) -> str:
    """program.md as it is now. Raises SetupError when there is nothing to steer by."""
    mend = "write what to research, or restore it with git checkout -- program.md"
    try:
        text = (root / "program.md").read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        raise SetupError(f"program.md cannot be read as UTF-8: {mend}") from None
    if not text.strip():
        raise SetupError(f"program.md is empty: {mend}")
    return text


def directions(program: str) -> str:
    """The section of program.md that steers; all of it where there is no such section."""
    found = re.search(r"(?ms)^## Directions\s*$(.*?)(?=^## |\Z)", program)
    return found[1].strip() if found else program.strip()
