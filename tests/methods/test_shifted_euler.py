"""The paper's scheme to the bit, against loops as they stood before there was another one.

The loops call the networks as often, and with as many rows, as the methods do: so they round alike.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qam_lightning.core.adjoint import VJP, autograd_vjp
from qam_lightning.core.flow import Field, TimeGrid
from qam_lightning.core.integrators import scheme
from qam_lightning.data.batch import Batch
from qam_lightning.methods.bam import BAM
from qam_lightning.methods.cgql import CGQL
from qam_lightning.methods.noise import PolicyNoise
from qam_lightning.methods.qam import QAM
from tests.methods.test_every_method import EXAMPLE, Build, make, spread

TAU, VARTHETA = EXAMPLE["tau"], EXAMPLE["vartheta"]
SteppedPath = tuple[list[Tensor], Tensor, Tensor, Tensor]
"""a_0..a_{T-1}, a_T, u_i and σ_i."""


@pytest.fixture(params=[4, 10], ids="T{}".format)
def steps(request: pytest.FixtureRequest) -> int:
    return request.param


def times_of(steps: int) -> Tensor:
    return torch.arange(steps, dtype=torch.float32) / steps


def stepped(v: Field, behavior: Field, x_0: Tensor, z: Tensor) -> SteppedPath:
    """Eq. 24."""
    h, times = 1.0 / (len(z) + 1), times_of(len(z) + 1)
    sigma = torch.sqrt(2.0 * (1.0 - times + h) / (times + h))
    states = [x_0]
    for i in range(len(z)):
        a, u = states[i], times[i]
        drift = 2.0 * v(a, u) - a / (u + h)
        states.append(a + h * drift + (h**0.5 * sigma[i]) * z[i])
    return states, states[-1] + h * behavior(states[-1], times[-1]), times, sigma


def backwards(vjp: VJP, terminal: Tensor, steps: int) -> Tensor:
    """Eq. 25."""
    h, g, found = 1.0 / steps, terminal, list[Tensor]()
    for i in range(steps - 1, -1, -1):
        g = (1.0 - h / ((i + 1) * h)) * g + 2.0 * h * vjp(i, g)
        found = [g, *found]
    return torch.stack(found)


def euler(v: Callable[[Tensor, Tensor, int], Tensor], z: Tensor, steps: int) -> Tensor:
    """Eq. 38, clipped at the end."""
    a, times = z, times_of(steps)
    for i in range(steps):
        a = torch.add(a, v(a, times[i], i), alpha=1.0 / steps)
    return a.clamp(-1.0, 1.0)


def equal(found: Tensor, expected: Tensor, network: nn.Module) -> None:
    """Require equal losses, with equal gradients."""
    assert torch.equal(found, expected)
    weights = list(network.parameters())
    gradients = [torch.autograd.grad(loss, weights) for loss in (found, expected)]
    assert all(map(torch.equal, *gradients)) and any(g.any() for g in gradients[0])


def test_the_path_and_the_adjoint(steps: int) -> None:
    g = torch.Generator().manual_seed(0)
    x_0, z = torch.randn(9, 3, generator=g), torch.randn(steps - 1, 9, 3, generator=g)
    v: Field = lambda x, u: torch.cos(2.0 * x) - u * x.flip(-1)  # noqa: E731
    behavior: Field = lambda x, u: torch.sin(x + u) * x  # noqa: E731
    chosen = scheme("shifted_euler", TimeGrid(steps))
    path = chosen.simulate(v, behavior, x_0, z)
    states, end, times, sigma = stepped(v, behavior, x_0, z)
    assert torch.equal(path.states, torch.stack(states)) and torch.equal(path.end, end)
    assert torch.equal(path.times, times) and torch.equal(path.sigma, sigma)
    assert torch.equal(path.jacobian_times, times + 1.0 / steps)
    vjp = autograd_vjp(behavior, path.states, times + 1.0 / steps)
    assert torch.equal(chosen.lean_adjoint(vjp, end), backwards(vjp, end, steps))


def test_qam(steps: int, build: Build, batch: Batch) -> None:
    method = make(QAM, build, flow_steps=steps)
    spread(method)
    s, noise = batch.observations, method.step_noise(len(batch.rewards))
    behavior, fine_tuned = method.behavior_ema.at(s), method.fine_tuned.at(s)
    controls = list[Tensor]()

    def v(a: Tensor, u: Tensor) -> Tensor:
        with torch.enable_grad():
            controls.append(fine_tuned(a, u))
        return behavior(a, u) + controls[-1]

    with torch.no_grad():
        x_0, z = noise.actor.path_x_0, noise.actor.path_z.transpose(0, 1)
        states, end, times, sigma = stepped(v, behavior, x_0, z)
    controls.append(fine_tuned(states[-1], times[-1]))
    end.requires_grad_()
    q = method.critic_ema(s, end.clamp(-1.0, 1.0)).mean(0).sum()
    terminal = -TAU * torch.autograd.grad(q, end)[0]
    vjp = method.behavior_ema.linearize(s, torch.stack(states), times + 1.0 / steps)
    adjoints, sigma = backwards(vjp, terminal, steps), sigma[:, None, None]
    terms = (2.0 * torch.stack(controls) / sigma + sigma * adjoints).square()
    found = method.losses(batch, noise)[0]["actor/adjoint_loss"]
    equal(found, terms.sum((0, 2)).mean(), method.fine_tuned)


def test_bam(steps: int, build: Build, batch: Batch) -> None:
    method = make(BAM, build, flow_steps=steps)
    spread(method)
    s, noise = batch.observations, method.step_noise(len(batch.rewards))
    behavior, fine_tuned = method.behavior_ema.at(s), method.fine_tuned.at(s)
    controls = list[Tensor]()

    def v(a: Tensor, u: Tensor) -> Tensor:
        uncontrolled = behavior(a, u)
        controls.append(fine_tuned(a, u))
        return uncontrolled + controls[-1]

    x_0, z = noise.actor.path_x_0, noise.actor.path_z.transpose(0, 1)
    _, end, _, sigma = stepped(v, behavior, x_0, z)
    std, mean = torch.std_mean(method.critic(s, end), dim=0, correction=0)
    squares = torch.stack(controls).square().sum(-1)
    cost = (2.0 * squares / sigma[:-1, None].square()).sum(0)
    losses, _ = method.losses(batch, noise)
    found = losses["actor/control_cost"] + losses["actor/value_loss"]
    equal(found, cost.mean() + -TAU * (mean - 0.5 * std).mean(), method.fine_tuned)


@torch.no_grad()
@pytest.mark.parametrize("kind", [QAM, BAM])
def test_the_action(kind: type[QAM], steps: int, build: Build, batch: Batch) -> None:
    method = make(kind, build, flow_steps=steps)
    spread(method)
    s, z = batch.observations, torch.randn(len(batch.rewards), method.dim)
    behavior, fine_tuned = method.behavior.at(s), method.fine_tuned.at(s)
    expected = euler(lambda a, u, i: behavior(a, u) + fine_tuned(a, u), z, steps)
    assert torch.equal(method.policy(s, PolicyNoise(z)), expected)
    assert torch.equal(
        method.behavior_policy(s, PolicyNoise(z)), euler(lambda a, u, i: behavior(a, u), z, steps)
    )


def test_the_guided_action_of_cgql(steps: int, build: Build, batch: Batch) -> None:
    method = make(CGQL, build, flow_steps=steps)
    spread(method)
    s, z = batch.observations, torch.randn(len(batch.rewards), method.dim)
    behavior, critic = method.behavior_ema.at(s), method.critic.at(s)

    def v(a: Tensor, u: Tensor, i: int) -> Tensor:
        if i == 0:
            return behavior(a, u)
        x = a.detach().requires_grad_()
        (uphill,) = torch.autograd.grad(critic(x).mean(0).sum(), x)
        return behavior(a, u) + (VARTHETA / u) * ((1.0 - u) * TAU * uphill + a)

    expected = euler(v, z, steps).detach()
    assert torch.equal(method.policy(s, PolicyNoise(z)), expected)
    assert not torch.equal(method.behavior_policy(s, PolicyNoise(z)), expected)
