"""Reading a run's resolved configuration: ``config.yaml``, and its copy in every checkpoint."""

from pathlib import Path
from typing import Any

import yaml

from qam_lightning.util.errors import UserError
from qam_lightning.util.files import regular

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 2**20, 100_000, 100  # values with aliases expanded


def read_run_config(path: Path, advice: str) -> tuple[str, dict[str, Any]]:
    """Return the text of ``config.yaml`` and its settings.

    Raises:
        UserError: it cannot be read, or see `configuration`; the line ends with ``advice``.
    """
    try:
        with regular(path).open("rb") as file:
            text = file.read(_MAX_BYTES + 1).decode()
        return text, configuration(text)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    except UnicodeDecodeError:
        problem = "is no text in UTF-8"
    except ValueError as error:
        problem = f"holds something else, expected {error}"
    raise UserError(f"{path}: {problem}; {advice}")


def configuration(text: str) -> dict[str, Any]:
    """Return the settings in a configuration; an empty text has none.

    Raises:
        ValueError: it is no mapping in YAML, or large when its aliases are expanded. The message
            says what was expected.
    """
    content = None
    try:
        if _is_small(text):  # checked first: the C loader crashes where nesting is deep
            content = yaml.load(text, Loader=_LOADER) or {}
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError):
        pass  # no YAML, or `!!int x`
    if not isinstance(content, dict):
        raise ValueError(
            f"a configuration, a mapping in YAML of at most 1 MiB, {_MAX_VALUES} values and "
            f"{_MAX_DEPTH} levels"
        )
    return content


def _is_small(text: str) -> bool:
    """Whether a YAML text is of a run's size, counting an alias as what it stands for."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []  # the collections around, and the count before each
    count = 0
    for event in yaml.parse(text, Loader=_LOADER) if len(text) <= _MAX_BYTES else ():
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
            return False
    return len(text) <= _MAX_BYTES
