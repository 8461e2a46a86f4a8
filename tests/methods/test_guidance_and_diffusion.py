"""CGQL, CGQL-MSE, CGQL-Linex, QSM and DAC against their equations written as loops."""

import pytest
import torch

from qam_lightning.core.diffusion import ancestral_sample, posterior_sample
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Method
from qam_lightning.methods.cgql import CGQL
from qam_lightning.methods.cgql_linex import CGQLLinex
from qam_lightning.methods.cgql_mse import CGQLMSE
from qam_lightning.methods.dac import DAC
from qam_lightning.methods.noise import PolicyNoise
from qam_lightning.methods.qsm import QSM
from tests.methods.test_every_method import Build, make, spread


@pytest.mark.parametrize("kind", [CGQL, CGQLMSE, CGQLLinex])
def test_the_online_critic_guides_the_averaged_flow(
    kind: type[Method], build: Build, batch: Batch
) -> None:
    """Eq. 60-62, 72, a step at a time; only CGQL's critic takes noisy actions for clean ones."""
    method = make(kind, build, tau=3.0, vartheta=0.2)
    spread(method)
    s, z = batch.observations, torch.randn(len(batch.rewards), method.dim)
    ones, x = torch.ones(len(s), 1), z
    for i in range(4):
        u = i / 4
        velocity = method.behavior_ema(s, x, u * ones)
        if i > 0:
            a = x.detach().requires_grad_()
            q = method.critic(s, a, ones if kind is CGQL else u * ones).mean(0)
            (slope,) = torch.autograd.grad(q.sum(), a)
            velocity = velocity + 0.2 * ((1 - u) * 3.0 * slope + x) / u
        x = x + velocity / 4
    torch.testing.assert_close(
        method.policy(s, PolicyNoise(z)), x.clip(-1, 1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", [CGQLMSE, CGQLLinex])
def test_the_critic_of_noisy_actions_learns_the_averaged_values_of_clean_ones(
    kind: type[Method], build: Build, batch: Batch
) -> None:
    method = make(kind, build, tau=8.0, varrho=0.3)
    spread(method)
    noise = method.step_noise(len(batch.rewards))
    s, a, u, z = batch.observations, batch.actions, noise.actor.u, noise.actor.z
    q = method.critic(s, (1 - u) * z + u * a, u)
    target = method.critic_ema(s, a, torch.ones_like(u))
    delta = 8.0 * (target - q)
    assert (delta > 5).any() and (delta < 5).any()
    linex = torch.where(delta > 5, delta, delta.clip(max=5).exp() + 8.0 * q)
    error = (q - target).square() if kind is CGQLMSE else linex
    found = method.losses(batch, noise)[0]["critic/noisy_loss"]
    torch.testing.assert_close(found, 0.3 * (batch.valid * error).mean())


@pytest.mark.parametrize(("kind", "sampler"), [(QSM, ancestral_sample), (DAC, posterior_sample)])
def test_diffusion_policies_follow_the_averaged_critics_slope(
    kind: type[Method], sampler: object, build: Build, batch: Batch
) -> None:
    method = make(kind, build)
    spread(method)
    assert method.actor.sampler is sampler
    noise = method.step_noise(len(batch.rewards))
    losses, _ = method.losses(batch, noise)
    s, (epsilon, u) = batch.observations, noise.actor
    i, alpha_bar = method.actor.step_of(u)
    a = (alpha_bar.sqrt() * batch.actions + (1 - alpha_bar).sqrt() * epsilon).requires_grad_()
    (dq_da,) = torch.autograd.grad(method.critic_ema(s, a).mean(0).sum(), a)
    predicted = method.actor(s, a, i)
    valid, noisy = batch.valid[:, None], (1 - alpha_bar).sqrt()
    denoising = valid * (predicted - epsilon).square()
    torch.testing.assert_close(losses["actor/denoising_loss"], 2.0 * denoising.mean())
    if kind is QSM:  # a score of exp(τ Q), which ε_θ points against
        matching = valid * (predicted + 1.5 * dq_da).square()
        torch.testing.assert_close(losses["actor/score_loss"], matching.mean())
    else:
        ascent = valid * noisy * dq_da * predicted
        torch.testing.assert_close(losses["actor/ascent_loss"], ascent.mean())
