"""FBRAC, FQL, FAWAC, IFQL and FEdit against recorded losses, gradients and actions."""

import pytest
import torch

from qam_lightning.methods.fawac import FAWAC
from qam_lightning.methods.fbrac import FBRAC
from qam_lightning.methods.fedit import FEdit
from qam_lightning.methods.fql import FQL
from qam_lightning.methods.ifql import IFQL
from qam_lightning.methods.noise import PolicyNoise
from tests.parity.recorded import (
    CRITIC_TERMS,
    PATHS,
    Agent,
    Case,
    acting_noise,
    check_agent,
    critics,
    gaussian,
    rebuild,
)

CLONING_NOISE = ("actor.cloning.x_0", "actor.cloning.u")
CLONING = {**CRITIC_TERMS, "actor/bc_flow_loss": "actor/flow_loss"}
CRITIC, CRITIC_AND_VALUE = critics("critic"), critics("critic", "value")

AGENTS = {
    "fbrac": Agent(
        FBRAC,
        {"alpha": "alpha"},
        ["next.z", *CLONING_NOISE, "actor.z"],
        CLONING,
        {**CRITIC, "actor_flow/mlp": "flow.mlp."},
    ),
    "fql": Agent(
        FQL,
        {"alpha": "alpha"},
        ["next.z", *CLONING_NOISE, "actor.z"],
        CLONING,
        {
            **CRITIC,
            "actor_bc_flow/mlp": "behavior.mlp.",
            "actor_onestep_flow/mlp": "one_step.mlp.",
        },
    ),
    "fawac": Agent(
        FAWAC,
        {"tau": "inv_temp"},
        ["next.z", "actor.x_0", "actor.u"],
        {**CRITIC_TERMS, "actor/actor_loss": "actor/flow_loss", "critic/value_loss": "value/loss"},
        {**CRITIC_AND_VALUE, "actor/mlp": "flow.mlp."},
    ),
    "ifql": Agent(
        IFQL,
        {"kappa": "kappa"},
        ["actor.x_0", "actor.u"],
        {
            "critic/critic_loss": "critic/loss",
            "critic/q_mean": "critic/target_mean",  # so recorded: this agent calls its target q
            "actor/actor_loss": "actor/flow_loss",
            "value/value_loss": "value/loss",
            "value/v_mean": "value/mean",
        },
        {**CRITIC_AND_VALUE, "actor_flow/mlp": "behavior.mlp."},
    ),
    "fedit": Agent(
        FEdit,
        {"edit_scale": "edit_scale"},
        ["next.z", "next.edit", *CLONING_NOISE, "actor.edited.z", "actor.edited.edit"],
        {
            **CLONING,
            "actor/edit_q_loss": "actor/edit_q_loss",
            "actor/edit_entropy_loss": "actor/edit_entropy_loss",
            "actor/edit_alpha_loss": "actor/edit_coefficient_loss",
        },
        {
            **CRITIC,
            **gaussian("edit_actor", "edit.gaussian."),
            "actor_bc_flow/mlp": "behavior.mlp.",
            "alpha/log_value": "entropy_coefficient.log_value",
        },
    ),
}

CASES = [p for p in PATHS if Case(p).config["agent_name"] in AGENTS]


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
    draws = case.draws("act_noise")
    if candidates > 1:  # all candidates of one state after those of another
        noise = PolicyNoise(torch.cat(draws))
    else:
        noise = acting_noise(method, draws, ["z", "edit"][: len(draws)])
    expected = case.tensor("actions")
    actions = method.act(case.batch().observations[: len(expected)], noise)
    torch.testing.assert_close(actions.flatten(1), expected, rtol=1e-4, atol=1e-5)
