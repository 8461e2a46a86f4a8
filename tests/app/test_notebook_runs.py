"""Lightning's own trainer with parts of this project, as in a notebook: what is saved and kept."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from qam_lightning import QAM, ChunkDataModule, Spaces, load_policy
from qam_lightning.callbacks.checkpoints import Checkpoints
from qam_lightning.callbacks.evaluation import Evaluate
from qam_lightning.callbacks.metrics import MetricsLogger
from qam_lightning.callbacks.online import Online
from qam_lightning.checkpoints import read_checkpoint
from qam_lightning.cli import main
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Method
from qam_lightning.util.errors import ArgumentError, UserError
from tests.online.conftest import ENV
from tests.online.conftest import build as run_arguments
from tests.online.conftest import data as data  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE: dict[str, Any] = {"width": 8, "depth": 1, "num_critics": 2, "flow_steps": 2}


def trainer(folder: Path, *callbacks: pl.Callback, steps: int = 2, **settings: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet["enable_checkpointing"] = False
    return pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        **{**quiet, **settings},
    )


def tiny() -> QAM:
    return QAM(Spaces(3, 2, 3), tau=1.0, **SIZE)


@pytest.fixture
def chunks(data: Path) -> ChunkDataModule:
    return ChunkDataModule(ENV, "none", path=str(data), horizon=3, batch_size=8)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- checkpoints of any trainer ------------------------------------------------------------------


def test_a_saved_checkpoint_acts_where_it_was_trained(
    chunks: ChunkDataModule, tmp_path: Path
) -> None:
    method, fitting = tiny(), trainer(tmp_path)
    fitting.fit(method, chunks)
    fitting.save_checkpoint(tmp_path / "x.ckpt")
    policy = load_policy(tmp_path / "x.ckpt")
    env = policy.make_env()
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(policy(observation))
    assert policy.metadata["environment"] == {
        "env": ENV,
        "dataset": "none",
        "task": 1,
        "sparse": False,
    }
    assert policy.metadata["gradient_step"] == 2 and policy.metadata["versions"]


def test_a_metric_may_be_an_integer(chunks: ChunkDataModule, tmp_path: Path) -> None:
    method, fitting = tiny(), trainer(tmp_path)
    fitting.fit(method, chunks)
    method.metrics["rows"] = torch.tensor(8)
    fitting.save_checkpoint(tmp_path / "x.ckpt")
    assert read_checkpoint(tmp_path / "x.ckpt")["metrics"]["rows"] == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_lightning_loads_a_checkpoint_onto_a_device(
    chunks: ChunkDataModule, tmp_path: Path
) -> None:
    fitting = trainer(tmp_path, Checkpoints(str(tmp_path)))
    fitting.fit(tiny(), chunks)
    path = tmp_path / "checkpoints/last.ckpt"
    loaded = QAM.load_from_checkpoint(path, map_location="cuda", weights_only=True)
    assert loaded.device.type == "cuda"


def test_a_checkpoint_of_a_plain_loader_acts_too(
    build: Callable[..., Method], batch: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitting = trainer(tmp_path)
    loader: Any = DataLoader([batch] * 2, batch_size=None)  # type: ignore[arg-type]
    fitting.fit(build(QAM, tau=1.0), loader)
    path = tmp_path / "x.ckpt"
    fitting.save_checkpoint(path)
    policy = load_policy(path)
    assert policy(np.zeros(7)).shape == (3,) and policy.metadata["environment"] == {}
    with pytest.raises(UserError, match="^Policy: the checkpoint names no environment; give") as e:
        policy.make_env()
    assert "\n" not in str(e.value)
    assert policy.make_env(env=ENV, task=1).observation_space.shape == (3,)
    assert main(["eval", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: names no environment; only what was trained on")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"device": "gpu"}, "^load_policy: device is gpu, expected a device such as cpu or cuda: "),
        ({"seed": -1}, "^load_policy: seed is -1, expected at least 0$"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(
    changed: dict[str, Any], told: str, chunks: ChunkDataModule, tmp_path: Path
) -> None:
    fitting = trainer(tmp_path)
    fitting.fit(tiny(), chunks)
    fitting.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ArgumentError, match=told) as e:
        load_policy(tmp_path / "x.ckpt", **changed)
    assert "\n" not in str(e.value)


def test_the_command_line_resumes_a_notebooks_run(
    chunks: ChunkDataModule, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a configuration in the checkpoint there is nothing to compare with."""
    fitting = trainer(tmp_path)
    fitting.fit(tiny(), chunks)
    fitting.save_checkpoint(tmp_path / "x.ckpt")
    resume = f"--ckpt_path={tmp_path / 'x.ckpt'}"
    settings = {"trainer__max_steps": 3, "online__steps": 0}
    assert main(run_arguments(data, tmp_path / "run", resume, **settings)) == 0
    assert "changed since" not in capsys.readouterr().out
    last = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert last["counters"]["gradient_step"] == 3


# -- run folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [MetricsLogger, Checkpoints, Online])
def test_a_run_folder_is_never_overwritten(
    part: Any, chunks: ChunkDataModule, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trainer(tmp_path, MetricsLogger(str(run), 1), Checkpoints(str(run), 1)).fit(tiny(), chunks)
    before = contents(run)
    settings = {"steps": 9, "learning_starts": 6} if part is Online else {}
    with pytest.raises(UserError, match="run already holds a run; resume it, or choose another"):
        trainer(tmp_path, part(str(run), **settings)).fit(tiny(), chunks)
    assert contents(run) == before
    again = trainer(tmp_path, MetricsLogger(str(run), 1), Checkpoints(str(run), 1), steps=3)
    again.fit(tiny(), chunks, ckpt_path=run / "checkpoints/last.ckpt", weights_only=True)
    assert len((run / "metrics/train.csv").read_text().splitlines()) == 4
    assert read_checkpoint(run / "checkpoints/last.ckpt")["counters"]["gradient_step"] == 3


def test_a_loaded_method_overwrites_no_run(chunks: ChunkDataModule, tmp_path: Path) -> None:
    """In a folder that this process did not begin."""
    trainer(tmp_path, Checkpoints(str(tmp_path / "begun"))).fit(tiny(), chunks)
    run = shutil.copytree(tmp_path / "begun", tmp_path / "run")
    before = contents(run)
    method = QAM.load_from_checkpoint(run / "checkpoints/last.ckpt", weights_only=True)
    with pytest.raises(UserError, match="already holds a run"):
        trainer(run, Checkpoints(str(run)), steps=4).fit(method, chunks)
    assert contents(run) == before


def test_metrics_alone_are_a_run_too(chunks: ChunkDataModule, tmp_path: Path) -> None:
    trainer(tmp_path, MetricsLogger(str(tmp_path / "run"), 1)).fit(tiny(), chunks)
    with pytest.raises(UserError, match="already holds a run"):
        trainer(tmp_path, MetricsLogger(str(tmp_path / "run"), 1)).fit(tiny(), chunks)


# -- a second fit ----------------------------------------------------------------------------------


def test_a_trainer_is_left_as_it_was(chunks: ChunkDataModule, tmp_path: Path) -> None:
    """The online updates are added once for each fit, and not for other stages."""
    online = Online(str(tmp_path / "run"), steps=12, learning_starts=8, async_env=False)
    method, fitting = tiny(), trainer(tmp_path, online)
    online.setup(fitting, method, "validate")
    assert fitting.max_steps == 2
    fitting.fit(method, chunks)
    assert (method.gradient_step, fitting.max_steps) == (2 + 4, 2)
    online.setup(fitting, method, "fit")
    assert fitting.max_steps == 6
    online.teardown(fitting, method, "fit")
    assert fitting.max_steps == 2


# -- data of another kind --------------------------------------------------------------------------


class Other(pl.LightningDataModule):
    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch

    def train_dataloader(self) -> Any:
        return DataLoader([self.batch] * 3, batch_size=None)  # type: ignore[arg-type]


def test_checkpoints_need_no_data_module_of_ours(
    build: Callable[..., Method], batch: Batch, tmp_path: Path
) -> None:
    trainer(tmp_path, Checkpoints(str(tmp_path / "run"), 1)).fit(build(QAM, tau=1.0), Other(batch))
    assert load_policy(tmp_path / "run").metadata["environment"] == {}


def test_evaluation_needs_an_environment(
    build: Callable[..., Method], batch: Batch, tmp_path: Path
) -> None:
    evaluate = Evaluate(1, 1, workers=0)
    with pytest.raises(UserError, match="Evaluate: the trainer's data module is Other, expected C"):
        trainer(tmp_path, evaluate).fit(build(QAM, tau=1.0), Other(batch))
    with pytest.raises(UserError, match="Evaluate: the trainer's data have no data module, exp"):
        trainer(tmp_path, evaluate).fit(build(QAM, tau=1.0), Other(batch).train_dataloader())


def test_training_that_nothing_would_end_is_refused(
    chunks: ChunkDataModule, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="Trainer: max_steps is not set, expected a number"):
        trainer(tmp_path, steps=-1, max_epochs=2).fit(tiny(), chunks)
    online = Online(str(tmp_path / "run"), steps=12, learning_starts=8)
    with pytest.raises(ArgumentError, match="Trainer: max_steps is -1, expected the number of"):
        trainer(tmp_path, online, steps=-1).fit(tiny(), chunks)
    method = tiny()
    trainer(tmp_path, steps=-1, max_epochs=2, limit_train_batches=3).fit(method, chunks)
    assert method.gradient_step == 6


# -- a fit after one that was interrupted --------------------------------------------------------


class Interrupt(pl.Callback):
    """Ctrl-C in a gradient step, after ``step`` others."""

    def __init__(self, step: int) -> None:
        self.step: int | None = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: object) -> None:
        if pl_module.gradient_step == self.step:
            self.step = None
            raise KeyboardInterrupt


def test_what_callbacks_have_seen_since_does_not_damage_a_checkpoint(
    chunks: ChunkDataModule, tmp_path: Path
) -> None:
    evaluate = Evaluate(every_n_steps=1, episodes=1, num_envs=1, workers=0)
    scores = pl.callbacks.ModelCheckpoint(tmp_path / "theirs", every_n_train_steps=1)
    callbacks = (evaluate, scores, Checkpoints(str(tmp_path)), Interrupt(1))
    more: dict[str, Any] = {"enable_checkpointing": True}
    method, last = tiny(), tmp_path / "checkpoints/last.ckpt"
    with pytest.raises(SystemExit):  # Lightning's answer to Ctrl-C
        trainer(tmp_path, *callbacks, **more).fit(method, chunks)
    assert evaluate.latest and read_checkpoint(last)["counters"]["gradient_step"] == 0
    again = trainer(tmp_path, *callbacks, **more)
    again.fit(method, chunks, ckpt_path=last, weights_only=True)
    assert method.gradient_step == 2


def test_a_refused_fit_writes_no_state_of_an_interrupted_one(
    chunks: ChunkDataModule, tmp_path: Path
) -> None:
    checkpoints, method = Checkpoints(str(tmp_path)), tiny()
    with pytest.raises(SystemExit):
        trainer(tmp_path, checkpoints, Interrupt(1)).fit(method, chunks)
    before = contents(tmp_path)
    absent = tmp_path / "absent.ckpt"
    with pytest.raises(UserError, match="no such checkpoint"):
        trainer(tmp_path, checkpoints).fit(method, chunks, ckpt_path=absent, weights_only=True)
    assert contents(tmp_path) == before
