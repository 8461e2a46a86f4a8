"""Checkpoints that were changed: one line and exit code 2, or a right result; nothing is written.

The cases are a choice of what a trial of every leaf and every key of a checkpoint found.
"""

import io
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qam_lightning.checkpoints import read_checkpoint
from qam_lightning.cli import main
from qam_lightning.methods.qam import QAM
from qam_lightning.policy import load_policy
from qam_lightning.util.errors import UserError
from tests.online.conftest import build, data  # noqa: F401  (data is a fixture)
from tests.thinning import thinned

STEPS = {"evaluation__every_n_steps": 100, "online__steps": 13}
MISSING = object()
Contents = dict[Path, bytes]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run with an online phase; tests copy it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(build(data, run, "--checkpoints.keep_last=1", **STEPS)) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def content(trained: Path) -> dict[str, Any]:
    return torch.load(trained / "checkpoints/last.ckpt", weights_only=True)


def changed(content: Any, place: tuple[Any, ...], change: Any) -> Any:
    """Return a copy with another value at a place: a value, `MISSING`, or a function of the old."""
    if not place:
        return change(content) if callable(change) else change
    copy = dict(content) if isinstance(content, dict) else list(content)
    if change is MISSING and len(place) == 1:
        del copy[place[0]]
    else:
        copy[place[0]] = changed(content[place[0]], place[1:], change)
    return tuple(copy) if isinstance(content, tuple) else copy


def contents(folder: Path) -> Contents:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def resume(run: Path, data: Path) -> Callable[..., int]:  # noqa: F811
    def command(**changes: Any) -> int:
        settings = {**STEPS, "online__steps": 14, **changes}
        return main(build(data, run, "--ckpt_path=last", **settings))

    return command


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The one line on standard error since the last look."""

    def read() -> str:
        (found,) = capsys.readouterr().err.splitlines()
        assert found.startswith("error: ")
        return found

    return read


ADAM = ("optimizer_states", 0, "state", 0)
GROUP = ("optimizer_states", 0, "param_groups", 0)
LOOP = ("loops", "fit_loop")
NAN = float("nan")
CRITIC = ("state_dict", "critic.hidden.0.weight")
ENTRY = "qam_lightning"
ACTOR = ("online", "actors", 0)

RESUME = [
    (
        (*ADAM, "exp_avg"),
        torch.ones(1),
        "exp_avg is a torch.float32 tensor of shape (1,), expected",
    ),
    ((*ADAM, "exp_avg"), lambda x: x * NAN, "exp_avg holds other numbers than finite ones"),
    ((*ADAM, "exp_avg_sq"), lambda x: x - 9, "holds other numbers than finite ones of at least 0"),
    ((*ADAM, "exp_avg_sq"), lambda x: x.to_sparse(), "expected a floating-point tensor of"),
    ((*ADAM, "exp_avg_sq"), None, "exp_avg_sq is None, expected a floating-point tensor"),
    ((*ADAM, "exp_avg_sq"), MISSING, "optimizer_states[0].state.0.exp_avg_sq is missing"),
    ((*ADAM, "step"), 3, "step is 3, expected a floating-point tensor without dimensions"),
    (
        (*ADAM, "step"),
        lambda x: x.to("meta"),
        "shape (), expected a floating-point tensor",
    ),
    ((*ADAM, "step"), torch.tensor(NAN), "step is nan, expected 0 to 7"),
    (ADAM, MISSING, "optimizer_states have states of [13] parameters, expected [14]"),
    (ADAM[:3], {}, "optimizer_states have states of [0] parameters"),
    ((*GROUP, "params"), lambda x: x[::-1], "params is of type list, expected the parameters'"),
    ((*GROUP, "betas"), MISSING, "param_groups[0].betas is missing"),
    ((*GROUP, "amsgrad"), True, "amsgrad is True, expected False"),
    ((*GROUP, "lr"), "x", "lr is 'x', expected a number"),
    (("optimizer_states",), [], "optimizer_states has 0 entries, expected 1"),
    (("optimizer_states",), MISSING, "optimizer_states is missing, so training cannot go on from"),
    (("callbacks",), MISSING, "callbacks is missing, so training cannot go on"),
    (("callbacks", "Evaluate", "latest"), 5, "callbacks.Evaluate.latest is 5, expected a mapping"),
    (("callbacks", "Checkpoints"), [], "callbacks.Checkpoints is of type list, expected a mapping"),
    ((*LOOP, "epoch_progress", "current"), MISSING, "epoch_progress.current is missing"),
    ((*LOOP, "epoch_progress", "total", "ready"), -1, "ready is -1, expected at least 0"),
    ((*LOOP, "state_dict"), {"combined_loader": 3}, "combined_loader is 3, expected a list"),
    (LOOP, "x", "loops.fit_loop is 'x', expected a mapping"),
    (("global_step",), 3, "total.ready is 7, expected global_step, 3"),
    (("online",), MISSING, "online is missing, but 13 environment steps were taken"),
    (("online", "rows"), 12, "online.rows is 12, expected counters.env_step, 13"),
    (("online", "crc32"), -1, "crc32 is -1, expected at least 0"),
    (("online", "crc32"), 7, "its first 13 environment steps are not those of the checkpoint"),
    (("online", "settings", "online.num_envs"), MISSING, "settings.online.num_envs is missing"),
    (("online", "statistics", "running"), {3: [0.0, 1.0]}, "statistics.running has entries of"),
    (("online", "statistics", "recent"), [[1.0, 2.0]], "statistics.recent[0] is list, expected"),
    ((*ACTOR, "length"), 99, "actors[0].length is 99, expected at most 13, its rows"),
    ((*ACTOR, "chunk"), [[0.0]], "online.actors[0].chunk has shape (1, 1), expected (3, 2)"),
    ((*ACTOR, "chunk"), [[NAN, 0.0]] * 3, "chunk[0][0] is nan, expected a finite number"),
]
"""What stops a resume only."""

ALWAYS = [
    (("counters",), MISSING, "counters is missing"),
    (("counters", "gradient_step"), -5, "counters.gradient_step is -5, expected at least 0"),
    (("counters", "gradient_step"), MISSING, "counters.gradient_step is missing"),
    (("counters", "gradient_step"), 10**300, "counters.gradient_step is an integer of many digits"),
    (("counters", "env_step"), 0, "counters.phase is online after 0 environment steps"),
    (("counters", "phase"), "a\nb", "counters.phase is 'a\\nb', expected 'offline' or 'online'"),
    (CRITIC, "x", "state_dict.critic.hidden.0.weight is 'x', expected a tensor"),
    (CRITIC, lambda x: x * NAN, "critic.hidden.0.weight holds numbers that are not finite"),
    (CRITIC, lambda x: x.int(), "critic.hidden.0.weight is of torch.int32, expected torch.float32"),
    (CRITIC, lambda x: x.to_sparse(), "is Tensor, expected a dense tensor"),
    (
        CRITIC,
        lambda x: x.to("meta"),
        "state_dict.critic.hidden.0.weight is Tensor, expected a dense",
    ),
    (("random", "numpy", 2), 10**6, "random.numpy is list, expected a state of numpy's generator"),
    (("random", "python"), [], "expected a state of Python's random"),
    (
        ("random", "torch"),
        lambda x: x[:9],
        "random.torch is Tensor, expected a state of torch's CPU",
    ),
    (("random",), MISSING, "random is missing"),
    (
        ("metrics", "loss"),
        torch.ones(2),
        "metrics.loss is Tensor, expected a tensor of one number",
    ),
    (("loops",), None, "loops is None, expected a mapping"),
    (("lr_schedulers",), 3, "lr_schedulers is 3, expected a list"),
    (("pytorch-lightning_version",), "1.0.0", "expected a version 2 of Lightning"),
    ((ENTRY,), [], "holds no 'qam_lightning' entry"),
    ((ENTRY, "format"), True, "whose checkpoints this version does not read"),
    ((ENTRY, "method"), "os", "qam_lightning.method is 'os', expected the full name of a class"),
    ((ENTRY, "environment", "task"), "1", "environment is dict, expected nothing, or env and"),
    ((ENTRY, "versions", "torch"), 2, "qam_lightning.versions.torch is 2, expected a text"),
    ((ENTRY, "versions"), {"torch": "1\n2"}, "versions.torch is '1\\n2', expected the name of a"),
    ((ENTRY, "config"), "a: b: c", "expected a configuration, a mapping in YAML"),
]
"""What stops every use."""

BUILDING = [
    (CRITIC, MISSING, "weights do not fit qam_lightning.methods.qam.QAM: critic.hidden.0.weight"),
    (CRITIC, torch.ones(()).expand(10**12), "has shape (1000000000000,), expected (2, 9, 8)"),
    ((ENTRY, "model"), {}, "cannot build qam_lightning.methods.qam.QAM: "),
    ((ENTRY, "model", "width"), 10**12, "QAM: width is 1000000000000: with "),
    ((ENTRY, "model", "width"), 10**400, "expected an integer of 64 bits"),
    ((ENTRY, "model", "depth"), 10**9, "QAM: depth is 1000000000, expected at least 1 and at most"),
    ((ENTRY, "model", "flow_steps"), None, "QAM: flow_steps is None, expected an integer"),
    ((ENTRY, "model", "spaces"), 3, "cannot build qam_lightning.methods.qam.QAM"),
    ((ENTRY, "model", "spaces", "obs_dim"), 10**12, "networks would take"),
]
"""What stops the policy from being built; a resume builds it from the configuration."""


def named(case: Any) -> str | None:
    return ".".join(map(str, case)) if isinstance(case, tuple) else None


@pytest.mark.parametrize(("place", "change", "told"), thinned([*RESUME, *ALWAYS], 8), ids=named)
def test_a_resume_is_refused(
    place: Any,
    change: Any,
    told: str,
    run: Path,
    content: Any,
    resume: Callable[..., int],
    line: Callable[[], str],
) -> None:
    torch.save(changed(content, place, change), run / "checkpoints/last.ckpt")
    before = contents(run)
    assert resume() == 2
    assert told in line()
    assert contents(run) == before


@pytest.mark.parametrize(("place", "change", "told"), [*ALWAYS, *BUILDING], ids=named)
def test_a_policy_is_refused(
    place: Any, change: Any, told: str, run: Path, content: Any, line: Callable[[], str]
) -> None:
    torch.save(changed(content, place, change), run / "checkpoints/last.ckpt")
    before = contents(run)
    with pytest.raises(UserError) as error:
        load_policy(run)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert main(["eval", str(run), "--episodes=1", "--workers=0"]) == 2
    assert told in line()
    assert contents(run) == before


def test_a_seeded_choice_of_changes_ends_in_a_line_or_in_a_run(
    content: Any,
    run: Path,
    resume: Callable[..., int],
    line: Callable[[], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Some leaves and keys at random, with values of other kinds."""
    choice = random.Random(12)
    places = [place for place in leaves(content) if place and "hyper" not in str(place[0])]
    kept = contents(run)
    for place in choice.sample(places, 12):
        value = choice.choice([MISSING, None, "x\n\0", -1, NAN, [], {}, 10**400, torch.ones(1)])
        for path, old in kept.items():
            path.write_bytes(old)
        torch.save(changed(content, place, value), run / "checkpoints/last.ckpt")
        before = contents(run)
        capsys.readouterr()  # what an earlier run said
        code = resume()
        if code == 2:
            assert str(run) in line(), (place, value)
            assert contents(run) == before, (place, value)
        else:
            assert code == 0, (place, value)
            last = read_checkpoint(run / "checkpoints/last.ckpt")
            assert last["counters"]["gradient_step"] == 8, (place, value)


def leaves(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, (*place, key))
    elif isinstance(content, list | tuple) and len(content) < 20:
        for key, value in enumerate(content):
            yield from leaves(value, (*place, key))


# -- names -----------------------------------------------------------------------------------------

MODULE = """
import pathlib
pathlib.Path("imported").touch()
import gymnasium
from qam_lightning.methods.qam import QAM
class Mine(QAM): pass
"""


@pytest.mark.parametrize("key", ["method", "environment"])
def test_a_checkpoint_imports_nothing(
    key: str,
    run: Path,
    content: Any,
    line: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not a method's module, nor an environment's, unless the user names it."""
    module = f"of_a_file_{key}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = run / "checkpoints/last.ckpt"
    place, name = (
        (("method",), ".Mine") if key == "method" else (("environment", "env"), ":None-v0")
    )
    torch.save(changed(content, (ENTRY, *place), module + name), path)
    command = ["eval", str(run), "--episodes=1", "--workers=0"]
    assert main(command) == 2
    assert f"{module} is not imported; a checkpoint imports nothing by itself" in line()
    assert not (tmp_path / "imported").exists() and module not in sys.modules
    if key == "method":
        with pytest.raises(UserError, match="or give load_policy the class as method"):
            load_policy(run)
        assert type(load_policy(run, method=QAM).method) is QAM
        with pytest.raises(
            UserError, match="^load_policy: method is 3, expected a class of Method"
        ):
            load_policy(run, method=3)  # type: ignore[arg-type]
        assert main([*command, "--import", module]) == 0
        assert type(load_policy(run).method).__name__ == "Mine"
    else:
        with pytest.raises(UserError, match="Policy: its environment .* or give make_env the env"):
            load_policy(run).make_env()
        assert load_policy(run).make_env(env="Pendulum-v1") is not None
        assert main([*command, "--import", module]) == 2
        assert "gymnasium cannot make" in line()
    assert (tmp_path / "imported").exists()
    sys.modules.pop(module)


@pytest.mark.parametrize("name", ["qam_lightning.__main__.x", "qam_lightning.methods.base.nothing"])
def test_of_this_package_only_methods_are_found(name: str, run: Path, content: Any) -> None:
    torch.save(changed(content, (ENTRY, "method"), name), run / "checkpoints/last.ckpt")
    with pytest.raises(UserError, match="its method .* cannot be found: "):
        load_policy(run)


def test_a_module_that_cannot_be_imported_is_named(run: Path, line: Callable[[], str]) -> None:
    assert main(["eval", str(run), "--import", "no.such"]) == 2
    assert "--import no.such: cannot be imported: No module named 'no'" in line()


# -- archives and configurations -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["compressed", "repeated", "pipe", "folder"])
def test_an_archive_never_grows(kind: str, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    if kind == "compressed":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(10**7))
    elif kind == "repeated":  # two entries of one content
        content = io.BytesIO((trained / "checkpoints/last.ckpt").read_bytes())
        with zipfile.ZipFile(content, "a") as archive:
            archive.filelist += archive.filelist
            archive._didModify = True  # type: ignore[attr-defined]
        path.write_bytes(content.getvalue())
    else:
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(UserError, match="not a readable checkpoint|no regular file"):
        read_checkpoint(path)


# -- other ways ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_moments_of_another_shape_end_no_process(
    run: Path,
    content: Any,
    data: Path,  # noqa: F811
) -> None:
    """A plain trainer, which reads the file itself: fused Adam wrote beyond the tensors."""
    path = run / "checkpoints/last.ckpt"
    torch.save(changed(content, (*ADAM, "exp_avg"), torch.ones(1)), path)
    script = f"""
import lightning.pytorch as pl, tests.online.tiny
from qam_lightning import QAM, ChunkDataModule, Spaces
path = {str(data)!r}
data = ChunkDataModule("tests.online.tiny:Tiny-v0", "none", path=path, horizon=3, batch_size=8)
method = QAM(Spaces(3, 2, 3), tau=1.0, width=8, depth=1, num_critics=2, flow_steps=2, discount=0.99)
quiet = dict(logger=False, enable_progress_bar=False, enable_checkpointing=False)
pl.Trainer(max_steps=9, accelerator="cpu", **quiet).fit(method, data, ckpt_path={str(path)!r})
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 1  # a traceback, as everywhere in Python
    assert "UserError" in ended.stderr and "exp_avg is a torch.float32 tensor of" in ended.stderr
