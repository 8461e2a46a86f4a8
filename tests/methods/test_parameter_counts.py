"""Networks have the paper's sizes: its parameter counts (Table 6), network by network."""

import pytest
import torch
from torch import nn

from qam_lightning.methods.base import Method
from tests.methods.test_every_method import PAPER, Build, make

# cube-triple: O = 46, A = 5, H = 5, so D = 25; width 512, depth 4, K = 10.
SIZES = {"obs_dim": 46, "action_dim": 5, "horizon": 5, "width": 512, "depth": 4, "num_critics": 10}
HIDDEN = 3 * (512 * 512 + 512)
OUT = 512 * 25 + 25
NORMS = 4 * 2 * 512

CRITICS = 10 * ((71 * 512 + 512) + HIDDEN + (512 + 1) + NORMS)  # (s, a)
TIMED_CRITICS = 10 * ((72 * 512 + 512) + HIDDEN + (512 + 1) + NORMS)  # (s, a, u)
VALUE = (46 * 512 + 512) + HIDDEN + (512 + 1) + NORMS  # s
FLOW = (72 * 512 + 512) + HIDDEN + OUT  # (s, a_u, u)
ONE_STEP = (71 * 512 + 512) + HIDDEN + OUT  # (s, z)
DETERMINISTIC = (46 * 512 + 512) + HIDDEN + OUT  # s
GAUSSIAN = (46 * 512 + 512) + HIDDEN + 2 * OUT  # s, to mean and log-std
EDIT = (71 * 512 + 512) + HIDDEN + 2 * OUT  # (s, a)
COEFFICIENT = 1
DIFFUSION = (
    32  # frequencies of the step's Fourier features
    + ((64 * 512 + 512) + HIDDEN)  # and the network on them
    + ((512 + 46 + 25) * 512 + 512 + HIDDEN + OUT)  # (embedded step, s, a^i)
)

TWO_CRITICS = {"critic": CRITICS, "critic_ema": CRITICS}
CLONE = {"behavior": FLOW}
AVERAGED_CLONE = CLONE | {"behavior_ema": FLOW}
FLOWS = AVERAGED_CLONE | {"fine_tuned": FLOW}
EDITING = {"edit": EDIT, "entropy_coefficient": COEFFICIENT}
GUIDED = {"critic": TIMED_CRITICS, "critic_ema": TIMED_CRITICS} | AVERAGED_CLONE

NETWORKS: dict[str, dict[str, int]] = {
    "BAM": TWO_CRITICS | FLOWS,
    "CGQL": GUIDED,
    "CGQLMSE": GUIDED,
    "CGQLLinex": GUIDED,
    "DAC": TWO_CRITICS | {"actor": DIFFUSION},
    "DSRL": TWO_CRITICS
    | AVERAGED_CLONE
    | {"latent_critic": CRITICS, "noise_policy": GAUSSIAN, "entropy_coefficient": COEFFICIENT},
    "FAWAC": TWO_CRITICS | {"flow": FLOW, "value": VALUE},
    "FBRAC": TWO_CRITICS | {"flow": FLOW},
    "FEdit": TWO_CRITICS | CLONE | EDITING,
    "FQL": TWO_CRITICS | CLONE | {"one_step": ONE_STEP},
    "IFQL": TWO_CRITICS | CLONE | {"value": VALUE},
    "QAM": TWO_CRITICS | FLOWS,
    "QAMEdit": TWO_CRITICS | FLOWS | EDITING,
    "QAMFQL": TWO_CRITICS | FLOWS | {"one_step": ONE_STEP},
    "QSM": TWO_CRITICS | {"actor": DIFFUSION},
    "RLPD": TWO_CRITICS | {"actor": GAUSSIAN, "entropy_coefficient": COEFFICIENT},
    "ReBRAC": TWO_CRITICS | {"actor": DETERMINISTIC, "actor_ema": DETERMINISTIC},
}

# Typed from Table 6, which counts target networks and leaves out BAM and RLPD.
TABLE_6 = {
    "ReBRAC": 18_238_534,
    "FBRAC": 17_426_989,
    "CGQL": 18_275_398,
    "CGQLMSE": 18_275_398,
    "CGQLLinex": 18_275_398,
    "FQL": 18_264_646,
    "DSRL": 27_397_251,
    "FEdit": 18_277_472,
    "FAWAC": 18_243_630,
    "IFQL": 18_243_630,
    "DAC": 18_509_901,
    "QSM": 18_509_901,
    "QAM": 19_941_496,
    "QAMEdit": 20_791_979,
    "QAMFQL": 20_779_153,
}
# What Table 6 counts and we do not build, since no update and no action ever reads it.
DEAD = {name: {"EMA of the fine-tuned flow": FLOW} for name in ("QAM", "QAMEdit", "QAMFQL")}


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(params=PAPER, ids=lambda m: m.__name__)
def method(request: pytest.FixtureRequest, build: Build) -> Method:
    with torch.device("meta"):  # sizes only
        return make(request.param, build, **SIZES)


def test_every_network_has_its_size(method: Method) -> None:
    expected = NETWORKS[type(method).__name__]
    assert {name: size(method.get_submodule(name)) for name in expected} == expected
    assert size(method) == sum(expected.values()), "a network is not listed"


def test_every_method_is_listed() -> None:
    assert {m.__name__ for m in PAPER} == set(NETWORKS)
    assert set(NETWORKS) - set(TABLE_6) == {"BAM", "RLPD"}


@pytest.mark.parametrize("name", TABLE_6)
def test_networks_add_up_to_table_6(name: str) -> None:
    dead = DEAD.get(name, {})
    assert sum(NETWORKS[name].values()) + sum(dead.values()) == TABLE_6[name]
