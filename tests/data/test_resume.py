"""Data that were exchanged between a run and its resume: told like a changed setting."""

import shutil

import numpy as np
import pytest
import torch

from qam_lightning.cli import main
from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.util.errors import UserError
from tests.data.test_datamodule import load, own_file, pendulum

TOLD = "changed since the checkpoint: data: "


def fit(folder, *flags):
    return main(["fit", f"--config={pendulum(folder)}", f"--run_dir={folder}/r", *flags])


def test_exchanged_data_are_told(tmp_path, capsys):
    arrays = own_file(tmp_path / "x.npz")
    again = "--ckpt_path=last"
    assert fit(tmp_path) == 0
    assert TOLD not in capsys.readouterr().out
    checkpoint = torch.load(tmp_path / "r/checkpoints/last.ckpt", weights_only=True)
    before = checkpoint["ChunkDataModule"]["fingerprint"]

    shutil.rmtree(tmp_path / "x.store")  # made again from the same file
    (tmp_path / "x.npz").rename(tmp_path / "y.npz")
    assert fit(tmp_path, again, "--trainer.max_steps=3", f"--data.path={tmp_path}/y.npz") == 0
    assert TOLD not in capsys.readouterr().out
    assert fit(tmp_path, again, "--trainer.max_steps=4", "--data.fraction=0.5",
               f"--data.path={tmp_path}/y.npz") == 0  # fmt: skip
    assert TOLD not in capsys.readouterr().out

    own_file(tmp_path / "x.npz", rewards=np.append(arrays["rewards"], [9, 9, 9]))
    assert fit(tmp_path, again, "--trainer.max_steps=5") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(TOLD)]
    after = load("Pendulum-v1", tmp_path, path=str(tmp_path / "x.npz")).fingerprint
    assert line == f"{TOLD}{before} -> {after} (fingerprint of the dataset)"
    checkpoint = torch.load(tmp_path / "r/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["ChunkDataModule"] == {"fingerprint": after}


@pytest.mark.parametrize("state", [None, {}, [], 3, {"fingerprint": 3}, {"fingerprint": None}])
def test_an_older_checkpoint_goes_on_silently(tmp_path, capsys, state):
    own_file(tmp_path / "x.npz")
    data = load("Pendulum-v1", tmp_path, path=str(tmp_path / "x.npz"))
    data.load_state_dict(state)
    data.load_state_dict(data.state_dict())
    assert TOLD not in capsys.readouterr().out
    data.load_state_dict({"fingerprint": "a\nb", "more": 1})
    assert f"{TOLD}a\\nb -> {data.fingerprint}" in capsys.readouterr().out


def test_without_data_there_is_nothing_to_compare():
    data = ChunkDataModule("Pendulum-v1", path="x.npz")
    assert data.state_dict() == {}
    data.load_state_dict({"fingerprint": "0"})
    with pytest.raises(RuntimeError, match="not loaded yet"):
        data.fingerprint  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prefetch": 10**9}, "prefetch is 1000000000, expected at most 256"),
        ({"horizon": 10**12}, "horizon is 1000000000000, expected at most 10000"),
        ({"horizon": 10**400}, "horizon is .*, expected at most 10000"),
        ({"batch_size": 10**12}, "batch_size is 1000000000000: 5 batches would take .* GB, but"),
        ({"batch_size": 10**400}, "batch_size is .*: 5 batches would take more than"),
        ({"fraction": float("nan")}, "fraction is nan, expected above 0"),
        ({"discount": float("nan")}, "discount is nan, expected above 0"),
        ({"task": 10**400, "env": "Pendulum-v1"}, "task is .*has one task only"),
    ],
)
def test_extremes_are_refused(tmp_path, settings, words):
    own_file(tmp_path / "x.npz")
    with pytest.raises(UserError, match=words) as caught:
        load(
            **{"env": "Pendulum-v1", "folder": tmp_path, "path": str(tmp_path / "x.npz")} | settings
        )
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_the_smallest_fraction_is_one_trajectory(tmp_path):
    own_file(tmp_path / "x.npz")
    data = load("Pendulum-v1", tmp_path, path=str(tmp_path / "x.npz"), fraction=1e-300)
    assert data.num_transitions == 20


@pytest.mark.parametrize("storage", ["memory", "device"])
def test_copies_beyond_memory_are_refused(storage, tmp_path, monkeypatch):
    own_file(tmp_path / "x.npz")
    monkeypatch.setattr("qam_lightning.util.memory.memory_limit", lambda: 1000)
    settings = {"path": str(tmp_path / "x.npz"), "batch_size": 1, "prefetch": 0, "horizon": 1}
    load("Pendulum-v1", tmp_path, **settings)
    load("Pendulum-v1", tmp_path, **settings, storage=storage, fraction=1e-300)
    with pytest.raises(UserError, match=f"storage is {storage}: the dataset would take"):
        load("Pendulum-v1", tmp_path, **settings, storage=storage)
