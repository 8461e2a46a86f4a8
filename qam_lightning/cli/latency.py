"""``eval --latency``: what a chunk costs, beside the environment's control period."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qam_lightning.checkpoints import check_env, load_method
from qam_lightning.envs.make import control_period
from qam_lightning.evaluation.limits import check_candidates
from qam_lightning.export.card import with_latency
from qam_lightning.export.folder import CARD, is_exported, read_config
from qam_lightning.export.latency import latency_table, measure
from qam_lightning.export.write import export
from qam_lightning.runtime import ONNX
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import replacing


def latency(options: argparse.Namespace, checkpoint: Path, run: Path) -> int:
    """Measure, print a table and write it where the policy is; return the exit code."""
    (acting,) = options.grid
    method, metadata = load_method(checkpoint, **acting)
    check_candidates(method, 1)
    environment = metadata["environment"]
    if environment:
        check_env(environment["env"], checkpoint)
    with _exported(checkpoint, method, metadata, bool(acting)) as folder:
        found = measure(method, folder, options.latency, _tell)
    period = control_period(environment["env"], environment["task"]) if environment else None
    table = latency_table(found, options.latency, method.spaces.horizon, period)
    print(table)
    if is_exported(run) and not acting:
        with_latency(run, table)
        print(f"wrote it into {run / CARD}")
        return 0
    target = run / "eval" / "latency.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        temporary.write_text(f"{table}\n", "utf-8")
    print(f"wrote {target}")
    return 0


@contextmanager
def _exported(
    checkpoint: Path, method: Any, metadata: dict[str, Any], changed: bool
) -> Iterator[Path | None]:
    """Yield an exported folder of the policy, made for the moment if need be; None if it cannot."""
    if is_exported(checkpoint) and not changed and ONNX in read_config(checkpoint).files:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "policy"
        try:
            export(method, metadata, folder, episodes=0)
        except UserError as error:
            _tell(f"ONNX: {error}")
        yield folder if folder.exists() else None


def _tell(reason: str) -> None:
    print(f"left out: {reason}", file=sys.stderr)
