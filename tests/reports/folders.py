"""Run folders as real runs write them, with made-up scores."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HEADER = ("gradient_step", "env_step", "phase", "success", "return", "length", "seconds")
CLASSES = {"qam": "qam.QAM", "fql": "fql.FQL", "qam_edit": "qam_edit.QAMEdit", "rlpd": "rlpd.RLPD"}
VERSIONS = {"python": "3.11.7", "qam_lightning": "0.2.0", "torch": "2.13.0", "commit": "0123abc"}


def make_run(
    folder: Path,
    offline: Sequence[float],
    online: Sequence[float] = (),
    *,
    method: str = "qam",
    domain: str = "cube-double",
    task: int = 1,
    seed: int = 0,
    every: int = 1000,
    start: int | None = None,
    max_steps: int | None = None,
    env_steps: int = 0,
    versions: dict[str, str] | None = VERSIONS,
    **changes: Any,
) -> Path:
    """Write a run.

    Args:
        folder: of the run.
        offline: success at every evaluation of the offline phase.
        online: success at every evaluation of the online phase.
        method: its name in files.
        domain: the environment.
        task: its task.
        seed: its seed.
        every: steps between evaluations, of either kind.
        start: gradient steps of the offline phase, those evaluated if None.
        max_steps: of the trainer, ``start`` if None.
        env_steps: online.steps, those evaluated if 0.
        versions: of the software; None leaves the checkpoint's JSON out.
        **changes: settings, ``model__tau=3.0`` for model.tau, ``pretrained`` as it is.
    """
    start = every * len(offline) if start is None else start
    config: dict[str, Any] = {
        "seed": seed,
        "domain": domain,
        "method": method,
        "run_dir": str(folder),
        "tuned": {"scene": {"tau": 1.0}},
        "trainer": {"max_steps": start if max_steps is None else max_steps, "accelerator": "cpu"},
        "model": {
            "class_path": f"qam_lightning.methods.{CLASSES.get(method, 'qam.QAM')}",
            "init_args": {"width": 512, "rho": 0.5},
        },
        "data": {"env": domain, "dataset": "play", "task": task, "directory": str(folder)},
        "online": {"steps": env_steps or every * len(online)},
    }
    for key, value in changes.items():
        group, _, name = key.rpartition("__")
        part = config[group] if group else config
        (part["init_args"] if group == "model" else part)[name] = value
    rows = [(every * n, 0, "offline", x) for n, x in enumerate(offline, 1)]
    rows += [(start + every * n, every * n, "online", x) for n, x in enumerate(online, 1)]
    (folder / "metrics").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write(folder / "metrics" / "eval.csv", HEADER, [(*row, -100.0, 100.0, 36.0) for row in rows])
    train = [(step, env, phase, 100.0) for step, env, phase, _ in rows]
    header = ("gradient_step", "env_step", "phase", "steps_per_second")
    write(folder / "metrics" / "train.csv", header, train)
    if versions is not None:
        (folder / "checkpoints").mkdir()
        facts = {"gradient_step": rows[-1][0], "versions": versions}
        (folder / "checkpoints" / "last.json").write_text(json.dumps(facts))
    return folder


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
