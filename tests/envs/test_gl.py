"""OpenGL that is not there: in the way only where a picture is wanted."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qam_lightning.envs.chunked import ChunkedEnv
from qam_lightning.envs.make import make_env

ROOT = Path(__file__).parents[2]
# Every command, one after the other, in a process that cannot load the library.
COMMANDS = """
import os, sys
from qam_lightning import load_policy
from qam_lightning.cli import main

small = ["--model.width=16", "--model.depth=1", "--model.num_critics=2", "--model.flow_steps=2",
         "--model.compile=false", "--trainer.max_steps=2", "--evaluation.episodes=1"]
data = ["--env=pointmaze-medium", "--dataset=navigate", "--directory=sets"]
assert main(["generate", *data, "--episodes=1", "--workers=1", "--episode_steps=30"]) == 0
assert main(["data", "info", *data]) == 0
fit = ["fit", "--domain=pointmaze-medium", "--data.directory=sets", "--run_dir=r", *small]
assert main([*fit, "--evaluation.workers=1"]) == 0
assert main(["eval", "r", "--episodes=1", "--workers=0"]) == 0
env = load_policy("r").make_env(render_size=(64, 48))
env.reset(seed=0)
env.step(env.action_space.sample())
try:
    env.render()
except Exception as error:
    print(type(error).__name__, error)
"""
MANIPULATION = """
import numpy as np
from qam_lightning.envs.gl import headless_gl
from qam_lightning.envs.rollout import RolloutPool
still = lambda seen, episodes: np.zeros((len(seen), 50, 5), np.float32)
for workers in (1, 0):
    with RolloutPool("cube-single", 1, workers=workers) as pool:
        print(pool.run(still, 1, seed=0)[0].length)
print(headless_gl())
"""


def ran(script, folder, chosen):
    """Run a script where the package behind egl and osmesa fails as it does without a library."""
    (folder / "OpenGL").mkdir()
    (folder / "OpenGL" / "__init__.py").write_text("None.glGetError")
    env = os.environ | {"MUJOCO_GL": chosen, "PYTHONPATH": f"{folder}:{ROOT}"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_no_command_needs_opengl(tmp_path):
    last = ran(COMMANDS, tmp_path, "osmesa").splitlines()[-1]
    assert last.startswith("UserError MUJOCO_GL is 'osmesa', with which mujoco finds no OpenGL")
    assert "unset it" in last


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [" OSMesa ", "egl", "nonsense"])
def test_any_value_can_be_simulated_with(tmp_path, chosen):
    assert ran(MANIPULATION, tmp_path, chosen) == "200\n200\nNone\n"


def test_ogbenchs_cubes_draw_whatever_their_render_mode_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = ChunkedEnv(make_env("cube-single", 1, render_size=(64, 48)))
    assert env.env.render_mode is None
    frame = np.zeros((48, 64, 3), np.uint8)  # OpenGL may be missing here
    monkeypatch.setattr(type(env.env), "render", lambda self: frame)
    _, frames = env.reset(0, frame_every=1)
    assert len(frames) == 1 and frames[0].shape == (48, 64, 3)
    env.close()
