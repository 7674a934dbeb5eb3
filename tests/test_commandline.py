"""Wrong words and options: one line, exit code 2, nothing read or written. And what a user's own command is told."""

import json
import os
import select
import shlex
import threading
from pathlib import Path

import pytest
from fakes import git, run_agent

from lab.commandline import parse
from lab.notify import notify

WRONG = """
--experimnts 3 | --experiments
--experiments | expected one argument
--experiments -1 | not a number of experiments
--experiments 1.5 | not a number of experiments
--experiments many | not a number of experiments
--exp 3 | --experiments
--hours 0 | not a positive number
--hours -2 | not a positive number
--hours nan | not a positive number
--hours inf | not a positive number
--hours 1e8 | up to 10 000
--hours eight | not a positive number
--hour 8 | --hours
--max-usd 0 | not a positive number
--max-usd $5 | not a positive number
--max-usd | expected one argument
--maxusd 5 | --max-usd
--budget 0 | not a positive number
--budget 5m | not a positive number
--budget | expected one argument
--budjet 60 | --budget
--data | expected one argument
--dat builtin | --data
--shards 0 | not from 1 to
--shards 99999 | not from 1 to
--shards 1.5 | not from 1 to
--shards few | not from 1 to
--tag | expected one argument
--tags t | --tag
--researcher gpt | invalid choice: 'gpt'
--researcher | expected one argument
--research tuner | --researcher
--model | expected one argument
--modell x | --model
--effort extreme | invalid choice: 'extreme'
--effort | expected one argument
--prices 1 | not IN,OUT
--prices 1,2,3 | not IN,OUT
--prices cheap | not IN,OUT
--prices=-1,2 | not IN,OUT
--prices 1;2 | not IN,OUT
--tuner-share 2 | not between 0 and 1
--tuner-share -0.1 | not between 0 and 1
--tuner-share half | not between 0 and 1
--tuner_share 0.3 | --tuner-share
--researcher-command | expected one argument
--fallback | expected one argument
--notify | expected one argument
--researcher-command true --max-usd 5 | leave --max-usd and --prices out
--researcher-command true --prices 1,2 | nobody tells what a command's answers cost
--data '' | --data: it is empty
--tag '' | --tag: it is empty
--model '' | --model: it is empty
--notify ' ' | --notify: it is empty
--researcher-command '' | --researcher-command: it is empty
--verbose | no option '--verbose'
-x | no option '-x'
--each | no option '--each'
--json | no option '--json'
reprot | report
confrim | confirm
run | no word 'run'
report extra | no option 'extra'
report --hours 3 | no option '--hours'
report --experiments 2 | no option '--experiments'
report --jsn | --json
confirm --budget 60 | no option '--budget'
confirm --eech | --each
confirm --longer | expected one argument
confirm --longer 1 | not a number above 1
confirm --longer inf | not a number above 1
confirm --each --longer 3 | not allowed with argument --each
confirm --langer 3 | --longer
--longer 3 | no option '--longer'
confirm now | no option 'now'
"""
LINES = [tuple(part.strip() for part in line.split(" | ")) for line in WRONG.strip().splitlines()]


@pytest.mark.parametrize(("words", "said"), LINES)
def test_a_wrong_command_line_is_one_line_that_names_what_was_meant(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        parse(shlex.split(words))
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert said in err and "usage:" not in err


def test_there_are_at_least_fifty_six_of_them():
    assert len(set(LINES)) >= 56


def everything(root: Path) -> set[tuple]:
    """Name, size and time of each file, git's own among them."""
    found = (path for path in root.rglob("*") if "__pycache__" not in path.parts)
    return {(str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in found}


def test_a_wrong_command_line_leaves_not_even_a_lock(root, agents):
    before = everything(root)
    for words in (["--experimnts", "3"], ["reprot"], ["confirm", "--budget", "60"], ["report", "--tag", "nowhere"]):
        code, said = agents.run(root, *words)
        assert (code, agents.out.read_text(), said.count("\n")) == (2, "", 1), said
        assert said.startswith("agent.py")
    assert everything(root) == before


def test_confirm_without_a_session_changes_no_branch_and_no_file(root):
    done = run_agent(root, "confirm")
    assert (done.returncode, done.stderr) == (2, "agent.py: nothing to confirm yet: run python agent.py first\n")
    assert git(root, "status", "--porcelain") == "" and git(root, "branch", "--list").split() == ["*", "main"]


def test_report_names_the_sessions_where_none_is_checked_out_and_takes_one(cheap_session, tmp_path):
    git(cheap_session, "worktree", "add", "-q", "--detach", str(tmp_path / "elsewhere"), "main")
    elsewhere = tmp_path / "elsewhere"
    done = run_agent(elsewhere, "report")
    assert (done.returncode, "--tag nov23" in done.stderr) == (2, True)
    assert not (elsewhere / "report.html").exists()
    done = run_agent(elsewhere, "report", "--tag", "nov23", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert [row["experiment"] for row in told["rows"]] == [0, 1, 2, 3] and told["headline"]
    git(cheap_session, "worktree", "remove", "--force", str(elsewhere))


def test_a_version_and_help_are_no_mistakes(capsys):
    for words in (["--version"], ["--help"], ["report", "--help"]):
        with pytest.raises(SystemExit) as end:
            parse(words, "what it is")
        assert end.value.code == 0 and capsys.readouterr().err == ""


def test_places_named_from_here_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTORESEARCH_CACHE", "cache")
    assert parse(["--data", "text"]).data == str(tmp_path / "text")
    assert os.environ["AUTORESEARCH_CACHE"] == str(tmp_path / "cache")


# The user's own command -------------------------------------------------------------------------


def wait_for_commands() -> None:
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(20)


def test_a_command_gets_the_headline_on_stdin_and_the_facts_without_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    headline = "best: $(touch broken); `touch broken`"
    notify(f"cat > {tmp_path}/in; env > {tmp_path}/env", "best", headline, tag="t")
    wait_for_commands()
    assert (tmp_path / "in").read_text() == f"{headline}\n" and not (tmp_path / "broken").exists()
    told = (tmp_path / "env").read_text()
    line = next(line for line in told.splitlines() if line.startswith("AUTORESEARCH_EVENT="))
    assert json.loads(line.partition("=")[2]) == {"event": "best", "tag": "t"} and "sk-secret" not in told


def test_what_a_command_leaves_at_work_behind_it_may_end(tmp_path):
    notify(f"(cat > {tmp_path}/mail; sleep 0.3; echo sent > {tmp_path}/sent) <&0 & exit 0", "best", "text")
    wait_for_commands()
    assert (tmp_path / "sent").read_text() == "sent\n"


def test_a_command_that_fails_or_hangs_is_ended_and_harms_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.notify.LONGEST_S", 0.3)
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    notify(f"sleep 60 > {tmp_path}/alive & wait", "stop", "text")
    notify("no-such-command-at-all", "stop", "text" * 100_000)
    notify(None, "stop", "text")
    wait_for_commands()
    assert select.select([alive], [], [], 10)[0] and os.read(alive, 1) == b"", "a process of it is left"
    os.close(alive)
