"""Stand-ins that are real programs: a train.py that learns in a fraction of a second, and a checkout that runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A bigram table trained by SGD: it learns within a second, and LEARNING_RATE decides how much. Without torch.optim,
# whose import takes as long as that of torch.
TRAIN = '''\
import torch

from prepare import MAX_SEQ_LEN, SEED, VOCAB_SIZE, device, finish, stream

LEARNING_RATE = 1.0  # of SGD
BATCH = 8  # rows a step


def main():
    torch.manual_seed(SEED)
    model = torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE).to(device)
    torch.nn.init.zeros_(model.weight)
    loss = torch.zeros(())
    for batch in stream(BATCH, MAX_SEQ_LEN):
        loss = torch.nn.functional.cross_entropy(model(batch.x).flatten(0, 1), batch.y.flatten())
        loss.backward()
        with torch.no_grad():
            model.weight -= LEARNING_RATE * model.weight.grad
        model.weight.grad = None
    print(f"loss {loss.item():.4f}")
    finish(model)


if __name__ == "__main__":
    main()
'''
BETTER = ("LEARNING_RATE = 1.0  # of SGD", "LEARNING_RATE = 100.0  # of SGD")
WORSE = ("    torch.nn.init.zeros_(model.weight)", "    torch.nn.init.normal_(model.weight, std=5.0)")
BROKEN = ("    torch.manual_seed(SEED)", "    torch.manual_seed(SEED)\n    raise RuntimeError('out of ideas')")


def edit(description: str, change: tuple[str, str]) -> str:
    """A model's answer that makes one change."""
    return (f"<description>{description}</description>\n<reasoning>because</reasoning>\n"
            f"<<<<<<< SEARCH\n{change[0]}\n=======\n{change[1]}\n>>>>>>> REPLACE\n")


def git(checkout: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=checkout, check=True, capture_output=True, text=True).stdout


def make_checkout(folder: Path, train: str = TRAIN) -> Path:
    """A clone of the project as it stands in this work tree, with another train.py."""
    folder.mkdir(parents=True)
    for name in ("agent.py", "prepare.py", "program.md", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "lab", folder / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "train.py").write_text(train)
    (folder / "results.tsv").write_text((ROOT / "results.tsv").read_text().splitlines(keepends=True)[0])
    git(folder, "init", "-q", "-b", "main")
    git(folder, "-c", "user.name=T", "-c", "user.email=t@localhost", "add", "-A")
    git(folder, "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "-qm", "start")
    return folder


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without a key or a model server, and with `changes`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
    return kept | changes


# Becomes `python agent.py ...`, which the kernel kills when the test run that started it dies (Linux). It hears Ctrl-C
# also where the tests run in a shell's background, whose programs ignore it.
LEASH = """\
import ctypes, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def start_agent(checkout: Path, *arguments: str, **changes: str) -> subprocess.Popen:
    command = [sys.executable, "-S", "-c", LEASH, "agent.py", *arguments]
    return subprocess.Popen(command, cwd=checkout, env=environment(**changes), text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run_agent(checkout: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess:
    """python agent.py ARGUMENTS, to its end."""
    process = start_agent(checkout, *arguments, **changes)
    out, err = process.communicate(timeout=280)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)
