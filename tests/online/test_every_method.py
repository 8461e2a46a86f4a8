"""Every method goes online: it acts, keeps what it lives through, learns, and survives kills."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qam_lightning.cli import main
from qam_lightning.methods.base import Method
from tests.methods.test_every_method import METHODS, SOME_METHODS
from tests.online.conftest import build
from tests.online.test_collector import repeats
from tests.online.test_online import (
    OFFLINE,
    START,
    STEPS,
    assert_same_runs,
    kill_at,
    last,
    rows_of,
    table,
)

Lived = tuple[Path, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def lived(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[type[Method]], Lived]:
    """``lived(kind)``: a method's whole run, made once, and its weights before the online phase."""

    @functools.cache
    def live(kind: type[Method]) -> Lived:
        offline, step = OFFLINE if kind.offline_phase else 0, Method.training_step
        before: dict[str, torch.Tensor] = {}

        def noting(self, batch, batch_idx):
            if self.gradient_step == offline:
                assert (self.env_step, self.phase) == (START + 1, "online")
                before.update({name: p.detach().clone() for name, p in self.named_parameters()})
            step(self, batch, batch_idx)

        run = tmp_path_factory.mktemp(kind.__name__) / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Method, "training_step", noting)
            assert main(build(data, run, *flags_of(kind))) == 0
        return run, before

    return live


def flags_of(kind: type[Method]) -> tuple[str, str]:
    return f"--method={kind.__module__.rsplit('.', 1)[1]}", "--checkpoints.every_n_steps=3"


@pytest.mark.parametrize("kind", METHODS, ids=lambda m: m.__name__)
def test_it_acts_and_learns_online(kind: type[Method], lived) -> None:
    run, before = lived(kind)
    offline = OFFLINE if kind.offline_phase else 0
    rows, train, end = rows_of(run), table(run), last(run)
    assert len(rows) == STEPS
    repeats(rows, 0)
    assert np.abs(rows["action"]).max() <= 1 and rows["action"].std() > 0
    total = offline + STEPS - START
    assert [int(row["gradient_step"]) for row in train] == list(range(1, total + 1))
    assert [row["phase"] for row in train] == ["offline"] * offline + ["online"] * (STEPS - START)
    losses = [name for name in train[-1] if name.endswith("loss")]
    assert len(losses) > 1 and np.isfinite([float(train[-1][name]) for name in losses]).all()
    assert end["counters"] == {"gradient_step": total, "env_step": STEPS, "phase": "online"}
    moved = {n for n, value in before.items() if not torch.equal(value, end["state_dict"][n])}
    assert moved == set(before)


@pytest.mark.parametrize("kind", SOME_METHODS)
def test_killed_in_both_phases_it_goes_on_to_the_bit(
    kind: type[Method], lived, arguments, tmp_path: Path, monkeypatch
):
    flags, run, resume = flags_of(kind), tmp_path / "run", ()
    for step, phase in ((4, "offline" if kind.offline_phase else "online"), (11, "online")):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            kill_at(patch, step)
            main(arguments(*flags, *resume))
        assert last(run)["counters"]["gradient_step"] == step // 3 * 3
        assert last(run)["counters"]["phase"] == phase
        resume = ("--ckpt_path=last",)
    assert main(arguments(*flags, *resume)) == 0
    assert_same_runs(lived(kind)[0], run)
