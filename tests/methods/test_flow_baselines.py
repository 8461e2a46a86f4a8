"""What FBRAC, FQL, FAWAC, IFQL and FEdit promise beyond what holds for every method."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qam_lightning.core.flow import flow_matching_loss
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Method
from qam_lightning.methods.fawac import FAWAC
from qam_lightning.methods.fbrac import FBRAC
from qam_lightning.methods.fedit import FEdit
from qam_lightning.methods.fql import FQL
from qam_lightning.methods.ifql import IFQL
from qam_lightning.methods.noise import PolicyNoise
from qam_lightning.util.errors import UserError
from tests.methods.test_every_method import spread

Build = Callable[..., Method]


def losses(method: Method, batch: Batch) -> dict[str, Tensor]:
    return method.losses(batch, method.step_noise(len(batch.rewards)))[0]


def test_fbrac_divides_the_value_alone_by_alpha(build: Build, batch: Batch) -> None:
    one, four = (losses(build(FBRAC, alpha=alpha), batch) for alpha in (1.0, 4.0))
    torch.testing.assert_close(four["actor/q_loss"], one["actor/q_loss"] / 4)
    assert torch.equal(four["actor/flow_loss"], one["actor/flow_loss"])


def test_fbrac_backpropagates_through_every_step(build: Build, batch: Batch) -> None:
    """Against an Euler loop that is written out, and its gradient."""
    method = build(FBRAC, alpha=0.5)
    s, noise = batch.observations, method.step_noise(len(batch.rewards))
    method.losses(batch, noise)[0]["actor/q_loss"].backward()
    flow = method.flow
    found = [p.grad.clone() for p in flow.parameters()]

    a = noise.actor.z
    for i in range(4):
        a = a + flow.mlp(torch.cat([s, a, torch.full((len(s), 1), i / 4)], dim=1)) / 4
    value = -2.0 * method.critic(s, a.clip(-1, 1)).mean()
    for one, other in zip(found, torch.autograd.grad(value, list(flow.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_fbrac_refuses_to_divide_by_zero(build: Build, alpha: float) -> None:
    with pytest.raises(UserError, match="FBRAC: alpha is .*, expected above 0"):
        build(FBRAC, alpha=alpha)


def test_fql_distils_its_own_flow_from_the_same_noise(build: Build, batch: Batch) -> None:
    method = build(FQL, alpha=7.0)
    noise = method.step_noise(len(batch.rewards))
    s, z = batch.observations, noise.actor.z
    gap = method.one_step(s, z) - method.behavior_policy(s, PolicyNoise(z))
    found = method.losses(batch, noise)[0]["actor/distill_loss"]
    torch.testing.assert_close(found, 7.0 * gap.square().mean())


def test_fawac_without_temperature_is_cloning(build: Build, batch: Batch) -> None:
    method = build(FAWAC, tau=0.0)
    noise = method.step_noise(len(batch.rewards))
    field, (x_0, u) = method.flow.at(batch.observations), noise.actor
    cloning = flow_matching_loss(field, x_0, batch.actions, u, batch.valid)
    assert torch.equal(method.losses(batch, noise)[0]["actor/flow_loss"], cloning)
    method.tau = 5.0
    assert not torch.equal(method.losses(batch, noise)[0]["actor/flow_loss"], cloning)


def test_fawac_weighs_by_its_critic_and_regresses_on_every_average(
    build: Build, batch: Batch
) -> None:
    method = build(FAWAC, tau=3.0)
    spread(method)
    noise = method.step_noise(len(batch.rewards))
    found, metrics = method.losses(batch, noise)
    s, a, (x_0, u) = batch.observations, batch.actions, noise.actor
    value = method.value(s)
    weight = (3.0 * (method.critic(s, a).mean(0) - value)).exp().clip(max=100)
    assert metrics["actor/weight_max"] == weight.max() > 1.5 * metrics["actor/weight_mean"]
    error = (method.flow(s, (1 - u) * x_0 + u * a, u) - (a - x_0)).square().mean(1)
    torch.testing.assert_close(found["actor/flow_loss"], (batch.valid * weight * error).mean())
    regression = batch.valid * (value - method.critic_ema(s, a)).square()  # (K, B)
    torch.testing.assert_close(found["value/loss"], regression.mean())


def test_fawac_refuses_an_infinite_temperature(build: Build) -> None:
    with pytest.raises(UserError, match="FAWAC: tau is inf, expected at least 0 and finite"):
        build(FAWAC, tau=float("inf"))


def test_ifql_backs_up_its_value_network_and_no_action(build: Build, batch: Batch) -> None:
    method = build(IFQL, kappa=0.9)
    target = batch.rewards + 0.97**2 * batch.masks * method.value(batch.next_observations)
    error = method.critic(batch.observations, batch.actions) - target
    torch.testing.assert_close(
        losses(method, batch)["critic/loss"], (batch.valid * error.square()).mean()
    )


def test_ifql_learns_the_expectile_of_the_pessimistic_average(build: Build, batch: Batch) -> None:
    method = build(IFQL, kappa=0.9)
    spread(method)
    q = method.critic_ema(batch.observations, batch.actions)
    gap = q.mean(0) - 0.5 * q.std(0, correction=0) - method.value(batch.observations)
    assert (gap < 0).any() and (gap > 0).any()
    expected = (torch.where(gap < 0, 0.1, 0.9) * gap.square()).mean()
    torch.testing.assert_close(losses(method, batch)["value/loss"], expected)


def test_ifql_ranks_candidates_by_their_worst_critic(build: Build) -> None:
    q = torch.tensor([[1.0, 5.0], [1.0, 0.0]])  # two critics, two candidates
    assert build(IFQL, kappa=0.9).candidate_score(q).argmax() == 0
    assert build(FQL, alpha=1.0).candidate_score(q).argmax() == 1


def test_fedit_moves_actions_by_its_radius_at_most(build: Build, batch: Batch) -> None:
    method = build(FEdit, edit_scale=0.1)
    with torch.no_grad():
        for p in method.edit.gaussian.mean.parameters():
            p.add_(50.0)
    noise = method.acting_noise(len(batch.rewards), torch.Generator().manual_seed(0))
    edited = method.act(batch.observations, noise)
    moved = (edited - method.behavior_act(batch.observations, noise)).abs().max().item()
    assert moved == pytest.approx(0.1, abs=1e-5)
