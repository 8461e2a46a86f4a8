"""The schema of a checkpoint: all entries are checked before any is used.

A checkpoint is Lightning's (weights, optimizers, loops, callbacks) with entries of ours. torch
reads it without running code from it, but does not check what is in it. This module does.
`qam_lightning.methods.restore` checks whether the checkpoint fits a method.
"""

import random
import re
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.facts import ENTRY, Config, Environment, Versions
from qam_lightning.util.schema import Checked, Count, Key, Number, Schema, Text, validated

FORMAT = 2
"""Number of the format of that entry; version 0.1 had none."""

DAMAGED = "the file was changed or is damaged; use another checkpoint"


def dense(x: Tensor) -> Tensor:
    """Return a plain tensor, wherever its data are: Lightning may load them onto a device.

    Raises:
        ValueError: it is sparse, quantised, without data or of a class of its own.
    """
    plain = type(x) in (Tensor, nn.Parameter) and x.layout == torch.strided
    if not plain or x.is_quantized or x.is_meta:
        raise ValueError("a dense tensor")
    return x


def _scalar(x: Tensor) -> Tensor:
    if dense(x).ndim or x.is_complex():
        raise ValueError("a tensor of one number, without dimensions")
    return x


def _class_name(name: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.([^\W\d]\w*|<locals>))+", name):
        raise ValueError("the full name of a class")
    return name


def _lightnings_version(text: str) -> str:
    if not re.fullmatch(r"2\.\d+\.\d+[\w.+]*", text):
        raise ValueError("a version 2 of Lightning")
    return text


def _python_state(state: Any) -> Any:
    try:
        random.Random().setstate(state)
    except (TypeError, ValueError, LookupError, OverflowError):
        raise ValueError("a state of Python's random") from None
    return state


def _torch_state(state: Tensor) -> Tensor:
    try:
        torch.Generator().set_state(dense(state).cpu())
    except (TypeError, ValueError, RuntimeError):
        raise ValueError("a state of torch's CPU generator") from None
    return state


def _cuda_state(state: Tensor) -> Tensor:
    if dense(state).dtype != torch.uint8 or state.shape != (16,):
        raise ValueError("a state of torch's CUDA generator")
    return state


def _numpy_state(state: list[Any]) -> list[Any]:
    try:
        _, keys, position, *_ = state
        if not 0 <= position <= len(keys):  # numpy would read beyond its keys
            raise ValueError
        np.random.RandomState().set_state(tuple(state))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a state of numpy's generator") from None
    return state


Dense = Annotated[Tensor, Checked(dense)]
Identity = dict[Text, Number | Text]


class Counters(Schema):
    """The progress of a run."""

    gradient_step: Count
    env_step: Count
    phase: Literal["offline", "online"]


class Clone(Schema):
    """Where a run's behaviour flow comes from.

    Attributes:
        path: the checkpoint.
        fingerprint: its CRC-32, see `qam_lightning.checkpoints.fingerprint`.
        method: full name of the class that cloned.
        gradient_step: gradient steps taken.
        versions: the software that wrote it, with its commit.
        data: what it learned from, see `ChunkDataModule.identity`.
    """

    path: Text
    fingerprint: Count
    method: Text
    gradient_step: Count
    versions: Versions
    data: Identity


class Entry(Schema, extra="allow"):
    """How to rebuild the method, and where it was trained."""

    format: Literal[FORMAT]  # type: ignore[valid-type]
    method: Annotated[Text, Checked(_class_name)]
    model: dict[Text, Any]  # the class checks its own settings
    environment: Environment
    versions: Versions
    hardware: Text = ""
    data: Identity = {}
    pretrained: Clone | None = None
    moments: list[Count] | None = None  # of how many parameters each optimizer has a state
    config: Config = ""
    config_hash: Text = ""
    run_dir: Text = ""


class RandomStates(Schema):
    """States of the global generators; see `qam_lightning.callbacks.checkpoints`."""

    python: Annotated[Any, Checked(_python_state)]
    torch: Annotated[Tensor, Checked(_torch_state)]
    numpy: Annotated[list[Any], Checked(_numpy_state)]
    cuda: Annotated[Tensor, Checked(_cuda_state)] | None = None


class OnlineSettings(Schema, extra="allow"):
    """What the schedule of a run with an online phase is known by."""

    offline: Count = Key("trainer.max_steps")


class Online(Schema, extra="allow"):
    """The entry of such a run; `qam_lightning.online.state` checks the rest."""

    settings: OnlineSettings


class OptimizerState(Schema):
    """What `torch.optim.Optimizer.state_dict` returns."""

    state: dict[int, dict[Text, Any]]
    param_groups: list[dict[Text, Any]]


class Content(Schema, extra="allow"):
    """A whole checkpoint. A user's callbacks and modules may add entries."""

    entry: Entry = Key(ENTRY)
    counters: Counters
    state_dict: dict[Text, Dense]
    metrics: dict[Text, Annotated[Tensor, Checked(_scalar)]] = {}
    random: RandomStates | None = None
    online: Online | None = None
    lightning: Annotated[Text, Checked(_lightnings_version)] = Key("pytorch-lightning_version")
    epoch: Count
    global_step: Count
    loops: dict[Text, Any]
    callbacks: dict[Any, Any] = {}
    optimizer_states: list[OptimizerState] = []
    lr_schedulers: list[dict[Text, Any]] = []


def check_content(checkpoint: object, path: object) -> None:
    """Check all of a checkpoint that can be checked without a method.

    Raises:
        UserError: it is of another program or version, or something in it is missing or wrong.
    """
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: holds no training checkpoint (no 'state_dict' in it)")
    entry = checkpoint.get(ENTRY)
    if not isinstance(entry, dict):
        raise UserError(f"{path}: holds no '{ENTRY}' entry; another program wrote it")
    if type(entry.get("format")) is not int or entry["format"] != FORMAT:
        written = entry.get("versions")
        writer = written.get(ENTRY) if isinstance(written, dict) else None
        raise UserError(
            f"{path}: written by qam_lightning {shown(writer or 'of another version')}, whose "
            "checkpoints this version does not read; resume it with that version, or train anew"
        )
    content: Content = validated(Content, checkpoint, str(path), "a checkpoint", DAMAGED)
    counters = content.counters
    online = counters.phase == "online"
    if online != (counters.env_step > 0):
        found = f"counters.phase is {counters.phase} after {counters.env_step} environment steps"
        raise UserError(f"{path}: {found}; {DAMAGED}")
    if content.entry.config and content.random is None:  # `Checkpoints` writes both
        raise UserError(f"{path}: random is missing; {DAMAGED}")
