"""The worked examples of docs/data.md, carried out."""

import re
import shlex
from pathlib import Path

import numpy as np

from qam_lightning.cli import main
from tests.app.conftest import read_csv
from tests.data.test_robomimic import demonstration, save

GUIDE = Path(__file__).parents[2] / "docs" / "data.md"
SMALL = (
    "--trainer.max_steps=2",
    "--trainer.accelerator=cpu",
    "--model.width=8",
    "--model.depth=1",
    "--log.every_n_steps=1",
    "--evaluation.episodes=1",
    "--evaluation.workers=0",
)


def blocks(language, title="Your own data"):
    """The guide's code in a language, of one section."""
    section = GUIDE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_the_example_of_ones_own_data_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,), (config,), (commands,) = blocks("python"), blocks("yaml"), blocks("bash")
    exec(compile(code, GUIDE.name, "exec"), {})
    Path("pendulum.yaml").write_text(config)
    info, fit = (shlex.split(line)[2:] for line in commands.splitlines())
    assert main(info) == 0
    assert "50 trajectories of 200 transitions" in capsys.readouterr().out
    assert main([*fit, *SMALL]) == 0
    assert len(read_csv(Path("runs/pendulum-task1-qam-seed0/metrics/train.csv"))) == 2


def test_the_example_of_robomimic_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (code,), (config,), (command,) = (
        blocks(kind, "Robomimic") for kind in ("python", "yaml", "bash")
    )
    Path("lift_spaces.py").write_text(code)
    Path("lift.yaml").write_text(config)
    rng = np.random.default_rng(0)
    save("low_dim_v15.hdf5", {f"demo_{i}": demonstration(rng, 9) for i in range(3)})
    assert main([*shlex.split(command)[2:], *SMALL]) == 0
    assert len(read_csv(Path("runs/lift-task1-qam-seed0/metrics/train.csv"))) == 2
