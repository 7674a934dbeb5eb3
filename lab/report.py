"""The morning: a pure reader of results.tsv that draws progress.png, writes report.html and says the same as text.

Promises: what a model wrote is shown as text and never as markup; both files appear whole or not at all; the headline
is what fresh seeds on the test split measured, or says that nobody measured it yet. lab/page.html is the page's
frame. Does not cover: running trials; `diffs_of` is all that it asks of git.
"""

import html
import json
import math
import os
import platform
import re
import statistics
import subprocess
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lab import confirm, ledger
from lab.ledger import Experiment, Row, one_line

MAX_LABELS = 40              # keeps that progress.png names, the largest gains first
MAX_DIFF_CHARS = 20_000      # of one experiment in report.html
MAX_DIFFS_CHARS = 5_000_000  # of all, the newest first: the page stays under 20 MB
STATUSES = ("keep", "discard", "crash", "repeat")
COLORS = {"keep": "#009E73", "discard": "#8a8a8a", "crash": "#D55E00", "repeat": "#CC79A7",
          "line": "#0072B2"}  # told apart by colour-blind eyes (Okabe-Ito), and by shape


@dataclass(frozen=True)
class Step:
    """One row, and the incumbent's estimate around it."""

    row: Row
    own: bool                # an experiment's own row, not another measurement
    x: int                   # ideas tried before or with this row, less one: its place on the axis
    before: float | None     # the incumbent's estimate when the row was judged
    after: float | None      # ... and once it counted
    n_trials: int            # behind `after`


def walk(history: Sequence[Experiment]) -> list[Step]:
    """The rows in the order of time, each with the incumbent's estimate before and after it."""
    rows = sorted((row for experiment in history for row in experiment.rows), key=lambda row: row.when)
    steps: list[Step] = []
    values: dict[int, list[float]] = {}
    best, x = -1, -1
    for row in rows:
        own = row.experiment not in values
        x += own and row.split == "val"
        before = _mean(values.get(best, []))
        mine = values.setdefault(row.experiment, [])
        if row.split == "val" and row.val_bpb is not None:
            mine.append(row.val_bpb)
        if own and row.status == "keep":
            best = row.experiment
        now = values.get(best, [])
        steps.append(Step(row, own, x, before, _mean(now), len(now)))
    return steps


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def confirmed(history: Sequence[Experiment]) -> tuple[float, float, int] | None:
    """(gain, its standard error, seeds a side) of the incumbent over the baseline on the test split, if measured."""
    best = ledger.incumbent(history)
    if best is None or best.number == history[0].number:
        return None
    sides = [confirm.test_values(experiment) for experiment in (history[0], best)]
    n = min(map(len, sides))
    if n < 2:
        return None
    error = math.sqrt(sum(statistics.variance(side) / len(side) for side in sides))
    return statistics.fmean(sides[0]) - statistics.fmean(sides[1]), error, n


def headline(history: Sequence[Experiment]) -> str:
    """The figure of the night in one sentence, or why there is none."""
    best = ledger.incumbent(history)
    if best is None:
        return "Nothing is measured yet."
    if best.number == history[0].number:
        return "No experiment was kept: the baseline stands."
    if result := confirmed(history):
        gain, error, n = result
        figure = f"{gain:.6f} ± {error:.6f} bits per byte ({n} fresh seeds each, test split)"
        if gain > 2 * error:
            return f"Confirmed gain {figure}."
        return f"No gain confirmed: {figure}, " + ("the incumbent is worse than the baseline." if gain < -2 * error else
                                                   "within the noise.")
    gain = (history[0].val_bpb or math.nan) - (best.val_bpb or math.nan)
    return (f"Not confirmed yet: {gain:.6f} below the baseline on the validation split, which flatters, "
            "for the lowest was picked. python agent.py confirm measures it.")


def summary(history: Sequence[Experiment], runs: Path | None = None) -> str:
    """The morning's text."""
    if not history:
        return headline(history)
    facts = [f"{name + ':':12} {value}" for name, value in _facts(history, runs)]
    kept = [f"  {number:>5} {gain:>+10.6f}  {mark:12}  {text}" for number, gain, mark, text in _keeps(history)]
    head = ["what each keep gave, against the incumbent at the time, on the validation split:"] if kept else []
    return "\n".join([headline(history), "", *facts, "", *head, *kept, "", *left_out(history)]).rstrip()


def left_out(history: Sequence[Experiment]) -> list[str]:
    """What each kept change is worth in the final train.py: a heading, a line each, and what that suggests."""
    ranking = confirm.ranking(history)
    if not ranking:
        return []
    lines = [f"  {w.number:>5} {_worth(w):26}  {one_line(w.description, 80)}" for w in ranking]
    return ["what each kept change is worth in the final train.py (taken out alone, test split):", *lines,
            removal_advice(ranking)]


def _worth(worth: confirm.Worth) -> str:
    if worth.gain is None:
        return "crashes without it"
    return f"{worth.gain:+.6f}" + ("" if worth.error is None else f" ± {worth.error:.6f}")


def removal_advice(ranking: Sequence[confirm.Worth]) -> str:
    """Which changes are candidates for removal, in a sentence."""
    if all(worth.error is None for worth in ranking):
        return "One seed each tells no noise: let confirm --each go on."
    names = ", ".join(f"#{worth.number}" for worth in ranking if worth.within_noise)
    return f"Within noise, candidates for removal: {names}." if names else "None of them is within noise."


def _facts(history: Sequence[Experiment], runs: Path | None) -> list[tuple[str, str]]:
    """(name, text) of everything that is one line, for the text and for the page."""
    rows = [row for experiment in history for row in experiment.rows]
    best, first, sigma, ideas = ledger.incumbent(history), history[0], ledger.sigma(history), confirm.ideas(history)
    count = {status: sum(e.status == status for e in ideas) for status in STATUSES}
    left = f"; {len(history) - len(ideas)} changes left out again" if len(ideas) < len(history) else ""
    facts = [("experiments", f"{len(ideas)}: {count['keep']} kept, {count['discard']} discarded, "
                             f"{count['crash']} crashed; {len(rows) - len(history)} repeats{left}")]
    if first.val_bpb is not None:
        facts.append(("baseline", f"{first.val_bpb:.6f}"))
    if best is not None and best.val_bpb is not None:
        n = sum(row.split == "val" and row.val_bpb is not None for row in best.rows)
        facts.append(("incumbent", f"{best.val_bpb:.6f} (mean of {n}), experiment {best.number}, {best.commit[:7]}: "
                                   f"{one_line(best.own.description, 80)}"))
    facts.append(("noise", "not measured yet" if sigma is None else f"sigma {sigma:.6f} between seeds"))
    facts += _time_and_money(rows, runs)
    for name, key in (("machine", "device"), ("data", "data"), ("sandbox", "sandbox"), ("budget", "budget")):
        if values := sorted({str(getattr(row, key)) for row in rows} - {"", "0.0", "0"}):
            facts.append((name, ", ".join(values) + (" s" if key == "budget" else "")))
    return facts


def _time_and_money(rows: Sequence[Row], runs: Path | None) -> list[tuple[str, str]]:
    facts = []
    trained, total = sum(row.train_seconds for row in rows), sum(row.total_seconds for row in rows)
    if total:
        text = f"{_hours(trained)} of training in {_hours(total)} of trials"
        if span := _span_s(rows):
            text += f"; {100 * trained / span:.0f} % of the {_hours(span)} since the start went into training, "
            text += f"{3600 * len(rows) / span:.1f} trials an hour"
        facts.append(("time", text))
    if parts := _phases(runs):
        facts.append(("by part", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items())))
    by_source: dict[str, list[float]] = {}
    for row in rows:
        if row.status != "repeat" and row.source not in ("", confirm.LEFT_OUT):
            by_source.setdefault(row.source, []).append(row.usd)
    if by_source:
        facts.append(("money", f"${sum(row.usd for row in rows):.2f}: " + ", ".join(
            f"{one_line(source, 40)} ${sum(usd):.2f} for {len(usd)}" for source, usd in by_source.items())))
    return facts


def _span_s(rows: Sequence[Row]) -> float:
    """Seconds from the start of the first trial to the end of the last; 0 where the rows do not say."""
    try:
        ends = [(datetime.fromisoformat(row.when.replace("Z", "+00:00")), row.total_seconds) for row in rows]
    except ValueError:
        return 0.0
    first, last = min(ends), max(ends)
    return (last[0] - first[0]).total_seconds() + first[1]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min"


def _phases(runs: Path | None) -> dict[str, float]:
    """Seconds by part of a trial, summed over the run folder's JSON files; a damaged file counts for nothing."""
    parts: dict[str, float] = {}
    for path in sorted(runs.glob("*.json")) if runs else []:
        try:
            phases = json.loads(path.read_text(encoding="utf-8"))["phases"]
            for name, seconds in phases.items():
                parts[one_line(name, 20)] = parts.get(one_line(name, 20), 0.0) + float(seconds)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return parts


def _keeps(history: Sequence[Experiment]) -> list[tuple[int, float, str, str]]:
    """(number, gain, "" or "within noise", description) of every keep but the baseline."""
    sigma = ledger.sigma(history)
    kept = []
    for step in walk(history):
        if step.own and step.row.status == "keep" and step.before is not None and step.row.val_bpb is not None:
            gain = step.before - step.row.val_bpb
            mark = "within noise" if sigma and gain < 2 * math.sqrt(2) * sigma else ""  # a difference of two trials
            kept.append((step.row.experiment, gain, mark, one_line(step.row.description, 80)))
    return kept


def diffs_of(root: Path, tag: str) -> dict[int, str]:
    """What each experiment of a session changed in train.py, by number; two calls of git for all of them."""
    prefix = f"refs/autoresearch/{tag}/"
    refs = _git(root, "for-each-ref", "--format=%(objectname) %(refname)", prefix) if tag else ""
    numbers = {line.split()[0]: int(line.rpartition("/")[2]) for line in refs.splitlines()}
    if not numbers:
        return {}
    text = _git(root, "diff-tree", "--stdin", "-p", "--no-color", "--no-ext-diff", "--", "train.py",
                stdin="\n".join(numbers) + "\n")
    diffs: dict[int, list[str]] = {}
    number = None
    for line in text.split("\n"):
        if line in numbers:
            number = numbers[line]
            diffs[number] = []
        elif number is not None:
            diffs[number].append(line)
    return {number: "\n".join(lines[4:]) for number, lines in diffs.items()}


def _git(root: Path, *words: str, stdin: str = "") -> str:
    return subprocess.run(["git", *words], cwd=root, input=stdin, capture_output=True, text=True, encoding="utf-8",
                          errors="replace").stdout


def write(folder: Path, history: Sequence[Experiment], program: str, diffs: Mapping[int, str],
          runs: Path | None = None) -> None:
    """Write progress.png and report.html; diffs: experiment number -> unified diff of its train.py."""
    title = f"autoresearch/{runs.name}" if runs else "autoresearch"
    _replace(folder / "report.html", page(history, title, diffs, program, runs).encode("utf-8", "replace"))
    _replace(folder / "progress.png", picture(history, title))


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# progress.png and the chart's axis


def _range(steps: Sequence[Step]) -> tuple[float, float]:
    """Lowest and highest val_bpb worth drawing: outliers stand on the rim, not in the scale."""
    values = sorted(step.row.val_bpb for step in steps if step.row.val_bpb is not None and step.row.split == "val")
    if not values:
        return 0.0, 1.0
    first = next(step.row.val_bpb for step in steps if step.row.val_bpb is not None)
    high = max(first, values[int(0.9 * (len(values) - 1))])
    high = high if high - values[0] > 0 else values[0] * 1.001 + 1e-6
    return values[0], high + 0.06 * (high - values[0])


def picture(history: Sequence[Experiment], title: str) -> bytes:
    """progress.png: every trial a point, the incumbent's estimate a step line with its noise band, keeps named."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [step for step in walk(history) if step.row.split == "val"]
    figure = Figure(figsize=(14, 7.5), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # inches
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    low, high = _range(steps)
    rim = high + 0.06 * (high - low)
    room = 0.05 + 0.02 * min(20, sum(e.status == "keep" for e in history))  # for the names below the line
    axes.set_ylim(low - room * (high - low), rim + 0.05 * (high - low))
    last = max((step.x for step in steps), default=0)
    axes.set_xlim(-0.02 * max(last, 5), max(1.02 * last, last + 0.6, 5))
    line = _draw_estimate(axes, steps, ledger.sigma(history))
    _draw_points(axes, steps, rim)
    kept = sum(e.status == "keep" for e in history)
    figure.suptitle(f"{one_line(title, 60)}: {len(confirm.ideas(history))} experiments, {kept} kept", x=0.01, ha="left",
                    fontweight="bold", parse_math=False)
    axes.set_title(headline(history), loc="left", fontsize=10, color="#555555", parse_math=False)
    axes.set_xlabel("experiment")
    axes.set_ylabel("val_bpb (lower is better)")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if steps:
        figure.legend(loc="outside upper right", fontsize=9, ncols=7, frameon=False)
        canvas.draw()
        figure.set_layout_engine("none")  # the names are placed in pixels: nothing may move any more
        _draw_labels(axes, canvas.get_renderer(), steps, line)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_estimate(axes, steps: Sequence[Step], sigma: float | None) -> list[tuple[float, float]]:
    """The step line of the incumbent's estimate, its corners returned, and the band of one standard error."""
    known = [step for step in steps if step.after is not None]
    if not known:
        return []
    x = [*(step.x for step in known), known[-1].x + 0.5]
    y = [*(step.after for step in known), known[-1].after]
    if sigma:
        half = [sigma / math.sqrt(step.n_trials) for step in (*known, known[-1])]
        axes.fill_between(x, [v - h for v, h in zip(y, half, strict=True)],
                          [v + h for v, h in zip(y, half, strict=True)],
                          step="post", color=COLORS["line"], alpha=0.25, linewidth=0, label="± its standard error")
    axes.step(x, y, where="post", color=COLORS["line"], linewidth=1.8, label="incumbent's estimate", zorder=3)
    return list(zip(x, y, strict=True))


def _draw_points(axes, steps: Sequence[Step], rim: float) -> None:
    size = min(60.0, max(6.0, 4000 / max(len(steps), 1)))
    marks = {"discard": ("o", 0.7, 2), "repeat": ("D", 0.9, 4), "crash": ("x", 1.0, 4), "keep": ("o", 1.6, 5)}
    inside = [step for step in steps if step.row.val_bpb is None or step.row.val_bpb <= rim]
    for status, (marker, scale, order) in marks.items():
        mine = [step for step in inside if _status(step) == status]
        if not mine:
            continue
        y = [rim if step.row.val_bpb is None else step.row.val_bpb for step in mine]
        edges = {} if marker == "x" else {"edgecolors": "black" if status == "keep" else "none", "linewidths": 0.6}
        axes.scatter([step.x for step in mine], y, s=size * scale, marker=marker, color=COLORS[status], label=status,
                     alpha=0.55 if status == "discard" else 1.0, zorder=order, **edges)
    if above := [step.x for step in steps if step.row.val_bpb is not None and step.row.val_bpb > rim]:
        axes.scatter(above, [rim] * len(above), s=size, marker="^", color=COLORS["discard"], label="above the scale")


def _status(step: Step) -> str:
    if step.row.val_bpb is None:
        return "crash"
    return step.row.status if step.own and step.row.split == "val" and step.row.status in STATUSES else "repeat"


def _draw_labels(axes, renderer, steps: Sequence[Step], line: Sequence[tuple[float, float]]) -> None:
    """Name the keeps in the free space below the step line, on thin leaders: the largest gains, as many as fit."""
    keeps = [s for s in steps if s.own and s.row.status == "keep" and None not in (s.row.val_bpb, s.before)]
    keeps = sorted(keeps, key=lambda s: s.before - s.row.val_bpb, reverse=True)[:MAX_LABELS]
    labels = {s.x: axes.text(0, 0, one_line(s.row.description, 40) or f"experiment {s.row.experiment}", fontsize=8,
                             color="#222222", zorder=6, parse_math=False) for s in keeps}
    sizes = {x: (label.get_window_extent(renderer).width, label.get_window_extent(renderer).height)
             for x, label in labels.items()}
    corners, frame = [tuple(corner) for corner in axes.transData.transform(line)], axes.get_window_extent(renderer)
    named: list[Step] = []
    places: dict[int, tuple[float, float, float, float]] = {}
    for keep in keeps:
        more = _places(axes, [*named, keep], sizes, corners, frame)
        if more is not None:
            named, places = [*named, keep], more
    for x, label in labels.items():
        if x not in places:
            label.remove()
            continue
        left, bottom, point_x, point_y = places[x]
        ends = axes.transData.inverted().transform([(left, bottom), (point_x, point_y - 4), (point_x, bottom + 1)])
        label.set_position(ends[0])
        label.set_verticalalignment("bottom")
        axes.plot(ends[1:, 0], ends[1:, 1], color="#999999", linewidth=0.6, zorder=1)


def _places(axes, keeps: Sequence[Step], sizes: Mapping[int, tuple[float, float]],
            corners: Sequence[tuple[float, float]], frame) -> dict[int, tuple[float, float, float, float]] | None:
    """Left and bottom of each name and its point, in pixels, by x; None when one of them finds no room."""
    boxes: list[tuple[float, float, float, float]] = []
    places = {}
    for step in sorted(keeps, key=lambda s: s.x, reverse=True):  # from the right: no leader is cut off
        (x, y), (width, height) = axes.transData.transform((step.x, step.row.val_bpb)), sizes[step.x]
        place = _place(x, y, width, height, boxes, corners, frame)
        if place is None:
            return None
        left, bottom = place
        places[step.x] = (left, bottom, x, y)
        boxes += [(left - 2, bottom, left + width + 2, bottom + height), (x - 1, bottom, x + 1, y - 6)]
    return places


def _place(x: float, y: float, width: float, height: float, boxes: Sequence[tuple[float, float, float, float]],
           corners: Sequence[tuple[float, float]], frame) -> tuple[float, float] | None:
    """Left and bottom, in pixels, of the nearest free place below (x, y) whose leader crosses nothing."""
    bottom = y - 2 * height
    while bottom > frame.y0 + 4:
        for left in (x + 3, x - width - 3):
            box = (left, bottom, left + width, bottom + height)
            leader = (x - 1, bottom, x + 1, y - 6)
            inside = frame.x0 <= left and left + width <= frame.x1
            if inside and not any(_overlap(part, other) for part in (box, leader) for other in boxes):
                begin = bisect_right(corners, (left, math.inf)) - 1
                over = corners[max(begin, 0) : bisect_right(corners, (box[2] + 6, math.inf))]  # the line above the box
                if box[3] + 4 < min((corner[1] for corner in over), default=math.inf):
                    return left, bottom
        bottom -= height / 2
    return None


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# report.html


def page(history: Sequence[Experiment], title: str, diffs: Mapping[int, str], program: str,
         runs: Path | None = None) -> str:
    """The whole page; every value goes through html.escape, and the frame is filled in one pass."""
    steps = walk(history)
    facts = _facts(history, runs) if history else []
    versions = [f"{name} {_version(name)}" for name in ("torch", "anthropic", "optuna")]
    facts.append(("versions", ", ".join([f"python {platform.python_version()}", *versions])))
    parts = {
        "title": html.escape(one_line(title, 80)),
        "headline": html.escape(headline(history)),
        "facts": "".join(f"<dt>{html.escape(name)}<dd>{html.escape(text)}" for name, text in facts),
        "chart": chart(steps, ledger.sigma(history)),
        "left_out": _left_out_table(confirm.ranking(history)),
        "keeps": "".join(f"<tr><td>{number}<td>{gain:+.6f}<td>{mark}<td>{html.escape(text)}"
                         for number, gain, mark, text in _keeps(history)),
        "rows": "\n".join(_table(history, {s.row.experiment: s for s in steps if s.own}, diffs)),
        "program": html.escape(program),
    }
    frame = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], frame)


def _left_out_table(ranking: Sequence[confirm.Worth]) -> str:
    if not ranking:
        return ""
    rows = "".join(f"<tr><td>{w.number}<td>{_worth(w)}<td>{'within noise' if w.within_noise else ''}"
                   f"<td>{html.escape(one_line(w.description, 80))}" for w in ranking)
    return ("<p>In the final train.py, each taken out alone, on the test split: "
            f'<b>{html.escape(removal_advice(ranking))}</b></p><div class="wide"><table id="left"><thead><tr><th>#'
            f"<th>worse without it by<th><th>change</thead><tbody>{rows}</tbody></table></div>")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def chart(steps: Sequence[Step], sigma: float | None = None) -> str:
    """Inline SVG, one <g class="p"> with a tooltip a row; the band is one standard error of the estimate."""
    width, height, margin = 1000.0, 360.0, (70.0, 990.0, 26.0, 330.0)  # left, right, top, bottom
    low, high = _range(steps)
    last = max((step.x for step in steps), default=0) or 1

    def at(x: float, value: float | None) -> tuple[float, float]:
        share = -0.06 if value is None or value > high else (high - value) / (high - low) * 0.95
        return (margin[0] + (margin[1] - margin[0]) * x / last,
                min(margin[2] + (margin[3] - margin[2]) * share + 12, height - 22))

    svg = [f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="val_bpb by experiment">']
    for i in range(5):
        value = low + (high - low) * i / 4
        _, y = at(0, value)
        svg.append(f'<line class="grid" x1="{margin[0]:g}" x2="{margin[1]:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
                   f'<text x="{margin[0] - 8:g}" y="{y + 4:.1f}" text-anchor="end">{value:.4f}</text>')
    unit = 10 ** math.floor(math.log10(max(last, 10) / 5))
    for x in range(0, last + 1, next(unit * k for k in (1, 2, 5, 10) if unit * k * 8 >= last)):
        svg.append(f'<text x="{at(x, None)[0]:.1f}" y="{height - 4:g}" text-anchor="middle">{x}</text>')
    known = [step for step in steps if step.after is not None]
    changes = [step for last, step in zip([None, *known], known, strict=False) if last is None or
               (last.after, last.n_trials) != (step.after, step.n_trials)]
    for one, two in zip(changes, [*changes[1:], *known[-1:]], strict=True) if sigma else ():
        half = sigma / math.sqrt(one.n_trials)
        (x, y), (right, foot) = at(one.x, min(high, one.after + half)), at(two.x, one.after - half)
        svg.append(f'<rect class="band" x="{x:.1f}" y="{y:.1f}" width="{right - x:.1f}" height="{foot - y:.1f}"/>')
    corners = [at(step.x, step.after) for step in known]
    path = "".join(f"H{x:.1f}V{y:.1f}" if i else f"M{x:.1f} {y:.1f}" for i, (x, y) in enumerate(corners))
    svg.append(f'<path class="estimate" d="{path}"/>' if path else "")
    order = {"discard": 0, "repeat": 1, "crash": 2, "keep": 3}
    svg += [_point(step, *at(step.x, step.row.val_bpb)) for step in sorted(steps, key=lambda s: order[_status(s)])]
    return "\n".join([*svg, "</svg>"])


def _point(step: Step, x: float, y: float) -> str:
    row, status = step.row, _status(step)
    shape = {"crash": "M-4-4L4 4M-4 4L4-4", "repeat": "M0-4L4 0L0 4L-4 0Z"}.get(status)
    drawn = f'<path d="{shape}"/>' if shape else f'<circle r="{5 if status == "keep" else 3}"/>'
    value = "crash" if row.val_bpb is None else f"{row.val_bpb:.6f}"
    split = "" if row.split == "val" else f" on {one_line(row.split, 10)}"
    words = html.escape(f"{row.experiment} {status} {value}{split}: {one_line(row.description, 160)}")
    return (f'<g class="p {status}" transform="translate({x:.1f} {y:.1f})" data-e="{row.experiment}">{drawn}'
            f"<title>{words}</title></g>")


def _table(history: Sequence[Experiment], own: Mapping[int, Step], diffs: Mapping[int, str]) -> Iterable[str]:
    """One <tr> an experiment, the newest first, its note and its diff folded under the description."""
    left = MAX_DIFFS_CHARS
    for experiment in reversed(history):
        row, step = experiment.own, own[experiment.number]
        value = "" if experiment.val_bpb is None else f"{experiment.val_bpb:.6f}"
        delta = "" if row.val_bpb is None or step.before is None else f"{row.val_bpb - step.before:+.6f}"
        diff = diffs.get(experiment.number, "")
        shown = diff[: min(MAX_DIFF_CHARS, max(left, 0))]
        left -= len(shown)
        status = row.status if row.status in STATUSES else "other"
        cells = (value, delta, f'<b class="{status}">{html.escape(row.status)}</b>',
                 _description(experiment, shown, len(diff) - len(shown)), html.escape(one_line(row.source, 40)),
                 f"{row.memory_gb:.1f}", f"{row.tokens_m:.1f}", f"{row.total_seconds:.0f}", f"{row.usd:.3f}",
                 f"{len(experiment.rows) - 1}")
        yield f'<tr id="e{experiment.number}" data-s="{status}"><td>{experiment.number}<td>' + "<td>".join(cells)


def _description(experiment: Experiment, diff: str, n_cut: int) -> str:
    row = experiment.own
    text = html.escape(one_line(row.description)) or "(no description)"
    facts = [("note: ", row.note), ("commit ", row.commit), ("parent ", row.parent), ("at ", row.when)]
    again = experiment.rows if row.split != "val" else experiment.rows[1:]
    facts += [(f"again on {r.split}, seed {r.seed}: ", f"{r.val_bpb or r.note}") for r in again]
    lines = [html.escape(one_line(name + fact)) for name, fact in facts if fact]
    cut = f"\n... {n_cut} more characters: git show {experiment.commit[:12]}" if n_cut else ""
    body = f"<pre>{_colored(diff)}{html.escape(cut)}</pre>" if diff or cut else ""
    return f"<details><summary>{text}</summary><p>{'<br>'.join(lines)}</p>{body}</details>" if lines or body else text


def _colored(diff: str) -> str:
    marks = {"+": "ins", "-": "del"}
    return "\n".join(f"<{mark}>{html.escape(line)}</{mark}>" if (mark := marks.get(line[:1])) else html.escape(line)
                     for line in diff.splitlines())
