"""Whether an exported policy acts as the policy that it was made from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from qam_lightning.checkpoints import check_env
from qam_lightning.envs.rollout import Episode, RolloutPool
from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.evaluation.limits import check_candidates, check_rollouts
from qam_lightning.export import EPISODES
from qam_lightning.export.folder import check_files, load_exported, read_config
from qam_lightning.export.graph import Acting
from qam_lightning.methods.base import Method
from qam_lightning.runtime import ONNX, ExportedPolicy
from qam_lightning.util.errors import UserError

TOLERANCE = 1e-5
"""The largest difference of an action, in float32."""
BATCH = 256
_NEAR = 1e-4
"""Values of two candidates are equal if they differ by no more, relative to the larger one."""


class Comparison(NamedTuple):
    """What a comparison found.

    Attributes:
        difference: the largest difference of two actions over a batch.
        ties: rows of the batch that took another candidate of the same value.
        successes: of the policy's episodes, which are those of the export; None if there was no
            environment.
        episodes: how many.
    """

    difference: float
    ties: int
    successes: int | None
    episodes: int


def check(
    folder: Path, method: Method, environment: dict[str, Any], episodes: int, seed: int = 0
) -> Comparison:
    """Compare an exported folder with its policy: over a batch, and episode by episode.

    Args:
        folder: the export.
        method: the policy, on the CPU.
        environment: where it was trained, see `qam_lightning.util.checkpoint.Environment`; if that
            is empty, no episodes are compared.
        episodes: how many episodes to compare; 0 for none.
        seed: of batch and episodes.

    Raises:
        UserError: they differ.
    """
    exported = ExportedPolicy(folder, seed)
    difference, ties = _compare(exported, method, seed, folder)
    if not environment or not episodes:
        return Comparison(difference, ties, None, 0)
    place = environment["env"], environment["task"], environment["sparse"]
    with RolloutPool(*place, workers=0, num_envs=1) as pool:
        trained = pool.run(EpisodePolicy(method, seed), episodes, seed)
        again = pool.run(_Rollout(exported, seed), episodes, seed)
    _same(folder, trained, again)
    return Comparison(difference, ties, sum(bool(e.success) for e in trained), episodes)


def verify(
    folder: Path, episodes: int = EPISODES, method: type[Method] | None = None
) -> Comparison:
    """Check a folder's files against its description, and its graph against its weights.

    Raises:
        UserError: something differs, or the folder has no ONNX graph.
    """
    config = read_config(folder)
    check_files(folder, config)
    if ONNX not in config.files:
        raise UserError(f"{folder}: holds no {ONNX}, which is what is verified; export it anew")
    built, metadata = load_exported(folder, method)
    if config.environment and episodes:
        check_env(str(config.environment["env"]), folder)
    check_fits(built, metadata["environment"], episodes)
    return check(folder, built, metadata["environment"], episodes)


def check_fits(method: Method, environment: Mapping[str, Any], episodes: int) -> None:
    """Check that `check` fits into memory.

    Raises:
        ArgumentError: it does not.
    """
    check_candidates(method, BATCH)
    if environment:
        check_rollouts("export", method, environment["env"], episodes, 1, 0)


def _compare(
    exported: ExportedPolicy, method: Method, seed: int, folder: Path
) -> tuple[float, int]:
    """Return the largest difference over a batch, and the number of ties that fell another way."""
    acting = Acting(method)
    generator = torch.Generator().manual_seed(seed)
    # Around the data: the policy normalises by itself, where it does.
    states = torch.randn(BATCH, method.spaces.obs_dim, generator=generator)
    statistics = method.obs_norm.state_dict()
    if statistics:
        states = states * statistics["std"] + statistics["mean"]
    noise = torch.randn(BATCH, *acting.noise_shape, generator=generator)
    with torch.no_grad():
        expected = acting(states, noise).numpy()
    found = exported.predict_action_chunk(states.numpy(), noise.numpy())
    row = np.abs(found - expected).reshape(BATCH, -1).max(1)
    other, ties = row > TOLERANCE, 0
    if method.best_of_n > 1 and other.any():
        with torch.no_grad():
            s = method.obs_norm(states[other])
            pairs = [torch.from_numpy(x[other]).flatten(1) for x in (expected, found)]
            values = [method.candidate_score(method.critic(s, a)) for a in pairs]
        near = (values[0] - values[1]).abs() <= _NEAR * values[0].abs().clamp(min=1)
        row[np.flatnonzero(other)[near.numpy()]] = 0.0
        ties = int(near.sum())
    if not row.max() <= TOLERANCE:
        raise UserError(
            f"{folder}: its actions differ from the policy's by {row.max():.2g}, expected at most "
            f"{TOLERANCE:g}; please report it"
        )
    return float(row.max()), ties


class _Rollout:
    """An exported policy as that of a rollout in one environment."""

    def __init__(self, policy: ExportedPolicy, seed: int) -> None:
        self._policy, self._seed, self._episode = policy, seed, -1

    def __call__(self, observations: np.ndarray, episodes: list[int]) -> np.ndarray:
        """Return the chunk (1, H, A) at an observation (1, O)."""
        while self._episode < episodes[0]:
            self._policy.reset(self._seed if self._episode < 0 else None)
            self._episode += 1
        return self._policy.predict_action_chunk(observations)


def _same(folder: Path, trained: Sequence[Episode], again: Sequence[Episode]) -> None:
    different = [a.number for a, b in zip(trained, again, strict=True) if a.success != b.success]
    if different:
        raise UserError(
            f"{folder}: success differs from the policy's in {len(different)} of {len(trained)} "
            f"episodes, first in episode {different[0]}; please report it"
        )
