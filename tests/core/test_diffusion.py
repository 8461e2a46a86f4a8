"""Schedule, samplers and losses of diffusion policies against the equations written as loops."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qam_lightning.core.diffusion import (
    NoiseModel,
    Schedule,
    ancestral_sample,
    ascent_loss,
    diffuse,
    posterior_sample,
    prediction_loss,
    variance_preserving,
)

Sampler = Callable[[NoiseModel, Schedule, Tensor], Tensor]


def paper_schedule(steps: int) -> tuple[list[float], list[float]]:
    """β^i and α^i of Eq. 46-47 as printed, i = 0..T-1."""
    beta, alpha = [], []
    for i in range(steps):
        beta.append(1 - math.exp(-0.1 / steps - (10 - 0.1) * (2 * i + 1) / (2 * steps**2)))
        alpha.append(math.prod(1 - b for b in beta))
    return beta, alpha


@pytest.mark.parametrize("steps", [1, 4, 10, 1000])
def test_schedule_is_that_of_the_paper(steps: int) -> None:
    schedule, (beta, alpha) = variance_preserving(steps), paper_schedule(steps)
    assert schedule.steps == steps
    assert schedule.beta[0] == 0 and schedule.alpha_bar[0] == 1
    assert schedule.beta[1:] == pytest.approx(beta, rel=1e-9)
    assert schedule.alpha_bar[1:] == pytest.approx(alpha, rel=1e-9)
    # The exponents add up to b_min + (b_max - b_min) / 2, whatever T.
    assert schedule.alpha_bar[-1] == pytest.approx(math.exp(-5.05))


def test_diffused_actions_have_the_variance_the_schedule_promises() -> None:
    g = torch.Generator().manual_seed(0)
    a, epsilon = 0.5 * torch.randn(200_000, 1, generator=g), torch.randn(200_000, 1, generator=g)
    noisy = diffuse(0.3 + a, epsilon, torch.full((200_000, 1), 0.36))
    assert noisy.mean().item() == pytest.approx(0.6 * 0.3, abs=0.01)
    assert noisy.var().item() == pytest.approx(0.36 * 0.25 + 0.64, rel=0.01)


def epsilon_like(a: float, i: int) -> float:
    """A noise prediction that depends on both of its arguments and leaves the box often."""
    return 1.3 * math.sin(3.0 * a + i) + 0.4 * a - 0.2


def slow_ancestral(z: list[float], steps: int) -> float:
    """Eq. 51 as printed, one number at a time."""
    beta, alpha = paper_schedule(steps)
    a = z[0]
    for i in range(steps - 1, -1, -1):
        noise = z[steps - i] if i > 0 else 0.0
        mean = (a - beta[i] / math.sqrt(1 - alpha[i]) * epsilon_like(a, i + 1)) / math.sqrt(
            1 - beta[i]
        )
        a = min(1.0, max(-1.0, mean + math.sqrt(beta[i]) * noise))
    return a


def slow_posterior(z: list[float], steps: int) -> float:
    """Bayes' rule for a^{i-1} given a^i and the clipped clean action, one number at a time.

    The prior of a^{i-1} is N(sqrt(ᾱ_{i-1}) â, 1 - ᾱ_{i-1}), the likelihood of a^i is
    N(sqrt(1 - β_i) a^{i-1}, β_i): their product's mean weighs both by their precisions.
    """
    beta, alpha = paper_schedule(steps)
    a = z[0]
    for i in range(steps - 1, -1, -1):
        clean = (a - math.sqrt(1 - alpha[i]) * epsilon_like(a, i + 1)) / math.sqrt(alpha[i])
        clean = min(1.0, max(-1.0, clean))
        if i == 0:
            return clean
        prior, likelihood = 1 / (1 - alpha[i - 1]), (1 - beta[i]) / beta[i]
        mean = prior * math.sqrt(alpha[i - 1]) * clean + likelihood * a / math.sqrt(1 - beta[i])
        a = mean / (prior + likelihood) + math.sqrt(beta[i]) * z[steps - i]
    raise AssertionError


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize(
    ("fast", "slow"), [(ancestral_sample, slow_ancestral), (posterior_sample, slow_posterior)]
)
def test_samplers_equal_loops(
    fast: Sampler, slow: Callable[[list[float], int], float], steps: int
) -> None:
    g = torch.Generator().manual_seed(1)
    z = torch.randn(steps, 50, 2, generator=g, dtype=torch.float64)
    schedule = variance_preserving(steps)
    found = fast(lambda a, i: 1.3 * torch.sin(3.0 * a + i) + 0.4 * a - 0.2, schedule, z)
    expected = [[slow(z[:, b, d].tolist(), steps) for d in range(2)] for b in range(50)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert 0 < (found.abs() > 1 - 1e-9).sum() < found.numel()  # the clip acts on some, not on all


def test_only_the_ancestral_sampler_keeps_intermediate_actions_in_the_box() -> None:
    z = 3.0 * torch.randn(10, 200, 2, generator=torch.Generator().manual_seed(2))
    for sampler, bounded in ((ancestral_sample, True), (posterior_sample, False)):
        seen: list[float] = []

        def zero(a: Tensor, i: int, seen: list[float] = seen) -> Tensor:
            seen.append(a.abs().max().item())
            return torch.zeros_like(a)

        end = sampler(zero, variance_preserving(10), z)
        assert len(seen) == 10 and end.abs().max() <= 1
        assert (max(seen[1:]) <= 1) == bounded


@pytest.mark.parametrize("sampler", [ancestral_sample, posterior_sample])
def test_a_gaussian_is_sampled_back_from_its_optimal_noise_prediction(sampler: Sampler) -> None:
    """E[ε | a^i] of N(m, s²) is linear; with many small steps the samples are N(m, s²) again."""
    m, s, schedule = 0.2, 0.1, variance_preserving(300)

    def optimal(a: Tensor, i: int) -> Tensor:
        alpha = schedule.alpha_bar[i]
        return math.sqrt(1 - alpha) * (a - math.sqrt(alpha) * m) / (alpha * s**2 + 1 - alpha)

    g = torch.Generator().manual_seed(3)
    x = sampler(optimal, schedule, torch.randn(300, 20_000, 1, generator=g, dtype=torch.float64))
    assert x.mean().item() == pytest.approx(m, abs=0.005)
    assert x.std().item() == pytest.approx(s, rel=0.03)


def test_losses_equal_loops() -> None:
    g = torch.Generator().manual_seed(4)
    predicted, target, slope = (torch.randn(3, 2, generator=g).double() for _ in range(3))
    weight, alpha = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([[0.9], [0.5], [0.2]])
    squares, ascent = 0.0, 0.0
    for b in range(3):
        for d in range(2):
            p = predicted[b, d].item()
            squares += weight[b].item() * (p - target[b, d].item()) ** 2 / 6
            scale = math.sqrt(1 - alpha[b, 0].item())
            ascent += weight[b].item() * scale * slope[b, d].item() * p / 6
    assert prediction_loss(predicted, target, weight).item() == pytest.approx(squares)
    assert ascent_loss(predicted, slope, alpha, weight).item() == pytest.approx(ascent, rel=1e-5)


def test_minimiser_of_ascent_and_denoising_is_the_tilted_noise() -> None:
    """ε - sqrt(1 - ᾱ) ∇Q / (2 η): climbing Q with inverse temperature τ = 1 / (2 η), Eq. 53."""
    eta, alpha = 0.7, torch.tensor([[0.6], [0.6]])
    g = torch.Generator().manual_seed(5)
    epsilon, slope = torch.randn(2, 3, generator=g), torch.randn(2, 3, generator=g)
    best = (epsilon - (1 - alpha).sqrt() * slope / (2 * eta)).requires_grad_()
    one = torch.ones(2)
    loss = ascent_loss(best, slope, alpha, one) + eta * prediction_loss(best, epsilon, one)
    (gradient,) = torch.autograd.grad(loss, best)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)
