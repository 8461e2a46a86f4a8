"""QAM, BAM, QAM-FQL and QAM-EDIT against their equations written as loops."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from qam_lightning.core.adjoint import VJP
from qam_lightning.data.batch import Batch
from qam_lightning.methods.bam import BAM
from qam_lightning.methods.base import Method
from qam_lightning.methods.noise import PolicyNoise
from qam_lightning.methods.qam import QAM, QAMNoise
from qam_lightning.methods.qam_edit import QAMEdit
from qam_lightning.methods.qam_fql import QAMFQL
from qam_lightning.methods.trqam import TRQAM
from qam_lightning.nets.velocity_field import VelocityField
from qam_lightning.util.errors import ArgumentError, UserError
from tests.methods.test_every_method import EXAMPLE, Build, Rows, make, spread

T, TAU = 4, EXAMPLE["tau"]
H = 1 / T


class SlowPath(NamedTuple):
    """The path a_0..a_T of one simulation, and v - f_β at its first T points."""

    states: list[Tensor]
    controls: list[Tensor]


def field(net: nn.Module, s: Tensor, a: Tensor, u: float) -> Tensor:
    return net.mlp(torch.cat([s, a, torch.full((len(s), 1), u)], 1))


def sigma(i: int) -> float:
    return math.sqrt(2 * (1 - i * H + H) / (i * H + H))


def qam_noise(noise: object) -> QAMNoise:
    """Return the part of an actor's noise that is QAM's."""
    return noise if isinstance(noise, QAMNoise) else noise.qam  # type: ignore[attr-defined]


def slow_path(method: Method, s: Tensor, noise: QAMNoise) -> SlowPath:
    """Eq. 24, its last step by the averaged behaviour flow alone."""
    a = noise.path_x_0
    states, controls = [a], []
    for i in range(T):
        u = i * H
        behavior, fine = field(method.behavior_ema, s, a, u), field(method.fine_tuned, s, a, u)
        controls.append(fine if method.residual else fine - behavior)
        if i < T - 1:
            drift = 2 * (behavior + controls[-1]) - a / (u + H)
            a = a + H * drift + math.sqrt(H) * sigma(i) * noise.path_z[:, i]
        else:
            a = a + H * behavior
        states.append(a)
    return SlowPath(states, controls)


def slow_adjoint_loss(method: Method, s: Tensor, noise: QAMNoise) -> Tensor:
    """Eq. 21 with the lean adjoint of Eq. 25, which starts inside the action box only."""
    with torch.no_grad():
        states = slow_path(method, s, noise).states
    end = states[T].requires_grad_()
    outside = (end.abs() > 1).float().mean()
    assert 0.05 < outside < 0.95  # so that the clip matters
    q = method.critic_ema(s, end.clip(-1, 1)).mean(0)
    g = -TAU * torch.autograd.grad(q.sum(), end)[0]
    total = torch.zeros(len(s))
    for i in reversed(range(T)):
        a, ahead = states[i].requires_grad_(), (i + 1) * H
        b = 2 * field(method.behavior_ema, s, a, ahead) - a / ahead
        g = g + H * torch.autograd.grad(b, a, g)[0]
        control = field(method.fine_tuned, s, a.detach(), i * H)
        if not method.residual:
            control = control - field(method.behavior_ema, s, a.detach(), i * H)
        total = total + (2 * control / sigma(i) + sigma(i) * g).square().sum(1)
    return total.mean()


P = 2.0
TIMES = [1 - (1 - i / T) ** P for i in range(T + 1)]
DENOISER = {"integrator": "denoiser", "grid_power": P}


def spread_of(i: int) -> tuple[float, float, float]:
    """Return q, C and S of a step of the denoiser scheme."""
    u, ahead = TIMES[i], TIMES[i + 1]
    r = (1 - ahead) / (1 - u)
    q = u / ahead * r
    return q, ahead - u * q * r, (1 - ahead) * math.sqrt(1 - q**2)


def drawn(i: int) -> float:
    """Return the weight of ‖f_θ + (1 - u) w‖²: T h times the paper's 4 / σ², 1 / u shifted."""
    u, ahead = TIMES[i], TIMES[i + 1]
    return T * (ahead - u) * 2 * ahead / (1 - u)


def bent(i: int) -> float:
    """Return the weight of D_i - D_{i-1} in step i, by numerical integration."""
    if not 0 < i < T - 1:
        return 0.0
    u, ahead = TIMES[i], TIMES[i + 1]
    x = torch.linspace(u, ahead, 20_001).double()
    shares = (1 - ahead) ** 2 / ahead * 2 * x / (1 - x) ** 3
    return torch.trapezoid(shares * (x - u), x).item() / (u - TIMES[i - 1])


def slow_denoiser_path(method: Method, s: Tensor, noise: QAMNoise, all_steps: bool) -> SlowPath:
    """The steps of `core.denoiser`."""
    a, before = noise.path_x_0, torch.zeros_like(noise.path_x_0)
    states, controls = [a], []
    for i in range(T):
        u, ahead = TIMES[i], TIMES[i + 1]
        r = (1 - ahead) / (1 - u)
        behavior, fine = field(method.behavior_ema, s, a, u), field(method.fine_tuned, s, a, u)
        controls.append(fine if method.residual else fine - behavior)
        v = behavior + controls[-1] if all_steps or i < T - 1 else behavior
        denoised = a + (1 - u) * v
        q, toward, sigma = spread_of(i)
        mean = q * r * a + toward * denoised + bent(i) * (denoised - before)
        z = noise.path_z[:, i] if i < T - 1 else 0.0
        a, before = mean + sigma * z, denoised
        states.append(a)
    return SlowPath(states, controls)


@pytest.mark.parametrize("kind", [QAM, QAMFQL, QAMEdit])
def test_adjoint_matching_in_the_denoiser_scheme(
    kind: type[Method], residual: bool, build: Build, batch: Batch
) -> None:
    method = make(kind, build, residual=residual, **DENOISER)
    spread(method)
    s, noise = batch.observations, method.step_noise(len(batch.rewards))
    with torch.no_grad():
        states = slow_denoiser_path(method, s, qam_noise(noise.actor), all_steps=True).states
    end = states[T].requires_grad_()
    q_end = method.critic_ema(s, end.clip(-1, 1)).mean(0)
    w = -TAU * torch.autograd.grad(q_end.sum(), end)[0]
    expected = torch.zeros(len(s))
    for i in reversed(range(T)):
        u, ahead, a = TIMES[i], TIMES[i + 1], states[i].requires_grad_()
        r, (_, toward, _) = (1 - ahead) / (1 - u), spread_of(i)
        denoised = a + (1 - u) * field(method.behavior_ema, s, a, u)
        passed = torch.autograd.grad(denoised, a, w)[0]
        w = r**2 * w + (toward * ahead / u * passed if i else 0.0)
        control = field(method.fine_tuned, s, a.detach(), u)
        if not method.residual:
            control = control - field(method.behavior_ema, s, a.detach(), u)
        expected = expected + drawn(i) * (control + (1 - u) * w).square().sum(1)
    found = method.losses(batch, noise)[0]["actor/adjoint_loss"]
    compare(found, expected.mean(), method.fine_tuned)


def test_bam_in_the_denoiser_scheme(residual: bool, build: Build, batch: Batch) -> None:
    method = make(BAM, build, residual=residual, **DENOISER)
    spread(method)
    s, noise = batch.observations, method.step_noise(len(batch.rewards))
    path = slow_denoiser_path(method, s, noise.actor, all_steps=False)
    q = method.critic(s, path.states[T])
    value = q.mean(0) - 0.5 * q.std(0, correction=0)
    moved = [(1 - u) * control for u, control in zip(TIMES, path.controls, strict=False)]
    cost = torch.zeros(len(s))
    for i in range(T - 1):  # T times the KL of two Gaussians
        _, toward, noise_of = spread_of(i)
        shift = toward * moved[i] + bent(i) * (moved[i] - moved[max(i - 1, 0)])
        cost = cost + T * (shift / noise_of).square().sum(1) / 2
    losses, _ = method.losses(batch, noise)
    found = losses["actor/control_cost"] + losses["actor/value_loss"]
    compare(found, (cost - TAU * value).mean(), method.fine_tuned)


@pytest.mark.parametrize("scheme", [{}, DENOISER], ids=["shifted_euler", "denoiser"])
@pytest.mark.parametrize("kind", [QAM, BAM, TRQAM])
def test_a_path_takes_t_evaluations_of_each_network(
    kind: type[Method],
    scheme: dict[str, Any],
    residual: bool,
    build: Build,
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In both schemes; the adjoint evaluates the behaviour T times more, for its products."""
    method = make(kind, build, residual=residual, **scheme)
    linearize, rows, products = VelocityField.linearize, Rows(), list[int]()

    def noting(*arguments: Any) -> VJP:
        vjp = linearize(*arguments)

        def counted(i: int, g: Tensor) -> Tensor:
            products.append(i)
            return vjp(i, g)

        return counted

    monkeypatch.setattr(VelocityField, "linearize", noting)
    noise = method.step_noise(len(batch.rewards)).actor
    hook = register_module_forward_pre_hook(rows)
    method.actor_losses(batch, noise)
    hook.remove()

    def evaluations(network: str) -> float:
        weight = method.get_parameter(f"{network}.mlp.layers.1.weight")
        return sum(map(len, rows.of[weight.data_ptr()])) / len(batch.rewards)

    # BAM's last step is the behaviour's alone.
    assert evaluations("fine_tuned") == (T - 1 if kind is BAM else T)
    assert evaluations("behavior_ema") == (T if kind is BAM else 2 * T)
    taken = [] if kind is BAM else list(range(T))[::-1]
    assert products == (taken if scheme == {} else taken[:-1])  # none at u = 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"integrator": "denoiser", "flow_steps": 1}, "flow_steps is 1, expected at least 2 with"),
        ({"grid_power": 2.0}, "grid_power is 2.0, expected 1 with integrator shifted_euler"),
        ({**DENOISER, "grid_power": 0.5}, "grid_power is 0.5, expected at least 1 and at most 3"),
        ({**DENOISER, "grid_power": math.nan}, "grid_power is nan, expected at least 1"),
        ({"integrator": "heun"}, "integrator is heun, expected one of shifted_euler, denoiser"),
        ({"sampler": "ab3"}, "sampler is ab3, expected one of euler, ab2, etd2"),
    ],
)
def test_schemes_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, build: Build
) -> None:
    with pytest.raises(ArgumentError, match=f"^QAM: {message}") as caught:
        make(QAM, build, **changes)
    assert "\n" not in str(caught.value)


def slow_ode(method: Method, s: Tensor, z: Tensor) -> Tensor:
    """Eq. 38-39 with the online networks."""
    a = z
    for i in range(T):
        v = field(method.fine_tuned, s, a, i * H)
        if method.residual:
            v = v + field(method.behavior, s, a, i * H)
        a = a + H * v
    return a.clip(-1, 1)


def compare(found: Tensor, expected: Tensor, network: nn.Module) -> None:
    """Compare two losses and their gradients."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = list(network.parameters())
    gradients = (torch.autograd.grad(loss, weights) for loss in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


@pytest.fixture(params=[True, False], ids=["residual", "direct"])
def residual(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.mark.parametrize("kind", [QAM, QAMFQL, QAMEdit])
def test_adjoint_matching(kind: type[Method], residual: bool, build: Build, batch: Batch) -> None:
    method = make(kind, build, residual=residual)
    spread(method)
    noise = method.step_noise(len(batch.rewards))
    found = method.losses(batch, noise)[0]["actor/adjoint_loss"]
    expected = slow_adjoint_loss(method, batch.observations, qam_noise(noise.actor))
    compare(found, expected, method.fine_tuned)


def test_bam_backpropagates_through_the_path(residual: bool, build: Build, batch: Batch) -> None:
    method = make(BAM, build, residual=residual)
    spread(method)
    s, noise = batch.observations, method.step_noise(len(batch.rewards))
    path = slow_path(method, s, noise.actor)
    q = method.critic(s, path.states[T])
    value = q.mean(0) - 0.5 * q.std(0, correction=0)
    cost = sum(2 * path.controls[i].square().sum(1) / sigma(i) ** 2 for i in range(T - 1))
    losses, _ = method.losses(batch, noise)
    torch.testing.assert_close(losses["actor/value_loss"], -TAU * value.mean())
    found = losses["actor/control_cost"] + losses["actor/value_loss"]
    compare(found, (cost - TAU * value).mean(), method.fine_tuned)


def test_bam_needs_a_step_to_control(build: Build) -> None:
    with pytest.raises(UserError, match="BAM: flow_steps is 1, expected at least 2"):
        make(BAM, build, flow_steps=1)


@pytest.mark.parametrize("kind", [QAM, BAM])
def test_flows_act_with_the_online_networks(
    kind: type[Method], residual: bool, build: Build, batch: Batch
) -> None:
    method = make(kind, build, residual=residual)
    spread(method)
    s, z = batch.observations, torch.randn(len(batch.rewards), method.dim)
    torch.testing.assert_close(method.policy(s, PolicyNoise(z)), slow_ode(method, s, z))


def test_the_one_step_policy_ascends_and_follows_the_fine_tuned_flow(
    build: Build, batch: Batch
) -> None:
    method = build(QAMFQL, tau=TAU, alpha=7.0, residual=True)
    spread(method)
    noise = method.step_noise(len(batch.rewards))
    s, z = batch.observations, noise.actor.z
    action = method.one_step.mlp(torch.cat([s, z], 1))
    losses, _ = method.losses(batch, noise)
    gap = (action - slow_ode(method, s, z)).square().mean()
    torch.testing.assert_close(losses["actor/distill_loss"], 7.0 * gap)
    assert (action.abs() > 1).any()
    value = method.critic(s, action.clip(-1, 1)).mean()
    torch.testing.assert_close(losses["actor/q_loss"], -value)


def test_the_edit_policy_ascends_from_the_fine_tuned_flow(build: Build, batch: Batch) -> None:
    method = build(QAMEdit, tau=TAU, edit_scale=0.4, residual=True)
    spread(method)
    noise = method.step_noise(len(batch.rewards))
    s, action = batch.observations, slow_ode(method, batch.observations, noise.actor.edited.z)
    edit, log_prob = method.edit.gaussian(torch.cat([s, action], 1), noise.actor.edited.edit)
    losses, _ = method.losses(batch, noise)
    value = method.critic(s, (action + 0.4 * edit).clip(-1, 1)).mean()
    torch.testing.assert_close(losses["actor/edit_q_loss"], -value)
    coefficient = method.entropy_coefficient()
    torch.testing.assert_close(losses["actor/edit_entropy_loss"], coefficient * log_prob.mean())
    tuning = coefficient * (-log_prob.mean() + 0.5 * method.dim)
    torch.testing.assert_close(losses["actor/edit_coefficient_loss"], tuning)


@pytest.mark.parametrize(
    ("kind", "plain"), [(QAMFQL, {"alpha": math.inf}), (QAMEdit, {"edit_scale": 0.0})]
)
def test_without_their_second_policy_the_variants_are_plain_qam(
    kind: type[Method], plain: dict[str, float], build: Build, batch: Batch
) -> None:
    variant = make(kind, build, **plain)
    qam = make(QAM, build)
    assert variant.state_dict().keys() == qam.state_dict().keys()
    found, expected = (m.losses(batch, m.step_noise(len(batch.rewards)))[0] for m in (variant, qam))
    assert found == expected
    g = (torch.Generator().manual_seed(0) for _ in range(2))
    s = batch.observations
    one, other = (m.act(s, m.acting_noise(len(s), next(g))) for m in (variant, qam))
    assert torch.equal(one, other)
