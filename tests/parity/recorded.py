"""Read recorded reference cases: weights, batch, noise, losses, gradients and actions."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qam_lightning.batch import Batch

FOLDER = Path(os.environ.get("QAM_PARITY_DIR", Path(__file__).parents[3] / "shared" / "parity"))


class Case:
    """One recorded case."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as data:
            self.arrays = {name: data[name] for name in data.files}
        self.name = path.stem
        self.config: dict[str, Any] = json.loads(str(self.arrays.pop("config")))

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[name]))

    def scalar(self, name: str) -> float:
        return float(self.arrays[name])

    def shared(self) -> dict[str, Any]:
        """Return the constructor arguments that every method takes."""
        c = self.config
        width, *rest = json.loads(c["actor_hidden_dims"].replace("(", "[").replace(")", "]"))
        return {
            "obs_dim": json.loads(c["ob_dims"])[0],
            "action_dim": c["action_dim"],
            "chunk": c["horizon_length"],
            "discount": c["discount"],
            "rho": c["rho"],
            "ensemble": c["num_qs"],
            "flow_steps": c["flow_steps"],
            "width": width,
            "depth": 1 + len(rest),
            "learning_rate": c["lr"],
            "clip": 1.0,
            "clip_mode": "norm",
            "best_of_n": c["best_of_n"],
            "compile": False,
            "seed": 0,
        }

    def batch(self) -> Batch:
        """Return the batch: per-step quantities are recorded cumulatively along the chunk."""
        get = lambda name: self.tensor(f"batch/{name}")  # noqa: E731
        rewards, masks, valid = get("rewards"), get("masks"), get("valid")
        return Batch(
            observations=get("observations"),
            actions=get("actions").flatten(1),
            rewards=rewards[:, -1],
            next_observations=get("next_observations")[:, -1],
            masks=masks[:, -1],
            valid=valid[:, -1],
        )

    def draws(self, prefix: str) -> list[Tensor]:
        """Return the recorded draws in the order they were used, squeezed to (B, .)."""
        names = sorted(n for n in self.arrays if n.startswith(prefix + "/"))
        return [self.tensor(name) for name in names]

    def tree(self, prefix: str) -> dict[str, Tensor]:
        """Return all arrays below ``prefix``, keyed by the rest of their names."""
        start = prefix + "/"
        return {n[len(start) :]: self.tensor(n) for n in self.arrays if n.startswith(start)}


def mlp_state(tree: dict[str, Tensor], prefix: str = "", ours: str = "") -> dict[str, Tensor]:
    """Translate Dense_i kernels (in, out) and biases into our MLP's names."""
    state = {}
    for name, value in tree.items():
        if not name.startswith(prefix + "Dense_"):
            continue
        layer, kind = name.removeprefix(prefix).split("/")
        key = f"{ours}layers.{layer.removeprefix('Dense_')}."
        if kind == "kernel":
            state[key + "weight"] = value.T.contiguous()
        else:
            state[key + "bias"] = value
    return state


def critic_state(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate a recorded ensemble (K, in, out) into our critic's names."""
    depth = max(int(n.split("/")[0].removeprefix("Dense_")) for n in tree if "Dense_" in n)
    state = {}
    for name, value in tree.items():
        module, kind = name.split("/")
        module, number = module.split("_")
        if module == "LayerNorm":
            state[f"norms.{number}.{kind}"] = value[:, None, :]
        else:
            place = "out" if int(number) == depth else f"hidden.{number}"
            ours = "weight" if kind == "kernel" else "bias"
            state[f"{place}.{ours}"] = value if kind == "kernel" else value[:, None, :]
    return state


def finite_or_inf(value: float) -> float:
    """Return α as our methods read it: the reference marks plain QAM by 0."""
    return value if value > 0 else math.inf
