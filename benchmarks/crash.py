"""Harms a small run at random moments, resumes it, and compares it with one never interrupted.

python benchmarks/crash.py --kills 50                  kills the run's process
python benchmarks/crash.py --kills 50 --fault rank     kills one of its two ranks
python benchmarks/crash.py --kills 50 --fault disk     fills its disk

Each writes a table to docs/, as Markdown and as CSV. The run is a real one: both phases,
evaluations, a checkpoint every few updates, in a MuJoCo environment of short episodes that runs
ahead in a process of its own. It is harmed and resumed until it is through; then its weights,
targets, optimizer, replay, tables and best checkpoint are compared with those of a run in one go,
to the bit. After every kill the checkpoints left behind are compared, too: with what the run in one
go had at the same gradient step.

A killed process gets SIGKILL. Of two ranks one gets it, and the other must end by itself. The disk
is a file system of 16 MB in memory, in a mount namespace of this program, which needs no
privileges; `--disk FOLDER` takes another small one. A file fills it, often but not always to the
last byte. The run must end with exit code 2 and one line that names its file.

Every life of a run consists of processes of its own, forked from this one, which has imported
everything and started nothing: that saves the time of importing, and makes no other difference.
They note what they are doing in memory shared with this process, which decides with it when to act.
"""

import argparse
import contextlib
import csv
import mmap
import os
import platform
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

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
PATIENCE = {START_UP: 1, UPDATE: 35, COLLECTION: 60, EVALUATION: 1, CHECKPOINT: 5}
"""Into how many of a life's updates and so on the harm comes, at most."""
DISK = "16m"
LIMIT, SOON = 60.0, 10.0
"""Seconds after which a process that should have ended counts as hanging; and another rank."""


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

    @property
    def doing(self) -> str:
        """What the run does."""
        return NAMES[self[DOING]]


DOING, GRADIENT_STEP, ENV_STEP, MET, BEGUN, NANOSECONDS = 0, 1, 2, 3, 8, 16
"""Places on the page; from the last two on, one for each activity."""


def observe(page: Page) -> None:
    """Note on the page what this process does, at the public calls that begin each activity."""
    began = time.perf_counter_ns()
    page[BEGUN + START_UP] = 1

    def note(owner: type, name: str, activity: int, count: Callable[[Any], None]) -> None:
        inner = getattr(owner, name)

        def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
            before, start = page[DOING], time.perf_counter_ns()
            if before == START_UP:
                page[NANOSECONDS + START_UP] = start - began
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


def note_meeting(page: Page) -> None:
    """Note on the page when this rank has found the others."""
    inner = torch.distributed.init_process_group

    def noting(*args: Any, **kwargs: Any) -> None:
        inner(*args, **kwargs)
        page[MET] = 1

    torch.distributed.init_process_group = noting


def fork(work: Callable[[], int], log: Path, group: int) -> int:
    """Do something in a process of its own; returns its number.

    Args:
        work: What to do; returns the exit code.
        log: Standard output is added to this file; standard error goes to one beside it.
        group: The process group that it joins, 0 for a new one.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.setpgid(child, group or child)
        return child
    status = 1
    try:
        os.setpgid(0, group)
        with log.open("ab") as out, log.with_suffix(".err").open("ab") as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
        status = work()
    finally:
        os._exit(status)


class Life:
    """A run from a start to an end: a process for each rank, with its page."""

    def __init__(self, folder: Path, run: Path, ranks: int, *flags: str) -> None:
        """Start the run, or resume it."""
        self.log = folder / f"{run.name}.log"
        self.log.with_suffix(".err").write_text("")
        self.pages = [Page() for _ in range(ranks)]
        settings = {**SETTINGS, "run_dir": run, "data.path": folder / "data.npz"}
        arguments = ["fit", *(f"--{key}={value}" for key, value in settings.items()), *flags]
        if last_checkpoints(run):
            arguments.append("--ckpt_path=last")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]

        def work(rank: int) -> int:
            if ranks > 1:  # as torchrun would start it, but with nothing that watches
                here = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks}
                here |= {"LOCAL_WORLD_SIZE": ranks, "TORCHELASTIC_RUN_ID": "crash"}
                here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in here.items()}
                rank_zero_only.rank = rank  # importing Lightning does so
                arguments.append(f"--trainer.devices={ranks}")
                note_meeting(self.pages[rank])
            os.chdir(folder)  # a rank that loses the other leaves its traceback
            observe(self.pages[rank])
            return train(arguments)

        self.processes: list[int] = []
        self.codes: dict[int, int] = {}
        for rank in range(ranks):
            group = self.processes[0] if rank else 0
            self.processes.append(fork(lambda rank=rank: work(rank), self.log, group))

    def code(self, rank: int, seconds: float = 0.0) -> int | None:
        """Wait up to so long for a rank to end; returns its exit code, None while it lives."""
        until = time.monotonic() + seconds
        while rank not in self.codes:
            process, status = os.waitpid(self.processes[rank], os.WNOHANG)
            if process:
                self.codes[rank] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= until:
                return None
            else:
                time.sleep(0.01)
        return self.codes[rank]

    @property
    def said(self) -> list[str]:
        """The lines on standard error."""
        return self.log.with_suffix(".err").read_text().splitlines()

    def finish(self) -> None:
        """Wait for a life that is to end by itself."""
        for rank in range(len(self.processes)):
            if self.code(rank, 10 * LIMIT):
                said = "\n".join(self.said[-30:])
                raise SystemExit(f"a run ended with exit code {self.codes[rank]}:\n{said}")

    def leftovers(self) -> list[str]:
        """Wait for all processes to end, those of environments too; name what does not."""
        until = time.monotonic() + LIMIT
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < until:
                os.killpg(self.processes[0], 0)
                time.sleep(0.01)
            return ["a process was left over"]
        return []

    def end(self) -> None:
        """Kill whatever still lives."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[0], signal.SIGKILL)


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
        found += differences(*({k: c.get(k) for k in keys} for c in (one, two)), name)
    one, two = (r / "checkpoints" / FILE for r in (whole, run))
    if one.exists() != two.exists() or one.exists() and one.read_bytes() != two.read_bytes():
        found.append(FILE)
    for name in ("train.csv", "eval.csv"):
        if table(whole / "metrics" / name) != table(run / "metrics" / name):
            found.append(name)
    return found + [f"left over: {path.name}" for path in run.rglob("*.tmp")]


# -- harm ----------------------------------------------------------------------------------------


class Kill(NamedTuple):
    """One kill or full disk, and what became of it."""

    kill: int
    run: int
    phase: str
    during: str
    gradient_step: int
    env_step: int
    ended: str
    resumed_from: int
    left_behind: str
    at_the_end: str = ""


class Process:
    """Kills a run's process, and is the base of the other faults.

    In either phase every activity is met about as often as the others.
    """

    ranks: ClassVar[int] = 1
    file: ClassVar[str] = "crash_table"
    title: ClassVar[str] = "Killed and resumed"
    harmed: ClassVar[str] = "killed during"
    what: ClassVar[str] = "kills"
    by: ClassVar[str] = "during"

    def __init__(self, folder: Path, runs: Path, wanted: int, seed: int) -> None:
        """Do the run in one go.

        Args:
            folder: Where everything is put,
            runs: but for the runs that are harmed.
            wanted: How often.
            seed: Decides about the moments, as far as they can be decided.
        """
        self.folder, self.runs, self.wanted = folder, runs, wanted
        self.random, self.whole = random.Random(seed), folder / "whole"
        self.done: list[Kill] = []
        start = time.monotonic()
        life = Life(folder, self.whole, self.ranks, "--checkpoints.keep_last=100000")
        life.finish()
        self.seconds = time.monotonic() - start
        (page, *_) = life.pages
        self.lengths = {a: page[NANOSECONDS + a] / 1e9 / max(1, page[BEGUN + a]) for a in PATIENCE}
        steps = {state(p)["counters"]["gradient_step"]: p for p in last_checkpoints(self.whole)}
        self.known = steps

    def run(self, number: int) -> None:
        """Harm and resume a run until it is through, and compare."""
        run, mine, through = self.runs / f"run{number}", len(self.done), False
        while not through:
            through = self._life(run, number)
        found = compare(self.whole, run)
        verdict = "equal" if not found else "; ".join(found[:5])
        self.done[mine:] = [kill._replace(at_the_end=verdict) for kill in self.done[mine:]]
        print(f"run {number}: {len(self.done) - mine} {self.what}, {verdict}", flush=True)
        shutil.rmtree(run)

    def harm(self, life: Life, rank: int) -> tuple[str, str, list[str]] | None:
        """Do the harm, and wait for the end.

        Returns:
            What the run was doing, how it ended, and what is wrong with that; None if it was
            through before.
        """
        os.kill(life.processes[rank], signal.SIGKILL)
        if life.code(rank, LIMIT) != -signal.SIGKILL:
            return None
        return life.pages[rank].doing, "SIGKILL", []

    def _life(self, run: Path, number: int) -> bool:
        """Let a run live until it is through or harmed; returns whether it is through."""
        life = Life(self.folder, run, self.ranks)
        rank = self.random.randrange(self.ranks)
        try:
            enough = len(self.done) >= self.wanted or not self._wait(life, rank, number)
            harmed = None if enough else self.harm(life, rank)
            if harmed is None:
                life.finish()
                return True
            during, ended, wrong = harmed
            wrong += life.leftovers()
        finally:
            life.end()
        at, found = left_behind(run, self.known)
        page = life.pages[rank]
        step, taken = page[GRADIENT_STEP], page[ENV_STEP]
        phase = "online" if taken or at >= OFFLINE else "offline"
        verdict = "; ".join([*wrong, *found][:5]) or "equal"
        kill = Kill(len(self.done) + 1, number, phase, during, step, taken, ended, at, verdict)
        print(*kill[:-1], flush=True)
        self.done.append(kill)
        return False

    def _wait(self, life: Life, rank: int, number: int) -> bool:
        """Wait for a random moment of an activity; returns whether the run still lives then."""
        step = next((k.resumed_from for k in reversed(self.done) if k.run == number), 0)
        # The last checkpoints offline lead on to the environment steps that no update follows.
        phase = "offline" if step < OFFLINE - 10 else "online"
        met = Counter(kill.during for kill in self.done if kill.phase == phase)
        possible = [a for a in PATIENCE if a != COLLECTION or phase == "online"]
        target = min(possible, key=lambda a: (met[NAMES[a]], self.random.random()))
        begun = self.random.randint(1, PATIENCE[target])
        while life.pages[rank][BEGUN + target] < begun:
            if life.code(rank) is not None:
                return False
            time.sleep(0.0002)
        time.sleep(self.random.random() * self.lengths[target])
        return True


class Rank(Process):
    """Kills one of two ranks; nothing watches them."""

    ranks = 2
    file = "crash_table_rank"
    title = "One of two ranks killed"

    def harm(self, life: Life, rank: int) -> tuple[str, str, list[str]] | None:
        """Kill a rank, and wait for the other.

        Ranks that have not found each other yet cannot notice; what started them has to.
        """
        if (killed := super().harm(life, rank)) is None:
            return None
        start, other = time.monotonic(), 1 - rank
        code = life.code(other, SOON)
        took, during = time.monotonic() - start, killed[0]
        if code is not None:
            return during, f"rank {rank} killed, rank {other} ended after {took:.1f} s", []
        met = all(page[MET] for page in life.pages)
        wrong = [f"rank {other} goes on"] if met else []
        os.kill(life.processes[other], signal.SIGKILL)
        life.code(other, LIMIT)
        return during, f"rank {rank} killed, rank {other} waited for it", wrong


class Disk(Process):
    """Fills the disk, and frees it when the run has ended."""

    file = "crash_table_disk"
    title = "The disk is full"
    harmed = "file that did not fit"
    what = "full disks"
    by = "ended"

    def harm(self, life: Life, rank: int) -> tuple[str, str, list[str]] | None:
        """Fill the disk but for some pages, and wait for the run to end."""
        during = life.pages[rank].doing
        # Nothing fits, or less than a checkpoint, or checkpoints but not the replay.
        room = sum(path.stat().st_size for path in (self.whole / "checkpoints").glob("last.*"))
        left = self.random.randrange(self.random.choice([1, room, 4 * room]))
        ballast = self.runs / "ballast"
        with ballast.open("wb", buffering=0) as file:
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            file.truncate(max(0, file.tell() - left))
        code = life.code(rank, LIMIT)
        ballast.unlink()
        if code == 0:
            return None
        wrong = [f"exit code {code}"] if code != 2 else []
        said = life.said
        name, _, problem = (said or [""])[-1].removeprefix("error: ").partition(": ")
        if len(said) != 1 or "No space left on device" not in problem:
            wrong.append(f"said {said}")
        if found := [path.name for path in self.runs.rglob("*.tmp")]:
            wrong.append(f"left over: {found}")
        return during, Path(name).name, wrong


FAULTS: dict[str, type[Process]] = {"process": Process, "rank": Rank, "disk": Disk}


def write(harm: Process, command: str, folder: Path, seconds: float) -> bool:
    """Write the tables; returns whether every kill left and ended as it should."""
    kills = harm.done
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{harm.file}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([Kill._fields, *kills])
    good = [kill for kill in kills if kill.left_behind == kill.at_the_end == "equal"]
    lines = [
        f"# {harm.title}",
        "",
        f"`{command}`: in **{len(good)} of {len(kills)}** {harm.what}, the",
        "checkpoints left behind equal those of an uninterrupted run, and the resumed run ended",
        "bit-identical to it: weights, targets, optimizer, metrics, random generators, replay,",
        "tables and best checkpoint.",
        "",
        f"The run: QAM in {ENV}, {OFFLINE} updates offline, then {STEPS} environment steps, "
        "an evaluation",
        f"every {SETTINGS['evaluation.every_n_steps']} updates and a checkpoint every "
        f"{SETTINGS['checkpoints.every_n_steps']}; {harm.seconds:.0f} s in one go. "
        f"{kills[-1].run} runs in {seconds:.0f} s,",
        f"{platform.system()}, {os.cpu_count()} cores, "
        + ", ".join(f"{name} {version}" for name, version in versions().items() if name != "cuda")
        + ".",
        "",
        f"| {harm.harmed} | offline | online | equal |",
        "|---|---|---|---|",
    ]
    met = Counter(getattr(kill, harm.by) for kill in kills)
    order = NAMES if harm.by == "during" else sorted(met)
    for what in [name for name in order if met[name]]:
        those = [kill for kill in kills if getattr(kill, harm.by) == what]
        phases = [sum(kill.phase == phase for kill in those) for phase in ("offline", "online")]
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
    (folder / f"{harm.file}.md").write_text("\n".join(lines) + "\n")
    return len(good) == len(kills)


def with_disk(arguments: Sequence[str]) -> int:
    """Run this program again, with a small disk in a mount namespace of its own."""
    with tempfile.TemporaryDirectory() as disk:
        mount = f'mount -t tmpfs -o size={DISK} tmpfs "$0" && exec "$@"'
        again = (sys.executable, __file__, *arguments, "--disk", disk)
        unshare = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
        return subprocess.run([*unshare, mount, disk, *again]).returncode


def main(arguments: Sequence[str]) -> int:
    """Harm, compare and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--fault", choices=FAULTS, default="process")
    parser.add_argument("--disk", type=Path, metavar="FOLDER", help="on a small disk, to be filled")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", default="docs", help="folder of the tables")
    options = parser.parse_args(arguments)
    if options.fault == "disk" and options.disk is None:
        return with_disk(arguments)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        collect(folder / "data.npz")
        runs = options.disk or folder
        harm, number = FAULTS[options.fault](folder, runs, options.kills, options.seed), 0
        print(f"in one go: {harm.seconds:.0f} s, {harm.lengths}", flush=True)
        while len(harm.done) < options.kills:
            number += 1
            harm.run(number)
        command = f"python benchmarks/crash.py --kills {options.kills} --fault {options.fault}"
        good = write(harm, command, Path(options.output), time.monotonic() - start)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
