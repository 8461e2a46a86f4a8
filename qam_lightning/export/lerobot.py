"""What LeRobot looks for in a policy's folder, so that its plugin can load an exported one.

LeRobot chooses a policy's class by the key ``type`` of ``config.json``, and reads what to do before
and after the policy from two files of its own. There is little: the policy normalises by itself.
"""

import json
from pathlib import Path
from typing import Any

TYPE = "qam_lightning"
"""The name under which the plugin registers its policy."""

_ON_CPU = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
PROCESSORS: dict[str, list[dict[str, Any]]] = {
    "policy_preprocessor": [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        _ON_CPU,
    ],
    "policy_postprocessor": [_ON_CPU],
}
"""LeRobot's steps before and after the policy, by the name of the file."""


def write_processors(folder: Path) -> None:
    """Write LeRobot's two files into a folder."""
    for name, steps in PROCESSORS.items():
        content = {"name": name, "steps": steps}
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
