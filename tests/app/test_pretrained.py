"""Runs that start from another run's clone, at the front door."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from qam_lightning import ChunkDataModule, load_clone, load_policy
from qam_lightning.checkpoints import describe, fingerprint, last_checkpoints, load_method
from qam_lightning.cli import main
from qam_lightning.methods.base import Method
from qam_lightning.methods.fql import FQL
from qam_lightning.methods.qam import QAM
from qam_lightning.util.errors import ArgumentError, UserError
from tests.export.test_lerobot import TINY
from tests.methods.test_every_method import METHODS, make
from tests.online.conftest import ENV
from tests.online.conftest import build as small_run
from tests.online.test_online import assert_same_runs, kill_at, last, table
from tests.online.tiny import Tiny

CLONE = ("behavior.", "behavior_ema.", "obs_norm.")
OFFLINE = {"online__steps": 0}
OTHER = "tests.app.test_pretrained:Other-v0"
gymnasium.register("Other-v0", Tiny, max_episode_steps=5)  # of the same sizes

Sources = Callable[[str], Path]


@pytest.fixture(scope="session")
def sources(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """``sources(method)``: the folder of a finished run of a method, with a clone or without."""
    made: dict[str, Path] = {}

    def source(method: str) -> Path:
        if method not in made:
            folder = tmp_path_factory.mktemp(method) / "clone"
            flags = ("--model.standardize=true", *flags_of(method))
            assert main(small_run(tiny_data, folder, *flags, **OFFLINE)) == 0
            made[method] = folder
        return made[method]

    return source


def flags_of(method: str) -> list[str]:
    own = {"fql": ["alpha=1"], "rebrac": ["alpha=1", "noise_scale=0.1"]}.get(method, [])
    return [f"--method={method}", *(f"--model.{setting}" for setting in own)]


def weights(run: Path, name: str = "last", parts: tuple[str, ...] = CLONE) -> dict[str, Tensor]:
    method, _ = load_method(run / "checkpoints" / f"{name}.ckpt")
    return {key: x for key, x in method.state_dict().items() if key.startswith(parts)}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[key]) for key, x in one.items())


def started(data: Path, run: Path, clone: Path, *flags: str, **changes: Any) -> list[str]:
    """Arguments of a run from a clone that keeps its first checkpoint as ``last-1``."""
    own = ("--model.standardize=true", f"--pretrained={clone}", *flags)
    return small_run(data, run, "--checkpoints.keep_last=9", *own, **{**OFFLINE, **changes})


def test_a_run_starts_from_the_clone_to_the_bit_and_goes_on_cloning(
    tiny_data: Path, sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone, run = sources("bc"), tmp_path / "run"
    path = clone / "checkpoints/last.ckpt"
    capsys.readouterr()
    assert main(started(tiny_data, run, clone, "--model.tau=1")) == 0
    assert f"starts from {path}, of gradient step 4\n" in capsys.readouterr().out
    origin = last(run)["qam_lightning"]["pretrained"]
    assert (origin["path"], origin["fingerprint"]) == (str(path), fingerprint(path))
    assert (origin["method"], origin["gradient_step"]) == ("qam_lightning.methods.bc.BC", 4)
    assert origin["versions"] == last(clone)["qam_lightning"]["versions"]
    assert origin["data"]["env"] == ENV and len(origin["data"]["fingerprint"]) == 16
    assert yaml.safe_load((run / "config.yaml").read_text())["pretrained"] == str(clone)
    theirs = weights(clone)
    assert any(name.startswith("behavior_ema.") for name in theirs)
    assert not equal({"mean": theirs["obs_norm.mean"]}, {"mean": torch.zeros(3)})
    assert equal(weights(run, "last-1"), theirs)
    assert last(run)["counters"]["gradient_step"] == 4
    assert not equal(weights(run), theirs)
    assert equal(weights(run, parts=("obs_norm.",)), weights(clone, parts=("obs_norm.",)))


def test_a_frozen_clone_stays_and_costs_nothing(
    tiny_data: Path, sources: Sources, tmp_path: Path
) -> None:
    clone, run = sources("bc"), tmp_path / "run"
    flags = ("--model.tau=1", "--model.freeze_behavior=true")
    assert main(started(tiny_data, run, clone, *flags)) == 0
    flow = weights(clone, parts=("behavior.",))  # the average of what never moves
    average = {name.replace("behavior.", "behavior_ema."): x for name, x in flow.items()}
    assert equal(weights(run), flow | average | weights(clone, parts=("obs_norm.",)))
    before = weights(run, "last-1", ("fine_tuned.", "critic."))
    assert not equal(weights(run, parts=("fine_tuned.", "critic.")), before)
    assert "actor/flow_loss" not in table(run)[0]
    method, _ = load_method(run)
    trained = [name for name, p in method.named_parameters() if p.requires_grad]
    assert not any(name.startswith("behavior.") for name in trained)
    assert len(last(run)["optimizer_states"][0]["state"]) == len(trained)


def test_a_killed_run_goes_on_to_the_bit_without_the_clones_run(
    tiny_data: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone, runs = tmp_path / "clone", [tmp_path / "whole", tmp_path / "killed"]
    shutil.copytree(sources("bc"), clone)
    flags = ("--model.tau=1", "--model.freeze_behavior=true", "--checkpoints.every_n_steps=3")
    online = {"online__steps": 24}
    assert main(started(tiny_data, runs[0], clone, *flags, **online)) == 0
    arguments = started(tiny_data, runs[1], clone, *flags, **online)
    for step in (4, 11):
        resume = ["--ckpt_path=last"] if step > 4 else []
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            kill_at(patch, step)
            main([*arguments, *resume])
        if clone.exists():
            shutil.rmtree(clone)
    assert main([*arguments, "--ckpt_path=last"]) == 0
    assert_same_runs(*runs)


def test_a_run_that_goes_on_does_not_start_from_another_clone(
    tiny_data: Path, sources: Sources, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    assert main(started(tiny_data, run, sources("bc"), "--model.tau=1")) == 0
    resume = ("--model.tau=1", "--ckpt_path=last")
    line = refused(*started(tiny_data, run, tmp_path / "other", *resume))
    assert f"its run began otherwise (pretrained: {sources('bc')} -> {tmp_path / 'other'})" in line
    frozen = started(tiny_data, run, sources("bc"), *resume, "--model.freeze_behavior=true")
    assert "(model.freeze_behavior: False -> True); undo that" in refused(*frozen)
    full = started(tiny_data, run, sources("bc"), *resume, "--model.residual=false")
    assert "(model.residual: True -> False); undo that" in refused(*full)


def test_a_clone_that_is_not_trained_to_its_end_is_not_taken_unasked(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    clone, run = tmp_path / "clone", tmp_path / "run"
    flags = ("--method=bc", "--model.standardize=true", "--checkpoints.every_n_steps=1")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        kill_at(patch, 4)
        main(small_run(tiny_data, clone, *flags, "--checkpoints.keep_last=9", **OFFLINE))
    last, *_, first = last_checkpoints(clone)
    line = refused(*started(tiny_data, run, clone, "--model.tau=1"))
    steps = describe(last).gradient_step
    assert f"{clone}: the run is not finished (it has taken {steps} gradient steps); let it" in line
    assert f"name one of its checkpoint files, such as {last}" in line
    line = refused(*started(tiny_data, run, first, "--model.tau=1"))
    assert f"{first}: its behaviour flow has not been trained yet (gradient step 0)" in line
    assert not run.exists()
    assert main(started(tiny_data, run, last, "--model.tau=1")) == 0


def test_a_checkpoint_of_a_version_without_the_settings_goes_on(
    tiny_data: Path, sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    path = run / "checkpoints/last.ckpt"
    shutil.copytree(sources("bc"), run)
    checkpoint = torch.load(path, weights_only=True)
    settings = yaml.safe_load(checkpoint["qam_lightning"]["config"])
    del settings["pretrained"], settings["model"]["init_args"]["freeze_behavior"]
    checkpoint["qam_lightning"]["config"] = yaml.safe_dump(settings)
    torch.save(checkpoint, path)
    flags = ("--method=bc", "--model.standardize=true", "--ckpt_path=last")
    assert main(small_run(tiny_data, run, *flags, trainer__max_steps=5, **OFFLINE)) == 0
    assert "freeze_behavior" not in capsys.readouterr().out
    assert last(run)["counters"]["gradient_step"] == 5


def test_a_run_starts_from_an_exported_clone(
    tiny_data: Path, sources: Sources, tmp_path: Path, refused: Callable[..., str]
) -> None:
    clone, run, flags = tmp_path / "clone", tmp_path / "run", ["--model.tau=1"]
    load_policy(sources("bc")).export(clone, formats=(), episodes=0)
    smaller = refused(*started(tiny_data, run, clone, *flags, "--data.fraction=0.5"))
    assert f"data.fraction is 0.5, but the clone in {clone} learned from" in smaller
    wider = refused(*started(tiny_data, run, clone, *flags, "--model.width=16"))
    assert "its clone has width 8, but QAM has width 16" in wider
    one_step = refused(*started(tiny_data, run, TINY, *flags))
    assert "no behaviour flow, as only what FQL acts with was exported; name a run" in one_step
    assert not run.exists()
    assert main(started(tiny_data, run, clone, *flags)) == 0
    flow = ("behavior.", "obs_norm.")
    assert equal(weights(run, "last-1", flow), weights(sources("bc"), parts=flow))
    origin = last(run)["qam_lightning"]["pretrained"]
    assert origin["path"] == str(clone)
    assert origin["data"] == last(sources("bc"))["qam_lightning"]["data"]


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_every_method_that_clones_can_start_from_a_clone(
    kind: type[Method], sources: Sources, build: Callable[..., Method]
) -> None:
    sizes = {"obs_dim": 3, "action_dim": 2, "horizon": 3, "width": 8, "depth": 1}
    method = make(kind, build, **sizes, standardize=True)
    if not method.clones_behavior:
        with pytest.raises(UserError, match=f"^{kind.__name__} clones no behaviour flow, so it "):
            load_clone(method, sources("bc"))
        return
    load_clone(method, sources("bc"))
    found = {name: x for name, x in method.state_dict().items() if name.startswith(CLONE)}
    theirs = weights(sources("bc"))
    assert {"behavior.mlp.layers.0.weight", "obs_norm.mean"} <= found.keys()
    assert equal(found, {name: theirs[name] for name in found})


def test_a_source_without_an_average_gives_its_flow_for_both(
    sources: Sources, build: Callable[..., Method]
) -> None:
    sizes = {"obs_dim": 3, "action_dim": 2, "horizon": 3, "width": 8, "depth": 1}
    method = make(QAM, build, **sizes, standardize=True)
    load_clone(method, sources("fql") / "checkpoints/last.ckpt")
    flow = weights(sources("fql"), parts=("behavior.",))
    for module in (method.behavior, method.behavior_ema):
        assert equal({f"behavior.{n}": x for n, x in module.state_dict().items()}, flow)


@pytest.mark.parametrize("source", ["bc", "fql"])
@pytest.mark.parametrize("residual", [False, True])
def test_a_full_velocity_starts_at_the_clones_average(
    residual: bool, source: str, sources: Sources, build: Callable[..., Method]
) -> None:
    sizes = {"obs_dim": 3, "action_dim": 2, "horizon": 3, "width": 8, "depth": 1}
    method = make(QAM, build, **sizes, standardize=True, residual=residual)
    load_clone(method, sources(source))
    fine_tuned, average = method.fine_tuned.state_dict(), method.behavior_ema.state_dict()
    assert equal(fine_tuned, average) == (not residual)
    assert equal(method.behavior.state_dict(), average) == (source == "fql")  # keeps no average


def test_a_trust_regions_first_update_finds_no_divergence_from_the_clone(
    tiny_data: Path, sources: Sources, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ("--method=trqam", "--log.every_n_steps=1")
    assert main(started(tiny_data, run, sources("bc"), *flags)) == 0
    first, second, *_ = (float(row["actor/kl"]) for row in table(run))
    assert abs(first) < 1e-10 < 1e-6 < second


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pretrained=nowhere"], "nowhere: no such checkpoint file"),
        (["--pretrained=hf://me"], "hf://me: is no place on the hub, expected hf://owner/name"),
        (["--method=rebrac"], "ReBRAC clones no behaviour flow, so it cannot start from"),
        (["--method=dac"], "DAC clones no behaviour flow, so it cannot start from"),
        (
            ["--model.width=16", "--model.depth=2"],
            "its clone has width 8 and depth 1, but QAM has width 16 and depth 2; make them the",
        ),
        (["--data.horizon=2"], "its clone has horizon 3, but QAM has horizon 2"),
        (["--model.standardize=false"], "its clone has standardize True, but QAM has standardize"),
        (["--data.fraction=0.5"], "data.fraction is 0.5, but the clone in"),
        ([f"--data.env={OTHER}"], f"data.env is {OTHER}, but the clone in"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_begins(
    flags: list[str],
    said: str,
    tiny_data: Path,
    sources: Sources,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    own = {"--method=rebrac": flags_of("rebrac"), "--method=dac": ["--model.eta=1"]}
    more = own.get(flags[0], ["--model.tau=1"])
    run = tmp_path / "run"
    assert said in refused(*started(tiny_data, run, sources("bc"), *more, *flags))
    assert not run.exists()


def test_sources_that_are_no_clone_of_a_dataset_are_refused(
    tiny_data: Path, sources: Sources, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def line(clone: Path, *flags: str) -> str:
        return refused(*started(tiny_data, tmp_path / "run", clone, "--model.tau=1", *flags))

    assert "holds no behaviour flow, as ReBRAC clones none; name a run of" in line(
        sources("rebrac")
    )
    online = tmp_path / "online"
    assert main(small_run(tiny_data, online, "--method=bc", "--model.standardize=true")) == 0
    assert "its behaviour flow has learned from online data too" in line(online)
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((sources("bc") / "checkpoints/last.ckpt").read_bytes()[:-100])
    assert "not a readable checkpoint" in line(damaged)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.tau=1"], "is True, but there is no clone to keep; name its run as pretrained"),
        (flags_of("rebrac"), "is True, but ReBRAC clones no behaviour flow"),
        (flags_of("bc"), "is True, expected False: cloning is all that it trains"),
    ],
)
def test_freezing_needs_a_clone(
    flags: list[str], said: str, tiny_data: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    frozen = small_run(tiny_data, run, *flags, "--model.freeze_behavior=true", **OFFLINE)
    assert f"model.freeze_behavior {said}" in refused(*frozen)
    assert not run.exists()


def test_data_of_equal_sizes_are_told_apart(
    tiny_data: Path, sources: Sources, tmp_path: Path, refused: Callable[..., str]
) -> None:
    other, run = tmp_path / "other.npz", tmp_path / "run"
    with np.load(tiny_data) as arrays:
        np.savez(other, **{**arrays, "actions": -arrays["actions"]})
    line = refused(*started(other, run, sources("bc"), "--model.tau=1"))
    assert "data.fingerprint is " in line and "but the clone in" in line
    assert not (run / "checkpoints").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_notebook_is_told_of_other_data(
    tiny_data: Path, sources: Sources, tmp_path: Path
) -> None:
    """The same labels on another file: the fingerprint tells."""
    with np.load(tiny_data) as arrays:
        np.savez(tmp_path / "other.npz", **{**arrays, "actions": -arrays["actions"]})
    settings = {"horizon": 3, "discount": 0.9, "batch_size": 8}
    chunks = ChunkDataModule(ENV, path=str(tmp_path / "other.npz"), **settings)
    method = FQL(chunks.spaces, alpha=1.0, width=8, depth=1, standardize=True, discount=0.9)
    load_clone(method, sources("bc"))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet)
    with pytest.raises(ArgumentError, match="fingerprint is .*, but the clone in .* learned from"):
        trainer.fit(method, datamodule=chunks)
    assert method.gradient_step == 0
