"""A model's answer made into a train.py: search/replace blocks or a whole file, parsed, applied, checked.

Promises: an edit is applied exactly as written or not at all; every refusal is a ProposalError whose text is written
for the model: what was looked for, the nearest real lines, what to do. The answer is untrusted text: it is never
executed, and nothing in it can raise anything but ProposalError. Whether an idea is any good is not decided here.
"""

import ast
import hashlib
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import lru_cache

from lab.ledger import one_line

MAX_ANSWER = 400_000      # characters; a whole train.py of 8 000 tokens is about 30 000
MAX_CODE = 200_000        # characters of a resulting train.py
MAX_SHOWN = 1_500         # characters of quoted code in one complaint

FORM = """\
<description>one line: what changes</description>
<reasoning>why it should lower val_bpb</reasoning>
<<<<<<< SEARCH
whole lines copied exactly from train.py
=======
the lines that take their place
>>>>>>> REPLACE"""

_SECTION = re.compile(r"\s*<(description|reasoning|think|thinking)>", re.IGNORECASE)
_START, _MIDDLE, _END = re.compile(r"<{7} SEARCH\s*"), re.compile(r"={7}\s*"), re.compile(r">{7} REPLACE\s*")
_ALMOST = re.compile(r"\s*(<{4}|>{4}|={7,}\s*$)")  # what no line of Python starts with: a marker, or a botched one
_FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*([\w.+-]*)(.*)")
_FILE = re.compile(r"[\s#*`>-]*(?:file(?:name)?:\s*)?([\w./\\-]+\.(?:py|md|tsv|toml|txt|json|ya?ml|sh))[\s`*:]*", re.I)
_DIFF = re.compile(r"(--- |\+\+\+ )(a/|b/|\S+\.py)|@@ -\d|diff --git ")
_ELIDED = re.compile(r"\s*(#\s*)?(\.\.\.|…)\s*$|\s*(#|\.\.\.|…).*\b("
                     r"(rest|remainder) of (the )?(\w+ )?(code|file|function|class|model|script)|unchanged code"
                     r"|(existing|remaining|previous|same) code|(code|rest) (is )?unchanged)", re.IGNORECASE)


class ProposalError(Exception):
    """What a model said cannot be used; the text is written for the model and sent to it."""

    def __init__(self, text: str, refused: bool = False):
        super().__init__(text)
        self.refused = refused    # the model declined: an outcome of its own, never sent back
        self.usd = 0.0            # billed for the answers that could not be used
        self.source = ""          # the model that gave them
        self.description = ""     # what the idea was, where that much could be read


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


def _wrong(what: str) -> ProposalError:
    return ProposalError(f"{what} Nothing was applied; send the whole answer again.")


# Parsing -------------------------------------------------------------------------------------------------------------


def parse(answer: str) -> Answer:
    """Take an answer apart; raises ProposalError when it can be read in more than one way, or in none."""
    if len(answer) > MAX_ANSWER:
        raise _wrong(f"The answer has {len(answer)} characters, more than {MAX_ANSWER}: send only blocks.")
    if not answer.strip():
        raise ProposalError(f"The answer is empty. Answer in this form:\n{FORM}")
    text = re.sub(r"\r\n?", "\n", answer)
    thought, closed, rest = text.partition("</think>")
    if closed and "<think>" not in thought and "<<<<" not in thought:  # the opening tag was part of a chat template
        text = rest
    sections, prose, edits = _split(text.split("\n"))
    fences = _fences(prose)
    _complain_of_prose(prose, edits, fences)
    description = one_line(sections.get("description", ""))
    if not description:
        raise _wrong(f"There is no <description>, one line that says what changes. Answer in this form:\n{FORM}\n")
    whole = None if edits else fences[0]
    _complain_of_elision(whole or "", "The file")
    return Answer(description, sections.get("reasoning", "").strip(), tuple(edits), whole)


def _split(lines: Sequence[str]) -> tuple[dict[str, str], list[str], list[Edit]]:
    """Walk the lines once: tagged sections, blocks, and the prose that is neither."""
    sections: dict[str, str] = {}
    prose: list[str] = []
    edits: list[Edit] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if tag := _SECTION.match(line):
            at = _read_section(lines, at, tag, sections)
        elif _START.fullmatch(line):
            _complain_of_file(prose, f"Block {len(edits) + 1}")
            edit, at = _read_block(lines, at, len(edits) + 1)
            edits.append(edit)
        elif _ALMOST.match(line):
            raise _wrong(f"Line {at + 1} of the answer, {one_line(line, 80)!r}, is no marker line or stands outside a "
                         "block. A block is '<<<<<<< SEARCH', the lines to find, '=======', the new lines, "
                         "'>>>>>>> REPLACE'; each marker alone on its line, not indented.")
        else:
            prose.append(line)
            at += 1
    return sections, prose, edits


def _read_section(lines: Sequence[str], at: int, tag: re.Match, sections: dict[str, str]) -> int:
    """Read <name>...</name> that starts on line `at`; return the line after it."""
    name = tag.group(1).lower()
    close = re.compile(f"</{name}>", re.IGNORECASE)
    body = [lines[at][tag.end():]]
    while not (end := close.search(body[-1])):
        at += 1
        if at == len(lines):
            raise _wrong(f"<{name}> is never closed. Close it with </{name}> before the blocks.")
        body.append(lines[at])
    if name in sections and not name.startswith("think"):
        raise _wrong(f"There are two <{name}> sections. Send one idea: one <{name}>, then its blocks.")
    if rest := body[-1][end.end():].strip():
        raise _wrong(f"After </{name}> the line goes on with {one_line(rest, 80)!r}. Start a new line there.")
    sections[name] = "\n".join([*body[:-1], body[-1][:end.start()]])
    return at + 1


def _read_block(lines: Sequence[str], start: int, number: int) -> tuple[Edit, int]:
    """Read the block whose start marker is line `start`; return it and the line after it."""
    middle = None
    for at in range(start + 1, len(lines)):
        line = lines[at]
        if _END.fullmatch(line) and middle is not None:
            edit = Edit(_text(lines[start + 1:middle]), _text(lines[middle + 1:at]))
            _complain_of_block(edit, f"Block {number}")
            return edit, at + 1
        if _MIDDLE.fullmatch(line) and middle is None:
            middle = at
        elif _ALMOST.match(line):
            due = "'======='" if middle is None else "'>>>>>>> REPLACE'"
            raise _wrong(f"Block {number}: line {at + 1} of the answer is {one_line(line, 80)!r} where {due} is due. "
                         "Each marker stands once a block, exactly so, not indented.")
    due = "'=======' and '>>>>>>> REPLACE'" if middle is None else "'>>>>>>> REPLACE'"
    last = next((line for line in reversed(lines) if line.strip()), "")
    raise _wrong(f"Block {number} is cut off: {due} never comes, the answer ends with {one_line(last, 80)!r}. Make it "
                 "shorter if it did not fit.")


def _text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _lines(text: str) -> list[str]:
    return text.split("\n")[:-1]


def _complain_of_block(edit: Edit, where: str) -> None:
    shown = _shown(_lines(edit.search))
    if not edit.search.strip():
        raise _wrong(f"{where}: SEARCH is empty, so the new lines have no place. Put the line before them into "
                     "SEARCH, and again into REPLACE.")
    if edit.search == edit.replace:
        raise _wrong(f"{where}: SEARCH and REPLACE are the same, so nothing changes:\n{shown}\nChange or leave it out.")
    if any(_FENCE.fullmatch(line) for line in _lines(edit.search + edit.replace)):
        raise _wrong(f"{where}: there is a ``` fence inside the block. Put only lines of train.py there.")
    if all(line[:1] in "+-@" for line in _lines(edit.search) if line):
        raise _wrong(f"{where}: SEARCH is a diff, its lines start with + or -:\n{shown}\nCopy lines from train.py.")
    _complain_of_elision(edit.replace, f"{where}: REPLACE")


def _complain_of_elision(code: str, where: str) -> None:
    line = next((line for line in code.split("\n") if _ELIDED.match(line[:500])), None)
    if line is not None:
        raise _wrong(f"{where} leaves code out with {one_line(line, 80)!r}, which would delete it. Write every line "
                     "that shall stay, or use blocks that touch only what changes.")


def _complain_of_file(prose: Sequence[str], what: str, label: str = "") -> None:
    """A file name on the line above a block or fence, or in the fence's label, must be train.py's."""
    above = [line for line in prose[-3:] if line.strip() and not _FENCE.fullmatch(line)][-1:]
    for name in filter(None, map(_other_file, [*above, *re.split(r"[\s:={}\"']+", label[:200])])):
        raise _wrong(f"{what} is for {name!r}. Only train.py can be changed: leave the rest out.")


def _other_file(line: str) -> str:
    name = _FILE.fullmatch(line[:200])
    return name.group(1) if name and name.group(1).replace("\\", "/").removeprefix("./") != "train.py" else ""


def _fences(prose: Sequence[str]) -> list[str]:
    """The texts of all fences that hold something; a fence around blocks holds nothing here."""
    found: list[str] = []
    opened: tuple[str, str, int] | None = None  # mark, language, line
    for at, line in enumerate(prose):
        if not (mark := _FENCE.fullmatch(line)):
            continue
        label = (mark.group(2) + mark.group(3)).strip()
        if opened is None:
            opened = (mark.group(1), mark.group(2).lower(), at)
            _complain_of_file(prose[:at], "The fence", label)
        elif mark.group(1).startswith(opened[0]) and not label:
            body = prose[opened[2] + 1:at]
            if any(line.strip() for line in body):
                found.append(_text(body))
                _complain_of_language(opened[1])
            opened = None
    if opened and any(line.strip() for line in prose[opened[2] + 1:]):
        raise _wrong("The answer is cut off: its ``` fence is never closed. Blocks are shorter than a whole file.")
    return found


def _complain_of_language(language: str) -> None:
    if language not in ("python", "py", "python3"):
        raise _wrong(f"There is a ```{language} fence. Only a whole train.py stands in a fence, ```python; changes "
                     f"stand in blocks:\n{FORM}\n")


def _complain_of_prose(prose: Sequence[str], edits: Sequence[Edit], fences: Sequence[str]) -> None:
    """What stands outside sections and blocks must not be another change."""
    if diff := next((line for line in prose if _DIFF.match(line)), None):
        raise _wrong(f"This is a diff ({one_line(diff, 80)!r}), which is not read. Send it in blocks:\n{FORM}\n")
    if edits and fences:
        raise _wrong(f"There are {len(edits)} blocks and beside them a fence with other code, so it is unclear which "
                     "counts. Send either blocks or one whole file.")
    if len(fences) > 1:
        raise _wrong(f"There are {len(fences)} fences with code, so it is unclear which is train.py. Send blocks, or "
                     "one ```python fence with the whole train.py.")
    if not edits and not fences:
        said = one_line(" ".join(prose), 120)
        raise _wrong(f"There is no search/replace block and no ```python fence{f', only {said!r}' if said else ''}. "
                     f"Answer in this form:\n{FORM}\n")


# Applying ------------------------------------------------------------------------------------------------------------


def apply(answer: Answer, code: str) -> str:
    """The train.py that results; every block refers to `code` as it was shown. All or nothing."""
    if answer.whole is not None:
        if answer.whole.strip() == code.strip():
            raise _wrong("The file is the current train.py, so nothing changes. Send a change.")
        return answer.whole
    lines = code.replace("\r\n", "\n").split("\n")
    places = [_matches([line.rstrip() for line in _lines(edit.search)], [line.rstrip() for line in lines])
              for edit in answer.edits]
    if failed := [n for n, found in enumerate(places) if len(found) != 1]:
        complaints = [_missing(n + 1, _lines(answer.edits[n].search), places[n], lines) for n in failed]
        good = ", ".join(str(n + 1) for n in range(len(places)) if n not in failed)
        others = [f"The other blocks ({good}) would apply as they are."] if good else []
        raise _wrong("\n\n".join(complaints + others))
    order = sorted(range(len(places)), key=lambda n: places[n][0])
    for one, two in zip(order, order[1:], strict=False):
        start = places[two][0]
        if start < places[one][0] + len(_lines(answer.edits[one].search)):
            raise _wrong(f"Blocks {one + 1} and {two + 1} overlap: both change line {start + 1}, "
                         f"{one_line(lines[start], 80)!r}. Blocks refer to the file as shown: make one of the two.")
    for n in reversed(order):
        edit, start = answer.edits[n], places[n][0]
        lines[start:start + len(_lines(edit.search))] = _lines(edit.replace)
    return "\n".join(lines)


def _matches(wanted: Sequence[str], lines: Sequence[str]) -> list[int]:
    """Where whole lines stand. Part of a line never matches: 'LR = 1' must not change 'MATRIX_LR = 1'."""
    return [at for at in range(len(lines) - len(wanted) + 1)
            if lines[at] == wanted[0] and list(lines[at:at + len(wanted)]) == list(wanted)]


def _missing(number: int, wanted: Sequence[str], found: Sequence[int], lines: Sequence[str]) -> str:
    """The complaint about a block whose search text does not stand exactly once in the file."""
    head = f"Block {number}: looked for these lines:\n{_shown(wanted)}\n"
    if found:
        places = ", ".join(str(at + 1) for at in found[:10])
        return head + (f"They stand in train.py {len(found)} times, at lines {places}. Add neighbouring lines to "
                       "SEARCH and REPLACE until they stand there once.")
    moved = _matches([line.strip() for line in wanted], [line.strip() for line in lines])
    if moved:
        return head + (f"They stand at line {moved[0] + 1}, but indented otherwise:\n"
                       f"{_shown(lines[moved[0]:moved[0] + len(wanted)])}\nCopy them with their exact indentation.")
    at = max(0, _nearest(wanted, lines) - 2)
    return head + (f"They do not stand in train.py. The nearest lines there are, from line {at + 1}:\n"
                   f"{_shown(lines[at:at + len(wanted) + 4])}\nCopy whole lines exactly as they stand there.")


def _nearest(wanted: Sequence[str], lines: Sequence[str]) -> int:
    """The line where the text that resembles `wanted` most begins."""
    want, have = [line.strip()[:200] for line in wanted[:60]], [line.strip()[:200] for line in lines[:5_000]]
    runs = SequenceMatcher(None, want, have, autojunk=False).get_matching_blocks()
    runs = [run for run in runs if any(want[run.a:run.a + run.size])]
    if runs:
        best = max(runs, key=lambda run: sum(map(len, want[run.a:run.a + run.size])))
        return max(0, best.b - best.a)
    longest = max(want, key=len)
    close = get_close_matches(longest, have, n=1, cutoff=0.0)
    return max(0, have.index(close[0]) - want.index(longest)) if close else 0


def _shown(lines: Sequence[str]) -> str:
    """Code in a complaint: bounded, and indented so that no line of it passes for a marker."""
    text = "\n".join(f"    | {line}" for line in lines)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ... ({len(text) - MAX_SHOWN} more characters)"


# Checking ------------------------------------------------------------------------------------------------------------


def check(code: str, tried: Collection[str]) -> None:
    """Raise ProposalError unless the file compiles, still calls stream and finish, and was not tried before."""
    tree = _tree(code)
    if lost := [name for name in ("stream", "finish") if name not in _calls_of_prepare(tree)]:
        raise _wrong(f"The resulting train.py does not call prepare's {' and '.join(lost)}. A trial pulls its batches "
                     "from stream(batch_size, seq_len) and ends with finish(model): keep both calls and their import.")
    if fingerprint(code) in tried:
        raise ProposalError("The resulting train.py is, but for comments and layout, one that was already tried; its "
                            "result stands in the history. Propose something else.")


@lru_cache(maxsize=16)  # 20 ms; asked when a proposal is made, and again when it is saved
def fingerprint(code: str) -> str:
    """A hash of the syntax tree: comments, layout and bare strings (docstrings) do not count."""
    tree = _tree(code)
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [line for line in node.body if not _is_bare_string(line)] or [ast.Pass()]
    try:
        return hashlib.sha256(ast.dump(tree).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    except RecursionError:
        raise _wrong("The resulting train.py is nested too deeply. Write it flatter.") from None


def _is_bare_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _tree(code: str) -> ast.Module:
    """Parse and compile, without running anything; raises ProposalError."""
    if len(code) > MAX_CODE:
        raise _wrong(f"The resulting train.py has {len(code)} characters, more than {MAX_CODE}. Make it shorter.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string is not worth a line on the user's terminal
            tree = ast.parse(code, "train.py")
            compile(tree, "train.py", "exec", dont_inherit=True)
            return tree
    except SyntaxError as error:
        lines, at = code.split("\n"), error.lineno or 1
        near = _shown(lines[max(0, at - 3):at + 2])
        raise _wrong(f"The resulting train.py does not compile: {one_line(str(error.msg))} at line {at}, here with its "
                     f"neighbours:\n{near}\nCorrect it.") from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:  # null bytes, bottomless nesting
        raise _wrong(f"The resulting train.py does not compile: {type(error).__name__}: {one_line(str(error))}. Write "
                     "plain, flat Python.") from None


def _calls_of_prepare(tree: ast.Module) -> set[str]:
    """The names of prepare.py that the file calls, through whatever import."""
    names: dict[str, str] = {}
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "prepare":
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name for alias in node.names if alias.name == "prepare"}
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    direct = {names[f.id] for f in calls if isinstance(f, ast.Name) and f.id in names}
    return direct | {f.attr for f in calls if isinstance(f, ast.Attribute) and getattr(f.value, "id", "") in modules}
