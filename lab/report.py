"""The morning: what the rows say, as one object, as text, as report.html and as progress.png.

Promises: what a model or a trial wrote is shown as text, never as markup. Both files appear whole or not
at all. The headline is what fresh seeds measured on the test split, or says that nobody measured it yet.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from lab import archive, confirm, display, ledger, memory, picture, runner, terminal
from lab.archive import Archive
from lab.ledger import Experiment, Row, Status, one_line
from lab.timeline import timeline

MAX_DIFF_CHARS = 20_000      # of one experiment in report.html
MAX_DIFFS_CHARS = 5_000_000  # of all together: the page stays under 20 MB
MAX_DETAILS = 200            # experiments that the page shows with texts, losses and batches


def morning(root: Path, options: argparse.Namespace) -> int:
    """Print the text and write progress.png and report.html, from the rows alone, also while the loop runs."""
    tag = options.tag or terminal.current_tag()
    rows, runs = archive.rows_of(root, tag), root / "runs" / tag if tag else None
    if options.json:
        print(json.dumps(as_json(rows, runs)))
    elif not options.quiet:
        print(summary(rows, runs))
    numbers = [e.number for e in in_detail(ledger.experiments(rows))]
    write(root, rows, archive.read(root, tag, numbers), runs)  # takes seconds
    if not (options.json or options.quiet):
        print(f"\nwrote report.html and progress.png in {root}")
    return 0


class Drawer:
    """Draws both files in a separate process, one at a time, so that the loop neither waits nor grows."""

    def __init__(self, root: Path):
        self.command = [sys.executable, str(root / "agent.py"), "report", "--quiet"]
        self.process: subprocess.Popen | None = None
        self.is_due = False  # something happened that the process does not know

    def draw(self) -> None:
        """Begin, unless that is under way."""
        self.is_due = self.process is not None and self.process.poll() is None
        if not self.is_due:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL, start_new_session=True)

    def finish(self) -> None:
        """Wait until all is drawn."""
        if self.process:
            self.process.wait()
        if self.is_due:
            self.draw()
            self.process.wait()


def who_proposed(rows: Sequence[Row], n_before: int, n_unusable: int, usd: float) -> str:
    """The last line of a run: "12 experiments: model 9 (2 repaired), tuner 3; 1 answer not usable; $0.41".

    n_before: rows that were there when the run began.
    """
    own = [rows[e.judged_at] for e in ledger.experiments(rows) if e.judged_at >= n_before]
    own = [row for row in own if row.split == "val" and row.source != "baseline"]
    counts = Counter(row.source for row in own)
    models = [row for row in own if row.source not in ledger.NO_MODEL]
    n_repaired = sum("repaired " in row.note or "mended after: " in row.note for row in models)
    names = sorted({row.source for row in models})
    parts = [f"{names[0] if len(names) == 1 else 'models'} {len(models)}"
             + (f" ({n_repaired} repaired)" if n_repaired else "")] if models else []
    parts += [f"{name} {counts[name]}" for name in ("tuner", ledger.COMBINED) if counts[name]]
    answers = f"{n_unusable} answer{'s' * (n_unusable != 1)} not usable" if n_unusable else ""
    count = f"{len(own)} experiment{'s' * (len(own) != 1)}"
    return "; ".join(filter(None, (": ".join(filter(None, (count, ", ".join(parts)))), answers, f"${usd:.2f}")))


def ends(rows: Sequence[Row]) -> dict[str, Experiment | None]:
    """Baseline and incumbent; None both before anything was kept."""
    history = ledger.experiments(rows)
    best = ledger.incumbent(history)
    return {"baseline": history[0] if best else None, "incumbent": best}


def confirmed(rows: Sequence[Row]) -> tuple[float, float | None, int] | None:
    """(gain, its standard error, seeds a side) on the test split; None before both sides have two.

    A train.py that pins its own seed repeats one value, which counts once; of two such no error is known.
    """
    baseline, best = ends(rows).values()
    if baseline is best:
        return None
    sides = baseline.values("test"), best.values("test")
    n = min(map(len, sides))
    if n < 2:
        return None
    draws = [list(set(side)) for side in sides]
    noise = ledger.pooled_deviation(draws)
    error = None if noise is None else noise * math.sqrt(sum(1 / len(draw) for draw in draws))
    return statistics.fmean(sides[0]) - statistics.fmean(sides[1]), error, n


def headline(rows: Sequence[Row]) -> str:
    """The figure of the night in one sentence, or why there is none."""
    baseline, best = ends(rows).values()
    if best is None:
        return "Nothing is measured yet."
    if best is baseline:
        returned = any(row.status is Status.KEEP and row.experiment != best.number for row in rows)
        return "The baseline stands." if returned else "No experiment was kept: the baseline stands."
    if result := confirmed(rows):
        gain, error, n = result
        seeds = f"bits per byte ({n} fresh seeds each, test split)"
        if error is None:
            return f"Not confirmed: {gain:.6f} {seeds}, but both pin their own seed: the error is not known."
        figure = f"{gain:.6f} ± {error:.6f} {seeds}"
        if gain > 2 * error:
            return f"Confirmed gain {figure}."
        is_worse = gain < -2 * error
        end = "the incumbent is worse than the baseline" if is_worse else "within the noise"
        return f"No gain confirmed: {figure}, {end}."
    gain = (baseline.val_bpb or math.nan) - best.val_bpb
    return (f"Not confirmed yet: {gain:.6f} below the baseline on the validation split, which flatters, "
            "for the lowest was picked. python agent.py confirm measures it.")


def as_json(rows: Sequence[Row], runs: Path | None = None) -> dict[str, object]:
    """The morning as one object for other programs; text and page are made of it.

    headline     the sentence
    confirmed    [gain, its standard error or null, seeds a side] on the test split, or null
    baseline     {experiment, commit, val_bpb (mean of its trials), trials, description}, or null
    incumbent    the same
    noise        standard deviation of one trial in bits per byte; null before anything was measured twice
    experiments  {verdict: rows}, and the repeats, busy trials and changes left out again
    failures     {cause: crashes}, the ten most frequent
    money        {source: {tries, keeps, best val_bpb, usd}}, one of them "calls without a row" where they cost a cent
    areas        {area that the model named: the same}
    minutes      {training, trials}: of training, and of whole trials
    slots        {slot: how busy it was}, where there were several
    session      {device, data, sandbox, budget}
    versions     {python, torch, driver of a GPU} that the baseline ran with; {} where runs/TAG is gone
    rows         every row of results.tsv under the names of its columns
    """
    history = ledger.experiments(rows)
    sources = {e.number: e.own.source for e in history}
    told = memory.read_objects(runs / "ideas.jsonl") if runs else []
    areas = {idea.get("experiment"): str(idea.get("area")) for idea in told}
    areas |= {number: "constants, by the tuner" for number, source in sources.items() if source == "tuner"}
    notes = [re.split("[;:(]", e.own.note)[0] for e in history if e.status is Status.CRASH]
    causes = Counter(one_line(re.sub(r"\d+", "N", note), 60) or "no reason" for note in notes)
    return {
        "headline": headline(rows), "confirmed": confirmed(rows),
        **{name: e and {"experiment": e.number, "commit": e.commit, "val_bpb": e.val_bpb,
                        "trials": len(e.values("val")), "description": e.own.description}
           for name, e in ends(rows).items()},
        "noise": ledger.sigma(history),
        "experiments": Counter(row.source if row.source == ledger.LEFT_OUT else str(row.status)
                               for row in rows),
        "failures": dict(causes.most_common(10)),
        "money": _grouped(history, sources) | _without_row(rows, runs),
        "areas": _grouped(history[1:], areas),
        "minutes": {"training": round(sum(row.train_seconds for row in rows) / 60, 1),
                    "trials": round(sum(row.total_seconds for row in rows) / 60, 1)},
        "slots": slot_shares(rows),
        "session": {name: ", ".join(sorted({str(getattr(row, name)) for row in rows}))
                    for name in ("device", "data", "sandbox", "budget")},
        "versions": memory.facts(runs, history[0].own).get("versions", {}) if history else {},
        "rows": [asdict(row) for row in rows],
    }


def _grouped(history: Sequence[Experiment], names: Mapping[int, str]) -> dict[str, dict]:
    """What came of the experiments of each name."""
    groups: dict[str, list[Experiment]] = {}
    for e in confirm.ideas(history):
        if e.status is not Status.BUSY:
            groups.setdefault(one_line(names.get(e.number, "other"), 40), []).append(e)
    return {name: {"tries": len(mine), "keeps": sum(e.status is Status.KEEP for e in mine),
                   "best": min((e.val_bpb for e in mine if e.val_bpb is not None), default=None),
                   "usd": sum(row.usd for e in mine for row in e.rows)} for name, mine in sorted(groups.items())}


def _without_row(rows: Sequence[Row], runs: Path | None) -> dict[str, dict]:
    """Price of the calls of no judged experiment: lessons, unusable answers, ideas that wait for their machine."""
    judged = [e for e in ledger.experiments(rows) if e.status is not Status.BUSY]
    usd = memory.called_usd(runs) - sum(row.usd for e in judged for row in e.rows) if runs else 0.0
    return {"calls without a row": {"tries": 0, "keeps": 0, "best": None, "usd": usd}} if usd >= 0.01 else {}


def in_detail(history: Sequence[Experiment]) -> list[Experiment]:
    """Those that the page has more of than their rows: the baseline, what was kept, then the newest."""
    order = sorted(history, key=lambda e: (e.number == 0, e.status is Status.KEEP, e.number), reverse=True)
    return order[:MAX_DETAILS]


def details(history: Sequence[Experiment], held: Archive, runs: Path | None) -> dict[str, object]:
    """What the page's script draws and compares; a train.py is a list of places among all lines."""
    places: dict[str, int] = {}
    codes = {number: [places.setdefault(line, len(places)) for line in code.split("\n")]
             for number, code in held.codes.items()}
    losses = {e.number: curve(e, runs) for e in in_detail(history)}
    return {"tag": held.tag, "lines": list(places), "codes": codes, "curves": losses}


def curve(experiment: Experiment, runs: Path | None) -> list[tuple[float, float]]:
    """(second, loss) of its own trial, as far as its log is there, without the first tenth, which is far above."""
    own = experiment.own
    losses = display.curve(runner.read_log(runs, own.experiment, own.seed)) if runs else {}
    points = [(percent / 100 * own.budget, loss) for percent, loss in losses.items()]
    return points[len(points) // 10:]


def curves(rows: Sequence[Row], runs: Path | None) -> dict[str, list[tuple[float, float]]]:
    """Those of baseline and incumbent that are there."""
    found = {name: curve(e, runs) for name, e in ends(rows).items() if e}
    return {name: points for name, points in found.items() if points}


def summary(rows: Sequence[Row], runs: Path | None = None) -> str:
    """The morning's text."""
    lines = [headline(rows), ""]
    for name, value in as_json(rows, runs).items():
        if value and name not in ("headline", "confirmed", "rows"):
            lines.append(f"{name + ':':12} {words(value)}")
    parts = keeps(rows), [*left_out(rows), *longer(rows)], memory.read_lessons(runs)
    return "\n".join([*lines, *("\n".join(["", *part]) for part in parts if part)]).rstrip()


def slot_shares(rows: Sequence[Row]) -> dict[str, str]:
    """How busy each slot was from the first trial's start to the last one's end; {} where there was one."""
    if not any(row.slot for row in rows):
        return {}
    busy_s: Counter[str] = Counter()
    for row in rows:
        busy_s[row.slot] += row.total_seconds
    ends = [datetime.fromisoformat(row.when).timestamp() for row in rows]
    span_s = max(ends) - min(end - row.total_seconds for row, end in zip(rows, ends, strict=True))
    return {name or "the only slot": f"{seconds / max(span_s, 1):.0%} busy" for name, seconds in sorted(busy_s.items())}


def words(value: object) -> str:
    """A value of the object as text of one line."""
    if isinstance(value, Mapping):
        parts = [f"{name} {words(inner)}" for name, inner in value.items() if inner not in (None, "")]
        return ("; " if any("," in part for part in parts) else ", ").join(parts)
    return str(round(value, 6)) if isinstance(value, float) else one_line(str(value), 80)


def keeps(rows: Sequence[Row]) -> list[str]:
    """A heading, and a line for every keep but the baseline."""
    noise = math.sqrt(2) * (ledger.sigma(ledger.experiments(rows)) or 0)  # of a difference of two trials
    lines = ["what each keep gave, against the incumbent at the time, on the validation split:"]
    told = {0}
    for moment in timeline(rows):
        row = moment.row
        is_new = row.status is Status.KEEP and row.experiment not in told  # one that came back is told once
        if is_new and moment.before is not None:
            gain = moment.before - (row.val_bpb if moment.is_own else moment.after)
            mark = "above the noise" if gain >= 2 * noise else "within noise"
            lines.append(f"  {row.experiment:>5} {gain:>+10.6f}  {mark if noise else '':15}"
                         f"  {one_line(row.description, 80)}")
            told.add(row.experiment)
    return lines if len(lines) > 1 else []


def left_out(rows: Sequence[Row]) -> list[str]:
    """What each kept change is worth in the final train.py: a heading, a line each, and the advice."""
    ranking = confirm.ranking(ledger.experiments(rows))
    lines = ["what each kept change is worth in the final train.py (taken out alone, test split):"]
    for number, description, gain, error in ranking:
        figure = f"{gain:+.6f} ± {error:.6f}".removesuffix(" ± nan")
        figure = "crashes without it" if math.isinf(gain) else figure
        lines.append(f"  {number:>5} {figure:26}  {one_line(description, 80)}")
    names = ", ".join(f"#{number}" for number, _, gain, error in ranking if gain < 2 * error)
    advice = f"Within noise, candidates for removal: {names}." if names else "None of them is within noise."
    if all(math.isnan(error) for *_, error in ranking):
        advice = "One seed each tells no noise: let confirm --each go on."
    return [*lines, advice] if ranking else []


def longer(rows: Sequence[Row]) -> list[str]:
    """Whether order and size of the gain stay where both are trained longer: a line a budget."""
    baseline, best = ends(rows).values()
    if baseline is best:
        return []
    noise, own_s, lines = ledger.sigma(ledger.experiments(rows)) or math.nan, best.own.budget, []
    before = (confirmed(rows) or [(baseline.val_bpb or math.nan) - best.val_bpb])[0]
    for budget_s in sorted({row.budget for row in best.rows} - {own_s}):
        sides = [e.values("test", budget_s) for e in (baseline, best)]
        if not all(sides):
            lines.append(f"At {budget_s:g} s one of the two has no number.")
            continue
        n, gain = min(map(len, sides)), statistics.fmean(sides[0]) - statistics.fmean(sides[1])
        error = noise * math.sqrt(2 / n)
        order = "the order stays" if gain * before > 0 else "the order turns"
        order = "within the noise of so few seeds" if abs(gain) < 2 * error else order
        lines.append(f"At {budget_s / own_s:g} times the budget ({n} seed{'s' * (n > 1)} each, test split) the gain is "
                     f"{gain:.6f} ± {error:.6f}, {gain / (before or math.nan):.0%} of the {before:.6f} at "
                     f"{own_s:g} s: {order}.".replace(" ± nan", ""))
    return lines


def write(folder: Path, rows: Sequence[Row], held: Archive, runs: Path | None = None) -> None:
    """Write progress.png and report.html."""
    noise = ledger.sigma(ledger.experiments(rows))
    png, svg = picture.draw(timeline(rows), noise, title(held.tag), headline(rows), curves(rows, runs))
    text = page(rows, held, runs, svg)
    place = runs if runs and runs.is_dir() else folder
    with TemporaryDirectory(dir=place, prefix=".report") as spare:  # two processes may write at a time
        for name, data in (("report.html", text.encode("utf-8", "replace")), ("progress.png", png)):
            Path(spare, name).write_bytes(data)
            Path(spare, name).replace(folder / name)


def title(tag: str) -> str:
    return one_line(f"autoresearch/{tag}".rstrip("/"), 80)


def page(rows: Sequence[Row], held: Archive, runs: Path | None = None, svg: str = "") -> str:
    """The whole page. The template escapes every value but the drawing."""
    from jinja2 import Template
    from markupsafe import Markup

    template = Template(Path(__file__).with_name("page.html").read_text("utf-8"), autoescape=True)
    history = ledger.experiments(rows)
    own = {moment.row.experiment: moment for moment in timeline(rows) if moment.is_own}
    return template.render(
        title=title(held.tag), held=held, told=as_json(rows, runs), svg=Markup(svg), history=history, own=own,
        keeps=keeps(rows), left_out=left_out(rows), longer=longer(rows), lessons=memory.read_lessons(runs),
        facts={e.number: memory.facts(runs, e.own) for e in in_detail(history)}, details=details(history, held, runs),
        limit=min(MAX_DIFF_CHARS, MAX_DIFFS_CHARS // (len(history) + 1)), line=one_line, words=words)
