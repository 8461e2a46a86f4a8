"""The sweep of Weights & Biases in the guide: its real client and agent, against a local server."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils

from qam_lightning.cli import main
from tests.app.conftest import read_csv
from tests.app.wandb_server import WandbServer
from tests.docs.pages import DOCS, ROOT, blocks

SMALL = {
    **{"trainer.max_steps": 2, "trainer.accelerator": "cpu", "data.batch_size": 8},
    **{"model.width": 8, "model.depth": 1, "model.num_critics": 2, "model.flow_steps": 2},
    **{"model.compile": "off", "evaluation.episodes": 1, "evaluation.workers": 0},
}


def shown() -> str:
    """The sweep's file."""
    (text,) = (b for b in blocks(DOCS / "studies.md", "yaml") if b.startswith("program: train.py"))
    return text


def test_the_command_of_a_sweep_is_a_run_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the agent puts it together, and a shell reads it."""
    sweep = yaml.safe_load(shown())
    chosen = {"args": {key: {"value": 2.5} for key in sweep["parameters"]}}
    words: dict[str, Any] = utils.create_sweep_command_args(chosen)
    command: list[str] = []
    for word in utils.create_sweep_command(sweep["command"]):
        command += words[word[2:-1]] if word.startswith("${") else [word]
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = {"WANDB_RUN_ID": "abc123", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    program, *arguments = done.stdout.splitlines()
    assert program == "train.py"
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["run_dir"] == "runs/abc123" and config["log"]["wandb"] == "online"
    assert config["model"]["init_args"]["tau"] == 2.5


@pytest.mark.slow
def test_the_agent_of_a_sweep_trains_each_choice_in_a_folder_of_its_own(
    dataset: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "sweep.yaml").write_text(shown())
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/quickstart").symlink_to(dataset)
    folder = Path(sys.executable).parent  # of the python that the sweep calls
    with WandbServer() as server:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0123456789" * 4}
        environment |= {"HOME": str(tmp_path), "PATH": f"{folder}:{os.environ['PATH']}"}

        def wandb(*words: str) -> None:
            command = [sys.executable, "-m", "wandb", *words]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr

        wandb("sweep", "--project=tuning", "sweep.yaml")
        ((name, sent),) = server.sweeps.items()
        assert sent == yaml.safe_load(shown())
        server.choices = [dict.fromkeys(sent["parameters"], tau) | SMALL for tau in (2.5, 0.5)]
        wandb("agent", f"me/tuning/{name}")
        server.shutdown()
    assert set(server.runs) == {"trial0", "trial1"}
    for (trial, run), chosen in zip(sorted(server.runs.items()), server.choices, strict=True):
        assert (run["sent"]["project"], run["sent"]["sweep"]) == ("tuning", name)
        assert run["config"]["run_dir"] == f"runs/{trial}"
        assert run["config"]["model"]["init_args"]["tau"] == chosen["model.tau"]
        (row,) = read_csv(tmp_path / "runs" / trial / "metrics/eval.csv")
        assert run["history"][-1][sent["metric"]["name"]] == float(row["success"])
