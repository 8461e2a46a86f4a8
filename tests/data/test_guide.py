"""The worked example of docs/data.md, carried out."""

import re
import shlex
from pathlib import Path

from qam_lightning.cli import main
from tests.app.conftest import read_csv

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


def blocks(language):
    """The guide's code in a language, of the section about one's own data."""
    _, section = GUIDE.read_text().split("## Your own data")
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_the_example_of_ones_own_data_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,), (config,), (commands, _) = blocks("python"), blocks("yaml"), blocks("bash")
    exec(compile(code, GUIDE.name, "exec"), {})
    Path("pendulum.yaml").write_text(config)
    info, fit = (shlex.split(line)[2:] for line in commands.splitlines())
    assert main(info) == 0
    assert "50 trajectories of 200 transitions" in capsys.readouterr().out
    assert main([*fit, *SMALL]) == 0
    assert len(read_csv(Path("runs/pendulum-task1-qam-seed0/metrics/train.csv"))) == 2
