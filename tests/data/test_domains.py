"""Every domain as a user trains it: its own config, some updates, an episode scored."""

import json

import gymnasium
import numpy as np
import ogbench  # noqa: F401  (registers the environments)
import pytest

from qam_lightning.cli import evaluate as scoring
from qam_lightning.cli import main
from qam_lightning.cli.compose import find_config
from qam_lightning.cli.reading import read_config
from qam_lightning.data.generate import generate
from qam_lightning.data.source import COLLECTABLE, official
from tests.app.conftest import read_csv

STEPS = 3
DOMAINS = (
    "cube-double",
    "cube-triple",
    "cube-quadruple",
    "scene",
    "puzzle-3x3",
    "puzzle-4x4",
    "antmaze-large",
    "antmaze-giant",
    "humanoidmaze-medium",
    "humanoidmaze-large",
)


def wander(env_name, path, rows=40, episodes=2):
    """Real steps under random actions, in the layout of the experts' data that nobody has here."""
    env = gymnasium.make(f"{env_name}-v0", terminate_at_goal=False)
    env.action_space.seed(0)
    columns = {key: [] for key in ("observations", "actions", "terminals", "qpos", "qvel")}
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        for row in range(rows):
            action = env.action_space.sample()
            after, *_, info = env.step(action)
            states = (info["prev_qpos"], info["prev_qvel"])
            row_values = (observation, action, row == rows - 1, *states)
            for key, value in zip(columns, row_values, strict=True):
                columns[key].append(value)
            observation = after
    arrays = {key: np.array(value, np.float32) for key, value in columns.items()}
    np.savez_compressed(path, **arrays | {"terminals": arrays["terminals"].astype(bool)})


def make_files(env, dataset, folder):
    """The domain's files: collected where there are oracles, and a shard's in 100 places."""
    kind = dataset.removesuffix("-100m")
    (path,) = official(env, kind, folder).files
    if kind in COLLECTABLE.get(env, ()):
        generate(env, kind, str(folder), episodes=1, workers=1, episode_steps=60)
    else:
        wander(env, path)
    if dataset != kind:
        shards = official(env, dataset, folder).files
        assert len(shards) == 100
        shards[0].parent.mkdir()
        for shard in shards:
            shard.hardlink_to(path)
        path.unlink()


@pytest.mark.slow
@pytest.mark.timeout(900)  # a humanoid takes 2000 steps, twice
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_trains_and_is_scored(domain, tmp_path, capsys):
    dataset = read_config(find_config(domain, "domain"))["data"]["dataset"]
    make_files(domain, dataset, tmp_path)
    run = tmp_path / "run"
    settings = {
        "run_dir": run,
        "data.directory": tmp_path,
        "model.width": 16,
        "model.depth": 1,
        "model.num_critics": 2,
        "model.flow_steps": 2,
        "trainer.max_steps": STEPS,
        "trainer.accelerator": "cpu",
        "evaluation.every_n_steps": 1000,
        "evaluation.episodes": 1,
        "evaluation.workers": 0,
        "log.every_n_steps": 1,
    }
    flags = [f"--{key}={value}" for key, value in settings.items()]
    assert main(["fit", "--domain", domain, *flags]) == 0
    rows = read_csv(run / "metrics" / "train.csv")
    assert [row["gradient_step"] for row in rows] == [str(n + 1) for n in range(STEPS)]
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    # Scored at the end of training, and once more from the checkpoint.
    assert 0 <= float(read_csv(run / "metrics" / "eval.csv")[-1]["success"]) <= 1
    assert scoring.main([str(run), "--episodes", "1", "--workers", "0"]) == 0
    (report,) = (run / "eval").glob("*.json")
    assert json.loads(report.read_text())["episodes"]
