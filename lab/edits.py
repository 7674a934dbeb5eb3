"""A model's answer made into a train.py: search/replace blocks or a whole file, parsed, applied, checked.

Promises: an edit is applied exactly as written or not at all. Every refusal is a ProposalError whose text
is written for the model: what was looked for, the nearest real lines, what to do. The answer is untrusted
text: it is never executed, and it can raise nothing but ProposalError. Whether an idea is any good is not
decided here.
"""

import ast
import hashlib
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher, get_close_matches
from enum import Enum
from functools import lru_cache
from itertools import pairwise

from lab.ledger import one_line

MAX_ANSWER = 400_000  # characters; a whole train.py of 8 000 tokens is about 30 000
MAX_CODE = 200_000    # characters of a resulting train.py
MAX_SHOWN = 1_500     # characters of quoted code in one complaint
MAX_NOTES = 1_500     # characters of the model's own notebook
MAX_IDEAS = 3         # of one answer; more are not read

KINDS = ("knob", "mechanism", "removal", "combination")
AREAS = (
    "learning rate", "schedule", "optimizer", "batch", "attention",
    "embeddings", "feed-forward", "initialisation", "normalisation",
    "residual", "size", "speed", "regularisation", "data", "other",
)

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

_SECTION = re.compile(
    r"\s*<(description|reasoning|kind|area|notes|think|thinking)>", re.IGNORECASE)
_MARKERS = tuple(map(re.compile, (r"<{7} SEARCH\s*", r"={7}\s*", r">{7} REPLACE\s*")))
# What no line of Python starts with: a marker, or a botched one.
_ALMOST = re.compile(r"\s*(<{4}|>{4}|={7,}\s*$)")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([\w.+-]*)(.*)")
_ELIDED = re.compile(
    r"\s*(#\s*)?(\.\.\.|…)\s*$|\s*(#|\.\.\.|…).*\b("
    r"(rest|remainder) of (the )?(\w+ )?(code|file|function|class|model|script)|unchanged code"
    r"|(existing|remaining|previous|same) code|(code|rest) (is )?unchanged)", re.IGNORECASE)


class Flaw(str, Enum):
    """Why what a model said cannot be used."""

    FORM = "form"          # the answer cannot be read
    CONTENT = "content"    # it did not end, or does not fit the file, or the result cannot run
    TRIED = "tried"        # the resulting train.py was tried before
    CONFLICT = "conflict"  # it does not go with what happened since
    REFUSED = "refused"    # the model declined: an outcome of its own, never sent back

    __str__ = str.__str__


class ProposalError(Exception):
    """What a model said cannot be used. The text is for the model, `kind` is for decisions."""

    def __init__(self, text: str, kind: Flaw = Flaw.CONFLICT):
        super().__init__(text)
        self.kind = kind
        self.usd = 0.0         # billed for the answers that could not be used
        self.source = ""       # the model that gave them
        self.description = ""  # what the idea was, where that much could be read

    @property
    def refused(self) -> bool:
        return self.kind is Flaw.REFUSED


@dataclass(frozen=True)
class Edit:
    """Whole lines, each with its newline: those to find and those that take their place."""

    search: str
    replace: str


@dataclass(frozen=True)
class Answer:
    """What a model wrote, taken apart: either edits or a whole file."""

    description: str
    reasoning: str
    edits: tuple[Edit, ...] = ()
    whole: str | None = None
    kind: str = ""      # of KINDS, "" where the model named none of them
    area: str = "other"  # of AREAS
    notes: str = ""     # the model's own notebook, "" where it wrote nothing new
    spare: tuple["Answer", ...] = ()  # further ideas, the best first


@dataclass
class _Idea:
    """The lines of one idea: tagged sections, blocks, and the prose that is neither."""

    sections: dict[str, str] = field(default_factory=dict)
    prose: list[str] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)

    def has_change(self) -> bool:
        return bool(self.edits) or any(map(_FENCE.fullmatch, self.prose))


def _wrong(what: str, kind: Flaw = Flaw.FORM) -> ProposalError:
    return ProposalError(f"{what} Nothing was applied; send the whole answer again.", kind)


# Parsing ---------------------------------------------------------------------------------------------


def parse(answer: str) -> Answer:
    """Take an answer apart. Raises ProposalError unless it can be read in exactly one way."""
    if len(answer) > MAX_ANSWER:
        raise _wrong(f"The answer has more than {MAX_ANSWER} characters: send only blocks.")
    text = re.sub(r"\r\n?", "\n", answer)
    thought, closed, rest = text.partition("</think>")
    if closed and "<think>" not in thought and "<<<<" not in thought:
        text = rest  # the opening tag was part of a local model's chat template
    ideas = _split(text.split("\n"))[:MAX_IDEAS]
    notes = "\n".join(idea.sections.get("notes", "").strip() for idea in ideas).strip()
    first, *spare = map(_answer, ideas)
    return replace(first, notes=notes[:MAX_NOTES], spare=tuple(spare))


def _answer(idea: _Idea) -> Answer:
    """One idea of an answer, checked."""
    files = _whole_files(idea.prose)
    if not idea.edits and not files:
        said = one_line(" ".join(idea.prose), 120)
        raise _wrong("There is no search/replace block and no ```python fence"
                     f"{f', only {said!r}' if said else ''}. Answer in this form:\n{FORM}\n")
    if len(files) + bool(idea.edits) > 1:
        raise _wrong(f"There are {len(idea.edits)} blocks and {len(files)} fences with code, so it is "
                     "unclear which counts. Send either blocks or one whole file.")
    line = {name: one_line(text) for name, text in idea.sections.items()}
    if not line.get("description"):
        raise _wrong("There is no <description>, one line that says what changes. "
                     f"Answer in this form:\n{FORM}\n")
    kind, area = line.get("kind", "").lower(), line.get("area", "").lower()
    return Answer(
        line["description"], idea.sections.get("reasoning", "").strip(),
        tuple(idea.edits), files[0] if files else None,
        kind if kind in KINDS else "", area if area in AREAS else "other")


def _split(lines: Sequence[str]) -> list[_Idea]:
    """Walk the lines once. After a change, another <description> begins a further idea."""
    ideas = [_Idea()]
    at = 0
    while at < len(lines):
        line, idea = lines[at], ideas[-1]
        if tag := _SECTION.match(line):
            name = tag.group(1).lower()
            if name == "description" and name in idea.sections and idea.has_change():
                ideas.append(idea := _Idea())
            at = _read_section(lines, at, tag, idea.sections)
        elif _MARKERS[0].fullmatch(line):
            at = _read_block(lines, at, idea.edits)
        elif _ALMOST.match(line):
            raise _misplaced(lines, at)
        else:
            idea.prose.append(line)
            at += 1
    return ideas


def _read_section(lines: Sequence[str], at: int, tag: re.Match, sections: dict[str, str]) -> int:
    """Read <name>...</name> that starts on line `at`; return the line after it."""
    name = tag.group(1).lower()
    close = f"</{name}>"
    end = next((n for n in range(at, len(lines)) if close in lines[n].lower()), None)
    if end is None:
        raise _wrong(f"<{name}> is never closed. Close it with {close} before the blocks.")
    if name in sections and not name.startswith("think"):
        raise _wrong(f"There are two <{name}> sections. Send one <{name}>, then its blocks.")
    text = "\n".join(lines[at:end + 1])[tag.end():]
    sections[name], rest = re.split(close, text, maxsplit=1, flags=re.IGNORECASE)
    if rest.strip():
        raise _wrong(f"After {close} the line goes on with {one_line(rest, 80)!r}. End the line there.")
    return end + 1


def _read_block(lines: Sequence[str], start: int, edits: list[Edit]) -> int:
    """Read the block whose first marker is line `start`; return the line after it."""
    marks = [start]
    for at in range(start + 1, len(lines)):
        if not _ALMOST.match(lines[at]):
            continue
        if not _MARKERS[len(marks)].fullmatch(lines[at]):
            raise _misplaced(lines, at)
        marks.append(at)
        if len(marks) == 3:
            break
    else:
        last = next(line for line in reversed(lines) if line.strip())
        raise _wrong(f"Block {len(edits) + 1} is cut off: the answer ends with {one_line(last, 80)!r}. "
                     "Make it shorter if it did not fit.")
    search, new = (_text(lines[a + 1:b]) for a, b in pairwise(marks))
    if not search.strip():
        raise _wrong(f"Block {len(edits) + 1}: SEARCH is empty, so the new lines have no place. "
                     "Put the line before them into SEARCH, and again into REPLACE.")
    _check_elision(new)
    edits.append(Edit(search, new))
    return marks[-1] + 1


def _misplaced(lines: Sequence[str], at: int) -> ProposalError:
    return _wrong(
        f"Line {at + 1} of the answer, {one_line(lines[at], 80)!r}, is not the marker that is due there. "
        "A block is '<<<<<<< SEARCH', the lines to find, '=======', the new lines, '>>>>>>> REPLACE'; "
        "each marker alone on its line, not indented.")


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _lines(text: str) -> list[str]:
    return text.split("\n")[:-1]


def _check_elision(code: str) -> None:
    line = next((line for line in code.split("\n") if _ELIDED.match(line[:500])), None)
    if line is not None:
        raise _wrong(f"{one_line(line, 80)!r} leaves code out, which would delete it. Write every line "
                     "that shall stay, or use blocks that touch only what changes.")


def _whole_files(prose: Sequence[str]) -> list[str]:
    """The texts of all fences of Python. A fence around blocks holds nothing here."""
    found: list[str] = []
    opened: re.Match | None = None
    body: list[str] = []
    for line in prose:
        mark = _FENCE.fullmatch(line)
        if mark and opened is None:
            opened, body = mark, []
        elif mark and mark.group(1).startswith(opened.group(1)) and not mark.group(2):
            if opened.group(2).lower() in ("", "python", "py", "python3") and any(map(str.strip, body)):
                found.append(_text(body))
                _check_elision(found[-1])
            opened = None
        else:
            body.append(line)
    if opened and any(map(str.strip, body)):
        raise _wrong("The answer is cut off: its ``` fence is never closed. Blocks are shorter.")
    return found


# Applying --------------------------------------------------------------------------------------------

Change = tuple[int, int, tuple[str, ...]]  # lines [start, stop) and those that take their place


def apply(answer: Answer, code: str) -> str:
    """The train.py that results; every block refers to `code` as it was shown. All or nothing."""
    if answer.whole is not None:
        return answer.whole
    lines = code.replace("\r\n", "\n").split("\n")
    changes: list[Change] = []
    complaints = []
    for number, edit in enumerate(answer.edits, start=1):
        wanted = _lines(edit.search)
        places = _matches(wanted, lines)
        if len(places) == 1:
            changes.append((places[0], places[0] + len(wanted), tuple(_lines(edit.replace))))
        else:
            complaints.append(f"Block {number}: {_missing(wanted, places, lines)}")
    if complaints:
        raise _wrong("\n\n".join(complaints), Flaw.CONTENT)
    if (at := _overlap(changes)) is not None:
        raise _wrong(f"Two blocks overlap: both change line {at + 1}, {one_line(lines[at], 80)!r}. "
                     "Blocks refer to the file as shown: make one of the two.", Flaw.CONTENT)
    return "\n".join(_spliced(lines, changes))


def _matches(wanted: Sequence[str], lines: Sequence[str]) -> list[int]:
    """Where whole lines are. Part of a line never matches: 'LR = 1' must not change 'MATRIX_LR = 1'."""
    wanted, lines = [[line.rstrip() for line in some] for some in (wanted, lines)]
    return [at for at, line in enumerate(lines)
            if line == wanted[0] and lines[at:at + len(wanted)] == wanted]


def _missing(wanted: Sequence[str], places: Sequence[int], lines: Sequence[str]) -> str:
    """The complaint about a search text that is not in the file exactly once."""
    head = f"looked for these lines:\n{_shown(wanted)}\n"
    if places:
        at = ", ".join(str(place + 1) for place in places[:10])
        return (f"{head}They are in train.py {len(places)} times, at lines {at}. Add neighbouring lines "
                "to SEARCH and REPLACE until they are there once.")
    at = max(0, _nearest(wanted, lines) - 2)
    return (f"{head}They are not in train.py. The nearest lines there are, from line {at + 1}:\n"
            f"{_shown(lines[at:at + len(wanted) + 4])}\nCopy whole lines exactly, indentation included.")


def _nearest(wanted: Sequence[str], lines: Sequence[str]) -> int:
    """The line where the text that resembles `wanted` most begins."""
    want = [line.strip()[:200] for line in wanted[:60]]
    have = [line.strip()[:200] for line in lines[:5_000]]

    def n_equal(start: int) -> int:
        there = have[start:start + len(want)]
        return sum(len(line) for line, other in zip(want, there, strict=False) if line == other)

    best = max(range(len(have)), key=n_equal)
    if n_equal(best):
        return best
    longest = max(want, key=len)
    close = get_close_matches(longest, have, n=1, cutoff=0.0)
    return max(0, have.index(close[0]) - want.index(longest)) if close else 0


def _shown(lines: Sequence[str]) -> str:
    """Code in a complaint: bounded, and indented so that no line of it passes for a marker."""
    text = "\n".join(f"    | {line}" for line in lines)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def merge(base: str, mine: str, theirs: str) -> str | None:
    """`theirs` with the change from `base` to `mine`; None where the two change the same lines.

    Unlike git's merge, changes of neighbouring lines do not conflict: constants have a line each.
    """
    lines = base.splitlines(keepends=True)
    changes = {*_changes(lines, mine), *_changes(lines, theirs)}
    return None if _overlap(changes) is not None else "".join(_spliced(lines, changes))


def _changes(lines: Sequence[str], text: str) -> list[Change]:
    """What makes `text` of `lines`."""
    others = text.splitlines(keepends=True)
    steps = SequenceMatcher(None, lines, others, autojunk=False).get_opcodes()
    return [(a, b, tuple(others[c:d])) for step, a, b, c, d in steps if step != "equal"]


def _overlap(changes: Collection[Change]) -> int | None:
    """A line that two changes claim."""
    for (start, stop, _), (next_start, _, _) in pairwise(sorted(changes)):
        if next_start < stop or next_start == start:
            return next_start
    return None


def _spliced(lines: list[str], changes: Collection[Change]) -> list[str]:
    for start, stop, new in sorted(changes, reverse=True):
        lines[start:stop] = new
    return lines


# Checking --------------------------------------------------------------------------------------------


def check(code: str, tried: Collection[str]) -> None:
    """Raise ProposalError unless the file compiles, calls stream and finish, and is new."""
    called = _calls_of_prepare(_tree(code))
    if lost := [name for name in ("stream", "finish") if name not in called]:
        raise _wrong(f"The resulting train.py does not call prepare's {' and '.join(lost)}. A trial "
                     "pulls its batches from stream(batch_size, seq_len) and ends with finish(model): "
                     "keep both calls and their import.", Flaw.CONTENT)
    if fingerprint(code) in tried:
        raise ProposalError("The resulting train.py, comments and layout aside, was already tried; its "
                            "result is in the history. Propose something else.", Flaw.TRIED)


def n_statements(code: str) -> int:
    """Statements without docstrings: neither `;` nor a deleted docstring makes a file simpler."""
    nodes = ast.walk(_tree(code))
    return sum(isinstance(node, ast.stmt) and not _is_bare_string(node) for node in nodes)


@lru_cache(maxsize=16)  # 20 ms; asked when a proposal is made, and again when it is saved
def fingerprint(code: str) -> str:
    """A hash of the syntax tree: comments, layout and bare strings (docstrings) do not count."""
    tree = _tree(code)
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            kept = [line for line in node.body if not _is_bare_string(line)]
            node.body = kept or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _is_bare_string(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _tree(code: str) -> ast.Module:
    """Parse and compile, without running anything; raises ProposalError."""
    if len(code) > MAX_CODE:
        raise _wrong(f"The resulting train.py has more than {MAX_CODE} characters. Make it shorter.",
                     Flaw.CONTENT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an odd escape, on the user's terminal
            tree = ast.parse(code, "train.py")
            compile(tree, "train.py", "exec", dont_inherit=True)
            ast.dump(tree)  # too deep for a fingerprint: RecursionError
            return tree
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        at = getattr(error, "lineno", None) or 1
        near = _shown(code.split("\n")[max(0, at - 3):at + 2])
        said = one_line(getattr(error, "msg", "") or f"{type(error).__name__}: {error}", 200)
        raise _wrong(f"The resulting train.py does not compile: {said} at line {at}, here with its "
                     f"neighbours:\n{near}\nSend plain, flat Python.", Flaw.CONTENT) from None


def _calls_of_prepare(tree: ast.Module) -> set[str]:
    """The names of prepare.py that the file calls, through whatever import."""
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
