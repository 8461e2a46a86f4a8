"""Settings declared on the class: default, range and meaning in one place.

A method declares what can be set as annotated attributes, as a dataclass does:

>>> class Mine(Method):
...     tau: float = setting(at_least=0)
...     '''Inverse temperature.'''

The constructor ``Mine(spaces, *, tau, ...)``, its checks, the command line's flags with their help,
and the entry in checkpoints follow from that.
"""

import contextlib
import dataclasses
import inspect
import math
import types
from typing import Any, Literal, Union, dataclass_transform, get_args, get_origin

import lightning as L

from qam_lightning.util.errors import require

_RANGE = "range"
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers a setting may have.

    Attributes:
        at_least: smallest value.
        above: bound that values exceed.
        at_most: largest value.
        below: bound that values stay under.
        infinite: whether infinity is allowed.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    infinite: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value is a number in the range; NaN lies in none."""
        if not isinstance(value, int | float):
            return False
        if isinstance(value, float) and not (self.infinite or math.isfinite(value)):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range in words, as in ``at least 0 and finite``."""
        bounds = (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        )
        words = [f"{name} {bound}" for name, bound in bounds if bound is not None]
        if self.infinite:
            words.append("possibly infinite (.inf in YAML)")
        elif self.at_most is None and self.below is None:
            words.append("finite")
        return " and ".join(words)


def setting(*, default: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """Declare a setting.

    Args:
        default: its value where none is given; without a default it must be given.
        bounds: the attributes of `Range`.
    """
    return dataclasses.field(default=default, metadata={_RANGE: Range(**bounds)})


@dataclass_transform(kw_only_default=True, field_specifiers=(setting, dataclasses.field))
class Configurable(L.LightningModule):
    """A Lightning module whose annotated attributes are its settings.

    Every subclass becomes a dataclass with keyword arguments. The constructor checks types and
    ranges, stores the settings as ``hparams`` and calls `build`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)

    def __post_init__(self) -> None:
        super().__init__()
        settings = dataclasses.fields(self)  # type: ignore[arg-type]
        kinds = _annotations(type(self))
        for field in settings:
            value, allowed = getattr(self, field.name), field.metadata.get(_RANGE)
            if hasattr(value, "item"):  # numpy's scalars: checkpoints hold plain numbers
                value = value.item()
                setattr(self, field.name, value)
            _check_type(type(self), field.name, value, kinds.get(field.name, Any))
            if isinstance(value, int):  # torch takes no larger ones
                small = -(2**63) <= value < 2**63
                require(small, type(self), field.name, value, "an integer of 64 bits")
            if allowed is not None and value is not None:
                require(allowed.holds(value), type(self), field.name, value, str(allowed))
        self._check_settings()
        self.save_hyperparameters({f.name: _primitive(getattr(self, f.name)) for f in settings})
        self.build()

    def _check_settings(self) -> None:
        """Check what depends on several settings; each is checked by itself by now."""

    def build(self) -> None:
        """Create the networks; all settings are set and checked by now."""
        raise NotImplementedError


def _annotations(kind: type) -> dict[str, Any]:
    """Return the types of a class's settings, without those that only a type checker can name."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, Configurable):
            with contextlib.suppress(NameError, AttributeError):
                found |= inspect.get_annotations(base, eval_str=True)
    return found


def _check_type(owner: type, name: str, value: object, kind: Any) -> None:
    """Raise an `ArgumentError` unless a value is of its annotated type, where that is simple.

    An integer is also a number; True is neither, and 10.0 is no integer.
    """
    if get_origin(kind) is Literal:
        choices = ", ".join(map(str, get_args(kind)))
        require(value in get_args(kind), owner, name, value, f"one of {choices}")
    elif (expected := _in_words(kind)) is not None:
        require(_is_of(value, kind), owner, name, repr(value), expected)


def _in_words(kind: Any) -> str | None:
    """Name a type; None unless it is simple."""
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) not in (Union, types.UnionType):
        return "None" if kind is type(None) else _WORDS.get(kind)
    words = [_in_words(part) for part in get_args(kind)]
    return None if None in words else " or ".join(map(str, words))


def _is_of(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return any(_is_of(value, part) for part in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _primitive(value: Any) -> Any:
    """Return what a checkpoint can hold without running code: tuples with names become dicts."""
    return value._asdict() if hasattr(value, "_asdict") else value
