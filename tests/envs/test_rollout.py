"""Chunked rollouts: where chunks end, what success is, and that workers do not change results."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qam_lightning.envs.chunked import ChunkedEnv
from qam_lightning.envs.gl import headless_gl
from qam_lightning.envs.make import make_env
from qam_lightning.envs.rollout import RolloutPool, Share, WorkerError, episode_seed
from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.methods.qam import QAM
from qam_lightning.util.errors import UserError

ENV, TASK = "pointmaze-medium", 3


class Walker:
    """Walks a point maze along the shortest path; a linear map of the state adds some wandering.

    Keeps what it was shown, so that tests can compare whole rollouts bit for bit.
    """

    def __init__(self, horizon=5, wander=0.3):
        self.maze = make_env(ENV, TASK)
        self.maze.reset(seed=0)
        self.goal = self.maze.unwrapped.cur_goal_xy
        self.weights = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
        self.horizon, self.wander = horizon, wander
        self.shown, self.episodes = [], []

    def __call__(self, observations, episodes):
        self.shown.append(observations.copy())
        self.episodes.append(list(episodes))
        goals = [self.maze.unwrapped.get_oracle_subgoal(o, self.goal)[0] for o in observations]
        towards = np.clip(np.stack(goals) - observations, -1, 1)
        actions = towards + self.wander * np.sin(observations @ self.weights)
        return np.repeat(actions[:, None], self.horizon, 1).astype(np.float32)


def still(observations, episodes):
    return np.zeros((len(observations), 7, 2), np.float32)


def test_a_chunk_stops_where_the_episode_ends():
    env = make_env(ENV, TASK)
    chunked = ChunkedEnv(env)
    chunked.reset(seed=0)
    maze = env.unwrapped
    maze.set_xy(maze.cur_goal_xy + np.array([1.1, 0.0]))  # the goal's radius is 1
    chunk = chunked.execute(np.tile(np.array([-1.0, 0.0], np.float32), (5, 1)))
    # Success is judged before the action is taken, so the second step finds the goal reached.
    assert chunk.observations.shape == (2, 2)
    np.testing.assert_array_equal(chunk.rewards, [-1.0, 0.0])
    assert (chunk.terminated, chunk.truncated, chunk.success) == (True, False, 1.0)
    assert chunk.observations.dtype == chunk.rewards.dtype == np.float32


def test_a_chunk_stops_at_the_time_limit():
    # 1000 steps are 142 chunks of 7 and one of 6.
    with RolloutPool(ENV, TASK, workers=0) as pool:
        (episode,) = pool.run(still, episodes=1, seed=0)
    assert (episode.length, episode.success, episode.episode_return) == (1000, 0.0, -1000.0)


def test_success_is_that_of_the_last_step():
    with RolloutPool(ENV, TASK, workers=0) as pool:
        episodes = pool.run(Walker(), episodes=3, seed=0)
    for episode in episodes:
        # -1 for every step but the last, which finds the goal reached and ends the episode.
        assert episode.success == 1.0
        assert episode.episode_return == 1 - episode.length
        assert episode.length < 300


def test_workers_do_not_change_results():
    results = []
    for workers in (0, 1, 2):
        walker = Walker()
        with RolloutPool(ENV, TASK, workers=workers, num_envs=3) as pool:
            found = [pool.run(walker, episodes=5, seed=1) for _ in range(2)]
        assert found[0] == found[1]
        results.append((found[0], np.concatenate(walker.shown), walker.episodes))
    for episodes, shown, order in results[1:]:
        assert episodes == results[0][0]
        assert order == results[0][2]
        np.testing.assert_array_equal(shown, results[0][1])
    # The batch keeps its size while environments finish.
    assert {len(rows) for rows in results[0][2]} == {3}


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_roll_out_what_one_does(ranks):
    """Ranks in threads, which meet to exchange what their environments did."""
    with RolloutPool(ENV, TASK, workers=0, num_envs=3) as pool:
        alone = pool.run(Walker(), episodes=5, seed=1)
    meeting, board = threading.Barrier(ranks), [None] * ranks
    served = [set() for _ in range(ranks)]

    def roll_out(rank):
        def gather(mine):
            board[rank] = mine
            meeting.wait(60)
            gathered = list(board)
            meeting.wait(60)
            return gathered

        with RolloutPool(
            ENV, TASK, workers=0, num_envs=3, share=Share(rank, ranks, gather)
        ) as pool:
            found = pool.run(Walker(), episodes=5, seed=1)
            served[rank] = set(pool.workers[0].envs)
        return found

    with ThreadPoolExecutor(ranks) as threads:
        assert list(threads.map(roll_out, range(ranks))) == [alone] * ranks
    assert served == [{slot for slot in range(3) if slot % ranks == r} for r in range(ranks)]


def test_a_failure_is_the_failure_of_all_ranks():
    """One rank is told of what happened on the other, and does not wait for its answer."""
    with RolloutPool(
        ENV, TASK, workers=0, share=Share(0, 2, lambda mine: [mine, OSError()])
    ) as pool:
        with pytest.raises(OSError):
            pool.run(still, 2, seed=0)


def test_an_episode_does_not_depend_on_how_many_there_are():
    walker = Walker()
    with RolloutPool(ENV, TASK, workers=0, num_envs=2) as pool:
        few, many = pool.run(walker, 2, seed=4), pool.run(walker, 4, seed=4)
        other = pool.run(walker, 2, seed=5)
    assert many[:2] == few
    assert [e.number for e in many] == [0, 1, 2, 3]
    assert [e.seed for e in many] == [episode_seed(4, i) for i in range(4)]
    assert not {e.seed for e in many} & {e.seed for e in other}
    assert [e.length for e in few] != [e.length for e in other]


def test_a_dead_worker_is_reported_and_replaced():
    with RolloutPool(ENV, TASK, workers=1) as pool:

        def murder(observations, episodes):
            os.kill(pool.workers[0].process.pid, signal.SIGKILL)
            return still(observations, episodes)

        with pytest.raises(WorkerError, match="worker process .* ended unexpectedly by signal 9"):
            pool.run(murder, 1, seed=0)
        assert len(pool.run(still, 1, seed=0)) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_environment_is_reported(workers):
    def misshapen(observations, episodes):
        return np.zeros((len(observations), 1, 3), np.float32)

    with RolloutPool(ENV, TASK, workers=workers) as pool:
        with pytest.raises(WorkerError, match="an environment failed") as caught:
            pool.run(misshapen, 1, seed=0)
    if not workers:
        assert caught.value.__cause__ is not None


def test_processes_end_with_the_pool():
    pool = RolloutPool(ENV, TASK, workers=2)
    assert pool.workers == []  # nothing starts before it is needed
    pool.run(Walker(), 2, seed=0)
    processes = [worker.process for worker in pool.workers]
    assert [process.poll() for process in processes] == [None, None]
    pool.close()
    assert [process.poll() for process in processes] == [0, 0]


def test_unknown_environments_are_refused_before_anything_starts():
    with pytest.raises(UserError, match="env is 'pointmaze-tiny' .did you mean"):
        RolloutPool("pointmaze-tiny", 1)
    with pytest.raises(UserError, match="num_envs is 0, expected 1 to 10000"):
        RolloutPool(ENV, TASK, num_envs=0)


def test_a_script_needs_no_main_guard(tmp_path):
    """Workers are fresh interpreters, which do not import the caller's script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from qam_lightning.envs.rollout import RolloutPool\n"
        "policy = lambda seen, episodes: np.zeros((len(seen), 500, 2), np.float32)\n"
        f"with RolloutPool({ENV!r}, {TASK}, workers=1) as pool:\n"
        "    print(len(pool.run(policy, 2, 0)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_frames_of_the_first_episodes():
    if headless_gl() is None:
        pytest.skip("no OpenGL here")
    with RolloutPool(ENV, TASK, workers=1, render_size=(64, 48)) as pool:
        filmed, unfilmed = pool.run(Walker(), 2, seed=0, frames=1, frame_every=20)
    # One at reset, one every 20 steps, one at the end.
    assert len(filmed.frames) == 1 + filmed.length // 20 + (filmed.length % 20 > 0)
    assert {frame.shape for frame in filmed.frames} == {(48, 64, 3)}
    assert not np.array_equal(filmed.frames[0], filmed.frames[-1])
    assert unfilmed.frames == []


def test_the_policys_batch_has_a_row_for_every_environment():
    """Also for those without an episode: sums over rows of another number may round otherwise."""
    walker = Walker()
    with RolloutPool(ENV, TASK, workers=0, num_envs=4) as pool:
        (alone,) = pool.run(walker, 1, seed=4)
        assert set(pool.workers[0].envs) == {0}  # of which nobody makes an environment
        assert {shown.shape for shown in walker.shown} == {(4, 2)}
        assert all((shown[1:] == 0).all() for shown in walker.shown)
        assert {len(set(episodes)) for episodes in walker.episodes} == {4}
        assert pool.run(walker, 3, seed=4)[0] == alone


def test_a_trained_policys_episode_does_not_depend_on_how_many_there_are(build):
    """To the bit, in an environment whose returns show every rounding."""
    method = build(QAM, tau=1.0, obs_dim=3, action_dim=1, horizon=1, width=64)
    returns = []
    for episodes in (1, 2, 5):
        with RolloutPool("Pendulum-v1", 1, workers=0, num_envs=5) as pool:
            found = pool.run(EpisodePolicy(method, seed=0), episodes, seed=3)
        returns.append([episode.episode_return for episode in found])
    assert [few == returns[-1][: len(few)] for few in returns] == [True] * 3


def test_signals_of_the_group_do_not_end_workers():
    with RolloutPool(ENV, TASK, workers=1) as pool:

        def hang_up(observations, episodes):
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(pool.workers[0].process.pid, number)
            return still(observations, episodes)

        assert len(pool.run(hang_up, 1, seed=0)) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_envs": 10**9}, "num_envs is 1000000000, expected 1 to 10000"),
        ({"num_envs": 10**400}, "num_envs is .*, expected 1 to 10000"),
        ({"workers": 10**9, "num_envs": 10_000}, "workers is 1000000000: so many processes"),
    ],
)
def test_too_many_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        RolloutPool(ENV, TASK, **settings)
