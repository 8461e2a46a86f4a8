"""Networks against slow, obvious versions of themselves."""

import math

import pytest
import torch
import torch.nn.functional as F

from qam_lightning.core.adjoint import autograd_vjp
from qam_lightning.core.flow import Recorded
from qam_lightning.nets.critic import CriticEnsemble, TimeConditionedCritic
from qam_lightning.nets.frozen import ema_copy, frozen
from qam_lightning.nets.gelu import gelu, gelu_and_derivative
from qam_lightning.nets.mlp import MLP
from qam_lightning.nets.policies import TanhGaussian
from qam_lightning.nets.velocity_field import VelocityField


def test_gelu_and_its_derivatives_equal_torch() -> None:
    x = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([-1e4, 1e4, 0.0])]).double()
    x.requires_grad_()
    ours, theirs = gelu(x), F.gelu(x, approximate="tanh")
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    (slope,) = torch.autograd.grad(theirs.sum(), x)
    (found,) = torch.autograd.grad(ours.sum(), x)
    torch.testing.assert_close(found, slope, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gelu_and_derivative(x.detach())[1], slope, rtol=1e-10, atol=1e-10)


def test_initialisation_is_xavier_uniform_with_zero_biases() -> None:
    critic = CriticEnsemble(40, 300, 2, 4)
    for weight in (MLP([40, 300, 3]).linears[0].weight, critic.hidden[0].weight[2]):
        bound = math.sqrt(6 / 340)
        assert weight.abs().max().item() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert all(not p.any() for name, p in critic.named_parameters() if "bias" in name)


def test_velocity_field_is_an_mlp_on_the_concatenation() -> None:
    field = VelocityField(5, 3, 16, 2).double()
    s, x, u = (torch.randn(4, 7, n, dtype=torch.float64) for n in (5, 3, 1))
    expected = field.mlp(torch.cat([s[0].expand(4, 7, 5), x, u], -1))
    torch.testing.assert_close(field.at(s[0])(x, u), expected)
    once = field.mlp(torch.cat([s[0], x[0], torch.full((7, 1), 0.3).double()], -1))
    torch.testing.assert_close(field(s[0], x[0], torch.tensor(0.3).double()), once)


def test_recorded_field_has_the_value_and_the_gradient_of_the_field() -> None:
    field = VelocityField(5, 3, 16, 3).double()
    s, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(4, 7, 3, dtype=torch.float64)
    states, times = torch.randn(4, 7, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    recorded = Recorded(field.at(s))
    with torch.no_grad():
        called = [2 * recorded(x, u) for x, u in zip(states, times, strict=True)]
    assert not called[0].requires_grad
    slow, fast = field.at(s)(states, times[:, None, None]), torch.stack(recorded.values)
    torch.testing.assert_close(torch.stack(called), 2 * slow.detach())
    torch.testing.assert_close(fast, slow)
    expected, found = (
        torch.autograd.grad((weight * v).sum(), list(field.parameters())) for v in (slow, fast)
    )
    torch.testing.assert_close(found, expected)


def test_linearized_field_equals_autograd() -> None:
    field = VelocityField(5, 3, 16, 3).double()
    s, g = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    states, times = torch.randn(4, 7, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    fast = field.linearize(s, states, times)
    slow = autograd_vjp(field.at(s), states, times)
    for i in range(4):
        torch.testing.assert_close(fast(i, g), slow(i, g), rtol=1e-10, atol=1e-12)


def test_ensemble_equals_a_loop_over_its_members() -> None:
    critic = CriticEnsemble(8, 16, 2, 3).double()
    for p in critic.parameters():
        torch.nn.init.normal_(p)
    s, a = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    values = critic(s, a)
    assert values.shape == (3, 6)
    for k in range(3):
        x = torch.cat([s, a], -1)
        for linear, norm in zip(critic.hidden, critic.norms, strict=True):
            x = F.gelu(x @ linear.weight[k] + linear.bias[k], approximate="tanh")
            x = F.layer_norm(x, (16,), norm.scale[k, 0], norm.bias[k, 0], eps=1e-6)
        expected = (x @ critic.out.weight[k] + critic.out.bias[k])[:, 0]
        torch.testing.assert_close(values[k], expected)


def test_critic_at_a_state_is_the_critic() -> None:
    for kind, inputs in ((CriticEnsemble, 1), (TimeConditionedCritic, 2)):
        critic = kind(8, 16, 2, 3).double()
        s, a = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
        others = (a.requires_grad_(), torch.rand(6, 1, dtype=torch.float64))[:inputs]
        slow, fast = critic(s, *others), critic.at(s)(*others)
        torch.testing.assert_close(fast, slow)
        wanted = [a, *critic.parameters()]
        expected, found = (torch.autograd.grad(q.square().sum(), wanted) for q in (slow, fast))
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(critic.at(s)(a), critic(s, a))  # at u = 1


def test_frozen_passes_gradient_to_inputs_only_and_follows_updates() -> None:
    net = MLP([3, 8, 2])
    view, x = frozen(net), torch.randn(4, 3, requires_grad=True)
    view(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in net.parameters())
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    torch.testing.assert_close(view(x), net(x))
    assert all(p.requires_grad for p in net.parameters())


def test_ema_copy_is_separate_and_untrained() -> None:
    net = MLP([3, 8, 2])
    copy = ema_copy(net)
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p is not q for p, q in zip(net.parameters(), copy.parameters(), strict=True))


def test_tanh_gaussian_density_integrates_to_one_and_matches_its_samples() -> None:
    policy = TanhGaussian(2, 1, 8, 1).double()
    n = 4001
    x = torch.tensor([[0.3, -0.7]]).double().expand(n, 2)
    noise = torch.linspace(-8, 8, n).double()[:, None]
    action, log_prob = policy(x, noise)
    # The density over a fine grid of actions must integrate to one.
    mass = torch.trapezoid(log_prob.exp(), action[:, 0])
    assert mass.item() == pytest.approx(1.0, abs=1e-4)
    assert action.abs().max() < 1
