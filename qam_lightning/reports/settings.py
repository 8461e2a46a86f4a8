"""The settings of runs: by dotted keys, and which of them shape results."""

from collections.abc import Iterator, Mapping
from typing import Any

from qam_lightning.util.errors import UserError
from qam_lightning.util.settings import defaults

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


def had(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a run's settings, with today's defaults for those that an older version lacked."""
    try:
        return {**defaults(str(settings["model.class_path"])), **settings}
    except UserError:  # the class is a user's, and its file is no Python now
        return settings
