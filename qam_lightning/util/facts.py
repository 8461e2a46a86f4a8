"""What a run says about itself: its environment, software and configuration. Needs no PyTorch."""

import functools
from typing import Annotated, Any

import yaml

from qam_lightning.util.schema import Checked, Number, Text

ENTRY = "qam_lightning"
"""The entry of a checkpoint that says how to rebuild the method, and where it was trained."""

_MAX_VALUES, _MAX_DEPTH = 100_000, 100  # of a configuration, aliases expanded


def _release(text: str) -> str:
    if len(text) > 100 or not text.isprintable():
        raise ValueError("the name of a version")
    return text


def _environment(found: dict[str, Any]) -> dict[str, Any]:
    kinds = {"env": str, "dataset": str, "task": int, "sparse": bool}
    if found and any(type(found.get(name)) is not kind for name, kind in kinds.items()):
        raise ValueError("nothing, or env and dataset (texts), task (integer) and sparse (boolean)")
    return found


def configuration(text: str) -> dict[str, Any]:
    """Read the configuration in a checkpoint; an empty text has no settings.

    Raises:
        ValueError: it is no mapping in YAML, or large when its aliases are expanded.
    """
    try:
        _check_size(text)
        content = yaml.safe_load(text) or {}
    except (yaml.YAMLError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError("a configuration, a mapping in YAML")
    return content


def _check_size(text: str) -> None:
    """Raise a `ValueError` if a YAML text is too large, counting an alias as what it stands for."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []  # the collections around, and the count before each
    count = 0
    for event in yaml.parse(text):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            count += sizes.get(str(anchor), _MAX_VALUES)  # one that stands for what holds it
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            name, before = open_.pop()
            if name is not None:
                sizes[name] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if anchor is not None:
                sizes[anchor] = 1
        if count > _MAX_VALUES or len(open_) > _MAX_DEPTH:
            raise ValueError(f"at most {_MAX_VALUES} values, at most {_MAX_DEPTH} levels deep")


@functools.lru_cache(maxsize=8)  # all checkpoints of a run hold the same text
def _config(text: str) -> str:
    configuration(text)
    return text


Environment = Annotated[dict[Text, bool | int | Number | Text | None], Checked(_environment)]
Config = Annotated[Text, Checked(_config)]
Versions = dict[Text, Annotated[Text, Checked(_release)]]
