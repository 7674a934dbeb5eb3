"""report.html in a real browser: headless Chromium opens the file, a script appended to the page plays the reader."""

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from html import unescape

import pytest
from test_report import CONFIRMED, HOSTILE, NIGHT, TEN_THOUSAND, draw, drawing_of_ten_thousand, row

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

LOOKS = [(width, scheme) for width in (400, 1400) for scheme in ("light", "dark")]
HOST = """<!doctype html>%s<pre id="seen"></pre><script>
const all = [];
addEventListener("message", event => {
  all.push(event.data);
  if (all.length === frames.length) document.getElementById("seen").textContent = JSON.stringify(all.sort());
});
</script>"""

# `report` sends what it saw to the page around.
READER = """<script>
const visible = () => [...document.querySelectorAll("#table tbody tr")].filter(row => !row.hidden);
const numbers = () => visible().map(row => row.cells[0].textContent);
const set = (id, text, kind) => { $(id).value = text; $(id).dispatchEvent(new Event(kind)); };
const type = text => set("filter", text, "input");
const head = i => document.querySelectorAll("#table th button")[i].click();
const tick = number => document.querySelector(`#e${number} input`).click();
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
const shown = () => $("between").hidden ? "" : $("between").textContent.trim();
tick(3); seen.oneTicked = shown();
tick(1); seen.twoTicked = shown();
seen.between = [...$("between").children].filter(line => line.localName !== "span").map(line => line.localName);
const box = $("losses").firstElementChild.getBoundingClientRect();
seen.losses = [...document.querySelectorAll("#losses .ticked")].map(path => {
  const own = path.getBoundingClientRect(), inside = own.top >= box.top - 1 && own.bottom <= box.bottom + 1;
  return [path.textContent, path.getAttribute("d").split("L").length, inside, getComputedStyle(path).stroke !== "none"];
});
tick(3); tick(2); seen.notHeld = shown(); tick(1); tick(2); seen.noneTicked = shown();
seen.left = document.querySelectorAll(".ticked").length;
seen.images = document.images.length; seen.scripts = document.scripts.length;
const requests = performance.getEntriesByType("resource").map(entry => entry.name);
seen.requests = requests.filter(name => !name.startsWith("data:"));
seen.hostile = document.querySelector("#e3 summary").textContent;
seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.width = innerWidth;
seen.paper = getComputedStyle(document.body).backgroundColor;
setTimeout(() => { seen.problems = problems;
  seen.marked = document.querySelectorAll("#e1 ins, #e1 del").length;
  seen.hostileDiff = document.querySelector("#e3 pre")?.textContent.trim();
  parent.postMessage(JSON.stringify(seen), "*"); }, 300);
</script>"""


# For many rows: one word into the filter, one look.
GLANCE = """<script>
$("filter").value = "cuda memory"; $("filter").dispatchEvent(new Event("input"));
const seen = {width: innerWidth, points: document.querySelectorAll("#chart a").length, problems};
seen.shown = $("shown").textContent;
seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
parent.postMessage(JSON.stringify(seen), "*");
</script>"""


def browse(tmp_path, text: str, looks: list[tuple[int, str]], script: str = READER) -> tuple[list[dict], str]:
    """(what the script saw in each look at the page, the console), in one browser."""
    page, host = tmp_path / "report.html", tmp_path / "host.html"
    page.write_text(text.replace("<title>", WATCH + "<title>", 1).replace("</body>", script + "</body>"), "utf-8")
    frame = '<iframe src="report.html" style="width: {}px; height: 844px; border: 0; color-scheme: {}"></iframe>'
    host.write_text(HOST % "".join(frame.format(*look) for look in looks))
    done = subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000",
                           "--dump-dom", host.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    seen = [json.loads(text) for text in json.loads(unescape(found[1]))]
    return seen, "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)


# 40 rows in 33 experiments: some were measured again, or on the test split.
FORTY = [*NIGHT, *(row(i, 1.05 + i * 7 % 33 / 1000, "discard", minute=i % 40) for i in range(5, 33)), *CONFIRMED]
CODES = {3: "\n".join([*map(str, range(20)), HOSTILE, "end"]), 1: "\n".join([*map(str, range(9)), "new", "9", "end"])}


@pytest.fixture(scope="module")
def forty(tmp_path_factory) -> tuple[list[dict], str]:
    """What is seen of a page that a hostile model wrote for, in every width and color."""
    runs = tmp_path_factory.mktemp("runs")
    for number, losses in ((0, "65"), (1, "54"), (3, "91"), (4, "43")):
        lines = [f"step {i} | {50 * i}% | loss {loss}" for i, loss in enumerate(losses)]
        (runs / f"{number:04d}-{number * 100}.log").write_text("\n".join(lines))
    rows = [replace(r, description=HOSTILE, note=HOSTILE, source=HOSTILE) if r.experiment == 3 else r for r in FORTY]
    diffs = {1: "+ a = 1\n- a = 2", 3: HOSTILE}
    text = report.page(rows, Archive(HOSTILE, HOSTILE, whole=HOSTILE, diffs=diffs, codes=CODES), runs,
                       draw(rows, curves=report.curves(rows, runs))[1])
    return browse(runs, text, LOOKS)


@pytest.mark.parametrize(("width", "paper"), [(width, paper) for width in (400, 1400) for paper in (
    "rgb(255, 255, 255)", "rgb(20, 22, 26)")])
def test_a_page_of_forty_rows_works_in_every_width_and_color_and_hostile_text_does_nothing(forty, width, paper):
    looks, console = forty
    seen = next(seen for seen in looks if (seen["width"], seen["paper"]) == (width, paper))
    order = [str(n) for n in range(33)]
    assert seen["problems"] == [] and console == "" and seen["requests"] == []
    assert seen["points"] == len(FORTY) - len(CONFIRMED)
    assert seen["first"] == order[::-1] and seen["inOrder"] == order
    assert seen["found"] == ["2"] and seen["shown"] == "1 of 33" and seen["none"] == []
    assert seen["kept"] == ["4", "1", "0"]
    assert seen["rising"][:4] == ["4", "1", "3", "0"] and seen["rising"][-1] == seen["falling"][-1] == "2"  # no number
    assert seen["rising"][:-1] == seen["falling"][-2::-1]
    assert seen["tip"] == "2  crash: idea 2" and seen["tipShown"] == "block" and seen["target"] == "#e2"
    assert seen["folded"] == 2 and seen["images"] == 0 and seen["scripts"] == 4  # two of this test
    assert seen["wide"] <= 0  # nothing to scroll sideways but the table in its frame
    assert seen["hostile"] == one_line(HOSTILE) and seen["hostileDiff"] == HOSTILE and seen["marked"] == 2


def test_ticked_rows_are_compared_and_their_losses_drawn(forty):
    added = [*(f"+{n}" for n in range(10, 20)), "+" + HOSTILE]
    changed = "train.py from #1 to #3:", " 6", " 7", " 8", "-new", " 9", *added, " end"
    for seen in forty[0]:
        assert seen["oneTicked"] == seen["noneTicked"] == "" and seen["left"] == 0
        assert seen["twoTicked"] == "\n".join(changed)
        assert seen["between"] == ["del", *["ins"] * 11]
        assert seen["losses"] == [["#3", 2, True, True], ["#1", 2, True, True]]
        ref = f"refs/autoresearch/{HOSTILE}/"
        assert seen["notHeld"] == f"train.py from #1 to #2:\ngit diff {ref}1 {ref}2 -- train.py"


def test_ten_thousand_rows(tmp_path):
    text = report.page(TEN_THOUSAND, Archive(), svg=drawing_of_ten_thousand())
    looks, console = browse(tmp_path, text, [(400, "dark"), (1400, "light")], script=GLANCE)
    assert sorted(seen["width"] for seen in looks) == [400, 1400] and console == ""
    for seen in looks:
        assert (seen["points"], seen["shown"]) == (10_000, "1 of 10000")
        assert seen["wide"] <= 0 and seen["problems"] == []
