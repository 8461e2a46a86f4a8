"""How a value may be written: 1e6 for an integer, ``~`` in a path, a flag and its value apart."""

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any

from qam_lightning.util.arguments import path
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.hub import is_url

PATHS = ("run_dir", "pretrained", "ckpt_path", "data.directory", "data.path", "data.store")
"""The keys of files and folders."""

_NEGATIVE = re.compile(
    r"-((\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[-+]?\d+)?|\.?inf|\.?nan|0x[\da-f_]+)", re.IGNORECASE
)


def joined(argv: Sequence[str]) -> list[str]:
    """Join every flag with its value by ``=``: to a parser, a negative number is a flag."""
    found: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        is_flag = word.startswith("-") and "=" not in word and word != "--print_config"
        if is_flag and rest and (not rest[0].startswith("-") or _NEGATIVE.fullmatch(rest[0])):
            word = f"{word}={rest.pop(0)}"
        found.append(word)
    return found


def plain(flag: str, types: dict[str, Any], paths: Iterable[str] = PATHS) -> str:
    """Write a flag as the parser takes it: 1000000 for 1e6, the home folder for ``~``.

    Args:
        flag: the flag, joined with its value.
        types: settings by key.
        paths: keys of files and folders.

    Raises:
        UserError: a number that no computer takes, text that no file name holds, or a path that
            leads nowhere.
    """
    name, equals, value = flag.partition("=")
    key = name.lstrip("-")
    if not equals:
        return flag
    if not writable(value):
        raise UserError(f"{shown(key)} is '{shown(value)}', expected text in UTF-8 without NUL")
    if re.fullmatch(r"[-+]?\d[\d_]*", value):
        if len(value) > 300 or is_integer(key, types) and not fits(int(value)):
            raise UserError(f"{key} is {shown(value)}, which does not fit into 64 bits")
    elif re.fullmatch(r"(\d+\.?\d*|\.\d+)e\+?\d+", value, re.IGNORECASE):
        if is_integer(key, types):
            value = str(_whole(float(value), key))
    if value in ("null", "~", "Null", "NULL"):
        _check_optional(key, types)
    if key in paths:
        value = at_home(key, value)
    return f"{name}={value}"


def is_integer(key: str, types: dict[str, Any]) -> bool:
    """Whether a setting takes integers."""
    setting = types.get(key.replace("init_args.", ""))
    if key in ("seed", "threads"):
        return True
    return setting is not None and bool(re.search(r"\bint\b", setting.type))


def whole_numbers(config: dict[str, Any], types: dict[str, Any], prefix: str = "") -> None:
    """Write 1e6 as 1000000 where a setting takes integers, and refuse null there."""
    for key, value in config.items():
        if isinstance(value, dict):
            whole_numbers(value, types, f"{prefix}{key}.")
        elif isinstance(value, float) and is_integer(prefix + key, types):
            config[key] = _whole(value, f"{prefix}{key}".replace("init_args.", ""))
        elif value is None:
            _check_optional(f"{prefix}{key}", types)


def _check_optional(key: str, types: dict[str, Any]) -> None:
    """Refuse null for an integer to which it means nothing."""
    name = key.replace("init_args.", "")
    if name in types and types[name].type == "int":
        raise UserError(f"{name} is null, expected an integer; leave it out for its default")


def _whole(number: float, key: str) -> float | int:
    """Return a number as an integer if it is one."""
    if not number.is_integer():
        return number
    if not fits(int(number)):
        raise UserError(f"{key} is {number}, which does not fit into 64 bits")
    return int(number)


def fits(number: int) -> bool:
    """Whether 64 bits hold a number."""
    return -(2**63) <= number < 2**63


def writable(text: str) -> bool:
    """Whether a file name and a configuration file can hold this text."""
    return not re.search("[\\0\ud800-\udfff]", text)


def expand_homes(config: dict[str, Any]) -> None:
    """Write the home folder for ``~`` in all paths of a configuration."""
    for key in PATHS:
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section.get(part, {})
        if isinstance(section.get(name), str):
            section[name] = at_home(key, section[name])


def at_home(key: str, value: str) -> str:
    """Return a path with the home folder for ``~``; a place on the hub stays.

    The paths of data stay as they are: a run's configuration keeps them, and the data module
    expands them.

    Raises:
        UserError: there is no name, or ``~name`` names nobody of this machine.
    """
    if is_url(value):
        return value
    try:
        expanded = str(path(value))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{key}: {error}") from None
    return value if key.startswith("data.") else expanded
