"""Searches: Optuna chooses the runs, and the folders are all that remembers them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from qam_lightning.cli import main
from qam_lightning.run_folder import Claim
from qam_lightning.studies import search as search_module
from qam_lightning.studies.begun import with_values
from qam_lightning.studies.plan import Planned, plan
from qam_lightning.studies.search import Trials, _curve, as_configured, corners
from qam_lightning.studies.state import State, state_of
from qam_lightning.studies.study import Range, Study, read_study, trial
from qam_lightning.util.errors import UserError
from tests.studies.conftest import Write

SPACE = {"model.tau": {"low": 0.1, "high": 10.0, "log": True}, "model.width": [8, 16]}


@pytest.fixture
def search(write: Write, tiny: dict[str, Any]) -> Path:
    del tiny["model.width"]
    return write(settings=tiny, search={"trials": 2, "space": SPACE})


def finished(study: Study, number: int, success: list[float], **values: Any) -> None:
    """Make the folder of a trial by hand, as a run leaves it."""
    chosen = {"model.tau": 1.0, "model.width": 8, **values}
    run = trial(study, f"trial-{number:04d}", chosen)
    assert main(["fit", *run.arguments]) == 0
    evaluations = run.run_dir / "metrics/eval.csv"
    head, *rows = evaluations.read_text().splitlines()
    place = head.split(",").index("success")
    made = []
    for row, value in zip(rows, success, strict=True):
        cells = row.split(",")
        cells[place] = str(value)
        made.append(",".join(cells))
    evaluations.write_text("\n".join([head, *made]) + "\n")


def test_a_search_runs_its_trials_and_names_the_best(
    search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(read_study(str(search)), 1, [0.0, 0.0], **{"model.width": 16})
    content = yaml.safe_load(search.read_text())  # two more
    content["search"]["trials"] = 3
    search.write_text(yaml.safe_dump(content))
    assert main(["study", "run", str(search), "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 to run, 2 at a time" in out and "best: trial-000" in out
    runs = with_values(read_study(str(search)))
    assert [run.name for run in runs] == ["trial-0001", "trial-0002", "trial-0003"]
    taus = [run.axes["model.tau"] for run in runs]
    assert len(set(taus)) == 3 and all(0.1 <= tau <= 10 for tau in taus)
    assert all(run.axes["model.width"] in (8, 16) for run in runs)
    assert all(state_of(run.run_dir).kind == "finished" for run in runs)
    assert main(["study", "run", str(search)]) == 0  # nothing is done twice
    out = capsys.readouterr().out
    assert "3 runs: 3 finished" in out and "to run" not in out
    assert main(["study", "status", str(search)]) == 0
    assert main(["study", "report", str(search)]) == 0
    page = (tmp_path / "runs/report/report.md").read_text()
    assert "tau" in page and "width" in page


def test_a_range_is_of_whole_numbers_only_if_the_setting_is(
    write: Write, tiny: dict[str, Any]
) -> None:
    del tiny["model.width"]
    space = {"model.rho": {"low": 0, "high": 1}, "model.width": {"low": 2, "high": 9}}
    study = read_study(str(write(settings=tiny, search={"trials": 1, "space": space})))
    tried = plan(study._replace(runs=corners(study)), lambda *_: None)
    item = Trials(as_configured(study, tried), []).take()
    assert item is not None and item.run.axes["model.rho"] not in (0, 1)
    assert item.run.axes["model.width"] in range(2, 10)


def test_a_trial_takes_no_folder_of_another_search(search: Path, tmp_path: Path) -> None:
    claim = Claim(tmp_path / "runs/trial-0001")  # its run has just begun
    finished(read_study(str(search)), 2, [0.5, 0.6])
    item = Trials(read_study(str(search)), []).take()
    assert item is not None and item.run.name == "trial-0003"
    claim.release()


def test_status_has_the_trials_that_failed_before_their_first_checkpoint(
    search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs/trial-0001"
    folder.mkdir(parents=True)
    (folder / "exit.json").write_text('{"code": 2, "line": "error: no data"}')
    assert main(["study", "status", str(search)]) == 0
    assert "trial-0001 failed: error: no data" in capsys.readouterr().out


def test_what_is_behind_the_median_is_pruned(search: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(search.read_text())
    content["search"] |= {"trials": 7, "prune": True}
    search.write_text(yaml.safe_dump(content))
    study = read_study(str(search))
    finished(study, 1, [0.5, 0.6])
    for number in range(2, 6):
        shutil.copytree(tmp_path / "runs/trial-0001", tmp_path / f"runs/trial-{number:04d}")
    begun = plan(study._replace(runs=with_values(study)), lambda *_: None)
    for success, hopeless in ((0.7, False), (0.1, True)):
        source = Trials(study, begun)
        assert source.waiting == 2
        item = source.take()
        assert item is not None and item.run.name == "trial-0006" and not source.hopeless(item)
        evaluations = item.run.run_dir / "metrics/eval.csv"
        evaluations.parent.mkdir(parents=True)
        text = (tmp_path / "runs/trial-0001/metrics/eval.csv").read_text().splitlines()
        evaluations.write_text("\n".join(text[:2]).replace("0.5", str(success)) + "\n")
        assert source.hopeless(item) == hopeless
        shutil.rmtree(item.run.run_dir)


@pytest.mark.slow
def test_a_pruned_trial_is_stopped_for_good(
    search: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load(search.read_text())
    content["settings"]["trainer.max_steps"] = 100_000
    content["search"]["trials"] = 1
    search.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(Trials, "hopeless", lambda self, item: _curve(item.run) is not None)
    assert main(["study", "run", str(search)]) == 0
    assert "trial-0001 pruned" in capsys.readouterr().out
    (run,) = with_values(read_study(str(search)))
    assert state_of(run.run_dir).kind == "pruned" and state_of(run.run_dir).gradient_step > 0
    assert main(["study", "run", str(search)]) == 0
    assert capsys.readouterr().out == "mine, 1 run: 1 pruned\n"


def test_the_ends_of_the_space_are_built_before_anything_starts(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    del tiny["model.width"]
    space = {"model.tau": [1.0, 2.0], "model.width": {"low": 0, "high": 8}}
    path = write(settings=tiny, search={"trials": 3, "space": space})
    assert [run.axes for run in corners(read_study(str(path)))] == [
        {"model.tau": 1.0, "model.width": 0},
        {"model.tau": 2.0, "model.width": 0},
        {"model.tau": 1.0, "model.width": 0},
        {"model.tau": 1.0, "model.width": 8},
    ]
    assert main(["study", "run", str(path)]) == 2
    assert "model.width is 0, expected at least 1" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trials": 0}, "search.trials is 0, expected 1 to"),
        ({"prune": 1}, "search.prune is 1, expected true or false"),
        ({"space": {}}, "search.space is empty"),
        ({"space": {"model.tau": []}}, "search.space.model.tau is [], expected a list, or low"),
        ({"space": {"model.tau": 3}}, "search.space.model.tau is 3, expected a list"),
        ({"space": {"model.tau": {"low": 1}}}, "expected a list, or low and high"),
        ({"space": {"model.tau": {"low": 2, "high": 1}}}, "expected low < high"),
        ({"space": {"model.tau": {"low": 0, "high": 1, "log": True}}}, "above 0 with log"),
        ({"space": {"model.tau": {"low": 0, "hihg": 1}}}, "unknown key 'hihg'; did you mean high?"),
        ({"space": {"seed": [0, 1]}}, "seed is in settings and in search.space"),
        ({"space": {"run_dir": ["a"]}}, "search.space.run_dir cannot be set"),
        ({"space": {"config": ["a"]}}, "search.space.config cannot be set"),
        ({"spaces": {}}, "search: unknown key 'spaces'; did you mean space?"),
    ],
)
def test_what_is_no_search_is_refused(changes: dict[str, Any], said: str, write: Write) -> None:
    path = write(settings={"seed": 0}, search={"trials": 3, "space": SPACE, **changes})
    with pytest.raises(UserError) as refused:
        read_study(str(path))
    assert said in str(refused.value)


def test_a_search_is_no_grid(write: Write) -> None:
    path = write(grid={"seed": 0}, search={"trials": 3, "space": SPACE})
    with pytest.raises(UserError, match="search and grid are both there"):
        read_study(str(path))
    study = read_study(str(write(search={"trials": 3, "space": SPACE})))
    assert study.search is not None and study.search.space["model.tau"] == Range(0.1, 10.0, True)


def test_a_search_is_not_submitted(search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", str(search), "--slurm"]) == 2
    assert capsys.readouterr().err == (
        f"error: {search}: a search runs here only, each run follows from the others\n"
    )


def test_a_trial_outside_of_the_space_is_refused(search: Path, tmp_path: Path) -> None:
    study = read_study(str(search))
    finished(study, 1, [0.0, 0.0], **{"model.tau": 20.0})
    begun = plan(study._replace(runs=with_values(study)), lambda *_: None)
    with pytest.raises(UserError, match="model.tau is 20.0, which search.space does not hold"):
        Trials(study, begun)


def test_a_search_goes_on_whose_values_are_spelled_otherwise(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The configuration of a trial has qam_edit, 3.0e-4 and cube-single."""
    space = {
        "method": ["fql", "qam-edit"],
        "model.learning_rate": ["3E-4", "1E-3"],
        "domain": ["cube_single"],
        "online.num_envs": ["null", 1],
    }
    path = write(settings=tiny, search={"trials": 1, "space": space})
    values = {key: choices[-1] for key, choices in space.items()} | {"online.num_envs": "null"}
    begun = trial(read_study(str(path)), "trial-0001", values)
    assert main(["fit", *begun.arguments]) == 0
    capsys.readouterr()
    assert main(["study", "run", str(path)]) == 0
    assert "mine, 1 run: 1 finished" in capsys.readouterr().out


def test_a_value_that_is_there_in_two_spellings_is_refused(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(settings=tiny, search={"trials": 1, "space": {"method": ["qam-edit", "qam_edit"]}})
    assert main(["study", "run", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {path}: search.space.method has qam_edit twice; write every value once\n"
    )


REASON = "model.flow_steps is 1, expected at least 2 with integrator denoiser"


@pytest.fixture
def pairs(write: Write, tiny: dict[str, Any]) -> Study:
    """A search whose values are fine, but two of them do not go together."""
    del tiny["model.flow_steps"]
    space = {"model.flow_steps": [5, 1], "model.integrator": ["shifted_euler", "denoiser"]}
    study = read_study(str(write(settings=tiny, search={"trials": 20, "space": space})))
    plan(study._replace(runs=corners(study)), lambda *_: None)
    return study


def with_search(study: Study, **changes: Any) -> Study:
    assert study.search is not None
    return study._replace(search=study.search._replace(**changes))


def over(study: Study, number: int, success: float, *values: Any) -> Planned:
    """Make the results of a trial, and return it as a finished one."""
    assert study.search is not None
    chosen = dict(zip(study.search.space, values, strict=True))
    run = trial(study, f"trial-{number:04d}", chosen)
    (run.run_dir / "metrics").mkdir(parents=True)
    rows = f"gradient_step,env_step,phase,success\n6,0,offline,{success}\n"
    (run.run_dir / "metrics" / "eval.csv").write_text(rows)
    return Planned(run, State("finished"), 1, 1, None, {})


@pytest.mark.parametrize("begun", [1, 2])  # the sampler's seeds
def test_a_combination_that_settings_refuse_is_left_out(
    begun: int, pairs: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pairs.search is not None
    space = {**pairs.search.space, "model.tau": Range(0.1, 10.0)}
    study = with_search(pairs, trials=8, space=space)
    past = [over(study, n, 0.5, 5, "denoiser", 1.0) for n in range(1, begun + 1)]
    source, taken = Trials(study, past), []
    while (item := source.take()) is not None:
        taken.append(item.run)
    assert [run.name for run in taken] == [f"trial-{n:04d}" for n in range(begun + 1, 9)]
    assert len({run.axes["model.tau"] for run in taken}) == len(taken)
    assert (1, "denoiser") not in [tuple(run.axes.values())[:2] for run in taken]
    assert capsys.readouterr().err == f"left out, and others like it: {REASON}\n"


def test_what_was_learned_does_not_lead_to_refused_combinations_alone(
    pairs: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value of the refused pair is a best one, so Optuna chooses the pair again and again."""
    monkeypatch.setattr(search_module, "_ATTEMPTS", 8)
    past = [over(pairs, 1, 1.0, 1, "shifted_euler"), over(pairs, 2, 1.0, 5, "denoiser")]
    past += [over(pairs, n, 0.0, 5, "shifted_euler") for n in range(3, 13)]
    assert Trials(pairs, past).take() is not None


def test_a_folder_in_the_way_of_a_trial_is_told(pairs: Study) -> None:
    over(pairs, 1, 0.5, 5, "denoiser")
    with pytest.raises(UserError, match=r"trial-0001 already holds a run \(metrics/eval.csv, but"):
        Trials(pairs, []).take()


def test_a_search_without_any_combination_ends(
    pairs: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "_ATTEMPTS", 3)
    space = {"model.flow_steps": [1], "model.integrator": ["denoiser"]}
    source = Trials(with_search(pairs, space=space), [])
    with pytest.raises(UserError) as refused:
        source.take()
    assert str(refused.value) == (
        f"{pairs.path}: search.space: 3 combinations in a row were refused, the last one because "
        f"{REASON}; narrow the space"
    )


@pytest.mark.slow
def test_a_trial_that_runs_finishes_where_no_further_one_can_start(
    search: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/trial-0002/metrics").mkdir(parents=True)
    (tmp_path / "runs/trial-0002/metrics/eval.csv").write_text("of another run")
    assert main(["study", "run", str(search), "--jobs", "2"]) == 2
    out, err = capsys.readouterr()
    assert "[1/2] trial-0001 finished" in out and "best: trial-0001" in out
    (line,) = err.splitlines()
    assert line.startswith(f"error: {tmp_path}/runs/trial-0002 already holds a run")
