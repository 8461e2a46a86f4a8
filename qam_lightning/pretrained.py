"""Starting a method from another run's clone, so that several runs share one cloned behaviour.

A clone is the behaviour flow, its moving average and the normalisation of observations. Both runs
must have the same sizes, the same normalisation and the same data; `Method.on_fit_start` checks the
data. Tasks may differ, because they change rewards alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qam_lightning.checkpoints import check_finished, fingerprint, newest, read_checkpoint
from qam_lightning.methods.base import Method
from qam_lightning.methods.restore import check_weights
from qam_lightning.runtime import CONFIG
from qam_lightning.util.checkpoint import ENTRY, Clone
from qam_lightning.util.errors import UserError
from qam_lightning.util.hub import is_url, policy_folder


def load_clone(method: Method, run: str | Path) -> None:
    """Start a method from the behaviour flow that another run has cloned.

    If the other run keeps no moving average of its flow, the average starts at the flow's
    weights. A full velocity (``residual: false``) starts at the average. Training then continues to
    clone. With ``freeze_behavior`` it does not, and flow, average and full velocity all start at
    the flow's weights: what never moves has one value.

    >>> method = QAM(data.spaces, tau=3.0, freeze_behavior=True)
    >>> load_clone(method, "runs/scene-task2-bc-seed0")

    Args:
        method: a method that clones the behaviour, before training.
        run: the folder of a finished run, whose newest checkpoint is taken; a checkpoint file; an
            exported folder; or ``hf://owner/name``, an exported folder on the Hugging Face hub. It
            is read now, and never again.

    Raises:
        UserError: the method clones no behaviour; there is no such checkpoint or folder; the run
            is not finished; or it holds no clone of a dataset, or one of other sizes.
    """
    name = type(method).__name__
    if not method.clones_behavior:
        raise UserError(
            f"{name} clones no behaviour flow, so it cannot start from the clone in {run}"
        )
    path, checkpoint = _read(run)
    _check(checkpoint, method, path)
    flow = _part(checkpoint, "behavior")
    average = _part(checkpoint, "behavior_ema")
    if not average or method.freeze_behavior:
        average = flow
    parts = dict.fromkeys(method.cloned_flows, average)
    parts |= {"behavior": flow, "behavior_ema": average}
    modules = dict(method.named_children())
    parts = {name: tensors for name, tensors in parts.items() if name in modules}
    parts["obs_norm"] = _part(checkpoint, "obs_norm")
    for part, tensors in parts.items():
        check_weights(tensors, modules[part], path)
    for part, tensors in parts.items():
        modules[part].load_state_dict(tensors)
    entry = checkpoint[ENTRY]
    named = {key: x for key, x in entry["environment"].items() if key in ("env", "dataset")}
    method.pretrained = Clone(
        path=str(run if is_url(run) else path),
        fingerprint=fingerprint(path),
        method=entry["method"],
        gradient_step=checkpoint["counters"]["gradient_step"],
        versions=entry["versions"],
        data=entry.get("data") or named,
    )


def _read(run: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return a checkpoint and its path; an exported folder as a checkpoint of what it holds."""
    from qam_lightning.export.folder import WEIGHTS, is_exported, read_exported

    path = policy_folder(run, CONFIG, WEIGHTS)
    if not is_exported(path):
        if path.is_dir():
            path, folder = newest(path), path
            check_finished(folder, path)
        return path, read_checkpoint(path)
    config, weights = read_exported(path)
    entry = config.model_dump(include={"method", "environment", "versions"})
    training = config.training.model_dump()
    entry |= {"model": config.settings, "data": training["data"]}
    return path, {ENTRY: entry, "counters": training, "state_dict": weights}


def _part(checkpoint: dict[str, Any], module: str) -> dict[str, Tensor]:
    """Return a module's weights; none if the checkpoint has no such module."""
    start = f"{module}."
    state = checkpoint["state_dict"]
    return {name.removeprefix(start): x for name, x in state.items() if name.startswith(start)}


def _check(checkpoint: dict[str, Any], method: Method, path: Path) -> None:
    """Check that a checkpoint holds a clone of a dataset, of the method's sizes."""
    entry = checkpoint[ENTRY]
    if not _part(checkpoint, "behavior"):
        name = entry["method"].rpartition(".")[2]
        reason = f"{name} clones none"
        if path.is_dir():
            reason = f"only what {name} acts with was exported"
        raise UserError(
            f"{path}: holds no behaviour flow, as {reason}; name a run of bc, or of another method "
            "that clones the behaviour"
        )
    if checkpoint["counters"]["phase"] != "offline":
        raise UserError(
            f"{path}: its behaviour flow has learned from online data too; name a checkpoint of an "
            "offline phase"
        )
    if not checkpoint["counters"]["gradient_step"] and not entry.get("pretrained"):
        raise UserError(f"{path}: its behaviour flow has not been trained yet (gradient step 0)")
    own, theirs = _sizes(method.hparams), _sizes(entry["model"])
    if differ := [name for name in own if own[name] != theirs.get(name)]:
        both = [" and ".join(f"{name} {x.get(name)}" for name in differ) for x in (theirs, own)]
        raise UserError(
            f"{path}: its clone has {both[0]}, but {type(method).__name__} has {both[1]}; make "
            "them the same"
        )


def _sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a method that its clone depends on."""
    spaces = settings.get("spaces")
    named = {name: settings.get(name) for name in ("width", "depth", "standardize")}
    return {**(spaces if isinstance(spaces, dict) else {}), **named}
