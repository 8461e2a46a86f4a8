"""The online phase in a real environment, and on two processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qam_lightning.checkpoints import read_checkpoint
from qam_lightning.cli import main
from tests.app.test_training import assert_same

ROOT = Path(__file__).resolve().parents[2]
ONLINE = ("--online.steps=60", "--online.learning_starts=20", "--checkpoints.every_n_steps=7")


def last(run: Path) -> dict:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit_in_a_real_environment(cube_run, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(cube_run(3, *ONLINE, "--online.async_env=false", run_dir=whole)) == 0
    process = subprocess.Popen([sys.executable, "train.py", *cube_run(3, *ONLINE)], cwd=ROOT)
    deadline = time.monotonic() + 300
    while not (run / "checkpoints/last.ckpt").exists() or last(run)["counters"]["env_step"] < 25:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert last(run)["counters"]["env_step"] < 60
    assert main(cube_run(3, *ONLINE, "--ckpt_path=last")) == 0
    one, two = last(whole), last(run)
    for key in ("state_dict", "optimizer_states", "counters", "online"):
        assert_same(one[key], two[key], key)
    replays = [(r / "checkpoints/replay.bin").read_bytes() for r in (whole, run)]
    assert replays[0] == replays[1]


@pytest.mark.slow
def test_two_processes_collect_and_learn_as_one(cube_run, tmp_path):
    flags = (*ONLINE, "--online.num_envs=2")
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(cube_run(3, *flags, run_dir=one)) == 0
    environment = {**os.environ, "PL_TORCH_DISTRIBUTED_BACKEND": "gloo"}
    command = cube_run(3, *flags, "--trainer.devices=2", run_dir=two)
    subprocess.run([sys.executable, "train.py", *command], cwd=ROOT, env=environment, check=True)
    a, b = last(one), last(two)
    assert a["counters"] == b["counters"]
    first = {k: v for k, v in a["state_dict"].items()}
    for name, value in first.items():
        torch.testing.assert_close(b["state_dict"][name], value, rtol=1e-4, atol=1e-5)
    assert (two / "checkpoints/replay.bin").stat().st_size == (
        one / "checkpoints/replay.bin"
    ).stat().st_size
