"""TRQAM against QAM, its dual descent against a plain loop, and its KL against the path's noise."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from qam_lightning.core.flow import Field, TimeGrid
from qam_lightning.core.integrators import scheme
from qam_lightning.data.batch import Batch
from qam_lightning.methods.qam import QAM
from qam_lightning.methods.trqam import TRQAM
from qam_lightning.util.errors import ArgumentError
from qam_lightning.util.settings import settings_of
from tests.core.gaussian import gaussian_field
from tests.methods.test_every_method import Build
from tests.methods.test_update import by_update

FORMS = [
    {"residual": residual, "integrator": integrator}
    for residual in (False, True)
    for integrator in ("shifted_euler", "denoiser")
]


def losses(method: QAM, batch: Batch) -> dict[str, Tensor]:
    return method.losses(batch, method.step_noise(len(batch.rewards)))[0]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_its_loss_is_qams_times_the_multiplier(
    form: dict[str, Any], build: Build, batch: Batch
) -> None:
    method, qam = build(TRQAM, **form), build(QAM, tau=1 / 7.5, **form)
    method.multiplier.fill_(7.5)
    found, expected = losses(method, batch), losses(qam, batch)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        scale = 7.5 if name == "actor/adjoint_loss" else 1.0
        torch.testing.assert_close(found[name], scale * loss, rtol=1e-4, atol=1e-6)
    found["actor/adjoint_loss"].backward()
    (7.5 * expected["actor/adjoint_loss"]).backward()
    for p, q in zip(method.fine_tuned.parameters(), qam.fine_tuned.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_an_update_ends_with_a_step_of_dual_descent(build: Build, batch: Batch) -> None:
    budget, c = 0.05, 2.0
    method = build(TRQAM, budget=budget, scale=c)
    assert (float(method.multiplier), float(method.kl_mean)) == (c, 0.0)
    mean, multiplier = 0.0, 1.0
    for _ in range(4):
        noise = method.step_noise(len(batch.rewards)).actor
        s, h = batch.observations, 1.0 / method.flow_steps
        path = method.sample_path(*method.recorded(s), noise)
        kl = 0.0
        for a, u in zip(path.states, path.times, strict=True):
            squared = 2.0 * (1.0 - u + h) / (u + h)
            apart = method.fine_tuned.at(s)(a, u) - method.behavior_ema.at(s)(a, u)
            kl += float(2.0 * h / squared * apart.square().sum(-1).mean()) / 2  # H = 2
        mean = 0.9 * mean + 0.1 * min(kl, 2.0 * budget)
        multiplier += 0.01 * (mean - budget)
        metrics = method.losses(batch, method.step_noise(len(batch.rewards)))[1]
        assert float(metrics["actor/kl"]) == pytest.approx(kl, rel=1e-4)
        method.adapt(metrics)
        method.gradient_step += 1
        assert float(method.kl_mean) == pytest.approx(mean, rel=1e-4)
        assert float(method.multiplier) == pytest.approx(c * multiplier, rel=1e-5)


@pytest.mark.parametrize(("kl", "bound"), [(0.0, 0.01), (1e9, 100.0)])
def test_the_multiplier_stays_in_its_bounds(kl: float, bound: float, build: Build) -> None:
    method = build(TRQAM, budget=10.0, scale=3.0)
    for _ in range(3000):
        method.adapt(method.dual_step(torch.tensor(kl)))
    assert float(method.multiplier) == pytest.approx(3.0 * bound)
    assert float(method.kl_mean) == pytest.approx(min(kl, 20.0))


def test_the_multiplier_moves_in_training_and_is_part_of_the_state(
    build: Build, batch: Batch
) -> None:
    method = build(TRQAM, budget=1e-3)
    found = by_update(method, batch)
    assert 2.99 < float(found["multiplier"]) < 3.0 and float(found["kl_mean"]) > 0.0
    assert torch.equal(found["multiplier"], found["actor/multiplier"])
    twin = build(TRQAM, budget=1e-3)
    twin.load_state_dict(method.state_dict())
    assert torch.equal(twin.multiplier, method.multiplier)


@pytest.mark.parametrize("name", ["budget", "scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e39])
def test_a_budget_is_above_0_and_within_single_precision(
    name: str, value: float, build: Build
) -> None:
    found = re.escape(f"TRQAM: {name} is {value}, expected ")
    with pytest.raises(ArgumentError, match=f"^{found}.+ and at most 1000000.0$"):
        build(TRQAM, **{name: value})


def test_there_is_no_temperature_to_set(build: Build) -> None:
    with pytest.raises(TypeError, match="tau"):
        build(TRQAM, tau=1.0)
    assert "tau" in settings_of("qam_lightning.QAM")
    assert "tau" not in settings_of("qam_lightning.TRQAM")
    assert "tau" not in build(TRQAM).hparams


narrow = gaussian_field(0.3, 0.2**2)


def tilted(a: Tensor, u: Tensor) -> Tensor:
    return narrow(a, u) + 0.4 * torch.sin(a + u)


@pytest.mark.parametrize(("integrator", "power"), [("shifted_euler", 1), ("denoiser", 2)])
def test_the_divergence_is_that_of_the_path(integrator: Any, power: float) -> None:
    """The behaviour needs other noise z' for the same path; its steps' KL is ‖z' - z‖² / 2."""
    steps, x_0 = 5, torch.randn(8, 2, dtype=torch.double)
    z = torch.randn(steps - 1, 8, 2, dtype=torch.double)
    discretisation = scheme(integrator, TimeGrid(steps, power))

    def states(v: Field, noise: Tensor) -> Tensor:
        return discretisation.simulate(v, v, x_0, noise).states

    path = discretisation.simulate(tilted, narrow, x_0, z)
    other = torch.zeros_like(z)
    for i in range(steps - 1):
        unit = torch.zeros_like(z)
        unit[i] = 1.0
        mean = states(narrow, other)[i + 1]
        other[i] = (path.states[i + 1] - mean) / (states(narrow, other + unit)[i + 1] - mean)
    torch.testing.assert_close(states(narrow, other), path.states)
    control = tilted(path.states, times := path.times[:, None, None]) - narrow(path.states, times)
    if integrator == "shifted_euler":
        control[-1] = 0.0  # its path takes none, but it counts
    found = discretisation.control_cost(control, path) / steps
    torch.testing.assert_close(found, (other - z).square().sum((0, 2)) / 2.0)
