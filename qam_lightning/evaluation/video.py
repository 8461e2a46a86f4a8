"""Rollout frames as video files."""

from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from qam_lightning.util.errors import UserError


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int = 20) -> Path:
    """Encode frames as H.264 in an mp4 file that browsers play.

    Args:
        path: the file to write; its folder is made, an older file replaced.
        frames: at least one (height, width, 3) uint8 picture, all of one even size.
        fps: frames per second of playback.

    Returns:
        ``path``.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(
            path,
            np.stack(frames),
            plugin="FFMPEG",
            extension=".mp4",
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            macro_block_size=2,
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}".splitlines()[0]) from error
    return path
