"""Mistakes end in one line and status 2; help and printing work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qam_lightning.cli import main
from qam_lightning.cli.compose import compose
from qam_lightning.cli.reading import flat
from qam_lightning.methods.base import Method
from qam_lightning.util import arguments
from qam_lightning.util.settings import DERIVED
from tests.app.conftest import Parsing, small
from tests.thinning import thinned

ROOT = Path(__file__).resolve().parents[2]
SCENE = ("fit", "--config", "scene.yaml")
LAUGHS = "a0: &a0 [b, b]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 25))


@pytest.mark.parametrize(
    ("arguments", "says"),
    thinned(
        [
            (
                ("train",),
                "unknown command 'train'; expected fit, eval, export, generate, data, study, lab",
            ),
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
            ((*SCENE, "stray\nline\x1b"), r"unexpected argument 'stray\\nline\\x1b'"),
            ((*SCENE, "--"), "unexpected argument '--'"),
            ((*SCENE, "-seed=3"), "unexpected argument '-seed=3'; a flag begins with two dashes"),
            ((*SCENE, "--model.wid", "8"), "unknown key 'model.wid'; did you mean model.width"),
            (
                (*SCENE, "--" + "x" * 5000),
                f"unknown key '{'x' * 200}…'; --print_config shows all keys",
            ),
            ((*SCENE, "--model.rho", "-inf"), "model.rho: .* found -inf; infinity is written .inf"),
            ((*SCENE, "--model.rho", ""), "model.rho: expected float, found ''"),
            (
                (*SCENE, "--model.tau", "9" * 5000),
                "model.tau is 9{200}…, which does not fit into 64",
            ),
            (
                (*SCENE, "--model.width", "9" * 20),
                "model.width is 9{20}, which does not fit into 64",
            ),
            (
                (*SCENE, "--model.width", "1e300"),
                "model.width is 1e.300, which does not fit into 64",
            ),
            (
                (*SCENE, "--model.init_args", "5"),
                "model.init_args is '5', expected keys with values",
            ),
            ((*SCENE, "--tuned", "[" * 99), "--tuned, line 1: nested more than 40 levels deep"),
            (
                (*SCENE, "--data.path", "a\udcff"),
                r"data.path is 'a\\udcff', expected text in UTF-8",
            ),
            ((*SCENE, "--data.store", "a\0"), r"data.store is 'a\\x00', expected text in UTF-8"),
            (
                (*SCENE, "--data.path", ""),
                "data.path: expected the name of a file or folder, found ''",
            ),
            (
                (*SCENE, "--data.directory", "~no_one/x"),
                "data.directory: there is no user of ~no_one/x",
            ),
            ((*SCENE, "--config", "~no_one/x.yaml"), "config: there is no user of ~no_one/x.yaml"),
            ((*SCENE, "--config", "/dev/zero"), "/dev/zero: is not a regular file"),
            ((*SCENE, "--config", "/"), "no config named '/'"),
            ((*SCENE, "--config", "x" * 5000), f"no config named '{'x' * 200}…'"),
            (("fit", "--domain", "../configs/scene"), "no domain named '../configs/scene'"),
            (("fit", "--domain", "x" * 5000), f"no domain named '{'x' * 200}…'"),
            ((*SCENE, "--method", "a\nb"), r"no method named 'a\\nb'"),
            (
                (*SCENE, "--trainer.devices", "1e9"),
                "trainer.devices is 1000000000, expected 1 to 1,000",
            ),
            (
                (*SCENE, "--trainer.num_nodes", "1e9"),
                "trainer.num_nodes is 1000000000, expected 1 to",
            ),
            ((*SCENE, "--trainer.accelerator", "tpu"), "trainer: Requirement 'torch_xla"),
            ((*SCENE, "--threads", "1e9"), "threads is 1000000000, expected 1 to 1024"),
            ((*SCENE, "--seed", "null"), "seed is null, expected 0 to 4294967295"),
            (
                (*SCENE, "--data.env", "pointmaze-medium-singletask-task2-v0"),
                "data.env is '.*-v0'; use --data.env pointmaze-medium --task 2",
            ),
            (
                (*SCENE, "--data.batch_size", "1.2.3e5"),
                "data.batch_size: expected int, found 1.2.3e5",
            ),
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
            (
                (*SCENE, "--data.env", "sceen"),
                "data.env is 'sceen' .did you mean 'scene'.., expected",
            ),
            ((*SCENE, "--ema.rate", "2"), "unknown key 'ema.rate'; it is model.target_rate now"),
            (
                (*SCENE, "--model.target_rate", "2"),
                "model.target_rate is 2.0, expected .*at most 1",
            ),
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
            (
                ("generate", "--env", "scene", "--episodes", "few"),
                "episodes: expected int, found few",
            ),
            (("generate", "--env", "scene", "--seed", "-1e3"), "seed: expected int, found -1000.0"),
            (
                ("generate", "--env", "scene", "--episodes", "1e300"),
                "episodes is 1e.300, which does not",
            ),
            (
                ("generate", "--env", "scene", "--directory", ""),
                "directory: expected the name of a file",
            ),
            (("generate", "--env", "scene-play-v0"), "env is '.*'; use --env scene --dataset play"),
            (
                ("generate", "--directory", "~no_one"),
                "directory: there is no user of ~no_one; is ./~no",
            ),
            (
                ("data", "info", "--env", "scene", "--path", "~no_one"),
                "data.path: there is no user of",
            ),
            (("data", "a\nb"), r"data: expected info or verify, found 'a\\nb'"),
            (("eva\nl",), r"unknown command 'eva\\nl'"),
        ],
        6,
    ),
)
def test_a_mistake_is_answered_in_one_line(arguments, says, refused, tmp_path):
    model_size = ("--model.width", "8") if "scene.yaml" in arguments else ()
    folder = ("--run_dir", str(tmp_path / "run")) if arguments[0] == "fit" else ()
    ends_open = arguments[-1] == "--config"
    message = refused(*arguments, *(() if ends_open else (*model_size, *folder)))
    assert re.search(says, message), message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--method", "trqam", "--model.budget", "0"), "model.budget is 0.0, expected above 0"),
        (("--model.grid_power", "0.5"), "model.grid_power is 0.5, expected at least 1 and at most"),
        (
            ("--model.integrator", "denoiser", "--model.flow_steps", "1"),
            "model.flow_steps is 1, expected at least 2 with integrator denoiser",
        ),
    ],
)
def test_a_budget_or_a_scheme_out_of_range_is_answered_in_one_line(flags, says, refused, tmp_path):
    folder = ("--run_dir", str(tmp_path / "run"))
    assert says in refused(*SCENE, "--model.width", "8", *flags, *folder)
    assert not (tmp_path / "run").exists()


def test_small_parsers_answer_in_one_line_too(capsys):
    for words, says in (
        (("eval", "run", "--episo", "3"), "unrecognized arguments: --episo 3; see --help"),
        (("eval", "run", "a\nb"), r"unrecognized arguments: a\nb; see --help"),
        (("eval", "~no_one/x"), "there is no user of ~no_one/x; is ./~no_one/x meant?; see --help"),
        (("eval", "run", "--output="), "--output: expected the name of a file or folder, found ''"),
        (("laboratory", "--out", "~no_one"), "--out: there is no user of ~no_one"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(list(words))
        (line,) = capsys.readouterr().err.splitlines()
        assert exit_.value.code == 2 and line.startswith("error: ") and says in line


def test_the_laboratory_checks_its_folder_before_it_trains(refused):
    assert "/dev/null/x: cannot be written" in refused("laboratory", "--out", "/dev/null/x")


@pytest.mark.parametrize("value", ["-1e-3", "-.5", "-1_000", "-1.", "-1.e5", "-.inf", "-0x10"])
def test_a_negative_number_is_a_value(value):
    flags = compose(["--domain=scene", "--model.rho", value, "--seed", "1"]).flags
    assert flags == [f"--model.rho={value}", "--seed=1"]


@pytest.mark.parametrize(
    ("text", "says"),
    thinned(
        [
            ("evaluation: [1]", "FILE: evaluation is a list, expected keys with values"),
            ("online: 5", "FILE: online is 5, expected keys with values"),
            ("log: []", "FILE: log is a list, expected keys with values"),
            ("trainer: x", "FILE: trainer is 'x', expected keys with values"),
            ("model: 3", "FILE: model is 3, expected keys with values"),
            ("tuned: ''", "FILE: tuned is '', expected keys with values"),
            ("seed: 1\nnull: 3", "FILE, line 2: the key null is no name"),
            ("on: 3", "FILE, line 1: the key on is no name"),
            ("'': 3", "FILE, line 1: an empty key is no name"),
            ("data: {1: 2}", "FILE, line 1: the key 1 is no name"),
            ("{[1]: 2}", "FILE, line 1: not valid YAML: a key is a name"),
            (
                "data: {task: 1, 'task': 2}",
                "'data.task' is set twice, on lines 1 and 1; remove one",
            ),
            (
                "data.task: 1\ndata:\n  task: 2",
                "'data.task' is set twice, on lines 1 and 3; remove",
            ),
            (
                "model.tau: 1\nmodel: {init_args: {tau: 2}}",
                "'model.tau' is set twice, on lines 1 and 2",
            ),
            (
                "model: {tau: 1,\n init_args: {tau: 2}}",
                "'model.tau' is set twice, on lines 1 and 2",
            ),
            ("data: 5\ndata.task: 1", "'data.task' is set, and 'data' is 5; remove one"),
            ("model: a.B\nmodel.class_path: a.C", "'model.class_path' is set, and 'model' is a.B"),
            (
                "data: &d {task: 1}\nmodel: {<<: *d, <<: *d}",
                "'model.<<' is set twice, on lines 2 and 2",
            ),
            ("a: &a [*a]", "FILE, line 1: an alias nests it more than 40 levels deep"),
            ("a: &a {<<: *a}", "FILE, line 1: an alias nests it more than 40 levels deep"),
            ("a: " + "[" * 5000, "FILE, line 1: nested more than 40 levels deep"),
            ("a: " + "{b: " * 5000, "FILE, line 1: nested more than 40 levels deep"),
            (LAUGHS, "FILE, line 1: holds more than 50,000 values, aliases expanded"),
            ("#" * 2**21, "FILE: is larger than 1 MiB"),
            ("seed: " + "9" * 400, "FILE, line 1: 9{200}… does not fit into 64 bits"),
            ("seed: " + "9" * 5000, "FILE, line 1: '9{200}…' cannot be read as int"),
            ("seed: 1e400", "seed is inf, expected 0 to 4294967295"),
            ("model: {width: 1e300}", "model.width is 1e.300, which does not fit into 64 bits"),
            ("seed: .nan", "seed is nan, expected 0 to 4294967295"),
            ("seed:", "seed is None, expected 0 to 4294967295"),
            ("threads: 1000000000", "threads is 1000000000, expected 1 to 1024"),
            ("run_dir:", "run_dir is empty; leave it out for the run's own folder"),
            ("run_dir: ''", "run_dir: expected the name of a file or folder, found ''"),
            ("run_dir: 5", "run_dir is 5, expected the name of a folder, in quotes"),
            ("run_dir: [a]", "run_dir is .*, expected the name of a folder"),
            ("run_dir: ???", "run_dir is '...', expected the name of a folder"),
            ('run_dir: "a\\0b"', r"FILE, line 1: 'a\\x00b' is not text"),
            ('data: {path: "\\udcff"}', r"FILE, line 1: '\\udcff' is not text"),
            (
                "ckpt_path: ~no_one/x",
                "ckpt_path: there is no user of ~no_one/x; is ./~no_one/x meant",
            ),
            ('domain: "a\\nb"', r"no domain named 'a\\nb'"),
            ("method: ../scene", "no method named '../scene'"),
            ("method: [qam]", "FILE: method is .*, expected a name"),
            ("config: other.yaml", "FILE: config is a flag and no key of a file; include: "),
            ("task: 3", "FILE: task is a flag and no key of a file; data.task is one"),
            ("include: ''", "include: expected the name of a file or folder, found ''"),
            ("include: /dev/zero", "/dev/zero: is not a regular file"),
            ("a: !!python/object/apply:os._exit [9]", "FILE, line 1: the tag .* is not supported"),
            ("a: !mine 3", "FILE, line 1: the tag !mine is not supported; remove it"),
            ("a: !!set {b}", "FILE, line 1: the tag .*set is not supported"),
            ("a: !!int b", "FILE, line 1: 'b' cannot be read as int"),
            ("a: 1\n---\na: 2", "FILE, line 2: not valid YAML: but found another document"),
            ("a:\tb", "FILE, line 1: not valid YAML: found character"),
            ("run_dir: ${run_dir}", "run_dir: Recursive interpolation detected"),
            ("run_dir: ${oc.env:NO_SUCH_VARIABLE}", "run_dir: .*'NO_SUCH_VARIABLE' not found"),
            ("seed: ${", "seed: no viable alternative"),
            (
                "model: {class_path: ''}",
                "FILE: model.class_path is '', expected the name of a class",
            ),
            ("model: {dict_kwargs: {a: 1}}", "unknown key 'model.dict_kwargs.a'"),
            (
                "model: qam_lightning.Method",
                "Method, which does not define actor_losses and policy",
            ),
            (
                "model: os.system",
                "model: Import path .*does not correspond to a subclass of Method",
            ),
            ("model: os.nothing", "model: module 'os' has no attribute 'nothing'"),
            ("trainer: {logger: [5]}", "trainer.logger: Not a valid subclass of Logger"),
            ("trainer: {callbacks: 5}", "trainer.callbacks: expected list, found 5"),
            (
                "trainer: {callbacks: [{class_path: ModelCheckpoint, "
                "init_args: {save_top_k: -5}}]}",
                "trainer: Invalid value for save_top_k=-5",
            ),
            (
                "trainer: {logger: {class_path: MLFlowLogger}}",
                "trainer: Requirement 'mlflow.* not met",
            ),
            ("data: {tsk: 1}", "unknown key 'data.tsk' .in FILE.; did you mean data.task"),
            (
                "model: {init_args: {widht: 1}}",
                "unknown key 'model.widht' .in FILE.; .*model.width",
            ),
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
            (
                "model: {class_path: }",
                "FILE: model.class_path is None, expected the name of a class",
            ),
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
        4,
    ),
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


def test_files_that_include_ever_more_files_are_refused(refused, tmp_path):
    for i in range(24):
        (tmp_path / f"{i}.yaml").write_text(f"include: [{i + 1}.yaml, {i + 1}.yaml]")
    (tmp_path / "24.yaml").write_text("")
    first = tmp_path / "0.yaml"
    assert f"{first}: more than 100 files" in refused(*SCENE, "--config", str(first))


def test_a_users_module_that_is_no_python_is_refused_by_name(refused, tmp_path, monkeypatch):
    (tmp_path / "not_python.py").write_text("class (")
    (tmp_path / "not_importable.py").write_text("raise RuntimeError('boom\\nboom')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "not_python.py, line 1: not valid Python" in refused(*SCENE, "--model=not_python.X")
    assert "model: boom boom" in refused(*SCENE, "--model=not_importable.X")


def test_a_callback_of_lightnings_that_fails_is_a_mistake_in_the_configuration(
    small_run, refused, tmp_path
):
    mine = tmp_path / "mine.yaml"
    stop = "{class_path: EarlyStopping, init_args: {monitor: nothing}}"
    mine.write_text(f"trainer: {{callbacks: [{stop}]}}")
    message = refused(*small_run(3, "--config", str(mine)))
    assert message.startswith("error: trainer: EarlyStopping: Early stopping conditioned on metric")


def test_a_failure_in_a_users_own_method_is_none_of_the_configurations(
    small_run, tmp_path, monkeypatch
):
    text = (
        "from qam_lightning import FQL\n\nclass Mine(FQL):\n    def build(self):\n        1 / 0\n"
    )
    (tmp_path / "failing_method.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        main(small_run(1, "--model=failing_method.Mine", "--model.alpha=1"))


def test_a_run_that_fails_unforeseen_says_where_its_traceback_is(
    small_run, unforeseen, tmp_path, monkeypatch, capsys
):
    def failing_step(self, batch, batch_idx):
        raise KeyError("two\nlines")

    monkeypatch.setattr(Method, "training_step", failing_step)
    monkeypatch.setattr(arguments, "unforeseen", unforeseen)
    monkeypatch.chdir(tmp_path)
    assert main(small_run(1)) == 1
    (log,) = tmp_path.glob("qam-error-*.log")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"error: unforeseen: KeyError: 'two\nlines'") and log.name in line
    assert "failing_step" in log.read_text()


def test_a_file_that_is_no_text_is_refused(refused, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path}: not a YAML text file" in refused(*SCENE, "--config", str(path))


def test_a_trainers_setting_that_a_method_refuses_is_named(small_run, refused):
    message = refused(*small_run(1, "--trainer.precision=16-true"))
    assert message == (
        "error: trainer.precision is 16-true, expected 32-true, bf16-mixed or 64-true"
    )


def test_a_missing_dataset_is_answered_in_one_line(refused, tmp_path):
    nowhere = {"directory": tmp_path / "none", "base_url": "http://127.0.0.1:9"}  # nobody listens
    assert "generate" in refused(*small(tmp_path / "run", 1, **nowhere))


def test_generate_collects_and_refuses_to_overwrite(refused, tmp_path, capsys):
    size = ("--episodes=1", "--episode_steps=10", "--workers=1", f"--directory={tmp_path}")
    command = ["generate", "--env=pointmaze-medium", "--dataset=navigate", *size]
    assert main(command) == 0
    written = tmp_path / "pointmaze-medium-navigate-v0-val.npz"
    assert capsys.readouterr().out.splitlines()[-1] == str(written)
    assert "exists already" in refused(*command)


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
    keys = set(flat(yaml.safe_load(cli.settings())))
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
    for words in ("--help", "fit --help"):
        command = f"{sys.executable} train.py {words} | head -n 1"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.startswith("usage: ") and not done.stderr
