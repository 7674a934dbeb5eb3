"""Draw the README's pictures from the rows of the session in docs/: progress.png, and terminal.svg as the terminal was.

    python tests/bench/pictures.py
"""

import sys
import time
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console, Group  # noqa: E402

from lab import ledger, picture, report  # noqa: E402
from lab.display import Display  # noqa: E402
from lab.timeline import timeline  # noqa: E402

TITLE = "autoresearch/nov26"
WIDTH = 110


def main() -> None:
    rows = ledger.read(ROOT / "docs" / "results.tsv")
    noise = ledger.sigma(ledger.experiments(rows))
    png, _ = picture.draw(timeline(rows), noise, TITLE, report.headline(rows), {})
    (ROOT / "docs" / "progress.png").write_bytes(png)
    own = [row for row in rows if row.split == "val"]
    display, last = Display(TITLE, plain=True), own[-1]
    display.show_session(own[:-1])
    display.plain, display.began = False, time.monotonic() - sum(row.total_seconds for row in own)
    display.ended = len(own) - 1
    display.trial_started(0, last.experiment, last.description, last.source, last.budget)
    display.trial_event(0, "clock", last.budget)
    display.trial_event(0, "memory", last.memory_gb)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print(Group(*display.render(WIDTH)))
    (ROOT / "docs" / "terminal.svg").write_text(console.export_svg(title="uv run agent.py"), encoding="utf-8")


if __name__ == "__main__":
    main()
