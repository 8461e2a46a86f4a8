"""Collection with plain functions as policies: what it stores, resumes, survives and counts."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qam_lightning.envs.chunked import EnvSettings
from qam_lightning.envs.make import make_env
from qam_lightning.envs.worker import LocalWorker, ProcessWorker, WorkerError
from qam_lightning.online.actor import ATTEMPTS, EnvActor, reset_seed
from qam_lightning.online.collector import Collector
from qam_lightning.online.replay import Ending, Replay, read_rows, row_type
from qam_lightning.online.statistics import RECENT, EpisodeStatistics
from tests.online.conftest import ENV
from tests.online.tiny import DEATH, LIMIT, TAKEN, Tiny

SEED, CHUNK, STEPS = 3, 3, 40
KIND = row_type(3, 2)


def act(observation: np.ndarray, step: int) -> np.ndarray:
    """A chunk that depends on the observation and on the step's number."""
    angles = step + observation[:2] + np.arange(CHUNK)[:, None]
    return np.sin(angles).astype(np.float32)


def alone(value, number):
    """The broadcast of a single process."""
    return value


def make(path: Path, policy=act, envs=1, worker=LocalWorker, mine=None, broadcast=alone):
    """A collector of the environments ``mine``, by default all of them."""
    actors = {
        number: EnvActor(number, SEED, lambda: worker(EnvSettings(ENV, 1)))
        for number in (range(envs) if mine is None else mine)
    }
    return Collector(policy, actors, Replay(path, KIND, CHUNK, 0.9, envs), broadcast)


def collect(collector: Collector, steps: int = STEPS) -> np.ndarray:
    """Take steps until there are so many, and return a copy of their rows."""
    while collector.steps < steps:
        collector.advance()
    collector.receive()
    return collector.replay.rows.copy()


def finish(collector: Collector, steps: int = STEPS) -> bytes:
    """Take steps, close everything, and return what the replay's file holds."""
    path = collector.replay._path
    collect(collector, steps)
    collector.close()
    return path.read_bytes()


def repeats(rows: np.ndarray, seed: int, envs: int = 1) -> None:
    """Check rows against the environment itself, episode by episode."""
    env = make_env(ENV, 1)
    for number in range(envs):
        episode, running = 0, False
        for row in rows[number::envs]:
            if row["first"]:
                assert not running or row["discarded"]
                episode += int(row["discarded"])
                observation, steps = env.reset(seed=reset_seed(seed, number, episode))[0], 0
            np.testing.assert_array_equal(row["observation"], np.float32(observation))
            observation, reward, terminated, truncated, info = env.step(row["action"])
            steps += 1
            np.testing.assert_array_equal(row["next_observation"], np.float32(observation))
            assert (row["reward"], row["success"]) == (reward, info["success"])
            assert truncated == (steps == LIMIT)
            ending = Ending.TERMINATED if terminated else Ending(2 * truncated)
            assert row["ending"] == ending
            running = ending == Ending.RUNNING
            episode += not running


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The replay of a collection in one go."""
    return finish(make(tmp_path / "whole"))


@pytest.mark.parametrize("envs", [1, 3])
def test_rows_are_the_environments_own_episodes(envs: int, tmp_path: Path) -> None:
    rows = collect(make(tmp_path / "a", envs=envs))
    assert len(rows) == STEPS
    assert set(rows["ending"]) == set(Ending)
    assert not rows["discarded"].any()
    repeats(rows, SEED, envs)


def test_chunks_start_where_they_end_and_anew_with_each_episode(tmp_path: Path) -> None:
    asked: dict[int, np.ndarray] = {}

    def noting(observation: np.ndarray, step: int) -> np.ndarray:
        asked[step] = observation
        return act(observation, step)

    rows, expected, executed = collect(make(tmp_path / "a", noting)), [], CHUNK
    for n, row in enumerate(rows):
        if row["first"] or executed == CHUNK:
            expected.append(n + 1)
            executed = 0
            np.testing.assert_array_equal(asked[n + 1], row["observation"])
        np.testing.assert_array_equal(
            row["action"], act(asked[expected[-1]], expected[-1])[executed]
        )
        executed += 1
    assert list(asked) == expected
    assert min(np.diff(expected)) < CHUNK


def test_an_environment_in_its_own_process_changes_nothing(whole: bytes, tmp_path: Path) -> None:
    assert finish(make(tmp_path / "a", worker=ProcessWorker)) == whole


def test_an_environment_takes_its_whole_chunk_ahead(tmp_path: Path, monkeypatch) -> None:
    taken = tmp_path / "taken"
    monkeypatch.setenv(TAKEN, str(taken))
    collector = make(tmp_path / "a", worker=ProcessWorker)
    collector.advance()
    deadline = time.monotonic() + 60
    while not taken.exists() or taken.stat().st_size < CHUNK:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (collector.steps, collector.replay.count) == (1, 0)
    collector.close()


def test_a_step_is_received_early_where_a_batch_waits_for_it(whole: bytes, tmp_path: Path) -> None:
    collector = make(tmp_path / "a")
    while collector.steps < STEPS:
        collector.advance()
        assert collector.replay.count == collector.steps - 1
        if collector.steps % 2:
            collector.wait(collector.steps)
            assert collector.replay.count == collector.steps
            # Results are counted with the next step, whether or not a batch waited.
            assert collector.statistics.rows == collector.steps - 1
    assert finish(collector) == whole


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_processes_have_the_replay_of_one(ranks: int, tmp_path: Path) -> None:
    """Processes in threads, which meet to exchange their steps."""
    expected = finish(make(tmp_path / "one", envs=3))
    meeting, board = threading.Barrier(ranks), {}

    def run(rank: int) -> bytes:
        def broadcast(value, number):
            if number % ranks == rank:
                board["value"] = value
            else:
                assert value is None
            meeting.wait(60)
            received = board["value"]
            meeting.wait(60)
            return received

        mine = range(rank, 3, ranks)
        collector = make(tmp_path / f"{rank}", envs=3, mine=mine, broadcast=broadcast)
        collect(collector, STEPS // 2)
        state, rows = collector.state_dict(), collector.replay.rows.copy()
        collector.close()
        again = make(tmp_path / f"{rank}-again", envs=3, mine=mine, broadcast=broadcast)
        again.restore(state, rows)
        return finish(again)

    with ThreadPoolExecutor(ranks) as threads:
        assert list(threads.map(run, range(ranks))) == [expected] * ranks


def test_the_guides_example_works(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    guide = Path(__file__).parents[2] / "docs" / "online.md"
    (code,) = re.findall(r"```python\n(.*?)```", guide.read_text(), re.DOTALL)
    exec(compile(code, guide.name, "exec"), {})
    assert capsys.readouterr().out.startswith("1000 {'online/success': 0.0, 'online/return': -")


# -- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [LocalWorker, ProcessWorker])
def test_a_restored_collection_goes_on_to_the_bit(worker, whole: bytes, tmp_path: Path) -> None:
    inside = set()
    cuts = range(0, STEPS) if worker is LocalWorker else (0, 10, 11)
    for cut in cuts:
        first, second = (make(tmp_path / f"{cut}-{i}", worker=worker) for i in (1, 2))
        collect(first, cut)
        state = first.state_dict()
        collect(first, cut + 2)  # steps that the saved state does not know
        first.close()
        rows = read_rows(tmp_path / f"{cut}-1", KIND, state["rows"], state["crc32"])
        assert len(rows) == cut
        second.restore(state, rows)
        (actor,) = state["actors"]
        inside.add((actor["length"] > 0, actor["chunk"] is not None))
        assert finish(second) == whole
        assert second.statistics == counted(whole)
    assert inside >= {(False, False), (True, False), (True, True)}


def counted(content: bytes) -> EpisodeStatistics:
    """The statistics of all rows but the last, which is counted with the next step."""
    statistics = EpisodeStatistics()
    for row in np.frombuffer(content, KIND)[:-1]:
        statistics.update(row, 0)
    return statistics


def test_an_episode_that_cannot_be_restored_is_discarded(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    collect(first, 11)
    state, rows = first.state_dict(), first.replay.rows.copy()
    assert state["actors"][0]["length"] > 0
    first.close()
    reset = Tiny.reset

    def changed(self, **kwargs):
        reset(self, **kwargs)
        self.state = self.state + 1e-3
        return self.state, {}

    monkeypatch.setattr(Tiny, "reset", changed)
    second.restore(state, rows)
    assert capsys.readouterr().err.count("the episode was discarded") == 1
    rows = collect(second)
    assert (rows["first"][11], rows["discarded"][11], rows["ending"][10]) == (True, 1, 0)
    assert rows["discarded"].sum() == 1
    assert second.statistics.discarded == 1


def test_an_episode_discarded_before_its_first_step_is_counted_after_a_resume_too(
    tmp_path: Path,
) -> None:
    """A checkpoint may come between a discarded episode and the next one's first row."""
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    first.actors[0].discard()
    second.restore(first.state_dict(), np.empty(0, KIND))
    rows = collect(second, 8)
    assert rows["discarded"].tolist() == [1] + [0] * 7
    assert second.state_dict()["actors"][0]["discarded"] == 0
    repeats(rows, SEED)


# -- deaths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["within an episode", "on its first step"])
def test_a_dead_environment_is_replaced_and_its_episode_counted(
    where: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    death, killed = tmp_path / "death", []
    monkeypatch.setenv(DEATH, str(death))

    def deadly(observation: np.ndarray, step: int) -> np.ndarray:
        over = collector.replay.rows["ending"][-1:] != Ending.RUNNING
        if step > 8 and not killed and over == (where == "on its first step"):
            killed.append(step - 1)
            death.touch()
        return act(observation, step)

    collector = make(tmp_path / "a", deadly, worker=ProcessWorker)
    rows = collect(collector)
    assert killed and not death.exists()
    error = capsys.readouterr().err
    assert "ended unexpectedly with exit code 9" in error and "goes on with a new episode" in error
    assert len(rows) == STEPS
    repeats(rows, SEED)
    broken = np.flatnonzero(rows["first"][1:] & (rows["ending"][:-1] == Ending.RUNNING)) + 1
    assert broken.tolist() == (killed if where == "within an episode" else [])
    assert np.flatnonzero(rows["discarded"]).tolist() == killed
    assert collector.statistics.discarded == 1
    # Of the episodes that were begun, each has ended, was discarded, or is running.
    assert collector.actors[0].episode == (rows["ending"] != Ending.RUNNING).sum() + 1
    collector.close()


def test_environments_that_always_die_end_the_collection(tmp_path: Path) -> None:
    made = []

    class Dead(LocalWorker):
        def send(self, requests):
            made.append(requests)
            raise WorkerError("dead")

    collector = make(tmp_path / "a", worker=Dead)
    with pytest.raises(WorkerError, match="dead"):
        collector.advance()
    assert len(made) == ATTEMPTS
    assert collector.mid_step  # what is in memory now is no state to save


# -- statistics ----------------------------------------------------------------------------------


def test_statistics_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    envs, steps = 2, 300
    collector = make(tmp_path / "a", envs=envs)
    rows = collect(collector, steps)[: steps - 1]
    finished, running = [], {}
    for n, row in enumerate(rows):
        running[n % envs] = ([] if row["first"] else running[n % envs]) + [row]
        if row["ending"]:
            finished.append(running[n % envs])
    assert len(finished) > RECENT
    metrics, recent = collector.statistics.metrics(), finished[-RECENT:]
    assert metrics == {
        "online/success": np.mean([float(e[-1]["success"]) for e in recent]),
        "online/return": np.mean([sum(float(row["reward"]) for row in e) for e in recent]),
        "online/length": np.mean([len(e) for e in recent]),
        "online/episodes": len(finished),
        "online/discarded": 0,
    }
    again = EpisodeStatistics()
    again.load_state_dict(collector.statistics.state_dict())
    assert again == collector.statistics


def test_without_a_finished_episode_there_are_no_means() -> None:
    assert EpisodeStatistics().metrics() == {"online/episodes": 0.0, "online/discarded": 0.0}
