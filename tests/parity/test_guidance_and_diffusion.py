"""CGQL, CGQL-MSE and CGQL-Linex, DAC and QSM against recorded losses, gradients and actions.

The diffusion policies' record comes from code that raises a loss to the power of the chunk's
weight, which is 1 where the weight is 0, and that samples QSM in another way. What it shares with
the paper's equations is compared with the record; the rest with the equations as loops.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qam_lightning.methods.base import Method
from qam_lightning.methods.cgql import CGQL
from qam_lightning.methods.cgql_linex import CGQLLinex
from qam_lightning.methods.cgql_mse import CGQLMSE
from qam_lightning.methods.dac import DAC
from qam_lightning.methods.noise import DiffusionNoise, PolicyNoise, StepNoise
from qam_lightning.methods.qsm import QSM
from tests.parity.recorded import (
    BATCH,
    PATHS,
    RELATIVE,
    Case,
    Places,
    check_losses,
    critics,
    fill,
    restore,
    translate,
)

GUIDED = {"simple": CGQL, "mse": CGQLMSE, "linex": CGQLLinex}
DIFFUSION = {"dac": DAC, "qsm": QSM}
PLACES: dict[str, Places] = {
    "cgql": {
        "critic/mlp": "critic.",
        "target_critic/mlp": "critic_ema.",
        "actor/mlp": "behavior.mlp.",
        "target_actor/mlp": "behavior_ema.mlp.",
    },
    "dcgql": {
        **critics("critic"),
        "actor/FourierFeatures_0/kernel": "actor.predictor.features.frequencies",
        "actor/MLP_0": "actor.predictor.embedding.",
        "actor/MLP_1": "actor.predictor.trunk.",
    },
}


def agent(path: Any) -> str:
    return Case(path).config["agent_name"]


guided = pytest.mark.parametrize(
    "path", [p for p in PATHS if agent(p) == "cgql"], ids=lambda p: p.stem
)
diffusion = pytest.mark.parametrize(
    "path", [p for p in PATHS if agent(p) == "dcgql"], ids=lambda p: p.stem
)


def build(case: Case) -> Method:
    """Return our method with the recorded weights."""
    c = case.config
    if c["agent_name"] == "cgql":
        own = {"tau": c["inv_temp"], "vartheta": c["guidance_coef"], "varrho": c["noisy_coef"]}
        kind = GUIDED[c["mode"]]
        if kind is CGQL:
            del own["varrho"]
    else:
        c["flow_steps"] = c["diffusion_steps"]
        # Recorded as (frequencies, 1), as for a linear layer of one input.
        for prefix in ("params", "grads"):
            name = f"{prefix}/modules_actor/FourierFeatures_0/kernel"
            case.arrays[name] = case.arrays[name][:, 0]
        own = {"tau": c["inv_temp"], "eta": c["alpha"]}
        kind = DIFFUSION[c["actor_loss_type"]]
        if kind is DAC:
            del own["tau"]
    return restore(case, kind(**case.shared(), **own), PLACES[c["agent_name"]])


@guided
def test_losses_and_gradients_of_guided_flows(path: Any) -> None:
    case = Case(path)
    method = build(case)
    template = method.step_noise(BATCH)
    if type(method) is CGQL:
        order = ["next.z", "actor.x_0", "actor.u"]
    else:
        order = ["next.z", "actor.u", "actor.z", "actor.cloning.x_0", "actor.cloning.u"]
    noise = fill(template, case.draws("loss_noise"), order)
    terms = {"critic/q_mean": "critic/q_mean", "actor/flow_loss": "actor/flow_loss"}
    check_losses(case, method, noise, terms, PLACES["cgql"])
    losses, _ = method.losses(case.batch(), noise)
    # The record counts the critic's two losses, the second with its weight, as one.
    noisy = losses.get("critic/noisy_loss", torch.zeros(()))
    recorded = case.scalar("info/critic/critic_loss")
    assert losses["critic/loss"].item() == pytest.approx(recorded, rel=RELATIVE)
    if "info/critic/noisy_critic_loss" in case.arrays:
        weighted = case.config["noisy_coef"] * case.scalar("info/critic/noisy_critic_loss")
        assert noisy.item() == pytest.approx(weighted, rel=RELATIVE)


@guided
def test_actions_of_guided_flows(path: Any) -> None:
    case = Case(path)
    found = build(case).act(
        case.batch().observations, PolicyNoise(case.draws("act_noise")[0].flatten(1))
    )
    torch.testing.assert_close(found.flatten(1), case.tensor("actions"), rtol=1e-4, atol=1e-5)


def slow_epsilon(case: Case, s: Tensor, a: Tensor, i: int) -> Tensor:
    """ε_θ from the recorded arrays, layer by layer."""
    weights = case.tree("params/modules_actor")

    def mlp(name: str, x: Tensor) -> Tensor:
        last = max(int(n.split("_")[2].split("/")[0]) for n in weights if n.startswith(name))
        for layer in range(last + 1):
            x = x @ weights[f"{name}/Dense_{layer}/kernel"] + weights[f"{name}/Dense_{layer}/bias"]
            x = x * torch.tanh(F.softplus(x)) if layer < last else x
        return x

    angle = 2 * math.pi * i * weights["FourierFeatures_0/kernel"].flatten()
    step = mlp("MLP_0", torch.cat([angle.cos(), angle.sin()])).expand(len(a), -1)
    return mlp("MLP_1", torch.cat([a, s, step], -1))


def paper_schedule(steps: int) -> tuple[list[float], list[float]]:
    """β^i and α^i of Eq. 46-47 as printed, i = 0..T-1."""
    beta = [1 - math.exp(-0.1 / steps - 9.9 * (2 * i + 1) / (2 * steps**2)) for i in range(steps)]
    return beta, [math.prod(1 - b for b in beta[: i + 1]) for i in range(steps)]


def slow_actions(case: Case, s: Tensor, draws: list[Tensor]) -> Tensor:
    """Eq. 51 (QSM) or Eq. 55-56 (DAC), a step at a time; the last recorded draw is not used."""
    steps = case.config["diffusion_steps"]
    beta, alpha = paper_schedule(steps)
    a = draws[0]
    for i in reversed(range(steps)):
        epsilon = slow_epsilon(case, s, a, i + 1)
        noise = math.sqrt(beta[i]) * draws[steps - i] if i > 0 else 0.0
        if case.config["actor_loss_type"] == "qsm":
            mean = (a - beta[i] / math.sqrt(1 - alpha[i]) * epsilon) / math.sqrt(1 - beta[i])
            a = (mean + noise).clamp(-1, 1)
        else:
            before = alpha[i - 1] if i > 0 else 1.0
            clean = ((a - math.sqrt(1 - alpha[i]) * epsilon) / math.sqrt(alpha[i])).clamp(-1, 1)
            towards = beta[i] * math.sqrt(before) / (1 - alpha[i]) * clean
            a = towards + math.sqrt(1 - beta[i]) * (1 - before) / (1 - alpha[i]) * a + noise
    return a


@diffusion
def test_actions_of_diffusion_policies(path: Any) -> None:
    case = Case(path)
    method, draws, s = build(case), case.draws("act_noise"), case.batch().observations
    found = method.act(s, PolicyNoise(torch.stack(draws[:-1], 1))).flatten(1)
    with torch.no_grad():
        slow = slow_actions(case, s, draws)
    torch.testing.assert_close(found, slow, rtol=1e-4, atol=1e-5)
    if isinstance(method, DAC):
        torch.testing.assert_close(found, case.tensor("actions"), rtol=1e-4, atol=1e-5)


def diffusion_noise(case: Case, method: Method) -> StepNoise:
    *sampler, _, step, epsilon = case.draws("loss_noise")
    uniform = (step[:, None] - 0.5) / method.flow_steps
    return StepNoise(PolicyNoise(torch.stack(sampler, 1)), DiffusionNoise(epsilon, uniform))


@diffusion
def test_actor_losses_and_gradients_of_diffusion_policies(path: Any) -> None:
    case = Case(path)
    method, batch = build(case), case.batch()
    losses, _ = method.actor_losses(batch, diffusion_noise(case, method).actor)
    denoising = losses.pop("actor/denoising_loss")
    (guidance,) = losses.values()
    # Where a chunk carries no weight, the record counts 1 for each of the two terms.
    cut = (1 - batch.valid).mean().item()
    actor = case.scalar("info/actor/actor_loss")
    assert guidance.item() + cut == pytest.approx(actor, rel=RELATIVE)
    eta = case.config["alpha"]
    rest = case.scalar("loss") - case.scalar("info/critic/critic_loss") - actor
    assert denoising.item() + eta * cut == pytest.approx(rest, rel=RELATIVE)

    (guidance + denoising).backward()
    recorded = translate(case.tree("grads"), PLACES["dcgql"])
    parameters = {n: p for n, p in method.named_parameters() if n.startswith("actor.")}
    assert len(parameters) == 19
    for name, parameter in parameters.items():
        scale = recorded[name].abs().max().item()
        torch.testing.assert_close(
            parameter.grad, recorded[name], rtol=RELATIVE, atol=RELATIVE * scale + 1e-7, msg=name
        )
    assert all(p.grad is None for n, p in method.named_parameters() if n not in parameters)


@diffusion
def test_critic_loss_of_diffusion_policies(path: Any) -> None:
    case = Case(path)
    method, batch = build(case), case.batch()
    q = method.critic(batch.observations, batch.actions)
    found = method.critic_losses(batch, diffusion_noise(case, method).next, q)[0]["critic/loss"]
    with torch.no_grad():
        actions = slow_actions(case, batch.next_observations, case.draws("loss_noise")[:-2])
        values = method.critic_ema(batch.next_observations, actions)
        value = values.mean(0) - method.rho * values.std(0, correction=0)
        target = batch.rewards + method.discount**method.spaces.horizon * batch.masks * value
        error = (method.critic(batch.observations, batch.actions) - target).square()
    assert found.item() == pytest.approx((batch.valid * error).mean().item(), rel=1e-5)
    if isinstance(method, DAC):
        recorded = case.scalar("info/critic/critic_loss")
        assert found.item() == pytest.approx(recorded, rel=RELATIVE)
