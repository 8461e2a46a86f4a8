"""A method trains with any Lightning trainer, as from a notebook."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from qam_lightning.callbacks.base import Callback
from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.callbacks.metrics import MetricsLogger
from qam_lightning.data.batch import Batch
from qam_lightning.data.spaces import Spaces
from qam_lightning.loggers import CsvLogger
from qam_lightning.methods.bam import BAM
from qam_lightning.methods.base import Method
from qam_lightning.methods.qam import QAM
from qam_lightning.methods.trqam import TRQAM
from qam_lightning.util.errors import ArgumentError, UserError
from tests.app.conftest import read_csv
from tests.conftest import SPACES
from tests.methods.test_every_method import Build, make


def trainer(folder: Path, steps: int = 3, **settings: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        max_steps=steps, accelerator="cpu", default_root_dir=folder, **{**quiet, **settings}
    )


def loader(batch: Batch, count: int = 3) -> DataLoader[Batch]:
    return DataLoader([batch] * count, batch_size=None)  # type: ignore[arg-type]


class Watch(pl.Callback):
    """Notes the critic's target whenever a step ends."""

    def __init__(self) -> None:
        self.targets: list[Tensor] = []
        self.critics: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, method: Any, *args: object) -> None:
        self.targets.append(method.critic_ema.out.weight.clone())
        self.critics.append(method.critic.out.weight.detach().clone())


@pytest.mark.filterwarnings("ignore")
def test_targets_follow_without_anybody_asking_for_it(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    """Also a callback that comes first sees the targets of its own step."""
    method, watch = make(QAM, build, target_rate=0.25), Watch()
    target, critic = (c.out.weight.detach().clone() for c in (method.critic_ema, method.critic))
    trainer(tmp_path, callbacks=[watch], logger=False, enable_checkpointing=False).fit(
        method, loader(batch)
    )
    assert len(watch.targets) == 3
    for found, stepped in zip(watch.targets, watch.critics, strict=True):
        target = target + 0.25 * (critic - target)
        torch.testing.assert_close(found, target)
        critic = stepped  # the next step moves the target by it


class Hears(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_gradient_step(self, trainer: pl.Trainer, method: Method) -> None:
        self.steps.append(method.gradient_step)


@pytest.mark.filterwarnings("ignore")
def test_lightnings_own_checkpoints_resume_and_load(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    """Three steps, stopped after two and resumed from Lightning's checkpoint, end the same."""
    whole, cut, again = (make(QAM, build) for _ in range(3))
    trainer(tmp_path / "a", logger=False).fit(whole, loader(batch))
    first, hears = trainer(tmp_path / "b", steps=2, logger=False), Hears()
    first.fit(cut, loader(batch))
    path = tmp_path / "two.ckpt"
    first.save_checkpoint(path)
    second = trainer(tmp_path / "c", steps=3, logger=False, callbacks=[hears])
    second.fit(again, loader(batch), ckpt_path=path, weights_only=True)
    assert hears.steps == [3]
    for (name, p), q in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(p, q), name
    loaded = QAM.load_from_checkpoint(path, weights_only=True)
    assert loaded.tau == cut.tau and loaded.spaces == cut.spaces
    assert torch.equal(loaded.critic.out.weight, cut.critic.out.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_weights_of_16_bits_are_refused(
    precision: str, build: Build, batch: Batch, tmp_path: Path
) -> None:
    """On CPUs Lightning itself turns 16-mixed into bf16-mixed, so 16-true stands for both."""
    half = trainer(tmp_path, precision=precision, logger=False)
    with pytest.raises(UserError, match=f"Trainer: precision is {precision}, expected 32-true, b"):
        half.fit(make(QAM, build), loader(batch))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "integrator", "precision"),
    [
        *((QAM, "shifted_euler", precision) for precision in ("bf16-mixed", "64-true")),
        *((kind, "denoiser", "bf16-mixed") for kind in (QAM, BAM, TRQAM)),
    ],
)
def test_other_precisions_train(
    kind: type[QAM], integrator: str, precision: str, build: Build, batch: Batch, tmp_path: Path
) -> None:
    method = make(kind, build, integrator=integrator)
    trainer(tmp_path, precision=precision, logger=False).fit(method, loader(batch))
    assert method.gradient_step == 3 and method.metrics["loss"].isfinite()


class Data(pl.LightningDataModule):
    """The batch again and again, as of some spaces and discount."""

    def __init__(self, batch: Batch, spaces: Spaces = SPACES, discount: float = 0.97) -> None:
        super().__init__()
        self.batch, self.spaces, self.discount = batch, spaces, discount

    def train_dataloader(self) -> DataLoader[Batch]:
        return loader(self.batch)

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        s = self.batch.observations
        return s.mean(0), s.std(0)


@pytest.mark.filterwarnings("ignore")
def test_what_does_not_fit_the_data_is_refused(build: Build, batch: Batch, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="QAM: discount is 0.97, but the data's is 0.5"):
        trainer(tmp_path, logger=False).fit(make(QAM, build), Data(batch, discount=0.5))
    chunks = SPACES._replace(horizon=5)
    with pytest.raises(ArgumentError, match=r"spaces .* are \(7, 3, 2\), but .* \(7, 3, 5\); pass"):
        trainer(tmp_path, logger=False).fit(make(QAM, build), Data(batch, chunks))
    method = make(QAM, build, standardize=True)
    trainer(tmp_path, logger=False).fit(method, Data(batch))
    torch.testing.assert_close(method.obs_norm.mean, batch.observations.mean(0))


@pytest.mark.filterwarnings("ignore")
def test_standardising_needs_the_datas_statistics(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="QAM: standardize needs a data module"):
        trainer(tmp_path, logger=False).fit(make(QAM, build, standardize=True), loader(batch))


class Forgets(QAM):
    """A method of a user's whose callbacks replace those of all methods."""

    def configure_callbacks(self) -> list[pl.Callback]:
        return []


class MyTargets(EmaTargets):
    pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "given", "count"), [(Forgets, [], 0), (QAM, [MyTargets(0.1)], 2)])
def test_targets_that_nobody_or_two_would_move_are_refused(
    kind: type[Method],
    given: list[pl.Callback],
    count: int,
    build: Build,
    batch: Batch,
    tmp_path: Path,
) -> None:
    fitting = trainer(tmp_path, callbacks=given, logger=False)
    with pytest.raises(
        UserError, match=f"has {count} EmaTargets callbacks, expected 1; call super"
    ):
        fitting.fit(make(kind, build), loader(batch))


@pytest.mark.filterwarnings("ignore")
def test_every_logger_of_a_plain_trainer_gets_the_metrics(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    loggers = [CSVLogger(tmp_path / "theirs"), CsvLogger(tmp_path / "ours")]
    fitting = trainer(tmp_path, 4, logger=loggers, log_every_n_steps=2)
    fitting.fit(make(QAM, build), loader(batch, 4))
    (theirs,) = (tmp_path / "theirs").rglob("metrics.csv")
    for path in (theirs, tmp_path / "ours/metrics/train.csv"):
        rows = read_csv(path)
        assert [row["gradient_step"] for row in rows] == ["2", "4"]
        assert all(float(row["critic/loss"]) >= 0 for row in rows)
    kinds = [type(callback) for callback in fitting.callbacks]  # type: ignore[attr-defined]
    assert kinds.count(MetricsLogger) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_metrics_logger_of_the_users_is_the_only_one(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    mine = MetricsLogger(every_n_steps=1)
    fitting = trainer(tmp_path, callbacks=[mine], logger=CsvLogger(tmp_path / "ours"))
    fitting.fit(make(QAM, build), loader(batch))
    rows = read_csv(tmp_path / "ours/metrics/train.csv")
    assert [row["gradient_step"] for row in rows] == ["1", "2", "3"]
    found = [c for c in fitting.callbacks if isinstance(c, MetricsLogger)]  # type: ignore[attr-defined]
    assert found == [mine]
