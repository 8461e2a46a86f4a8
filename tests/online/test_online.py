"""Runs through both phases: what they store, and that nothing depends on time or interruption."""

import errno
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qam_lightning.callbacks import metrics, online
from qam_lightning.checkpoints import read_checkpoint
from qam_lightning.callbacks.online import Online
from qam_lightning.cli import main
from qam_lightning.data import replay
from qam_lightning.data.replay import RUNNING, TERMINATED, TRUNCATED, row_type
from qam_lightning.envs.make import make_env
from qam_lightning.envs.rollout import LocalWorker
from qam_lightning.methods.base import Method
from qam_lightning.methods.qam import QAM
from tests.app.conftest import read_csv
from tests.app.test_training import assert_same
from tests.online.conftest import ENV, build
from tests.online.tiny import DEATH, LIMIT, TAKEN, Tiny

OFFLINE, STEPS, START, CHUNK = 4, 24, 10, 3
STATE = ("state_dict", "optimizer_states", "counters", "global_step", "online")


def rows_of(run: Path) -> np.ndarray:
    return np.fromfile(run / "checkpoints" / online.FILE, row_type(3, 2))


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
    assert main(build(data, run, "--evaluation.every_n_steps=6")) == 0
    return run


@pytest.fixture
def whole(finished, tmp_path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "whole")


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """The environment steps with which chunks started."""
    steps, act = [], Online._act

    def noting(self, observation):
        steps.append(self._replay.count + 1)
        return act(self, observation)

    monkeypatch.setattr(Online, "_act", noting)
    return steps


def repeats(rows: np.ndarray, envs: int = 1, broken: bool = False) -> None:
    """Checks rows against the environment itself, episode by episode."""
    env = make_env(ENV, 1)
    for number in range(envs):
        episode, own = -1, rows[number::envs]
        for before, row in zip([None, *own], own, strict=False):
            if row["first"]:
                episode += 1
                assert before is None or before["end"] or broken
                seed = online.episode_seed(0, episode, 1 + number)
                observation, steps = env.reset(seed=seed)[0], 0
            np.testing.assert_array_equal(row["observation"], np.float32(observation))
            observation, reward, terminated, truncated, info = env.step(row["action"])
            steps += 1
            np.testing.assert_array_equal(row["next_observation"], np.float32(observation))
            assert (row["reward"], row["success"]) == (reward, info["success"])
            assert truncated == (steps == LIMIT)
            end = TERMINATED if terminated else TRUNCATED if truncated else RUNNING
            assert row["end"] == end


def test_one_command_goes_from_the_dataset_to_the_environment(whole):
    train, evaluations, rows = table(whole), table(whole, "eval"), rows_of(whole)
    total = OFFLINE + STEPS - START
    assert [int(r["gradient_step"]) for r in train] == list(range(1, total + 1))
    taken = [0] * OFFLINE + list(range(START + 1, STEPS + 1))
    assert [int(r["env_step"]) for r in train] == taken
    assert [r["phase"] for r in train] == ["offline"] * OFFLINE + ["online"] * (STEPS - START)
    at = [(r["gradient_step"], r["env_step"], r["phase"]) for r in evaluations]
    assert at == [("6", "12", "online"), ("12", "18", "online"), ("18", "24", "online")]
    assert len(rows) == STEPS
    assert set(rows["end"]) == {RUNNING, TERMINATED, TRUNCATED}
    repeats(rows)
    ended = np.flatnonzero(rows["end"][:-1])  # counted when the next step begins
    assert int(float(train[-1]["online/episodes"])) == len(ended)
    lengths = np.diff(ended, prepend=-1)
    assert float(train[-1]["online/length"]) == pytest.approx(lengths.mean(), rel=1e-5)
    assert float(train[-1]["online/success"]) == pytest.approx(
        (rows["end"][ended] == TERMINATED).mean(), rel=1e-5
    )
    assert float(train[-1]["online/discarded"]) == 0
    checkpoint = last(whole)
    assert checkpoint["counters"] == {"gradient_step": 18, "env_step": 24, "phase": "online"}


def test_chunks_start_where_they_end_and_anew_with_each_episode(asked, arguments, tmp_path):
    assert main(arguments()) == 0
    rows, expected, used = rows_of(tmp_path / "run"), [], CHUNK
    for n, row in enumerate(rows):
        if row["first"] or used == CHUNK:
            expected.append(n + 1)
            used = 0
        used += 1
    assert asked == expected
    assert any(b - a < CHUNK for a, b in zip(asked, asked[1:], strict=False))


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
    assert main(arguments("--evaluation.every_n_steps=6", run_dir=ahead, online__ahead="true")) == 0
    for path in ("metrics/train.csv", "checkpoints/replay.bin"):
        assert (whole / path).exists()
    assert_same_runs(whole, ahead)


def test_the_environment_takes_a_whole_chunk_while_one_update_is_made(
    arguments, monkeypatch, tmp_path
):
    taken, step, ahead = tmp_path / "taken", Method.training_step, []
    monkeypatch.setenv(TAKEN, str(taken))

    def waiting(self, batch, batch_idx):
        (callback,) = (c for c in self.trainer.callbacks if isinstance(c, Online))
        deadline = time.monotonic() + 2
        while self.phase == "online" and CHUNK not in ahead and time.monotonic() < deadline:
            ahead.append(taken.stat().st_size - callback._replay.count)
            time.sleep(0.001)
        step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", waiting)
    assert main(arguments(online__ahead="true")) == 0
    assert max(ahead) == CHUNK


# -- interruption --------------------------------------------------------------------------------


def kill_at(monkeypatch, gradient_step):
    """Has the run end within a step, with nothing saved or closed."""
    step = Method.training_step

    def dying(self, batch, batch_idx):
        step(self, batch, batch_idx)
        if self.gradient_step == gradient_step:
            raise RuntimeError("killed")

    monkeypatch.setattr(Method, "training_step", dying)


@pytest.mark.parametrize(("every", "inside"), [(4, False), (8, False), (10, True), (11, True)])
def test_a_killed_run_goes_on_bit_by_bit(every, inside, whole, arguments, tmp_path, monkeypatch):
    run, flags = tmp_path / "run", ("--evaluation.every_n_steps=6", f"--checkpoints.every_n_steps={every}")
    kill_at(monkeypatch, every + 2)
    with pytest.raises(RuntimeError, match="killed"):
        main(arguments(*flags))
    monkeypatch.undo()
    saved = last(run)
    assert saved["counters"]["gradient_step"] == every
    # Whether the cut is in the middle of an episode and of a chunk; else at their end.
    stream = saved["online"]["streams"][0]
    assert (stream["chunk"] is not None and stream["length"] > 0) == inside
    assert (run / "checkpoints/replay.bin").stat().st_size > saved["online"]["rows"] * 40
    assert main(arguments(*flags, "--ckpt_path=last")) == 0
    assert_same_runs(whole, run)


def test_an_interrupt_stops_the_first_steps_too(whole, arguments, tmp_path, monkeypatch, capsys):
    run, act = tmp_path / "run", Online._act

    def interrupted(self, observation):
        if self._replay.count >= 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return act(self, observation)

    monkeypatch.setattr(Online, "_act", interrupted)
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

    monkeypatch.setattr(replay, "_BLOCK", 16)
    monkeypatch.setattr(replay.Replay, "_grow", full)
    assert main(arguments(*flags, "--checkpoints.every_n_steps=7")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "replay.bin: cannot write: No space left" in error
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


def test_an_episode_that_cannot_be_brought_back_is_discarded(
    arguments, tmp_path, monkeypatch, capsys
):
    run, flags = tmp_path / "run", ("--checkpoints.every_n_steps=11",)
    kill_at(monkeypatch, 12)
    with pytest.raises(RuntimeError, match="killed"):
        main(arguments(*flags))
    monkeypatch.undo()
    known = last(run)["online"]
    assert known["streams"][0]["length"] > 0
    reset = Tiny.reset

    def changed(self, **kwargs):
        reset(self, **kwargs)
        self.state = self.state + 1e-3
        return self.state, {}

    monkeypatch.setattr(Tiny, "reset", changed)
    assert main(arguments(*flags, "--ckpt_path=last")) == 0
    assert capsys.readouterr().err.count("the episode was discarded") == 1
    assert float(table(run)[-1]["online/discarded"]) == 1
    rows = rows_of(run)
    assert len(rows) == STEPS and rows["first"][known["rows"]]
    assert rows["end"][known["rows"] - 1] == RUNNING


@pytest.mark.parametrize("where", ["within an episode", "on its first step"])
def test_a_dead_environment_is_replaced_and_its_episode_counted(
    where, arguments, tmp_path, monkeypatch, capsys
):
    death, act, killed = tmp_path / "death", Online._act, []
    monkeypatch.setenv(DEATH, str(death))

    def deadly(self, observation):
        over = self._replay.rows["end"][-1:] != RUNNING
        if self._replay.count >= 8 and not killed and over == (where == "on its first step"):
            killed.append(self._replay.count)
            death.touch()
        return act(self, observation)

    monkeypatch.setattr(Online, "_act", deadly)
    assert main(arguments(online__ahead="true")) == 0
    assert killed and not death.exists()
    error = capsys.readouterr().err
    assert "ended unexpectedly with exit code 9" in error and "goes on with a new episode" in error
    rows, run = rows_of(tmp_path / "run"), tmp_path / "run"
    assert len(rows) == STEPS
    broken = np.flatnonzero(rows["first"][1:].astype(bool) & (rows["end"][:-1] == RUNNING)) + 1
    assert broken.tolist() == (killed if where == "within an episode" else [])
    assert np.flatnonzero(rows["first"] == 2).tolist() == killed
    assert float(table(run)[-1]["online/discarded"]) == 1
    # Of the episodes that were begun, each has ended, was discarded, or is running.
    stream = last(run)["online"]["streams"][0]
    assert stream["episode"] == (rows["end"] != RUNNING).sum() + 1


def test_an_episode_given_up_before_its_first_step_is_counted_after_a_resume_too():
    """A checkpoint may come between a discarded episode and the next one's first row."""
    kind = row_type(3, 2)

    def stream():
        return online.Stream(0, 0, kind, lambda: LocalWorker(ENV, 1, False, None))

    def act(observation):
        return np.zeros((CHUNK, 2), np.float32)

    first, second = stream(), stream()
    first._discard()
    second.restore(first.state(), np.empty(0, kind))
    assert second.take(act)["first"] == 2
    assert second.state()["discarded"] == 0


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--online.start=11", "online.start was 10 and is 11, which cannot change"),
        ("--online.utd_ratio=2", "online.utd_ratio was 1 and is 2"),
        ("--online.envs=2", "online.envs was 1 and is 2"),
        ("--trainer.max_steps=5", "trainer.max_steps was 4 and is 5"),
        ("--online.steps=0", "online.steps is 0, but the checkpoint has taken 24"),
        ("--data.sparse=true", "data.sparse was False and is True"),
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
        (("--online.steps=10",), "online.steps is 10, expected 0 or more than start, 10"),
        (("--online.start=1",), "online.start is 1, expected at least 2"),
        (("--online.mix=half", "--data.batch_size=7"), "data.batch_size is 7, expected an even"),
    ],
)
def test_settings_that_do_not_fit_are_refused(flags, told, arguments, capsys):
    assert main(arguments(*flags)) == 2
    error = capsys.readouterr().err.splitlines()
    assert told in error[-1]


# -- variants ------------------------------------------------------------------------------------


def test_several_environments_take_turns(arguments, tmp_path, monkeypatch):
    run, flags = tmp_path / "run", ("--online.envs=3", "--checkpoints.every_n_steps=8")
    assert main(arguments(*flags, run_dir=tmp_path / "whole")) == 0
    repeats(rows_of(tmp_path / "whole"), envs=3)
    kill_at(monkeypatch, 10)
    with pytest.raises(RuntimeError, match="killed"):
        main(arguments(*flags))
    monkeypatch.undo()
    assert main(arguments(*flags, "--ckpt_path=last")) == 0
    assert_same_runs(tmp_path / "whole", run)


def test_sparse_rewards_are_mapped_online_too(arguments, tmp_path):
    assert main(arguments(data__sparse="true", trainer__max_steps=1)) == 0
    rows = rows_of(tmp_path / "run")
    assert set(rows["reward"]) == {-1.0, 0.0}
    np.testing.assert_array_equal(rows["reward"] == 0, rows["end"] == TERMINATED)


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
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    assert main(arguments()) == 0
    speeds = [float(r["steps_per_second"]) for r in read_csv(tmp_path / "run/metrics/train.csv")]
    assert speeds[:OFFLINE] == [1.0] * OFFLINE
    # Of the steps before, no more than the last is still under way with the first update.
    assert 1 / 203 < speeds[OFFLINE] and speeds[-2] == pytest.approx(1 / 101, abs=1e-3)


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
    repeats(rows)
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
    callback = Online("run", 20, 5)
    callback._method = build(QAM, tau=1.0, residual=True)
    state = torch.get_rng_state()

    def chunk(rows: int) -> np.ndarray:
        callback._replay = SimpleNamespace(count=rows)
        return callback._act(np.zeros(7, np.float32))

    assert np.array_equal(chunk(3), chunk(3))
    assert not np.array_equal(chunk(3), chunk(4))
    assert torch.equal(torch.get_rng_state(), state)
