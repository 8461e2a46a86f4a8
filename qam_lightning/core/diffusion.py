"""Diffusion policies: schedule, samplers and losses of QSM and DAC (Eq. 46-56).

Steps are counted i = 1..T from clean to noisy; ᾱ_0 = 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

NoiseModel = Callable[[Tensor, int], Tensor]
"""``epsilon(a, i)`` predicts the noise in actions (B, D) of step i: ε_θ(s, ., .)."""

B_MIN, B_MAX = 0.1, 10.0
"""The range of the noise rate, the same in all experiments."""


class Schedule(NamedTuple):
    """A variance-preserving noise schedule, entries 0..T (the paper's β^i, α^i are β_i, ᾱ_i).

    Attributes:
        beta: β_i in (0, 1), the variance added at step i; β_0 = 0.
        alpha_bar: ᾱ_i = Π_{j<=i} (1 - β_j), decreasing from ᾱ_0 = 1.
    """

    beta: tuple[float, ...]
    alpha_bar: tuple[float, ...]

    @property
    def steps(self) -> int:
        """T."""
        return len(self.beta) - 1


def variance_preserving(steps: int) -> Schedule:
    """Return the schedule of T = ``steps`` >= 1 steps (Eq. 46-47).

    Eq. 46 counts from 0, so that its 2i + 1 is 2i - 1 here.
    """
    beta, alpha_bar = [0.0], [1.0]
    for i in range(1, steps + 1):
        rate = B_MIN / steps + (B_MAX - B_MIN) * (2 * i - 1) / (2 * steps**2)
        beta.append(-math.expm1(-rate))
        alpha_bar.append(alpha_bar[-1] * math.exp(-rate))
    return Schedule(tuple(beta), tuple(alpha_bar))


def diffuse(a: Tensor, epsilon: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return a^i = sqrt(ᾱ_i) a + sqrt(1 - ᾱ_i) ε, (B, D).

    Args:
        a: (B, D) clean actions.
        epsilon: (B, D) standard normal.
        alpha_bar: (B, 1), ᾱ_i of each sample's step.
    """
    return alpha_bar.sqrt() * a + (1.0 - alpha_bar).sqrt() * epsilon


def ancestral_sample(epsilon: NoiseModel, schedule: Schedule, z: Tensor) -> Tensor:
    """Return a^0 in [-1, 1], (B, D), clipping the action after every step (QSM, Eq. 51).

    Args:
        epsilon: noise predictor.
        schedule: T steps.
        z: (T, B, D) standard normal: a^T, then the noise of steps T..2. Step 1 adds none.
    """
    a = z[0]
    for i in range(schedule.steps, 0, -1):
        beta, alpha_bar = schedule.beta[i], schedule.alpha_bar[i]
        scale = beta / math.sqrt(1.0 - alpha_bar)
        mean = (a - scale * epsilon(a, i)) / math.sqrt(1.0 - beta)
        a = _add_noise(mean, i, schedule, z).clamp(-1.0, 1.0)
    return a


def posterior_sample(epsilon: NoiseModel, schedule: Schedule, z: Tensor) -> Tensor:
    """Return a^0 in [-1, 1], (B, D), clipping the predicted clean action (DAC, Eq. 55-56).

    A step goes to the mean of p(a^{i-1} | a^i, â), â being the clipped prediction, plus noise of
    variance β_i; the last one ends at â itself.

    Args:
        epsilon: noise predictor.
        schedule: T steps.
        z: (T, B, D) standard normal: a^T, then the noise of steps T..2. Step 1 adds none.
    """
    a = z[0]
    for i in range(schedule.steps, 0, -1):
        beta, alpha_bar, before = schedule.beta[i], schedule.alpha_bar[i], schedule.alpha_bar[i - 1]
        noisy = 1.0 - alpha_bar
        clean = (a - math.sqrt(noisy) * epsilon(a, i)) / math.sqrt(alpha_bar)
        to_clean = beta * math.sqrt(before) / noisy
        to_stay = math.sqrt(1.0 - beta) * (1.0 - before) / noisy
        a = _add_noise(to_clean * clean.clamp(-1.0, 1.0) + to_stay * a, i, schedule, z)
    return a


def _add_noise(mean: Tensor, i: int, schedule: Schedule, z: Tensor) -> Tensor:
    if i == 1:
        return mean
    return mean + math.sqrt(schedule.beta[i]) * z[schedule.steps + 1 - i]


def prediction_loss(predicted: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return mean_B weight · mean_D (ε_θ - target)², a scalar (Eq. 48-49).

    Args:
        predicted: (B, D), ε_θ(s, a^i, i).
        target: (B, D): ε to denoise (Eq. 49), -τ ∇_a Q(s, a^i) to match the score of exp(τ Q)
            (Eq. 48; the sign is that of ε, which points against the score).
        weight: (B,) sample weights; the mean divides by B whatever they are.
    """
    return (weight * (predicted - target).square().mean(-1)).mean()


def ascent_loss(predicted: Tensor, dq_da: Tensor, alpha_bar: Tensor, weight: Tensor) -> Tensor:
    """Return mean_B weight · mean_D sqrt(1 - ᾱ_i) ∇_a Q(s, a^i) · ε_θ, a scalar (Eq. 54).

    Lowering it turns ε_θ against ∇_a Q, so that removing noise ascends Q.

    Args:
        predicted: (B, D), ε_θ(s, a^i, i).
        dq_da: (B, D), ∇_a Q(s, a^i), a constant here.
        alpha_bar: (B, 1), ᾱ_i.
        weight: (B,) sample weights.
    """
    return (weight * ((1.0 - alpha_bar).sqrt() * dq_da * predicted).mean(-1)).mean()
