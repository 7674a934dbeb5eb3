"""Draw the README's pictures from the rows of the session in docs/: progress.png, terminal.svg as the terminal was,
and the top of report.html as page.png, where there is a Chromium.

    python tests/bench/pictures.py
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console, Group  # noqa: E402

from lab import ledger, picture, report  # noqa: E402
from lab.archive import Archive  # noqa: E402
from lab.display import Display  # noqa: E402
from lab.ledger import Row  # noqa: E402
from lab.timeline import timeline  # noqa: E402

TAG = "nov26"
TITLE = report.title(TAG)
BROWSERS = "chromium", "chromium-browser", "google-chrome"
FLAGS = "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1240,1100"
WIDTH = 110


def main() -> None:
    rows = ledger.read(ROOT / "docs" / "results.tsv")
    noise = ledger.sigma(ledger.experiments(rows))
    png, _ = picture.draw(timeline(rows), noise, TITLE, report.headline(rows), {})
    (ROOT / "docs" / "progress.png").write_bytes(png)
    take_picture(rows)
    own = [row for row in rows if row.split == "val"]
    display, last = Display(TITLE, plain=True), own[-1]
    display.show_session(own[:-1])
    ends = [datetime.fromisoformat(row.when).timestamp() for row in own]
    display.plain, display.began = False, time.monotonic() - (ends[-1] - ends[0] + own[0].total_seconds)
    display.ended = len(own) - 1
    display.trial_started(0, last.experiment, last.description, last.source, last.budget)
    display.trial_event(0, "clock", last.budget)
    display.trial_event(0, "memory", last.memory_gb)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    console.print(Group(*display.render(WIDTH)))
    (ROOT / "docs" / "terminal.svg").write_text(console.export_svg(title="uv run agent.py"), encoding="utf-8")


def take_picture(rows: Sequence[Row]) -> None:
    """docs/page.png: the page as a browser shows it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("no Chromium here: docs/page.png stays as it was")
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        report.write(Path(folder), rows, Archive(TAG))
        places = f"--user-data-dir={folder}/profile", f"--screenshot={ROOT / 'docs' / 'page.png'}"
        page = (Path(folder) / "report.html").as_uri()
        subprocess.run([browser, *FLAGS, *places, page], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    main()
