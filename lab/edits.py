"""Turns a model's answer into a train.py: search/replace blocks or a whole file.

Promises: an edit is applied exactly as written or not at all. Every refusal is a ProposalError
whose text is written for the model: what was looked for, the nearest real lines, what to do. The
answer is untrusted text: it is never executed, and it raises nothing else.
"""

import ast
import hashlib
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher, get_close_matches, unified_diff
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise

from lab.ledger import one_line

MAX_ANSWER = 400_000  # characters; a whole train.py of 8 000 tokens is about 30 000
MAX_CODE = 200_000    # characters of a resulting train.py
MAX_SHOWN = 1_500     # characters of quoted code in one complaint
MAX_NOTES = 1_500     # characters of the model's own notebook

KINDS = ("knob", "mechanism", "removal", "combination")
AREAS = (
    "learning rate", "schedule", "optimizer", "batch", "attention", "embeddings", "feed-forward",
    "initialisation", "normalisation", "residual", "size", "speed", "regularisation", "data", "other")

FORM = """\
<description>one line: what changes</description>
<kind>knob</kind>
<area>optimizer</area>
<reasoning>why it should lower val_bpb</reasoning>
<<<<<<< SEARCH
whole lines copied exactly from train.py
=======
the lines that take their place
>>>>>>> REPLACE"""

# No line of Python starts like this. Outside of a whole block it is a mistake in the form.
_MARKER = r"[ \t]*(?:<{4}|>{4}|={7,}[ \t]*$)"
_LINES = rf"(?:(?!{_MARKER}).*\n)*+"  # possessive: a broken block costs one pass, no backtracking
_PART = re.compile(
    r"^[ \t]*<(?P<name>description|kind|area|reasoning|notes|think|thinking)>"
    r"(?P<text>(?s:.*?))(?P<end></(?P=name)>|\Z)"
    rf"|^<{{7}} SEARCH[ \t]*\n(?P<search>{_LINES})={{7}}[ \t]*\n(?P<replace>{_LINES})>{{7}} REPLACE[ \t]*$"
    rf"|^[ \t]*```(?:python|py)\b.*\n(?P<whole>(?:(?!{_MARKER}|[ \t]*```).*\n)*+)[ \t]*```[ \t]*$", re.MULTILINE)
_ELIDED = re.compile(
    r"\s*(#\s*)?(\.\.\.|…)\s*$|\s*(#|\.\.\.|…).*\b(unchanged|(existing|remaining|previous|same) code"
    r"|(rest|remainder) of (the )?(\w+ )?(code|file|function|class|model|script))", re.IGNORECASE)


class Flaw(StrEnum):
    """Why what a model said cannot be used."""

    FORM = "form"          # the answer cannot be read
    CONTENT = "content"    # it did not end, or does not fit the file, or the result cannot run
    TRIED = "tried"        # the resulting train.py was tried before
    CONFLICT = "conflict"  # it does not fit what was kept or changed meanwhile
    REFUSED = "refused"    # the model declined: an outcome of its own, never sent back


class ProposalError(Exception):
    """What a model said cannot be used. The text is for the model, `kind` is for decisions.

    reason: what is wrong with a train.py, for a person; "" where something else is wrong.
    """

    def __init__(self, text: str, kind: Flaw = Flaw.CONFLICT, reason: str = ""):
        super().__init__(text)
        self.kind, self.reason = kind, reason
        self.usd = 0.0         # billed for the answers that could not be used
        self.description = ""  # what the idea was, if that much could be read

    @property
    def refused(self) -> bool:
        return self.kind is Flaw.REFUSED


@dataclass(frozen=True)
class Answer:
    """What a model wrote, taken apart: either edits or a whole file."""

    description: str
    reasoning: str
    edits: tuple[tuple[str, str], ...] = ()  # whole lines: to find, and new
    whole: str | None = None
    kind: str = ""       # one of KINDS, or "" if the model named none of them
    area: str = "other"  # one of AREAS
    notes: str = ""      # the model's own notebook, "" if it wrote nothing new


def _wrong(what: str, kind: Flaw = Flaw.CONTENT, reason: str = "") -> ProposalError:
    return ProposalError(f"{what} Nothing was applied; send the whole answer again.", kind, reason)


def _unfit(reason: str, advice: str) -> ProposalError:
    """A train.py that cannot run: why, and what the model shall do."""
    return _wrong(f"The resulting train.py {reason}. {advice}", reason=reason)


def parse(answer: str) -> Answer:
    """Take an answer apart. Raises ProposalError unless it can be read in exactly one way."""
    if len(answer) > MAX_ANSWER:
        raise _wrong(f"More than {MAX_ANSWER} characters are no answer: send only blocks.", Flaw.FORM)
    text = re.sub(r"\r\n?", "\n", answer)
    # Some local models think without an opening tag: it is part of their chat template.
    text = re.sub(r"\A(?:(?!<think>|<{4}).)*?</think>", "", text, flags=re.DOTALL)
    parts = list(_PART.finditer(text))
    stray = [part[0] for part in parts if part["end"] == ""]
    stray += [line for line in _PART.sub("", text).split("\n") if re.match(_MARKER, line)]
    if stray:
        shown = ", ".join(repr(one_line(line, 80)) for line in stray[:3])
        last = one_line(text.rstrip().rpartition("\n")[2], 80)
        raise _wrong(f"No whole section or block has these parts: {shown}. The answer ends with {last!r}; make it "
                     "shorter if it was cut off. Every <tag> needs its </tag>, and each marker is alone on its "
                     f"line, not indented. A block has this form:\n{FORM}\n", Flaw.FORM)
    second = [part.start() for part in parts if part["name"] == "description"][1:2]
    first = _idea(text[:second[0]] if second else text)  # what comes after it is another idea
    notes = (part["text"].strip() for part in parts if part["name"] == "notes")
    return replace(first, notes="\n".join(notes)[:MAX_NOTES])


def _idea(text: str) -> Answer:
    """One idea of an answer: a description, and either blocks or one whole file."""
    parts = list(_PART.finditer(text))
    said = {part["name"]: part["text"].strip() for part in parts if part["name"]}
    edits = tuple((part["search"], part["replace"]) for part in parts if part["search"] is not None)
    files = [part["whole"] for part in parts if part["whole"] is not None]
    description, kind, area = (
        one_line(said.get(name, "")) for name in ("description", "kind", "area"))
    if not description or len(files) + bool(edits) != 1:
        raise _wrong(
            f"The idea {description!r} has {len(edits)} search/replace blocks and {len(files)} whole files. It "
            f"begins with {one_line(text, 120)!r}. An idea is one <description>, then either blocks or one whole "
            f"file in a ```python fence. Answer in this form:\n{FORM}\n", Flaw.FORM)
    for line in "".join([*files, *(new for _, new in edits)]).split("\n"):
        if _ELIDED.match(line[:500]):
            raise _wrong(f"{one_line(line, 80)!r} leaves code out, which would delete it. Write every line that "
                         "shall stay, or use blocks that touch only what changes.", Flaw.FORM)
    return Answer(description, said.get("reasoning", ""), edits, files[0] if files else None,
                  kind if kind in KINDS else "", area if area in AREAS else "other")


def apply(answer: Answer, code: str) -> str:
    """The resulting train.py. Blocks refer to `code` as it was shown; all of them apply, or none."""
    if answer.whole is not None:
        return answer.whole
    lines = code.replace("\r\n", "\n").split("\n")
    bare = [line.rstrip() for line in lines]
    changes, complaints = [], []
    for number, (search, new) in enumerate(answer.edits, start=1):
        wanted = [line.rstrip() for line in search.split("\n")[:-1]]
        # Whole lines: 'LR = 1' must not change 'MATRIX_LR = 1'.
        places = [at for at in range(len(bare)) if bare[at:at + len(wanted)] == wanted]
        changes += [(at, at + len(wanted), tuple(new.split("\n")[:-1])) for at in places[:1]]
        if len(places) != 1:
            complaints.append(f"Block {number}: {_complaint(wanted, places, lines)}")
    if complaints:
        raise _wrong("\n\n".join(complaints))
    if (changed := _spliced(lines, changes)) is None:
        raise _wrong("Two blocks overlap: they change the same line of the file as shown. Make one of the two.")
    return "\n".join(changed)


def _complaint(wanted: Sequence[str], places: Sequence[int], lines: Sequence[str]) -> str:
    """What is wrong with a search text that is not in the file exactly once."""
    if places:
        at = ", ".join(str(place + 1) for place in places[:10])
        found = (f"They are in train.py {len(places)} times, at lines {at}. Add neighbouring lines to SEARCH "
                 "and REPLACE until they are there once.")
    else:
        at = max(0, _nearest(wanted, lines) - 2)
        found = (f"They are not in train.py. The nearest lines there are, from line {at + 1}:\n"
                 f"{_shown(lines[at:at + len(wanted) + 4])}\nCopy whole lines exactly, indentation included.")
    return f"looked for these lines:\n{_shown(wanted)}\n{found}"


def _nearest(wanted: Sequence[str], lines: Sequence[str]) -> int:
    """The line where the text that resembles `wanted` most begins."""
    want = [line.strip()[:200] for line in wanted[:60]]
    have = [line.strip()[:200] for line in lines[:5_000]]

    def n_equal(start: int) -> int:
        there = have[start:start + len(want)]
        return sum(len(line) for line, other in zip(want, there, strict=False) if line == other)

    best, longest = max(range(len(have)), key=n_equal), max(want, key=len)
    if n_equal(best):
        return best
    close = get_close_matches(longest, have, n=1, cutoff=0.0)
    return max(0, have.index(close[0]) - want.index(longest))


def _shown(lines: Sequence[str]) -> str:
    """Code in a complaint: bounded, and indented so that no line of it passes for a marker."""
    text = "\n".join(f"    | {line}" for line in lines)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def merge(base: str, mine: str, theirs: str) -> str | None:
    """`theirs` with the change from `base` to `mine`, or None if the two change the same lines."""
    # Unlike in git, changes of neighbouring lines do not conflict: constants have a line each.
    lines, *others = (_ended(text).splitlines(keepends=True) for text in (base, mine, theirs))
    changes = set()
    for new in others:
        steps = SequenceMatcher(None, lines, new, autojunk=False).get_opcodes()
        changes |= {(a, b, tuple(new[c:d])) for step, a, b, c, d in steps if step != "equal"}
    merged = _spliced(lines, changes)
    return None if merged is None else "".join(merged)


def _ended(text: str) -> str:
    """With a newline at its end: what another change appends begins a line of its own."""
    return text if text.endswith("\n") else f"{text}\n"


def _spliced(lines: list[str],
             changes: Collection[tuple[int, int, tuple[str, ...]]]) -> list[str] | None:
    """The lines after changes of [start, stop) to new ones; None if two claim the same line."""
    ordered = sorted(changes)
    for (start, stop, _), (next_start, _, _) in pairwise(ordered):
        if next_start < stop or next_start == start:
            return None
    for start, stop, new in reversed(ordered):
        lines[start:stop] = new
    return lines


def diff(before: str, after: str) -> str:
    """What changed, with the numbers of the lines."""
    files = before.splitlines(), after.splitlines()
    return "\n".join([*unified_diff(*files, lineterm="", n=0)][2:])


def excerpt(code: str, limit: int, turn: int) -> str:
    """Whole lines of a file that is too long, from the function, class or banner on that `turn` chooses.

    What is left out stands there as a comment, which parse() would refuse in a whole train.py.
    """
    if len(code) <= limit:
        return code
    lines, n_chars = code.split("\n"), 200  # for the comments
    starts = [n for n, line in enumerate(lines) if line.startswith(("def ", "class ", "# ---"))] or [0]
    start = stop = starts[turn % len(starts)]
    while stop < len(lines) and (n_chars := n_chars + len(lines[stop]) + 1) <= limit:
        stop += 1
    above, below = (f"# ... remaining code of {n} lines, not shown" for n in (start, len(lines) - stop))
    return "\n".join([above, *lines[start:stop], below])


def check(code: str, tried: Collection[str]) -> None:
    """Raise ProposalError unless the file compiles, calls stream and finish, and is new."""
    called = _calls(_tree(code))
    if lost := [name for name in ("stream", "finish") if name not in called]:
        raise _unfit(f"does not call prepare's {' and '.join(lost)}: a trial pulls batches from "
                     "stream(batch_size, seq_len) and ends with finish(model)", "Keep these calls.")
    if fingerprint(code) in tried:
        raise ProposalError("The resulting train.py, comments and layout aside, was already tried; its "
                            "result is in the history. Propose something else.", Flaw.TRIED)


def n_statements(code: str) -> int:
    """Statements, not docstrings: neither `;` nor a deleted docstring makes a file simpler."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(_tree(code)))


@lru_cache(maxsize=16)  # 20 ms, and a proposal is asked for it three times
def fingerprint(code: str) -> str:
    """A hash of the syntax tree: comments, layout and docstrings do not count."""
    text = ast.dump(_tree(code)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:16]


def _tree(code: str) -> ast.Module:
    """Parse without running anything, docstrings left out. Raises ProposalError."""
    if len(code) > MAX_CODE:
        raise _unfit(f"has more than {MAX_CODE} characters", "Shorten it.")
    try:
        with warnings.catch_warnings(action="ignore"):  # an odd escape would warn on the user's terminal
            compile(code, "train.py", "exec", dont_inherit=True)
            tree = ast.parse(code, "train.py")
            ast.dump(tree)  # RecursionError if it is too deep for a fingerprint
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        at = getattr(error, "lineno", None) or 1
        near = _shown(code.split("\n")[max(0, at - 3):at + 2])
        raise _unfit(f"does not compile: {one_line(str(error), 200)}",
                     f"Around line {at} it is:\n{near}\nSend plain, flat Python.") from None
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [line for line in node.body
                         if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))]
    return tree


def _calls(tree: ast.Module) -> set[str]:
    """The names of prepare.py's functions that the file calls, whatever the import."""
    nodes = list(ast.walk(tree))
    names: dict[str, str] = {}
    for node in nodes:
        module = getattr(node, "module", "prepare")
        if isinstance(node, ast.Import | ast.ImportFrom) and module == "prepare":
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
    called = set()
    for function in (node.func for node in nodes if isinstance(node, ast.Call)):
        owner = names.get(getattr(getattr(function, "value", function), "id", ""), "")
        called.add(getattr(function, "attr", "") if owner == "prepare" else owner)
    return called
