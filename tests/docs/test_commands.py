"""Every command that the README and the documentation show gets as far as it can without data."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from omegaconf import OmegaConf

from qam_lightning.cli import main
from qam_lightning.cli.export import parse as parse_export
from qam_lightning.cli.study import parse as parse_study
from qam_lightning.data.generate import generate
from qam_lightning.studies.study import read_study
from tests.docs.pages import DOCS, PAGES, README, ROOT, commands, files
from tests.fuzz.__main__ import parse as parse_fuzz

KINDS = {
    ("python", "train.py", "fit"): "fit",
    ("python", "train.py", "generate"): "generate",
    ("python", "train.py", "data"): "data",
    ("python", "train.py", "study"): "study",
    ("python", "train.py", "export"): "export",
    ("python", "eval.py"): "eval",
    ("qam", "fit"): "fit",
    ("qam", "eval"): "eval",
    ("make",): "make",
    ("python", "-m", "tests.fuzz"): "fuzz",
    ("python", "-m", "qam_lightning.laboratory"): "other",
    ("pip", "install"): "other",
    ("hf", "auth"): "other",
    ("lerobot-eval",): "other",
    ("export",): "other",
    ("torchrun",): "other",
}
BENCHMARKS = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")}
OWN_TEST = "add_a_method.md"  # its commands need its files; test_add_a_method runs them


def kind(command: list[str]) -> tuple[str, list[str]]:
    """Return what a command is and its arguments."""
    for start, name in KINDS.items():
        if tuple(command[: len(start)]) == start:
            return name, command[len(start) :]
    if command[0] == "python" and command[1] in BENCHMARKS:
        return "benchmark", command[1:]
    return "unknown", command


def shown(wanted: str) -> list:
    """Return the commands of a kind as test parameters: page and arguments."""
    found = {}
    for page in PAGES:
        for name, arguments in map(kind, commands(page)):
            if name == wanted and page.name != OWN_TEST:
                key = f"{page.stem}: {' '.join(arguments)}"
                found[key] = pytest.param(page, arguments, id=key)
    return list(found.values())


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolve(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Let ``fit`` print the configuration that it would train."""
    show = [] if "--print_config" in arguments else ["--print_config"]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *arguments, *show])
    assert exit_.value.code == 0
    assert "class_path: qam_lightning.methods" in capsys.readouterr().out


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line with which a command ends."""
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    return message


def test_every_command_is_of_a_tested_kind() -> None:
    unknown = [(p.name, c) for p in PAGES for c in commands(p) if kind(c)[0] == "unknown"]
    assert unknown == []
    assert {"fit", "eval", "export", "study", "make"} <= {kind(c)[0] for c in commands(README)}


@pytest.mark.parametrize(("page", "arguments"), shown("fit"))
def test_fit_resolves(
    page: Path,
    arguments: list[str],
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in files(page).items():
        Path(name).write_text(text)
    if {"--help", "--model.help"} & set(arguments):
        return
    resolve(arguments, capsys)


@pytest.mark.parametrize(("page", "arguments"), shown("study"))
def test_study_parses(page: Path, arguments: list[str]) -> None:
    options = parse_study(arguments)
    named = [getattr(options, "study", None), *getattr(options, "source", [])]
    for name in named:
        if name and not name.startswith("my_") and "/" not in name:
            assert read_study(name).runs


@pytest.mark.parametrize(("page", "arguments"), shown("export"))
def test_export_gets_as_far_as_the_missing_run(
    page: Path,
    arguments: list[str],
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "--push" in arguments:
        pytest.importorskip("huggingface_hub")
        monkeypatch.setenv("HF_TOKEN", "hf_none")
    options = parse_export(arguments)
    assert str(options.source or options.verify) in refusal(["export", *arguments], capsys)


@pytest.mark.parametrize(("page", "arguments"), shown("generate"))
def test_generate_parses(page: Path, arguments: list[str]) -> None:
    parse_generate(arguments)


def parse_generate(arguments: list[str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(generate)
    assert parser.parse_args(arguments).env


@pytest.mark.parametrize(("page", "arguments"), shown("data"))
def test_data_gets_as_far_as_the_missing_files(
    page: Path,
    arguments: list[str],
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nowhere = [f"--directory={elsewhere}", "--base_url=http://127.0.0.1:1"]
    message = refusal(["data", *arguments, *nowhere], capsys)
    assert any(part in message for part in ("127.0.0.1", str(elsewhere), "pendulum.npz"))


@pytest.mark.parametrize(("page", "arguments"), shown("eval"))
def test_eval_gets_as_far_as_the_missing_run(
    page: Path,
    arguments: list[str],
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = next((a for a in arguments if not a.startswith("-")), None)
    missing = [] if run else ["runs/missing"]
    assert (run or "runs/missing") in refusal(["eval", *arguments, *missing], capsys)


@pytest.mark.parametrize(("page", "arguments"), shown("make"))
def test_make_targets_exist(page: Path, arguments: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)


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
    parse_generate(generated[2:])
    resolve(fitted[2:], capsys)
    assert generated[:2] == ["train.py", "generate"] and fitted[:2] == ["train.py", "fit"]
    assert ["eval.py", "runs/quickstart", "--picture"] in scored


@pytest.mark.parametrize(("page", "arguments"), shown("fuzz"))
def test_fuzz_parses(page: Path, arguments: list[str]) -> None:
    assert parse_fuzz(arguments).cases


def test_the_settings_that_the_guide_lists_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config=cube_double.yaml", "--print_config"])
    config = OmegaConf.create(capsys.readouterr().out)
    config.model.merge_with(config.model.pop("init_args"))
    guide = (DOCS / "configuration.md").read_text("utf-8")
    listed = re.findall(r"^\| `([\w.]+)` \|", guide, re.MULTILINE)
    missing = object()
    assert listed
    assert [k for k in listed if OmegaConf.select(config, k, default=missing) is missing] == []
