"""Every method on every domain resolves to the paper's hyperparameters (Tables 2, 3 and 4)."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
from jsonargparse import ArgumentParser, Namespace

from qam_lightning.cli import CONFIGS, FitCLI, expand

INF = float("inf")
METHODS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))

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

# Typed from Table 2: chunk, discount, rho, sparse, default task.
DOMAINS: dict[str, tuple[int, float, float, bool, int]] = {
    "scene": (5, 0.99, 0.5, True, 2),
    "puzzle-3x3": (5, 0.99, 0.5, True, 2),
    "puzzle-4x4": (5, 0.99, 0.5, True, 2),
    "cube-double": (5, 0.99, 0.5, False, 2),
    "cube-triple": (5, 0.99, 0.5, False, 2),
    "cube-quadruple": (5, 0.99, 0.5, False, 2),
    "antmaze-large": (1, 0.99, 0.5, False, 1),
    "antmaze-giant": (1, 0.995, 0.5, False, 1),
    "humanoidmaze-medium": (1, 0.995, 0.0, False, 1),
    "humanoidmaze-large": (1, 0.995, 0.0, False, 1),
}

# Typed from Table 3.
NETWORKS = {"num_critics": 10, "flow_steps": 10, "width": 512, "depth": 4, "learning_rate": 3e-4}
NETWORKS |= {"lr_decay_steps": 0, "standardize": False}
CLIPPED = {"qsm", "dac", "qam", "qam_fql", "qam_edit", "bam"}  # BAM is trained as QAM is

# The other settings that a method's file may fix.
CHOICES = {name: {"residual": True} for name in ("qam", "bam", "qam_fql", "qam_edit")}


class Parsing(FitCLI):
    """The command's own parser; nothing is built."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...


@pytest.fixture(scope="module")
def resolve() -> Callable[[str, str], Namespace]:
    """``resolve(method, domain)``: what ``fit --method ... --domain ...`` would use."""
    parser: ArgumentParser = Parsing(["--domain", "scene"]).parser

    def resolved(method: str, domain: str) -> Namespace:
        arguments, defaults = expand(["--method", method, "--domain", domain])
        parser.default_config_files = [str(path) for path in defaults]
        return parser.parse_args(arguments)

    return resolved


def test_the_tables_cover_every_method_and_domain() -> None:
    assert set(METHODS) == set(COLUMNS)
    assert set(TABLE_4) == set(DOMAINS) and len(DOMAINS) == 10
    for row in TABLE_4.values():
        assert set(row) == set(COLUMNS) - {"bam", "rlpd"}  # QAM's values; none of its own
    shipped = {path.stem.replace("_", "-") for path in CONFIGS.glob("*.yaml")}
    assert set(DOMAINS) <= shipped


@pytest.mark.parametrize("method", METHODS)
def test_every_domain_resolves_to_the_papers_values(
    method: str, resolve: Callable[[str, str], Namespace]
) -> None:
    for domain, (chunk, discount, rho, sparse, task) in DOMAINS.items():
        config = resolve(method, domain)
        row = TABLE_4[domain] | {"bam": TABLE_4[domain]["qam"], "rlpd": ()}
        expected: dict[str, Any] = {
            **NETWORKS,
            **dict(zip(COLUMNS[method], row[method], strict=True)),
            **CHOICES.get(method, {}),
            "horizon": chunk,
            "discount": discount,
            "rho": rho,
            "grad_clip": 1.0 if method in CLIPPED else 0.0,
            "grad_clip_mode": "norm",
            "best_of_n": 32 if method == "ifql" else 1,
        }
        model = vars(config.model.init_args)
        elsewhere = {"obs_dim", "action_dim", "compile", "seed"}
        assert {k: v for k, v in model.items() if k not in elsewhere} == expected, domain
        data = config.data
        assert (config.domain, data.env, data.task) == (domain, domain, task)
        assert (data.horizon, data.discount, data.sparse) == (chunk, discount, sparse)
        assert (data.batch_size, config.ema.rate) == (256, 0.005)
        assert (config.online.utd_ratio, config.online.learning_starts) == (1, 5_000)


@pytest.mark.parametrize("method", METHODS)
def test_all_but_rlpd_train_a_million_steps_offline(
    method: str, resolve: Callable[[str, str], Namespace]
) -> None:
    config = resolve(method, "cube-triple")
    module, name = config.model.class_path.rsplit(".", 1)
    assert getattr(importlib.import_module(module), name).offline_phase == (method != "rlpd")
    assert config.trainer.max_steps == 1_000_000
    # The others' online phase is asked for with --online.steps.
    online = (500_000, "half") if method == "rlpd" else (0, "uniform")
    assert (config.online.steps, config.online.sampling) == online
