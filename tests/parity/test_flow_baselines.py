"""FBRAC, FQL, FAWAC, IFQL and FEdit against recorded losses, gradients and actions."""

import pytest
import torch

from qam_lightning.methods.fawac import FAWAC
from qam_lightning.methods.fbrac import FBRAC
from qam_lightning.methods.fedit import FEdit
from qam_lightning.methods.fql import FQL
from qam_lightning.methods.ifql import IFQL
from tests.parity.recorded import (
    CRITIC_TERMS,
    FOLDER,
    PATHS,
    Agent,
    Case,
    check_agent,
    critics,
    gaussian,
    name_draws,
    rebuild,
)

CLONING = {**CRITIC_TERMS, "actor/bc_flow_loss": "actor/flow_loss"}
CRITIC, CRITIC_AND_VALUE = critics("critic"), critics("critic", "value")

AGENTS = {
    "fbrac": Agent(
        FBRAC,
        {"alpha": "alpha"},
        ["next/z", "x_0", "u", "sample/z"],
        CLONING,
        {**CRITIC, "actor_flow/mlp": "actor.flow.mlp."},
    ),
    "fql": Agent(
        FQL,
        {"alpha": "alpha"},
        ["next/z", "x_0", "u", "one_step/z"],
        CLONING,
        {
            **CRITIC,
            "actor_bc_flow/mlp": "actor.flow.mlp.",
            "actor_onestep_flow/mlp": "one_step.mlp.",
        },
    ),
    "fawac": Agent(
        FAWAC,
        {"tau": "inv_temp"},
        ["next/z", "x_0", "u"],
        {**CRITIC_TERMS, "actor/actor_loss": "actor/flow_loss", "critic/value_loss": "value/loss"},
        {**CRITIC_AND_VALUE, "actor/mlp": "actor.flow.mlp."},
    ),
    "ifql": Agent(
        IFQL,
        {"kappa": "kappa"},
        ["x_0", "u"],
        {
            "critic/critic_loss": "critic/loss",
            "critic/q_mean": "critic/target_mean",  # so recorded: this agent calls its target q
            "actor/actor_loss": "actor/flow_loss",
            "value/value_loss": "value/loss",
            "value/v_mean": "value/mean",
        },
        {**CRITIC_AND_VALUE, "actor_flow/mlp": "actor.flow.mlp."},
    ),
    "fedit": Agent(
        FEdit,
        {"edit_scale": "edit_scale"},
        ["next/z", "next/edit", "x_0", "u", "edited/z", "edited/edit"],
        {
            **CLONING,
            "actor/edit_q_loss": "actor/edit_q_loss",
            "actor/edit_entropy_loss": "actor/edit_entropy_loss",
            "actor/edit_alpha_loss": "actor/edit_coefficient_loss",
        },
        {
            **CRITIC,
            **gaussian("edit_actor", "edit.gaussian."),
            "actor_bc_flow/mlp": "actor.flow.mlp.",
            "alpha/log_value": "edit.entropy_coefficient.log_value",
        },
    ),
}

CASES = [p for p in PATHS if Case(p).config["agent_name"] in AGENTS]
pytestmark = pytest.mark.skipif(not CASES, reason=f"no recorded cases in {FOLDER.name}")


@pytest.fixture(params=CASES, ids=lambda p: p.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def agent(case: Case) -> Agent:
    return AGENTS[case.config["agent_name"]]


def test_losses_and_gradients(case: Case) -> None:
    check_agent(case, agent(case))


def test_actions(case: Case) -> None:
    candidates = case.config.get("num_samples", 1)
    method = rebuild(case, agent(case), best_of_n=candidates)
    spec, draws = method.policy_draws(), case.draws("act_noise")
    if candidates > 1:  # all candidates of one state after those of another
        noise = {"z": torch.stack(draws)}
    else:
        noise = {k: x[:, None] for k, x in name_draws(draws, list(spec), spec).items()}
    expected = case.tensor("actions")
    actions = method.act(case.batch().observations[: len(expected)], noise)
    torch.testing.assert_close(actions.flatten(1), expected, rtol=1e-4, atol=1e-5)
