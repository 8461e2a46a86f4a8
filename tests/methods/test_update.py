"""The training step as one function: against a plain loop, and compiled against not compiled."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch._inductor
from torch import Tensor, nn

from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.data.batch import Batch
from qam_lightning.methods.bam import BAM
from qam_lightning.methods.base import Losses, Method, Metrics
from qam_lightning.methods.optimization import clip_gradients, decayed_learning_rate
from qam_lightning.methods.qam import QAM
from qam_lightning.methods.rebrac import ReBRAC
from qam_lightning.methods.trqam import TRQAM
from qam_lightning.methods.update import Adam, prepare_update
from qam_lightning.util.errors import ArgumentError, UserError
from tests.methods.test_every_method import METHODS, SOME_METHODS, Build, make

STEPS = 5
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Outcome(dict[str, Tensor]):
    """All tensors of a method and its optimizer by name, and the last metrics."""

    def close_to(self, other: "Outcome", rtol: float = 1e-4, atol: float = 1e-6) -> None:
        assert self.keys() == other.keys()
        for name, x in self.items():
            torch.testing.assert_close(
                x, other[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )


def outcome(method: Method, optimizer: torch.optim.Optimizer, metrics: Metrics) -> Outcome:
    found = {name: x.detach().clone() for name, x in method.state_dict().items()}
    for name, p in method.named_parameters():
        # Adam starts the moments of a parameter that it has not stepped yet at zero.
        moments = optimizer.state.get(p, {}) if p.requires_grad else {}
        zeros = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p)}
        for key in zeros if p.requires_grad else ():
            found[f"{name}.{key}"] = moments.get(key, zeros[key]).detach().clone()
    return Outcome({**found, **metrics})


def by_update(method: Method, batch: Batch) -> Outcome:
    """Take some steps as training does."""
    optimizer = method.configure_optimizers()
    run = prepare_update(method, optimizer, EmaTargets(method.target_rate))
    metrics: Metrics = {}
    for _ in range(STEPS):
        size = decayed_learning_rate(
            method.learning_rate, method.gradient_step, method.lr_decay_steps
        )
        actor_step = method.is_actor_step(method.gradient_step + 1)
        noise = method.step_noise(len(batch.rewards))
        metrics |= run(batch, noise, size, actor_step)
        method.gradient_step += 1
    return outcome(method, optimizer, metrics)


def by_hand(method: Method, batch: Batch) -> Outcome:
    """Take the same steps with torch's own parts: backward, clipping, one lerp per target, Adam."""
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=method.learning_rate)
    metrics: Metrics = {}
    for _ in range(STEPS):
        actor_step = method.is_actor_step(method.gradient_step + 1)
        losses, more = method.losses(batch, method.step_noise(len(batch.rewards)), actor_step)
        optimizer.zero_grad()
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        if method.grad_clip and method.grad_clip_mode == "norm":
            nn.utils.clip_grad_norm_(trained, method.grad_clip)
        elif method.grad_clip:
            nn.utils.clip_grad_value_(trained, method.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = decayed_learning_rate(
                method.learning_rate, method.gradient_step, method.lr_decay_steps
            )
        for online, target in method.ema_pairs() if actor_step else ():
            for p, q in zip(online.parameters(), target.parameters(), strict=True):
                q.data.lerp_(p.data, method.target_rate)
        optimizer.step()
        for name, metric in method.adapted.items():
            method.get_buffer(name).copy_(more[metric])
        method.gradient_step += 1
        named = {name: x.detach() for name, x in losses.items()}
        metrics |= {"loss": loss.detach(), **named, **more, "grad_norm": norm}
    return outcome(method, optimizer, metrics)


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_an_update_equals_backward_clipping_lerp_and_adam(
    kind: type[Method], build: Build, batch: Batch
) -> None:
    by_update(make(kind, build), batch).close_to(by_hand(make(kind, build), batch))


@pytest.mark.parametrize("clipping", [(0.0, "norm"), (0.01, "norm"), (0.001, "value")])
def test_clipping_and_the_step_size_equal_torchs(
    clipping: tuple[float, str], build: Build, batch: Batch
) -> None:
    settings: dict[str, Any] = dict(zip(("grad_clip", "grad_clip_mode"), clipping, strict=True))
    settings |= {"lr_decay_steps": STEPS - 1, "learning_rate": 0.01}
    found, expected = (steps(make(QAM, build, **settings), batch) for steps in (by_update, by_hand))
    found.close_to(expected)


def test_clipping_bounds_the_joint_gradient() -> None:
    gradients = [torch.tensor([3.0]), torch.tensor([[-4.0]])]
    assert clip_gradients(gradients, 0.0, "norm") == 5.0 and gradients[0] == 3.0
    assert clip_gradients(gradients, 1.0, "norm") == 5.0
    assert [float(g) for g in gradients] == pytest.approx([0.6, -0.8])
    assert clip_gradients(gradients, 0.7, "value") == pytest.approx(1.0)
    assert [float(g) for g in gradients] == pytest.approx([0.6, -0.7])
    assert clip_gradients(gradients, 100.0, "norm") < 1.0
    assert [float(g) for g in gradients] == pytest.approx([0.6, -0.7])


@pytest.mark.parametrize("kind", SOME_METHODS)
def test_an_update_is_one_graph_for_all_steps(
    kind: type[Method], build: Build, batch: Batch, traced: list[Any]
) -> None:
    """No value is read on the host, and no later step needs another graph."""
    method = make(kind, build, compile="default", lr_decay_steps=10)
    found = by_update(method, batch)
    assert len(traced) == (1 if method.actor_delay == 1 else 2)
    found.close_to(by_update(make(kind, build, lr_decay_steps=10), batch))


DENOISER = {"integrator": "denoiser", "grid_power": 2.0, "sampler": "etd2"}


@pytest.mark.parametrize("kind", [QAM, BAM, TRQAM])
def test_an_update_in_the_denoiser_scheme_is_one_graph(
    kind: type[Method], build: Build, batch: Batch, traced: list[Any]
) -> None:
    found = by_update(make(kind, build, compile="default", **DENOISER), batch)
    assert len(traced) == 1
    found.close_to(by_update(make(kind, build, **DENOISER), batch))


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_a_compiled_update_equals_the_eager_one(
    kind: type[Method], build: Build, batch: Batch
) -> None:
    found = by_update(make(kind, build, compile="default"), batch)
    found.close_to(by_update(make(kind, build), batch))


@pytest.mark.slow
def test_a_compiled_update_in_the_denoiser_scheme_equals_the_eager_one(
    build: Build, batch: Batch
) -> None:
    found = by_update(make(QAM, build, compile="default", **DENOISER), batch)
    found.close_to(by_update(make(QAM, build, **DENOISER), batch))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("compiled", ["default", "graph"])
@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_compiled_and_captured_updates_equal_the_eager_one_on_cuda(
    kind: type[Method], compiled: str, build: Build, batch: Batch
) -> None:
    on_gpu = Batch(*(x.cuda() for x in batch))
    found, expected = (
        by_update(make(kind, build, compile=mode).cuda(), on_gpu) for mode in (compiled, "off")
    )
    found.close_to(expected)


def test_parameters_and_moments_are_views_of_vectors(build: Build, batch: Batch) -> None:
    method = make(ReBRAC, build)
    optimizer = method.configure_optimizers()
    run = prepare_update(method, optimizer, EmaTargets(1.0))
    names = [name for name, p in method.named_parameters() if p.requires_grad]
    trained = [p for p in method.parameters() if p.requires_grad]
    held = [trained, *([optimizer.state[p][key] for p in trained] for key in MOMENTS)]
    for tensors in held:  # one vector for the critics, one for all else
        assert len({x.untyped_storage().data_ptr() for x in tensors}) == 2
    run(batch, method.step_noise(len(batch.rewards)), 0.1, False)
    moved = {n for n, p in zip(names, trained, strict=True) if optimizer.state[p]["step"] == 1}
    assert moved == {name for name in names if name.startswith("critic.")}
    pairs = ((method.critic, method.critic_ema), (method.actor, method.actor_ema))
    before = [[p.clone() for p in online.parameters()] for online, _ in pairs]
    run(batch, method.step_noise(len(batch.rewards)), 0.1, True)
    for (online, target), old in zip(pairs, before, strict=True):
        for p, q, start in zip(online.parameters(), target.parameters(), old, strict=True):
            assert torch.equal(q, start)  # at rate 1 a target is its network before the step
            assert not torch.equal(p, start)


class Frozen(QAM):
    """A method of a user's that keeps a part of its networks fixed."""

    def build(self) -> None:
        super().build()
        self.behavior.requires_grad_(False)


def test_a_frozen_network_and_its_target_stay(build: Build, batch: Batch) -> None:
    method = make(Frozen, build)
    before = [p.clone() for p in (*method.behavior.parameters(), *method.behavior_ema.parameters())]
    found = by_update(method, batch)
    after = [*method.behavior.parameters(), *method.behavior_ema.parameters()]
    assert all(map(torch.equal, before, after))
    found.close_to(by_hand(make(Frozen, build), batch))


class OtherOptimizer(QAM):
    """A method of a user's with an optimizer that the training step does not know."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class HalfTrained(QAM):
    """A method of a user's whose optimizer forgets the critics."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Adam(self.behavior.parameters(), lr=0.1)


@pytest.mark.parametrize("kind", [OtherOptimizer, HalfTrained])
def test_another_optimizer_is_refused(kind: type[Method], build: Build) -> None:
    method = make(kind, build)
    with pytest.raises(UserError, match=f"{kind.__name__}: Method.training_step needs the optim"):
        prepare_update(method, method.configure_optimizers(), None)


class ReadsOnHost(QAM):
    """A method of a user's that looks at a value."""

    def actor_losses(self, batch: Batch, noise: Any) -> tuple[Losses, Metrics]:
        losses, metrics = super().actor_losses(batch, noise)
        return (losses, metrics) if losses["actor/flow_loss"] > 0 else (losses, {})


def test_what_cannot_be_one_graph_is_an_error_that_names_the_setting(
    build: Build, batch: Batch
) -> None:
    with pytest.raises(ArgumentError, match=r"ReadsOnHost: compile failed .*set it to off"):
        by_update(make(ReadsOnHost, build, compile="default"), batch)


def fit(method: Method, batch: Batch, folder: Path, **options: Any) -> pl.Trainer:
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        default_root_dir=folder, accelerator="cpu", max_steps=2, **{**settings, **options}
    )
    trainer.fit(method, torch.utils.data.DataLoader([batch] * 4, batch_size=None))
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_graph_is_refused_without_cuda_before_training(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    method = make(QAM, build, compile="graph")
    with pytest.raises(ArgumentError, match="QAM: compile needs CUDA, and training is on cpu"):
        fit(method, batch, tmp_path)
    assert method.gradient_step == 0


@pytest.mark.filterwarnings("ignore")
def test_a_machine_without_a_compiler_is_told_before_training(
    build: Build, batch: Batch, tmp_path: Path, no_compiler: None
) -> None:
    with pytest.raises(ArgumentError, match="QAM: compile needs a C.. compiler; install one"):
        fit(make(QAM, build, compile=True), batch, tmp_path)


class Stops(pl.Callback):
    """Ends training with an error."""

    def on_train_batch_end(self, *args: object) -> None:
        raise KeyError("stop")


@pytest.mark.filterwarnings("ignore")
def test_a_fit_after_one_that_failed_starts_adam_anew(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    method = make(QAM, build)
    with pytest.raises(KeyError, match="stop"):
        fit(method, batch, tmp_path, callbacks=[Stops()])
    trainer = fit(method, batch, tmp_path)
    (optimizer,) = trainer.optimizers
    assert {int(m["step"]) for m in optimizer.state.values()} == {2}
    assert len(optimizer.state) == sum(p.requires_grad for p in method.parameters())


@pytest.mark.filterwarnings("ignore")
def test_tensors_have_memory_of_their_own_in_checkpoints_and_after_training(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    method = make(QAM, build)
    trainer = fit(method, batch, tmp_path)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    moments = [x for m in saved["optimizer_states"][0]["state"].values() for x in m.values()]
    for x in [*saved["state_dict"].values(), *moments, *method.parameters()]:
        assert x.untyped_storage().nbytes() == x.nbytes


def test_the_setting_reads_yamls_off_and_the_older_switch(build: Build) -> None:
    assert make(QAM, build, compile=False).compile == "off"
    assert make(QAM, build, compile=True).hparams["compile"] == "default"
    with pytest.raises(ArgumentError, match="compile is 'fast', expected off, default, graph"):
        make(QAM, build, compile="fast")
