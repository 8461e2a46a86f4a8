"""The parts behind a run, one by one."""

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.callbacks.metrics import host_values
from qam_lightning.callbacks.progress import Progress, status
from qam_lightning.checkpoints import describe, load_method, read_checkpoint
from qam_lightning.cli import main
from qam_lightning.cli.resume import changed
from qam_lightning.loggers import CsvLogger
from qam_lightning.methods.qam import QAM
from qam_lightning.util.errors import UserError
from tests.app.conftest import read_csv

# -- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_targets_move_by_the_rate(rate, build):
    method = build(QAM, tau=1.0, residual=True)
    with torch.no_grad():
        for online, _ in method.ema_pairs():
            for p in online.parameters():
                p.add_(torch.randn_like(p))
    pairs = [
        (o.clone(), t.clone())
        for online, target in method.ema_pairs()
        for o, t in zip(online.parameters(), target.parameters(), strict=True)
    ]
    online = [p for network, _ in method.ema_pairs() for p in network.parameters()]
    moved = [p for _, target in method.ema_pairs() for p in target.parameters()]
    EmaTargets(rate).move(moved, online)
    for (o, t), now, source in zip(pairs, moved, online, strict=True):
        torch.testing.assert_close(now, (1 - rate) * t + rate * o)
        assert torch.equal(source, o)


# -- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def saved(build, tmp_path) -> tuple[Path, dict]:
    """A checkpoint of a small method, and its content to damage."""
    method = build(QAM, tau=1.0, residual=True)
    entry = {
        "format": 2,
        "method": "qam_lightning.methods.qam.QAM",
        "model": dict(method.hparams),
        **dict.fromkeys(("environment", "versions"), {}),
        **dict.fromkeys(("config", "config_hash", "run_dir"), ""),
    }
    counters = {"gradient_step": 3, "env_step": 0, "phase": "offline"}
    content = {
        "state_dict": method.state_dict(),
        "qam_lightning": entry,
        "counters": counters,
        "pytorch-lightning_version": "2.6.4",
        "loops": {},
        **dict.fromkeys(("epoch", "global_step"), 0),
    }
    path = tmp_path / "some.ckpt"
    torch.save(content, path)
    return path, content


def test_a_saved_method_acts_as_before(saved, build):
    path, content = saved
    method, metadata = load_method(path)
    assert metadata == content["qam_lightning"] | content["counters"]
    assert not method.training
    s = torch.randn(5, method.spaces.obs_dim)
    noise = method.acting_noise(5, torch.Generator().manual_seed(0))
    original = build(QAM, tau=1.0, residual=True)
    assert torch.equal(method.act(s, noise), original.act(s, noise))
    assert load_method(path, best_of_n=3)[0].best_of_n == 3


def damaged(change: Callable[[dict], None]) -> Callable[[Path, dict], None]:
    def damage(path: Path, content: dict) -> None:
        change(content)
        torch.save(content, path)

    return damage


def old(content: dict) -> None:
    """Makes it a checkpoint of version 0.1."""
    del content["qam_lightning"]["format"]
    content["qam_lightning"]["versions"] = {"qam_lightning": "0.1.0"}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p, c: p.unlink(), "no such checkpoint file"),
        (lambda p, c: p.write_bytes(p.read_bytes()[:-500]), "damaged, cut short"),
        (lambda p, c: p.write_bytes(b""), "damaged, cut short"),
        (lambda p, c: p.write_text("domain: scene\n"), "another kind of file"),
        (lambda p, c: torch.save(torch.nn.Linear(1, 1), p), "another kind of file"),
        (lambda p, c: torch.save([1, 2], p), "no training checkpoint"),
        (damaged(lambda c: c.pop("state_dict")), "no training checkpoint"),
        (damaged(lambda c: c.pop("qam_lightning")), "another program wrote it"),
        (damaged(lambda c: c["qam_lightning"].pop("versions")), "versions is missing"),
        (damaged(old), "written by qam_lightning 0.1.0, whose checkpoints .* does not read"),
        (damaged(lambda c: c["qam_lightning"].update(method="no.such.Method")), "imported"),
        (damaged(lambda c: c["qam_lightning"].update(method="QAM")), "full name of a class"),
        (damaged(lambda c: c["qam_lightning"].update(method="torch.nn.Linear")), "not a method"),
        (damaged(lambda c: c["qam_lightning"]["model"].update(wings=2)), "cannot build .*wings"),
        (damaged(lambda c: c["qam_lightning"]["model"].update(width=33)), "weights do not fit"),
        (damaged(lambda c: c["state_dict"].popitem()), "weights do not fit .* is missing"),
    ],
)
def test_a_bad_checkpoint_is_refused_in_one_line(damage, says, saved):
    path, content = saved
    damage(path, content)
    with pytest.raises(UserError, match=says) as error:
        load_method(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="last.ckpt: no such checkpoint"):
        load_method(tmp_path)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("code from a checkpoint ran",))

    path = tmp_path / "trap.ckpt"
    torch.save({"state_dict": Trap()}, path)
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(path)


def test_the_json_beside_a_checkpoint_says_what_the_checkpoint_says(small_run, tmp_path):
    assert main(small_run(1)) == 0
    path = tmp_path / "run/checkpoints/last.ckpt"
    quick = describe(path)
    assert (quick.gradient_step, quick.env_step, quick.phase) == (1, 0, "offline")
    assert quick.best is not None and quick.config == (tmp_path / "run/config.yaml").read_text()
    path.with_suffix(".json").unlink()
    assert describe(path) == quick


def test_a_json_of_another_checkpoint_is_not_believed(saved):
    path, content = saved
    known = describe(path)
    path.with_suffix(".json").write_text(json.dumps({**known.model_dump(), "gradient_step": 9}))
    assert describe(path).gradient_step == 9
    content["counters"]["gradient_step"] = 4  # a kill came between checkpoint and JSON
    torch.save(content, path)
    assert describe(path).gradient_step == 4
    wrong = {**describe(path).model_dump(), "best": "high", "config": "a: b: c"}
    for damaged in ("{", "[]", '{"gradient_step": 9}', json.dumps(wrong), "[" * 5000):
        path.with_suffix(".json").write_text(damaged)
        assert describe(path).gradient_step == 4


def test_changed_settings_are_found_at_any_depth():
    old = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "gone": 4}
    new = {"a": 1, "b": {"c": 5, "d": {"e": 6}}, "new": 7}
    lines = ["b.c: 2 -> 5", "b.d.e: 3 -> 6", "gone: 4 -> None", "new: None -> 7"]
    assert changed(old, new) == lines
    assert changed(old, old) == []


def test_a_setting_that_an_older_version_did_not_know_has_its_default():
    method = {"class_path": "qam_lightning.methods.qam.QAM", "init_args": {"tau": 3}}
    knows = {**method, "init_args": {"tau": 3, "integrator": "shifted_euler", "flow_steps": 5}}
    new = {"model": knows, "matmul_precision": "high", "pretrained": None, "data": {"task": 2}}
    assert changed({"model": method}, new) == [
        "model.flow_steps: 10 -> 5",
        "matmul_precision: highest -> high",
        "data.task: 1 -> 2",
    ]


# -- metrics ------------------------------------------------------------------------------------


def test_rows_may_bring_new_columns(tmp_path):
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"gradient_step": 1, "loss": 0.5})
    logger.log_metrics({"gradient_step": 2, "loss": 0.25})
    logger.log_metrics({"gradient_step": 3, "loss": 0.125, "entropy": 2})
    logger.log_metrics({"gradient_step": 4, "entropy": 3})
    assert [list(row.values()) for row in read_csv(logger.train_csv)] == [
        ["1", "0.5", ""],
        ["2", "0.25", ""],
        ["3", "0.125", "2"],
        ["4", "", "3"],
    ]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (1, [1]), (3, [1, 2, 3]), (9, [1, 2, 3, 4])])
def test_rewinding_drops_later_rows_and_a_torn_line(step, kept, tmp_path):
    logger = CsvLogger(tmp_path)
    path = logger.train_csv
    for i in range(1, 5):
        logger.log_metrics({"gradient_step": i, "loss": 0.5})
    with path.open("a") as file:
        file.write("5,0.")
    logger.begin(step)
    assert path.exists() == bool(kept)
    logger.log_metrics({"gradient_step": step + 1, "loss": 0.5})
    assert [int(row["gradient_step"]) for row in read_csv(path)] == [*kept, step + 1]


def test_metrics_reach_the_host_in_one_transfer(monkeypatch):
    calls = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: calls.append(1) or to_list(x))
    for name in ("item", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, None)  # each would be a transfer of its own
    metrics = {"a": torch.tensor(1.23456789), "b": torch.tensor(2), "c": torch.tensor(3.0).half()}
    logged = {"a": torch.tensor(9.0), "d": 0.1}  # given to self.log
    assert host_values(metrics, logged=logged) == {"a": 1.23457, "b": 2.0, "c": 3.0, "d": 0.1}
    assert calls == [1]


# -- progress ------------------------------------------------------------------------------------


ROW = {"steps_per_second": 50.0, "loss": 0.5, "critic/q_mean": -12.34}


@pytest.fixture
def a_run(build):
    """A trainer and a method on its way, as far as progress looks at them."""
    method = build(QAM, tau=1.0, residual=True)
    method.gradient_step = 4000
    return SimpleNamespace(max_steps=20_000), method


def test_the_status_names_what_matters(a_run):
    _, method = a_run
    assert status(method, 20_000, ROW, 0.35) == (
        "offline 4,000/20,000 · 50 steps/s · 0:05:20 left · loss 0.5 · mean Q -12.3 · success 35%"
    )
    assert status(method, 20_000, {}, None) == "offline 4,000/20,000"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_in_a_terminal_and_lines_elsewhere(terminal, a_run):
    progress = Progress(every_seconds=3600)
    output = io.StringIO()
    progress._console = Console(file=output, force_terminal=terminal, width=200)
    progress.on_train_start(*a_run)
    progress.on_metrics(*a_run, ROW)
    progress.on_evaluation(*a_run, {"success": 0.35})
    for _ in range(3):
        progress.on_train_batch_end(*a_run)
    assert ("━" in output.getvalue()) == terminal
    progress.on_train_end(*a_run)
    progress.teardown(*a_run, "fit")
    assert "loss 0.5" in output.getvalue() and "success 35%" in output.getvalue()
    if not terminal:
        assert output.getvalue().count("\n") == 1


def test_progress_is_silent_on_other_ranks(a_run, capsys):
    progress = Progress(every_seconds=0)
    progress.disable()
    progress.on_train_start(*a_run)
    progress.on_train_batch_end(*a_run)
    progress.on_train_end(*a_run)
    assert capsys.readouterr().out == ""


# -- process -------------------------------------------------------------------------------------


def test_denormal_numbers_are_flushed_and_threads_set(small_run):
    torch.set_flush_denormal(False)
    threads = torch.get_num_threads()
    try:
        assert main(small_run(1, "--threads=1")) == 0
        assert torch.get_num_threads() == 1
        assert torch.tensor([1e-39]).mul(1.0).item() == 0.0
    finally:
        torch.set_num_threads(threads)


def test_lightning_says_nothing_of_itself(small_run, capsys, caplog):
    with caplog.at_level(logging.INFO):
        assert main(small_run(1)) == 0
    assert capsys.readouterr().err == ""
    assert [r.message for r in caplog.records if r.name.startswith("lightning")] == []
