"""Whether a checkpoint fits a method: weights, optimizers, and the states of Lightning's parts.

Everything is checked before anything is used. Otherwise, for example, Adam moments of another shape
would make the fused Adam write beyond their end.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qam_lightning.util.checkpoint import DAMAGED, ENTRY, dense
from qam_lightning.util.errors import UserError, shown

if TYPE_CHECKING:
    from qam_lightning.methods.base import Method

_TRAINING = ("callbacks", "optimizer_states", "lr_schedulers")  # absent in one of weights only


def check_weights(state_dict: Mapping[str, Tensor], method: nn.Module, path: object) -> None:
    """Check that weights have the names and shapes of a method's, and are finite.

    Their precision may be another one.

    Raises:
        UserError: they do not fit.
    """
    built = method.state_dict()
    problem = None
    for name in [*built, *(name for name in state_dict if name not in built)]:
        found, own = state_dict.get(name), built.get(name)
        if found is None or own is None:
            problem = f"{shown(name)} is {'missing' if found is None else 'unknown'}"
        elif found.shape != own.shape:
            problem = f"{name} has shape {tuple(found.shape)}, expected {tuple(own.shape)}"
        elif found.is_floating_point() != own.is_floating_point() or found.is_complex():
            problem = f"{name} is of {found.dtype}, expected {own.dtype}"
        elif not found.isfinite().all():
            problem = f"{name} holds numbers that are not finite"
        if problem:
            kind = f"{type(method).__module__}.{type(method).__qualname__}"
            raise UserError(f"{path}: its weights do not fit {kind}: {problem}")


def check_training(checkpoint: Mapping[str, Any], method: "Method", path: object) -> None:
    """Check that training can go on: optimizers, and the states of Lightning's parts.

    Args:
        checkpoint: see `check_content`.
        method: the built method, in a trainer.
        path: the checkpoint's file.

    Raises:
        UserError: something is missing or does not fit.
    """
    for key in _TRAINING:
        if key not in checkpoint:
            raise UserError(
                f"{path}: {key} is missing, so training cannot go on from it (was it saved with "
                "save_weights_only?); use another checkpoint"
            )
    try:
        _check_loops(checkpoint, method.trainer)
        _check_callbacks(checkpoint["callbacks"], method.trainer)
        _check_optimizers(checkpoint, method)
    except _Misfit as error:
        raise UserError(f"{path}: {error}; {DAMAGED}") from None


class _Misfit(Exception):
    """Where something does not fit, what was found, and what was expected."""


def _expect(holds: bool, where: str, found: object, expected: object) -> None:
    if not holds:
        kind = type(found).__name__
        simple = found is None or isinstance(found, bool | int | float | str)
        told = shown(repr(found)) if simple else f"of type {kind}"
        if isinstance(found, Tensor):
            told = f"a {found.dtype} tensor of shape {tuple(found.shape)}"
        raise _Misfit(f"{where} is {told}, expected {expected}")


def _check_alike(found: Any, own: Any, where: str, least: float | None = None) -> None:
    """Check that a state has the keys and types of a fresh one.

    Args:
        found: the saved state.
        own: the state of the part that it is for.
        where: its place, for messages.
        least: a bound on all integers.
    """
    if isinstance(own, dict):
        _expect(isinstance(found, dict), where, found, "a mapping")
        for key, value in own.items():
            if key not in found:
                raise _Misfit(f"{where}.{shown(key)} is missing")
            _check_alike(found[key], value, f"{where}.{shown(key)}", least)
    elif isinstance(own, bool | str | list | tuple):
        _expect(type(found) is type(own), where, found, f"of type {type(own).__name__}")
    elif isinstance(own, int):
        _expect(type(found) is int, where, found, "an integer")
        _expect(least is None or found >= least, where, found, f"at least {least}")
    elif isinstance(own, float):
        _expect(type(found) in (int, float), where, found, "a number")
    elif isinstance(own, Tensor):
        same = isinstance(found, Tensor) and found.shape == own.shape
        _expect(same, where, found, f"a tensor of shape {tuple(own.shape)}")


def _check_loops(checkpoint: Mapping[str, Any], trainer: L.Trainer) -> None:
    loops = checkpoint["loops"]
    where = "loops.fit_loop"
    _check_alike(loops.get("fit_loop"), trainer.fit_loop.state_dict(), where, least=0)
    loaders = loops["fit_loop"]["state_dict"].get("combined_loader", [])
    _expect(isinstance(loaders, list), f"{where}.state_dict.combined_loader", loaders, "a list")
    # Lightning ends training by its own count of steps.
    step, taken = checkpoint["global_step"], checkpoint["counters"]["gradient_step"]
    _expect(step <= taken, "global_step", step, f"at most counters.gradient_step, {taken}")
    key = "epoch_loop.manual_optimization.optim_step_progress"
    progress = loops["fit_loop"].get(key)
    for name in ("ready", "completed") if progress is not None else ():
        counted = progress["total"][name]
        _expect(counted == step, f"{where}.{key}.total.{name}", counted, f"global_step, {step}")


def _check_callbacks(states: Mapping[Any, Any], trainer: L.Trainer) -> None:
    """Check the states of our callbacks and Lightning's; those of users are their own matter.

    A callback may have served an earlier fit, after this checkpoint. So what it holds in a mapping,
    or a score that it has by now, need not be in the checkpoint.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        ours = type(callback).__module__.startswith(("qam_lightning.", "lightning."))
        key = callback.state_key
        if ours and key in states:
            where, own = f"callbacks.{shown(key)}", callback.state_dict()
            own = {name: {} if isinstance(x, dict) else x for name, x in own.items()}
            found = states[key]
            if isinstance(found, dict):  # a score of None is one to come
                kept = {name for name, x in own.items() if isinstance(x, Tensor)}
                own = {n: x for n, x in own.items() if n not in kept or found.get(n, x) is not None}
            _check_alike(found, own, where)


def _check_optimizers(checkpoint: Mapping[str, Any], method: "Method") -> None:
    configured: Any = method.configure_optimizers()
    optimizers = configured if isinstance(configured, list | tuple) else [configured]
    if not all(isinstance(optimizer, Optimizer) for optimizer in optimizers):
        return  # a method of a user's that trains in its own way
    saved, where = checkpoint["optimizer_states"], "optimizer_states"
    if len(saved) != len(optimizers):
        raise _Misfit(f"{where} has {len(saved)} entries, expected {len(optimizers)}")
    taken = checkpoint["counters"]["gradient_step"]
    kept = checkpoint[ENTRY].get("moments")
    counts = [len(found["state"]) for found in saved]
    if kept is not None and kept != counts:
        raise _Misfit(f"{where} have states of {counts} parameters, expected {kept}")
    for number, (found, optimizer) in enumerate(zip(saved, optimizers, strict=True)):
        _check_groups(found["param_groups"], optimizer, f"{where}[{number}].param_groups")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        place = f"{where}[{number}].state"
        for index, moments in found["state"].items():
            _expect(0 <= index < len(parameters), place, index, "the number of a parameter")
            _check_moments(moments, parameters[index], optimizer, f"{place}.{index}", taken)


def _check_groups(found: list[dict[str, Any]], optimizer: Optimizer, where: str) -> None:
    own = optimizer.state_dict()["param_groups"]
    if len(found) != len(own):
        raise _Misfit(f"{where} has {len(found)} entries, expected {len(own)}")
    for number, (group, expected) in enumerate(zip(found, own, strict=True)):
        for key, value in expected.items():
            place = f"{where}[{number}].{key}"
            if key not in group:
                if value not in (False, None):  # a switch that another release does not know
                    raise _Misfit(f"{place} is missing")
            elif key == "lr":  # set anew in every step
                _expect(type(group[key]) in (int, float), place, group[key], "a number")
            else:
                same = type(group[key]) is type(value) and group[key] == value
                told = "the parameters' numbers" if key == "params" else value
                _expect(same, place, group[key], told)


def _check_moments(
    found: dict[str, Any], parameter: Tensor, optimizer: Optimizer, where: str, taken: int
) -> None:
    if isinstance(optimizer, torch.optim.Adam):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if key not in found:
                raise _Misfit(f"{where}.{key} is missing")
    for key, value in found.items():
        place = f"{where}.{shown(key)}"
        if key == "step":
            expected = "a floating-point tensor without dimensions"
            _expect(_is_of_shape(value, torch.Size()), place, value, expected)
            _expect(0 <= float(value) <= taken, place, float(value), f"0 to {taken}")
        elif value is not None or key.startswith("exp_avg"):
            expected = f"a floating-point tensor of {tuple(parameter.shape)}"
            _expect(_is_of_shape(value, parameter.shape), place, value, expected)
            if not value.isfinite().all() or (key.endswith("_sq") and (value < 0).any()):
                least = " of at least 0" if key.endswith("_sq") else ""
                raise _Misfit(f"{place} holds other numbers than finite ones{least}")


def _is_of_shape(value: object, shape: torch.Size) -> bool:
    """Whether a value is a dense floating-point tensor of a shape."""
    if not isinstance(value, Tensor) or value.shape != shape:
        return False
    try:
        return dense(value).is_floating_point()
    except ValueError:
        return False
