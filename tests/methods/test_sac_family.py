"""ReBRAC, DSRL and RLPD: delays, scales, bounds, distillation and entropy tuning."""

import lightning.pytorch as pl
import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.utils.data import DataLoader

from qam_lightning.core.critic import pessimistic
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Method
from qam_lightning.methods.dsrl import DSRL
from qam_lightning.methods.losses import soft_actor_losses
from qam_lightning.methods.noise import PolicyNoise, StepNoise, map_noise
from qam_lightning.methods.rebrac import ReBRAC
from qam_lightning.methods.rlpd import RLPD
from tests.methods.test_every_method import spread


def noise_for(method: Method, batch) -> StepNoise:
    return method.step_noise(len(batch.rewards))


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# -- ReBRAC --------------------------------------------------------------------------------------


class Watch(pl.Callback):
    """Notes which parts of a method every step moves, and what it logs."""

    def __init__(self, *parts: str) -> None:
        self.parts = parts
        self.moved: list[set[str]] = []
        self.named: list[set[str]] = []

    def on_train_batch_start(self, trainer, method, *args) -> None:
        self.before = {name: weights(method.get_submodule(name)) for name in self.parts}

    def on_train_batch_end(self, trainer, method, *args) -> None:
        after = {name: weights(method.get_submodule(name)) for name in self.parts}
        self.moved.append({n for n in self.parts if not torch.equal(self.before[n], after[n])})
        self.named.append(set(method.metrics))


def fit(method: Method, batch: Batch, *callbacks: pl.Callback) -> None:
    """Train six steps on one batch."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_steps=6,
        accelerator="cpu",
        enable_progress_bar=False,
        callbacks=list(callbacks),
        **quiet,
    )
    trainer.fit(method, DataLoader([batch] * 6, batch_size=None))


@pytest.mark.filterwarnings("ignore")
def test_actor_and_averages_move_on_every_second_step_only(build, batch) -> None:
    parts = ("critic", "critic_ema", "actor", "actor_ema")
    watch = Watch(*parts)
    fit(build(ReBRAC, alpha=0.1, noise_scale=0.2, target_rate=0.1), batch, watch)
    expected = [{"critic"}, set(parts)] * 3  # steps 1, 2, ..., 6
    expected[1] = {*parts} - {"actor_ema"}  # the actor before this step is still what it was
    assert watch.moved == expected
    assert ["actor/q_loss" in names for names in watch.named] == [False] + 5 * [True]


def test_the_value_loss_does_not_depend_on_the_scale_of_values(build, batch) -> None:
    method = build(ReBRAC, alpha=0.1, noise_scale=0.2)
    spread(method)
    gradients = []
    for scale in (1.0, 100.0):
        with torch.no_grad():
            method.critic.out.weight *= scale
            method.critic.out.bias *= scale
        losses, metrics = method.losses(batch, noise_for(method, batch))
        gradients.append(torch.autograd.grad(losses["actor/q_loss"], method.actor.parameters()))
        q = pessimistic(method.critic(batch.observations, method.actor(batch.observations)), 0.5)
        assert metrics["actor/q_scale"].item() == pytest.approx(1 / q.abs().mean().item())
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_values_of_zero_have_no_infinite_scale(build, batch) -> None:
    method = build(ReBRAC, alpha=0.1, noise_scale=0.2)
    with torch.no_grad():
        method.critic.out.weight.zero_()
        method.critic.out.bias.zero_()
    method.rho = 0.0  # equal members have no deviation to differentiate
    losses, _ = method.losses(batch, noise_for(method, batch))
    gradients = torch.autograd.grad(losses["actor/q_loss"], method.actor.parameters())
    assert all(g.isfinite().all() for g in gradients) and losses["actor/q_loss"].isfinite()


def test_cloning_ignores_cut_chunks_and_sums_over_dimensions(build, batch) -> None:
    method = build(ReBRAC, alpha=0.3, noise_scale=0.0)
    losses, _ = method.losses(batch, noise_for(method, batch))
    expected = 0.0
    for s, a, valid in zip(batch.observations, batch.actions, batch.valid, strict=True):
        error = method.actor(s[None])[0] - a
        expected += 0.3 * valid.item() * (error @ error).item() / len(batch.valid)
    assert losses["actor/bc_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_noise_is_scaled_bounded_and_on_the_average_in_the_backup(build, batch) -> None:
    method = build(ReBRAC, alpha=0.1, noise_scale=0.2)
    with torch.no_grad():
        method.actor_ema.mlp.layers[-1].bias.fill_(0.2)
    s, z = batch.observations, torch.full((len(batch.rewards), method.dim), 1.0)
    small = method.policy(s, PolicyNoise(z)) - method.actor(s)
    torch.testing.assert_close(small, 0.2 * z)
    large = method.policy(s, PolicyNoise(100 * z))
    torch.testing.assert_close(large, (method.actor(s) + 0.5).clamp(-1, 1))
    target = method.actor_ema(s) + 0.2
    value = pessimistic(method.critic_ema(s, target.clamp(-1, 1)), method.rho)
    torch.testing.assert_close(method.next_value(s, PolicyNoise(z)), value)


# -- DSRL ----------------------------------------------------------------------------------------


def dsrl(build, noise_scale=1.4) -> DSRL:
    method = build(DSRL, noise_scale=noise_scale)
    spread(method)
    return method


def test_the_flow_starts_inside_the_noise_bound(build, batch, monkeypatch) -> None:
    method = dsrl(build)
    seen = []
    act = method.flow_action
    monkeypatch.setattr(method, "flow_action", lambda s, z: seen.append(z) or act(s, z))
    z = 50 * torch.randn(len(batch.rewards), method.dim)
    method.policy(batch.observations, PolicyNoise(z))
    assert 1.39 < seen[0].abs().max() <= 1.4
    method.losses(batch, noise_for(method, batch))
    # The backup's start is bounded too; that of the distillation is the whole normal.
    assert seen[1].abs().max() <= 1.4 < seen[2].abs().max()


def test_the_average_flow_acts_and_supplies_the_distillation(build, batch) -> None:
    method = dsrl(build)
    s, z = batch.observations, torch.randn(len(batch.rewards), method.dim)
    noise = noise_for(method, batch)
    action, loss = method.policy(s, PolicyNoise(z)), method.losses(batch, noise)[0]["latent/loss"]
    with torch.no_grad():
        for p in method.behavior.parameters():
            p.zero_()
    assert torch.equal(action, method.policy(s, PolicyNoise(z)))
    assert torch.equal(loss, method.losses(batch, noise)[0]["latent/loss"])


def test_each_latent_critic_learns_its_own_critic_of_the_decoded_noise(build, batch) -> None:
    method = dsrl(build)
    noise = noise_for(method, batch)
    s, z = batch.observations, noise.actor.latent_z
    x = z.clone()
    for i in range(4):
        u = torch.full((len(s), 1), i / 4)
        x = x + method.behavior_ema(s, x, u) / 4
    target, guess = method.critic(s, x.clamp(-1, 1)), method.latent_critic(s, z)
    expected = sum(((guess[k] - target[k]) ** 2).mean().item() for k in range(3)) / 3
    found = method.losses(batch, noise)[0]["latent/loss"].item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_noise_policy_ascends_the_latent_value_of_its_scaled_noise(build, batch) -> None:
    method = dsrl(build)
    s, noise = batch.observations, noise_for(method, batch)
    z = method.noise_policy(s, noise.actor.policy)[0]
    expected = -method.latent_critic(s, 1.4 * z).mean()
    torch.testing.assert_close(method.losses(batch, noise)[0]["actor/q_loss"], expected)


def test_distillation_makes_latent_values_those_of_the_decoded_actions(build, batch) -> None:
    method = dsrl(build)
    adam = torch.optim.Adam(method.latent_critic.parameters(), lr=3e-3)
    history = []
    for step in range(150):
        method.gradient_step = step
        loss = method.latent_loss(batch.observations, noise_for(method, batch).actor.latent_z)
        adam.zero_grad()
        loss.backward()
        adam.step()
        history.append(loss.item())
    assert sum(history[-20:]) < 0.3 * sum(history[:20])


# -- entropy tuning ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [(RLPD, "actor"), (DSRL, "noise_policy")])
@pytest.mark.parametrize(("log_std", "rises"), [(-3.0, True), (-0.5, False)])
def test_the_coefficient_rises_when_entropy_is_below_target_and_falls_above(
    build, batch, kind, name, log_std, rises
) -> None:
    method = build(kind, **({"noise_scale": 1.0} if kind is DSRL else {}))
    policy = method.get_submodule(name)
    with torch.no_grad():  # log-standard deviation independent of the state
        policy.log_std.layers[0].weight.zero_()
        policy.log_std.layers[0].bias.fill_(log_std)
    losses, metrics = method.losses(batch, noise_for(method, batch))
    # -D/2 nats is the target; the entropy of these policies lies on either side of it.
    assert (metrics["actor/entropy"] < -0.5 * method.dim) == rises
    losses["actor/coefficient_loss"].backward()
    slope = method.entropy_coefficient.log_value.grad
    assert (slope < 0) == rises  # descent moves against the slope
    assert method.entropy_coefficient() == 1


def test_entropy_settles_at_its_target(build, batch) -> None:
    """With values that say nothing, descent on the losses alone finds the entropy -D/2."""
    method = build(RLPD, width=16, depth=1)
    trained = [*method.actor.parameters(), *method.entropy_coefficient.parameters()]
    adam = torch.optim.Adam(trained, lr=3e-2)
    entropies = []
    for step in range(400):
        method.gradient_step = step
        noise = noise_for(method, batch)
        action, log_prob = method.actor(batch.observations, noise.actor.z)
        losses, metrics = soft_actor_losses(
            method.entropy_coefficient, action, log_prob, lambda a: 3 * a.sum(-1)
        )
        adam.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        adam.step()
        entropies.append(metrics["actor/entropy"].item())
    assert sum(entropies[-50:]) / 50 == pytest.approx(-0.5 * method.dim, abs=0.3)


def test_rlpd_losses_are_those_of_torch_distributions(build, batch) -> None:
    method = build(RLPD).double()
    spread(method)
    batch = type(batch)(*(x.double() for x in batch))
    noise = map_noise(lambda x: x.double(), noise_for(method, batch))
    losses, metrics = method.losses(batch, noise)
    s, policy = batch.observations, method.actor
    hidden = policy.trunk(s)
    std = policy.log_std(hidden).clamp(-20, 2).exp()
    raw = policy.mean(hidden) + std * noise.actor.z
    exact = TransformedDistribution(Normal(policy.mean(hidden), std), TanhTransform(cache_size=1))
    log_prob = exact.log_prob(torch.tanh(raw)).sum(-1)
    torch.testing.assert_close(metrics["actor/entropy"], -log_prob.mean())
    coefficient = method.entropy_coefficient()
    torch.testing.assert_close(losses["actor/entropy_loss"], coefficient * log_prob.mean())
    tuning = coefficient * (-log_prob.mean() + 0.5 * method.dim)
    torch.testing.assert_close(losses["actor/coefficient_loss"], tuning)
    q = method.critic(s, torch.tanh(raw))
    value = q.mean(0) - method.rho * ((q - q.mean(0)) ** 2).mean(0).sqrt()
    torch.testing.assert_close(losses["actor/q_loss"], -value.mean())


def test_rlpd_alone_starts_online() -> None:
    assert not RLPD.offline_phase
    assert DSRL.offline_phase and ReBRAC.offline_phase
