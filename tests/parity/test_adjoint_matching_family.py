"""QAM, QAM-direct, QAM-FQL, QAM-EDIT and BAM against recorded losses, gradients and actions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from qam_lightning.methods.bam import BAM
from qam_lightning.methods.base import Method
from qam_lightning.methods.noise import StepNoise
from qam_lightning.methods.qam import QAM
from qam_lightning.methods.qam_edit import QAMEdit
from qam_lightning.methods.qam_fql import QAMFQL
from tests.parity.recorded import (
    BATCH,
    PATHS,
    Case,
    Places,
    acting_noise,
    check_losses,
    critics,
    fill,
    finite_or_inf,
    gaussian,
    leaves,
    restore,
)


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


CASES = [p for p in PATHS if family(Case(p))]
PLACES: Places = {
    **critics("critic"),
    **gaussian("edit_actor", "edit.gaussian."),
    "actor_slow/mlp": "behavior.mlp.",
    "target_actor_slow/mlp": "behavior_ema.mlp.",
    "actor_fast/mlp": "fine_tuned.mlp.",
    "target_actor_fast": None,  # an average that no update reads
    "one_step_actor/mlp": "one_step.mlp.",
    "edit_alpha/log_value": "entropy_coefficient.log_value",
}
TERMS = {
    "critic/critic_loss": "critic/loss",
    "actor/flow_loss": "actor/flow_loss",
    "actor/adj_loss": "actor/adjoint_loss",
    "actor/edit_q_loss": "actor/edit_q_loss",
    "actor/edit_entropy_loss": "actor/edit_entropy_loss",
    "actor/edit_alpha_loss": "actor/edit_coefficient_loss",
    "actor/fql_q_loss": "actor/q_loss",
}


@pytest.fixture(params=CASES, ids=lambda p: p.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture
def method(case: Case) -> Method:
    kind = family(case)
    assert kind is not None
    return restore(case, kind.method(**case.shared(), **kind.arguments(case.config)), PLACES)


def loss_noise(case: Case, method: Method) -> StepNoise:
    """Name the recorded draws of one loss, in their recorded order."""
    draws, template = case.draws("loss_noise"), method.step_noise(BATCH)
    names = leaves(template)
    first = sum(name.startswith("next.") for name in names) + 3
    steps = draws[first : first + method.flow_steps]
    path = torch.stack(steps[:-1], dim=1)  # the last increment is drawn, never used
    draws[first : first + method.flow_steps] = [path]
    qam = ("cloning.x_0", "cloning.u", "path_x_0", "path_z")
    own = ["actor.z", "actor.edited.z", "actor.edited.edit"]
    prefix = "actor.qam" if type(method) in (QAMFQL, QAMEdit) else "actor"
    order = ["next.z", "next.edit", *(f"{prefix}.{name}" for name in qam), *own]
    return fill(template, draws, [name for name in order if name in names])


def test_losses_and_gradients(case: Case, method: Method) -> None:
    check_losses(case, method, loss_noise(case, method), TERMS, PLACES)


def test_actions(case: Case, method: Method) -> None:
    draws = case.draws("act_noise")
    noise = acting_noise(method, draws, ["z", "edit"][: len(draws)])
    actions = method.act(case.batch().observations, noise)
    torch.testing.assert_close(actions.flatten(1), case.tensor("actions"), rtol=1e-4, atol=1e-5)
