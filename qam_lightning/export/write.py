"""Writing a trained policy as a folder: weights, graph, description and model card."""

import copy
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qam_lightning.checkpoints import check_env
from qam_lightning.envs.make import control_period
from qam_lightning.export import EPISODES, FORMATS
from qam_lightning.export.card import draw_curve, model_card, score_of
from qam_lightning.export.check import Comparison, check, check_fits
from qam_lightning.export.folder import (
    CARD,
    FORMAT,
    PROGRAM,
    WEIGHTS,
    Config,
    Noise,
    Spaces,
    Training,
    as_json,
    extra,
)
from qam_lightning.export.graph import Acting, Graph, onnx_of, program_of, trace
from qam_lightning.export.lerobot import TYPE, write_processors
from qam_lightning.methods.base import Method
from qam_lightning.runtime import CONFIG, ONNX
from qam_lightning.util.errors import ArgumentError, UserError, shown
from qam_lightning.util.files import appearing, sha256, writing
from qam_lightning.util.provenance import versions


def export(
    method: Method,
    metadata: Mapping[str, Any],
    output: Path,
    run: Path | None = None,
    formats: Sequence[str] = ("onnx",),
    episodes: int = EPISODES,
) -> Comparison | None:
    """Write a policy as a folder that appears when it is whole and checked.

    Args:
        method: the policy, in evaluation mode.
        metadata: what `qam_lightning.checkpoints.load_method` returns with the method.
        output: the folder, which must not exist.
        run: the run's folder; scores and the learning curve are read from it, where it has them.
        formats: graphs to write, of `FORMATS`.
        episodes: episodes that are compared with the policy's, see `check`.

    Returns:
        What the check found; None without ``onnx`` among the formats.

    Raises:
        UserError: the policy cannot be exported, a package is missing, or the export acts
            differently.
        ArgumentError: ``output`` exists or a format is unknown.
    """
    for name in formats:
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise ArgumentError("export", "formats", f"is {shown(name)}, expected of {known}")
    if output.exists() or output.is_symlink():
        problem = f"is {shown(output)}, which exists; name another folder"
        raise ArgumentError("export", "output", problem)
    for package in ("safetensors", *(["onnxscript", "onnxruntime"] if "onnx" in formats else [])):
        extra(package)
    method = copy.deepcopy(method).cpu().float().eval()
    environment = dict(metadata["environment"])
    if environment:
        check_env(environment["env"], "export")
    check_fits(method, environment, episodes)
    with appearing(output) as folder:
        try:
            acting = Acting(method)
            graph = trace(acting)
            files = _graphs(acting, graph, formats)
        except UserError as error:
            raise UserError(f"{type(method).__name__} cannot be exported: {error}") from error
        files[WEIGHTS] = _weights(method, graph.weights)
        with writing(output):
            for name, content in files.items():
                (folder / name).write_bytes(content)
            write_processors(folder)
        score = score_of(run, metadata, method) if run else None
        curve = draw_curve(folder, run, type(method).__name__, environment) if run else None
        config = Config(
            format=FORMAT,
            type=TYPE,
            method=f"{type(method).__module__}.{type(method).__qualname__}",
            settings=as_json(dict(method.hparams)),
            spaces=Spaces(**method.spaces._asdict()),
            noise=Noise(candidates=method.best_of_n, draws=acting.draws),
            environment=environment,
            control_period=control_period(environment["env"], environment["task"])
            if environment
            else None,
            training=Training(
                **{key: metadata[key] for key in ("gradient_step", "env_step", "phase")},
                hardware=metadata.get("hardware", ""),
                data=metadata.get("data", {}),
            ),
            score=score,
            versions=dict(metadata["versions"]),
            exported_with=versions(),
            files={path.name: sha256(path) for path in sorted(folder.iterdir())},
        )
        with writing(output):
            (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", "utf-8")
        checked = check(folder, method, environment, episodes) if "onnx" in formats else None
        with writing(output):
            (folder / CARD).write_text(model_card(config, checked, curve is not None), "utf-8")
    return checked


def _graphs(acting: Acting, graph: Graph, formats: Sequence[str]) -> dict[str, bytes]:
    """Return the graph's files, by name."""
    found = dict[str, bytes]()
    if formats:
        program = program_of(graph, acting.shapes)
    if "pt2" in formats:
        content = io.BytesIO()
        torch.export.save(program, content)
        found[PROGRAM] = content.getvalue()
    if "onnx" in formats:
        found[ONNX] = onnx_of(program)
    return found


def _weights(method: Method, names: Sequence[str]) -> bytes:
    """Return weights in the safetensors format."""
    held = method.state_dict()
    weights = {name: held[name].contiguous() for name in names}
    return extra("safetensors.torch").save(weights, metadata={"format": "pt"})
