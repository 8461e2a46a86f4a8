"""The small runs of the online tests."""

from tests.online.conftest import arguments, data

__all__ = ["arguments", "data"]
