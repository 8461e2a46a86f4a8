"""The settings of runs: by dotted keys, their defaults, and which of them shape results."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

_NO_EFFECT = (
    *("seed", "run_dir", "ckpt_path", "threads", "config", "domain", "method", "tuned_as"),
    *("tuned.", "log.", "progress.", "checkpoints.", "evaluation."),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.deterministic", "trainer.logger", "trainer.callbacks"),
    *("data.env", "data.task", "data.directory", "data.base_url", "data.store", "data.storage"),
    *("data.prefetch", "model.class_path", "model.compile", "online.async_env"),
)
"""Labels, and settings on which results do not depend but by rounding; a dot ends a group."""


def flat(config: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by their dotted keys, as on the command line: without ``init_args``."""
    for key, value in config.items() if isinstance(config, dict) else ():
        inner = prefix if key == "init_args" else f"{prefix}{key}."
        if isinstance(value, dict):
            yield from flat(value, inner)
        else:
            yield f"{prefix}{key}", value


def has_effect(key: str) -> bool:
    """Whether results depend on a setting."""
    return not any(key == name or name[-1] == "." and key.startswith(name) for name in _NO_EFFECT)


@functools.cache
def defaults(class_path: str) -> Mapping[str, Any]:
    """Return the defaults of the settings of method, data and online phase.

    Only methods of this package are imported; those of any other class are left out.
    """
    from qam_lightning.callbacks.online import Online
    from qam_lightning.data.datamodule import ChunkDataModule

    found: dict[str, Any] = {}
    module, _, name = class_path.rpartition(".")
    if module.startswith("qam_lightning.methods."):
        # An older run may name a class that is gone.
        with contextlib.suppress(ImportError, AttributeError, TypeError, ValueError):
            method = getattr(importlib.import_module(module), name)
            found = {f"model.{f.name}": f.default for f in dataclasses.fields(method)}
    for group, kind in (("data", ChunkDataModule), ("online", Online)):
        found |= {f"{group}.{name}": value for name, value in _arguments(kind)}
    missing = (dataclasses.MISSING, inspect.Parameter.empty)
    return {key: x for key, x in found.items() if not any(x is y for y in missing)}


def _arguments(kind: type) -> Iterator[tuple[str, Any]]:
    for name, parameter in inspect.signature(kind).parameters.items():
        yield name, parameter.default
