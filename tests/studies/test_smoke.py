"""The study of the README, from its file to its report; shortened, on data of a few episodes."""

import csv
from pathlib import Path

import pytest
import yaml

from qam_lightning.cli import main
from qam_lightning.studies.study import STUDIES


def test_the_smoke_study_runs_and_is_reported(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("datasets").mkdir()
    Path("datasets/quickstart").symlink_to(dataset)
    study = yaml.safe_load((STUDIES / "smoke.yaml").read_text())
    study["settings"]["trainer.max_steps"] = 6
    study["grid"]["seed"] = [0]
    study["settings"]["evaluation"] |= dict(every_n_steps=3, episodes=1, num_envs=1, workers=0)
    Path("smoke.yaml").write_text(yaml.safe_dump(study))
    assert main(["study", "run", "smoke.yaml", "--jobs", "2"]) == 0
    assert main(["study", "report", "smoke.yaml"]) == 0
    capsys.readouterr()
    report = Path("runs/smoke/report")
    with (report / "runs.csv").open() as file:
        rows = {row["folder"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"runs/smoke/qam-seed0", "runs/smoke/fql-seed0"}
    for folder, row in rows.items():
        with (Path(folder) / "metrics/eval.csv").open() as file:
            *_, last = csv.DictReader(file)
        assert (row["final"], row["final_step"]) == (last["success"], last["gradient_step"])
        assert row["finished"] == "True"
    page = (report / "index.html").read_text()
    assert all(folder in page for folder in rows)
    assert (report / "curves.png").stat().st_size > 10_000
