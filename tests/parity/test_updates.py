"""Whole updates of QAM against recorded ones: losses, joint clip, Adam and targets."""

from pathlib import Path

import torch

from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.methods.qam import QAM
from qam_lightning.methods.update import prepare_update
from tests.parity.recorded import PATHS, Case, named, restore, translate
from tests.parity.test_adjoint_matching_family import PLACES, arguments

UPDATES = Case(Path(__file__).parent / "updates" / "QAM.npz")


def test_three_updates_end_at_the_recorded_weights_and_targets() -> None:
    start = Case(next(path for path in PATHS if path.stem == "QAM"))
    rate, size = UPDATES.config["tau"], UPDATES.config["lr"]
    settings = {**start.shared(), **arguments(start.config), "grad_clip": 1.0, "target_rate": rate}
    method = restore(start, QAM(**settings), PLACES)
    run = prepare_update(method, method.configure_optimizers(), EmaTargets(rate))
    template = method.step_noise(len(start.batch().rewards))
    for i in range(3):
        noise = named(template, UPDATES.tree(f"noise/{i}"))
        metrics = run(start.batch(), noise, size, True)
        torch.testing.assert_close(metrics["loss"], UPDATES.tensor(f"loss/{i}"), rtol=1e-4, atol=0)
        assert metrics["grad_norm"] > 1.0  # so it is clipped
    before, expected = (translate(c.tree("params"), PLACES) for c in (start, UPDATES))
    assert expected.keys() == method.state_dict().keys()
    for name, found in method.state_dict().items():
        # Adam divides the smallest gradients by their size, rounding and all.
        moved = (expected[name] - before[name]).norm()
        assert (found - expected[name]).norm() < 3e-3 * moved, name
