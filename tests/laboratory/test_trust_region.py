"""TRQAM reaches its budget, on problems where Q and the behaviour are exact."""

from typing import Any

import pytest
import torch

from qam_lightning.laboratory import training
from qam_lightning.laboratory.problems import PROBLEMS
from qam_lightning.methods.base import Metrics

STEPS, LAST = 800, 200
DENOISER = {"integrator": "denoiser", "grid_power": 2.0, "sampler": "etd2"}


def reached(problem: str, **settings: Any) -> float:
    """Return the mean KL of the last updates of a training."""
    torch.set_num_threads(1)
    recipe = training.recipes()["trqam"]
    method = training.build(recipe, settings, PROBLEMS[problem], flow_steps=10, seed=0)
    found, adapt = list[float](), method.adapt

    def noting(metrics: Metrics) -> None:
        found.append(float(metrics["actor/kl"]))
        adapt(metrics)

    method.adapt = noting  # type: ignore[method-assign]
    training.fit(method, PROBLEMS[problem], STEPS)
    return sum(found[-LAST:]) / LAST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "settings"),
    [
        ("quadratic", {"budget": 1.0}),
        ("quadratic", {"budget": 0.3, "residual": True, "scale": 1.0}),
        ("quadratic", {"budget": 3.0, **DENOISER}),
        ("moons", {"budget": 1.0}),
    ],
)
def test_the_kl_that_it_reaches_is_the_budget(problem: str, settings: dict[str, Any]) -> None:
    assert reached(problem, **settings) == pytest.approx(settings["budget"], rel=0.05)
