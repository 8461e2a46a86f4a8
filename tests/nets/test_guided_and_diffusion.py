"""The networks of the diffusion policies and the guided flows against slow versions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qam_lightning.core.diffusion import posterior_sample
from qam_lightning.data.batch import Batch
from qam_lightning.nets.diffusion import DiffusionPolicy, NoisePredictor
from qam_lightning.nets.ensemble import CriticEnsemble
from qam_lightning.nets.guided_flow import GuidedFlow, TimedCritic


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
    torch.testing.assert_close(net.given(s)(a, net.embed(i)), expected)
    assert (net.given(s)(a, net.embed(i + 1)) - expected).abs().max() > 1e-4


def test_frequencies_start_small() -> None:
    torch.manual_seed(0)
    drawn = torch.cat([NoisePredictor(1, 1, 4, 1).features.frequencies for _ in range(100)])
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 0.2) < 0.01


def test_diffusion_policy_acts_by_its_sampler_with_the_step_s_own_number() -> None:
    policy = DiffusionPolicy(5, 3, 16, 2, 4, posterior_sample)
    s, z = torch.randn(7, 5), torch.randn(7, *policy.policy_draws()["z"].shape)

    def slow(a: Tensor, i: int) -> Tensor:
        return slow_prediction(policy.predictor, s, a, torch.full((7, 1), float(i)))

    expected = posterior_sample(slow, policy.schedule, z.transpose(0, 1))
    torch.testing.assert_close(policy.act(s, z), expected)


def test_noised_actions_are_drawn_at_every_step_alike(batch: Batch) -> None:
    """A uniform draw picks steps 1..T, each with its own ᾱ; the slope is taken where ε_θ looks."""
    steps = 4
    policy = DiffusionPolicy(7, 6, 16, 2, steps, posterior_sample)
    critic = CriticEnsemble(13, 16, 2, 3)
    uniform = torch.linspace(0, 1 - 2**-24, len(batch.rewards))[:, None]
    epsilon = torch.randn(len(batch.rewards), 6)
    at = policy.noised(batch, {"epsilon": epsilon, "step": uniform}, critic)
    for row, u in enumerate(uniform.flatten().tolist()):
        i = min(int(u * steps), steps - 1) + 1
        alpha = policy.schedule.alpha_bar[i]
        a = math.sqrt(alpha) * batch.actions[row] + math.sqrt(1 - alpha) * epsilon[row]
        a = a[None].requires_grad_()
        s = batch.observations[row : row + 1]
        (slope,) = torch.autograd.grad(critic(s, a).mean(), a)
        expected = slow_prediction(policy.predictor, s, a, torch.tensor([[float(i)]]))
        torch.testing.assert_close(at.predicted[row], expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(at.slope[row], slope[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(at.alpha_bar[row, 0].item(), alpha, rtol=1e-6, atol=0)
    assert not at.slope.requires_grad and at.predicted.requires_grad


def test_timed_critic_takes_clean_actions_for_granted() -> None:
    critic = TimedCritic(8, 16, 2, 3)
    s, a, ones = torch.randn(6, 5), torch.randn(6, 3), torch.ones(6, 1)
    torch.testing.assert_close(critic(s, a), critic(s, a, ones))
    torch.testing.assert_close(critic(s, a, torch.tensor(0.3)), critic(s, a, 0.3 * ones))
    assert (critic(s, a) - critic(s, a, 0.3 * ones)).abs().max() > 1e-4


def test_guided_actions_climb_the_value_and_carry_no_gradient() -> None:
    torch.manual_seed(0)
    flow = GuidedFlow(5, 3, 16, 2, 10, tau=3.0, vartheta=0.3)
    s, z = torch.randn(64, 5), torch.randn(64, 3)

    def value(a: Tensor, u: Tensor) -> Tensor:
        return -(a - 0.5).square().sum(-1)

    guided, cloned = flow.guided_act(s, z, value), flow.behavior_act(s, z)
    assert not guided.requires_grad and guided.abs().max() <= 1
    one = torch.ones(())
    assert value(guided, one).mean() > value(cloned, one).mean() + 0.1
    with torch.no_grad():
        for p in flow.flow.parameters():
            p.add_(1.0)
    torch.testing.assert_close(flow.guided_act(s, z, value), guided)  # only the EMA acts
