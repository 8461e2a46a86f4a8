"""Every shipped configuration resolves to the paper's values and builds."""

import functools
from pathlib import Path

import pytest
import yaml

from qam_lightning.cli import CONFIGS, FitCLI, find_config
from qam_lightning.data import datamodule
from qam_lightning.util.errors import UserError

DOMAINS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "base")
METHODS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))
INF = float("inf")

# Typed from Table 2: dataset, default task, chunk, discount, rho, sparse.
TABLE_2 = {
    "antmaze_large": ("navigate", 1, 1, 0.99, 0.5, False),
    "antmaze_giant": ("navigate", 1, 1, 0.995, 0.5, False),
    "humanoidmaze_medium": ("navigate", 1, 1, 0.995, 0.0, False),
    "humanoidmaze_large": ("navigate", 1, 1, 0.995, 0.0, False),
    "scene": ("play", 2, 5, 0.99, 0.5, True),
    "puzzle_3x3": ("play", 2, 5, 0.99, 0.5, True),
    "cube_double": ("play", 2, 5, 0.99, 0.5, False),
    "cube_triple": ("play", 2, 5, 0.99, 0.5, False),
    "puzzle_4x4": ("play-100m", 2, 5, 0.99, 0.5, True),
    "cube_quadruple": ("play-100m", 2, 5, 0.99, 0.5, False),
}
# Typed from Table 4: QAM tau; QAM-FQL tau, alpha; QAM-EDIT tau, sigma_a.
TABLE_4 = {
    "antmaze_large": (10, 3, 30, 1, 0.1),
    "antmaze_giant": (3, 3, 300, 3, 0.1),
    "humanoidmaze_medium": (3, 3, INF, 1, 0.1),
    "humanoidmaze_large": (3, 1, 30, 1, 0.1),
    "scene": (1, 1, INF, 1, 0),
    "puzzle_3x3": (3, 3, INF, 3, 0.1),
    "cube_double": (1, 1, INF, 1, 0),
    "cube_triple": (10, 10, 30, 10, 0.1),
    "puzzle_4x4": (30, 1, 3, 3, 0.9),
    "cube_quadruple": (1, 1, 30, 3, 0.5),
}
# Not in the paper: whose values they use.
TUNED_AS = {
    "cube_single": "cube_double",
    "pointmaze_medium": "antmaze_large",
    "pointmaze_large": "antmaze_large",
    "pointmaze_teleport": "antmaze_large",
    "pointmaze_giant": "antmaze_giant",
}
TABLE_3 = {
    "num_critics": 10,
    "flow_steps": 10,
    "width": 512,
    "depth": 4,
    "learning_rate": 3e-4,
    "lr_decay_steps": 0,
    "standardize": False,
    "best_of_n": 1,
}


@pytest.mark.parametrize("domain", TABLE_2)
def test_domain_has_the_values_of_tables_2_and_3(domain, resolved):
    config = resolved("--config", f"{domain}.yaml")
    dataset, task, chunk, discount, rho, sparse = TABLE_2[domain]
    data, model = config["data"], config["model"]["init_args"]
    assert config["domain"] == data["env"] == domain.replace("_", "-")
    assert (data["dataset"], data["task"], data["horizon"]) == (dataset, task, chunk)
    assert (data["discount"], data["sparse"], data["batch_size"]) == (discount, sparse, 256)
    assert model["rho"] == rho
    assert {key: model[key] for key in TABLE_3} == TABLE_3
    assert config["ema"] == {"rate": 0.005}
    assert config["trainer"]["max_steps"] == 1_000_000
    assert (config["evaluation"]["every"], config["evaluation"]["episodes"]) == (50_000, 50)
    assert config["method"] == "qam"
    assert config["run_dir"] == f"runs/{domain.replace('_', '-')}-task{task}-qam-seed0"


@pytest.mark.parametrize("domain", TABLE_4)
def test_methods_have_the_values_of_table_4(domain, resolved):
    qam, fql_tau, fql_alpha, edit_tau, edit_scale = TABLE_4[domain]
    expected = {
        "qam": {"tau": qam},
        "bam": {"tau": qam},
        "qam_fql": {"tau": fql_tau, "alpha": fql_alpha},
        "qam_edit": {"tau": edit_tau, "edit_scale": edit_scale},
    }
    for method, values in expected.items():
        config = resolved("--config", f"{domain}.yaml", "--config", f"methods/{method}.yaml")
        model = config["model"]["init_args"]
        assert {key: model[key] for key in values} == values
        assert (model["residual"], model["grad_clip"], model["grad_clip_mode"]) == (
            True,
            1.0,
            "norm",
        )


@pytest.mark.parametrize(("domain", "like"), TUNED_AS.items())
def test_domains_outside_the_paper_are_set_like_one_of_its_own(domain, like, resolved):
    own, other = resolved("--domain", domain), resolved("--domain", like)
    assert own["domain"] == own["data"].pop("env") == domain.replace("_", "-")
    assert own["model"] == other["model"]
    del other["data"]["env"]
    assert own["data"] == other["data"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_builds_with_every_method(domain, monkeypatch, tmp_path):
    make = functools.cache(datamodule.make_task_env)  # the same real environment for all methods
    monkeypatch.setattr(datamodule, "make_task_env", make)
    small = ["--model.width=8", "--model.depth=1", f"--run_dir={tmp_path}"]
    cpu = ["--trainer.accelerator=cpu"]
    for method in METHODS:
        cli = FitCLI([f"--config={domain}.yaml", f"--config=methods/{method}.yaml", *small, *cpu])
        assert type(cli.model).__module__ == f"qam_lightning.methods.{method}"
        assert cli.config.method == method
        assert cli.model.obs_dim == make(cli.config.data.env, 1).observation_space.shape[0]
        assert (cli.model.horizon, cli.model.discount) == (
            cli.datamodule.horizon,
            cli.datamodule.discount,
        )


def test_there_is_a_configuration_for_every_method():
    files = Path(datamodule.__file__).parent.parent.glob("methods/*.py")
    assert METHODS == sorted(path.stem for path in files if path.stem not in ("__init__", "base"))


# -- later files and flags -----------------------------------------------------------------------


def tau(config):
    return config["model"]["init_args"]["tau"]


def test_a_later_domain_leaves_nothing_stale(resolved):
    config = resolved("--config", "scene.yaml", "--config", "cube_triple.yaml")
    assert (tau(config), config["data"]["env"]) == (10, "cube-triple")
    assert config["run_dir"].startswith("runs/cube-triple-")
    config = resolved("--config", "cube_triple.yaml", "--domain", "scene", "--seed", "4")
    assert (tau(config), config["data"]["env"]) == (1, "scene")
    assert config["run_dir"] == "runs/scene-task2-qam-seed4"
    for earlier in ("humanoidmaze_large", "pointmaze_giant", "cube_single"):
        left = resolved("--domain", earlier, "--config", "scene.yaml", "--method", "qam_fql")
        assert left == resolved("--config", "scene.yaml", "--method", "qam_fql")


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
def test_the_method_flag_equals_its_file(method, resolved):
    by_file = resolved("--config", "cube_triple.yaml", "--config", f"methods/{method}.yaml")
    assert resolved("--config", f"methods/{method}.yaml", "-c", "cube_triple.yaml") == by_file
    assert resolved("--domain", "cube-triple", "--method", method) == by_file
    assert resolved(f"--method={method}", "--domain=cube_triple") == by_file


def test_nothing_of_the_default_method_is_left_over(resolved, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {class_path: qam_lightning.methods.bam.BAM, init_args: {tau: 1}}\n")
    arguments = ["--config", "scene.yaml", "--config", str(mine), "--model.residual", "true"]
    config = resolved(*arguments)
    assert config["model"]["init_args"]["grad_clip"] == 0.0
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


# -- names ---------------------------------------------------------------------------------------


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
