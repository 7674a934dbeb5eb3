"""One chronology of a session: what was known when each row was written, for prompt, report and display.

The order is that of results.tsv, since clocks are set back.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab.ledger import Experiment, Row, Status


@dataclass(frozen=True, slots=True)
class Moment:
    """One row on the validation split, and the incumbent's estimate around it."""

    row: Row
    is_own: bool           # the experiment's own row, not another trial of its commit
    place: int             # on an axis: its number, for a repeat the highest one so far
    against: int | None    # the incumbent that it was judged against; None for the baseline
    before: float | None   # that incumbent's estimate when the row was judged
    after: float | None    # the incumbent's estimate once the row counted
    n_trials: int          # trials behind `after`

    @property
    def delta(self) -> float | None:
        """val_bpb less the incumbent's estimate at the time; negative is a gain."""
        is_known = self.row.val_bpb is not None and self.before is not None
        return self.row.val_bpb - self.before if is_known else None


def timeline(rows: Sequence[Row]) -> list[Moment]:
    """Every row that counts on the validation split, in the order of the file."""
    moments: list[Moment] = []
    so_far: dict[int, list[Row]] = {}  # of each experiment
    kept, highest = None, 0
    for row in rows:
        if row.split != "val" or row.status is Status.BUSY:
            continue
        is_own = row.experiment not in so_far
        highest = max(highest, row.experiment)
        # With several trials in flight the parent may no longer be the incumbent that it is judged against.
        rival = kept if is_own or row.status is Status.KEEP else None
        before, _ = _estimate(so_far, rival)
        so_far.setdefault(row.experiment, []).append(row)
        kept = row.experiment if row.status is Status.KEEP else kept
        after, n_trials = _estimate(so_far, kept)
        place = row.experiment if is_own else highest
        moments.append(Moment(row, is_own, place, rival, before, after, n_trials))
    return moments


def _estimate(so_far: Mapping[int, list[Row]], number: int | None) -> tuple[float | None, int]:
    """Mean and number of an experiment's trials."""
    values = Experiment(number, tuple(so_far[number])).values("val") if number in so_far else []
    return (statistics.fmean(values) if values else None), len(values)
