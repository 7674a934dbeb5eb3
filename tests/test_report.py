"""The morning's report: figures against hand-computed ones, files that open, model text that stays text."""

import json
import math
import re
import statistics
import struct
import threading
import zlib
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
from fakes import git
from hypothesis import given, settings
from hypothesis import strategies as st

import agent
from lab import archive, ledger, picture, report, runner
from lab.archive import Archive
from lab.ledger import Row, Status, Trial
from lab.timeline import timeline

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)>{{rows}} $\\frac{ &lt; "\'>'


def row(experiment: int, val_bpb: float | None, status: str, **more) -> Row:
    minute = more.pop("minute", experiment)
    description = more.pop("description", f"idea {experiment}")
    return Row(f"{experiment:07x}", val_bpb, 44.0, Status(status), description, experiment,
               train_seconds=300, total_seconds=310, tokens_m=480, seed=experiment * 100, budget=300, data="ab12cd34",
               device="NVIDIA H100", when=f"2026-11-23T{20 + minute // 12:02d}:{5 * (minute % 12):02d}:00Z", **more)


NIGHT = [row(0, 1.000, "keep", source="baseline"), row(1, 0.990, "keep", source="some-model", usd=0.25),
         row(2, None, "crash", source="some-model", usd=0.5, note="CUDA out of memory"), row(3, 0.995, "discard"),
         row(1, 0.994, "repeat", minute=4), row(4, 0.991, "keep", source="tuner", minute=5)]
CONFIRMED = [row(e, v, "repeat", split="test", minute=6 + i) for i, (e, v) in enumerate(
    [(0, 1.010), (4, 0.996), (0, 1.012), (4, 1.000), (0, 1.014), (4, 0.998)])]


def ten_thousand() -> list[Row]:
    """A night of 10 000 experiments: 2 % kept, 3 % crashed, the one with number 2 among these."""
    rows = [row(0, 1.3, "keep")]
    for i in range(1, 10_000):
        status = "crash" if i % 100 in (2, 35, 68) else "keep" if i % 50 == 1 else "discard"
        value = None if status == "crash" else 1.3 - i * 1e-5 + 2e-4 * (i * 7919 % 100) * (status == "discard")
        rows.append(replace(row(i, value, status, description="x" * 80), when=""))
    return [*rows[:-1], replace(rows[-1], note="CUDA: no memory")]


TEN_THOUSAND = ten_thousand()


class Reader(HTMLParser):
    """What a browser would see: tags, attributes and text, by element."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.table_rows: list[list[str]] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr" and dict(attrs).get("id"):
            self.inside = dict(attrs)["id"]
            self.table_rows.append([])
        elif tag == "td" and self.inside:
            self.table_rows[-1].append("")
        elif tag == "tr" or (tag in ("h2", "script")):
            self.inside = ""

    def handle_endtag(self, tag):
        self.inside = "" if tag == "tbody" else self.inside

    def handle_data(self, data):
        if self.inside and self.table_rows[-1]:
            self.table_rows[-1][-1] += data


def page(rows, diffs=None, program="", runs=None) -> str:
    _, svg = draw(rows)
    return report.page(rows, Archive("nov23", program, diffs=diffs or {}), runs, svg)


def draw(rows, title: str = "t", curves=()) -> tuple[bytes, str]:
    return picture.draw(timeline(rows), 0.001, title, title, dict(curves))


@cache
def drawing_of_ten_thousand() -> str:
    """Drawn once, 3 s."""
    return draw(TEN_THOUSAND)[1]


def points(text: str) -> list[tuple[str, str]]:
    """(experiment, colour) of every point that links to a row."""
    return re.findall(r'<a xlink:href="#e(\d+)">.*?var\(--(\w+)\)', text, re.DOTALL)


def test_not_confirmed_is_said_plainly_and_confirmed_is_the_test_splits_difference():
    assert report.confirmed(NIGHT) is None
    assert report.headline(NIGHT).startswith("Not confirmed yet: 0.009000 below the baseline")
    gain, error, n = report.confirmed(NIGHT + CONFIRMED)
    assert (round(gain, 9), n) == (0.014, 3)
    assert math.isclose(error, math.sqrt(0.002**2 / 3 + 0.002**2 / 3))
    assert report.headline(NIGHT + CONFIRMED).startswith("Confirmed gain 0.014000 ± 0.001633 bits")
    assert report.confirmed(NIGHT + CONFIRMED[:2]) is None  # one seed has no standard error


def test_a_gain_within_noise_or_a_loss_is_not_called_a_gain():
    noisy = [replace(r, val_bpb=r.val_bpb + (0.014 if r.experiment == 4 else 0)) for r in CONFIRMED]
    said = report.headline(NIGHT + noisy)
    assert said == ("No gain confirmed: 0.000000 ± 0.001633 bits per byte (3 fresh seeds each, test split), within the "
                    "noise.")
    worse = [replace(r, val_bpb=r.val_bpb + (0.05 if r.experiment == 4 else 0)) for r in CONFIRMED]
    assert "worse than the baseline" in report.headline(NIGHT + worse)


def test_a_train_py_that_pins_its_own_seed_confirms_nothing_and_hides_no_noise():
    def with_pinned(*experiments: int) -> list[Row]:
        return NIGHT + [replace(r, val_bpb={0: 1.012, 4: 0.998}[r.experiment]) if r.experiment in experiments else r
                        for r in CONFIRMED]

    assert report.confirmed(with_pinned(0, 4))[1:] == (None, 3)
    said = report.headline(with_pinned(0, 4))
    assert said.startswith("Not confirmed: 0.014000 bits per byte (3 fresh seeds each") and "±" not in said
    error = report.confirmed(with_pinned(4))[1]  # one draw of its own beside three of the baseline
    assert math.isclose(error, 0.002 * math.sqrt(1 / 3 + 1))


def test_a_baseline_that_came_back_is_not_said_to_be_without_a_keep():
    returned = [*NIGHT[:2], row(1, 1.02, "repeat", minute=4), row(0, 0.999, "keep", minute=5)]
    assert report.headline(returned) == "The baseline stands."
    assert report.headline(NIGHT[:1]) == "No experiment was kept: the baseline stands."


def test_a_discard_that_a_repeat_brought_back_is_a_keep_in_the_table():
    rows = [NIGHT[0], row(1, 1.01, "discard"), row(1, 0.98, "keep", minute=2)]
    assert [cells[3] for cells in Reader(page(rows)).table_rows] == ["keep", "keep"]
    assert re.findall(r'data-s="(\w+)"', page(rows)) == ["keep", "keep"]


def test_summary_has_the_hand_computed_figures(tmp_path):
    runs = tmp_path / "nov23"
    runs.mkdir()
    (runs / "ideas.jsonl").write_text('{"experiment": 1, "area": "optimizer"}\n{"experiment": 2, "area": "opt')
    text = report.summary(NIGHT, runs)
    assert "experiments: keep 3, crash 1, discard 1, repeat 1\n" in text
    assert "experiment 4, commit 0000004, val_bpb 0.991, trials 1, description idea 4" in text
    assert f"noise:       {statistics.stdev([0.990, 0.994]):.6f}\n" in text
    assert "some-model tries 2, keeps 1, best 0.992, usd 0.75; tuner tries 1" in text
    assert "areas:       constants, by the tuner tries 1, keeps 1, best 0.991, usd 0.0; optimizer tries 1, " in text
    assert "minutes:     training 30.0, trials 31.0\n" in text
    assert re.search(r"\n +1 +\+0\.010000 ", text)
    assert re.search(r"\n +4 +\+0\.001000 +within noise +idea 4", text)  # against the mean of 0.990 and 0.994


def test_the_estimate_is_the_mean_of_the_incumbents_trials_in_the_order_of_the_file():
    after = [(moment.place, moment.after, moment.n_trials) for moment in timeline(NIGHT)]
    assert [x for x, _, _ in after] == [0, 1, 2, 3, 3, 4]
    assert [round(value, 6) for _, value, _ in after] == [1.0, 0.99, 0.99, 0.99, 0.992, 0.991]
    assert [n for _, _, n in after] == [1, 1, 1, 1, 2, 1]


def test_the_axis_is_the_number_where_trials_end_in_another_order():
    rows = [NIGHT[0], row(2, 0.99, "keep"), row(1, 0.995, "discard"), row(0, 1.001, "repeat"), row(3, 0.98, "keep")]
    assert [moment.place for moment in timeline(rows)] == [0, 2, 1, 2, 3]
    kinds = {number: kind for number, kind in points(draw(rows)[1]) if kind != "repeat"}
    assert kinds == {"0": "keep", "1": "discard", "2": "keep", "3": "keep"}


def test_the_busy_share_of_each_slot_is_read_from_the_notes_alone():
    rows = [replace(r, note=f"{r.note}; on slot {n % 2}") for n, r in enumerate(NIGHT)]
    assert report.as_json(rows)["slots"] == {"slot 0": "51% busy", "slot 1": "51% busy"}
    assert report.as_json(NIGHT)["slots"] == {}


def test_points_equal_rows_and_table_rows_equal_experiments():
    text = page(NIGHT + CONFIRMED)
    assert len(points(text)) == len(NIGHT)  # the test split has no place on the validation axis
    assert sorted(points(text)) == [("0", "keep"), ("1", "keep"), ("1", "repeat"), ("2", "crash"),
                                    ("3", "discard"), ("4", "keep")]
    table = [[cell.strip() for cell in cells] for cells in Reader(text).table_rows]
    assert [cells[0] for cells in table] == ["4", "3", "2", "1", "0"]
    assert table[0][1:4] == ["0.991000", "-0.001000", "keep"] and table[2][1:4] == ["", "", "crash"]
    assert table[1][2] == "+0.005000"  # the discard came before the incumbent's repeat


def test_hostile_text_stays_text_everywhere():
    rows = [replace(r, description=HOSTILE, note=HOSTILE, source=HOSTILE, device=HOSTILE, sandbox=HOSTILE,
                    commit=HOSTILE, parent=HOSTILE) for r in NIGHT]
    rows.append(replace(rows[3], experiment=9))
    text = page(rows, {1: "+" + HOSTILE + "\n-" + HOSTILE + "\n" + HOSTILE}, HOSTILE)
    clean = Reader(page(NIGHT, {1: "+a\n-b\nc"}, "x"))
    seen = Reader(text)
    allowed = {tag for tag, _ in clean.tags}
    assert {tag for tag, _ in seen.tags} <= allowed | {"details", "summary", "p", "br"}
    assert [tag for tag, _ in seen.tags].count("script") == 2 and "img" not in {tag for tag, _ in seen.tags}
    assert not any(name.startswith("on") for _, attrs in seen.tags for name in attrs)
    table = seen.table_rows
    assert len(table) == 6 and all(ledger.one_line(HOSTILE) in cells[4] for cells in table)
    assert png_size(draw(rows, HOSTILE)[0])


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60), st.text(max_size=80))
def test_any_text_leaves_the_tags_alone(description, diff):
    rows = [NIGHT[0], replace(NIGHT[1], description=description, note=description)]
    text = report.page(rows, Archive("t", description, diffs={1: diff}))
    text.encode("utf-8", "replace")
    assert len(Reader(text).table_rows) == 2
    assert [tag for tag, _ in Reader(text).tags].count("script") == 2


def test_nothing_is_asked_of_another_machine():
    text = page(NIGHT, {1: "+ x"}, "see https://example.com")
    for tag, attrs in Reader(text).tags:
        assert not {"src", "action", "srcset", "poster"} & set(attrs), (tag, attrs)
        assert attrs.get("href", "data:,") == "data:," and "target" not in attrs
    policy = next(a["content"] for t, a in Reader(text).tags if t == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    assert set(re.findall(r"url\(.?", text)) <= {"url(#"} and "@import" not in text
    assert all(a["xlink:href"].startswith("#") for _, a in Reader(text).tags if "xlink:href" in a)


def test_a_long_diff_is_bounded_and_says_where_the_rest_is():
    text = page(NIGHT, {1: "+" + "x" * 100_000})
    assert len(text) < 100_000 and "80001 more characters: git show 0000001" in text


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height; fails unless every chunk is whole."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, kinds = 8, []
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 4 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(body)
        kinds.append(kind)
        place += 12 + length
    assert kinds[-1] == b"IEND"
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("rows", [[], NIGHT[:1], NIGHT[2:3], NIGHT, NIGHT + CONFIRMED,
                                  [replace(NIGHT[0], val_bpb=0.0)]])
def test_every_session_draws_and_opens(tmp_path, rows):
    report.write(tmp_path, rows, Archive())
    assert png_size((tmp_path / "progress.png").read_bytes())[0] > 1000
    assert len(points((tmp_path / "report.html").read_text())) == len([r for r in rows if r.split == "val"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["progress.png", "report.html"]
    assert report.summary(rows)


def test_five_columns_and_a_torn_tail(tmp_path):
    path = tmp_path / "results.tsv"
    path.write_text("commit\tval_bpb\tmemory_gb\tstatus\tdescription\nbase\t0.9979\t44.0\tkeep\tbaseline\n"
                    "a\t0.000000\t0.0\tcrash\tboom\nb\t0.986041\t43.9\tkeep\thalve\nc\t0.98")
    rows = ledger.read(path)
    report.write(tmp_path, rows, Archive())
    text = (tmp_path / "report.html").read_text()
    assert len(points(text)) == 3
    assert "experiments: keep 2, crash 1" in report.summary(rows)
    assert [row.val_bpb for row in rows] == [0.9979, None, 0.986041]  # a crash logged as 0 is no score


def test_an_outlier_does_not_set_the_scale():
    low, high = picture.scale([1.0, 0.99, 0.995, 0.994, 0.991, *[0.992] * 9, 3.2, math.inf, math.nan])
    assert low == 0.990 and high < 1.01
    assert png_size(draw([*NIGHT, row(5, 3.2, "discard", minute=9), row(6, math.nan, "discard")])[0])


def test_files_are_replaced_whole_while_somebody_reads(tmp_path):
    report.write(tmp_path, NIGHT, Archive())
    stop, torn = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                png_size((tmp_path / "progress.png").read_bytes())
            except (AssertionError, struct.error) as error:
                torn.append(error)
            if not (tmp_path / "report.html").read_text().rstrip().endswith("</html>"):
                torn.append("report.html")

    reader = threading.Thread(target=read)
    reader.start()
    for n in (1, 3):
        report.write(tmp_path, NIGHT[:n], Archive())
    stop.set()
    reader.join()
    assert not torn


def test_the_largest_gains_are_named_as_text():
    rows = [row(i, 1 - 0.001 * i - (0.01 if i == 40 else 0), "keep", description=f"idea <{i}> $x$", minute=i % 40)
            for i in range(80)]
    _, svg = draw(rows)
    named = [int(n) for n in re.findall(r">idea &lt;(\d+)&gt; \$x\$<", svg)]
    assert len(named) == picture.MAX_NAMES and 40 in named and 41 not in named


def test_ticks_are_round_and_experiments_whole():
    for n in (1, 4, 37, 400):
        _, svg = draw([row(i, 1.2345 - 0.00123 * i, "keep", minute=i % 40) for i in range(n)])
        ticks = re.findall(r'text-anchor: (middle|end)"[^>]*>([0-9.]+)</text>', svg)
        heights = [round(float(text) * 1e6) for anchor, text in ticks if anchor == "end"]
        steps = {b - a for a, b in zip(heights, heights[1:], strict=False)}
        assert len(steps) == 1 and float(f"{min(steps):.0e}"[0]) in (1, 2, 5), (n, heights)
        assert all(text.isdigit() for anchor, text in ticks if anchor == "middle")


def test_noise_comes_from_the_test_split_where_nothing_else_measured_it():
    rows = [r for r in NIGHT if r.status is not Status.REPEAT] + CONFIRMED
    assert "noise:       0.002\n" in report.summary(rows)
    assert re.search(r"\n +1 +\+0\.010000 +above the noise +idea 1", report.summary(rows))


def test_a_change_of_program_md_is_an_upright_line_at_the_first_experiment_that_had_read_it():
    def uprights(rows) -> list[float]:
        found = re.search(r'<g id="steered">(.*?)</g>', draw(rows)[1], re.S)
        return [float(x) for x in re.findall(r"M ([\d.]+)", found[1])] if found else []

    notes = "", "program.md changed", "boom; program.md changed; on a", "it reads 'program.md changed'"
    rows = [replace(r, note=note) for r, note in zip(NIGHT[:4], notes, strict=True)]
    places = dict(re.findall(r'xlink:href="#e([12])">.*?<use [^>]*x="([\d.]+)"', draw(rows)[1], re.S))
    assert uprights(rows) == pytest.approx([float(places["1"]), float(places["2"])], abs=0.01)
    assert uprights(NIGHT[:4]) == []


def test_busy_rows_count_nowhere_and_are_told():
    busy = row(3, None, "busy", note="did not have its machine")
    rows = [*NIGHT[:3], busy, *NIGHT[3:]]
    told, plain = report.as_json(rows), report.as_json(NIGHT)
    assert told["experiments"].pop("busy") == 1
    for name in ("minutes", "rows"):  # it took time
        assert told.pop(name) != plain.pop(name)
    assert told == plain and report.keeps(rows) == report.keeps(NIGHT)
    assert len(points(page(rows))) == len(NIGHT)
    assert {cells[0]: cells[13].strip() for cells in Reader(page(rows)).table_rows}["3"] == "1"


def test_a_clock_that_was_set_back_changes_no_order():
    turned = [replace(r, when=f"2026-11-23T{10 - i:02d}:00:00Z") for i, r in enumerate(NIGHT)]
    assert report.summary(turned) == report.summary(NIGHT) and draw(turned)[1] == draw(NIGHT)[1]


@pytest.mark.parametrize("content", [b"{torn", b"[1, 2]", b"\xff\xfe", b""])
def test_a_torn_file_in_the_run_folder_stops_no_report(tmp_path, content):
    for name in ("ideas.jsonl", "calls.jsonl", "0000-0.log", "0000-0.json"):
        (tmp_path / name).write_bytes(content)
    assert report.summary(NIGHT, tmp_path) == report.summary(NIGHT)
    report.write(tmp_path, NIGHT, Archive(), tmp_path)


def test_the_loss_of_baseline_and_incumbent_is_drawn_against_seconds(tmp_path):
    for name, start in (("0000-0", 6), ("0004-400", 5), ("0003-300", 9)):
        lines = [f"step {n} | {n}% | loss {start - n / 50:.2f} | 900 tok/s" for n in range(0, 101, 10)]
        (tmp_path / f"{name}.log").write_text("\n".join(["compiled", *lines, "torn | 9"]))
    curves = report.curves(NIGHT, tmp_path)
    assert list(curves) == ["baseline", "incumbent"]
    assert curves["baseline"][:2] == [(30.0, 5.8), (60.0, 5.6)] and curves["incumbent"][-1] == (300.0, 3.0)
    _, svg = draw(NIGHT, curves=curves)
    assert {"baseline", "incumbent", "seconds"} <= set(re.findall(r">([^<>]+)</text>", svg))
    assert len(points(svg)) == len(NIGHT) and report.curves([], tmp_path) == {}


def test_batches_and_versions_are_those_that_the_referee_wrote_down(tmp_path):
    def keep(number: int, n_batches: int, torch: str) -> None:
        trial = Trial(1.0, "", number * 100, "val", 300, "cpu", "", "", n_batches=n_batches, versions={"torch": torch})
        runner.save_log(trial, tmp_path, number)

    keep(0, 1234, "2.13.0")
    keep(4, 1500, HOSTILE)
    text = page(NIGHT, runs=tmp_path)
    assert {cells[0]: cells[8].strip() for cells in Reader(text).table_rows}["0"] == "1234"
    assert [cells[8].strip() for cells in Reader(text).table_rows] == ["1500", "", "", "", "1234"]
    assert report.as_json(NIGHT, tmp_path)["versions"] == {"torch": "2.13.0"}  # not the last trial's
    assert "<dt>versions<dd>torch 2.13.0" in text and "<dt>versions" not in page(NIGHT)
    began = report.page(NIGHT, Archive("x", commit="0123456789abcdef"))
    assert "<dd>commit 0123456789ab, when" in began and "<dt>program" not in text


def test_the_object_says_what_its_docstring_names():
    told = json.loads(json.dumps(report.as_json(NIGHT + CONFIRMED)))
    assert told["headline"] == report.headline(NIGHT + CONFIRMED)
    assert told["incumbent"] == {"experiment": 4, "commit": "0000004", "val_bpb": 0.991, "trials": 1,
                                 "description": "idea 4"}
    assert told["confirmed"][2] == 3 and math.isclose(told["noise"], statistics.stdev([0.990, 0.994]))
    assert told["money"]["some-model"] == {"tries": 2, "keeps": 1, "best": 0.992, "usd": 0.75}
    assert [r["status"] for r in told["rows"][:3]] == ["keep", "keep", "crash"] and len(told["rows"]) == 12
    assert list(told) == re.findall(r"\n    (\w+)  ", report.as_json.__doc__)
    assert report.as_json([])["incumbent"] is report.as_json([])["baseline"] is None


def test_a_keep_that_comes_back_is_told_once_by_what_it_gave(tmp_path):
    back = [row(0, 1.70, "keep"), row(1, 1.50, "keep"), row(2, 1.49, "keep"), row(2, 1.55, "repeat"),
            row(1, 1.53, "keep"), row(3, 1.60, "discard"), row(3, 1.40, "keep")]  # a discard that a repeat has kept
    told = [line.split()[:2] for line in report.keeps(back)[1:]]
    assert told == [["1", "+0.200000"], ["2", "+0.010000"], ["3", "+0.115000"]]
    assert report.keeps([row(0, None, "crash"), row(1, 1.5, "keep")]) == [], "as in the original's file"


def test_dollars_of_an_idea_that_had_no_machine_are_told(tmp_path):
    (tmp_path / "calls.jsonl").write_text('{"usd": 1.25}\n')  # 0.75 of them are in the night's rows
    waits = [*NIGHT, row(5, None, "busy", source="some-model", usd=0.5)]
    assert report.as_json(waits, tmp_path)["money"]["calls without a row"]["usd"] == 0.5
    judged = [*waits, row(5, 1.0, "discard", source="some-model")]
    assert report.as_json(judged)["money"]["some-model"]["usd"] == 1.25


def test_what_happens_while_the_report_is_drawn_is_drawn_after_it(tmp_path):
    drawer = report.Drawer(tmp_path)
    drawer.command = ["sh", "-c", f"sleep 0.3; echo drawn >> {tmp_path}/told"]
    for _ in range(3):
        drawer.draw()
    drawer.finish()
    assert (tmp_path / "told").read_text() == "drawn\n" * 2
    drawer.finish()
    assert (tmp_path / "told").read_text() == "drawn\n" * 2


def test_dollars_of_calls_that_are_in_no_row_are_named(tmp_path):
    calls = tmp_path / "calls.jsonl"
    calls.write_text('{"usd": 0.5}\n{"usd": 0.254}\n{"usd": 9, "torn')  # rows have rounded
    assert "calls without a row" not in report.as_json(NIGHT, tmp_path)["money"]
    calls.write_text('{"usd": 0.5}\n{"usd": 0.25}\n{"usd": 0.125}\n{"usd": null}\n')
    told = report.as_json(NIGHT, tmp_path)["money"]
    assert told.pop("calls without a row") == {"tries": 0, "keeps": 0, "best": None, "usd": 0.125}
    assert told == report.as_json(NIGHT)["money"]


def test_details_are_those_of_the_baseline_what_was_kept_and_the_newest(monkeypatch):
    monkeypatch.setattr(report, "MAX_DETAILS", 4)
    history = ledger.experiments([*NIGHT, *(row(i, 1.0, "discard") for i in range(5, 9))])
    assert [e.number for e in report.in_detail(history)] == [0, 4, 1, 8]
    assert "texts: of 4, which" in page([row for e in history for row in e.rows]) and "texts: of" not in page(NIGHT[:4])


def test_crashes_are_counted_by_cause():
    rows = [NIGHT[0], *(row(i, None, "crash", note=f"CUDA out of memory: tried {i} GB; x") for i in range(1, 4)),
            row(4, None, "crash", note="")]
    assert report.as_json(rows)["failures"] == {"CUDA out of memory": 3, "no reason": 1}


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A repository whose session x has two experiments, and is not checked out."""
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q", "-b", "main")
    for name, text in (("train.py", "A = 0\n"), ("program.md", "what x wants"), ("results.tsv", TSV)):
        (tmp_path / name).write_text(text)
    commit(tmp_path, "start")
    for n in (0, 1):
        (tmp_path / "train.py").write_text(f"A = {n}\n# \udcff\n", errors="surrogateescape")
        commit(tmp_path, f"{n}\n\n+ because {n}\n")
        git(tmp_path, "update-ref", f"refs/autoresearch/x/{n}", "HEAD")
    git(tmp_path, "branch", "autoresearch/x")
    (tmp_path / "program.md").write_text("what main wants")
    return tmp_path


def commit(folder, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", message)


TSV = ledger.HEADER + "".join(map(ledger.format_row, NIGHT[:2]))


def test_texts_and_diffs_come_from_git(shelf):
    held = archive.read(shelf, "x", [1, 7, 0])
    change = ["@@ -1,2 +1,2 @@", "-A = 0", "+A = 1", " # \N{REPLACEMENT CHARACTER}"]
    assert held.diffs[1].splitlines()[0] == "+ because 1" and held.diffs[1].splitlines()[-4:] == change
    assert held.whole.splitlines()[-4:] == change and set(held.diffs) == {0, 1}
    assert {n: code[:5] for n, code in held.codes.items()} == {1: "A = 1", 0: "A = 0"}  # git never had 7
    assert held.commit == git(shelf, "rev-parse", "HEAD~2").strip()
    for folder, tag in ((shelf, "none"), (shelf / "..", "x"), (shelf / "..", "")):  # no session, no repository
        assert archive.read(folder, tag, [0]) == Archive(tag)


def test_texts_of_train_py_are_bounded(shelf, monkeypatch):
    monkeypatch.setattr(archive, "MAX_CODES_BYTES", 10)
    assert set(archive.read(shelf, "x", [1, 0]).codes) == {1}


def test_a_session_that_is_not_checked_out_has_its_own_program_and_its_newest_rows(shelf):
    assert archive.read(shelf, "x").program == "what x wants"
    assert archive.read(shelf, "").program == "what main wants"
    assert archive.rows_of(shelf, "x") == NIGHT[:2]  # of a clone
    copy = shelf / ".git" / "autoresearch" / "x.tsv"  # where an agent in another work tree appends
    copy.parent.mkdir()
    copy.write_text(TSV + ledger.format_row(NIGHT[2]))
    assert archive.rows_of(shelf, "x") == NIGHT[:3]


def test_ten_thousand_experiments_make_a_page_of_megabytes():
    diffs = dict.fromkeys(range(10_000), "+ y = 1\n" * 100)
    text = report.page(TEN_THOUSAND, Archive(diffs=diffs), svg=drawing_of_ten_thousand())
    assert 1e6 < len(text.encode()) < 20e6


ORIGINAL = "commit\tval_bpb\tmemory_gb\tstatus\tdescription\nbase\t0.9979\t44.0\tkeep\tbase\nb"


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A folder without a repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(agent, "ROOT", tmp_path)
    return tmp_path


def test_the_command_reads_the_originals_file_and_a_torn_last_line(bare, capsys):
    (bare / "results.tsv").write_text(ORIGINAL)
    assert agent.main(["report"]) == 0
    out = capsys.readouterr().out
    assert "No experiment was kept" in out
    assert out.endswith(f"\nwrote report.html and progress.png in {bare}\n")
    assert "<title>autoresearch</title>" in (bare / "report.html").read_text()  # of no session
    assert png_size((bare / "progress.png").read_bytes())
    assert agent.main(["report", "--json"]) == 0 and json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("text", [None, "", "commit\tval_b", ledger.HEADER, ledger.HEADER + "aaa\t1.0\t44"])
def test_without_rows_and_session_it_says_so_and_writes_nothing(bare, capsys, text):
    if text is not None:
        (bare / "results.tsv").write_text(text)
    assert agent.main(["report"]) == 2
    assert capsys.readouterr().err == "agent.py: no session is checked out: run python agent.py first\n"
    assert not (bare / "report.html").exists()


def test_a_damaged_line_is_named_in_one_line(bare, capsys):
    (bare / "results.tsv").write_text(ledger.HEADER + "a\tb\n")
    assert agent.main(["report"]) == 2
    assert "results.tsv line 2: 2 cells, expected 21: restore the line" in capsys.readouterr().err
