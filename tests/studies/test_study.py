"""The file of a study, and the runs that it describes."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from qam_lightning.cli import main
from qam_lightning.cli.compose import compose
from qam_lightning.studies.study import STUDIES, read_study
from qam_lightning.util.errors import UserError
from tests.studies.conftest import Write


def test_a_grid_is_every_combination_but_the_excluded(write: Write, tmp_path: Path) -> None:
    """Beside nested loops."""
    path = write(
        settings={"config": "quickstart.yaml", "trainer": {"max_steps": 10}},
        grid={"method": ["qam", "fql"], "task": "1-5", "model.width": [16, 32.0], "seed": "0-2"},
        exclude=[{"method": "qam", "task": [2, 3]}, {"seed": 2, "model.width": 16}],
    )
    expected = [
        {"method": method, "task": task, "model.width": width, "seed": seed}
        for method, task, width, seed in itertools.product(
            ("qam", "fql"), (1, 2, 3, 4, 5), (16, 32.0), (0, 1, 2)
        )
        if not (method == "qam" and task in (2, 3)) and not (seed == 2 and width == 16)
    ]
    study = read_study(str(path))
    assert [run.axes for run in study.runs] == expected and len(expected) == 40
    first, last = study.runs[0], study.runs[-1]
    assert first.run_dir == tmp_path / "runs/task1-qam-width16-seed0"
    assert last.run_dir == tmp_path / "runs/task5-fql-width32-seed2"
    assert last.settings == {"config": "quickstart.yaml", "trainer.max_steps": 10, **last.axes}
    assert last.arguments == [
        "--log.group=mine", "--log.name=task5-fql-width32-seed2", '--log.tags=["mine", "fql"]',
        "--config=quickstart.yaml", "--trainer.max_steps=10", "--method=fql", "--task=5",
        "--model.width=32", "--seed=2", f"--run_dir={last.run_dir}",
    ]  # fmt: skip


def test_a_list_is_combined_with_the_grid(write: Write) -> None:
    path = write(
        settings={"domain": "cube-single"},
        list=[{"method": "qam", "model.tau": 0.3}, {"method": "fql", "model.alpha": 3.0}],
        grid={"seed": [0, 5]},
    )
    assert [run.axes for run in read_study(str(path)).runs] == [
        {"seed": 0, "method": "qam", "model.tau": 0.3},
        {"seed": 0, "method": "fql", "model.alpha": 3.0},
        {"seed": 5, "method": "qam", "model.tau": 0.3},
        {"seed": 5, "method": "fql", "model.alpha": 3.0},
    ]


def test_a_group_adds_to_the_study_and_overrides_its_settings(write: Write, tmp_path: Path) -> None:
    path = write(
        settings={"domain": "scene", "data.fraction": 1.0},
        grid={"seed": "0-1"},
        exclude=[{"seed": 1, "data.fraction": 0.5}],
        groups={
            "whole": {"grid": {"method": ["qam", "fql"]}, "exclude": [{"method": "fql"}]},
            "half": {"settings": {"data.fraction": 0.5}},
        },
    )
    runs = read_study(str(path)).runs
    assert [(run.group, run.axes, run.settings["data.fraction"]) for run in runs] == [
        ("whole", {"seed": 0, "method": "qam"}, 1.0),
        ("whole", {"seed": 1, "method": "qam"}, 1.0),
        ("half", {"seed": 0}, 0.5),
    ]
    assert [run.name for run in runs] == ["whole/qam-seed0", "whole/qam-seed1", "half/seed0"]
    assert runs[0].run_dir == tmp_path / "runs/whole/qam-seed0"


def test_a_group_may_be_the_study_as_it_is(write: Write) -> None:
    groups = {"scratch": {}, "cloned": {"settings": {"pretrained": "a"}}}
    runs = read_study(str(write(grid={"seed": "0-1"}, groups=groups))).runs
    assert [run.name for run in runs] == [
        *("scratch/seed0", "scratch/seed1", "cloned/seed0", "cloned/seed1")
    ]
    assert runs[0].settings == {"seed": 0} and "pretrained" in runs[2].settings


def test_a_range_in_a_list_is_a_text_where_a_setting_may_be_one(write: Write) -> None:
    runs = read_study(str(write(grid={"log.name": ["0-4"]}))).runs
    assert [run.axes for run in runs] == [{"log.name": "0-4"}]


@pytest.mark.parametrize(
    ("settings", "tags"),
    [
        ({}, '["mine", "a"]'),
        ({"method": "qam-edit"}, '["mine", "a", "qam_edit"]'),
        ({"method": "a"}, '["mine", "a"]'),
        ({"method": "m" * 65}, f'["mine", "a", "{"m" * 64}"]'),  # which no method is
        ({"log": {"tags": ["🚀"]}}, '["🚀"]'),
        ({"log.tags": None}, "null"),
    ],
)
def test_the_tags_of_a_run(settings: dict[str, Any], tags: str, write: Write) -> None:
    """Those in the study's file count alone."""
    (run,) = read_study(str(write(groups={"a": {"settings": settings}}))).runs
    assert [word for word in run.arguments if "--log.tags" in word] == [f"--log.tags={tags}"]
    if "method" not in settings:
        assert compose(run.arguments)


def test_more_seeds_leave_the_folders_of_the_others(write: Write) -> None:
    few = read_study(str(write(grid={"method": ["qam"], "seed": [0]})))
    many = read_study(str(write(grid={"method": ["qam", "fql"], "seed": "0-3"})))
    assert {run.run_dir for run in few.runs} < {run.run_dir for run in many.runs}


def test_files_beside_the_study_are_found(write: Write, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("domain: scene\n")
    (run,) = read_study(str(write(settings={"config": ["own.yaml", "quickstart.yaml"]}))).runs
    assert run.arguments[3:5] == [f"--config={tmp_path / 'own.yaml'}", "--config=quickstart.yaml"]


def test_a_study_may_be_named_like_the_configuration_it_uses(write: Write) -> None:
    (run,) = read_study(str(write(settings={"config": "mine.yaml"}))).runs
    assert run.arguments[3] == "--config=mine.yaml"


def test_names_of_folders_are_safe_and_short(write: Write) -> None:
    values = ["a/b", "../c", "x" * 300, "x" * 301]
    runs = read_study(str(write(grid={"log.name": values}))).runs
    names = [run.run_dir.name for run in runs]
    assert names[:2] == ["namea_b", "name.._c"] and len(set(names)) == 4
    assert all(len(name) <= 150 for name in names)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"grids": {"seed": [0]}}, "unknown key 'grids'; did you mean grid?"),
        ({"groups": {"a": {"gird": {}}}}, "groups.a: unknown key 'gird'; did you mean grid?"),
        ({"grid": {"seed": []}}, "grid.seed has no values"),
        ({"grid": [1]}, "grid is [1], expected keys with values"),
        ({"settings": 3}, "settings is 3, expected keys with values"),
        ({"list": []}, "list is [], expected a list of settings"),
        ({"list": [3]}, "list is 3, expected keys with values"),
        ({"grid": {}}, "grid is empty; list values in it, or remove it"),
        ({"grid": {"seed": 0}, "groups": {"a": {"grid": {}}}}, "groups.a.grid is empty; list"),
        ({"list": [{}]}, "an entry of list is empty; fill or remove it"),
        ({"list": [{"seed": 0}, {}]}, "an entry of list is empty; fill or remove it"),
        ({"groups": {"a": {"list": [{}]}}}, "an entry of groups.a.list is empty; fill"),
        ({"grid": {"seed": 0}, "exclude": [{}]}, "an entry of exclude is empty; fill"),
        (
            {"grid": {"seed": "0-2, 5"}},
            "grid.seed has '0-2, 5'; list its numbers: [0, 1, 2, 5]",
        ),
        ({"grid": {"seed": ["0-2", 5]}}, "grid.seed has '0-2'; list its numbers: [0, 1, 2, 5]"),
        ({"grid": {"task": "1,3"}}, "grid.task has '1,3'; list its numbers: [1, 3]"),
        ({"grid": {"seed": "0,0-999999999"}}, "list its numbers: [0, 0, 1, 2,"),
        (
            {"grid": {"seed": "0-9"}, "exclude": [{"seed": "0-2, 5"}]},
            "exclude.seed has '0-2, 5'; list its numbers",
        ),
        ({"groups": {"a/b": {"grid": {"seed": 0}}}}, "a group is named 'a/b'"),
        ({"groups": {}}, "groups is {}, expected keys with values"),
        ({"grid": {"seed": [0, 0]}}, "the same run would go to"),
        ({"grid": {"log.name": ["a/", "a:"]}}, "two runs would go to"),
        ({"settings": {"seed": 1}, "grid": {"seed": [0]}}, "seed is in settings and in grid"),
        ({"settings": {"task": 1}, "grid": {"data.task": [0]}}, "data.task is in settings and"),
        (
            {"grid": {"model.tau": 1}, "list": [{"model.init_args.tau": 2}]},
            "is in grid and in list",
        ),
        (
            {"grid": {"seed": 0}, "groups": {"a": {"grid": {"seed": 1}}}},
            "seed is in grid and in groups.a.grid",
        ),
        (
            {"grid": {"seed": 0}, "groups": {"a": {"settings": {"seed": 1}}}},
            "seed is in settings and in grid (group a); remove one",
        ),
        (
            {"list": [{"seed": 0}], "groups": {"a": {"list": [{"task": 1}]}}},
            "the study and groups.a both have a list; remove one",
        ),
        ({"grid": {"seed": 0}, "exclude": [{"sed": 0}]}, "exclude: no run has sed: 0"),
        ({"grid": {"seed": 0}, "exclude": [{"seed": 7}]}, "exclude: no run has seed: 7"),
        ({"grid": {"seed": 0}, "exclude": [{"seed": 0}]}, "describes no run"),
        ({"settings": {"run_dir": "x"}}, "settings.run_dir cannot be set"),
        ({"grid": {"ckpt_path": ["last"]}}, "grid.ckpt_path cannot be set"),
        ({"settings": {"--seed": 1}}, "'--seed' is no name of a setting"),
        ({"grid": {"seed": "0-99999", "task": "1-5"}}, "500,000 runs, expected at most 100,000"),
        ({"name": "a b", "grid": {"seed": 0}}, "name is a b, expected up to 60 letters"),
        ({"folder": 3, "grid": {"seed": 0}}, "folder is 3, expected the name of a folder"),
    ],
)
def test_what_is_no_study_is_refused_in_one_line(
    parts: dict[str, Any], said: str, write: Write
) -> None:
    with pytest.raises(UserError) as refused:
        read_study(str(write(**parts)))
    assert said in str(refused.value) and "mine.yaml" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected a study"),
        ("- 1\n", "expected a study"),
        ("grid: {seed: 0, seed: 1}\n", "'grid.seed' is set twice"),
        ("grid: [\n", "not valid YAML"),
    ],
)
def test_a_file_of_something_else_is_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_study(str(path))


def test_an_unknown_study_is_told_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "status", "smok"]) == 2
    assert capsys.readouterr().err == "error: no study named 'smok'; did you mean smoke?\n"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_compose(path: Path) -> None:
    """And say in their heads how many runs they are."""
    study = read_study(str(path))
    head = "".join(
        line.lstrip("# ") for line in path.read_text().splitlines(True) if line.startswith("#")
    )
    assert f"{len(study.runs):,} runs" in head
    seen = set()
    for run in study.runs:
        key = tuple(
            sorted((k, str(v)) for k, v in run.settings.items() if k not in ("seed", "task"))
        )
        if key not in seen:
            seen.add(key)
            compose(run.arguments)


def test_the_list_names_all_that_ship(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "list"]) == 0
    printed = capsys.readouterr().out
    for path in STUDIES.glob("*.yaml"):
        comment = path.read_text().splitlines()[0].removeprefix("# ")
        assert any(path.stem in line and comment in line for line in printed.splitlines())


def test_the_docstring_is_a_study(tmp_path: Path) -> None:
    from qam_lightning.studies import study as module

    assert module.__doc__
    example = module.__doc__.partition("\n\n")[2].partition("\n\nA key")[0]
    path = tmp_path / "example.yaml"
    path.write_text(example)
    runs = read_study(str(path)).runs
    assert yaml.safe_load(example).keys() >= {"settings", "grid", "list", "exclude", "groups"}
    assert len(runs) == 2 * 5 * (2 + 1)  # groups, seeds, both methods at task 1 and QAM at task 2
