"""ReBRAC, DSRL and RLPD against recorded losses, gradients and actions."""

import pytest
import torch

from qam_lightning.methods.dsrl import DSRL
from qam_lightning.methods.rebrac import ReBRAC
from qam_lightning.methods.rlpd import RLPD
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
TUNING = {
    "actor/alpha_loss": "actor/coefficient_loss",
    "actor/alpha": "actor/entropy_coefficient",
    "actor/entropy": "actor/entropy",
}

AGENTS = {
    "rebrac": Agent(
        ReBRAC,
        {"alpha": "alpha_actor", "noise_scale": "actor_noise"},
        ["next.z"],
        {**CRITIC_TERMS, "actor/actor_loss": "actor/q_loss", "actor/bc_loss": "actor/bc_loss"},
        {
            **critics("critic"),
            "actor/actor_net": "actor.mlp.",
            "actor/mean_net": "actor.mlp.layers.4.",
            "target_actor/actor_net": "actor_ema.mlp.",
            "target_actor/mean_net": "actor_ema.mlp.layers.4.",
        },
    ),
    "dsrl": Agent(
        DSRL,
        {"noise_scale": "noise_scale"},
        ["next.z", "actor.latent_z", *CLONING_NOISE, "actor.policy"],
        {
            **CRITIC_TERMS,
            **TUNING,
            "critic/distill_loss": "latent/loss",
            "actor/flow_loss": "actor/flow_loss",
        },
        {
            **critics("critic"),
            **gaussian("actor", "noise_policy."),
            "alpha/log_value": "entropy_coefficient.log_value",
            "z_critic/value_net": "latent_critic.",
            "actor_bc_flow/mlp": "behavior.mlp.",
            "target_actor_bc_flow/mlp": "behavior_ema.mlp.",
        },
    ),
    "rlpd": Agent(
        RLPD,
        {},
        ["next.z", "actor.z"],
        {**CRITIC_TERMS, **TUNING},
        {
            **critics("critic"),
            **gaussian("actor", "actor."),
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
    method = rebuild(case, agent(case))
    noise = acting_noise(method, case.draws("act_noise"), ["z"])
    actions = method.act(case.batch().observations, noise).flatten(1)
    torch.testing.assert_close(actions, case.tensor("actions"), rtol=1e-4, atol=1e-5)
