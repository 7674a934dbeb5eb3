"""One drawing of a session, as progress.png and as the inline SVG of report.html.

Promises: every trial on the validation split is one point, in the order of the file. In the SVG text is text, no
address is referred to, colours are the page's CSS variables, and each point carries its experiment and value for the
page's script. A value far above the rest is drawn on the rim and does not set the scale.
"""

import math
import re
from collections.abc import Mapping, Sequence
from io import BytesIO

from lab.ledger import one_line
from lab.timeline import Moment

COLORS = {"keep": "#009E73", "discard": "#8A8A8A", "crash": "#D55E00", "repeat": "#CC79A7",
          "line": "#0072B2"}  # told apart by colour-blind eyes (Okabe-Ito), and by shape
PAGE_COLORS = COLORS | {"ink": "#000000", "rule": "#DCDFE4"}  # CSS variable -> what stands for it in the drawing
MARKERS = {"discard": "o", "repeat": "D", "crash": "x", "keep": "o"}  # in the order in which they are drawn
MAX_NAMES = 15              # keeps that are named, the largest gains first
NAME_CHARS = 28
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "same bytes", "font.sans-serif": "DejaVu Sans"}


def draw(moments: Sequence[Moment], sigma: float | None, title: str, subtitle: str) -> tuple[bytes, str]:
    """(PNG, SVG element) of a session; sigma is the noise of one trial where it is known."""
    import matplotlib
    from matplotlib.figure import Figure

    png, svg = BytesIO(), BytesIO()
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(12, 6), layout="constrained")
        points = _draw(figure.add_subplot(), moments, sigma)
        figure.savefig(svg, format="svg", transparent=True)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", parse_math=False)
        figure.axes[0].set_title(subtitle, loc="left", fontsize=10, parse_math=False)
        figure.legend(loc="outside lower center", fontsize=9, ncols=7, frameon=False)
        figure.savefig(png, format="png", dpi=120)
    return png.getvalue(), _inline(svg.getvalue().decode(), points)


def _draw(axes, moments: Sequence[Moment], sigma: float | None) -> dict[str, list[Moment]]:
    """Every trial a point, the incumbent's estimate a line, keeps named; return the points by status."""
    low, high = scale([m.row.val_bpb for m in moments if m.row.val_bpb is not None])
    rim, last = high + 0.06 * (high - low), max([m.place for m in moments], default=0)
    axes.set_xlim(-0.08 * max(last, 5), max(1.02 * last, 5))  # names need room at the left and below
    axes.set_ylim(low - 0.3 * (high - low), rim + 0.03 * (high - low))
    axes.set(xlabel="experiment", ylabel="val_bpb (lower is better)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(axis="y", color=PAGE_COLORS["rule"])
    axes.spines[["top", "right"]].set_visible(False)
    _draw_estimate(axes, moments, sigma)
    size = min(7.0, max(2.5, 60 / math.sqrt(len(moments) + 1)))
    points = {status: [m for m in moments if _status(m) == status] for status in MARKERS}
    for order, (status, marker) in enumerate(MARKERS.items(), start=3):
        x = [moment.place for moment in points[status]]
        y = [rim if m.row.val_bpb is None else min(m.row.val_bpb, rim) for m in points[status]]
        axes.plot(x, y, marker, color=COLORS[status], markersize=size * (1.3 if status == "keep" else 1),
                  label=status, alpha=0.6 if status == "discard" else 1, zorder=order, gid=f"points-{status}")
    _draw_names(axes, points["keep"], last)
    return points


def scale(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest val_bpb worth a scale: the baseline's, or what one in ten exceeds."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite[0], sorted(finite)[int(0.9 * (len(finite) - 1))])
    return low, high if high > low else low * 1.01 + 0.01


def _status(moment: Moment) -> str:
    if moment.row.val_bpb is None:
        return "crash"
    return str(moment.row.status) if moment.is_own else "repeat"


def _draw_estimate(axes, moments: Sequence[Moment], sigma: float | None) -> None:
    """A line, and a band of one standard error where the noise is known."""
    known = [moment for moment in moments if moment.after is not None]
    x, y = [moment.place for moment in known], [moment.after for moment in known]
    axes.step(x, y, where="post", color=COLORS["line"], linewidth=1.8, label="incumbent's estimate", zorder=2)
    if sigma:
        errors = [sigma / math.sqrt(moment.n_trials) for moment in known]
        lower, upper = ([v + sign * e for v, e in zip(y, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, lower, upper, step="post", color=COLORS["line"], alpha=0.25, linewidth=0,
                          label="± its standard error")


def _draw_names(axes, keeps: Sequence[Moment], last: int) -> None:
    """Hang the names of the largest gains from their points, down to the left: a falling line leaves room there."""
    named: list[int] = []
    for moment in sorted((m for m in keeps if m.delta is not None), key=lambda m: m.delta):
        if len(named) < MAX_NAMES and all(abs(moment.place - place) > 0.02 * last for place in named):
            named.append(moment.place)
            axes.annotate(one_line(moment.row.description, NAME_CHARS), (moment.place, moment.row.val_bpb), (-3, -4),
                          textcoords="offset points", rotation=30, rotation_mode="anchor", ha="right", va="top",
                          fontsize=8, parse_math=False).set_in_layout(False)


def _inline(svg: str, points: Mapping[str, Sequence[Moment]]) -> str:
    """The <svg> element alone, in the page's colours, its points marked for the page's script."""
    svg = re.sub("<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    for name, color in PAGE_COLORS.items():
        svg = svg.replace(color.lower(), f"var(--{name})")

    def mark(group: re.Match) -> str:
        words = (f'<use class="p {group[1]}" data-e="{m.row.experiment}" data-v="{m.row.val_bpb or ""}"'
                 for m in points[group[1]])
        return re.sub("<use", lambda _: next(words), group[0])

    return re.sub(r'<g id="points-(\w+)">.*?</g>', mark, svg, flags=re.DOTALL)
