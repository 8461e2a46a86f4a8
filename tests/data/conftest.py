"""A small dataset, really collected."""

import pytest

from qam_lightning.data.generate import generate


@pytest.fixture(scope="session")
def collected(tmp_path_factory):
    """Folder with scene-play-v0: 3 training episodes and a validation episode of 81 rows."""
    folder = tmp_path_factory.mktemp("collected")
    generate("scene", "play", str(folder), episodes=3, seed=5, workers=2, episode_steps=81)
    return folder
