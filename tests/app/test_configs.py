"""Every method on every domain resolves to the paper's values (Tables 2, 3 and 4) and builds."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
from jsonargparse import Namespace

from qam_lightning.cli.compose import compose, domains
from qam_lightning.cli.training import FitCLI
from qam_lightning.util.configs import METHODS as FOLDER
from tests.app.conftest import Parsing
from tests.methods.test_every_method import discover

INF = float("inf")
METHODS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
DOMAINS = domains()

# The settings that carry a method's columns of Table 4.
COLUMNS: dict[str, tuple[str, ...]] = {
    "rebrac": ("alpha", "noise_scale"),
    "qsm": ("tau", "eta"),
    "dac": ("eta",),
    "fbrac": ("alpha",),
    "fql": ("alpha",),
    "dsrl": ("noise_scale",),
    "fedit": ("edit_scale",),
    "ifql": ("kappa",),
    "cgql": ("tau", "vartheta"),
    "cgql_mse": ("tau", "varrho", "vartheta"),
    "cgql_linex": ("tau", "varrho", "vartheta"),
    "qam": ("tau",),
    "bam": ("tau",),
    "qam_edit": ("tau", "edit_scale"),
    "qam_fql": ("tau", "alpha"),
    "fawac": ("tau",),
    "rlpd": (),
}

# Typed from Table 4, with the columns of CGQL in the order of COLUMNS and that of FAWAC added.
TABLE_4: dict[str, dict[str, tuple[float, ...]]] = {
    "scene": {
        "rebrac": (0.03, 0),
        "qsm": (3, 30),
        "dac": (1,),
        "fbrac": (100,),
        "fql": (300,),
        "dsrl": (0.4,),
        "fedit": (0.2,),
        "ifql": (0.9,),
        "cgql": (10, 0.1),
        "cgql_mse": (10, 0.1, 0.1),
        "cgql_linex": (10, 0.1, 0.1),
        "qam": (1,),
        "qam_edit": (1, 0),
        "qam_fql": (1, INF),
        "fawac": (6.4,),
    },
    "puzzle-3x3": {
        "rebrac": (0.1, 0),
        "qsm": (10, 30),
        "dac": (1,),
        "fbrac": (0.3,),
        "fql": (300,),
        "dsrl": (1,),
        "fedit": (0.2,),
        "ifql": (0.95,),
        "cgql": (10, 0.1),
        "cgql_mse": (10, 0.1, 0.1),
        "cgql_linex": (10, 0.001, 0.1),
        "qam": (3,),
        "qam_edit": (3, 0.1),
        "qam_fql": (3, INF),
        "fawac": (0.8,),
    },
    "puzzle-4x4": {
        "rebrac": (0.01, 0.2),
        "qsm": (10, 1),
        "dac": (1,),
        "fbrac": (0.3,),
        "fql": (1,),
        "dsrl": (1,),
        "fedit": (0.8,),
        "ifql": (0.9,),
        "cgql": (10, 0.1),
        "cgql_mse": (10, 0.001, 1),
        "cgql_linex": (10, 0.001, 1),
        "qam": (30,),
        "qam_edit": (3, 0.9),
        "qam_fql": (1, 3),
        "fawac": (0.8,),
    },
    "cube-double": {
        "rebrac": (0.01, 0),
        "qsm": (1, 10),
        "dac": (3,),
        "fbrac": (0.1,),
        "fql": (300,),
        "dsrl": (1,),
        "fedit": (0.2,),
        "ifql": (0.9,),
        "cgql": (10, 0.01),
        "cgql_mse": (10, 0.001, 0.01),
        "cgql_linex": (10, 0.001, 0.01),
        "qam": (1,),
        "qam_edit": (1, 0),
        "qam_fql": (1, INF),
        "fawac": (0.8,),
    },
    "cube-triple": {
        "rebrac": (0.01, 0.2),
        "qsm": (10, 10),
        "dac": (0.3,),
        "fbrac": (0.03,),
        "fql": (30,),
        "dsrl": (1.4,),
        "fedit": (0.3,),
        "ifql": (0.95,),
        "cgql": (10, 0.1),
        "cgql_mse": (10, 0.001, 0.1),
        "cgql_linex": (10, 0.001, 0.1),
        "qam": (10,),
        "qam_edit": (10, 0.1),
        "qam_fql": (10, 30),
        "fawac": (0.8,),
    },
    "cube-quadruple": {
        "rebrac": (0.01, 0.2),
        "qsm": (1, 10),
        "dac": (1,),
        "fbrac": (1,),
        "fql": (100,),
        "dsrl": (1.4,),
        "fedit": (0.4,),
        "ifql": (0.95,),
        "cgql": (10, 0.1),
        "cgql_mse": (10, 0.1, 0.01),
        "cgql_linex": (10, 0.1, 0.01),
        "qam": (1,),
        "qam_edit": (3, 0.5),
        "qam_fql": (1, 30),
        "fawac": (0.8,),
    },
    "antmaze-large": {
        "rebrac": (0.01, 0),
        "qsm": (10, 10),
        "dac": (0.3,),
        "fbrac": (0.1,),
        "fql": (3,),
        "dsrl": (0.8,),
        "fedit": (0.2,),
        "ifql": (0.9,),
        "cgql": (10, 0.1),
        "cgql_mse": (10, 0.1, 0.1),
        "cgql_linex": (10, 0.001, 0.1),
        "qam": (10,),
        "qam_edit": (1, 0.1),
        "qam_fql": (3, 30),
        "fawac": (6.4,),
    },
    "antmaze-giant": {
        "rebrac": (0.01, 0),
        "qsm": (10, 10),
        "dac": (0.3,),
        "fbrac": (0.1,),
        "fql": (3,),
        "dsrl": (1.2,),
        "fedit": (0.3,),
        "ifql": (0.8,),
        "cgql": (10, 0.1),
        "cgql_mse": (10, 0.001, 0.1),
        "cgql_linex": (10, 0.001, 0.1),
        "qam": (3,),
        "qam_edit": (3, 0.1),
        "qam_fql": (3, 300),
        "fawac": (0.8,),
    },
    "humanoidmaze-medium": {
        "rebrac": (0.01, 0),
        "qsm": (10, 30),
        "dac": (1,),
        "fbrac": (30,),
        "fql": (30,),
        "dsrl": (0.6,),
        "fedit": (0.5,),
        "ifql": (0.7,),
        "cgql": (10, 0.01),
        "cgql_mse": (10, 0.1, 0.1),
        "cgql_linex": (10, 0.1, 0.1),
        "qam": (3,),
        "qam_edit": (1, 0.1),
        "qam_fql": (3, INF),
        "fawac": (6.4,),
    },
    "humanoidmaze-large": {
        "rebrac": (0.01, 0.1),
        "qsm": (10, 30),
        "dac": (0.3,),
        "fbrac": (10,),
        "fql": (30,),
        "dsrl": (0.8,),
        "fedit": (0.1,),
        "ifql": (0.8,),
        "cgql": (10, 0.01),
        "cgql_mse": (10, 0.1, 0.1),
        "cgql_linex": (10, 0.1, 0.1),
        "qam": (3,),
        "qam_edit": (1, 0.1),
        "qam_fql": (1, 30),
        "fawac": (0.8,),
    },
}

# Typed from Table 2: dataset, default task, horizon, discount, rho, sparse.
TABLE_2: dict[str, tuple[str, int, int, float, float, bool]] = {
    "scene": ("play", 2, 5, 0.99, 0.5, True),
    "puzzle-3x3": ("play", 2, 5, 0.99, 0.5, True),
    "puzzle-4x4": ("play-100m", 2, 5, 0.99, 0.5, True),
    "cube-double": ("play", 2, 5, 0.99, 0.5, False),
    "cube-triple": ("play", 2, 5, 0.99, 0.5, False),
    "cube-quadruple": ("play-100m", 2, 5, 0.99, 0.5, False),
    "antmaze-large": ("navigate", 1, 1, 0.99, 0.5, False),
    "antmaze-giant": ("navigate", 1, 1, 0.995, 0.5, False),
    "humanoidmaze-medium": ("navigate", 1, 1, 0.995, 0.0, False),
    "humanoidmaze-large": ("navigate", 1, 1, 0.995, 0.0, False),
}

# Typed from Table 3.
NETWORKS = {"num_critics": 10, "flow_steps": 10, "width": 512, "depth": 4, "learning_rate": 3e-4}
NETWORKS |= {"lr_decay_steps": 0, "standardize": False}
CLIPPED = {"qsm", "dac", "qam", "qam_fql", "qam_edit", "bam"}  # BAM is trained as QAM is

# The other settings that a method's file may fix.
CHOICES = {name: {"residual": True} for name in ("qam", "bam", "qam_fql", "qam_edit")}


# Not in the paper: whose values they use.
TUNED_AS = {
    "cube-single": "cube-double",
    "pointmaze-medium": "antmaze-large",
    "pointmaze-large": "antmaze-large",
    "pointmaze-teleport": "antmaze-large",
    "pointmaze-giant": "antmaze-giant",
}

Resolve = Callable[[str, str], Namespace]


@pytest.fixture(scope="module")
def resolve() -> Resolve:
    """``resolve(method, domain)``: what ``fit --method ... --domain ...`` would use."""
    parser = Parsing(["--domain", "scene"]).parser

    def resolved(method: str, domain: str) -> Namespace:
        return parser.parse_args(compose(["--method", method, "--domain", domain]).arguments)

    return resolved


def test_the_tables_cover_the_papers_methods_and_domains() -> None:
    assert set(COLUMNS) <= set(METHODS)
    assert set(TABLE_4) == set(TABLE_2) and len(TABLE_2) == 10
    for row in TABLE_4.values():
        assert set(row) == set(COLUMNS) - {"bam", "rlpd"}  # QAM's values; none of its own
    named = {domain.replace("-", "_") for domain in (*TABLE_2, *TUNED_AS)}
    assert named == set(DOMAINS)


@pytest.mark.parametrize("method", COLUMNS)
def test_every_domain_resolves_to_the_papers_values(method: str, resolve: Resolve) -> None:
    for domain, (dataset, task, horizon, discount, rho, sparse) in TABLE_2.items():
        config = resolve(method, domain)
        row = TABLE_4[domain] | {"bam": TABLE_4[domain]["qam"], "rlpd": ()}
        expected: dict[str, Any] = {
            **NETWORKS,
            **dict(zip(COLUMNS[method], row[method], strict=True)),
            **CHOICES.get(method, {}),
            "discount": discount,
            "rho": rho,
            "target_rate": 0.005,
            "grad_clip": 1.0 if method in CLIPPED else 0.0,
            "grad_clip_mode": "norm",
            "best_of_n": 32 if method == "ifql" else 1,
        }
        model = vars(config.model.init_args)
        elsewhere = {"spaces", "compile", "seed", "freeze_behavior"}
        published = {"integrator": "shifted_euler", "sampler": "euler", "grid_power": 1.0}
        expected |= {name: value for name, value in published.items() if name in model}
        assert {k: v for k, v in model.items() if k not in elsewhere} == expected, domain
        data = config.data
        assert (config.method, config.domain, data.env) == (method, domain, domain)
        assert (data.dataset, data.task, data.horizon) == (dataset, task, horizon)
        assert (data.discount, data.sparse, data.batch_size) == (discount, sparse, 256)
        assert (config.online.utd_ratio, config.online.learning_starts) == (1, 5_000)
        assert (config.evaluation.every_n_steps, config.evaluation.episodes) == (50_000, 50)
        assert config.run_dir == f"runs/{domain}-task{task}-{method}-seed0"
        # All but RLPD train a million steps offline; their online phase is asked for.
        module, name = config.model.class_path.rsplit(".", 1)
        assert module == f"qam_lightning.methods.{method}"
        kind = getattr(importlib.import_module(module), name)
        assert kind.offline_phase == (method != "rlpd")
        assert config.trainer.max_steps == 1_000_000
        online = (500_000, "half") if method == "rlpd" else (0, "uniform")
        assert (config.online.steps, config.online.sampling) == online


@pytest.mark.parametrize(("domain", "like"), TUNED_AS.items())
def test_domains_outside_the_paper_are_set_like_one_of_its_own(
    domain: str, like: str, resolve: Resolve
) -> None:
    for method in ("qam", "ifql"):
        own, other = resolve(method, domain), resolve(method, like)
        assert own.domain == own.data.pop("env") == domain
        assert own.model == other.model
        del other.data["env"]
        assert own.data == other.data


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_builds(domain: str, tmp_path) -> None:
    cli = FitCLI([f"--domain={domain}", *small(tmp_path)])
    env = cli.datamodule._task_env
    assert env.spec.id.startswith(f"{domain.replace('_', '-')}-singletask-task")
    assert cli.model.spaces.obs_dim == env.observation_space.shape[0]
    assert cli.model.spaces.action_dim == env.action_space.shape[0]
    assert cli.model.spaces.horizon == cli.datamodule.horizon
    assert cli.model.discount == cli.datamodule.discount


@pytest.mark.parametrize("method", METHODS)
def test_every_method_builds(method: str, tmp_path) -> None:
    cli = FitCLI(["--domain=antmaze-giant", f"--method={method}", *small(tmp_path)])
    assert type(cli.model).__module__ == f"qam_lightning.methods.{method}"
    assert (cli.model.spaces.horizon, cli.model.discount) == (1, 0.995)


def small(folder) -> list[str]:
    size = ["--model.width=8", "--model.depth=1", "--trainer.accelerator=cpu"]
    return [*size, f"--run_dir={folder}"]


def test_there_is_a_configuration_for_every_method() -> None:
    assert METHODS == sorted(kind.__module__.rpartition(".")[2] for kind in discover())
