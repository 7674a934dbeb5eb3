"""The terminal: every width, hostile text, plain lines."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest
from fakes import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live

from lab import ledger
from lab.display import SHOWN, Display, curve, lines, standing
from lab.ledger import Row, Status

HOSTILE = "[red]bold[/red] [link=file:///]x[/link] \x1b[31m\x1b]0;title\x07 \r\nsecond\tline \u202e 漢字 😀 [/nope]"


def row(number: int, val_bpb: float | None, status: str, description: str = "", **more) -> Row:
    return Row(f"{number:07x}", val_bpb, 44.0, Status(status), description or f"idea {number}", number,
               source="some-model", total_seconds=310.4, tokens_m=12.34, usd=0.25, **more)


ROWS = [row(0, 1.0, "keep"), row(1, 0.99, "keep"), row(2, None, "crash", note="CUDA out of memory"),
        row(3, 0.995, "discard"), row(1, 0.994, "repeat")]


def running(rows=ROWS, description: str = "idea 9") -> Display:
    display = Display("autoresearch/nov23", plain=False)
    display.show_session(rows)
    display.show_limits("stops after 8 hours, about 06:12")
    display.show_researcher("some-model drafts the next proposal")
    display.trial_started(0, 9, description, "some-model", 300)
    display.trial_event(0, "start", 1234)
    display.trial_event(0, "clock", 300.0)
    display.trial_event(0, "line", "step 120 | 34% | loss 3.2101 | 41000 tok/s")
    display.trial_event(0, "memory", 43.96)
    return display


def screen(display: Display, width: int, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system="standard" if terminal else None)
    console.print(Group(*display.render(width)))
    return out.getvalue()


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
@pytest.mark.parametrize("n_rows", [0, 1, len(ROWS)])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_line_is_wider_than_the_window_and_nothing_wraps(width, n_rows, terminal):
    text = screen(running(ROWS[:n_rows], HOSTILE * 3), width, terminal)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert "━" * width in shown and any(line.startswith("training 0 of 300 s"[:width - 1]) for line in shown)
    assert all(cell_len(line) <= width for line in shown)
    assert len([line for line in shown if "bold" in line]) <= 1
    assert len(shown) <= 16 + SHOWN


def test_shows_what_runs_and_what_stands():
    text = screen(running(), 200)
    for fact in ("autoresearch/nov23", "incumbent #1 0.992000", "-0.008000 since the baseline", "noise 0.002828",
                 "#9 idea 9 (some-model)", "training 0 of 300 s, 44.0 GB", "34% | loss 3.2101 | 41000 tok/s",
                 "$1.25 spent", "some-model drafts", "stops after 8 hours", "keep x2", "12.3 M tokens", "310 s"):
        assert fact in text, fact


def test_nothing_that_ran_stands_in_the_last_frame():
    display = running()
    display.show_end()
    assert not re.search("#9|━|drafts|stops", screen(display, 80)) and "incumbent #1" in screen(display, 80)


def test_narrow_windows_keep_the_figures():
    text = screen(running(), 40)
    for fact in ("incumbent #1 0.992000", "-0.008000 since the baseline", "loss 3.2101", "$1.25 spent", "0.995000"):
        assert fact in text, fact


def test_loss_is_shown_beside_the_incumbents_after_the_same_share_of_the_budget():
    display = Display("t", plain=False)
    display.show_session([])

    def trial(number: int, losses: dict[int, float]) -> None:
        display.trial_started(0, number, "x", "y", 300)
        display.trial_event(0, "clock", 300)
        for percent, loss in losses.items():
            display.trial_event(0, "line", f"step 1 | {percent}% | loss {loss:.4f}")

    trial(0, {10: 5.0, 20: 4.0, 30: 3.0})
    display.row_written(0, ROWS[0], ROWS[:1])
    trial(1, {22: 3.5})
    assert "loss 3.5000, incumbent then 4.0000" in screen(display, 120)
    display.row_written(0, row(1, 1.1, "discard"), [ROWS[0], row(1, 1.1, "discard")])
    trial(2, {35: 3.3})
    assert "loss 3.3000, incumbent then 3.0000" in screen(display, 120)


def test_the_incumbents_losses_come_back_after_a_restart():
    log = f"compiled\nstep 5 | 10% | loss 5.1 | 80 tok/s\n{HOSTILE}\nstep 9 | 30% | loss 4.2 | 80 tok/s\nloss 9 100%"
    display = Display("t", plain=False)
    display.show_session([row(0, 1.0, "keep", budget=300)], log)
    display.trial_started(0, 1, "x", "y", 300)
    display.trial_event(0, "clock", 300)
    display.trial_event(0, "line", "step 2 | 31% | loss 4.1")
    assert "loss 4.1, incumbent then 4.2000" in screen(display, 120)


def test_a_low_window_keeps_what_runs():
    display = running([row(i, 1 - i / 100, "keep") for i in range(9)])
    for height in (8, 10, 12, 16, 40):
        console = Console(file=Terminal(), width=80, height=height, force_terminal=True, _environ={"TERM": "xterm"})
        live = Live(get_renderable=lambda: Group(*display.render(80)), console=console, vertical_overflow="crop",
                    auto_refresh=False)
        live.start(refresh=True)
        text = console.file.getvalue()
        live.stop()
        assert "training 0 of 300 s" in text and "stops after" in text
        assert text.count("\n") < height
        assert "idea 8" in text and ("idea 3" in text) == (height > 12)


def test_rates_count_trials_and_money(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    display = Display("t", plain=True)
    display.show_session([])
    display.trial_started(0, 0, "x", "y", 300)
    now[0] = 360.0
    display.row_written(0, ROWS[0], ROWS[:1])
    assert "10.0 trials an hour, $0.25 spent" in screen(display, 80)


def test_hostile_text_is_inert():
    display = running([row(0, 1.0, "keep", HOSTILE), row(1, None, "crash", HOSTILE)], HOSTILE)
    display.show_researcher(HOSTILE)
    display.show_limits(HOSTILE)
    display.trial_event(0, "line", HOSTILE + " loss 9e999 loss 99999999999999999999999 tok/s \x1b[2J")
    text = screen(display, 200, terminal=True)
    assert "[red]bold[/red]" in text and "[/nope]" in text
    without_styles = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "\x1b" not in without_styles and "\x07" not in text and "\u202e" not in text and "\r" not in text
    assert "]8;" not in text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.integers(10, 220))
def test_any_text_at_any_width(text, width):
    display = running([row(0, 1.0, "keep", text)], text)
    display.trial_event(0, "line", text)
    assert all(cell_len(line) <= width for line in screen(display, width).splitlines())


def test_plain_lines_one_a_change_of_state(capsys):
    with Display("t", plain=True) as display:
        display.show_session([])
        display.show_limits("stops after 8 hours")
        for state in ("some-model drafts", "some-model drafts", ""):
            display.show_researcher(state)
        for number in range(4):
            display.trial_started(0, number, HOSTILE, "tuner", 300)
            for kind, value in (("start", 1), ("clock", 300), *[("line", "loss 3.2")] * 9, ("score", 300)):
                display.trial_event(0, kind, value)
            display.row_written(0, ROWS[number], ROWS[: number + 1])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["stops after 8 hours", "some-model drafts", "some-model drafts: over"]
    assert len(lines) == 3 + 4 * 4 and not any("\x1b" in line or "\r" in line for line in lines)
    assert lines[4:6] == ["#0 training", "#0 scoring"]
    assert lines[6] == "#0 keep 1.000000 in 310 s, 12.3 M tokens; incumbent #0 1.000000, noise not measured yet"
    assert lines[14].startswith("#2 crash in 310 s, 12.3 M tokens; incumbent #1 0.990000, -0.010000 since the baseline")
    assert lines[14].endswith("CUDA out of memory")


def test_without_a_terminal_lines_are_plain(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert Display("t").plain


def test_live_starts_and_stops_on_a_terminal(monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm-256color")
    with Display("autoresearch") as display:
        display.show_session(ROWS)
        display.say("[bold]a line that stays[/bold]")
        display.trial_started(0, 5, "idea 5", "tuner", 300)
    assert "[bold]a line that stays[/bold]" in out.getvalue() and "idea 5" in out.getvalue()
    assert out.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_standing_and_lines():
    assert standing([]) == "no incumbent yet"
    assert standing(ledger.experiments([ROWS[2]])) == "no incumbent yet"
    assert [line.plain for line in lines(["a" * 8, "", "b" * 8, "c" * 30], 20)] == ["aaaaaaaa, bbbbbbbb", "c" * 30]


RESIZED = """\
import sys, time
from lab.display import Display

with Display("t") as display:
    display.say("a line that stays")
    display.trial_started(0, 0, "x " * 200, "tuner", 300)
    display.trial_event(0, "clock", 300)
    sys.stdin.readline()
"""


class Window:
    """A terminal that wraps again what it shows when it is made narrower, as most do. Knows what a frame needs."""

    def __init__(self, width: int):
        self.width, self.lines, self.row = width, [""], 0

    def resize(self, width: int) -> None:
        used = self.lines[: self.row + 1]
        self.lines = [line[i : i + width] for line in used for i in range(0, max(1, len(line)), width)]
        self.width, self.row = width, len(self.lines) - 1

    def feed(self, text: str) -> None:
        """Nothing that is fed overwrites a line: frames erase first."""
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\n|[^\x1b\n\r]+", text):
            if part == "\x1b[1A":
                self.row = max(0, self.row - 1)
            elif part == "\x1b[2K":
                self.lines[self.row] = ""
            elif part == "\n":
                self.row += 1
                self.lines += [""] * (self.row == len(self.lines))
            elif not part.startswith("\x1b"):
                self.lines[self.row] += part


def test_a_resized_terminal_is_drawn_anew_and_keeps_its_lines():
    master, slave = pty.openpty()

    def resize(columns: int) -> None:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def read_until(text: str) -> str:
        """What the terminal was sent, up to `text`."""
        seen, until = b"", time.monotonic() + 60
        while text not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="ignore")):
            assert time.monotonic() < until, seen[-2000:]
            seen += os.read(master, 1 << 16) if select.select([master], [], [], 1)[0] else b""
        return seen.decode(errors="ignore")

    resize(200)
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, "-c", RESIZED], cwd=ROOT, stdin=slave, stdout=slave,
                               env=environment | {"TERM": "xterm-256color"})
    try:
        sent = {200: read_until("\n" + "━" * 200 + "\r")}
        for columns in (120, 80, 40):
            resize(columns)
            sent[columns] = read_until("\n" + "━" * columns + "\r")
        os.write(master, b"\n")
        last = read_until("training")
        process.wait(30)
    finally:
        process.kill()
        os.close(slave)
        os.close(master)
    assert process.returncode == 0
    assert sent[200].count("a line that stays") == 1
    assert "\x1b[2J" not in "".join(sent.values()) + last  # nothing is wiped
    window = Window(200)
    for columns, text in sent.items():
        window.resize(columns)
        bars = sum(line.startswith("━") for line in window.lines)
        assert bars == (0 if columns == 200 else 2)  # the old frame's bar, on two lines of the narrower window
        window.feed(text)
        assert sum(line.startswith("━") for line in window.lines) == 1
    assert [line for line in window.lines if line in ("t", "a line that stays")] == ["a line that stays", "t"]


def test_every_phase_has_a_clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    display = Display("t", plain=False)
    display.trial_started(0, 1, "x", "y", 60)
    display.show_researcher("some-model drafts")
    now[0] += 2
    assert "starting 2 s" in screen(display, 80) and "some-model drafts 2 s" in screen(display, 80)
    display.trial_started(0, 1, "x", "y", 60)
    for event, words in (("tick", "starting 3 s"), ("clock", "training 3 of 60 s"), ("score", "scoring 3 s"),
                         ("witness", "witness 3 s")):
        display.trial_event(0, event, 60)
        now[0] += 3
        assert words in screen(display, 80)


@pytest.mark.parametrize("n_slots, n_lines", [(1, 4), (2, 8), (3, 3), (8, 8), (20, 9)])
def test_many_slots_have_a_line_each_within_a_usual_window(n_slots, n_lines):
    display = Display("t", plain=False)
    display.show_session([row(n, 1.0, "keep") for n in range(20)], "50% | loss 3.2000")
    display.show_limits("stops after 8 hours, about 06:12")
    display.show_researcher("some-model drafts the next proposal")
    before = len(display.render(80))
    for slot in range(n_slots):
        display.trial_started(slot, slot + 30, f"idea {slot}", "y", 300)
        for kind, value in (("clock", 300), ("line", "step 7 | 50% | loss 3.2512 | 41000 tok/s"), ("memory", 43.9)):
            display.trial_event(slot, kind, value)
    text, shown = screen(display, 80), range(min(n_slots, 8))
    assert all(f"idea {slot} (y)" in screen(display, 120) for slot in shown) and text.count("41000 tok/s") == len(shown)
    facts = "training 0 of 300 s, 50% | loss 3.2512 | 41000 tok/s, then 3.2000"
    assert n_slots <= 2 or all(f"{slot:2} #{slot + 30} {facts}" in text for slot in shown)
    assert ("and 12 more trials" in text) == (n_slots == 20)
    assert len(display.render(80)) == before + n_lines <= 24
    display.row_written(0, row(30, 0.9, "keep"), [row(30, 0.9, "keep")])
    assert sorted(display.running) == list(range(1, n_slots))


def test_a_busy_trial_is_marked_and_is_no_incumbent(capsys):
    busy = row(1, None, "busy", note="it did not have its machine")
    display = Display("t", plain=True)
    display.trial_started(0, 1, "idea 1", "y", 60)
    display.row_written(0, busy, [ROWS[0], busy])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("#1 busy in") and said.endswith("it did not have its machine") and "incumbent #0" in said
    display.row_written(0, row(1, 1.1, "discard"), [ROWS[0], busy, row(1, 1.1, "discard")])
    assert "discard busy x1" in screen(display, 120)


WORDS = """\
import sys
from lab import terminal
from lab.display import Display
terminal.survive()
with Display("t", **eval(sys.argv[1])) as display:
    for number in range(3):
        display.say("a word \u2501 \u6f22 \u00e9")
        display.trial_started(0, number, "idea \u6f22", "tuner", 60)
print("done", file=sys.stderr)
"""


def told(shell: str, options: str = "{}", **environment: str) -> tuple[str, str]:
    """(stdout, stderr) of a display whose stdout the shell gives: {} is the command."""
    command = shell.replace("{}", f"{sys.executable} -c \"$WORDS\" \"{options}\"")
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=os.environ | {"WORDS": WORDS} | environment,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    return done.stdout.decode("latin-1"), done.stderr.decode()


@pytest.mark.parametrize("options", ["{}", "{'plain': False}"])
@pytest.mark.parametrize("shell", ["{} >&-", "{} >/dev/full", "{} | head -1", "{} | true"])
def test_a_dead_stdout_says_less_and_fails_nothing(shell, options):
    _, errors = told(shell, options)
    assert errors == "done\n"


def test_other_encodings_and_dumb_terminals_get_what_they_can_show():
    said, errors = told("{}", PYTHONIOENCODING="iso-8859-1", PYTHONUTF8="0")
    assert errors == "done\n" and said.splitlines()[0] == "a word \\u2501 \\u6f22 \u00e9"
    assert told("{}", "{'plain': False}", PYTHONIOENCODING="ascii", PYTHONUTF8="0")[1] == "done\n"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert not Display("t").plain
    monkeypatch.setattr(Terminal, "encoding", "iso-8859-1")  # has no character for a bar
    assert Display("t").plain
    monkeypatch.setattr(Terminal, "encoding", "utf-8")
    monkeypatch.setenv("TERM", "dumb")
    assert Display("t").plain


PREPARES = """\
import sys, time
from lab import display
display.SILENCE_S = 0.2
with display.Display("t") as live, display.progress_bar() as report:
    live.say("a line that stays")
    report("checking", 1, 4)
    time.sleep(1)
    report("tokenizing", 0, 0)
"""


def test_each_phase_of_a_preparation_has_a_line_and_a_clock():
    said = subprocess.run([sys.executable, "-c", PREPARES], cwd=ROOT, capture_output=True, text=True, timeout=60)
    shown = said.stdout.splitlines()
    assert shown[0] == "a line that stays" and shown[1] == "checking 25%, 0 s", said.stderr
    assert len(shown) > 4 and "checking 25%, 1 s" in shown and shown[-1] == "tokenizing, 0 s"


def test_a_preparation_on_a_terminal_is_redrawn_below_the_frame_and_leaves_nothing():
    ours, its = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    ran = subprocess.run([sys.executable, "-c", PREPARES], cwd=ROOT, stdout=its, stderr=its, timeout=60,
                         env=os.environ | {"TERM": "xterm"})
    os.close(its)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert ran.returncode == 0, text
    assert "checking 25%, 0 s" in text and "checking 25%, 1 s" in text
    window = Window(80)
    window.feed(text)
    assert [line for line in window.lines if line] == ["a line that stays", "t", "$0.00 spent"]


@pytest.mark.timeout(30)
def test_losses_are_found_fast_in_a_log_that_begins_a_progress_line_again_and_again():
    """Looked for to the end of the line from each percent sign, they would take a minute."""
    assert curve("1%" * 60_000) == {} and curve("step 3 | 7% | loss 2.5 | 9 tok/s\n" * 2) == {7: 2.5}
