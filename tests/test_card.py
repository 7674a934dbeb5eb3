"""Promises of lab/card.py: a GPU that fails inside the sandbox is one line of advice; other devices cost nothing."""

import subprocess
import sys

import pytest

from lab import card
from lab.ledger import SetupError
from prepare import default_device

STEPS = "".join(f'print("step {step}", flush=True)\n' for step in ("build", "cuda", "compile"))
STEPS += 'print("card NVIDIA H100 80GB HBM3")\nprint("step done")\n'


def ends_at(step: str, error: str) -> str:
    """A stand-in for the program that dies of `error` in a step."""
    return STEPS.partition(f'print("step {step}", flush=True)\n')[0] + (
        f'print("step {step}", flush=True)\nraise RuntimeError({error!r})\n')


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_another_device_starts_no_process(monkeypatch, device):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert card.check(device) == ""


@pytest.fixture
def dev(monkeypatch, tmp_path):
    """A /dev with a card, beside a driver that is new enough."""
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidia-uvm").touch()
    monkeypatch.setattr(card, "DEV", tmp_path)
    monkeypatch.setattr(card, "driver", lambda: 580)
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    return tmp_path


def advised(device: str, program: str = STEPS) -> str:
    """The line that refuses a device."""
    with pytest.raises(SetupError) as refused:
        card.check(device, program)
    return str(refused.value)


def test_a_card_that_works_is_known_by_its_name(dev):
    assert card.check("cuda", STEPS) == "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize("step", ["build", "cuda", "compile"])
def test_every_failure_is_one_line_with_its_error(dev, step):
    line = advised("cuda", ends_at(step, f"no luck\nwith {step}"))
    assert line.startswith("the GPU cannot be used: ") and f"with {step}" in line and "\n" not in line


def test_a_sandbox_that_starts_nothing_is_said(dev):
    assert "does not start inside the sandbox (dead)" in advised("cuda", "raise SystemExit('dead')")


def test_a_program_that_hangs_is_ended(dev, monkeypatch):
    monkeypatch.setattr(card, "CHECK_S", 1.0)
    assert "took longer than 1 s" in advised("cuda", 'print("step cuda", flush=True)\nimport time\ntime.sleep(60)')


def test_a_number_of_a_card_is_refused():
    assert "CUDA_VISIBLE_DEVICES" in advised("cuda:1")


@pytest.mark.parametrize("gone, version, error, wanted", [
    ("nvidia0", 580, "no CUDA-capable device", "no NVIDIA card"),
    ("", 550, "driver too old", "update the driver"),
    ("nvidia-uvm", 580, "unknown error", "nvidia-modprobe"),
    ("", 580, "CUDA-capable device(s) is/are busy or unavailable", "exclusive"),
    ("", 580, "CUDA out of memory", "taken by other programs"),
    ("", 580, "an illegal instruction", "nvidia-smi")])
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /dev")
def test_the_advice_fits_what_is_seen(dev, monkeypatch, gone, version, error, wanted):
    monkeypatch.setattr(card, "driver", lambda: version)
    if gone:
        (dev / gone).unlink()
    assert wanted in card.advice("cuda", error) and error in card.advice("cuda", error)


def test_an_mps_server_is_named(dev, monkeypatch):
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/tmp/mps")
    assert "nvidia-cuda-mps-control" in card.advice("cuda", "unknown error")


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(card.shutil, "which", lambda name: None)
    assert "C compiler" in card.advice("compile", "BackendCompilerFailed")


@pytest.mark.skipif(default_device() != "cuda", reason="no card: the session below says so")
def test_the_real_program_finds_this_card_in_order():
    import torch

    assert card.check("cuda") == torch.cuda.get_device_name()


def test_a_session_without_its_gpu_ends_with_one_line_and_code_2(root, agents, arguments):
    code, said = agents.run(root, *arguments, AUTORESEARCH_DEVICE="cuda", CUDA_VISIBLE_DEVICES="")
    assert code == 2 and "the GPU cannot be used" in said
    assert len([line for line in agents.err.read_text().splitlines() if line.strip()]) == 1
