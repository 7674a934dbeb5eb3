"""What README.md tells a person to type works."""

import re
import shutil
import subprocess

import pytest
from fakes import ROOT

from agent import parse
from lab import ledger
from lab.ledger import Row

README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("  ")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S)
            for line in block.splitlines() if line.strip()]


def test_every_agent_command_is_one_the_agent_knows():
    commands = [command.removeprefix("uv run agent.py").split() for command in COMMANDS if "agent.py" in command]
    assert len(commands) > 5
    for words in commands:
        assert parse(words)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "results.tsv" in c])
def test_the_plain_tools_read_results(tmp_path, command):
    for tool in re.findall(r"(?:^|\| |\()(\w+)", command):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    rows = [Row("aaa", 1.0, status="keep", description="baseline"), Row("bbb", None, status="crash", experiment=1),
            Row("ccc", 0.9, status="keep", description="better", experiment=2)]
    (tmp_path / "results.tsv").write_text(ledger.HEADER + "".join(map(ledger.format_row, rows)))
    out = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "better" in out


def test_pandas_style_readers_find_the_first_five_columns():
    assert ledger.COLUMNS[:5] == ("commit", "val_bpb", "memory_gb", "status", "description")
