"""`data info` and `data verify`, as a user runs them."""

import numpy as np
import pytest

from qam_lightning.cli import main
from qam_lightning.data.checksums import record
from qam_lightning.data.generate import generate
from tests.data.test_datamodule import own_file


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maze")
    generate("pointmaze-medium", "navigate", str(folder), episodes=4, workers=1, episode_steps=300)
    return folder


def run(capsys, *arguments):
    status = main(["data", *arguments])
    return status, capsys.readouterr()


def test_info_counts_and_draws(maze, capsys, tmp_path):
    picture = tmp_path / "picture.png"
    name = ("--env", "pointmaze-medium", "--dataset", "navigate", "--directory", str(maze))
    status, (out, _) = run(capsys, "info", *name, "--picture", str(picture))
    assert status == 0
    assert "4 trajectories of 299 transitions, 1,196 in all" in out
    assert "observations of 2, actions of 2: -1.00..1.00, -1.00..1.00" in out
    assert out.count("goal reached in") == 5
    assert picture.read_bytes().startswith(b"\x89PNG")

    arrays = np.load(maze / "pointmaze-medium-navigate-v0.npz")
    goal = np.array([2, 4]) * 4.0 - 4.0  # of task 3: row 4, column 2
    near = np.linalg.norm(arrays["qpos"] - goal, axis=1) <= 1.0
    reached = near.reshape(4, 300)[:, :299].any(1).mean()
    assert f"task 3: goal reached in {reached:.1%}" in out

    status, (out, _) = run(capsys, "verify", *name)
    assert (status, out.strip().endswith(": good")) == (0, True)
    for damaged in ("actions.npy", "task3/rewards.npy"):
        path = maze / "pointmaze-medium-navigate-v0.store" / damaged
        content = bytearray(path.read_bytes())
        content[200] ^= 1
        path.write_bytes(content)
        status, (out, _) = run(capsys, "verify", *name)
        assert status == 1
        assert f"{path} fails its checksum" in out
    path = maze / "pointmaze-medium-navigate-v0.npz"
    record(path, "0" * 64)  # as if another file had been downloaded
    status, (out, _) = run(capsys, "verify", *name)
    assert status == 1
    assert f"{path}: sha256 is " in out and f"expected 000000000000… as in {maze}/sha256" in out


def test_info_of_ones_own_data(capsys, tmp_path):
    own_file(tmp_path / "mine.npz")
    status, (out, _) = run(
        capsys, "info", "--env", "Pendulum-v1", f"--path={tmp_path / 'mine.npz'}"
    )
    assert status == 0
    assert "3 trajectories of 20 transitions" in out
    assert (tmp_path / "mine.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "data: expected info or verify"),
        (("show",), "data: expected info or verify, found 'show'"),
        (("info", "--envv", "scene"), "unknown key"),
        (
            ("verify", "--env", "scene", "--directory", "nowhere"),
            "play-v0.store: does not exist",
        ),
        (
            ("verify", "--env=scene", "--base_url=[http://127.0.0.1:9,s3://bucket]"),
            "data.base_url is 's3://bucket', expected a URL with http",
        ),
        (("verify", "--env=scene", "--base_url=[]"), "data.base_url is empty, expected a URL"),
        (("info", "--env", "moon"), "env is 'moon', expected a gymnasium id"),
    ],
)
def test_mistakes_are_answered_in_one_line(capsys, arguments, words):
    status, (_, err) = run(capsys, *arguments)
    assert status == 2
    assert err.count("\n") == 1
    assert words in err
