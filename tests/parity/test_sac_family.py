"""ReBRAC, DSRL and RLPD against recorded losses, gradients and actions."""

import pytest
import torch

from qam_lightning.methods.dsrl import DSRL
from qam_lightning.methods.rebrac import ReBRAC
from qam_lightning.methods.rlpd import RLPD
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

TUNING = {
    "actor/alpha_loss": "actor/coefficient_loss",
    "actor/alpha": "actor/entropy_coefficient",
    "actor/entropy": "actor/entropy",
}

AGENTS = {
    "rebrac": Agent(
        ReBRAC,
        {"alpha": "alpha_actor", "noise_scale": "actor_noise"},
        ["next/z"],
        {**CRITIC_TERMS, "actor/actor_loss": "actor/q_loss", "actor/bc_loss": "actor/bc_loss"},
        {
            **critics("critic"),
            "actor/actor_net": "actor.mlp.",
            "actor/mean_net": "actor.mlp.layers.4.",
            "target_actor/actor_net": "actor.mlp_ema.",
            "target_actor/mean_net": "actor.mlp_ema.layers.4.",
        },
    ),
    "dsrl": Agent(
        DSRL,
        {"noise_scale": "noise_scale"},
        ["next/z", "latent/z", "x_0", "u", "policy/z"],
        {
            **CRITIC_TERMS,
            **TUNING,
            "critic/distill_loss": "latent/loss",
            "actor/flow_loss": "actor/flow_loss",
        },
        {
            **critics("critic"),
            **gaussian("actor", "noise_policy.gaussian."),
            "alpha/log_value": "noise_policy.entropy_coefficient.log_value",
            "z_critic/value_net": "latent_critic.",
            "actor_bc_flow/mlp": "actor.flow.mlp.",
            "target_actor_bc_flow/mlp": "actor.flow_ema.mlp.",
        },
    ),
    "rlpd": Agent(
        RLPD,
        {},
        ["next/z", "policy/z"],
        {**CRITIC_TERMS, **TUNING},
        {
            **critics("critic"),
            **gaussian("actor", "actor.gaussian."),
            "alpha/log_value": "actor.entropy_coefficient.log_value",
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
    method = rebuild(case, agent(case))
    noise = name_draws(case.draws("act_noise"), ["z"], method.policy_draws())
    actions = method.act(case.batch().observations, {"z": noise["z"][:, None]}).flatten(1)
    torch.testing.assert_close(actions, case.tensor("actions"), rtol=1e-4, atol=1e-5)
