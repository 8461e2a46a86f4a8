"""Validation of files: one schema per kind of file, all of it checked before any of it is used.

>>> class Part(Schema):
...     rows: Count
...     arrays: dict[str, Number]

>>> part = read_json(Part, path, "a part", advice="delete it, and it is collected again")
>>> part.rows
10
"""

import functools
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator as Checked
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json

from qam_lightning.util.errors import UserError, reading, shown
from qam_lightning.util.files import regular

Kind = TypeVar("Kind")

Count = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]
"""An integer of at least 0, and of at most 63 bits."""


Crc32 = Annotated[Count, Field(le=2**32 - 1)]
"""A checksum, see `qam_lightning.util.files.checksum`."""


def _plain(value: Any) -> Any:
    if not isinstance(value, int | float):  # what pydantic would convert: a tensor, for example
        raise ValueError("a number")
    return value


Number = Annotated[float, BeforeValidator(_plain), Field(allow_inf_nan=False, strict=True)]
"""A finite number."""

Text = Annotated[str, Field(strict=True)]
"""A text."""


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", text):
        raise ValueError("a sha256, 64 hexadecimal digits")
    return text.lower()


Sha256 = Annotated[Text, Checked(_sha256)]
"""The SHA-256 of a file, in lower case, see `qam_lightning.util.files.sha256`."""


class Schema(BaseModel):
    """A mapping of known keys; types are strict (True is no integer), and other keys are refused.

    A subclass that allows other keys says ``class Entry(Schema, extra="allow")``. A check of one's
    own is ``Annotated[kind, Checked(check)]``, where ``check(value)`` returns the value or raises
    ``ValueError("a text without spaces")``: what was expected.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True
    )


def Key(name: str) -> Any:  # noqa: N802  (a word of the declarations)
    """Declare that a field of a `Schema` has another name in the file."""
    return Field(alias=name)


def validated(kind: Any, content: object, path: Path | str, what: str, advice: str) -> Any:
    """Return ``content`` as an instance of ``kind``.

    Args:
        kind: a `Schema`, or any type that pydantic knows.
        content: what was read: mappings, lists and scalars.
        path: the file it was read from.
        what: what the whole content is, e.g. ``"a manifest"``.
        advice: what to do about a file that does not fit.

    Raises:
        UserError: it does not fit; the message names the first place that does not.
    """
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        problem = _problem(error.errors(include_url=False), content, what)
        raise UserError(f"{path}: {problem}; {advice}") from None


def read_json(kind: Any, path: Path, what: str, advice: str) -> Any:
    """Read a JSON file; see `validated`. Its lists may be tuples of the schema.

    Raises:
        UserError: it cannot be read, is no JSON, or does not fit.
    """
    with reading(path):
        text = regular(path).read_bytes()
    try:
        return _adapter(kind).validate_json(text)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":
        reason = errors[0]["msg"].removeprefix("Invalid JSON: ")
        raise UserError(f"{path}: is no JSON ({reason}), expected {what}; {advice}")
    raise UserError(f"{path}: {_problem(errors, from_json(text), what)}; {advice}")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def _problem(errors: list[ErrorDetails], content: object, what: str) -> str:
    """Say what is wrong at the first place that is: where, what was found, what was expected."""
    first = errors[0]
    where = _place(content, first["loc"])
    name = "".join(where).removeprefix(".") or what
    if first["type"] == "missing":
        return f"{name} is missing"
    if first["type"] == "extra_forbidden":
        return f"{name} is unknown"
    # A union has one error for each of its types.
    here = [error for error in errors if _place(content, error["loc"]) == where]
    expected = " or ".join(dict.fromkeys(_expected(error) for error in here))
    return f"{name} is {_found(first['input'])}, expected {expected}"


def _place(content: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that lead to a place, without the names of a union's types among them."""
    place = []
    for n, key in enumerate(loc):
        if isinstance(content, dict) and (key in content or n == len(loc) - 1):
            content = content.get(key)
        elif isinstance(content, list | tuple) and isinstance(key, int) and key < len(content):
            content = content[key]
        else:
            continue
        place.append(f"[{key}]" if isinstance(key, int) else f".{shown(key)}")
    return place


def _expected(error: ErrorDetails) -> str:
    words = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    for theirs, ours in (
        ("a valid dictionary", "a mapping"),
        ("a valid integer", "an integer"),
        ("a valid string", "a text"),
        ("a valid boolean", "true or false"),
        ("a valid", "a"),
        ("an instance of Tensor", "a tensor"),
        ("greater than or equal to", "at least"),
        ("less than or equal to", "at most"),
    ):
        if words.startswith(theirs):
            return ours + words.removeprefix(theirs).partition(" or instance of ")[0]
    return words


def _found(value: object) -> str:
    """Describe a value in a few words."""
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "an integer of many digits"
    if isinstance(value, str):
        return f"'{shown(value)}'"
    kind = type(value).__name__
    return f"an empty {kind}" if isinstance(value, list | tuple | dict) and not value else kind
