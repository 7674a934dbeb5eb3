"""What is asked of a witness, and what its answers prove.

The trial has answered for every validation row as it stands; its loss of each token is known. The witness, a second
process that was told nothing, answers for the same rows, each cut at one place behind which the tokens are foreign.
What an honest model says of a token depends on the tokens before it and on its weights, so up to the cut the witness
must say what the trial said. Neither can prepare for it: the trial cannot know the cuts, which are drawn after it
has ended, and the witness cannot know what the trial saw.

At the last true place, just before the foreign tokens, the witness sees no future. A model that lowers its loss there
by looking ahead sees a foreign token instead, so the mean of max(0, witness - trial) over those places is at least what
looking ahead is worth. Negative differences count as 0: otherwise a trial could hide a leak by being a little worse
where it expects to be asked. Half of the cuts are uniform. The other half is drawn where the trial's loss is far below
the baseline's, since a rare leak gains most there: a complete leak at one place in 2 500 moves the mean by ten times
the bound. At all earlier places a difference of either sign betrays a model that looks further ahead, at other rows, or
at its own past. In a row without a cut the last place is the last true one.

| leak, n rows, b = BOUNDS[device].last | found with probability |
|---|---|
| s nats at every place, s > b | 1 |
| s nats in a share q of the rows | near 1 for q s > b |
| s nats in a share f of the places, by chance, s > n b | about 1 - (1 - f)^n with uniform cuts alone |
| whole, in a share f of the places, where the loss is highest | near 1 down to f = 1 / 10 000 |

tests/test_exam.py recomputes the table by simulation. Nothing of the bounds is taken from a trial.
"""

from dataclasses import dataclass

import numpy as np

from lab.ledger import Ending


@dataclass(frozen=True)
class Bounds:
    """What honest models of any kind move by in a second process, in nats."""

    last: float      # mean of (witness - trial) above 0, at the last true places
    differs: float   # from here on a token's loss counts as different
    share: float     # of the earlier places that may differ


BOUNDS = {
    "cpu": Bounds(last=2e-4, differs=1e-2, share=5e-3),
    "cuda": Bounds(last=1e-3, differs=2e-2, share=1e-2),  # by reasoning, not yet measured on a card
    "mps": Bounds(last=1e-3, differs=2e-2, share=1e-2),
}
LAST_SHARE = 0.02    # of the last true places may differ; it finds leaks that do not lower the loss
EVERYWHERE = 0.5     # share of earlier places beyond which learnt state is missing from the file


def draw_cuts(trial: np.ndarray, baseline: np.ndarray | None, counts: np.ndarray,
              rng: np.random.Generator) -> np.ndarray:
    """One cut a row, int (N,), in 1..T: the input tokens from it on will be foreign, none at T.

    trial, baseline: losses (N, T); counts: bool (N, T), false for targets that weigh nothing in the score. Without a
    baseline all cuts are uniform.
    """
    n_rows, n_places = trial.shape
    cuts = rng.integers(1, n_places + 1, n_rows)
    if baseline is None:
        return cuts
    # A cut at c hides the target of place c - 1. The last place has no future, but may depend on other rows.
    pays = np.where(counts, np.maximum(baseline.astype(np.float64) - trial, 0), 0) ** 2
    row_pays = pays.sum(1)
    # Weighted draw without replacement, by exponential keys (Efraimidis and Spirakis 2006).
    keys = rng.exponential(size=n_rows) / np.maximum(row_pays, 1e-30)
    chosen = np.argsort(keys)[: n_rows // 2]
    chosen = chosen[row_pays[chosen] > 0]
    at = (np.cumsum(pays[chosen], 1) < (rng.random(len(chosen)) * row_pays[chosen])[:, None]).sum(1)
    cuts[chosen] = np.minimum(at, n_places - 1) + 1
    return cuts


def questions(rows: np.ndarray, others: np.ndarray, cuts: np.ndarray, vocab_size: int,
              rng: np.random.Generator) -> np.ndarray:
    """Inputs (N, T) of rows (N, T + 1): behind each cut the end of one of `others` (M, T + 1), never the same token.

    others: training rows. The ends of other validation rows would reveal what was cut off there.
    """
    inputs = rows[:, :-1].astype(np.int64)
    strangers = others[rng.integers(len(others), size=len(rows)), :-1]
    behind = np.arange(inputs.shape[1]) >= cuts[:, None]
    asked = np.where(behind, strangers, inputs)
    cut = np.flatnonzero(cuts < inputs.shape[1])
    at = cut, cuts[cut]
    same = asked[at] == inputs[at]
    shift = rng.integers(1, vocab_size, len(cut))
    asked[at] = np.where(same, (asked[at] + shift) % vocab_size, asked[at])
    return asked


def verdict(trial: np.ndarray, witness: np.ndarray, cuts: np.ndarray,
            device: str) -> tuple[Ending, str]:
    """(SCORED, "") for an honest model, or how the trial ends and why; losses (N, T) of both."""
    bounds = BOUNDS[device]
    moved = witness.astype(np.float64) - trial
    earlier = np.arange(trial.shape[1]) < (cuts - 1)[:, None]
    share = float((np.abs(moved[earlier]) > bounds.differs).mean()) if earlier.any() else 0.0
    last = moved[np.arange(len(cuts)), cuts - 1]
    easier = float(np.maximum(last, 0).mean())
    last_share = float((np.abs(last) > bounds.differs).mean())
    if share > EVERYWHERE:
        return Ending.UNREPEATABLE, (f"differs everywhere: at {share:.0%} of the places a second process with its "
                                     "weights gave other losses: keep all that is learnt in parameters and buffers")
    if share > bounds.share:
        return Ending.FOUL, ("sees the future: later tokens, other rows or earlier questions changed what it said of "
                             f"earlier tokens, at {share:.2%} of the places")
    if easier > bounds.last:
        return Ending.FOUL, ("sees the future: the token before the foreign ones was easier for the trial by "
                             f"{easier:.2g} nats on average")
    if last_share > LAST_SHARE:
        return Ending.FOUL, ("sees the future: foreign tokens changed what it said of the token before them, in "
                             f"{last_share:.0%} of the rows")
    return Ending.SCORED, ""
