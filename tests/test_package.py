"""The package: its public names, and the wheel that `pip install` makes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import qam_lightning
from qam_lightning.util.configs import METHODS

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there():
    assert sorted(qam_lightning.__all__) == dir(qam_lightning)
    for name in qam_lightning.__all__:
        value = getattr(qam_lightning, name)
        assert value.__name__ == name and value.__module__.startswith("qam_lightning."), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        qam_lightning.nothing  # noqa: B018


def test_every_method_of_the_package_is_public():
    paths = [
        yaml.safe_load(path.read_text())["model"]["class_path"] for path in METHODS.glob("*.yaml")
    ]
    own = [path for path in paths if path.startswith("qam_lightning.")]
    assert {path.rpartition(".")[2] for path in own} <= set(qam_lightning.__all__)


def test_types_are_declared_for_every_public_name():
    text = Path(qam_lightning.__file__).read_text()
    block = text[text.index("if TYPE_CHECKING") : text.index("_MODULES")]
    scope: dict = {"TYPE_CHECKING": True}
    exec(block, scope)
    assert {name: scope[name] for name in qam_lightning.__all__} == {
        name: getattr(qam_lightning, name) for name in qam_lightning.__all__
    }


def test_importing_the_package_imports_nothing_else():
    code = "import sys, qam_lightning; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """``installed(*command)``: runs Python where the wheel is, and the checkout is not."""
    folder = tmp_path_factory.mktemp("wheel")
    source, target, elsewhere = (folder / name for name in ("source", "target", "elsewhere"))
    for name in ("qam_lightning", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    shutil.rmtree(source)
    elsewhere.mkdir()

    def run(*command):
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    run.target = target
    run.folder = elsewhere
    return run


def test_the_wheel_holds_package_configurations_and_types(installed):
    shown = installed("-c", "import qam_lightning as q; print(q.__file__, q.__version__)")
    assert shown.split() == [
        str(installed.target / "qam_lightning/__init__.py"),
        qam_lightning.__version__,
    ]
    assert (installed.target / "qam_lightning/py.typed").exists()
    for name in ("published.csv.gz", "published_license.txt"):
        assert (installed.target / "qam_lightning/reports" / name).exists()
    shipped = {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    package = installed.target / "qam_lightning"
    assert {path.relative_to(package) for path in package.rglob("configs/**/*.yaml")} == shipped
    for name in ("configs", "tests", "benchmarks", "train.py"):
        assert not (installed.target / name).exists()


def test_the_command_of_the_wheel_names_its_commands(installed):
    qam = installed.target / "bin/qam"
    assert "--best_of_n" in installed(qam, "eval", "--help")
    assert installed("-m", "qam_lightning", "--help").startswith("usage: python -m qam_lightning")


def test_the_wheel_trains_and_its_policy_acts(installed):
    qam = installed.target / "bin/qam"
    data = ["--dataset=navigate", "--episodes=1", "--episode_steps=30", "--workers=1"]
    installed(qam, "generate", "--env=pointmaze-medium", *data, "--directory=data")
    small = ["--model.width=8", "--model.depth=1", "--model.num_critics=2", "--model.flow_steps=2"]
    run = ["--data.directory=data", "--data.horizon=10", "--run_dir=run", "--trainer.max_steps=2"]
    brief = ["--evaluation.episodes=1", "--evaluation.workers=0", "--trainer.accelerator=cpu"]
    code = f"""
from qam_lightning import load_policy
from qam_lightning.cli import main
assert main({["fit", "--domain=pointmaze-medium", *small, *run, *brief]}) == 0
policy = load_policy("run")
env = policy.make_env()
observation, _ = env.reset(seed=0)
for _ in range(20):
    observation, *_ = env.step(policy(observation))
print(observation.shape)
"""
    assert installed("-c", code).endswith("\n(2,)\n")
    config = yaml.safe_load((installed.folder / "run/config.yaml").read_text())
    assert (config["domain"], config["data"]["dataset"]) == ("pointmaze-medium", "navigate")


@pytest.mark.slow
def test_the_laboratory_of_the_wheel_finds_every_method(installed):
    code = "from qam_lightning.laboratory.training import recipes; print(len(recipes()))"
    assert int(installed("-c", code)) == len(list(METHODS.glob("*.yaml")))
