"""What benchmarks measure: methods in two sizes, in the dimensions of cube-triple."""

import importlib

import torch
import yaml

from qam_lightning.data.spaces import Spaces
from qam_lightning.methods.base import Method
from qam_lightning.util.configs import METHODS

KNOWN = sorted(file.stem for file in METHODS.glob("*.yaml"))
"""The names of all methods."""

CUBE_TRIPLE = Spaces(obs_dim=46, action_dim=5, horizon=5)
SIZES: dict[str, dict[str, int]] = {
    "paper": {"width": 512, "depth": 4, "num_critics": 10, "flow_steps": 10},
    "quickstart": {"width": 128, "depth": 3, "num_critics": 5, "flow_steps": 5},
}


def build(name: str, size: str, spaces: Spaces = CUBE_TRIPLE, compile: str = "off") -> Method:
    """Create a method of the given size with its values for cube-triple, if it has any."""
    own = yaml.safe_load((METHODS / f"{name}.yaml").read_text())
    module, kind = own["model"]["class_path"].rsplit(".", 1)
    tuned = own.get("tuned", {}).get("cube-triple", {})
    settings = {**own["model"].get("init_args", {}), **tuned, **SIZES[size]}
    torch.manual_seed(0)
    method = getattr(importlib.import_module(module), kind)
    return method(spaces, **settings, compile=compile)
