"""The record of one evaluation: what was evaluated, its numbers, and the file they go to."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qam_lightning.envs.rollout import Episode
from qam_lightning.evaluation.statistics import wilson_interval
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.files import writing


def build_report(subject: Mapping[str, Any], episodes: Sequence[Any]) -> dict[str, Any]:
    """Return the record of an evaluation.

    Args:
        subject: what was evaluated and how (method, environment, seed, versions and so on).
        episodes: at least one `qam_lightning.envs.rollout.Episode`.

    Returns:
        ``subject`` followed by ``success`` (rate with its 95% Wilson interval), ``return`` and
        ``length`` (mean and sample standard deviation over episodes), and every episode.
    """
    rate = wilson_interval(sum(e.success for e in episodes), len(episodes))
    return {
        **subject,
        "episodes": len(episodes),
        "success": {"mean": rate.mean, "low": rate.low, "high": rate.high, "interval": "wilson95"},
        "return": _spread([e.episode_return for e in episodes]),
        "length": _spread([e.length for e in episodes]),
        "results": [
            {
                "episode": e.number,
                "seed": e.seed,
                "success": e.success,
                "return": e.episode_return,
                "length": e.length,
            }
            for e in episodes
        ],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": deviation}


def write_report(report: Mapping[str, Any], path: Path, numbered: bool = True) -> Path:
    """Write a report as JSON, never over a file that is there.

    Args:
        report: what to write.
        path: where to.
        numbered: where ``path`` is taken, add ``-2``, ``-3`` ... to its stem; else refuse.

    Returns:
        The path written.

    Raises:
        UserError: ``path`` is taken and ``numbered`` is false, or it cannot be written.
    """
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    check_target(path)
    target, count = path, 1
    while True:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = open(target, "x", encoding="utf-8")
        except FileExistsError:
            if not numbered:
                raise UserError(f"{path}: exists already; delete it or name another file") from None
            count += 1
            target = path.with_name(f"{path.stem}-{count}{path.suffix}")
            continue
        except OSError as error:
            raise UserError(f"{target}: cannot be written: {error.strerror or error}") from None
        try:
            with writing(target), file:
                file.write(text)
        except UserError:
            target.unlink()
            raise
        return target


def find_report(
    folder: Path, subject: Mapping[str, Any], episodes: int
) -> tuple[Path, dict[str, Any]] | None:
    """Find the record of an evaluation that was made before.

    Args:
        folder: of records.
        subject: what is to be evaluated and how. The record has the same, but for the
            checkpoint's path, whose fingerprint decides, and the commit.
        episodes: their number.

    Returns:
        The file and its record; None if there is none that is whole.
    """
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
            report = json.loads(path.read_text(encoding="utf-8"))
            rows = [
                Episode(x["episode"], x["seed"], x["success"], x["return"], x["length"], [])
                for x in report["results"]
            ]
            same = build_report({**subject, "checkpoint": report["checkpoint"]}, rows)
            if len(rows) == episodes and _without_commit(report) == _without_commit(same):
                return path, report
    return None


def _without_commit(report: Mapping[str, Any]) -> dict[str, Any]:
    versions = {name: x for name, x in report["versions"].items() if name != "commit"}
    return {**report, "versions": versions}


def check_target(path: Path) -> None:
    """Check that a file could be written, making its folder if need be; write nothing.

    Raises:
        UserError: a folder on its path is a file, or may not be written to.
    """
    name, problem = shown(path, 300), None
    with writing(path):
        folder = next(f for f in path.absolute().parents if f.exists() or f.is_symlink())
        if not folder.is_dir():
            problem = f"{folder} is a file, expected a folder"
        elif any(len(os.fsencode(x)) > os.pathconf(folder, "PC_NAME_MAX") for x in path.parts):
            problem = "a name in it is too long"
        elif path.is_dir():
            problem = "it is a folder"
        elif not os.access(folder, os.W_OK | os.X_OK):
            problem = f"{folder} may not be written to"
    if problem:
        raise UserError(f"{name}: cannot be written: {problem}")
