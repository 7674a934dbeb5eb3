"""Promises of tests/bench/gpu.py that hold without a card: it runs to its end, and a step that fails loses no other."""

import json
import subprocess
import sys

import fakes
import pytest

from tests.bench import gpu

PROGRAM = [sys.executable, "tests/bench/gpu.py"]


def lines(*words: str) -> list[dict]:
    done = subprocess.run([*PROGRAM, *words], cwd=fakes.ROOT, env=fakes.environment(AUTORESEARCH_DEVICE="cpu"),
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_step_is_a_line_of_facts():
    about, steps = lines("--only", "facts", "20 steps at scale 0.55")
    assert about["step"] == "facts" and about["torch"] and isinstance(about["missing"], list)
    assert steps["tokens_a_s"] > 0 and steps["frames_after_warm_up"] == 0


def test_a_step_that_fails_or_hangs_is_a_line_too(tmp_path):
    failed, hung = gpu.run("no such step", tmp_path, 60), gpu.run("facts", tmp_path, 0.2)
    assert "KeyError" in failed["error"] and failed["failed"] == "1"
    assert hung["failed"] == "no end within 0 s"


@pytest.mark.long
def test_it_runs_to_its_end_on_a_cpu():
    found = lines()
    assert [line["step"] for line in found] == list(gpu.STEPS)
    assert not [line for line in found if "failed" in line and line["step"] != "FlashAttention-4"]
