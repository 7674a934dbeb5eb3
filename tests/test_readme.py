"""What README.md tells a person to type works, and what it shows is there."""

import csv
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from fakes import ROOT, git

from agent import parse
from lab import ledger, report
from lab.ledger import Row

README = (ROOT / "README.md").read_text()
COMMANDS = [re.split(r"\s{2,}#", line)[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S)
            for line in block.splitlines() if line.strip()]
ROWS = [Row("aaa", 1.0, status="keep", description="baseline", source="baseline"),
        Row("bbb", None, status="crash", description='"a quote that never ends', experiment=1, source="model", usd=0.5),
        Row("ccc", 0.9, status="keep", description="better", experiment=2, source="model", usd=0.25),
        Row("ccc", 0.8, status="repeat", description="better", experiment=2, source="model", split="test")]


AGENT = [shlex.split(command.partition("agent.py")[2]) for command in COMMANDS if "agent.py" in command]
PROSE = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", PROSE)
ELSEWHERE = {"--gpus", "--slots", "--ray"}  # of a machine with cards, more cores, a cluster
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_agent_command_runs(cheap_session, agents, corpus_path, tmp_path):
    """In their order in a session that rests, without a further experiment."""
    root = Path(shutil.copytree(cheap_session, tmp_path / "checkout", symlinks=True))
    assert len(AGENT) > 12 and ["confirm", "--each"] in AGENT
    for words in AGENT:
        git(root, "switch", "-q", "autoresearch/nov23")
        allowed, extra = {0}, ["--data", str(corpus_path), "--experiments", "0"]
        if words[:1] in (["report"], ["confirm"]):
            extra = []
        elif ELSEWHERE & {*words}:
            allowed, extra = {0, 2}, [*extra, "--tag", "elsewhere"]
        code, said = agents.run(root, *words, *extra)
        assert code in allowed and "Traceback" not in said, (words, said)
        assert code == 0 or re.search("needs|there are|looked for", agents.err.read_text()), (words, said)


def test_every_command_within_the_text_is_one_the_agent_knows():
    commands = [shlex.split(code.partition(" agent.py")[2]) for code in INLINE if " agent.py" in code]
    assert len(commands) >= 4
    for words in commands:
        assert words == ["WORD", "--help"] or parse(words)


def test_what_is_installed_is_declared():
    extras = set(PROJECT["project"]["optional-dependencies"])
    asked = re.findall(r"uv sync --extra (\w+)|pip install -e \"\.\[(\w+)\]\"", README)
    assert len(asked) >= 2 and {name for pair in asked for name in pair if name} == extras
    assert PROJECT["dependency-groups"]["dev"] == ["autoresearch[dev]"]  # what `uv run pytest` brings along
    assert PROJECT["tool"]["pytest"]["ini_options"]["testpaths"] == ["tests"]


def test_every_benchmark_has_the_options_it_is_called_with():
    calls = [re.search(r"(tests/[\w/]+\.py)(.*)", code) for code in INLINE if re.search(r"tests/\w.*\.py", code)]
    assert len(calls) >= 6
    for call in calls:
        source = (ROOT / call[1]).read_text()
        assert compile(source, call[1], "exec")
        assert all(f'"{name}"' in source for name in re.findall("--[a-z-]+", call[2])), call[0]


def test_git_shows_what_the_text_says(cheap_session):
    commands = [shlex.split(command) for command in COMMANDS if command.startswith("git ")]
    assert len(commands) == 2
    for tool, *words in commands:
        shown = git(cheap_session, *(word.replace("TAG/7", "nov23/2").replace("TAG", "nov23") for word in words))
        assert "experiment" in shown, tool


def test_every_file_of_a_sessions_folder_is_in_the_table(cheap_session):
    def kinds(names: Iterable[str]) -> set[str]:
        """The names with every number alike."""
        return {re.sub(r"\d+", "7", name) for name in names}

    table = README[README.index("In `runs/TAG/` lie"):README.index("The weights load")]
    names = [line.split(" | ")[0] for line in table.splitlines()]
    named = kinds(name.strip("/") for name in re.findall("`([^`]+)`", "".join(names)))
    found = kinds(path.name for path in (cheap_session / "runs" / "nov23").iterdir())
    assert len(found) > 4 and found <= named
    code = "".join(path.read_text() for path in (ROOT / "lab").glob("*.py"))
    assert all(name in code for name in named if "." in name and "7" not in name)


def test_every_option_and_every_variable_is_named(capsys):
    helps = []
    for words in (["--help"], ["research", "--help"], ["report", "--help"], ["confirm", "--help"]):
        with pytest.raises(SystemExit):
            parse(words)
        helps.append(capsys.readouterr().out)
    options = set(re.findall(r"--[a-z][a-z-]+", "".join(helps))) - {"--help"}
    assert len(options) > 15 and [name for name in sorted(options) if name not in README] == []
    in_text = " ".join(code for code in INLINE if not re.search("tests/|pip", code))
    assert set(re.findall(r"--[a-z][a-z-]+", in_text)) <= options | {"--help"}
    code = "".join(path.read_text() for path in [*ROOT.glob("*.py"), *(ROOT / "lab").glob("*.py")])
    pattern = r"\b(?:AUTORESEARCH|ANTHROPIC)(?:_[A-Z]+)+"
    variables = set(re.findall(pattern, code)) - {"AUTORESEARCH_TRIAL"}  # between our own processes
    assert variables == set(re.findall(pattern, README))


def test_the_map_names_every_file_once():
    table = README[README.index("## The map"):]
    named = re.findall(r"`((?:lab/)?[a-z]+\.(?:py|html))`", table)
    files = {*ROOT.glob("*.py"), *(ROOT / "lab").glob("*.py"), *(ROOT / "lab").glob("*.html")}
    assert sorted(named) == sorted(str(path.relative_to(ROOT)) for path in files)


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.tsv"
    path.write_text(ledger.HEADER + "".join(map(ledger.format_row, ROWS)))
    return path


def plain(word: str, results) -> list[str]:
    """Lines that README's one command with this word prints."""
    command = next(command for command in COMMANDS if word in command and "results.tsv" in command)
    for tool in re.findall(r"(?:^|\| )(\w+)", command):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    done = subprocess.run(command, shell=True, cwd=results.parent, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_column_keeps_every_cell_under_its_name(results):
    head, *lines = plain("column", results)
    for name in ("status", "description", "split"):
        for row, line in zip(ROWS, lines, strict=True):
            assert line[head.index(f" {name} ") + 1 :].startswith(getattr(row, name))


def test_awk_and_sort_find_what_they_say(results):
    assert [line.split()[0] for line in plain('$4 == "keep"', results)] == ["aaa", "ccc"]
    assert [line.split()[:2] for line in plain("sort", results)] == [["ccc", "0.900000"], ["aaa", "1.000000"]]
    assert sorted(plain("n[$15]", results)) == ["baseline 1 0", "model 3 0.75"]


def test_no_plain_command_is_untested():
    assert len([command for command in COMMANDS if "results.tsv" in command]) == 4


def test_pandas_reads_what_the_readme_says(results, monkeypatch):
    assert ledger.COLUMNS[:5] == ("commit", "val_bpb", "memory_gb", "status", "description")
    with open(results, newline="") as f:  # quoting=3 is the same in the standard library
        assert [row["description"] for row in csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE)] == [
            row.description for row in ROWS]
    code = re.search(r"`(pd\.read_csv\(.*?\))`", README)[1]
    pd = pytest.importorskip("pandas", reason="pandas is not installed: the standard library's reader stood in")
    monkeypatch.chdir(results.parent)
    frame = eval(code, {"pd": pd})
    assert list(frame.description) == [row.description for row in ROWS] and frame.val_bpb.isna().sum() == 1


def test_pictures_and_links_are_there():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert {"docs/terminal.svg", "docs/progress.png", "docs/page.png"} <= set(links)
    assert all((ROOT / link).is_file() for link in links if "://" not in link)


def test_the_sample_is_what_the_program_says_of_the_sessions_rows():
    rows = ledger.read(ROOT / "docs" / "results.tsv")
    blocks = [block.splitlines() for block in re.findall(r"(?s)```text\n(.*?)\n```", README)]
    sample = next(block for block in blocks if block[0] == report.headline(rows))
    assert set(sample) <= set(report.summary(rows).splitlines())
