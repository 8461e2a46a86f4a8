"""Long tables of cases, of which the default suite runs a part."""

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[tuple[Any, ...]], every: int) -> list[Any]:
    """Return all cases; all but every ``every``-th are for the long run alone."""
    return [
        case if number % every == 0 else pytest.param(*case, marks=pytest.mark.slow)
        for number, case in enumerate(cases)
    ]
