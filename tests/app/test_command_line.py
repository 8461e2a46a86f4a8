"""Mistakes end in one line and status 2; help and printing work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qam_lightning.cli import main
from qam_lightning.cli.reading import leaves
from qam_lightning.cli.settings import DERIVED
from tests.app.conftest import Parsing

ROOT = Path(__file__).resolve().parents[2]
SCENE = ("fit", "--config", "scene.yaml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train",), "unknown command 'train'; expected fit, eval, generate, data, laboratory"),
        (("fit",), "no domain chosen: add --domain NAME with NAME from .*cube_triple"),
        (("fit", "--config", "cube_tripel.yaml"), "did you mean cube_triple.yaml"),
        (("fit", "--domain", "sceen"), "no domain named 'sceen'; did you mean scene"),
        (("fit", "--method", "qam_fqll"), "no method named 'qam_fqll'; did you mean qam_fql"),
        (("fit", "--config"), "--config needs a value"),
        ((*SCENE, "--method", "--seed", "1"), "--method needs a value"),
        ((*SCENE, "--data.tsk", "3"), "unknown key 'data.tsk'; did you mean data.task"),
        ((*SCENE, "--widht", "3"), "unknown key 'widht'"),
        ((*SCENE, "--model.tua", "3"), "unknown key 'model.tua'; did you mean model.tau"),
        (
            (*SCENE, "--model.rho"),
            "model.rho needs a value; one that begins with a dash is .*=VALUE",
        ),
        ((*SCENE, "--model.rho", "-x"), "model.rho needs a value; .* --model.rho=VALUE"),
        ((*SCENE, "--model.rho", "-1e-3"), "model.rho is -0.001, expected at least 0"),
        ((*SCENE, "--lr", "1"), "unknown key 'lr'; use --model.learning_rate"),
        (
            (
                *SCENE,
                "--model.lr=1",
            ),
            "unknown key 'model.lr'; use --model.learning_rate",
        ),
        ((*SCENE, "--gamma", "0.9"), "unknown key 'gamma'; use --data.discount"),
        ((*SCENE, "--batch", "64"), "unknown key 'batch'; use --data.batch_size"),
        ((*SCENE, "--env", "scene"), "unknown key 'env'; use --domain"),
        ((*SCENE, "--epochs", "9"), "unknown key 'epochs'; use --trainer.max_steps"),
        ((*SCENE, "--steps", "9"), "unknown key 'steps'; use --trainer.max_steps"),
        ((*SCENE, "--gpus", "1"), "unknown key 'gpus'; use --trainer.accelerator=gpu"),
        ((*SCENE, "--ensemble", "2"), "unknown key 'ensemble'; use --model.num_critics"),
        ((*SCENE, "--data.chunk", "2"), "unknown key 'data.chunk'; it is data.horizon now"),
        ((*SCENE, "--model.clip=1"), "unknown key 'model.clip'; it is model.grad_clip now"),
        ((*SCENE, "stray"), "unexpected argument 'stray'"),
        ((*SCENE, "--data.batch_size", "1.2.3e5"), "data.batch_size: expected int, found 1.2.3e5"),
        (
            (*SCENE, "--method", "qam", "--model", "pkg.Other"),
            "--method is qam, but --model is pkg.Other; remove one",
        ),
        ((*SCENE, "--task", "two"), "data.task: expected int, found two"),
        ((*SCENE, "--model.tau", "hot"), "model.tau: expected float, found hot"),
        ((*SCENE, "--log.wandb", "on"), "log.wandb: expected one of .*'offline'.*, found on"),
        ((*SCENE, "--model", "no.such.Method"), "model: No module named 'no'"),
        ((*SCENE, "--model", "torch.nn.Linear"), "model: .*not .* a subclass of Method"),
        ((*SCENE, "--seed", "-1"), "seed is -1, expected 0 to 4294967295"),
        ((*SCENE, "--threads", "0"), "threads is 0, expected 1 to 1024"),
        ((*SCENE, "--model.depth", "0"), "model.depth is 0"),
        (
            (*SCENE, "--model.num_critics", "0"),
            "model.num_critics is 0, expected at least 1",
        ),
        ((*SCENE, "--model.tau", "-1"), "model.tau is -1.0, expected at least 0"),
        ((*SCENE, "--model.tau", ".inf"), "model.tau is inf, expected .* finite"),
        ((*SCENE, "--model.tau", "inf"), "model.tau: .* found inf; infinity is written .inf"),
        ((*SCENE, "--method", "fbrac", "--model.alpha", "0"), "alpha is 0.0, expected above 0"),
        (
            (*SCENE, "--method", "ifql", "--model.kappa", "1"),
            "model.kappa is 1.0, expected above 0 and below 1",
        ),
        (
            (*SCENE, "--method", "bam", "--model.flow_steps", "1"),
            "model.flow_steps is 1, expected at least 2",
        ),
        ((*SCENE, "--task", "9"), "data.task is 9, but scene has tasks 1 to 5"),
        ((*SCENE, "--data.env", "sceen"), "data.env is 'sceen' .did you mean 'scene'.., expected"),
        ((*SCENE, "--ema.rate", "2"), "unknown key 'ema.rate'; it is model.target_rate now"),
        ((*SCENE, "--model.target_rate", "2"), "model.target_rate is 2.0, expected .*at most 1"),
        ((*SCENE, "--log.every_n_steps", "0"), "log.every_n_steps is 0, expected at least 1"),
        ((*SCENE, "--checkpoints.every_n_steps", "0"), "checkpoints.every_n_steps"),
        ((*SCENE, "--evaluation.episodes", "0"), "evaluation.episodes"),
        ((*SCENE, "--trainer.max_steps", "0"), "trainer.max_steps is 0"),
        ((*SCENE, "--trainer.accelerator", "qpu"), "trainer: .*accelerator qpu"),
        ((*SCENE, "--trainer.devices", "0"), "trainer: .*devices 0"),
        ((*SCENE, "--trainer.precision", "7"), "trainer: .*precision 7"),
        ((*SCENE, "--ckpt_path", "last"), "--ckpt_path last: there is no .*last.ckpt"),
        ((*SCENE, "--ckpt_path", "nowhere.ckpt"), "--ckpt_path nowhere.ckpt: no such file"),
        (("generate",), "required: env"),
        (("generate", "--env", "sceen"), "'sceen'"),
        (("generate", "--env", "scene", "--episodes", "few"), "episodes: expected int, found few"),
    ],
)
def test_a_mistake_is_answered_in_one_line(arguments, says, refused, tmp_path):
    model_size = ("--model.width", "8") if "scene.yaml" in arguments else ()
    folder = ("--run_dir", str(tmp_path / "run")) if arguments[0] == "fit" else ()
    ends_open = arguments[-1] == "--config"
    message = refused(*arguments, *(() if ends_open else (*model_size, *folder)))
    assert re.search(says, message), message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: {tsk: 1}", "unknown key 'data.tsk' .in FILE.; did you mean data.task"),
        ("model: {init_args: {widht: 1}}", "unknown key 'model.widht' .in FILE.; .*model.width"),
        ("sead: 1", "unknown key 'sead' .in FILE.; did you mean seed"),
        ("data:\n  task: two", "data.task: expected int, found two .in FILE."),
        ("model: {init_args: {tau: hot}}", "model.tau: expected float, found hot .in FILE."),
        (
            "model: {init_args: {ensemble: 1}}",
            "'model.ensemble' .in FILE.; it is model.num_critics",
        ),
        ("evaluation: 5", "FILE: evaluation is 5, expected keys with values"),
        ("1: 5", "FILE, line 1: the key 1 is no name"),
        (
            "seed: 1\ndata: {task: 1}\nseed: 2",
            "FILE: 'seed' is set twice, on lines 1 and 3; remove one",
        ),
        ("method: qamm", "no method named 'qamm'; did you mean qam.* .in FILE."),
        (
            "method: fql\nmodel: {class_path: qam_lightning.methods.qam.QAM}",
            "FILE: method is fql, but model.class_path is .*QAM; remove one",
        ),
        ("include: nowhere.yaml", "no config named 'nowhere.yaml'"),
        ("include: mine.yaml", "mine.yaml: includes itself; remove the include"),
        ("a: 1\nb: [", "FILE, line 2: not valid YAML"),
        ("- 1", "FILE: expected keys with values, found a list"),
        ("include:", "FILE: include is None, expected a file or a list of files"),
        ("include: 3", "FILE: include is 3, expected a file or a list of files"),
        ("include: [scene, 3]", "FILE: include is .*, expected a file or a list of files"),
        ("model: {class_path: }", "FILE: model.class_path is None, expected the name of a class"),
        ("model: {class_path: 3}", "FILE: model.class_path is 3, expected the name of a class"),
        ("model: {init_args: 3}", "FILE: model.init_args is 3, expected keys with values"),
        (
            "model: {init_args: {tau: {{ x }}}}",
            "FILE, line 1: not valid YAML: a key is a name, not a collection",
        ),
        ("domain: 5\ndata: {env: scene}", "FILE: domain is 5, expected a name"),
        ("domain: moon", "no domain named 'moon'; .* .in FILE."),
        (
            "domain: moon\ndata: {env: Moon-v0}",
            "the method has no tuned value for 'moon'; give one with --model.tau",
        ),
        ("run_dir: ${nothing}", "run_dir: .*'nothing' not found"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(text, says, refused, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = refused(*SCENE, "--config", str(path))
    assert re.search(says.replace("FILE", re.escape(str(path))), message), message


def test_files_that_include_each_other_are_refused(refused, tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"include: {other}.yaml")
    message = refused(*SCENE, "--config", str(tmp_path / "a.yaml"))
    assert message == f"error: {tmp_path / 'a.yaml'}: includes itself; remove the include"


def test_a_file_that_is_no_text_is_refused(refused, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path}: not a YAML text file" in refused(*SCENE, "--config", str(path))


def test_a_trainers_setting_that_a_method_refuses_is_named(small_run, refused):
    message = refused(*small_run(1, "--trainer.precision=16-true"))
    assert message == (
        "error: trainer.precision is 16-true, expected 32-true, bf16-mixed or 64-true"
    )


def test_a_missing_dataset_is_answered_in_one_line(small_run, refused, tmp_path):
    url = "http://127.0.0.1:9"  # nothing listens there
    nowhere = [f"--data.directory={tmp_path / 'none'}", f"--data.base_url={url}"]
    assert "generate" in refused(*small_run(1, *nowhere))


def test_generate_collects_and_refuses_to_overwrite(refused, tmp_path, capsys):
    size = ("--episodes=1", "--episode_steps=10", "--workers=1", f"--directory={tmp_path}")
    assert main(["generate", "--env=cube-single", *size]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path / 'cube-single-play-v0-val.npz'}"
    assert "exists already" in refused("generate", "--env=cube-single", *size)


def test_a_method_without_an_offline_phase_is_refused_a_dataset(refused, small_run, tmp_path):
    assert "RLPD has no offline phase: online.steps is 0" in refused(
        *small_run(1, "--method", "rlpd", "--online.steps=0")
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("fit", "--help"), "--evaluation.episodes EPISODES"),
        (("fit", "--method", "qam_edit", "--model.help"), "--model.edit_scale EDIT_SCALE"),
        (("generate", "--help"), "--episodes EPISODES"),
    ],
)
def test_help(arguments, told, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert exit_.value.code == 0
    assert told in capsys.readouterr().out


def test_the_laboratory_names_itself_as_it_was_called(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qam"])
    with pytest.raises(SystemExit):
        main(["laboratory", "--help"])
    assert "usage: qam laboratory " in capsys.readouterr().out


def test_the_program_starts_quietly_and_shows_its_usage():
    shown = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "python train.py fit --config cube_triple.yaml" in shown.stdout
    for command in ("validate", "test", "predict"):
        assert f"  {command}  " not in shown.stdout


@pytest.mark.parametrize("command", [[], ["fit"], ["eval"], ["generate"], ["data"], ["laboratory"]])
def test_help_imports_nothing_slow(command):
    code = f"""
import sys
from qam_lightning.cli import main
try:
    main({[*command, "--help"]})
except SystemExit:
    pass
slow = {{"torch", "lightning", "mujoco", "ogbench", "gymnasium", "wandb", "matplotlib", "scipy"}}
sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "usage: " in shown.stdout


def test_help_names_every_setting_that_the_parser_takes(capsys):
    cli = Parsing(["--domain=scene"])
    keys = set(leaves(yaml.safe_load(cli.settings())))
    with pytest.raises(SystemExit):
        main(["fit", "--domain=scene", "--help"])
    shown = set(re.findall(r"^  --([\w.]+) ", capsys.readouterr().out, re.MULTILINE))
    named = {key.replace("init_args.", "") for key in keys if not key.startswith("tuned.")}
    derived = {f"{group}.{name}" for group, names in DERIVED.items() for name in names}
    assert named - derived - shown == {"model.class_path"}
    assert shown - named == {"config", "task", "print_config", "tuned"}


def test_help_shows_the_values_of_the_files(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--domain=scene", "--method=fql", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for line in (
        "--data.task TASK .*?default: 2",
        "--model.alpha ALPHA .*?default: 300.0",
        r"--model.target_rate TARGET_RATE .*?\(float, above 0, at most 1, default: 0.005\)",
    ):
        assert re.search(line, shown)


def test_a_reader_that_leaves_early_sees_no_traceback() -> None:
    for arguments in ("--help", "fit --help"):
        command = f"{sys.executable} train.py {arguments} | head -n 1"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.startswith("usage: ") and not done.stderr
