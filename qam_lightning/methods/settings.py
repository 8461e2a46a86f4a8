"""Settings declared on the class: default, range and meaning in one place.

A method declares what can be set as annotated attributes, as a dataclass does:

>>> class Mine(Method):
...     tau: float = setting(at_least=0)
...     '''Inverse temperature.'''

The constructor ``Mine(spaces, *, tau, ...)``, its checks, the command line's flags with their help,
and the entry in checkpoints follow from that.
"""

import dataclasses
import math
from typing import Any, dataclass_transform

import lightning as L

from qam_lightning.util.errors import require

_RANGE = "range"


@dataclasses.dataclass(frozen=True)
class Range:
    """The values a setting may have.

    Attributes:
        at_least: smallest value.
        above: bound that values exceed.
        at_most: largest value.
        below: bound that values stay under.
        infinite: whether infinity is allowed.
        choices: all values, where they are no numbers.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    infinite: bool = False
    choices: tuple[str, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range; NaN lies in none."""
        if self.choices:
            return value in self.choices
        if not isinstance(value, int | float) or not (self.infinite or math.isfinite(value)):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range in words, as in ``at least 0 and finite``."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
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

    Every subclass becomes a dataclass with keyword arguments. The constructor checks the ranges,
    stores the settings as ``hparams`` and calls `build`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)

    def __post_init__(self) -> None:
        super().__init__()
        settings = dataclasses.fields(self)  # type: ignore[arg-type]
        for field in settings:
            value, allowed = getattr(self, field.name), field.metadata.get(_RANGE)
            if allowed is not None:
                require(allowed.holds(value), type(self), field.name, value, str(allowed))
        self.save_hyperparameters({f.name: _primitive(getattr(self, f.name)) for f in settings})
        self.build()

    def build(self) -> None:
        """Create the networks; all settings are set and checked by now."""
        raise NotImplementedError


def _primitive(value: Any) -> Any:
    """Return what a checkpoint can hold without running code: tuples with names become dicts."""
    return value._asdict() if hasattr(value, "_asdict") else value
