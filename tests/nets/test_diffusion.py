"""The networks of the diffusion policies and the guided flows against slow versions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qam_lightning.core.diffusion import posterior_sample
from qam_lightning.nets.critic import TimeConditionedCritic
from qam_lightning.nets.diffusion import DiffusionPolicy, NoisePredictor


def slow_prediction(net: NoisePredictor, s: Tensor, a: Tensor, i: Tensor) -> Tensor:
    """ε_θ on the concatenation, layer by layer."""
    angle = 2 * math.pi * i * net.features.frequencies
    e = torch.cat([angle.cos(), angle.sin()], -1)
    for number, layer in enumerate(net.embedding.linears):
        e = layer(F.mish(e) if number else e)
    x = torch.cat([a, s, e], -1)
    for number, layer in enumerate(net.trunk.linears):
        x = layer(F.mish(x) if number else x)
    return x


def test_noise_predictor_is_a_mish_network_on_the_concatenation() -> None:
    net = NoisePredictor(5, 3, 16, 2)
    assert [m.out_features for m in net.embedding.linears] == [16, 16]
    s, a, i = torch.randn(7, 5), torch.randn(7, 3), torch.randint(1, 5, (7, 1)).float()
    expected = slow_prediction(net, s, a, i)
    torch.testing.assert_close(net.at(s)(a, net.embed(i)), expected)
    assert (net.at(s)(a, net.embed(i + 1)) - expected).abs().max() > 1e-4


def test_frequencies_start_small() -> None:
    torch.manual_seed(0)
    drawn = torch.cat([NoisePredictor(1, 1, 4, 1).features.frequencies for _ in range(100)])
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 0.2) < 0.01


def test_diffusion_policy_acts_by_its_sampler_with_the_step_s_own_number() -> None:
    policy = DiffusionPolicy(5, 3, 16, 2, 4, posterior_sample)
    s, z = torch.randn(7, 5), torch.randn(7, 4, 3)

    def slow(a: Tensor, i: int) -> Tensor:
        return slow_prediction(policy.predictor, s, a, torch.full((7, 1), float(i)))

    expected = posterior_sample(slow, policy.schedule, z.transpose(0, 1))
    torch.testing.assert_close(policy.sample(s, z), expected)


def test_every_step_is_drawn_alike_with_its_own_alpha_bar() -> None:
    steps = 4
    policy = DiffusionPolicy(7, 6, 16, 2, steps, posterior_sample)
    i, alpha_bar = policy.step_of(torch.linspace(0, 1 - 2**-24, 16)[:, None])
    assert torch.bincount(i.flatten().long()).tolist() == [0, 4, 4, 4, 4]
    for step, found in zip(i.flatten().long().tolist(), alpha_bar.flatten().tolist(), strict=True):
        assert found == pytest.approx(policy.schedule.alpha_bar[step], rel=1e-6)
    s, a = torch.randn(16, 7), torch.randn(16, 6)
    torch.testing.assert_close(policy(s, a, i), slow_prediction(policy.predictor, s, a, i))


def test_timed_critic_takes_clean_actions_for_granted() -> None:
    critic = TimeConditionedCritic(8, 16, 2, 3)
    s, a, ones = torch.randn(6, 5), torch.randn(6, 3), torch.ones(6, 1)
    torch.testing.assert_close(critic(s, a), critic(s, a, ones))
    torch.testing.assert_close(critic(s, a, torch.tensor(0.3)), critic(s, a, 0.3 * ones))
    assert (critic(s, a) - critic(s, a, 0.3 * ones)).abs().max() > 1e-4
