"""Answers taken apart: nothing malformed is ever applied, every complaint says what was looked for and what to do."""

import random
import sys
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lab.edits import Answer, ProposalError, apply, check, fingerprint, merge, n_statements, parse

CODE = '''\
"""A stand-in train.py."""
from prepare import VOCAB_SIZE, MAX_SEQ_LEN, device, stream, finish

LR = 0.04           # matrix learning rate
EMBED_LR = 0.9      # embedding learning rate
WIDTH = 640
DEPTH = 9


def block(x):
    x = x + 1
    return x


def head(x):
    x = x * 2
    return x


def main():
    for batch in stream(8, MAX_SEQ_LEN):
        x = block(batch.x)
    finish(head)


if __name__ == "__main__":
    main()
'''
S, M, R = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
TAGS = "<description>wider</description>\n<reasoning>more room</reasoning>\n"
FENCE = "`" * 3


def block(search: str, replace: str) -> str:
    return f"{S}\n{search}\n{M}\n{replace}\n{R}\n"


GOOD = block("WIDTH = 640", "WIDTH = 768")
WHOLE = CODE.replace("WIDTH = 640", "WIDTH = 768")


def result(text: str) -> str:
    code = apply(parse(text), CODE)
    check(code, {fingerprint(CODE)})
    return code


# What is accepted ----------------------------------------------------------------------------------------------------

ACCEPTED = {
    "plain": TAGS + GOOD,
    "prose around": "Here is my idea.\n\n" + TAGS + "Now the edit:\n\n" + GOOD + "\nThat is all.",
    "crlf": (TAGS + GOOD).replace("\n", "\r\n"),
    "fence around the block": TAGS + f"{FENCE}python\n{GOOD}{FENCE}\n",
    "fence around everything": f"{FENCE}\n{TAGS}{GOOD}{FENCE}\n",
    "file name above": TAGS + "train.py\n" + GOOD,
    "file name in bold above": TAGS + "**`train.py`**\n" + GOOD,
    "blanks after the markers": TAGS + GOOD.replace("SEARCH\n", "SEARCH  \n").replace("=======\n", "======= \n"),
    "blanks at the ends of searched lines": TAGS + block("WIDTH = 640  \nDEPTH = 9\t", "WIDTH = 768\nDEPTH = 9"),
    "thinking of a local model": "<think>\nmaybe wider?\n</think>\n" + TAGS + GOOD,
    "thinking that only ends": "maybe wider?\n</think>\n" + TAGS + GOOD,
    "markers quoted in the reasoning": "<description>wider</description>\n<reasoning>\n" + GOOD + "</reasoning>\n"
                                       + GOOD,
    "a tag over lines": "<description>\nwider\n</description>\n" + GOOD,
    "text after a tag": "<description>wider</description> and more\n" + GOOD,
    "two reasonings": TAGS + "<reasoning>b</reasoning>\n" + GOOD,
    "no reasoning": "<description>wider</description>\n" + GOOD,
    "whole file": TAGS + f"{FENCE}python\n{WHOLE}{FENCE}\n",
    "two blocks in plain fences": TAGS + f"{FENCE}\n{GOOD}{FENCE}\nand\n{FENCE}\n"
                                  + block("DEPTH = 9", "DEPTH = 9") + FENCE,
    "whole file after prose": TAGS + f"The whole file:\n{FENCE}py\n{WHOLE}{FENCE}\nDone.",
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_answer_that_can_be_read_in_one_way_is_applied_exactly(name):
    assert result(ACCEPTED[name]) == WHOLE
    assert parse(ACCEPTED[name]).description == "wider"


def test_several_blocks_apply_whatever_their_order():
    rate = "LR = 0.04           # matrix learning rate"
    text = TAGS + block("DEPTH = 9", "DEPTH = 10\nHEADS = 5") + block(rate, "LR = 0.05")
    assert result(text) == CODE.replace("DEPTH = 9", "DEPTH = 10\nHEADS = 5").replace(rate, "LR = 0.05")


def test_deleting_lines_leaves_none_and_a_blank_line_stays_one():
    assert result(TAGS + f"{S}\nWIDTH = 640\n{M}\n{R}\n") == CODE.replace("WIDTH = 640\n", "")
    assert result(TAGS + f"{S}\nWIDTH = 640\n{M}\n\n{R}\n") == CODE.replace("WIDTH = 640\n", "\n")


def test_a_repeated_line_is_edited_where_its_neighbours_say():
    text = TAGS + block("    x = x * 2\n    return x", "    x = x * 3\n    return x")
    assert result(text) == CODE.replace("x * 2", "x * 3")


# What is not ---------------------------------------------------------------------------------------------------------

HEAD = 'def head(x):\n    x = x * 2\n    return x'
MALFORMED = {
    # nothing to apply
    "empty": ("", "form"), "blank": (" \n\t\n", "form"), "prose only": ("I would make it wider.", "make it wider"),
    "description only": (TAGS, "0 search/replace blocks"),
    "apology": ("I am sorry, I cannot see the file.", "cannot see the file"),
    "json": ('{"description": "wider", "edits": [{"search": "WIDTH = 640"}]}', "0 search/replace blocks"),
    "tool call": ("<tool_use><name>edit</name></tool_use>", "0 search/replace blocks"),
    "xml edits": (TAGS + "<search>WIDTH = 640</search><replace>WIDTH = 768</replace>", "0 search/replace blocks"),
    "empty fence": (TAGS + f"{FENCE}python\n\n{FENCE}", "stream and finish"),
    "block in the reasoning": ("<description>a</description>\n<reasoning>\n" + GOOD + "</reasoning>", "0 search"),
    # tags
    "no description": (GOOD, "one <description>"),
    "empty description": ("<description> </description>\n" + GOOD, "one <description>"),
    "two descriptions": (TAGS + "<description>b</description>\n" + GOOD, "The idea 'wider' has 0 search"),
    "open description": ("<description>wider\n" + GOOD, "Every <tag> needs its </tag>"),
    "open reasoning": ("<description>a</description>\n<reasoning>so\n" + GOOD, "'<reasoning>so"),
    "open thinking": ("<think>hm\n" + TAGS + GOOD, "'<think>hm"),
    # markers
    "search marker missing": (TAGS + GOOD.replace(S + "\n", ""), "'======='"),
    "divider missing": (TAGS + GOOD.replace(M + "\n", ""), "'<<<<<<< SEARCH'"),
    "end missing": (TAGS + GOOD.replace(R + "\n", ""), "ends with"),
    "end missing before another block": (TAGS + GOOD.replace(R + "\n", "") + GOOD, "'<<<<<<< SEARCH'"),
    "two dividers": (TAGS + GOOD.replace(M, M + "\nx\n" + M), "No whole section or block"),
    "divider too long": (TAGS + GOOD.replace(M, M + "=="), "No whole section or block"),
    "indented markers": (TAGS + "\n".join("  " + line for line in GOOD.split("\n")), "not indented"),
    "indented end": (TAGS + GOOD.replace(R, "  " + R), "No whole section or block"),
    "git's own markers": (TAGS + GOOD.replace("SEARCH", "HEAD").replace("REPLACE", "branch"), "<<<<<<< HEAD"),
    "original and updated": (TAGS + GOOD.replace("SEARCH", "ORIGINAL").replace("REPLACE", "UPDATED"), "ORIGINAL"),
    "lower case": (TAGS + GOOD.replace("SEARCH", "search").replace("REPLACE", "replace"), "<<<<<<< search"),
    "six signs": (TAGS + GOOD.replace(S, S[1:]), "<<<<<< SEARCH"),
    "text on the marker": (TAGS + GOOD.replace(S, S + " train.py"), "SEARCH train.py"),
    "marker and code on one line": (TAGS + f"{S} WIDTH = 640\n{M}\nWIDTH = 768\n{R}\n", "SEARCH WIDTH"),
    "nested block": (TAGS + block(GOOD.rstrip(), "x"), "No whole section or block"),
    "replace before search": (TAGS + f"{R}\nWIDTH = 768\n{M}\nWIDTH = 640\n{S}\n", "'>>>>>>> REPLACE'"),
    "cut in the search": (TAGS + f"{S}\nWIDTH = 6", "WIDTH = 6"),
    "cut in the replacement": (TAGS + f"{S}\nWIDTH = 640\n{M}\nWIDTH = 7", "ends with 'WIDTH = 7'"),
    "cut in the end marker": (TAGS + f"{S}\nWIDTH = 640\n{M}\nWIDTH = 768\n>>>>>>> REP", "REP"),
    "second block cut": (TAGS + GOOD + f"{S}\nDEPTH = 9\n{M}\n", "ends with"),
    # search text
    "not there": (TAGS + block("WIDTH = 512", "WIDTH = 768"), "WIDTH = 640"),
    "not there at all": (TAGS + block("zzzz qqqq", "WIDTH = 768"), "nearest lines"),
    "part of a line": (TAGS + block("LR = 0.04", "LR = 0.05"), "LR = 0.04           # matrix learning rate"),
    "end of another name": (TAGS + block("LR = 0.9      # embedding learning rate", "LR = 0.8"), "EMBED_LR = 0.9"),
    "blanks inside changed": (TAGS + block("LR = 0.04 # matrix learning rate", "LR = 0.05"), "    | LR = 0.04       "),
    "indentation lost": (TAGS + block("x = x * 2", "x = x * 3"), "    |     x = x * 2"),
    "indentation lost over lines": (TAGS + block("x = x * 2\nreturn x", "x = x * 3\nreturn x"), "    |     x = x * 2"),
    "tabs for blanks": (TAGS + block("\tx = x * 2", "\tx = x * 3"), "    |     x = x * 2"),
    "ambiguous": (TAGS + block("    return x", "    return 2 * x"), "2 times, at lines 12, 17"),
    "a line left out": (TAGS + block("def head(x):\n    return x", "def head(x):\n    return 2 * x"), "    x = x * 2"),
    "lines joined": (TAGS + block("WIDTH = 640; DEPTH = 9", "WIDTH = 768"), "WIDTH = 640"),
    "empty search": (TAGS + f"{S}\n{M}\nWIDTH = 768\n{R}\n", "times"),
    "blank search": (TAGS + block("   ", "WIDTH = 768"), "times"),
    "line numbers copied": (TAGS + block("6: WIDTH = 640", "6: WIDTH = 768"), "WIDTH = 640"),
    "elided search": (TAGS + block("def head(x):\n    ...\n    return x", "def head(x):\n    return x"), "x = x * 2"),
    "one of two fails": (TAGS + GOOD + block("DEPTH = 8", "DEPTH = 10"), "Block 2: looked for"),
    "two of three fail": (TAGS + block("A = 1", "A = 2") + GOOD + block("DEPTH = 8", "D = 1"), "Block 3: looked for"),
    "overlap": (TAGS + GOOD + block("WIDTH = 640\nDEPTH = 9", "WIDTH = 1\nDEPTH = 1"), "overlap"),
    "the same block twice": (TAGS + GOOD + GOOD, "overlap"),
    "second edits what the first wrote": (TAGS + GOOD + block("WIDTH = 768", "WIDTH = 1024"), "WIDTH = 640"),
    # no change, or half of one
    "no-op": (TAGS + block("WIDTH = 640", "WIDTH = 640"), "already tried"),
    "no-op whole file": (TAGS + f"{FENCE}python\n{CODE}{FENCE}\n", "already tried"),
    "only a comment": (TAGS + block("WIDTH = 640", "WIDTH = 640  # of the residual"), "already tried"),
    "elided replacement": (TAGS + block(HEAD, "def head(x):\n    # ... rest of the code unchanged"), "would delete"),
    "dots in a comment": (TAGS + block(HEAD, "def head(x):\n    # ...\n    return x"), "would delete"),
    "dots": (TAGS + block(HEAD, "def head(x):\n    ...\n    return x"), "would delete"),
    "elided whole file": (TAGS + f"{FENCE}python\nWIDTH = 768\n# ... existing code ...\n{FENCE}\n", "would delete it"),
    "whole file in part": (TAGS + f"{FENCE}python\nWIDTH = 768\n{FENCE}\n", "stream and finish"),
    # wrong fences, wrong files, diffs
    "fence inside the block": (TAGS + block(f"{FENCE}python\nWIDTH = 640\n{FENCE}", "WIDTH = 768"), "looked for"),
    "open fence": (TAGS + f"{FENCE}python\n{WHOLE}", "0 whole files"),
    "two fences": (TAGS + f"{FENCE}python\n{WHOLE}{FENCE}\n" * 2, "2 whole files"),
    "block and whole file": (TAGS + GOOD + f"{FENCE}python\n{WHOLE}{FENCE}\n", "either blocks or one whole file"),
    "shell fence": (TAGS + f"{FENCE}bash\nsed -i s/640/768/ train.py\n{FENCE}\n", "0 whole files"),
    "json fence": (TAGS + f'{FENCE}json\n{{"WIDTH": 768}}\n{FENCE}\n', "0 whole files"),
    "another file's block": (TAGS + "prepare.py\n" + block("MAX_SEQ_LEN = 2048", "MAX_SEQ_LEN = 64"), "looked for"),
    "another file's fence": (TAGS + f"{FENCE}python prepare.py\nMAX_SEQ_LEN = 64\n{FENCE}\n", "stream and finish"),
    "unified diff": (TAGS + "--- a/train.py\n+++ b/train.py\n@@ -6 +6 @@\n-WIDTH = 640\n+WIDTH = 768\n",
                     "0 search/replace blocks"),
    "diff in a fence": (TAGS + f"{FENCE}diff\n@@ -6 +6 @@\n-WIDTH = 640\n+WIDTH = 768\n{FENCE}\n", "0 whole files"),
    "diff without a head": (TAGS + f"{FENCE}diff\n-WIDTH = 640\n+WIDTH = 768\n{FENCE}\n", "0 whole files"),
    "diff inside the block": (TAGS + block("-WIDTH = 640\n+WIDTH = 768", "WIDTH = 768"), "WIDTH = 640"),
    # a result that cannot run
    "syntax error": (TAGS + block("WIDTH = 640", "WIDTH = = 768"), "does not compile"),
    "wrong indentation": (TAGS + block("    x = x * 2", "  x = x * 3"), "does not compile"),
    "null byte": (TAGS + block("WIDTH = 640", "WIDTH = '\0'"), "does not compile"),
    "bottomless nesting": (TAGS + block("WIDTH = 640", "WIDTH = " + "-" * 90_000 + "1"), "does not compile"),
    "bottomless sum": (TAGS + block("WIDTH = 640", "WIDTH = " + "1+" * 60_000 + "1"), "does not compile"),
    "surrogate": (TAGS + block("WIDTH = 640", "WIDTH = '\ud800'"), "does not compile"),
    "huge number": (TAGS + block("WIDTH = 640", "WIDTH = " + "9" * 9_000), "does not compile"),
    "no finish": (TAGS + block("    finish(head)", "    pass"), "finish"),
    "no stream": (TAGS + block("    for batch in stream(8, MAX_SEQ_LEN):\n        x = block(batch.x)", ""), "stream"),
    "its own stream": (TAGS + block("from prepare import VOCAB_SIZE, MAX_SEQ_LEN, device, stream, finish",
                                    "from prepare import MAX_SEQ_LEN, finish\nstream = lambda *a: []"), "stream"),
    "too large": (TAGS + block("WIDTH = 640", "X = 1\n" * 40_000), "more than 200000"),
    "far too large": ("x" * 500_000, "More than 400000"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_answer_is_never_applied_and_gets_a_precise_complaint(name):
    text, says = MALFORMED[name]
    with pytest.raises(ProposalError) as caught:
        result(text)
    complaint = str(caught.value)
    assert says in complaint
    assert len(complaint) < 6_000
    assert any(word in complaint for word in ("end ", "Send", "send", "Answer", "Propose")), "what to do"


def test_the_corpus_is_as_large_as_promised():
    assert len(MALFORMED) >= 60


@pytest.mark.parametrize("name", [name for name, (text, _) in MALFORMED.items() if 10 < len(text) < 5_000])
def test_a_complaint_that_comes_back_as_an_answer_is_no_edit_either(name):
    with pytest.raises(ProposalError) as caught:
        result(MALFORMED[name][0])
    with pytest.raises(ProposalError):
        result(str(caught.value))


def test_a_missing_text_shows_what_was_looked_for_and_where_it_nearly_stands():
    with pytest.raises(ProposalError) as caught:
        result(TAGS + block("def head(x):\n    x = x * 4\n    return x", "x") + GOOD)
    lines = str(caught.value).split("\n")
    assert lines[0] == "Block 1: looked for these lines:"
    assert "    |     x = x * 4" in lines and "    |     x = x * 2" in lines
    assert "from line 13:" in str(caught.value)


# Properties ----------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from([
    S, M, R, S + " ", " " + M, "<<<<<<<", ">>>>>>> END", "========", FENCE, FENCE + "python", "~~~", "train.py",
    "prepare.py", "<description>a</description>", "<description>", "</description>", "<reasoning>", "</reasoning>",
    "<think>", "</think>", "WIDTH = 640", "DEPTH = 9", "    return x", "", "   ", "@@ -1 +1 @@", "+++ b/train.py",
    "# rest of the code unchanged", "...", "\0", "\r", "\x0c"])


@given(st.lists(st.one_of(PIECES, st.sampled_from(CODE.split("\n")), st.text(max_size=20)), max_size=40))
@settings(max_examples=600, deadline=None)
def test_no_answer_raises_anything_but_a_proposal_error(lines):
    try:
        code = result("\n".join(lines))
    except ProposalError:
        return
    compile(code, "train.py", "exec")


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_no_code_breaks_the_checks(code):
    for examine in (lambda: check(code, ()), lambda: fingerprint(code)):
        try:
            examine()
        except ProposalError as error:
            assert str(error)


LINE = st.text(st.characters(blacklist_characters="\n\r<>=#.…", blacklist_categories=("Cs",)), max_size=30)


@given(st.lists(LINE, min_size=1, max_size=12), st.lists(LINE, max_size=6), st.data())
@settings(max_examples=400, deadline=None)
def test_a_valid_block_round_trips_exactly(lines, new, data):
    start = data.draw(st.integers(0, len(lines) - 1))
    stop = data.draw(st.integers(start + 1, len(lines)))
    wanted = lines[start:stop]
    stripped = [line.rstrip() for line in lines]
    places = [at for at in range(len(lines)) if stripped[at:at + len(wanted)] == stripped[start:stop]]
    assume(places == [start] and "".join(wanted).strip() and wanted != new)
    assume(not all(line[:1] in "+-@" for line in wanted if line))
    body = [S, *wanted, M, *new, R]
    answer = parse(TAGS + "\n".join(body))
    assert answer.edits == (("".join(f"{line}\n" for line in wanted), "".join(f"{line}\n" for line in new)),)
    assert apply(answer, "\n".join(lines)) == "\n".join(lines[:start] + new + lines[stop:])


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_many_blocks_equal_the_same_change_by_hand(seed):
    dice = random.Random(seed)
    lines = [f"line {i}" for i in range(60)]
    starts = sorted(dice.sample(range(0, 60, 5), dice.randint(1, 8)))
    changes = {at: [f"new {at}.{n}" for n in range(dice.randint(0, 4))] for at in starts}
    sizes = {at: dice.randint(1, 5) for at in starts}
    expected, at = [], 0
    while at < 60:
        expected += changes[at] if at in changes else [lines[at]]
        at += sizes.get(at, 1)
    order = dice.sample(starts, len(starts))
    answer = Answer("d", "", tuple(("".join(f"{line}\n" for line in lines[at:at + sizes[at]]),
                                    "".join(f"{line}\n" for line in changes[at])) for at in order))
    assert apply(answer, "\n".join(lines)) == "\n".join(expected)


# The check -----------------------------------------------------------------------------------------------------------


def test_the_fingerprint_ignores_comments_layout_and_docstrings_alone():
    same = ['"""Another docstring."""\n' + CODE.partition("\n")[2], CODE.replace("= 640", "  =  640  # wide"),
            CODE.replace("def head(x):\n", 'def head(x):\n    """Say so."""\n'), CODE.replace("= 640", "= (640)")]
    other = [CODE.replace("640", "641"), CODE.replace("x * 2", "x + 2"), CODE.replace("head", "tail"),
             CODE.replace("= 640", "= 640.0"), CODE.replace("WIDTH = 640\nDEPTH = 9", "DEPTH = 9\nWIDTH = 640")]
    assert {fingerprint(code) for code in same} == {fingerprint(CODE)}
    assert len({fingerprint(code) for code in [CODE, *other]}) == 1 + len(other)


@pytest.mark.parametrize(("imports", "pull", "end"), [
    ("import prepare", "prepare.stream", "prepare.finish"), ("import prepare as p", "p.stream", "p.finish"),
    ("from prepare import stream as s, finish as f", "s", "f")])
def test_any_import_of_the_contract_counts(imports, pull, end):
    check(f"{imports}\nfor b in {pull}(1, 2):\n    pass\n{end}(None)\n", ())
    with pytest.raises(ProposalError, match="finish"):
        check(f"{imports}\nfor b in {pull}(1, 2):\n    pass\n", ())


def test_statements_are_counted_without_docstrings():
    assert n_statements("a = 1; b = 2\n") == 2
    assert n_statements('"""Docs."""\ndef f():\n    """Docs."""\n    return 1\n') == 2


def test_a_file_without_a_last_newline_swallows_nothing_that_is_appended():
    assert merge("x\n# tail\n", "x\n# tail2", "x\n# tail\nfinish(model)\n") == "x\n# tail2\nfinish(model)\n"


def test_checking_warns_nobody(recwarn):
    check(CODE.replace("WIDTH = 640", "WIDTH = '\\d' is 5"), ())
    assert not recwarn.list


def test_checking_runs_nothing():
    check(CODE + "\nimport sys\nsys.modules['ran'] = 1\n1 / 0\n", ())
    assert "ran" not in sys.modules


@pytest.mark.parametrize("text", [
    "*" * 300_000, "<" * 399_000, "=" * 399_000, "# " + "rest of " * 40_000, "`" * 300_000, "\n".join([S] * 20_000),
    (S + "\n") + "x\n" * 150_000, " " * 390_000 + "x"])
def test_no_answer_takes_long(text):
    started = time.process_time()
    for candidate in (text, TAGS + text, TAGS + block(text[:190_000], "x"), TAGS + block("WIDTH = 640", text)):
        with pytest.raises(ProposalError):
            result(candidate)
    assert time.process_time() - started < 4
