"""report.html in a real browser: headless Chromium opens the file, a script appended to the page plays the reader."""

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from functools import cache

import pytest
from test_report import CONFIRMED, HOSTILE, NIGHT, TEN_THOUSAND, draw, drawing_of_ten_thousand

from lab import report
from lab.archive import Archive
from lab.ledger import one_line

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr")


@cache
def why_not() -> str:
    """Why no page can be opened here; "" where one can."""
    if CHROMIUM is None:
        return "no Chromium here: apt-get install chromium (.ci/run does it)"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        try:
            done = subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom",
                                   "data:text/html,<p>opened"], capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return "Chromium hangs here"
    return "" if "<p>opened" in done.stdout else f"Chromium does not start here: {done.stderr[-200:]}"


@pytest.fixture(autouse=True)
def needs_chromium():
    if why_not():
        pytest.skip(why_not())


WATCH = """<script>window.problems = [];
window.alert = text => problems.push("alert " + text);
addEventListener("error", event => problems.push(String(event.message)), true);
addEventListener("securitypolicyviolation", event => problems.push("policy " + event.blockedURI));</script>"""

READER = """<script>
const visible = () => [...document.querySelectorAll("#table tbody tr")].filter(row => !row.hidden);
const numbers = () => visible().map(row => row.cells[0].textContent);
const set = (id, text, kind) => { $(id).value = text; $(id).dispatchEvent(new Event(kind)); };
const type = text => set("filter", text, "input");
const head = i => document.querySelectorAll("#table th button")[i].click();
const seen = {points: document.querySelectorAll("#chart a").length, first: numbers()};
type("CUDA memory"); seen.found = numbers(); seen.shown = document.getElementById("shown").textContent;
type("no such thing"); seen.none = numbers(); type("");
set("status", "keep", "change"); seen.kept = numbers(); set("status", "", "change");
head(1); seen.rising = numbers(); head(1); seen.falling = numbers(); head(0); seen.inOrder = numbers();
const point = document.querySelector("#chart a[*|href='#e2']");
point.dispatchEvent(new PointerEvent("pointerover", {bubbles: true})); seen.tip = tip.textContent;
seen.tipShown = getComputedStyle(tip).display;
point.dispatchEvent(new MouseEvent("click", {bubbles: true})); seen.target = location.hash;
seen.folded = document.querySelectorAll("#table details pre").length;
for (const folded of document.querySelectorAll("#e1 details, #e3 details, #whole")) folded.open = true;
seen.images = document.images.length; seen.scripts = document.scripts.length;
const requests = performance.getEntriesByType("resource").map(entry => entry.name);
seen.requests = requests.filter(name => !name.startsWith("data:"));
seen.hostile = document.querySelector("#e3 summary").textContent;
seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.paper = getComputedStyle(document.body).backgroundColor;
const out = document.createElement("pre"); out.id = "seen";
setTimeout(() => { seen.problems = problems;
  seen.marked = document.querySelectorAll("#e1 ins, #e1 del").length;
  seen.hostileDiff = document.querySelector("#e3 pre")?.textContent.trim();
  out.textContent = JSON.stringify(seen); document.body.append(out); }, 300);
</script>"""


# For many rows: one word into the filter, one look.
GLANCE = """<script>
$("filter").value = "cuda memory"; $("filter").dispatchEvent(new Event("input"));
const seen = {points: document.querySelectorAll("#chart a").length, shown: $("shown").textContent, problems};
seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
document.body.replaceChildren(out);
</script>"""


def browse(tmp_path, text: str, *options: str, script: str = READER) -> tuple[dict, str]:
    """(what the script saw, the console) of the page."""
    page = tmp_path / "report.html"
    page.write_text(text.replace("<title>", WATCH + "<title>", 1).replace("</body>", script + "</body>"), "utf-8")
    done = subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000",
                           "--dump-dom", *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    unescaped = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(unescaped), "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)


@pytest.mark.parametrize(("options", "paper"), [
    (("--window-size=1400,900",), "rgb(255, 255, 255)"),
    (("--window-size=400,844", "--blink-settings=preferredColorScheme=0"), "rgb(20, 22, 26)")], ids=["light", "dark"])
def test_the_page_works_light_and_dark_wide_and_narrow_and_hostile_text_does_nothing(tmp_path, options, paper):
    rows = [*NIGHT, *CONFIRMED]
    rows[3] = replace(rows[3], description=HOSTILE, note=HOSTILE, source=HOSTILE)
    held = Archive(HOSTILE, HOSTILE, whole=HOSTILE, diffs={1: "+ a = 1\n- a = 2", 3: HOSTILE})
    text = report.page(rows, held, svg=draw(rows)[1])
    seen, console = browse(tmp_path, text, *options)
    assert seen["problems"] == [] and console == "" and seen["requests"] == []
    assert seen["points"] == len(NIGHT)
    assert seen["first"] == ["4", "3", "2", "1", "0"] and seen["inOrder"] == ["0", "1", "2", "3", "4"]
    assert seen["found"] == ["2"] and seen["shown"] == "1 of 5" and seen["none"] == []
    assert seen["kept"] == ["4", "1", "0"]
    assert seen["rising"] == ["4", "1", "3", "0", "2"] and seen["falling"] == ["0", "3", "1", "4", "2"]
    assert seen["tip"] == "2  crash: idea 2" and seen["tipShown"] == "block" and seen["target"] == "#e2"
    assert seen["folded"] == 2 and seen["images"] == 0 and seen["scripts"] == 3  # the page's own and two of this test
    assert seen["wide"] <= 0  # nothing to scroll sideways but the table in its frame
    assert seen["hostile"] == one_line(HOSTILE) and seen["hostileDiff"] == HOSTILE and seen["marked"] == 2
    assert seen["paper"] == paper


def test_ten_thousand_rows(tmp_path):
    text = report.page(TEN_THOUSAND, Archive(), svg=drawing_of_ten_thousand())
    seen, console = browse(tmp_path, text, script=GLANCE)
    assert (seen["points"], seen["shown"]) == (10_000, "1 of 10000")
    assert seen["wide"] <= 0 and seen["problems"] == [] and console == ""
