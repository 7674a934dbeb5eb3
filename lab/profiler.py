"""Where a step's time goes: runs train.py for a few steps and prints shares by function and by operator.

    python -m lab.profiler   in a trial's folder, beside its train.py, as the referee starts it

It runs inside the sandbox, in a process of its own, outside any budget. A train.py can make it say anything, of itself
alone: what it prints is data and proves nothing.
"""

import cProfile
import os
import runpy
from collections import Counter
from collections.abc import Iterator, Mapping

import prepare

MARK = "[where the time of a step goes]\n"
WARM_STEPS, STEPS = 1, 2   # before, and of each of the two profiles
LEAST_SHARE, SHOWN = 0.02, 8
NAME_CHARS, MAX_CHARS = 40, 1_000  # of a name; of what is believed to be the profile


def shares(seconds: Mapping[str, float], whole_s: float) -> str:
    """The largest as "name 41%, name 38%"."""
    return ", ".join(f"{name[:NAME_CHARS]} {part / whole_s:.0%}"
                     for name, part in Counter(seconds).most_common(SHOWN) if part >= LEAST_SHARE * whole_s)


def by_function(calls: cProfile.Profile) -> str:
    """Of train.py's functions, of stream and of backward."""
    entries, seconds = calls.getstats(), Counter()
    for entry in entries:
        path, name = getattr(entry.code, "co_filename", ""), getattr(entry.code, "co_qualname", "")
        if path.endswith(("train.py", "prepare.py")) or name == "Tensor.backward":
            seconds[name] += entry.totaltime
    whole_s = sum(entry.inlinetime for entry in entries)
    how = " without a compiler" if os.environ.get("TORCHDYNAMO_DISABLE") else ""
    return f"{1000 * whole_s / STEPS:.1f} ms a step{how}; functions with what they call: {shares(seconds, whole_s)}"


def by_operator(operators: "torch.profiler.profile", on_gpu: bool) -> str:  # noqa: F821
    """Of operators, on a GPU of kernels."""
    events, time = operators.key_averages(), "self_device_time_total" if on_gpu else "self_cpu_time_total"
    seconds = {event.key: getattr(event, time) for event in events if event.device_type.name == "CUDA" or not on_gpu}
    return f"{'kernels' if on_gpu else 'operators'} alone: {shares(seconds, sum(seconds.values()))}"


def stream(batch_size: int, seq_len: int, batches=prepare.stream) -> Iterator[prepare.Batch]:
    """prepare.stream, which ends the process when both profiles are made."""
    import torch

    calls, operators = cProfile.Profile(), torch.profiler.profile()
    for step, batch in enumerate(batches(batch_size, seq_len)):
        if step == WARM_STEPS:
            calls.enable()
        elif step == WARM_STEPS + STEPS:
            calls.disable()
            operators.start()
        elif step == WARM_STEPS + 2 * STEPS:
            operators.stop()
            print(f"\n{MARK}{by_function(calls)}\n{by_operator(operators, batch.x.is_cuda)}", flush=True)
            raise SystemExit
        yield batch
    print("its steps are too long for the budget", flush=True)
    os._exit(1)  # torch's profiler, still at work, does not survive an ordinary end


if __name__ == "__main__":
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # otherwise a GPU's time is charged to the function that waits for it
    prepare.stream = stream
    runpy.run_path("train.py", run_name="__main__")
