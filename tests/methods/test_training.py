"""A method trains with any Lightning trainer, as from a notebook."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from qam_lightning.callbacks.base import Callback
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Method
from qam_lightning.methods.qam import QAM
from qam_lightning.util.errors import ArgumentError, UserError
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
    target = method.critic_ema.out.weight.clone()
    trainer(tmp_path, callbacks=[watch], logger=False, enable_checkpointing=False).fit(
        method, loader(batch)
    )
    assert len(watch.targets) == 3
    for found, critic in zip(watch.targets, watch.critics, strict=True):
        target = target + 0.25 * (critic - target)
        torch.testing.assert_close(found, target)


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
def test_float16_is_refused(build: Build, batch: Batch, tmp_path: Path) -> None:
    """On CPUs Lightning itself turns 16-mixed into bf16-mixed, so 16-true stands for both."""
    half = trainer(tmp_path, precision="16-true", logger=False)
    with pytest.raises(UserError, match="precision is 16-true, expected 32-true, bf16"):
        half.fit(make(QAM, build), loader(batch))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_other_precisions_train(build: Build, batch: Batch, tmp_path: Path, precision: str) -> None:
    method = make(QAM, build)
    trainer(tmp_path, precision=precision, logger=False).fit(method, loader(batch))
    assert method.gradient_step == 3 and method.metrics["loss"].isfinite()


class OtherDiscount(pl.LightningDataModule):
    discount = 0.5

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch

    def train_dataloader(self) -> DataLoader[Batch]:
        return loader(self.batch)

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        s = self.batch.observations
        return s.mean(0), s.std(0)


@pytest.mark.filterwarnings("ignore")
def test_a_discount_that_is_not_the_datas_is_refused(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="QAM: discount is 0.97, but the data's is 0.5"):
        trainer(tmp_path, logger=False).fit(make(QAM, build), OtherDiscount(batch))
    method = make(QAM, build, discount=0.5, standardize=True)
    trainer(tmp_path, logger=False).fit(method, OtherDiscount(batch))
    torch.testing.assert_close(method.obs_norm.mean, batch.observations.mean(0))


@pytest.mark.filterwarnings("ignore")
def test_standardising_needs_the_datas_statistics(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match="QAM: standardize needs a data module"):
        trainer(tmp_path, logger=False).fit(make(QAM, build, standardize=True), loader(batch))
