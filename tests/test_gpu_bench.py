"""Promises of tests/bench/gpu.py that hold without a card: it runs to its end, and a step that fails loses no other."""

import json
import subprocess
import sys
from pathlib import Path

import fakes
import pytest

from tests.bench import gpu

PROGRAM = [sys.executable, "tests/bench/gpu.py"]
# A sitecustomize.py: the packages named in HIDDEN are not installed.
HIDE = """\
import importlib.machinery as machinery
import os

find, hidden = machinery.PathFinder.find_spec, os.environ["HIDDEN"].split()


def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)


machinery.PathFinder.find_spec = classmethod(find_spec)
"""


def lines(*words: str, **changes: str) -> list[dict]:
    done = subprocess.run([*PROGRAM, *words], cwd=fakes.ROOT, timeout=600, capture_output=True, text=True,
                          env=fakes.environment(AUTORESEARCH_DEVICE="cpu", **changes))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def without(packages: str, folder: Path, *words: str) -> list[dict]:
    (folder / "sitecustomize.py").write_text(HIDE)
    return lines("--only", *words, HIDDEN=packages, PYTHONPATH=str(folder))


GONE = "rustbpe platformdirs optuna rich anthropic git triton"


def test_each_step_is_a_line_of_facts_and_packages_may_be_missing(tmp_path):
    about, attention = without(GONE, tmp_path, "facts", "attention")
    assert about["step"] == "facts" and about["torch"]
    assert {"rustbpe", "platformdirs", "triton"} <= set(about["missing"])
    assert attention["largest_difference_128"] < 1e-3 and attention["ours_ms_128"] > 0


@pytest.mark.long
def test_steps_and_trials_run_where_packages_are_missing(tmp_path):
    steps, trial = without(GONE, tmp_path, "20 steps at scale 0.55", "trial, cold")
    assert steps["tokens_a_s"] > 0 and steps["frames_after_warm_up"] == 0 < steps["frames"]
    assert trial["val_bpb"] and trial["witnessed"]


def test_a_step_that_needs_what_is_missing_says_so_and_loses_no_other(tmp_path):
    trial, copies = without("psutil", tmp_path, "trial, cold", "copies")
    assert trial["failed"] and "psutil" in trial["error"] and copies["to_device"] > 0


def test_a_step_that_fails_or_hangs_is_a_line_too(tmp_path):
    failed, hung = gpu.run("no such step", tmp_path, 60), gpu.run("facts", tmp_path, 0.2)
    assert "KeyError" in failed["error"] and failed["failed"] == "1"
    assert hung["failed"] == "no end within 0 s"


@pytest.mark.long
def test_it_runs_to_its_end_on_a_cpu():
    found = lines()
    assert [line["step"] for line in found] == list(gpu.STEPS)
    assert not [line for line in found if "failed" in line and line["step"] != "FlashAttention-4"]
    assert not [line for line in found if line.get("frames_after_warm_up")]
