"""Kills a small run at random moments, resumes it, and compares it with one never interrupted.

python benchmarks/crash.py --kills 50        writes docs/crash_table.md and docs/crash_table.csv

The run is a real one: both phases, evaluations, a checkpoint every few updates, in a MuJoCo
environment of short episodes that runs ahead in a process of its own. It is killed (SIGKILL) and
resumed until it is through; then its weights, targets, optimizer, replay, tables and best
checkpoint are compared with those of a run in one go, to the bit. After every kill the checkpoints
left behind are compared, too: with what the run in one go had at the same gradient step.

Every life of a run is a process of its own, forked from this one, which has imported everything and
started nothing: that saves the time of importing, and makes no other difference. It notes what it
is doing in memory shared with this process, which decides with it when to kill.
"""

import argparse
import csv
import mmap
import os
import platform
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from lightning.pytorch import Trainer

from qam_lightning.callbacks.online import FILE
from qam_lightning.checkpoints import describe, last_checkpoints, read_checkpoint
from qam_lightning.cli import main as train
from qam_lightning.envs.make import make_env
from qam_lightning.envs.rollout import RolloutPool
from qam_lightning.methods.base import Method
from qam_lightning.online.actor import EnvActor
from qam_lightning.online.collector import Collector
from qam_lightning.util.provenance import versions

ENV = "InvertedPendulum-v5"
OFFLINE, STEPS, START = 100, 100, 30
SETTINGS: dict[str, object] = {
    "config": "cube_single.yaml",
    "data.env": ENV,
    "data.task": 1,
    "data.horizon": 3,
    "data.sparse": "false",
    "data.batch_size": 16,
    "model.width": 16,
    "model.depth": 1,
    "model.num_critics": 2,
    "model.flow_steps": 3,
    "trainer.max_steps": OFFLINE,
    "trainer.accelerator": "cpu",
    "online.steps": STEPS,
    "online.learning_starts": START,
    "evaluation.every_n_steps": 30,
    "evaluation.episodes": 2,
    "evaluation.workers": 0,
    "checkpoints.every_n_steps": 7,
    "log.every_n_steps": 3,
    "threads": 1,
}
STATE = ("state_dict", "optimizer_states", "counters", "global_step", "metrics", "online", "random")
UNTIMED = ("seconds", "steps_per_second")
"""What depends on the machine's speed."""

START_UP, UPDATE, COLLECTION, EVALUATION, CHECKPOINT, BETWEEN = range(6)
NAMES = ("start", "update", "collection", "evaluation", "checkpoint", "between")
PATIENCE = {UPDATE: 35, COLLECTION: 60, EVALUATION: 1, CHECKPOINT: 5}
"""Into how many of a life's updates and so on the kill comes, at most."""


class Page:
    """Memory shared with the run: what it does, how often it has begun that, and its counters."""

    def __init__(self) -> None:
        """Start with nothing done."""
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def __getitem__(self, place: int) -> int:
        """Read a number."""
        return struct.unpack_from("<q", self._memory, 8 * place)[0]

    def __setitem__(self, place: int, value: int) -> None:
        """Write a number."""
        struct.pack_into("<q", self._memory, 8 * place, value)


DOING, GRADIENT_STEP, ENV_STEP, BEGUN, NANOSECONDS = 0, 1, 2, 8, 16
"""Places on the page; from the last two on, one for each activity."""


def observe(page: Page) -> None:
    """Note on the page what this process does, at the public calls that begin each activity."""

    def note(owner: type, name: str, activity: int, count: Callable[[Any], None]) -> None:
        inner = getattr(owner, name)

        def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
            before, start = page[DOING], time.perf_counter_ns()
            page[DOING] = activity
            page[BEGUN + activity] += 1
            try:
                return inner(self, *args, **kwargs)
            finally:
                page[NANOSECONDS + activity] += time.perf_counter_ns() - start
                page[DOING] = BETWEEN if before == START_UP else before
                count(self)

        setattr(owner, name, noting)

    def updates(method: Method) -> None:
        page[GRADIENT_STEP], page[ENV_STEP] = method.gradient_step, method.env_step

    def steps(collector: Collector) -> None:
        page[ENV_STEP] = collector.steps

    def nothing(owner: object) -> None:
        """There are no counters here."""

    note(Method, "training_step", UPDATE, updates)
    note(EnvActor, "take", COLLECTION, nothing)
    note(EnvActor, "begin", COLLECTION, nothing)
    note(Collector, "advance", COLLECTION, steps)
    note(RolloutPool, "run", EVALUATION, nothing)
    note(Trainer, "save_checkpoint", CHECKPOINT, nothing)


def fork(work: Callable[[], int], log: Path) -> int:
    """Do something in a process of its own; returns its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = work()
    finally:
        os._exit(status)


def live(folder: Path, run: Path, page: Page, *flags: str) -> int:
    """Start a life of a run; returns its process."""
    settings = {**SETTINGS, "run_dir": run, "data.path": folder / "data.npz"}
    arguments = ["fit", *(f"--{key}={value}" for key, value in settings.items()), *flags]
    if last_checkpoints(run):
        arguments.append("--ckpt_path=last")

    def work() -> int:
        observe(page)
        return train(arguments)

    return fork(work, folder / f"{run.name}.log")


def collect(path: Path) -> None:
    """Write some episodes of random actions."""
    env, rng = make_env(ENV, 1), np.random.default_rng(0)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "terminals", "rewards", "masks")
    }
    for seed in range(60):
        observation, done = env.reset(seed=seed)[0], False
        while not done:
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            after, reward, terminated, truncated, _ = env.step(action)
            row = (observation, action, False, reward, not terminated)
            for values, value in zip(rows.values(), row, strict=True):
                values.append(value)
            observation, done = after, terminated or truncated
        for values, value in zip(rows.values(), (after, action, True, 0, True), strict=True):
            values.append(value)
    kinds = (np.float32, np.float32, bool, np.float32, np.uint8)
    arrays = {n: np.array(v, kind) for (n, v), kind in zip(rows.items(), kinds, strict=True)}
    np.savez(path, **arrays)


def finish(process: int, log: Path) -> None:
    """Wait for a life that is to end by itself."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status:
        raise SystemExit(f"a run ended with exit code {status}:\n{log.read_text()[-3000:]}")


# -- comparison ----------------------------------------------------------------------------------


def differences(a: Any, b: Any, where: str) -> list[str]:
    """Name the places where two nested states differ in a bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        keys = (key for key in a if key not in UNTIMED)
        return [d for key in keys for d in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{where}.{i}")]
    return [] if type(a) is type(b) and a == b else [where]


def state(path: Path) -> dict[str, Any]:
    """What of a checkpoint must not depend on interruptions."""
    checkpoint = read_checkpoint(path)
    return {key: checkpoint[key] for key in STATE if key in checkpoint}


def left_behind(run: Path, known: dict[int, Path]) -> tuple[int, list[str]]:
    """Compare the checkpoints that a kill left with those of the run in one go.

    Returns:
        The gradient step of ``last.ckpt``, -1 if there is none yet; and the differences.
    """
    found, at = [], -1
    for path in last_checkpoints(run):
        mine = state(path)
        step = mine["counters"]["gradient_step"]
        at = max(at, step)
        if describe(path).gradient_step != step:
            found.append(f"{path.with_suffix('.json').name}: of another gradient step")
        if step not in known:
            found.append(f"{path.name}: no such checkpoint in the run in one go, step {step}")
        else:
            found += differences(mine, state(known[step]), path.name)
    return at, found


def table(path: Path) -> list[dict[str, str]]:
    """A run's table without what depends on the machine's speed."""
    with path.open(newline="") as file:
        return [{k: v for k, v in r.items() if k not in UNTIMED} for r in csv.DictReader(file)]


def compare(whole: Path, run: Path) -> list[str]:
    """Name the differences between the ends of two runs."""
    found = []
    for name in ("last", "best"):
        one, two = (read_checkpoint(r / "checkpoints" / f"{name}.ckpt") for r in (whole, run))
        keys = (*STATE, "callbacks")
        found += differences(*({k: c[k] for k in keys} for c in (one, two)), name)
    if (whole / "checkpoints" / FILE).read_bytes() != (run / "checkpoints" / FILE).read_bytes():
        found.append(FILE)
    for name in ("train.csv", "eval.csv"):
        if table(whole / "metrics" / name) != table(run / "metrics" / name):
            found.append(name)
    return found + [f"left over: {path.name}" for path in run.rglob("*.tmp")]


# -- killing -------------------------------------------------------------------------------------


class Kill(NamedTuple):
    """One kill, and what became of it."""

    kill: int
    run: int
    phase: str
    during: str
    gradient_step: int
    env_step: int
    resumed_from: int
    left_behind: str
    at_the_end: str = ""


class Killer:
    """Kills runs at random moments, in either phase every activity about as often as the others."""

    def __init__(self, folder: Path, kills: int, seed: int) -> None:
        """Do the run in one go.

        Args:
            folder: Where everything is put.
            kills: How many are wanted.
            seed: Decides about the moments, as far as they can be decided.
        """
        self.folder, self.wanted, self.random = folder, kills, random.Random(seed)
        self.whole, self.done, self.page = folder / "whole", [], Page()
        self.done: list[Kill] = []
        start = time.monotonic()
        finish(
            live(folder, self.whole, self.page, "--checkpoints.keep_last=100000"),
            folder / "whole.log",
        )
        self.seconds = time.monotonic() - start
        self.lengths = {
            activity: self.page[NANOSECONDS + activity] / 1e9 / max(1, self.page[BEGUN + activity])
            for activity in PATIENCE
        }
        steps = {state(p)["counters"]["gradient_step"]: p for p in last_checkpoints(self.whole)}
        self.known = steps

    def run(self, number: int) -> None:
        """Kill and resume a run until it is through, and compare."""
        run, mine, through = self.folder / f"run{number}", len(self.done), False
        while not through:
            through = self._life(run, number)
        found = compare(self.whole, run)
        verdict = "equal" if not found else "; ".join(found[:5])
        self.done[mine:] = [kill._replace(at_the_end=verdict) for kill in self.done[mine:]]
        print(f"run {number}: {len(self.done) - mine} kills, {verdict}", flush=True)

    def _life(self, run: Path, number: int) -> bool:
        """Let a run live until it is through or killed; returns whether it is through."""
        self.page = Page()
        process = live(self.folder, run, self.page)
        log = self.folder / f"{run.name}.log"
        if len(self.done) >= self.wanted:
            finish(process, log)
            return True
        if not self._wait(process, number):
            finish(process, log)
            return True
        os.kill(process, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != -signal.SIGKILL:
            finish(process, log)  # it was quicker
            return True
        at, found = left_behind(run, self.known)
        step, taken = self.page[GRADIENT_STEP], self.page[ENV_STEP]
        phase = "online" if taken else "offline"
        what = NAMES[self.page[DOING]]
        verdict = "equal" if not found else "; ".join(found[:5])
        self.done.append(Kill(len(self.done) + 1, number, phase, what, step, taken, at, verdict))
        print(*self.done[-1][:-1], flush=True)
        return False

    def _wait(self, process: int, number: int) -> bool:
        """Wait for a random moment of an activity; returns whether the run still lives then."""
        step = next((k.resumed_from for k in reversed(self.done) if k.run == number), 0)
        # The last checkpoints offline lead on to the environment steps that no update follows.
        phase = "offline" if step < OFFLINE - 10 else "online"
        met = Counter(kill.during for kill in self.done if kill.phase == phase)
        possible = [a for a in PATIENCE if a != COLLECTION or phase == "online"]
        target = min(possible, key=lambda a: (met[NAMES[a]], self.random.random()))
        begun = self.random.randint(1, PATIENCE[target])
        while self.page[BEGUN + target] < begun:
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return False
            time.sleep(0.0002)
        time.sleep(self.random.random() * self.lengths[target])
        return True


def write(killer: Killer, folder: Path, seconds: float) -> bool:
    """Write the tables; returns whether every kill left and ended as it should."""
    kills = killer.done
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "crash_table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([Kill._fields, *kills])
    good = [kill for kill in kills if kill.left_behind == kill.at_the_end == "equal"]
    lines = [
        "# Killed and resumed",
        "",
        f"`python benchmarks/crash.py --kills {killer.wanted}`: in **{len(good)} of {len(kills)}** "
        "kills, the checkpoints left",
        "behind equal those of an uninterrupted run, and the resumed run ended bit-identical to",
        "it: weights, targets, optimizer, metrics, random generators, replay, tables and best",
        "checkpoint.",
        "",
        f"The run: QAM in {ENV}, {OFFLINE} updates offline, then {STEPS} environment steps, "
        "an evaluation",
        f"every {SETTINGS['evaluation.every_n_steps']} updates and a checkpoint every "
        f"{SETTINGS['checkpoints.every_n_steps']}; {killer.seconds:.0f} s in one go. "
        f"{kills[-1].run} runs in {seconds:.0f} s,",
        f"{platform.system()}, {os.cpu_count()} cores, "
        + ", ".join(f"{name} {version}" for name, version in versions().items() if name != "cuda")
        + ".",
        "",
        "| killed during | offline | online | equal |",
        "|---|---|---|---|",
    ]
    for what in NAMES:
        those = [kill for kill in kills if kill.during == what]
        phases = [sum(kill.phase == phase for kill in those) for phase in ("offline", "online")]
        if those:
            equal = f"{sum(kill in good for kill in those)} of {len(those)}"
            lines.append(f"| {what} | {phases[0]} | {phases[1]} | {equal} |")
    lines += [
        "",
        "`start`: before the first update after a start; `between`: none of the others.",
        "",
    ]
    heads = [name.replace("_", " ") for name in Kill._fields]
    lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(map(str, kill))} |" for kill in kills]
    lines += [
        "",
        "`resumed from`: gradient step of the newest checkpoint; -1: there was none.",
    ]
    (folder / "crash_table.md").write_text("\n".join(lines) + "\n")
    return len(good) == len(kills)


def main() -> int:
    """Kill, compare and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", default="docs", help="folder of the tables")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        collect(folder / "data.npz")
        killer, number = Killer(folder, options.kills, options.seed), 0
        print(f"in one go: {killer.seconds:.0f} s, {killer.lengths}", flush=True)
        while len(killer.done) < options.kills:
            number += 1
            killer.run(number)
        good = write(killer, Path(options.output), time.monotonic() - start)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
