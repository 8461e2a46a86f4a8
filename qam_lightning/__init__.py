"""Q-learning with Adjoint Matching: offline and offline-to-online RL with flow policies.

What a notebook needs can be imported from here:

>>> from qam_lightning import QAM, Spaces, load_policy

Every name is imported when it is first used: PyTorch and Lightning take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from qam_lightning.callbacks.checkpoints import Checkpoints
    from qam_lightning.callbacks.evaluation import Evaluate
    from qam_lightning.callbacks.metrics import MetricsLogger
    from qam_lightning.callbacks.online import Online
    from qam_lightning.core.adjoint import (
        action_gradient,
        adjoint_matching_loss,
        autograd_vjp,
        lean_adjoint,
    )
    from qam_lightning.core.critic import pessimistic, td_loss, td_target
    from qam_lightning.core.flow import flow_matching_loss, integrate
    from qam_lightning.core.memoryless import simulate
    from qam_lightning.data.batch import Batch
    from qam_lightning.data.datamodule import ChunkDataModule
    from qam_lightning.data.spaces import Spaces
    from qam_lightning.envs.make import make_env
    from qam_lightning.methods.bam import BAM
    from qam_lightning.methods.base import Method
    from qam_lightning.methods.bc import BC
    from qam_lightning.methods.cgql import CGQL
    from qam_lightning.methods.cgql_linex import CGQLLinex
    from qam_lightning.methods.cgql_mse import CGQLMSE
    from qam_lightning.methods.dac import DAC
    from qam_lightning.methods.dsrl import DSRL
    from qam_lightning.methods.fawac import FAWAC
    from qam_lightning.methods.fbrac import FBRAC
    from qam_lightning.methods.fedit import FEdit
    from qam_lightning.methods.fql import FQL
    from qam_lightning.methods.ifql import IFQL
    from qam_lightning.methods.qam import QAM
    from qam_lightning.methods.qam_edit import QAMEdit
    from qam_lightning.methods.qam_fql import QAMFQL
    from qam_lightning.methods.qsm import QSM
    from qam_lightning.methods.rebrac import ReBRAC
    from qam_lightning.methods.rlpd import RLPD
    from qam_lightning.methods.settings import setting
    from qam_lightning.methods.trqam import TRQAM
    from qam_lightning.policy import Policy, load_policy
    from qam_lightning.pretrained import load_clone
    from qam_lightning.util.errors import UserError

_MODULES = {
    "policy": ("Policy", "load_policy"),
    "pretrained": ("load_clone",),
    "data.batch": ("Batch",),
    "data.datamodule": ("ChunkDataModule",),
    "data.spaces": ("Spaces",),
    "envs.make": ("make_env",),
    "util.errors": ("UserError",),
    "methods.base": ("Method",),
    "methods.bam": ("BAM",),
    "methods.bc": ("BC",),
    "methods.cgql": ("CGQL",),
    "methods.cgql_linex": ("CGQLLinex",),
    "methods.cgql_mse": ("CGQLMSE",),
    "methods.dac": ("DAC",),
    "methods.dsrl": ("DSRL",),
    "methods.fawac": ("FAWAC",),
    "methods.fbrac": ("FBRAC",),
    "methods.fedit": ("FEdit",),
    "methods.fql": ("FQL",),
    "methods.ifql": ("IFQL",),
    "methods.qam": ("QAM",),
    "methods.qam_edit": ("QAMEdit",),
    "methods.qam_fql": ("QAMFQL",),
    "methods.qsm": ("QSM",),
    "methods.rebrac": ("ReBRAC",),
    "methods.rlpd": ("RLPD",),
    "methods.settings": ("setting",),
    "methods.trqam": ("TRQAM",),
    "callbacks.checkpoints": ("Checkpoints",),
    "callbacks.evaluation": ("Evaluate",),
    "callbacks.metrics": ("MetricsLogger",),
    "callbacks.online": ("Online",),
    "core.flow": ("flow_matching_loss", "integrate"),
    "core.memoryless": ("simulate",),
    "core.adjoint": (
        "action_gradient",
        "adjoint_matching_loss",
        "autograd_vjp",
        "lean_adjoint",
    ),
    "core.critic": ("pessimistic", "td_loss", "td_target"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BAM",
    "BC",
    "Batch",
    "CGQL",
    "CGQLLinex",
    "CGQLMSE",
    "Checkpoints",
    "ChunkDataModule",
    "DAC",
    "DSRL",
    "Evaluate",
    "FAWAC",
    "FBRAC",
    "FEdit",
    "FQL",
    "IFQL",
    "Method",
    "MetricsLogger",
    "Online",
    "Policy",
    "QAM",
    "QAMEdit",
    "QAMFQL",
    "QSM",
    "ReBRAC",
    "RLPD",
    "Spaces",
    "TRQAM",
    "UserError",
    "action_gradient",
    "adjoint_matching_loss",
    "autograd_vjp",
    "flow_matching_loss",
    "integrate",
    "lean_adjoint",
    "load_clone",
    "load_policy",
    "make_env",
    "pessimistic",
    "setting",
    "simulate",
    "td_loss",
    "td_target",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qam_lightning' has no attribute '{name}'")
    value = getattr(import_module(f"qam_lightning.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
