"""Runs through both phases: what they store, and that nothing depends on time or interruption."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from qam_lightning.callbacks.online import FILE, Online, online_policy
from qam_lightning.checkpoints import read_checkpoint
from qam_lightning.cli import main
from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.data.sampler import OfflineSampler
from qam_lightning.data.spaces import Spaces
from qam_lightning.methods.base import Method
from qam_lightning.methods.qam import QAM
from qam_lightning.online import replay
from qam_lightning.online.collector import Collector
from qam_lightning.online.replay import Ending, row_type
from tests.app.conftest import read_csv
from tests.app.test_training import assert_same
from tests.online.conftest import ENV
from tests.online.conftest import build as run_arguments
from tests.online.test_collector import repeats
from tests.online.tiny import Tiny

OFFLINE, STEPS, START, CHUNK = 4, 24, 10, 3
STATE = ("state_dict", "optimizer_states", "counters", "global_step", "online")


def rows_of(run: Path) -> np.ndarray:
    return np.fromfile(run / "checkpoints" / FILE, row_type(3, 2))


def last(run: Path) -> dict:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


def table(run: Path, name: str = "train") -> list[dict[str, str]]:
    """A run's metrics without what depends on the machine's speed."""
    rows = read_csv(run / "metrics" / f"{name}.csv")
    return [{k: v for k, v in r.items() if k not in ("steps_per_second", "seconds")} for r in rows]


def assert_same_runs(one: Path, other: Path) -> None:
    a, b = last(one), last(other)
    for key in STATE:
        assert_same(a[key], b[key], key)
    assert (one / "checkpoints/replay.bin").read_bytes() == (
        other / "checkpoints/replay.bin"
    ).read_bytes()
    assert table(one) == table(other)
    assert table(one, "eval") == table(other, "eval")


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory) -> Path:
    """A run in one go."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(run_arguments(data, run, "--evaluation.every_n_steps=6")) == 0
    return run


@pytest.fixture
def whole(finished, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "whole")


def test_one_command_goes_from_the_dataset_to_the_environment(whole):
    train, evaluations, rows = table(whole), table(whole, "eval"), rows_of(whole)
    total = OFFLINE + STEPS - START
    assert [int(r["gradient_step"]) for r in train] == list(range(1, total + 1))
    taken = [0] * OFFLINE + list(range(START + 1, STEPS + 1))
    assert [int(r["env_step"]) for r in train] == taken
    assert [r["phase"] for r in train] == ["offline"] * OFFLINE + ["online"] * (STEPS - START)
    at = [(r["gradient_step"], r["env_step"], r["phase"]) for r in evaluations]
    online = [("6", "12", "online"), ("12", "18", "online"), ("18", "24", "online")]
    assert at == [("4", "0", "offline"), *online]
    assert len(rows) == STEPS
    assert set(rows["ending"]) == set(Ending)
    repeats(rows, 0)
    ended = np.flatnonzero(rows["ending"][:-1])  # counted when the next step begins
    assert int(float(train[-1]["online/episodes"])) == len(ended)
    lengths = np.diff(ended, prepend=-1)
    assert float(train[-1]["online/length"]) == pytest.approx(lengths.mean(), rel=1e-5)
    assert float(train[-1]["online/success"]) == pytest.approx(
        (rows["ending"][ended] == Ending.TERMINATED).mean(), rel=1e-5
    )
    assert float(train[-1]["online/discarded"]) == 0
    checkpoint = last(whole)
    assert checkpoint["counters"] == {"gradient_step": 18, "env_step": 24, "phase": "online"}


def test_updates_see_the_rows_of_their_step_and_no_others(arguments, monkeypatch, tmp_path):
    seen, step = {}, Method.training_step

    def noting(self, batch, batch_idx):
        seen[self.gradient_step] = batch.observations
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", noting)
    flags = ("--online.utd_ratio=2", "--data.batch_size=64")
    assert main(arguments(*flags)) == 0
    rows = rows_of(tmp_path / "run")
    assert list(seen) == list(range(OFFLINE + 2 * (STEPS - START)))
    for g, observations in seen.items():
        visible = START + 1 + (g - OFFLINE) // 2 if g >= OFFLINE else 0
        same = (observations.numpy()[:, None] == rows["observation"]).all(-1)
        found = np.flatnonzero(same.any(0))
        assert len(found) == 0 if g < OFFLINE else 0 <= found.max() <= visible - CHUNK
    assert same.any(0)[STEPS - 2 * CHUNK :].any()  # the newest are drawn too


def test_an_environment_that_runs_ahead_changes_nothing(whole, arguments, tmp_path):
    ahead = tmp_path / "ahead"
    assert (
        main(arguments("--evaluation.every_n_steps=6", run_dir=ahead, online__async_env="true"))
        == 0
    )
    for path in ("metrics/train.csv", "checkpoints/replay.bin"):
        assert (whole / path).exists()
    assert_same_runs(whole, ahead)


@pytest.mark.parametrize("fails", [False, True])
def test_it_works_without_the_command_line(fails, data, tmp_path, monkeypatch):
    settings = {"horizon": CHUNK, "batch_size": 8}
    method = QAM(Spaces(3, 2, CHUNK), tau=1.0, width=8, depth=1, flow_steps=2)
    collect = Online(str(tmp_path), STEPS, START, async_env=False)
    chunks = ChunkDataModule(ENV, path=str(data), **settings)
    trainer = Trainer(
        max_steps=OFFLINE,
        callbacks=[collect],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if fails:
        kill_at(monkeypatch, OFFLINE + 2)
        with pytest.raises(RuntimeError, match="killed"):
            trainer.fit(method, chunks)
    else:
        trainer.fit(method, chunks)
        counters = (method.gradient_step, method.env_step, method.phase)
        assert counters == (OFFLINE + STEPS - START, STEPS, "online")
        repeats(rows_of(tmp_path), 0)
    assert isinstance(chunks.sampler, OfflineSampler)  # the replay is closed


# -- interruption --------------------------------------------------------------------------------


def kill_at(monkeypatch, gradient_step):
    """Has the run end within a step, with nothing saved or closed."""
    step = Method.training_step

    def dying(self, batch, batch_idx):
        step(self, batch, batch_idx)
        if self.gradient_step == gradient_step:
            raise RuntimeError("killed")

    monkeypatch.setattr(Method, "training_step", dying)


def cuts(rows: np.ndarray) -> dict[bool, list[int]]:
    """Gradient steps online, by whether they lie within an episode and a chunk, or at their end."""
    found: dict[bool, list[int]] = {True: [], False: []}
    executed = 0
    for n, row in enumerate(rows, 1):
        executed = 1 if row["first"] or executed == CHUNK else executed + 1
        if START < n < STEPS - 2:
            inside = row["ending"] == Ending.RUNNING and executed < CHUNK
            found[inside].append(OFFLINE + n - START)
    return found


@pytest.mark.parametrize("phase", ["offline", "at an end", "inside"])
def test_a_killed_run_goes_on_bit_by_bit(phase, whole, arguments, tmp_path, monkeypatch):
    every = OFFLINE if phase == "offline" else cuts(rows_of(whole))[phase == "inside"][0]
    run, flags = (
        tmp_path / "run",
        ("--evaluation.every_n_steps=6", f"--checkpoints.every_n_steps={every}"),
    )
    kill_at(monkeypatch, every + 2)
    with pytest.raises(RuntimeError, match="killed"):
        main(arguments(*flags))
    monkeypatch.undo()
    saved = last(run)
    assert saved["counters"]["gradient_step"] == every
    actor = saved["online"]["actors"][0]
    assert (actor["chunk"] is not None and actor["length"] > 0) == (phase == "inside")
    size = saved["online"]["rows"] * row_type(3, 2).itemsize
    assert (run / "checkpoints/replay.bin").stat().st_size > size
    assert main(arguments(*flags, "--ckpt_path=last")) == 0
    assert_same_runs(whole, run)


def test_an_interrupt_stops_the_first_steps_too(whole, arguments, tmp_path, monkeypatch):
    run, advance = tmp_path / "run", Collector.advance

    def interrupted(self):
        if self.steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        advance(self)

    monkeypatch.setattr(Collector, "advance", interrupted)
    assert main(arguments("--evaluation.every_n_steps=6")) == 128 + signal.SIGTERM
    monkeypatch.undo()
    stopped = last(run)["counters"]
    assert stopped["gradient_step"] == OFFLINE and 5 < stopped["env_step"] < START
    assert stopped["phase"] == "online"
    assert main(arguments("--evaluation.every_n_steps=6", "--ckpt_path=last")) == 0
    assert_same_runs(whole, run)


def test_a_full_disk_stops_the_run_with_what_was_saved(
    whole, arguments, tmp_path, monkeypatch, capsys
):
    run, flags, grow = tmp_path / "run", ("--evaluation.every_n_steps=6",), replay.Replay._grow

    def full(self):
        if self.count:
            raise OSError(errno.ENOSPC, "No space left on device")
        grow(self)

    monkeypatch.setattr(replay, "BLOCK", 16)
    monkeypatch.setattr(replay.Replay, "_grow", full)
    assert main(arguments(*flags, "--checkpoints.every_n_steps=7")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "replay.bin: cannot be written: No space left" in error
    assert last(run)["counters"]["gradient_step"] == 7  # not a state with a step half done
    monkeypatch.undo()
    assert main(arguments(*flags, "--ckpt_path=last")) == 0
    assert_same_runs(whole, run)


def test_an_offline_run_can_go_on_online(whole, arguments, tmp_path):
    run = tmp_path / "run"
    assert main(arguments("--evaluation.every_n_steps=6", online__steps=0)) == 0
    assert not (run / "checkpoints/replay.bin").exists()
    assert main(arguments("--evaluation.every_n_steps=6", "--ckpt_path=last")) == 0
    one, two = last(whole), last(run)
    for key in STATE:
        assert_same(one[key], two[key], key)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        (
            "--online.learning_starts=11",
            "online.learning_starts is 11, expected 10 as in the checkpoint",
        ),
        ("--online.utd_ratio=2", "online.utd_ratio is 2, expected 1"),
        ("--online.num_envs=2", "online.num_envs is 2, expected 1"),
        ("--trainer.max_steps=5", "trainer.max_steps is 5, expected 4"),
        ("--online.steps=0", "steps is 0, but the checkpoint has taken 24"),
        ("--data.sparse=true", "data.sparse is True, expected False"),
    ],
)
def test_what_cannot_change_is_refused(flag, told, whole, arguments, capsys):
    before = (whole / "checkpoints/replay.bin").read_bytes()
    assert main(arguments("--ckpt_path=last", flag, run_dir=whole)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and told in error
    assert (whole / "checkpoints/replay.bin").read_bytes() == before


@pytest.mark.parametrize("damage", ["short", "wrong"])
def test_a_damaged_replay_is_refused_and_left_alone(damage, whole, arguments, capsys):
    path = whole / "checkpoints/replay.bin"
    content = bytearray(path.read_bytes())
    content = content[:-1] if damage == "short" else bytes([content[0] ^ 1]) + content[1:]
    path.write_bytes(content)
    assert main(arguments("--ckpt_path=last", run_dir=whole)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    told = "holds 23 environment steps, but" if damage == "short" else "are not those of the"
    assert told in error and "replay.bin" in error
    assert path.read_bytes() == content


def test_a_finished_run_can_be_lengthened(whole, arguments, tmp_path):
    longer = tmp_path / "longer"
    flags = ("--evaluation.every_n_steps=6",)
    assert main(arguments(*flags, run_dir=longer, online__steps=30)) == 0
    assert main(arguments(*flags, "--ckpt_path=last", run_dir=whole, online__steps=30)) == 0
    assert_same_runs(whole, longer)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--online.steps=10",), "steps is 10, expected 0 or more than learning_starts, 10"),
        (("--online.learning_starts=1",), "learning_starts is 1, expected at least 2"),
        (
            ("--online.sampling=half", "--data.batch_size=7"),
            "batch_size is 7, expected an even",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(flags, told, arguments, capsys):
    assert main(arguments(*flags)) == 2
    error = capsys.readouterr().err.splitlines()
    assert told in error[-1]


# -- variants ------------------------------------------------------------------------------------


def test_several_environments_take_turns(arguments, tmp_path, monkeypatch):
    run, flags = tmp_path / "run", ("--online.num_envs=3", "--checkpoints.every_n_steps=8")
    assert main(arguments(*flags, run_dir=tmp_path / "whole")) == 0
    repeats(rows_of(tmp_path / "whole"), 0, envs=3)
    kill_at(monkeypatch, 10)
    with pytest.raises(RuntimeError, match="killed"):
        main(arguments(*flags))
    monkeypatch.undo()
    assert main(arguments(*flags, "--ckpt_path=last")) == 0
    assert_same_runs(tmp_path / "whole", run)


def test_sparse_rewards_are_mapped_online_too(arguments, tmp_path):
    assert main(arguments(data__sparse="true", trainer__max_steps=1, online__steps=80)) == 0
    rows = rows_of(tmp_path / "run")
    assert set(rows["reward"]) == {-1.0, 0.0}
    np.testing.assert_array_equal(rows["reward"] == 0, rows["ending"] == Ending.TERMINATED)


def test_the_first_steps_are_not_taken_for_slow_updates(arguments, tmp_path, monkeypatch):
    """On a clock that environment steps move by 100 seconds and updates by one."""
    clock, step, update = [0.0], Tiny.step, Method.training_step

    def stepping(self, action):
        clock[0] += 100
        return step(self, action)

    def updating(self, batch, batch_idx):
        clock[0] += 1
        return update(self, batch, batch_idx)

    monkeypatch.setattr(Tiny, "step", stepping)
    monkeypatch.setattr(Method, "training_step", updating)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert main(arguments()) == 0
    speeds = [float(r["steps_per_second"]) for r in read_csv(tmp_path / "run/metrics/train.csv")]
    assert speeds[:OFFLINE] == [1.0] * OFFLINE
    # Of the steps before, no more than the last is still under way with the first update.
    assert 1 / 203 < speeds[OFFLINE]
    assert sum(1 / speed for speed in speeds[OFFLINE:]) < 101 * (STEPS - START) + 203


def test_rlpd_starts_at_random_and_learns_from_halves(arguments, tmp_path, monkeypatch):
    seen, step = {}, Method.training_step

    def noting(self, batch, batch_idx):
        seen[self.gradient_step] = batch.observations
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", noting)
    run = tmp_path / "run"
    assert main(arguments("--method=rlpd")) == 0
    rows, train = rows_of(run), table(run)
    assert [int(r["gradient_step"]) for r in train] == list(range(1, STEPS - START + 1))
    assert [int(r["env_step"]) for r in train] == list(range(START + 1, STEPS + 1))
    assert {r["phase"] for r in train} == {"online"}
    repeats(rows, 0)
    for observations in seen.values():
        lived = (observations.numpy()[:, None] == rows["observation"]).all(-1).any(1)
        assert lived.tolist() == [False, True] * 4
    monkeypatch.undo()
    # The same random start whatever the weights, another with another seed.
    flags = ("--method=rlpd", "--online.steps=11")
    assert main(arguments(*flags, "--model.width=4", run_dir=tmp_path / "b")) == 0
    np.testing.assert_array_equal(rows_of(tmp_path / "b")[:START], rows[:START])
    assert main(arguments(*flags, "--seed=1", run_dir=tmp_path / "c")) == 0
    assert not np.isin(rows_of(tmp_path / "c")["action"][:START], rows["action"]).any()


def test_a_delayed_actor_goes_online_too(arguments, tmp_path):
    assert main(arguments("--method=rebrac", "--model.alpha=1", "--model.noise_scale=0.1")) == 0
    assert len(rows_of(tmp_path / "run")) == STEPS
    assert last(tmp_path / "run")["counters"]["gradient_step"] == OFFLINE + STEPS - START


def test_noise_belongs_to_the_step(build):
    """The same chunk from the same weights at the same step, another at another."""
    act = online_policy(build(QAM, tau=1.0, residual=True), seed=0, learning_starts=0)
    state, observation = torch.get_rng_state(), np.zeros(7, np.float32)
    assert np.array_equal(act(observation, 4), act(observation, 4))
    assert not np.array_equal(act(observation, 4), act(observation, 5))
    assert torch.equal(torch.get_rng_state(), state)
