"""What a run says about itself: its environment, software and configuration. Needs no PyTorch."""

import functools
from typing import Annotated, Any

from qam_lightning.util.run_config import configuration
from qam_lightning.util.schema import Checked, Number, Text

ENTRY = "qam_lightning"
"""The entry of a checkpoint that says how to rebuild the method, and where it was trained."""


def _release(text: str) -> str:
    if len(text) > 100 or not text.isprintable():
        raise ValueError("the name of a version")
    return text


def _environment(found: dict[str, Any]) -> dict[str, Any]:
    kinds = {"env": str, "dataset": str, "task": int, "sparse": bool}
    if found and any(type(found.get(name)) is not kind for name, kind in kinds.items()):
        raise ValueError("nothing, or env and dataset (texts), task (integer) and sparse (boolean)")
    return found


@functools.lru_cache(maxsize=8)  # all checkpoints of a run hold the same text
def _config(text: str) -> str:
    configuration(text)
    return text


Environment = Annotated[dict[Text, bool | int | Number | Text | None], Checked(_environment)]
Config = Annotated[Text, Checked(_config)]
Versions = dict[Text, Annotated[Text, Checked(_release)]]
