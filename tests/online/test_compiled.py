"""Compiled training through the front door: both phases, a kill and a resume, and two ranks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from qam_lightning.cli import main
from qam_lightning.util import arguments as command_line
from tests.online.conftest import build
from tests.online.test_online import assert_same_runs, kill_at, last

ROOT = Path(__file__).resolve().parents[2]
COMPILED = "--model.compile=default"
CHECKPOINTS = "--checkpoints.every_n_steps=4"
REBRAC = ("--method=rebrac", "--model.alpha=1", "--model.noise_scale=0.1")


def raised(error: Exception) -> NoReturn:
    raise error


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("flags", [(), REBRAC, ("--method=rlpd",)], ids=["qam", "rebrac", "rlpd"])
def test_a_compiled_run_resumes_to_the_bit_and_equals_an_eager_one(
    flags: tuple[str, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = (*flags, CHECKPOINTS)
    assert main(build(data, tmp_path / "whole", *both, COMPILED)) == 0
    with monkeypatch.context() as patch:
        kill_at(patch, 11)
        patch.setattr(command_line, "unforeseen", raised)
        with pytest.raises(RuntimeError, match="killed"):
            main(build(data, tmp_path / "killed", *both, COMPILED))
    assert main(build(data, tmp_path / "killed", *both, COMPILED, "--ckpt_path=last")) == 0
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")
    assert main(build(data, tmp_path / "eager", *both)) == 0
    weights, eager = (last(tmp_path / name)["state_dict"] for name in ("whole", "eager"))
    for name, x in weights.items():
        torch.testing.assert_close(x, eager[name], rtol=1e-3, atol=1e-4)


def test_two_compiled_ranks_equal_one(data: Path, tmp_path: Path) -> None:
    settings = (COMPILED, "--online.steps=0", "--trainer.max_steps=6")
    assert main(build(data, tmp_path / "one", *settings)) == 0
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = build(data, tmp_path / "two", *settings, "--trainer.devices=2")
    subprocess.run(
        (*torchrun, "train.py", *command),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    one, two = (last(tmp_path / name)["state_dict"] for name in ("one", "two"))
    for name, x in one.items():
        torch.testing.assert_close(x, two[name], rtol=1e-3, atol=1e-5)
