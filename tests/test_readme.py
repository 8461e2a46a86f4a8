"""The README: its commands, as far as they get without data and hours, numbers and names."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from qam_lightning.cli import main
from qam_lightning.cli.study import parse as parse_study
from qam_lightning.data.generate import COLLECTABLE, generate
from qam_lightning.evaluation.statistics import over_seeds, wilson_interval
from qam_lightning.studies.study import read_study
from tests.methods.paper import TABLE_4

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if shlex.split(line, comments=True)
]
PROGRAMS = (["python", "train.py"], ["qam"], ["python", "-m", "qam_lightning"])
OTHERS = ("make", "pip", "git", "cd")


def command(words: list[str]) -> list[str]:
    """Return a command without the way it is called: ``fit --domain scene``."""
    if words[:2] == ["python", "eval.py"]:
        return ["eval", *words[2:]]
    for program in PROGRAMS:
        if words[: len(program)] == program:
            return words[len(program) :]
    return words


def commands(name: str) -> list[list[str]]:
    return [rest for first, *rest in map(command, COMMANDS) if first == name]


def test_every_command_is_of_a_tested_kind() -> None:
    kinds = {command(words)[0] for words in COMMANDS}
    assert kinds - set(OTHERS) <= {"fit", "eval", "export", "generate", "data", "study"}
    assert {"fit", "eval", "make"} <= kinds


@pytest.mark.parametrize("arguments", commands("fit"), ids=" ".join)
def test_fit_commands_resolve(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    show = [] if "--print_config" in arguments else ["--print_config"]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *arguments, *show])
    assert exit_.value.code == 0
    assert "class_path: qam_lightning.methods" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("study"), ids=" ".join)
def test_study_commands_name_a_study_that_ships(arguments: list[str]) -> None:
    """tests/studies runs them."""
    options = parse_study(arguments)
    for name in [getattr(options, "study", None), *getattr(options, "source", [])]:
        if name is not None:
            assert read_study(name).runs


@pytest.mark.parametrize("arguments", commands("generate"), ids=" ".join)
def test_generate_commands_parse(arguments: list[str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(generate)
    assert parser.parse_args(arguments).env


@pytest.mark.parametrize("arguments", commands("data"), ids=" ".join)
def test_data_commands_get_as_far_as_the_missing_files(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = [f"--directory={tmp_path}", "--base_url=http://127.0.0.1:1"]
    assert main(["data", *arguments, *nowhere]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and "127.0.0.1" in message


@pytest.mark.parametrize("arguments", commands("eval"), ids=" ".join)
def test_eval_commands_get_as_far_as_the_missing_run(arguments: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "eval.py", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and arguments[0] in result.stderr


@pytest.mark.parametrize("arguments", commands("export"), ids=" ".join)
def test_export_commands_get_as_far_as_the_missing_run(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """tests/export runs the Python that goes with it."""
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and arguments[0] in message


@pytest.mark.parametrize("target", ["quickstart", "test", "docs"])
def test_make_targets_exist(target: str) -> None:
    assert f"make {target}" in README
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_quickstart_collects_trains_scores_and_draws(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each of its commands, as `make` would call them."""
    made = subprocess.run(
        ["make", "--dry-run", "--always-make", "quickstart"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.replace("\\\n", " ")
    lines = re.findall(r"python (?:train|eval)\.py [^$\n]*", made)
    generated, fitted, *scored = (shlex.split(line)[1:] for line in lines)
    test_generate_commands_parse(generated[2:])
    test_fit_commands_resolve(fitted[2:], capsys)
    assert generated[:2] == ["train.py", "generate"] and fitted[:2] == ["train.py", "fit"]
    assert ["eval.py", "runs/quickstart", "--picture"] in scored


# -- numbers, names, links -----------------------------------------------------------------------


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page, as rows of cells, without their heads."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [[c.strip() for c in row.split("|")[1:-1]] for row in t.splitlines()[2:]] for t in found
    ]


def seeds(text: str) -> list[list[list[str]]]:
    """The tables with a row per seed and one of their mean."""
    return [table for table in tables(text) if table[-1][0].startswith("mean (")]


def test_means_follow_from_the_seeds_and_say_what_their_bounds_are() -> None:
    found = seeds(RESULTS)
    assert found
    for *rows, (name, *means) in found:
        for column, mean in enumerate(means, start=1):
            scores = [int(re.match(r"\d+", row[column])[0]) / 100 for row in rows]  # type: ignore[index]
            estimate = over_seeds(scores)
            assert (name, mean) == (f"mean ({estimate.bounds})", estimate.percent())


def test_intervals_of_one_policy_are_wilsons() -> None:
    checked = 0
    for *rows, _ in seeds(RESULTS):
        for cell in (cell for row in rows for cell in row[1:]):
            if bounds := re.match(r"(\d+)% \((\d+)–(\d+)", cell):
                rate, low, high = map(int, bounds.groups())
                found = [wilson_interval(rate * n / 100, n) for n in (50, 100)]
                assert (low, high) in [(round(100 * x.low), round(100 * x.high)) for x in found]
                checked += 1
    assert checked >= 6


def test_every_kill_was_survived() -> None:
    assert "50 of 50 kills" in README
    table = (ROOT / "docs/crash_table.md").read_text("utf-8")
    assert re.search(r"in \*\*50 of 50\*\*\s+kills", table)


def test_all_methods_are_named() -> None:
    assert len(TABLE_4) == 17 and "**Seventeen methods**" in README and "sixteen other" in README
    named = {name.lower().replace("-", "_") for name in re.findall(r"[A-Za-z-]+", README)}
    assert named >= TABLE_4


def test_the_domains_are_those_with_a_configuration() -> None:
    (domains,) = (t for t in tables(README) if t[0][0].startswith("`cube-double`"))
    named = re.findall(r"`([^`]+)`", " ".join(row[0] for row in domains))
    flat = [n for name in named for n in expanded(name)]
    configured = {find.stem.replace("_", "-") for find in (ROOT / "configs").glob("*_*.yaml")}
    configured |= {"scene"}
    assert sorted(flat) == sorted(configured - {"quickstart-cube"})
    for names, how in domains:
        for name in (n for quoted in re.findall(r"`([^`]+)`", names) for n in expanded(quoted)):
            assert ("collect" in how) == (name in COLLECTABLE)


def expanded(name: str) -> list[str]:
    """``a-{b,c}`` -> ``a-b``, ``a-c``."""
    inner = re.match(r"(.*)\{(.*)\}", name)
    return [inner[1] + part for part in inner[2].split(",")] if inner else [name]


def test_links_lead_to_files() -> None:
    links = [x for x in re.findall(r"\]\(([^)]+)\)", README) if not x.startswith("http")]
    assert links and [x for x in links if not (ROOT / x).is_file()] == []


def test_the_supported_versions_are_those_that_can_be_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == ">=3.11" and "Python 3.11 or newer" in README
    for name, text in (("torch", "torch 2.8 or newer"), ("lightning", "lightning 2.6.4 or newer")):
        (needed,) = (x for x in project["dependencies"] if re.match(rf"{name}\W", x))
        assert f">={text.split()[1]}" in needed and text in README


def test_the_python_example_is_the_one_that_the_library_page_tests() -> None:
    found = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (example,) = (block for block in found if "load_policy" in block)
    library = (ROOT / "docs/library.md").read_text("utf-8")
    assert example in re.sub(r"  # .*", "", library)
