"""Every method goes online: it acts, keeps what it lives through, and learns from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qam_lightning.cli import main
from qam_lightning.methods.base import Method
from tests.methods.test_every_method import METHODS
from tests.online.test_online import OFFLINE, START, STEPS, last, repeats, rows_of, table


@pytest.mark.parametrize("kind", METHODS, ids=lambda m: m.__name__)
def test_it_acts_and_learns_online(kind: type[Method], arguments, tmp_path: Path, monkeypatch):
    offline, step = OFFLINE if kind.offline_phase else 0, Method.training_step
    before: dict[str, torch.Tensor] = {}

    def noting(self, batch, batch_idx):
        if self.gradient_step == offline:
            assert (self.env_step, self.phase) == (START + 1, "online")
            before.update({name: p.detach().clone() for name, p in self.named_parameters()})
        step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", noting)
    run, name = tmp_path / "run", kind.__module__.rsplit(".", 1)[1]
    assert main(arguments(f"--method={name}")) == 0
    rows, train, end = rows_of(run), table(run), last(run)
    assert len(rows) == STEPS
    repeats(rows)
    assert np.abs(rows["action"]).max() <= 1 and rows["action"].std() > 0
    total = offline + STEPS - START
    assert [int(row["gradient_step"]) for row in train] == list(range(1, total + 1))
    assert [row["phase"] for row in train] == ["offline"] * offline + ["online"] * (STEPS - START)
    losses = [name for name in train[-1] if name.endswith("loss")]
    assert len(losses) > 1 and np.isfinite([float(train[-1][name]) for name in losses]).all()
    assert end["counters"] == {"gradient_step": total, "env_step": STEPS, "phase": "online"}
    moved = {n for n, value in before.items() if not torch.equal(value, end["state_dict"][n])}
    assert moved == set(before)
