"""Run folders: nothing in one is overwritten, and what resumes fits what is there."""

from collections.abc import Iterator
from os.path import realpath  # Path.resolve fails at links that lead to themselves
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from qam_lightning.checkpoints import (
    check_newest,
    checkpoint_path,
    describe,
    last_checkpoints,
    newest,
)
from qam_lightning.cli.fit import RUN
from qam_lightning.run_folder import check_unused, contents
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import writing
from qam_lightning.util.provenance import mismatches
from qam_lightning.util.run_config import configuration
from qam_lightning.util.settings import METHOD, defaults

_FIXED = ("pretrained: ", "model.freeze_behavior: ", "model.residual: ")
"""Settings that decide how a run begins, and what its weights mean."""


def check_folder(wanted: str | None, run_dir: Path) -> None:
    """Check early, as it is quick and the most common mistake, that a run may use its folder.

    Args:
        wanted: see `resume_path`.
        run_dir: folder of the run.

    Raises:
        UserError: the folder holds a run, and this one begins or continues another.
    """
    with writing(run_dir):  # a name that no file system takes, for example
        held = contents(run_dir)
    if wanted is None and any(path.suffix == ".ckpt" for path in held):
        raise UserError(
            f"{run_dir} already holds a run; continue it with --ckpt_path last, or choose another "
            "--run_dir"
        )
    if wanted is None:
        check_unused(run_dir)
    elif wanted not in ("last", "best"):
        path = Path(wanted).expanduser()
        if held and Path(realpath(run_dir)) not in Path(realpath(path)).parents:
            raise UserError(
                f"{run_dir} already holds a run, and {path} is not part of it; choose another "
                "--run_dir"
            )


def resume_path(wanted: str | None, run_dir: Path) -> Path | None:
    """Return the checkpoint to resume from; print a line if it is not the newest, but damaged.

    Args:
        wanted: ``"last"``, ``"best"``, a path, or None for a new run.
        run_dir: folder of the run.

    Raises:
        UserError: the checkpoint does not exist, or its run is further.
    """
    if wanted is None:
        return None
    if wanted == "last":
        if not last_checkpoints(run_dir):
            path = checkpoint_path(run_dir, "last")
            raise UserError(f"--ckpt_path last: there is no {path}; leave it out to start anew")
        return newest(run_dir)
    path = checkpoint_path(run_dir, "best") if wanted == "best" else Path(wanted).expanduser()
    if not path.is_file():
        raise UserError(f"--ckpt_path {wanted}: no such file; expected last, best or a checkpoint")
    check_newest(path, run_dir)
    return path


def check_resume(path: Path, model: torch.nn.Module, settings: str) -> None:
    """Check that a checkpoint fits, and print which settings and versions changed since.

    Raises:
        UserError: the checkpoint is of another method or of other network sizes.
    """
    found = describe(path)
    method = f"{type(model).__module__}.{type(model).__qualname__}"
    if found.method != method:
        raise UserError(f"{path} holds {found.method}, but the configuration asks for {method}")
    stored = found.shapes
    built = {name: list(x.shape) for name, x in model.state_dict().items()}
    # A checkpoint from a notebook has none to compare with.
    before = configuration(found.config)
    changes = changed(before, configuration(settings)) if before else []
    if stored != built:
        name = next(n for n in sorted({*stored, *built}) if stored.get(n) != built.get(n))
        because = "; ".join(c for c in changes if c.startswith(("model.", "data."))) or name
        raise UserError(f"{path} holds networks of other sizes ({because}); undo that to resume")
    for change in changes:
        if change.startswith(_FIXED):
            raise UserError(f"{path}: its run began otherwise ({change}); undo that to resume")
    for line in [f"changed since the checkpoint: {c}" for c in changes] + [
        f"{path}: {difference}" for difference in mismatches(found.versions)
    ]:
        rank_zero_only(print)(line)


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """List the settings that differ, as ``key: old -> new``, named as on the command line.

    A setting that the old configuration does not hold has its default: an older version, which did
    not know the setting, wrote that configuration.
    """
    method = new.get("model", {}).get("class_path", METHOD)
    had = {key: default for key, (_, default, _) in RUN.items()} | defaults(method)
    return list(_changed(old, new, "", had))


def _changed(
    old: dict[str, Any], new: dict[str, Any], prefix: str, had: dict[str, Any]
) -> Iterator[str]:
    for key in [*old, *(k for k in new if k not in old)]:
        after = new.get(key)
        before = old.get(key, {} if isinstance(after, dict) else had.get(f"{prefix}{key}"))
        if isinstance(before, dict) and isinstance(after, dict):
            inner = prefix if key == "init_args" else f"{prefix}{key}."
            yield from _changed(before, after, inner, had)
        elif before != after:
            yield f"{prefix}{key}: {before} -> {after}"
