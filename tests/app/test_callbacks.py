"""The parts behind a run, one by one."""

import io
import logging
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from wandb.proto import wandb_internal_pb2

from qam_lightning import provenance
from qam_lightning.checkpoints import load_method, read_checkpoint
from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.callbacks.progress import Progress, status
from qam_lightning.callbacks.recorder import Recorder, append, host_values, rewind
from qam_lightning.cli import changed, main
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
    callback = EmaTargets(rate)
    callback.on_train_start(None, method)
    callback.on_train_batch_end(None, method, None, None, 0)
    moved = [t for _, target in method.ema_pairs() for t in target.parameters()]
    online = [o for o, _ in method.ema_pairs() for o in o.parameters()]
    for (o, t), now, source in zip(pairs, moved, online, strict=True):
        torch.testing.assert_close(now, (1 - rate) * t + rate * o)
        assert torch.equal(source, o)


# -- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def saved(build, tmp_path) -> tuple[Path, dict]:
    """A checkpoint of a small method, and its content to damage."""
    method = build(QAM, tau=1.0, residual=True)
    entry = {
        "method": "qam_lightning.methods.qam.QAM",
        "model": dict(method.hparams),
        **dict.fromkeys(("environment", "versions"), {}),
        **dict.fromkeys(("config", "config_hash", "run_dir"), ""),
        **dict.fromkeys(("gradient_step", "env_step"), 0),
        "phase": "offline",
    }
    content = {"state_dict": method.state_dict(), "qam_lightning": entry}
    path = tmp_path / "some.ckpt"
    torch.save(content, path)
    return path, content


def test_a_saved_method_acts_as_before(saved, build):
    path, content = saved
    method, entry = load_method(path)
    assert entry == content["qam_lightning"]
    assert not method.training
    s = torch.randn(5, method.obs_dim)
    noise = method.policy_noise(5, torch.Generator().manual_seed(0))
    original = build(QAM, tau=1.0, residual=True)
    assert torch.equal(method.act(s, noise), original.act(s, noise))
    assert load_method(path, best_of_n=3)[0].best_of_n == 3


def damaged(change: Callable[[dict], None]) -> Callable[[Path, dict], None]:
    def damage(path: Path, content: dict) -> None:
        change(content)
        torch.save(content, path)

    return damage


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
        (damaged(lambda c: c.pop("qam_lightning")), "of another program or version"),
        (damaged(lambda c: c["qam_lightning"].pop("versions")), "lacks versions"),
        (damaged(lambda c: c["qam_lightning"].update(method="no.such.Method")), "imported"),
        (damaged(lambda c: c["qam_lightning"].update(method="QAM")), "imported"),
        (damaged(lambda c: c["qam_lightning"].update(method="torch.nn.Linear")), "not a method"),
        (damaged(lambda c: c["qam_lightning"]["model"].update(wings=2)), "cannot build .*wings"),
        (damaged(lambda c: c["qam_lightning"]["model"].update(width=33)), "weights do not fit"),
        (damaged(lambda c: c["state_dict"].popitem()), "weights do not fit .*Missing key"),
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


def test_changed_settings_are_found_at_any_depth():
    old = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "gone": 4}
    new = {"a": 1, "b": {"c": 5, "d": {"e": 6}}, "new": 7}
    lines = ["b.c: 2 -> 5", "b.d.e: 3 -> 6", "gone: 4 -> None", "new: None -> 7"]
    assert changed(old, new) == lines
    assert changed(old, old) == []


# -- recorder ------------------------------------------------------------------------------------


def test_rows_may_bring_new_columns(tmp_path):
    path = tmp_path / "metrics" / "train.csv"
    append(path, {"gradient_step": 1, "loss": 0.5})
    append(path, {"gradient_step": 2, "loss": 0.25})
    append(path, {"gradient_step": 3, "loss": 0.125, "entropy": 2})
    append(path, {"gradient_step": 4, "entropy": 3})
    assert [list(row.values()) for row in read_csv(path)] == [
        ["1", "0.5", ""],
        ["2", "0.25", ""],
        ["3", "0.125", "2"],
        ["4", "", "3"],
    ]


@pytest.mark.parametrize(("step", "kept"), [(0, []), (1, [1]), (3, [1, 2, 3]), (9, [1, 2, 3, 4])])
def test_rewinding_drops_later_rows_and_a_torn_line(step, kept, tmp_path):
    path = tmp_path / "train.csv"
    for i in range(1, 5):
        append(path, {"gradient_step": i, "loss": 0.5})
    with path.open("a") as file:
        file.write("5,0.")
    rewind(path, step)
    assert path.exists() == bool(kept)
    append(path, {"gradient_step": step + 1, "loss": 0.5})
    assert [int(row["gradient_step"]) for row in read_csv(path)] == [*kept, step + 1]


def test_metrics_reach_the_host_in_one_transfer(monkeypatch):
    calls = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: calls.append(1) or to_list(x))
    for name in ("item", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, None)  # each would be a transfer of its own
    metrics = {"a": torch.tensor(1.23456789), "b": torch.tensor(2), "c": torch.tensor(3.0).half()}
    assert host_values(metrics) == {"a": 1.23457, "b": 2.0, "c": 3.0}
    assert calls == [1]


def wandb_records(path: Path) -> list[wandb_internal_pb2.Record]:
    """The records of a W&B file: they lie in chunks (checksum, length, part) in blocks."""
    content, place, record, records = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if (room := -place % 32768) < 7:
            place += room
        length, part = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # whole, or the last part
            records.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return records


def test_wandb_without_a_key_records_offline_and_goes_on(small_run, tmp_path, monkeypatch, capsys):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)  # asking for a key would fail
    assert main(small_run(2, "--log.wandb=online")) == 0
    assert "no API key found, recording offline" in capsys.readouterr().out
    run = tmp_path / "run"
    identity = (run / "wandb_run_id").read_text()
    assert main(small_run(4, "--log.wandb=offline", "--ckpt_path=last")) == 0
    assert (run / "wandb_run_id").read_text() == identity
    recorded = list(run.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))
    assert recorded and all(b"critic/q_mean" in path.read_bytes() for path in recorded)
    # Its steps are gradient steps, so a row that comes again falls onto what is there.
    records = [wandb_records(path) for path in recorded]
    steps = [[r.history.step.num for r in life if r.HasField("history")] for life in records]
    assert sorted(steps) == [[1, 2], [3, 4]]
    for life in records:
        axes = {(r.metric.name or r.metric.glob_name, r.metric.step_metric) for r in life}
        assert axes - {("", "")} == {
            ("gradient_step", ""),
            ("env_step", ""),
            ("*", "gradient_step"),
        }
    assert not (tmp_path / "wandb").exists()


# -- progress ------------------------------------------------------------------------------------


def a_run(build, tmp_path):
    recorder = Recorder(str(tmp_path), every=1)
    recorder.latest = {"steps_per_second": 50.0, "loss": 0.5, "critic/q_mean": -12.34}
    recorder.success = 0.35
    method = build(QAM, tau=1.0, residual=True)
    method.gradient_step = 4000
    return SimpleNamespace(callbacks=[recorder], max_steps=20_000), method


def test_the_status_names_what_matters(build, tmp_path):
    trainer, method = a_run(build, tmp_path)
    assert status(method, 20_000, trainer.callbacks[0]) == (
        "offline 4,000/20,000 · 50 steps/s · 0:05:20 left · loss 0.5 · mean Q -12.3 · success 35%"
    )
    assert status(method, 20_000, None) == "offline 4,000/20,000"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_in_a_terminal_and_lines_elsewhere(terminal, build, tmp_path):
    trainer, method = a_run(build, tmp_path)
    progress = Progress(every=3600)
    output = io.StringIO()
    progress._console = Console(file=output, force_terminal=terminal, width=200)
    progress.on_train_start(trainer, method)
    for _ in range(3):
        progress.on_train_batch_end(trainer, method)
    assert ("━" in output.getvalue()) == terminal
    progress.on_train_end(trainer, method)
    assert "success 35%" in output.getvalue()
    if not terminal:
        assert output.getvalue().count("\n") == 1


def test_progress_is_silent_on_other_ranks(build, tmp_path, capsys):
    trainer, method = a_run(build, tmp_path)
    progress = Progress(every=0)
    progress.disable()
    progress.on_train_start(trainer, method)
    progress.on_train_batch_end(trainer, method)
    progress.on_train_end(trainer, method)
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


def test_versions_are_told_and_compared():
    now = provenance.versions()
    names = "python qam_lightning torch lightning ogbench mujoco gymnasium numpy"
    assert set(now) == set(names.split())
    assert now["torch"] == torch.__version__
    assert provenance.mismatches(now) == []
    assert provenance.mismatches({**now, "numpy": "0.1", "gymnasium": "0.1", "other": "1"}) == []
    (line,) = provenance.mismatches({**now, "mujoco": "3.9.0"})
    assert "3.9.0" in line and now["mujoco"] in line
