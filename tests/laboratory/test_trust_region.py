"""TRQAM reaches its budget, on problems where Q and the behaviour are exact."""

from typing import Any

import pytest
import torch

from qam_lightning.laboratory import training
from qam_lightning.laboratory.problems import PROBLEMS
from qam_lightning.methods.base import Metrics
from qam_lightning.methods.trqam import TRQAM

STEPS, LAST = 800, 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "settings"),
    [
        ("quadratic", {"budget": 1.0}),
        ("quadratic", {"budget": 0.3, "residual": True, "scale": 1.0}),
        ("quadratic", {"budget": 1.0, "integrator": "denoiser"}),
        ("moons", {"budget": 1.0}),
    ],
)
def test_the_kl_that_it_reaches_is_the_budget(
    problem: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    adapt = TRQAM.adapt

    def noting(self: TRQAM, metrics: Metrics, *args: Any) -> None:
        found.append(float(metrics["actor/kl"]))
        adapt(self, metrics, *args)

    monkeypatch.setattr(TRQAM, "adapt", noting)
    torch.set_num_threads(1)
    recipe = training.recipes()["trqam"]
    method = training.build(recipe, settings, PROBLEMS[problem], flow_steps=10, seed=0)
    training.fit(method, PROBLEMS[problem], STEPS)
    assert sum(found[-LAST:]) / LAST == pytest.approx(settings["budget"], rel=0.05)
