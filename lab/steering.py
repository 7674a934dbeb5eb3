"""program.md: how the user steers. It is read again before each proposal."""

import re
from collections.abc import Callable
from pathlib import Path

from lab.ledger import SetupError

MOST_BYTES = 1 << 20  # the prompt quotes 20 000 characters


def read_program(root: Path) -> str:
    """program.md as it stands. Raises SetupError when there is nothing to steer by."""
    mend = "write what to research, or restore it with git checkout -- program.md"
    try:
        data = (root / "program.md").read_bytes()
        text = data.decode()
    except OSError:
        raise SetupError(f"program.md cannot be read: {mend}") from None
    except UnicodeDecodeError:
        raise SetupError("program.md is not UTF-8 text: save it as UTF-8") from None
    if not text.strip():
        raise SetupError(f"program.md is empty: {mend}")
    if len(data) > MOST_BYTES:
        raise SetupError(f"program.md has {len(data)} bytes, more than {MOST_BYTES}: shorten it")
    return text


class Steering:
    """program.md while a session runs: what cannot be read for a while stops nothing."""

    def __init__(self, root: Path, say: Callable[[str], None]):
        self.root, self.say = root, say
        self.text = read_program(root)  # as it could last be read
        self.fault = ""                 # why it cannot be read now

    def read(self) -> str:
        """program.md as it is now, or as it could last be read."""
        try:
            self.text, self.fault = read_program(self.root), ""
        except SetupError as error:
            if str(error) != self.fault:
                self.say(f"{error}; its last text steers until then")
            self.fault = str(error)
        return self.text


def directions(program: str) -> str:
    """The section of program.md that steers; all of it where there is no such section."""
    found = re.search(r"(?ms)^## Directions\s*$(.*?)(?=^## |\Z)", program)
    return found[1].strip() if found else program.strip()
