"""The sweep of Weights & Biases in the guide, as its agent starts it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from wandb.sdk.launch.sweeps import utils

ROOT = Path(__file__).parents[2]


def test_the_command_of_a_sweep_is_a_run_of_its_own() -> None:
    page = (ROOT / "docs/studies.md").read_text()
    (block,) = (b for b in page.split("```yaml\n")[1:] if b.startswith("program: train.py"))
    sweep = yaml.safe_load(block.partition("```")[0])
    assert (ROOT / sweep["program"]).exists()
    chosen = {"args": {key: {"value": 2.5} for key in sweep["parameters"]}}
    words: dict[str, Any] = utils.create_sweep_command_args(chosen)
    command: list[str] = []
    for word in utils.create_sweep_command(sweep["command"]):
        command += words[word[2:-1]] if word.startswith("${") else [word]
    folder = str(Path(sys.executable).parent)
    environment = os.environ | {"WANDB_RUN_ID": "abc123", "PATH": f"{folder}:{os.environ['PATH']}"}
    command.append("--print_config")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["run_dir"] == "runs/abc123" and config["log"]["wandb"] == "online"
    assert config["model"]["init_args"]["tau"] == 2.5
