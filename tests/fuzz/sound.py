"""The sound files that every input starts from, made through the front door.

Paths in them are relative: a command runs in the folder that holds a copy.

==================  ================================================================================
tiny.yaml           a run of a second: 4 updates offline, then 6 environment steps and 2 updates
own.npz             6 trajectories of 11 rows for InvertedPendulum-v5
own.store           converted from it
halves              a folder of two files, half of the trajectories in each
run                 what ``fit --config tiny.yaml`` made
maze                the data of a point maze, with store and labels
collection          an unfinished collection of the same data, in which every part is there
==================  ================================================================================
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

ENV = "InvertedPendulum-v5"
MAZE = "pointmaze-medium"
NAME = f"{MAZE}-navigate-v0"

TINY: dict[str, Any] = {
    "domain": "pendulum",
    "tuned_as": "cube-double",
    "run_dir": "run",
    "data": {"env": ENV, "path": "own.npz", "horizon": 3, "batch_size": 8, "prefetch": 0},
    "model": {
        "init_args": {
            "width": 16,
            "depth": 1,
            "num_critics": 2,
            "flow_steps": 2,
            "learning_rate": 0.01,
            "compile": False,
        }
    },
    "trainer": {"max_steps": 4, "accelerator": "cpu"},
    "evaluation": {"every_n_steps": 1000, "episodes": 1, "workers": 0, "num_envs": 1},
    "checkpoints": {"every_n_steps": 2},
    "log": {"every_n_steps": 1},
    "online": {"steps": 6, "learning_starts": 4, "async_env": False},
}

FIT = ["fit", "--config=tiny.yaml"]
NEW = [*FIT, "--run_dir=new"]
RESUME = [*FIT, "--ckpt_path=last", "--online.steps=8"]
EVAL = ["eval", "run", "--episodes=1", "--workers=0", "--num_envs=1"]
GENERATE = ["generate", f"--env={MAZE}", "--dataset=navigate", "--directory=collection"]
GENERATE += ["--episodes=2", "--episode_steps=12", "--workers=1"]
MAZE_FLAGS = [f"--env={MAZE}", "--dataset=navigate", "--directory=maze"]

FIRST, LAST = 6, 8
"""Gradient steps of the sound run, and after `RESUME`."""


def arrays(rows: int = 66, length: int = 11) -> dict[str, np.ndarray]:
    """Return random trajectories in the common format."""
    rng = np.random.default_rng(3)
    return {
        "observations": rng.normal(size=(rows, 4)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        "terminals": np.arange(1, rows + 1) % length == 0,
        "rewards": rng.integers(0, 2, rows).astype(np.float32),
        "masks": (rng.random(rows) > 0.1).astype(np.uint8),
    }


def build(folder: Path) -> None:
    """Make the files in ``folder``; for a process that ends then, as it starts to train."""
    from qam_lightning.cli import main
    from qam_lightning.data.generate import make_collector
    from qam_lightning.util.provenance import versions

    folder.mkdir(parents=True)
    os.chdir(folder)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    whole = arrays()
    np.savez("own.npz", **whole)
    Path("halves").mkdir()
    for number in range(2):
        part = slice(33 * number, 33 * number + 33)
        np.savez(f"halves/half-{number:03d}.npz", **{k: v[part] for k, v in whole.items()})
    parts = Path("collection", f"{NAME}.parts")
    parts.mkdir(parents=True)
    settings = {"env": MAZE, "dataset": "navigate", "seed": 0, "episode_steps": 12}
    engines = {key: versions()[key] for key in ("mujoco", "ogbench", "qam_lightning")}
    (parts / "settings.json").write_text(json.dumps(settings | engines))
    collector = make_collector(MAZE, "navigate", 12)
    for number in range(3):
        np.savez_compressed(parts / f"{number:06d}.npz", **collector.episode(0, number))
    shutil.copytree("collection", "maze")
    for command in (FIT, [*GENERATE, "--directory=maze"], ["data", "info", *MAZE_FLAGS]):
        assert main(command) == 0, command
    # The end of a sound resume, and that of a resume from each older checkpoint, is the same.
    shutil.copytree("run", "copy")
    assert main([*RESUME, "--run_dir=copy"]) == 0
    Path("reference.json").write_text(json.dumps(digest(Path("copy"))))
    shutil.rmtree("copy")


def digest(run: Path, name: str = "last") -> dict[str, Any]:
    """Return counters and exact weights of a run's checkpoint, which must be finite."""
    checkpoint = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)
    weights = checkpoint["state_dict"]
    assert all(x.isfinite().all() for x in weights.values()), "a weight is not finite"
    moments = checkpoint["optimizer_states"][0]["state"]
    return {
        "counters": checkpoint["counters"],
        "weights": {k: x.numpy().tobytes().hex()[:64] for k, x in weights.items()},
        "moments": [float(x["exp_avg"].double().sum()) for x in moments.values()],
    }


def trained(folder: Path, run: str = "new", steps: int = FIRST) -> str | None:
    """Check that a run is complete: readable, finite, all steps taken."""
    counters = digest(folder / run)["counters"]
    found = counters.get("gradient_step")
    return None if found == steps else f"gradient_step is {found}, expected {steps}"


def as_reference(folder: Path) -> str | None:
    """Check that a resumed run ended exactly as from the sound files."""
    found, expected = digest(folder / "run"), json.loads((folder / "reference.json").read_text())
    for key, value in expected.items():
        if found[key] != value:
            return f"resumed, but its {key} differ from those of a sound resume"
    return None
