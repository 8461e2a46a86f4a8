"""How files and flags become one configuration."""

import zipfile

import pytest
import yaml

from qam_lightning.cli import main
from qam_lightning.cli.compose import compose, find_config
from qam_lightning.util.configs import CONFIGS
from qam_lightning.util.configs import METHODS as FOLDER
from qam_lightning.util.errors import UserError
from qam_lightning.util.settings import defaults, is_method, settings_of

# -- later files and flags -------------------------------------------------------------------------


METHODS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def tau(config):
    return config["model"]["init_args"]["tau"]


def test_a_later_domain_leaves_nothing_stale(resolved):
    config = resolved("--config", "scene.yaml", "--config", "cube_triple.yaml")
    assert (tau(config), config["data"]["env"]) == (10, "cube-triple")
    assert config["run_dir"].startswith("runs/cube-triple-")
    config = resolved("--config", "cube_triple.yaml", "--domain", "scene", "--seed", "4")
    assert (tau(config), config["data"]["env"]) == (1, "scene")
    assert config["run_dir"] == "runs/scene-task2-qam-seed4"
    alone = composed("--config", "scene.yaml", "--method", "qam_fql")
    for earlier in ("humanoidmaze_large", "pointmaze_giant", "cube_single"):
        left = composed("--domain", earlier, "--config", "scene.yaml", "--method", "qam_fql")
        assert left == alone


def test_a_flag_beats_the_tuned_value_wherever_it_stands(resolved):
    for flag in ("--model.tau", "--model.init_args.tau"):
        assert tau(resolved("--config", "scene.yaml", flag, "5")) == 5
        assert tau(resolved(flag, "5", "--config", "scene.yaml")) == 5
        assert tau(resolved("--config", "scene.yaml", flag, "5", "--domain", "cube_triple")) == 5


def test_a_file_beats_the_tuned_value(resolved, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {init_args: {tau: 7}}\n")
    assert tau(resolved("--config", "scene.yaml", "--config", str(mine))) == 7
    assert tau(resolved("--config", str(mine), "--config", "scene.yaml")) == 7
    for method in (["--method", "qam_fql"], ["--config", "methods/qam_fql.yaml"]):
        assert tau(resolved("--config", str(mine), "--domain", "scene", *method)) == 7


@pytest.mark.parametrize("method", METHODS)
def test_the_method_flag_equals_its_file(method):
    by_file = composed("--config", "cube_triple.yaml", "--config", f"methods/{method}.yaml")
    assert by_file["method"] == method and by_file["domain"] == "cube-triple"
    assert composed("--config", f"methods/{method}.yaml", "-c", "cube_triple.yaml") == by_file
    assert composed("--domain", "cube-triple", "--method", method) == by_file
    assert composed(f"--method={method}", "--domain=cube_triple") == by_file


def composed(*arguments):
    """What the files result in, before it is parsed."""
    return compose(arguments).config


def test_nothing_of_the_default_method_is_left_over(resolved, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {class_path: qam_lightning.methods.bam.BAM, init_args: {tau: 1}}\n")
    arguments = ["--config", "scene.yaml", "--config", str(mine), "--model.residual", "true"]
    config = resolved(*arguments)
    assert "tuned" not in composed(*arguments)
    assert config["method"] == "custom"


def test_the_task_flag(resolved):
    config = resolved("--config", "scene.yaml", "--task", "4")
    assert config["data"]["task"] == 4
    assert config["run_dir"] == "runs/scene-task4-qam-seed0"


def test_a_saved_configuration_resolves_to_itself(resolved, tmp_path):
    config = resolved("--config", "cube_triple.yaml", "--method", "qam_edit", "--model.tau", "2")
    saved = tmp_path / "config.yaml"
    saved.write_text(yaml.safe_dump(config))
    assert resolved("--config", str(saved)) == config


# -- method and domain are the same in files and flags ---------------------------------------------


@pytest.fixture
def file(tmp_path):
    """``file(text)``: the path of a configuration file of the user's."""

    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_a_method_in_a_file_is_that_method(file):
    mine = file("method: rebrac\nmodel: {init_args: {width: 64}}")
    config = composed("--domain=scene", "--config", mine)
    assert config["model"]["init_args"].pop("width") == 64
    assert config == composed("--domain=scene", "--method=rebrac")
    assert composed("--config", mine, "--domain=scene", "--method=fql")["method"] == "fql"


def test_a_domain_in_a_file_is_that_domain(file, resolved):
    config = resolved("--config", file("domain: scene"))
    assert config == resolved("--domain=scene")
    assert (config["data"]["task"], config["data"]["sparse"]) == (2, True)
    mine = file("domain: scene\ndata: {task: 4}")
    assert composed("--config", mine)["data"]["task"] == 4
    assert composed("--config", mine)["data"]["sparse"] is True


def test_the_users_file_beats_the_domains_wherever_it_stands(file):
    mine = file("data: {task: 4}")
    for order in (("--config", mine, "--domain=scene"), ("--domain=scene", "--config", mine)):
        assert composed(*order)["data"]["task"] == 4


def test_a_flag_beats_the_domain_of_a_file(file):
    recipe = composed("--config=quickstart.yaml", "--domain=scene", "--method=fql")
    alone = composed("--domain=scene", "--method=fql")
    assert (recipe["domain"], recipe["method"]) == ("scene", "fql")
    assert recipe["data"]["task"] == 2 and recipe["data"]["sparse"] is True
    for key in ("tuned", "run_dir", "tuned_as"):
        assert recipe[key] == alone[key]
    assert recipe["model"]["init_args"]["width"] == 128  # the recipe's own, of no domain


@pytest.fixture
def saved(resolved, file):
    """``saved(*arguments)``: the configuration that a run leaves in its folder."""
    return lambda *arguments: file(yaml.safe_dump(resolved(*arguments)), "config.yaml")


@pytest.mark.parametrize("method", ["fql", "rebrac", "bam", "ifql"])
def test_another_method_takes_nothing_of_a_saved_run_but_what_its_user_chose(
    method, saved, resolved
):
    chosen = ("--model.width=64", "--data.batch_size=8", "--trainer.max_steps=9", "--seed=3")
    run = saved("--domain=scene", "--method=qam_edit", "--model.tau=9", "--run_dir=x", *chosen)
    config = resolved("--config", run, "--method", method)
    assert config == resolved("--domain=scene", "--method", method, *chosen)


def test_another_method_after_one_with_values_of_its_own(saved, resolved):
    run = saved("--domain=scene", "--method=ifql", "--model.rho=0.7")
    config = resolved("--config", run, "--method=qam")
    assert config == resolved("--domain=scene", "--method=qam", "--model.rho=0.7")


def test_another_domain_takes_nothing_of_a_saved_run_but_what_its_user_chose(saved, resolved):
    run = saved("--domain=humanoidmaze-large", "--method=qam_fql", "--model.width=64")
    config = resolved("--config", run, "--domain=scene")
    # The domain's file sets no discount and no rho, so its own are the shared ones.
    assert config == resolved("--domain=scene", "--method=qam_fql", "--model.width=64")


def test_flags_beat_a_saved_run(saved, resolved):
    run = saved("--domain=scene", "--model.tau=9")
    config = resolved("--config", run, "--model.tau=2", "--task=1", "--seed=4")
    assert (tau(config), config["data"]["task"], config["seed"]) == (2, 1, 4)


# -- files -----------------------------------------------------------------------------------------


def test_a_file_may_include_others(file, tmp_path):
    file("data: {task: 3, batch_size: 8}\nseed: 1", "below.yaml")
    mine = file("include: [scene.yaml, below.yaml]\ndata: {task: 4}")
    config = composed("--config", mine)
    assert (config["domain"], config["seed"]) == ("scene", 1)
    assert (config["data"]["task"], config["data"]["batch_size"]) == (4, 8)
    assert "include" not in config


def test_numbers_may_have_exponents(file, resolved):
    mine = file("trainer: {max_steps: 2e3}\nmodel: {init_args: {learning_rate: 1e-3}}")
    config = resolved("--domain=scene", "--config", mine, "--data.batch_size=1e2", "--seed", "1e1")
    assert (config["trainer"]["max_steps"], config["data"]["batch_size"]) == (2000, 100)
    assert (config["model"]["init_args"]["learning_rate"], config["seed"]) == (1e-3, 10)


def test_print_config_may_stand_anywhere(capsys):
    for arguments in (
        ("--print_config", "--config=scene.yaml", "--task=3"),
        ("--config=scene.yaml", "--print_config", "--task=3"),
    ):
        with pytest.raises(SystemExit):
            main(["fit", *arguments])
        assert yaml.safe_load(capsys.readouterr().out)["data"]["task"] == 3


# -- names -----------------------------------------------------------------------------------------


def test_a_bare_name_is_looked_up_here_first_then_in_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("scene.yaml") == CONFIGS / "scene.yaml"
    assert find_config("scene") == CONFIGS / "scene.yaml"
    (tmp_path / "scene.yaml").write_text("domain: mine\n")
    assert find_config("scene.yaml") == tmp_path / "scene.yaml"
    assert find_config("scene", "domain") == CONFIGS / "scene.yaml"


def test_an_unknown_name_names_the_closest():
    with pytest.raises(UserError, match=r"'cube_tripel.yaml'.*did you mean cube_triple.yaml"):
        find_config("cube_tripel.yaml")
    with pytest.raises(UserError, match=r"no method named 'qam_fqll'; did you mean qam_fql"):
        find_config("qam_fqll", "method")


# -- methods of a user's own -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imports", "base"),
    [
        ("from qam_lightning import Method", "Method"),
        ("from qam_lightning import Method as Base", "Base"),
        ("import qam_lightning", "qam_lightning.Method"),
        ("import qam_lightning.methods.base as b", "b.Method"),
    ],
)
def test_a_users_method_has_all_settings(imports, base, tmp_path, monkeypatch):
    package = f"mine_{abs(hash(imports))}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("from .method import Mine\n")
    text = f"{imports}\n\n\nclass Mine({base}):\n    own: int = 3\n    '''Mine.'''\n"
    (tmp_path / package / "method.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in (f"{package}.Mine", f"{package}.method.Mine"):
        found = settings_of(name)
        assert found.keys() == settings_of("qam_lightning.methods.base.Method").keys() | {"own"}
        assert (found["own"].default, found["own"].help) == ("3", "Mine.")
        assert found["rho"].type == "float, at least 0" and is_method(name)
        config = compose(["--domain=scene", f"--model={name}", "--model.num_critics=1e1"])
        assert config.flags[-1] == "--model.num_critics=10"


def test_the_first_place_on_the_path_that_holds_a_module_counts(tmp_path, monkeypatch):
    """As for Python; nothing is read where there is no file, such as within a zip."""
    for number in (1, 2):
        folder = tmp_path / str(number) / "split_in_two"
        folder.mkdir(parents=True)
        (folder / "m.py").write_text(f"def f(own=math.sqrt(2), x=setting({number})): ...\n")
    with zipfile.ZipFile(tmp_path / "lib.zip", "w") as archive:
        archive.writestr("zipped.py", "def f(own=1): ...\n")
    for place in ("2", "1", "lib.zip"):
        monkeypatch.syspath_prepend(tmp_path / place)
    assert settings_of("split_in_two.m.f")["x"].default == "setting(1)"
    assert settings_of("zipped.f") == settings_of("split_in_two.gone.f") == {}


def test_a_default_that_is_computed_is_unknown(tmp_path, monkeypatch):
    text = "from qam_lightning import Method\nfrom qam_lightning.methods.settings import setting\n"
    fields = "a: float = math.sqrt(2)\n    b: int = setting(5)\n    c: float = -1.0\n"
    (tmp_path / "computed.py").write_text(f"{text}class Mine(Method):\n    {fields}")
    monkeypatch.syspath_prepend(tmp_path)
    found = defaults("computed.Mine")
    assert (found["model.b"], found["model.c"]) == (5, -1.0) and "model.a" not in found


def test_public_names_are_the_classes_they_stand_for():
    assert settings_of("qam_lightning.QAM") == settings_of("qam_lightning.methods.qam.QAM")
    assert compose(["--domain=scene", "--method=qam", "--model=qam_lightning.QAM"])
    with pytest.raises(UserError, match="--method is qam, but --model is qam_lightning.FQL"):
        compose(["--domain=scene", "--method=qam", "--model=qam_lightning.FQL"])


def test_a_heading_without_settings_changes_nothing(file):
    mine = file("method: qam\nmodel:\n  init_args:\n")
    for method in ("qam", "fql"):
        config = composed("--domain=scene", "--config", mine, f"--method={method}")
        assert config == composed("--domain=scene", f"--method={method}")


# -- how a file may be written ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "# nothing", "---", "null", "evaluation:\nonline:\nmodel:\ntuned:\nmethod:\ndomain:"],
)
def test_an_empty_file_or_section_changes_nothing(text, file):
    assert composed("--domain=scene", "--config", file(text)) == composed("--domain=scene")


def test_dotted_keys_are_those_of_sections(file, resolved):
    dotted = file("data:\ndata.task: 4\nmodel.tau: 7\nmodel: {width: 8}\ndata.horizon: 3")
    nested = file(
        "data: {task: 4, horizon: 3}\nmodel: {init_args: {tau: 7, width: 8}}", "nested.yaml"
    )
    arguments = ("--domain=scene", "--config")
    assert composed(*arguments, dotted) == composed(*arguments, nested)
    assert tau(resolved(*arguments, dotted)) == 7


def test_what_yaml_reads_as_something_else_stays_text(file):
    config = composed("--domain=scene", "--config", file("run_dir: 2024-01-31"))
    assert config["run_dir"] == "2024-01-31"
    marked = file("\ufeffseed: 5")
    assert composed("--domain=scene", "--config", marked)["seed"] == 5


def test_anchors_and_merges_may_be_used(file):
    mine = file("data: &d {task: 4}\nmodel: {init_args: &m {width: 8}}\nlog: {<<: *m, every: 1}")
    config = composed("--domain=scene", "--config", mine)
    assert (config["log"], config["data"]["task"]) == ({"width": 8, "every": 1}, 4)


def test_the_last_of_two_equal_flags_counts(resolved):
    config = resolved("--domain=scene", "--seed=1", "--model.tau=2", "--seed=3", "--task=3",
                      "--data.task=4", "--model.init_args.tau=5")  # fmt: skip
    assert (config["seed"], tau(config), config["data"]["task"]) == (3, 5, 4)


def test_home_is_written_out_wherever_a_path_is_given(file, tmp_path, monkeypatch, resolved):
    monkeypatch.setenv("HOME", str(tmp_path))
    file("seed: 7", "home.yaml")
    mine = file("include: ~/home.yaml\nrun_dir: ~/x-${seed}\nckpt_path: ~/c.ckpt")
    config = resolved("--domain=scene", "--config=~/mine.yaml")
    assert mine and config["run_dir"] == f"{tmp_path}/x-7"
    assert config["ckpt_path"] == f"{tmp_path}/c.ckpt"
    for flag in ("--run_dir=~/y", "--run_dir ~/y"):
        config = resolved("--domain=scene", *flag.split())
        assert config["run_dir"] == f"{tmp_path}/y"


def test_interpolations_are_checked_when_they_are_known(file, resolved):
    mine = file("seed: ${data.task}\nthreads: ${seed}")
    config = resolved("--domain=scene", "--config", mine, "--task=3")
    assert (config["seed"], config["threads"]) == (3, 3)


def test_defaults_of_lightnings_callbacks_can_be_saved(resolved):
    config = resolved("--domain=scene", "--trainer.callbacks+=Timer")
    (timer,) = config["trainer"]["callbacks"]
    assert timer["init_args"]["interval"] == "step"


@pytest.mark.parametrize(
    "key",
    ["data.task", "data.batch_size", "evaluation.episodes", "online.steps", "log.every_n_steps"],
)
def test_an_integer_cannot_be_null(key, refused, tmp_path):
    (tmp_path / "null.yaml").write_text(f"{key}: null\n")
    told = f"{key} is null, expected an integer"
    assert told in refused("fit", "--domain=scene", f"--config={tmp_path / 'null.yaml'}")
    assert told in refused("fit", "--domain=scene", f"--{key}=null")
