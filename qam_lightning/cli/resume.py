"""Run folders: nothing in one is overwritten, and what resumes fits what is there."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

from qam_lightning.checkpoints import (
    check_newest,
    checkpoint_path,
    describe,
    last_checkpoints,
    newest,
)
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import replacing, writing
from qam_lightning.util.provenance import mismatches


def resume_path(wanted: str | None, run_dir: Path) -> Path | None:
    """Decide what to resume from, protecting the checkpoints of other runs.

    Args:
        wanted: ``"last"``, ``"best"``, a path, or None for a new run.
        run_dir: folder of the run.

    Raises:
        UserError: the checkpoint does not exist, the folder holds another run's checkpoints, or its
            own run is further.
    """
    best = checkpoint_path(run_dir, "best")
    held = [*last_checkpoints(run_dir), *([best] if best.exists() else [])]
    if wanted is None:
        if held and getattr(rank_zero_only, "rank", 0) == 0:
            raise UserError(
                f"{run_dir} already holds a run; continue it with --ckpt_path last, or choose "
                "another --run_dir"
            )
        return None
    if wanted == "last":
        if not last_checkpoints(run_dir):
            path = checkpoint_path(run_dir, "last")
            raise UserError(f"--ckpt_path last: there is no {path}; leave it out to start anew")
        return newest(run_dir)
    path = best if wanted == "best" else Path(wanted).expanduser()
    if not path.is_file():
        raise UserError(f"--ckpt_path {wanted}: no such file; expected last, best or a checkpoint")
    if held and run_dir.resolve() not in path.resolve().parents:
        raise UserError(
            f"{run_dir} already holds a run, and {path} is not part of it; choose another --run_dir"
        )
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
    before = yaml.safe_load(found.config)
    changes = changed(before, yaml.safe_load(settings)) if before else []
    if stored != built:
        name = next(n for n in sorted({*stored, *built}) if stored.get(n) != built.get(n))
        because = "; ".join(c for c in changes if c.startswith(("model.", "data."))) or name
        raise UserError(f"{path} holds networks of other sizes ({because}); undo that to resume")
    for line in [f"changed since the checkpoint: {c}" for c in changes] + [
        f"{path}: {difference}" for difference in mismatches(found.versions)
    ]:
        rank_zero_only(print)(line)


def changed(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """List the settings that differ, as ``key: old -> new``, named as on the command line."""
    lines: list[str] = []
    for key in [*old, *(k for k in new if k not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = prefix if key == "init_args" else f"{prefix}{key}."
            lines += changed(before, after, inner)
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


class SaveConfig(pl.Callback):
    """Writes the configuration when training starts, so that a refused run leaves none."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file, with its folders.

        Raises:
            UserError: it cannot be written.
        """
        if trainer.is_global_zero:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path, alone=True) as temporary:
                temporary.write_text(self._text, encoding="utf-8")
