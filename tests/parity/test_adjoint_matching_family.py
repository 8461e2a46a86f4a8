"""QAM, QAM-direct, QAM-FQL, QAM-EDIT and BAM against recorded losses, gradients and actions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from qam_lightning.methods.bam import BAM
from qam_lightning.methods.base import Method
from qam_lightning.methods.qam import QAM
from qam_lightning.methods.qam_edit import QAMEdit
from qam_lightning.methods.qam_fql import QAMFQL
from tests.parity.recorded import FOLDER, Case, critic_state, finite_or_inf, mlp_state

RELATIVE = 2e-4  # float32 rounding through ten network passes


class Family(NamedTuple):
    """How one recorded agent maps onto one of our methods."""

    method: type[Method]
    arguments: Callable[[dict[str, Any]], dict[str, Any]]


def arguments(c: dict[str, Any]) -> dict[str, Any]:
    return {"tau": c["inv_temp"], "residual": c["residual"]}


def family(case: Case) -> Family | None:
    c = case.config
    if c["agent_name"] == "bam":
        return Family(BAM, arguments)
    if c["agent_name"] != "qam":
        return None
    if c["edit_scale"] > 0:
        return Family(QAMEdit, lambda c: arguments(c) | {"edit_scale": c["edit_scale"]})
    if c["fql_alpha"] > 0:
        return Family(QAMFQL, lambda c: arguments(c) | {"alpha": finite_or_inf(c["fql_alpha"])})
    return Family(QAM, arguments)


PATHS = sorted(FOLDER.glob("*.npz")) if FOLDER.is_dir() else []
CASES = [p for p in PATHS if family(Case(p))]
pytestmark = pytest.mark.skipif(not CASES, reason=f"no recorded cases in {FOLDER.name}")


@pytest.fixture(params=CASES, ids=lambda p: p.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def translate(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate a recorded tree of parameters or gradients to our parameter names."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, value in tree.items():
        module, rest = name.removeprefix("modules_").split("/", 1)
        modules.setdefault(module, {})[rest] = value
    state: dict[str, Tensor] = {}
    for module, parameters in modules.items():
        state |= translate_module(module, parameters)
    return state


def translate_module(module: str, tree: dict[str, Tensor]) -> dict[str, Tensor]:
    flows = {
        "actor_slow": "actor.behavior.mlp.",
        "target_actor_slow": "actor.behavior_ema.mlp.",
        "actor_fast": "actor.fine.mlp.",
        "one_step_actor": "one_step.mlp.",
    }
    critics = {"critic": "critic.", "target_critic": "critic_ema."}
    if module in flows:
        return mlp_state(tree, "mlp/", flows[module])
    if module in critics:
        inner = {n.removeprefix("value_net/"): v for n, v in tree.items()}
        return {critics[module] + n: v for n, v in critic_state(inner).items()}
    if module == "edit_actor":
        state = mlp_state(tree, "MLP_0/", "edit.gaussian.trunk.")
        for theirs, ours in (("OutputDenseMean", "mean"), ("OutputDenseLogStd", "log_std")):
            state[f"edit.gaussian.{ours}.layers.0.weight"] = tree[f"{theirs}/kernel"].T
            state[f"edit.gaussian.{ours}.layers.0.bias"] = tree[f"{theirs}/bias"]
        return state
    if module == "edit_alpha":
        return {"edit.entropy_coefficient.log_value": tree["log_value"]}
    assert module == "target_actor_fast", module  # an average that no update reads
    return {}


def restore(case: Case) -> Method:
    """Build our method with the recorded weights; every one of them must find its place."""
    kind = family(case)
    assert kind is not None
    method = kind.method(**case.shared(), **kind.arguments(case.config))
    method.load_state_dict(translate(case.tree("params")), strict=True)
    return method


def loss_noise(case: Case, method: Method) -> dict[str, Tensor]:
    """Name the recorded draws of one loss, in their recorded order."""
    draws = iter(case.draws("loss_noise"))
    noise = {"next/z": next(draws)[:, 0]}
    if "next/edit" in method.step_draws():
        noise["next/edit"] = next(draws).squeeze(-1).T
    noise["x_0"], noise["u"], noise["path/x_0"] = next(draws), next(draws), next(draws)
    steps = [next(draws) for _ in range(method.flow_steps)]
    noise["path/z"] = torch.stack(steps[:-1], dim=1)  # the last increment is drawn, never used
    if "one_step/z" in method.step_draws():
        noise["one_step/z"] = next(draws)
    if "edited/z" in method.step_draws():
        noise["edited/z"], noise["edited/edit"] = next(draws), next(draws).T
    assert next(draws, None) is None
    return noise


NAMED = {
    "critic/critic_loss": "critic/loss",
    "actor/flow_loss": "actor/flow_loss",
    "actor/adj_loss": "actor/adjoint_loss",
    "actor/edit_q_loss": "actor/edit_q_loss",
    "actor/edit_entropy_loss": "actor/edit_entropy_loss",
    "actor/edit_alpha_loss": "actor/edit_coefficient_loss",
    "actor/fql_q_loss": "actor/q_loss",
}


def test_losses_and_gradients(case: Case) -> None:
    method = restore(case)
    losses, _ = method.losses(case.batch(), loss_noise(case, method))
    loss = torch.stack(list(losses.values())).sum()
    loss.backward()

    assert loss.item() == pytest.approx(case.scalar("loss"), rel=RELATIVE)
    for theirs, ours in NAMED.items():
        if f"info/{theirs}" in case.arrays:
            recorded = case.scalar(f"info/{theirs}")
            assert losses[ours].item() == pytest.approx(recorded, rel=RELATIVE), ours
    recorded = translate(case.tree("grads"))
    parameters = dict(method.named_parameters())
    assert set(parameters) == set(recorded)
    for name, parameter in parameters.items():
        expected = recorded[name]
        found = torch.zeros_like(expected) if parameter.grad is None else parameter.grad
        tolerance = RELATIVE * expected.abs().max().item() + 1e-7
        close = torch.allclose(found, expected, rtol=RELATIVE, atol=tolerance)
        assert close, f"{name}: off by {(found - expected).abs().max()}, allowed {tolerance}"


def test_actions(case: Case) -> None:
    method = restore(case)
    draws = case.draws("act_noise")
    noise = {"z": draws[0]}
    if "edit" in method.policy_draws():
        noise["edit"] = draws[1].permute(1, 2, 0)
    actions = method.act(case.batch().observations, noise).flatten(1)
    torch.testing.assert_close(actions, case.tensor("actions"), rtol=1e-4, atol=1e-5)
