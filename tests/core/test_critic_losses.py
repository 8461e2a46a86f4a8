"""Expectiles and advantage weights against their closed forms."""

import math

import pytest
import torch

from qam_lightning.core.critic import advantage_weight, expectile_loss


@pytest.mark.parametrize("kappa", [0.1, 0.5, 0.7, 0.9, 0.95])
def test_expectile_of_a_uniform_variable(kappa: float) -> None:
    """On U[0, 1] the κ-expectile e solves κ (1 - e)² = (1 - κ) e²."""
    targets = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    expectile = 1.0 / (1.0 + math.sqrt((1.0 - kappa) / kappa))
    value = torch.tensor(expectile, dtype=torch.float64, requires_grad=True)
    loss = expectile_loss(value.expand(20_000), targets, kappa)
    loss.backward()
    assert value.grad is not None and value.grad.item() == pytest.approx(0.0, abs=1e-7)
    for other in (expectile - 0.01, expectile + 0.01):
        worse = expectile_loss(torch.full_like(targets, other), targets, kappa)
        assert worse > loss


def test_expectile_of_two_points_by_descent() -> None:
    """Of 0 and 1 the κ-expectile is κ itself."""
    value, targets = torch.tensor(0.2, requires_grad=True), torch.tensor([0.0, 1.0])
    descent = torch.optim.SGD([value], lr=1.0)
    for _ in range(100):
        descent.zero_grad()
        expectile_loss(value.expand(2), targets, 0.8).backward()
        descent.step()
    assert value.item() == pytest.approx(0.8, abs=1e-5)


def test_half_is_half_the_squared_error_and_targets_are_constant() -> None:
    value, target = torch.randn(9), torch.randn(9, requires_grad=True)
    loss = expectile_loss(value.requires_grad_(), target, 0.5)
    torch.testing.assert_close(loss, 0.5 * (value - target).square().mean())
    loss.backward()
    assert target.grad is None


def test_advantage_weights_are_exponential_up_to_a_hundred() -> None:
    advantages = torch.tensor([-1000.0, -1.0, 0.0, 0.5, math.log(100.0) / 2, 3.0, 1000.0])
    found = advantage_weight(advantages, 2.0)
    expected = torch.tensor([0.0, math.exp(-2.0), 1.0, math.e, 100.0, 100.0, 100.0])
    torch.testing.assert_close(found, expected)
    assert torch.equal(advantage_weight(advantages[1:-1], 0.0), torch.ones(5))
