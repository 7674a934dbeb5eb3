"""Odd places to run in: outputs that fail, terminals of few letters, no home, low limits. The loop goes on.

Each place is a shell line around one experiment of the stand-in. Two outcomes are allowed: the row is written, or the
start is refused in one line that says what to do. No place brings a traceback.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fakes
import invariants
import pytest

OUTPUTS = {
    "stdout closed": "{agent} >&-",
    "stderr closed": "{agent} 2>&-",
    "both closed": "{agent} >&- 2>&-",
    "all three closed": "{agent} <&- >&- 2>&-",
    "stdin closed": "{agent} <&-",
    "stdout full": "{agent} > /dev/full",
    "stderr full": "{agent} 2> /dev/full",
    "both full": "{agent} > /dev/full 2>&1",
    "stdout read only": "{agent} 1< /dev/null",
    "head of three": "{agent} | head -3",
    "head of one": "{agent} | head -1",
    "head of none": "{agent} | true",
    "both to a reader that leaves": "{agent} 2>&1 | head -c 10",
    "tee that dies": "{agent} | (head -2; exit 1)",
    "a tee that is slow": "{agent} | (sleep 1; cat)",
    "no hangup": "nohup {agent} > out.txt",
    "to a file": "{agent} > out.txt 2>&1",
    "append to a file": "{agent} >> out.txt",
    "a session of its own": "setsid {agent}",
    "in the background": "{agent} & wait",
    "nice": "nice -n 19 {agent}",
}
SETTINGS = [
    "TERM=dumb", "TERM=", "TERM=xterm", "TERM=vt52", "TERM=no-such-terminal", "NO_COLOR=1", "FORCE_COLOR=1",
    "COLUMNS=1", "COLUMNS=0 LINES=0", "COLUMNS=nonsense", "LANG=C", "LC_ALL=C", "LC_ALL=POSIX", "LC_ALL=no_SUCH.locale",
    "PYTHONIOENCODING=ascii", "PYTHONIOENCODING=iso-8859-1", "PYTHONIOENCODING=utf-16", "PYTHONUTF8=0 LC_ALL=C",
    "HOME=", "HOME=/nowhere", "HOME=/dev/null", "-u HOME", "-u PATH_NOT_SET", "-u USER -u LOGNAME", "TMPDIR=/nowhere",
    "XDG_CACHE_HOME=/nowhere", "TZ=Nowhere/Land", "PYTHONHASHSEED=1", "PYTHONDONTWRITEBYTECODE=1", "PYTHONOPTIMIZE=2",
    "PYTHONWARNINGS=error::DeprecationWarning:nowhere", "GIT_DIR=/nowhere", "GIT_INDEX_FILE=/nowhere/index",
    "GIT_PAGER=false PAGER=false", "GIT_EDITOR=false EDITOR=false", "GIT_AUTHOR_DATE=nonsense-but-unused=1",
    "OMP_NUM_THREADS=1", "http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9", "MPLBACKEND=nonsense",
    "MPLCONFIGDIR=/nowhere",
]
LIMITS = ["ulimit -c 0", "ulimit -n 128", "ulimit -f 100", "ulimit -s 1024", "umask 077", "umask 000"]
PLACES = OUTPUTS | {f"env {words}": f"env {words} {{agent}}" for words in SETTINGS} | {
    words: f"{words}; {{agent}}" for words in LIMITS}
SAMPLE = ["both full", "head of three", "env LC_ALL=C", "ulimit -f 100"]
REFUSED = {"ulimit -f 100": "ulimit -f", "env GIT_AUTHOR_DATE=nonsense-but-unused=1": ""}  # what the line names


def test_there_are_at_least_fifty_eight_places():
    assert len(PLACES) >= 58 and set(SAMPLE) <= set(PLACES)


@pytest.mark.parametrize("place", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.long)
                                   for name in PLACES])
def test_an_odd_place_costs_no_row_and_shows_no_traceback(cheap_session, corpus_path, tmp_path, place):
    root = Path(shutil.copytree(cheap_session, tmp_path / "checkout", symlinks=True))
    before = (root / "results.tsv").read_bytes()
    agent = f"{sys.executable} agent.py --researcher tuner --tag nov23 --data {corpus_path} --experiments 1"
    script = PLACES[place].format(agent=agent)
    environment = fakes.environment(AUTORESEARCH_CACHE=os.environ["AUTORESEARCH_CACHE"])
    done = subprocess.run(["bash", "-c", script], cwd=root, capture_output=True, env=environment, timeout=60,
                          errors="replace", text=True)
    said = done.stdout + done.stderr
    said += (root / "out.txt").read_text(errors="replace") if (root / "out.txt").exists() else ""
    assert "Traceback" not in said and not list((root / "runs").rglob("fault.log")), said
    after = (root / "results.tsv").read_bytes()
    assert after.startswith(before)
    if place in REFUSED:
        assert after == before and REFUSED[place] in said and said.count("agent.py: ") == 1, said
    else:
        assert after.count(b"\n") == before.count(b"\n") + 1, said
    (root / "out.txt").unlink(missing_ok=True)
    (root / "nohup.out").unlink(missing_ok=True)
    invariants.check(root)
