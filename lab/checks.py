"""What must hold while a session runs: the fixed files, and a machine on which the incumbent still
starts.

Promises: a fault of the user's or of the machine is a SetupError before it becomes a row.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from lab.corpus import Data
from lab.ledger import Ending, SetupError, Status, Trial, one_line
from lab.session import Session


def fixed_files(root: Path, data: Data) -> dict[str, str]:
    """Name and content hash of everything that no experiment may change."""
    code = [root / "prepare.py", root / "agent.py", *sorted((root / "lab").glob("*.py"))]
    paths = [*code, data.folder / "manifest.json"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def check_fixed(before: Mapping[str, str], now: Mapping[str, str], tag: str) -> None:
    if changed := [name for name, digest in now.items() if before.get(name) != digest]:
        raise SetupError(f"{', '.join(changed)} changed while the session ran, so numbers before and after do not "
                         f"compare; restore it, or start again with --tag {tag}-2")


def check_machine(session: Session, trial: Trial, starts: Callable[[], bool], say: Callable[[str], None]) -> None:
    """Raise SetupError when the machine is at fault, not the candidate: the incumbent does not start either.

    Asked after a failure of the machine, and after two trials in a row that ended before they trained.
    """
    known, last = session.history[0].own.device if session.history else "", session.rows[-1:]
    if known and trial.device != known:
        raise SetupError(f"this session was measured on {known}, this machine has {trial.device}; start another with "
                         f"--tag {session.tag}-2")
    never_trained = trial.crashed and trial.train_seconds == 0
    twice = never_trained and any(row.status == Status.CRASH and row.train_seconds == 0 for row in last)
    if trial.ending != Ending.MACHINE and not twice:
        return
    if session.incumbent:
        say(f"{one_line(trial.reason, 200)}: does the incumbent still start?")
    if session.incumbent is None or not starts():
        raise SetupError(f"the machine is at fault ({one_line(trial.reason, 200)}): look after GPU and "
                         "disk (nvidia-smi, df), then run the same command again; the experiment does not count")
