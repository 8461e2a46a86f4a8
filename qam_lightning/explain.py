"""Wording of mistakes on the command line: the parser's many lines become one that helps."""

import difflib
import importlib
import re
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from qam_lightning.util.errors import UserError

_UNKNOWN = (
    re.compile(r"Option '(?P<key>[^']+)' is not accepted"),
    re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'"),
    re.compile(r"unrecognized arguments: (?P<key>\S+)"),
)
_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>"
    r"|Problem with given class_path|Expected a path but"
)
_GIVEN = re.compile(r"Given value: (.*)")
_CLASS_PATH = re.compile(r"given class_path '([\w.]+)'")


def explain(error: Exception, parser: ArgumentParser, argv: Sequence[str]) -> str:
    """Says in one line what is wrong with the arguments.

    Args:
        error: What the parser, the interpolation or the instantiation raised.
        parser: The parser, for the keys that it knows.
        argv: The arguments, for the file in which a key stands.
    """
    text = str(error)
    if isinstance(error, OmegaConfBaseException):
        return _interpolation(text)
    for pattern in _UNKNOWN:
        if match := pattern.search(text):
            return _unknown_key(match.groupdict(), text, parser, argv)
    lines = [line.strip(" -") for line in text.splitlines() if not _NOISE.search(line)]
    message = " ".join(line for line in lines if line).replace('"', "'")
    keys = re.match(r"((?:Parser key '[\w.]+':\s*)*)", message)[0]  # type: ignore[index]
    key = ".".join(re.findall(r"'([\w.]+)'", keys))
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message[len(keys) :])
    message = re.sub(r"typing\.Literal\[([^]]*)\]", r"one of \1", message)
    # A value that may also be left out is answered in other words than one that may not.
    if (one := re.fullmatch(r"Expected an? ([\w.]+)", message)) and (given := _GIVEN.search(text)):
        message = f"expected {one[1]}, found {given[1]}"
    message = re.sub(r"Expected an? (.*?)\. Got value:", r"expected \1, found", message)
    if message == "expected float, found inf":  # a word, to YAML
        message += "; infinity is written .inf"
    return f"{key}: {message}{_place(key, argv)}" if key else message


def user_error_in(error: BaseException | None) -> UserError | None:
    """The user error that an exception was raised from, if there is one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def first_sentence(text: str) -> str:
    """The first sentence of a long message, without its full stop."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "failed")
    return line.split(". ")[0].rstrip(".!")


def closest(name: str, known: Sequence[str], count: int = 1) -> str:
    """A hint at similar names, e.g. ``did you mean a or b?``, or the whole list."""
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"


def _interpolation(text: str) -> str:
    first, *rest = text.splitlines()
    key = next((line.split(":", 1)[1].strip() for line in rest if "full_key" in line), "config")
    if any(sign in first for sign in ("${domain}", "${tuned_as}", "tuned.None")):
        return "no domain chosen"
    if missing := re.search(r"'tuned\.([^'.]+)(\.[^']+)?'", first):
        flag = key.replace("init_args.", "")
        return f"{key}: the method has no tuned value for '{missing[1]}'; give one with --{flag}"
    return f"{key}: {first}"


def _unknown_key(
    found: dict[str, str], text: str, parser: ArgumentParser, argv: Sequence[str]
) -> str:
    name = found["key"].partition("=")[0].lstrip("-")
    if not found["key"].startswith("-") and "unrecognized" in text:
        return f"unexpected argument '{name}'; settings are given as --KEY VALUE"
    key = f"{found['group']}.{name}" if found.get("group") else name
    known = {option.lstrip("-") for option in parser._option_string_actions}
    known = {option for option in known if not option.endswith(("help", "+"))}
    if class_path := _CLASS_PATH.search(text):
        key = f"model.{name}"
        known |= {f"model.{argument}" for argument in _constructor_arguments(class_path[1])}
    close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.8)
    if not close:  # perhaps only the group is missing or wrong
        by_leaf = {option.rpartition(".")[2]: option for option in sorted(known)}
        leaf = name.rpartition(".")[2]
        close = [by_leaf[m] for m in difflib.get_close_matches(leaf, sorted(by_leaf), n=1)]
    hint = f"did you mean {close[0]}?" if close else "--print_config shows all keys"
    return f"unknown key '{key}'{_place(key, argv)}; {hint}"


def _constructor_arguments(class_path: str) -> Iterator[str]:
    module, _, name = class_path.rpartition(".")
    for base in getattr(importlib.import_module(module), name).__mro__:
        yield from getattr(base.__init__, "__annotations__", {}).keys() - {"return", "shared"}


def _place(key: str, argv: Sequence[str]) -> str:
    """Names the configuration file that a key stands in, unless it was given as a flag."""
    leaf = key.rpartition(".")[2]
    flags = [argument.partition("=")[0] for argument in argv]
    if any(flag.startswith("-") and re.split(r"[.-]", flag)[-1] == leaf for flag in flags):
        return ""
    for argument in reversed(argv):
        flag, _, value = argument.partition("=")
        if flag == "--config" and Path(value).is_file():
            text = Path(value).read_text(encoding="utf-8")
            if re.search(rf"\b{re.escape(leaf)}\b\s*:", text):
                return f" (in {value})"
    return ""
