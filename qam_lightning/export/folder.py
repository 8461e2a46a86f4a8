"""What an exported folder holds, and how a method is rebuilt from it.

``config.json`` names the sha256 of every file but the model card, which people edit. Weights are in
the safetensors format, and nothing here reads a pickle. ``policy.pt2`` is for other programs: no
code here opens it.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from qam_lightning.export.graph import Acting, trace
from qam_lightning.export.lerobot import TYPE
from qam_lightning.methods.base import Method
from qam_lightning.methods.restore import check_weights
from qam_lightning.runtime import CONFIG, FORMAT
from qam_lightning.util.checkpoint import Environment, Identity, Versions
from qam_lightning.util.errors import UserError, reading, shown
from qam_lightning.util.files import sha256
from qam_lightning.util.schema import Checked, Count, Number, Schema, Sha256, Text, read_json

if TYPE_CHECKING:
    from types import ModuleType

WEIGHTS, PROGRAM = "model.safetensors", "policy.pt2"
CARD, CURVE = "README.md", "learning_curve.png"
INSTALL = "pip install 'qam_lightning[export]'"
_ADVICE = "the folder was changed or is damaged; export the policy anew"
_INFINITE = "Infinity"


def _name(text: str) -> str:
    if text != Path(text).name or text.startswith("."):
        raise ValueError("the name of a file in the folder")
    return text


class Spaces(Schema):
    """Sizes of observations, actions and chunks."""

    obs_dim: Count
    action_dim: Count
    horizon: Count


class Noise(Schema):
    """What the policy takes besides an observation: standard normal numbers, N rows of P.

    Attributes:
        candidates: N, of which the policy takes the one of largest value.
        draws: what a candidate draws, one number of numbers after the other; their sum is P.
    """

    candidates: Count
    draws: list[Count]


class Training(Schema):
    """How far the policy was trained, on which machine, and from which data.

    Attributes:
        data: see `qam_lightning.util.checkpoint.Clone`; empty if unknown.
    """

    gradient_step: Count
    env_step: Count
    phase: Literal["offline", "online"]
    hardware: Text
    data: Identity = {}


class Score(Schema):
    """A success rate with its 95% interval.

    Attributes:
        source: how it was measured.
    """

    mean: Number
    low: Number
    high: Number
    episodes: Count
    source: Text


class Config(Schema):
    """``config.json``.

    Attributes:
        type: for LeRobot, see `qam_lightning.export.lerobot`.
        method: full name of the method's class.
        settings: its constructor's arguments; ``flow_steps`` is the sampler's T, ``best_of_n`` the
            candidates, ``standardize`` says whether observations are normalised inside.
        environment: see `qam_lightning.util.checkpoint.Environment`.
        control_period: seconds between two actions, None if the environment does not say.
        versions: the software that trained the policy, with its commit.
        exported_with: the software that wrote the folder, with its commit.
        files: sha256 of the other files.
    """

    format: Literal[FORMAT]  # type: ignore[valid-type]
    type: Literal[TYPE]  # type: ignore[valid-type]
    method: Text
    settings: dict[Text, Any]
    spaces: Spaces
    noise: Noise
    environment: Environment
    control_period: Number | None
    training: Training
    score: Score | None
    versions: Versions
    exported_with: Versions
    files: dict[Annotated[Text, Checked(_name)], Sha256]


def is_exported(path: Path) -> bool:
    """Whether a path is an exported folder, rather than a run's or a file."""
    return (path / CONFIG).is_file()


def read_config(folder: Path) -> Config:
    """Read what a folder says of itself.

    Raises:
        UserError: it is no exported folder, or damaged.
    """
    return read_json(Config, folder / CONFIG, "facts of an exported policy", _ADVICE)


def check_files(folder: Path, config: Config, *names: str) -> None:
    """Check that files are those that the configuration was written with; all of them by default.

    Raises:
        UserError: a file is missing or has another hash.
    """
    for name in names or config.files:
        path = folder / name
        with reading(path):
            found = sha256(path)
        if found != config.files.get(name):
            raise UserError(
                f"{path}: is not the file that {CONFIG} names, so the files do not belong "
                "together; export the policy anew"
            )


def extra(name: str) -> "ModuleType":
    """Import a package of the extra ``export``.

    Raises:
        UserError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UserError(
            f"exported policies need {package}, which is not installed; {INSTALL}"
        ) from None


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as JSON has them: it has no infinity."""
    return {k: _INFINITE if x == math.inf else x for k, x in settings.items()}


def _parsed(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: math.inf if x == _INFINITE else x for k, x in settings.items()}


def read_exported(folder: Path) -> tuple[Config, dict[str, Tensor]]:
    """Read what a folder says of itself, and the weights, of which nothing is checked yet.

    Raises:
        UserError: it is no exported folder, it is damaged, or its files do not belong together.
    """
    config, path = read_config(folder), folder / WEIGHTS
    check_files(folder, config, WEIGHTS)
    load = extra("safetensors.torch").load_file
    try:
        return config, load(path)
    except Exception as error:  # its exception is not one of Python's
        raise UserError(f"{path}: is no safetensors file: {shown(error)}") from None


def load_exported(
    folder: Path, method: type[Method] | None = None, behavior: bool = False, **acting: Any
) -> tuple[Method, dict[str, Any]]:
    """Rebuild a method from an exported folder; see `qam_lightning.checkpoints.load_method`.

    The folder holds only the weights that acting reads. All others are NaN, so that nobody takes
    them for trained weights.

    Raises:
        UserError: the folder is damaged, its files do not belong together, or it lacks weights that
            acting reads.
    """
    from qam_lightning.checkpoints import build_method

    config, weights = read_exported(folder)
    settings = _parsed(config.settings)
    built = build_method(config.method, settings, folder, method, behavior)
    _check_sizes(folder, config, built)
    built = build_method(config.method, settings, folder, method, behavior, acting)
    needed = trace(Acting(built, behavior)).weights if behavior or acting else list(weights)
    if lacking := [name for name in needed if name not in weights]:
        who = "the cloned behaviour" if behavior else "best_of_n"
        raise UserError(
            f"{folder}: lacks {lacking[0]}, which {who} reads: only what the policy acts with was "
            "exported; use the run"
        )
    check_weights({**built.state_dict(), **weights}, built, folder / WEIGHTS)
    absent = {n: torch.full_like(x, math.nan) for n, x in built.state_dict().items()}
    built.load_state_dict({**absent, **weights}, strict=True)
    return built.eval(), {
        "method": config.method,
        "model": settings,
        "environment": config.environment,
        "versions": config.versions,
        **config.training.model_dump(),
    }


def _check_sizes(folder: Path, config: Config, built: Method) -> None:
    """Check that the settings and the sizes beside them tell of one policy."""
    acting = Acting(built)
    noise = Noise(candidates=built.best_of_n, draws=acting.draws)
    if (config.spaces.model_dump(), config.noise) != (built.spaces._asdict(), noise):
        raise UserError(f"{folder / CONFIG}: settings tell of other sizes than the rest; {_ADVICE}")
