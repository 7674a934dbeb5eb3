"""A checkout whose trials cost a tenth of a second: everything is real but the referee, which measures nothing.

The agent, git, the sandbox, the train.py under it and what that leaves behind are the project's own. The score comes
from the seed and from a hash of the train.py: about every other experiment is kept; where lines say "# worth 0.1", from
these alone, and a later seed is worse. A file gpu_lost in the checkout makes every trial a crash, referee_lost every
referee; a file `lost` in a slot's folder the referees of that slot.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from fakes import environment, git, make_checkout

WAITS_SHORTER = 60
READING = {"rev-parse", "cat-file", "ls-tree", "merge-base", "for-each-ref", "ls-files", "var", "check-ref-format",
           "diff", "symbolic-ref", "rev-list", "status"}  # git commands that change nothing

# Two knobs for the tuner; the loop below is never reached, but the rules ask for it. The grandchild has left the
# trial's process group, as a data loader may: whoever ends a trial must find it too.
TRAIN = '''\
import subprocess
import time

LEARNING_RATE = 0.5
WIDTH = 200
SLEEP_S = 0.1  # fixed


def main():
    from prepare import finish, stream

    for _ in stream(1, 1):
        finish(None)


subprocess.Popen(["sleep", "60"], start_new_session=True)
assert LEARNING_RATE and WIDTH
print("loss 1.0")
time.sleep(SLEEP_S)
'''

# In place of the real referee's own.
RUN = '''\
def run(spec):
    import hashlib
    import re
    import shutil
    import subprocess

    started_at, folder = time.monotonic(), spec["work"] + "/trial"
    if kind := os.environ.get("STAND_IN_KIND"):
        sandbox.best_kind = lambda at_most: kind
    spec["cache"] = folder + "/cache"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(spec["cache"])
    if spec["is_baseline"]:
        baseline.write(Path(spec["folder"]), Baseline(1.0, 1, np.zeros(1)))
    with open(folder + "/train.py", "w") as file:
        file.write(spec["code"])
    with open("runs/trials.txt", "a") as file:
        file.write(f"{started_at}\\n")
    if os.path.exists("referee_lost") or os.path.exists(spec["work"] + "/lost"):
        sys.exit("the referee fell over")
    with open(folder + "/train.py", "rb") as file:
        good = hashlib.sha256(file.read()).digest()[0] % 2
    worth = [float(gain) for gain in re.findall("# worth (.*)", spec["code"])]
    score = 3.0 - sum(worth) + spec["seed"] * 1e-6 if worth else 3.0 - good - spec["seed"] * 1e-6
    command = sandbox.command(folder, spec["cache"], [sys.executable, "-I", "-S", "train.py"])
    trial = subprocess.Popen(command, cwd=folder, env=sandbox.environment(folder, spec["cache"]),
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             start_new_session=True)
    print(json.dumps({"event": "start", "value": trial.pid}), flush=True)
    code = trial.wait(30)
    sandbox.sweep()
    out = trial.stdout.read().decode("utf-8", "replace")
    reason = (out.strip().splitlines() or ["killed"])[-1] if code else ""
    if os.path.exists("gpu_lost"):
        reason = "RuntimeError: CUDA error: unspecified launch failure"
    ending = "machine" if os.path.exists("gpu_lost") else "crashed" if reason else "scored"
    return {"ending": ending, "witnessed": True, "reason": reason, "seed": spec["seed"],
            "val_bpb": None if reason else score,
            "split": spec["split"], "budget": spec["budget"], "train_seconds": 0.1,
            "device": f"{spec['device']} x{spec['cores']}",
            "data": Data.load(Path(spec["data"])).hash[:8], "sandbox": sandbox.level(), "log": out,
            "total_seconds": time.monotonic() - started_at}


'''


def make(folder: Path) -> Path:
    """A checkout of the project with the stand-in's referee and train.py, committed."""
    checkout = make_checkout(folder, TRAIN)
    referee = checkout / "lab" / "referee.py"
    referee.write_text(referee.read_text().replace("if __name__ ==", RUN + "if __name__ =="))
    git(checkout, "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "-qam", "stand-in")
    return checkout


class Agents:
    """`python agent.py`, one after the other, each ready in a millisecond: forks of a process that has imported it."""

    def __init__(self, checkout: Path):
        """The code is that of `checkout`; it works in whatever checkout an agent is started in."""
        self.server = subprocess.Popen([sys.executable, __file__], cwd=checkout, env=environment(), text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid, self.out, self.err, self.started_at = 0, Path(), Path(), 0.0

    def start(self, root: Path, *arguments: str, step: int = -1, action: str = "", server: str = "",
              patient: bool = False, **changes: str) -> int:
        """Start one, to meet `action` ("die", "ENOSPC", "EIO") at its write number `step`, or to ask a model `server`,
        with waits that are WAITS_SHORTER, that for a late answer aside if `patient`; its process id, its group's.
        `changes` are of its environment.
        """
        self.out, self.err = root.parent / "out.txt", root.parent / "err.txt"
        order = {"root": str(root), "files": [str(self.out), str(self.err)], "arguments": arguments, "step": step,
                 "action": action, "server": server, "patient": patient, "changes": changes}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        self.pid, self.started_at = int(self.server.stdout.readline()), time.monotonic()
        return self.pid

    def wait(self) -> tuple[int, str]:
        """(exit code, or -signal; what it printed, its errors last) of the one that was started last."""
        code, self.pid = int(self.server.stdout.readline()), 0
        return code, "".join(path.read_text(errors="replace") for path in (self.out, self.err) if path.exists())

    def run(self, root: Path, *arguments: str, **more: object) -> tuple[int, str]:
        self.start(root, *arguments, **more)
        return self.wait()

    def close(self) -> None:
        self.server.stdin.close()
        if self.pid:  # of a test that has failed
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.server.wait(20)
        self.server.stdout.close()


def serve() -> None:
    """The server behind Agents, in the checkout whose code it runs."""
    sys.path.insert(0, os.getcwd())
    from lab import sandbox

    sandbox.die_with_parent(os.getppid(), signal.SIGKILL)  # with the test run
    os.environ["STAND_IN_KIND"] = sandbox.best_kind("ns")  # each agent and referee would probe it again, 0.1 s
    import anthropic  # noqa: F401  for the model, 1.5 s
    import httpx2  # noqa: F401
    import optuna  # noqa: F401  the tuner imports it at its first turn

    import agent  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            become_agent(**json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become_agent(root: str, files: list[str], arguments: list[str], step: int, action: str, server: str, patient: bool,
                 changes: dict[str, str]) -> None:
    import agent
    from lab import runner, sandbox, texts

    status = 99
    sandbox.die_with_parent(os.getppid(), signal.SIGKILL)
    try:
        os.setsid()
        for number, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(root)
        os.environ.update(changes)
        texts.RETRY_WAITS_S = (0.01,) * len(texts.RETRY_WAITS_S)
        agent.ROOT = runner.ROOT = Path(root)
        agent.report.Drawer.draw = lambda self: None  # the report, a pure reader, takes seconds
        if action:
            inject(root, step, action)
        if server:
            shorten_waits(server, patient)
        status = agent.main(arguments)
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001  what the interpreter would print
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def shorten_waits(server: str, patient: bool) -> None:
    """Every wait for the model a sixtieth of what it is: a second for a minute."""
    from lab import model, proposer

    os.environ["ANTHROPIC_BASE_URL"] = server
    proposer.PATIENCE_S /= 1 if patient else WAITS_SHORTER
    limits = model.CallLimits(*(seconds / WAITS_SHORTER for seconds in (900, 300, 60, 2)))
    next_wait_s = model.next_wait_s
    model.CallLimits = lambda: limits
    proposer.next_wait_s = lambda *words: next_wait_s(*words) / WAITS_SHORTER
    model.next_wait_s = lambda failures, after_s, chance, first_s: next_wait_s(
        failures, None if after_s is None else after_s / WAITS_SHORTER, chance, first_s)


def inject(root: str, step: int, action: str) -> None:
    """Meet `action` at the process's write number `step`: a full disk stays full, the other two happen once."""
    from lab.checkout import Checkout

    seen = -1

    def fault() -> None:
        nonlocal seen
        seen += 1
        if seen == step and action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if (seen == step and action == "EIO") or (seen >= step and action == "ENOSPC"):
            number = getattr(errno, action)
            raise OSError(number, os.strerror(number))

    def hook(event: str, args: tuple) -> None:
        if writes(root, event, args) or event == "subprocess.Popen" and action == "die":
            fault()

    sync, run = os.fsync, Checkout.run

    def fsync(fd: int) -> None:
        fault()
        sync(fd)

    def run_git(self: object, *words: str, **more: object) -> tuple[int, bytes, str]:
        try:
            if next(word for word in words if word != "-c" and "=" not in word) not in READING:
                fault()
        except OSError as error:
            return 128, b"", f"fatal: unable to write file: {error.strerror}"
        return run(self, *words, **more)

    os.fsync, Checkout.run = fsync, run_git
    sys.addaudithook(hook)


def writes(root: str, event: str, args: tuple) -> bool:
    """Whether an audited event of this process may change the checkout."""
    if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        return False
    return event in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir") and str(args[0]).startswith(root)


if __name__ == "__main__":
    serve()
