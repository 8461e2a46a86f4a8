"""Reading a run's checkpoints: which there are, what is in them, and the method they hold.

A run folder holds ``checkpoints/last.ckpt``, older ones as ``last-1.ckpt`` and so on, and
``best.ckpt``. They are Lightning checkpoints of tensors and primitives only (they load with
``weights_only=True``) with one more entry, ``"qam_lightning"``, which says how to rebuild the
method and where it was trained. ``last.json`` beside ``last.ckpt`` (and so on) repeats what it
takes to choose a checkpoint and to check that it fits, so that only one file is read in full.

`describe` is all that `study status` needs. So this module imports PyTorch and Lightning only where
it reads a checkpoint in full.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import math
import pickle
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

from qam_lightning.online.schedule import Length
from qam_lightning.util.errors import ArgumentError, UserError, reason_of, shown
from qam_lightning.util.facts import ENTRY, Config, Environment, Versions
from qam_lightning.util.files import checksum, regular
from qam_lightning.util.memory import memory_limit
from qam_lightning.util.run_config import configuration
from qam_lightning.util.schema import Count, Number, Schema, Text, read_json

if TYPE_CHECKING:
    from qam_lightning.methods.base import Method

_UNREADABLE = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, MemoryError),
    *(RecursionError, OverflowError, AssertionError, NotImplementedError, zlib.error),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)
"""What torch, pickle and zipfile raise for bytes that are no checkpoint."""


class CheckpointInfo(Schema):
    """What it takes to choose a checkpoint and to check that it fits.

    Attributes:
        fingerprint: CRC-32 of the archive's directory, which lists the checksums of its parts.
        gradient_step: gradient steps taken.
        env_step: environment steps taken.
        phase: ``"offline"`` or ``"online"``.
        offline_steps: gradient steps of the offline phase of a run that has an online phase, 0 if
            its method has none; None for other runs, which are offline for all of their steps.
        method: full name of the method's class.
        shapes: name -> shape of every tensor of the method's ``state_dict``.
        best: the best evaluated success rate up to this checkpoint, None before the first.
        environment: ``env``, ``dataset``, ``task`` and ``sparse`` of the data, if they have them.
        config: the run's resolved configuration, YAML; empty without `Checkpoints` in the trainer.
        versions: the software that wrote it, see `util.provenance.versions`.
        hardware: the device that trained, see `util.provenance.hardware`; empty if unknown.
    """

    fingerprint: Count
    gradient_step: Count
    env_step: Count
    phase: Literal["offline", "online"]
    offline_steps: Count | None
    method: Text
    shapes: dict[Text, list[Count]]
    best: Number | None
    environment: Environment
    config: Config
    versions: Versions
    hardware: Text = ""

    @classmethod
    def of(cls, checkpoint: dict[str, Any], path: Path) -> Self:
        """Summarise a checkpoint and the file it was read from or written to."""
        entry = checkpoint[ENTRY]
        state = checkpoint.get("callbacks", {}).get("Checkpoints")
        best = state.get("best") if isinstance(state, dict) else None
        online = checkpoint.get("online")
        return cls(
            fingerprint=fingerprint(path),
            **checkpoint["counters"],
            offline_steps=online["settings"]["trainer.max_steps"] if online else None,
            shapes={name: list(x.shape) for name, x in checkpoint["state_dict"].items()},
            best=best if isinstance(best, float) and math.isfinite(best) else None,
            config=entry.get("config", ""),
            hardware=entry.get("hardware", ""),
            **{key: entry[key] for key in ("method", "environment", "versions")},
        )

    @property
    def length(self) -> Length:
        """How long the run was to be; empty if its configuration is not known."""
        return Length.of(configuration(self.config), self.offline_steps)


def checkpoint_path(run_dir: str | Path, name: str) -> Path:
    """Return the path of a run's checkpoint ``"last"``, ``"last-1"``, ... or ``"best"``."""
    return Path(run_dir) / "checkpoints" / f"{name}.ckpt"


def run_of(source: Path) -> Path:
    """Return the folder of the run that a checkpoint belongs to; a folder itself."""
    if source.is_dir():
        return source
    inside = source.resolve().parent
    return inside.parent if inside.name == "checkpoints" else inside


def last_checkpoints(run_dir: str | Path) -> list[Path]:
    """Return a run's ``last.ckpt``, ``last-1.ckpt`` and so on that exist, the newest first."""
    paths = checkpoint_path(run_dir, "last").parent.glob("last*.ckpt")
    ages = {path: path.stem.removeprefix("last").removeprefix("-") or "0" for path in paths}
    return sorted((p for p, age in ages.items() if age.isdigit()), key=lambda p: int(ages[p]))


def describe(path: str | Path) -> CheckpointInfo:
    """Return what the JSON beside a checkpoint says, or the checkpoint itself if that is stale.

    Raises:
        UserError: the file is missing, not an archive, or see `read_checkpoint`.
    """
    path = Path(path)
    with contextlib.suppress(UserError):  # none, damaged, or not of this format
        beside = path.with_suffix(".json")
        info: CheckpointInfo = read_json(CheckpointInfo, beside, "facts of a checkpoint", "")
        if info.fingerprint == fingerprint(path):
            return info
    return CheckpointInfo.of(read_checkpoint(path), path)


def fingerprint(path: Path) -> int:
    """Return the CRC-32 of an archive's directory: names, sizes and checksums of its parts.

    Raises:
        UserError: the file is missing, or not an archive.
    """
    if path.is_dir():  # an exported folder
        from qam_lightning.runtime import CONFIG

        return checksum(path / CONFIG)
    with _reading(path), zipfile.ZipFile(regular(path)) as archive:
        parts = [(part.filename, part.file_size, part.CRC) for part in archive.infolist()]
    return zlib.crc32(repr(parts).encode())


def verified(path: Path) -> io.BytesIO:
    """Read a file and compare its content with its checksums, which torch does not.

    The content is kept until `read_checkpoint`, so that a checkpoint is chosen and loaded with one
    look at the disk.

    Raises:
        UserError: the file is missing, damaged, or not an archive.
    """
    with _reading(path):
        facts = regular(path).stat()
        if facts.st_size > memory_limit():
            raise MemoryError
        return io.BytesIO(_content(path, facts.st_ino, facts.st_size, facts.st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _content(path: Path, *facts: int) -> bytes:
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = archive.infolist()
        stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
        if not stored or sum(part.file_size for part in parts) > len(content):
            raise zipfile.BadZipFile("it would grow beyond its size")
        if (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{name} is damaged")
    return content


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU, without running any code from it.

    Args:
        path: a file that `Checkpoints` wrote.

    Returns:
        The Lightning checkpoint; ``["state_dict"]`` holds the weights, ``["counters"]`` the
        progress, ``["qam_lightning"]`` the description of method, environment and configuration.

    Raises:
        UserError: the file is missing, unreadable, damaged, from another version of this program,
            or a checkpoint of something else; or anything in it is not what belongs there.
    """
    import torch

    from qam_lightning.util.checkpoint import check_content

    path = Path(path)
    content = verified(path)
    _content.cache_clear()
    with _reading(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TorchScript.*")  # it is refused below
        checkpoint = torch.load(content, map_location="cpu", weights_only=True)
    check_content(checkpoint, path)
    return checkpoint


def newest(run_dir: str | Path) -> Path:
    """Return the newest intact ``last*.ckpt`` of a run; print a line if it is not the first.

    Raises:
        UserError: there is none, or none that is intact.
    """
    from lightning.pytorch.utilities import rank_zero_only

    problems = []
    for path in dict.fromkeys([checkpoint_path(run_dir, "last"), *last_checkpoints(run_dir)]):
        try:
            verified(path)
            info = describe(path)
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            rank_zero_only(print)(
                f"{problems[0]}: falling back to {path}, of gradient step {info.gradient_step}",
                file=sys.stderr,
            )
        return path
    raise UserError(problems[0])


def check_finished(run_dir: Path, path: Path) -> None:
    """Check that a run is finished, if its length is known.

    Args:
        run_dir: folder of the run.
        path: its newest checkpoint.

    Raises:
        UserError: it is not.
    """
    info = describe(path)
    length = info.length
    if any(length) and not length.is_reached(info.gradient_step, info.env_step):
        done = f"it has taken {info.gradient_step:,} gradient steps"
        done += f" and {info.env_step:,} environment steps" if length.env_steps else ""
        raise UserError(
            f"{run_dir}: the run is not finished ({done}); let it end, or name one of its "
            f"checkpoint files, such as {path}"
        )


def check_newest(path: Path, run_dir: str | Path) -> None:
    """Check that a run which resumes from ``path`` overwrites no later checkpoint of its folder.

    Raises:
        UserError: the folder holds a checkpoint of a later gradient step.
    """
    found = {}
    for candidate in (path, *last_checkpoints(run_dir)):
        with contextlib.suppress(UserError):  # an unreadable file is no loss
            found[candidate] = describe(candidate).gradient_step
    furthest = max(found, key=lambda p: found[p], default=path)
    if path in found and found[path] < found[furthest]:
        raise UserError(
            f"{path} is at gradient step {found[path]}, but {furthest} is at {found[furthest]}, "
            "and resuming would overwrite it; choose another run_dir, or resume from the newest"
        )


def load_method(
    path: str | Path,
    method: "type[Method] | None" = None,
    behavior: bool = False,
    **acting: Any,
) -> "tuple[Method, dict[str, Any]]":
    """Rebuild a trained method from a checkpoint.

    Args:
        path: a checkpoint file; a run folder, whose ``last.ckpt`` is then taken; or an exported
            folder.
        method: the method's class. It is needed where that is neither of this package nor of a
            module that is imported already: on a file's word, nothing else is imported.
        behavior: the cloned behaviour is to act.
        **acting: settings of acting to replace, see `Method.acting_settings`; not
            ``temperature``, which `EpisodePolicy` takes.

    Returns:
        The method on the CPU in evaluation mode, and its metadata: the checkpoint's
        ``"qam_lightning"`` entry with ``gradient_step``, ``env_step`` and ``phase``.

    Raises:
        UserError: see `read_checkpoint`; also when the method's class is not imported or cannot be
            built, or when the weights do not fit it.
        ArgumentError: the class or a setting of acting is refused.
    """
    from qam_lightning.export.folder import is_exported, load_exported
    from qam_lightning.methods.restore import check_weights

    path = Path(path)
    if is_exported(path):
        return load_exported(path, method, behavior, **acting)
    if path.is_dir():
        path = checkpoint_path(path, "last")
    checkpoint = read_checkpoint(path)
    entry = checkpoint[ENTRY]
    built = build_method(entry["method"], entry["model"], path, method, behavior, acting)
    check_weights(checkpoint["state_dict"], built, path)
    built.load_state_dict(checkpoint["state_dict"], strict=True)
    return built.eval(), {**entry, **checkpoint["counters"]}


def build_method(
    name: str,
    settings: Mapping[str, Any],
    path: Path,
    method: "type[Method] | None" = None,
    behavior: bool = False,
    acting: Mapping[str, Any] = MappingProxyType({}),
) -> "Method":
    """Build the untrained method that a file names.

    Args:
        name: full name of its class.
        settings: arguments of its constructor.
        path: the file, for messages.
        method: see `load_method`.
        behavior: see `load_method`.
        acting: see `load_method`.

    Raises:
        UserError: see `load_method`.
        ArgumentError: see `load_method`.
    """
    from qam_lightning.methods.base import Method

    kind = _method_class(name, path) if method is None else method
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        if method is not None:
            raise ArgumentError("load_policy", "method", f"is {method}, expected a class of Method")
        raise UserError(f"{path}: {name} is not a method")
    known = {field.name for field in dataclasses.fields(kind)}
    own = {name: value for name, value in acting.items() if name in known}
    try:
        built = kind(**{**settings, **own})
        for key, value in acting.items():
            built.check_acting(key, value, behavior)
    except ArgumentError as error:
        if error.name in acting:
            raise
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # whatever a class makes of arguments that are not its own
        raise UserError(f"{path}: cannot build {shown(name)}: {reason_of(error)}") from error
    return built


def check_env(env: str, where: object) -> None:
    """Check that an environment which a checkpoint names needs no module but those imported.

    Args:
        env: see `qam_lightning.envs.make_env`.
        where: the checkpoint, for the message.

    Raises:
        UserError: gymnasium would import a module for it.
    """
    module = env.rpartition(":")[0]
    if module and module not in sys.modules:
        raise UserError(
            f"{where}: its environment {shown(env)} cannot be made: {shown(module)} is not "
            "imported; a checkpoint imports nothing by itself: import the module first (eval.py "
            "--import MODULE), or give make_env the environment as env"
        )


def _method_class(name: str, path: Path) -> object:
    """Return what a name in a checkpoint stands for, importing nothing but methods of ours."""
    module, _, attribute = name.rpartition(".")
    reason = f"{module} is not imported"
    try:
        if module.startswith("qam_lightning.methods."):
            return getattr(importlib.import_module(module), attribute)
        while module not in sys.modules and "." in module:  # a class within a class
            module, _, outer = module.rpartition(".")
            attribute = f"{outer}.{attribute}"
        if module in sys.modules:
            return functools.reduce(getattr, attribute.split("."), sys.modules[module])
    except (ImportError, AttributeError) as error:
        reason = shown(error)
    raise UserError(
        f"{path}: its method {shown(name)} cannot be found: {reason}; a checkpoint imports nothing "
        "by itself: import the module first (eval.py --import MODULE), or give load_policy the "
        "class as method"
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is read into a `UserError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such checkpoint file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _UNREADABLE as error:
        raise UserError(
            f"{path}: not a readable checkpoint; it is damaged, cut short or another kind of file"
        ) from error
