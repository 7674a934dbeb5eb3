"""A session whose thirteen answers are known, replayed with the real loop, git, SDK and prompts.

A trial costs a tenth of a second.

The stand-in's referee reads a score from the file: the sum of its `# worth` lines. So every row can be checked against
the commit that it names, and the last train.py tells which ideas are in it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from fakes import edit, git
from invariants import check
from model_server import ModelServer, request_text

from lab import ledger
from lab.commandline import TUNER_SHARE
from lab.ledger import Row, Status
from lab.prompt import LESSONS
from lab.turns import tuner_credit

TRAIN = '''\
import time

LEARNING_RATE = 0.5
WIDTH = 200
SLEEP_S = 0.05  # fixed


def table():
    return [0] * 8


def optimizer(grads):
    return [LEARNING_RATE * grad for grad in grads]


def unused():
    return 0  # worth -0.1


def main():
    from prepare import finish, stream

    for _ in stream(1, 1):
        finish(None)


# worth 0
assert WIDTH
table()
optimizer([1.0])
print("loss 1.0")
time.sleep(SLEEP_S)
'''


@dataclass(frozen=True)
class Idea:
    """An answer, as a function of the train.py and of the whole request that it answers."""

    name: str
    change: Callable[[str, str], tuple[str, str] | None]  # None: not yet
    repaired: tuple[str, str] | None = None               # what the model sends when it is told what was wrong

    def answer(self, code: str, text: str) -> str | None:
        change = self.change(code, text)
        return change and edit(self.name, change)


def swap(old: str, new: str) -> Callable[[str, str], tuple[str, str] | None]:
    """Once the old lines are in the file."""
    return lambda code, text: (old, new) if f"\n{old}\n" in f"\n{code}" else None


def counts(step: int, before: str) -> Callable[[str, str], tuple[str, str] | None]:
    """A step that needs the one before it."""
    grown = f"def counts{step}(x):\n    return x  # worth 0.0{step}\n\n\ndef main():"
    return lambda code, text: ("def main():", grown) if before in code else None


def same_lines(code: str, text: str) -> tuple[str, str] | None:
    """A change of the line that what is being measured changes, where it changes one."""
    found = re.search(r"Being measured now(?s:.*?)\n\| -((\s*).*)", text)
    return found and (found[1], f"{found[2]}pass\n{found[1]}")


IDEAS = (
    Idea("a constant", swap("LEARNING_RATE = 0.5", "LEARNING_RATE = 0.7  # worth 0.1")),
    Idea("a table", swap("    return [0] * 8", "    return [1] * 8  # worth 0.2")),
    Idea("a sparse optimizer", swap("    return [LEARNING_RATE * grad for grad in grads]",
                                    "    return [LEARNING_RATE * grad for grad in grads if grad]  # worth -0.5")),
    Idea("a removal", swap("def unused():\n    return 0  # worth -0.1\n\n\ndef main():", "def main():")),
    Idea("a crash by an index", swap("table()", "table()[8]"), ("table()[8]", "table()[7]  # worth 0.3")),
    Idea("counts, step 1", counts(1, "def main")),
    Idea("a crash for good", swap("import time", "import time\nraise ValueError('no')"),
         ("raise ValueError('no')", "raise ValueError('still no')")),
    Idea("counts, step 2", counts(2, "def counts1")),
    Idea("counts, step 3", counts(3, "def counts2")),
    Idea("a whole file", swap("WIDTH = 200", "WIDTH = 256  # worth 0.4")),
    Idea("a wrong search text", lambda code, text: ("    return [9] * 8", "    return [2] * 8"),
         ("optimizer([1.0])", "optimizer([1.0, 0.0])  # worth 0.5")),
    Idea("the lines that are being measured", same_lines, ('print("loss 1.0")', 'print("loss 1.1")  # worth 0.6')),
    Idea("the same in other words", swap("time.sleep(SLEEP_S)", "time.sleep(SLEEP_S)  # shorter"),
         ("    return [1] * 8  # worth 0.2", "    return [1] * 9  # worth -0.7")),
)


class Model:
    """Answers with the first idea that it can write, and mends and repairs those that it wrote."""

    def __init__(self):
        self.left, self.n_mends, self.complaints = list(IDEAS), 0, []

    def __call__(self, request: dict) -> str:
        text = request_text(request)
        if "It crashed" in text:
            self.n_mends += 1
            idea = next(idea for idea in IDEAS if f"| {idea.name}\n" in text)
            return edit(idea.name, idea.repaired)
        if len(request["messages"]) > 1:
            said = request["messages"][-2]["content"]
            idea = next((idea for idea in IDEAS if f">{idea.name}<" in str(said)), Idea("nothing left", same_lines))
            self.complaints.append(idea.name)
            return edit(idea.name, idea.repaired) if idea.repaired else said
        return self.idea(text)

    def idea(self, text: str) -> str:
        code = re.search(r"<train\.py>\n((?s:.*?))\n</train\.py>", text)[1]
        for idea in self.left:
            if answer := idea.answer(code, text):
                self.left.remove(idea)
                if idea.name != "a whole file":
                    return answer
                old, new = idea.change(code, text)
                return f"<description>{idea.name}</description>\n```python\n{code.replace(old, new)}```\n"
        return edit("nothing left", ("time.sleep(SLEEP_S)", f"time.sleep(SLEEP_S)\nprint({len(text)})"))


@pytest.fixture
def replayed(root, agents, corpus_path) -> tuple:
    """(checkout, rows, model, what the agent printed) of the session."""
    (root / "train.py").write_text(TRAIN)
    git(root, "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "-qam", "another train.py")
    sources = []
    while sources.count("model") < len(IDEAS) + 2:  # two crashes are mended
        sources.append("tuner" if tuner_credit(sources, TUNER_SHARE) >= 1 else "model")
    model = Model()
    with ModelServer([model]) as server:
        code, out = agents.run(root, "--researcher", "auto", "--tag", "nov23", "--data", str(corpus_path),
                               "--experiments", str(len(sources)), server=server.url, patient=True)
    assert code == 0, out
    return root, ledger.read(root / "results.tsv"), model, out


def worth(code: str) -> list[str]:
    return re.findall("# worth (.*)", code)


def test_a_session_of_thirteen_answers_loses_nothing_and_says_nothing_false(replayed):
    root, rows, model, out = replayed
    check(root)
    own = [row for row in rows[1:] if row.status is not Status.REPEAT]
    verdicts: dict[str, list[str]] = {}
    for row in own:
        if row.source != "tuner":
            verdicts.setdefault(row.description, []).append(str(row.status))
    lost = {"a sparse optimizer": ["discard"], "the same in other words": ["discard"],
            "a crash by an index": ["crash", "keep"], "a crash for good": ["crash", "crash"]}
    assert verdicts == {idea.name: ["keep"] for idea in IDEAS} | lost, out
    assert not model.left and "could not be tried" not in out
    told = {"a wrong search text", "the lines that are being measured", "the same in other words"}
    assert told <= {*model.complaints}
    assert_true(root, rows)
    kept = ["0.1", "0.2", "0.01", "0.02", "0.03", "0.3", "0.4", "0.5", "0.6", "0"]
    assert sorted(worth((root / "train.py").read_text())) == sorted(kept)

    sources = []
    for row in own:
        assert (row.source == "tuner") == (tuner_credit(sources, TUNER_SHARE) >= 1), row
        sources.append(row.source)
    mended = [row for row in own if "mended after: " in row.note]
    crashes = [row for row in own if row.status is Status.CRASH]
    assert model.n_mends == len(mended) == 2 and len(crashes) == 3, "a mend that crashes is not mended again"
    assert_paid(root, rows, out)


def assert_true(root, rows: list[Row]) -> None:
    """Every value is that of the commit that its row names, and what is kept was lower than what was known."""
    best = float("inf")
    for row in rows:
        code = git(root, "show", f"{row.commit}:train.py")
        if row.status is not Status.CRASH:
            assert row.val_bpb == round(3.0 - sum(map(float, worth(code))) + row.seed * 1e-6, 6), row
        if row.status is Status.KEEP:
            assert row.val_bpb < best, row
            best = row.val_bpb


def assert_paid(root, rows: list[Row], out: str) -> None:
    """What every call cost is in the rows of the model, to the cent, the lessons' aside, and none in another's."""
    calls = [json.loads(line) for line in (root / "runs" / "nov23" / "calls.jsonl").open()]
    ideas = sum(call["usd"] for call in calls if LESSONS not in call["prompt"])
    paid = sum(row.usd for row in rows if row.source == "claude-opus-5-5")
    assert abs(paid - ideas) < 0.005 and sum(row.usd for row in rows) == paid
    assert f"; ${sum(call['usd'] for call in calls):.2f}\n" in out
