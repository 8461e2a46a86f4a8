"""Submits studies to SLURM, harms their jobs, and counts and compares the runs at the end.

python benchmarks/slurm_study.py              under the SLURM of this machine
python benchmarks/slurm_study.py --start      under one that it starts for itself, see slurm.py

Writes docs/slurm_study_table.md, whole; after --only, nothing unless --output says where. After
each check every run of the study must be finished exactly once, and bit-identical to one that
nothing interrupted. Options for the cluster go into sbatch's variables, e.g. SBATCH_PARTITION. The
working directory, where a folder is made for the runs, is shared by all nodes, which have no GPU to
ask for.
"""

import argparse
import contextlib
import csv
import functools
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import yaml
from crash import collect, compare
from slurm import PARTITIONS, ROOT, SMALL, Failed, command, facts, sinfo, started, until, write

from qam_lightning.checkpoints import describe, last_checkpoints
from qam_lightning.studies.slurm import FOLDER
from qam_lightning.util.errors import UserError

SETTINGS = SMALL | {
    "config": "cube_triple.yaml",
    "trainer.max_steps": 600,
    "checkpoints.every_n_steps": 50,
    "evaluation.every_n_steps": 300,
}
QAM = (sys.executable, "-m", "qam_lightning")
SUBMIT = (*QAM, "study", "run", "study.yaml", "--slurm", "slurm.yaml")
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
ABOUT = [
    "# Studies under SLURM",
    "",
    "`python benchmarks/slurm_study.py` submitted small studies by `study run --slurm`, as",
    "[On a cluster](cluster.md) describes. `equal`: every run finished exactly once, and is",
    "bit-identical to one without SLURM and without interruption, in weights, targets,",
    "optimizer, metrics, random generators, replay, tables and best checkpoint.",
    "The README's study is the one that ships, on five episodes of `cube-single`.",
]
"""The head of the table's page."""
SUBMITTED: list[str] = []


class Study:
    """A study in a folder of its own, and its uninterrupted runs.

    Attributes:
        runs: the folder of its runs.
        here: what ``study run`` said when it ran some of them without SLURM.
    """

    def __init__(self, folder: Path, whole: Path, data: Path) -> None:
        """Make the folder."""
        self.path, self.whole, self.data = folder, whole, data
        self.runs, self.here = folder / "runs/study", ""
        self.jobs: list[str] = []
        folder.mkdir()

    def write(
        self,
        seeds: str,
        more: Sequence[dict[str, Any]] = (),
        slow: float = 0.02,
        **settings: object,
    ) -> None:
        """Write the study's file; ``trainer__devices`` for ``trainer.devices``.

        Args:
            seeds: of its runs.
            more: settings of further runs, which make those of ``seeds`` a group of their own.
            slow: seconds that each update waits, so that the harm can come.
            settings: of all runs, besides `SETTINGS`.
        """
        slowly = [{"class_path": "slurm.Slow", "init_args": {"seconds": slow}}]
        own = {key.replace("__", "."): value for key, value in settings.items()}
        common = {**SETTINGS, "data.path": str(self.data), "trainer.callbacks": slowly, **own}
        groups = {"groups": {"good": {"grid": {"seed": seeds}}, "other": {"list": list(more)}}}
        study = {"settings": common, **(groups if more else {"grid": {"seed": seeds}})}
        (self.path / "study.yaml").write_text(yaml.safe_dump(study))

    def options(self, **options: object) -> None:
        """Write the options of the jobs."""
        options = {"gpus": 0, "time": 10, "warning": 60, **options}
        (self.path / "slurm.yaml").write_text(yaml.safe_dump(options))

    def submit(self) -> str:
        """Submit what is missing; returns what was said."""
        said = command(*SUBMIT, cwd=self.path)
        self.noted(said)
        return said

    def noted(self, said: str) -> list[str]:
        """Note the jobs that a submission names, and return them."""
        found = re.findall(r"^submitted job (\d+);", said, re.MULTILINE)
        self.jobs += found
        SUBMITTED.extend(found)
        return found

    def tasks(self) -> list[str]:
        """All tasks of all arrays."""
        found = []
        for job in self.jobs:
            (scripts,) = self.runs.glob(f"{FOLDER}/*/{job}*_submission.sh")
            size = re.search(r"--array=0-(\d+)", scripts.read_text())
            found += [f"{job}_{n}" for n in range(int(size[1]) + 1)] if size else [job]
        return found

    def run(self, seed: int, group: str = "") -> Path:
        """A run's folder."""
        return self.runs / group / f"seed{seed}"

    @property
    def said(self) -> str:
        """What all jobs have said so far."""
        return "".join(p.read_text() for p in sorted(self.runs.glob(f"{FOLDER}/*/*_log.out")))

    def training(self, *runs: Path) -> None:
        """Wait until runs have a checkpoint of some steps."""
        for run in runs:
            until(lambda run=run: self._saved(run), f"a checkpoint of {run.name}")

    def _saved(self, run: Path) -> bool:
        if states := [facts(task)["JobState"] for task in self.tasks()]:
            if set(states) <= set(ENDS):
                raise Failed(f"ended before its first checkpoint: {states}")
        with contextlib.suppress(UserError):  # it was renamed meanwhile
            return any(describe(p).gradient_step for p in last_checkpoints(run))
        return False

    def through(self, *ends: tuple[str, int]) -> int:
        """Wait for the ends of all tasks; returns how often SLURM restarted them.

        Args:
            ends: state and exit code that each of them may have; completed with 0 if none is given.
        """
        restarts = 0
        for task in self.tasks():
            found = end(task)
            seen = found["JobState"], int(found["ExitCode"].split(":")[0])
            if seen not in (ends or [("COMPLETED", 0)]):
                raise Failed(f"job {task} ended {seen}")
            restarts += int(found["Restarts"])
        return restarts

    def equal(self, *runs: Path, whole: str = "") -> None:
        """Check that the runs and no others finished, each once, and as uninterrupted ones do."""
        names = {str(run.relative_to(self.runs)) for run in runs}
        ends = re.findall(r"^(\S+): finished$", self.said, re.MULTILINE)
        ends += re.findall(r"^\[\S+\] (\S+) finished$", self.here, re.MULTILINE)
        finished = Counter(name.removeprefix("good/") for name in ends)
        expected = Counter({name.removeprefix("good/"): 1 for name in names})
        if finished != expected:
            raise Failed(f"finished: {dict(finished)}, expected {sorted(names)} once each")
        for run in runs:
            if found := compare(self.whole / (whole or run.name), run):
                raise Failed("; ".join([run.name, *found[:5]]))

    def processes(self, run: Path) -> list[int]:
        """The processes that write to a run, by the lock's file."""
        words = (run / ".lock").read_text().split()
        return [int(words[1])]

    def count(self, words: str) -> int:
        """How often the jobs said something."""
        return len(re.findall(words, self.said))


def end(task: str) -> dict[str, str]:
    """Wait for the end of a task; returns what SLURM knows of it."""
    moved = set()

    def ended() -> dict[str, str] | None:
        found = facts(task)
        if found["JobState"] not in ENDS:
            # SLURM waits for two minutes; it needs some seconds to forget the job's last life.
            if found["Reason"] == "BeginTime" and found["Restarts"] not in moved:
                moved.add(found["Restarts"])
                with contextlib.suppress(Failed):
                    command("scontrol", "update", f"job={task}", "StartTime=now+10")
            return None
        return found

    return until(ended, f"the end of job {task}")


def restarted(count: int, least: int = 1) -> str:
    """Say how often jobs were requeued, and check it."""
    if count < least or not least and count:
        raise Failed(f"{count} requeues, expected {least}")
    return f"{count} requeue(s)"


# -- checks ----------------------------------------------------------------------------------------


def uninterrupted(at: Study) -> str:
    """Nothing happened: three runs, `limit: 2`."""
    at.write("0-2")
    at.options(limit=2)
    at.submit()
    restarted(at.through(), 0)
    at.equal(at.run(0), at.run(1), at.run(2))
    return "an array of three jobs, no requeue"


def smoke(at: Study) -> str:
    """The README's study: Ctrl-C on this machine, then submitted, then reported."""
    run, said, whole = (*QAM, "study", "run", "smoke"), at.path / "said", at.path / "whole"
    data = ("--env=cube-single", "--episodes=5", f"--directory={whole}/datasets/quickstart")
    command(*QAM, "generate", *data)
    command(*run, cwd=whole)
    (at.path / "datasets").symlink_to(whole / "datasets")
    at.runs, at.whole = at.path / "runs/smoke", whole / "runs/smoke"
    with said.open("w") as file:
        here = subprocess.Popen(run, cwd=at.path, stdout=file, stderr=file, start_new_session=True)

    def half_way() -> bool:
        begun = list(at.runs.glob("*/checkpoints/last.ckpt"))
        return here.poll() is not None or " finished\n" in _text(said) and len(begun) > 2

    until(half_way, "a finished run, and the next one's first checkpoint")
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.killpg(here.pid, signal.SIGINT)
    code, at.here = here.wait(), _text(said)
    ends, stops = (
        len(re.findall(rf"^\[\S+\] \S+ {how}\b", at.here, re.MULTILINE))
        for how in ("finished", "stopped")
    )
    if code != 130 or not stops:
        raise Failed(f"ended with {code}: {at.here.splitlines()[-1:]}")
    at.noted(command(*run, "--slurm", "--slurm.gpus=0", cwd=at.path))
    restarted(at.through(), 0)
    names = [f"{method}-seed{seed}" for method in ("fql", "qam") for seed in (0, 1)]
    at.equal(*(at.runs / name for name in names))
    command(*QAM, "study", "report", "smoke", cwd=at.path)
    with (at.runs / "report/runs.csv").open() as file:
        rows = sorted((Path(row["folder"]).name, row["finished"]) for row in csv.DictReader(file))
    if rows != [(name, "True") for name in names]:
        raise Failed(f"reported: {rows}")
    return f"{ends} run(s) finished here, {stops} stopped; all four reported"


def side_by_side(at: Study) -> str:
    """Three runs, `runs_per_gpu: 2`."""
    at.write("0-2")
    at.options(runs_per_gpu=2)
    at.submit()
    restarted(at.through(), 0)
    at.equal(at.run(0), at.run(1), at.run(2))
    return f"{len(at.tasks())} jobs"


def run_killed(at: Study) -> str:
    """SIGKILL to one run of two in a job."""
    at.write("0-1")
    at.options(runs_per_gpu=2)
    at.submit()
    at.training(at.run(0), at.run(1))
    (process,) = at.processes(at.run(0))
    os.kill(process, signal.SIGKILL)
    restarted(at.through(), 0)
    at.equal(at.run(0), at.run(1))
    if at.count("seed0: started") != 2 or at.count("seed1: started") != 1:
        raise Failed("the wrong run was started again")
    return "the job started it again; its neighbour went on"


def job_killed(at: Study) -> str:
    """SIGKILL to a job's own process, then to its orphaned run."""
    at.write("0-1")
    at.options()
    at.submit()
    at.training(at.run(0))
    (run,) = at.processes(at.run(0))
    job = int(Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(job, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # SLURM may have been faster
        os.kill(run, signal.SIGKILL)
    restarts = restarted(at.through())
    at.equal(at.run(0), at.run(1))
    return restarts


def requeued(at: Study) -> str:
    """`scontrol requeue` of one task of the array."""
    at.write("0-1")
    at.options()
    at.submit()
    at.training(at.run(0))
    command("scontrol", "requeue", at.tasks()[0])
    restarts = at.through()
    at.equal(at.run(0), at.run(1))
    return restarted(restarts)


def array_requeued(at: Study) -> str:
    """`scontrol requeue` of the array."""
    at.write("0-1")
    at.options()
    at.submit()
    at.training(at.run(0))
    command("scontrol", "requeue", at.jobs[0])
    restarts = at.through()
    at.equal(at.run(0), at.run(1))
    return restarted(restarts)


def signalled(at: Study) -> str:
    """`scancel --signal=TERM` to a job of two runs."""
    at.write("0-1")
    at.options(runs_per_gpu=2)
    at.submit()
    at.training(at.run(0), at.run(1))
    command("scancel", "--signal=TERM", at.tasks()[0])
    restarts = at.through()
    at.equal(at.run(0), at.run(1))
    return restarted(restarts)


def time_up(at: Study) -> str:
    """`time: 3`, `warning: 20`."""
    at.write("0-1", slow=0.3)
    at.options(time=3, warning=20, runs_per_gpu=2)
    at.submit()
    restarts = at.through()
    at.equal(at.run(0), at.run(1))
    return restarted(restarts)


def cancelled(at: Study) -> str:
    """`scancel` of the array."""
    at.write("0-1")
    at.options()
    at.submit()
    at.training(at.run(0))
    command("scancel", at.jobs[0])
    restarted(at.through(("CANCELLED", 0)), 0)
    time.sleep(5)
    if at.count(": finished"):
        raise Failed("a run went on")
    at.submit()
    at.through(("CANCELLED", 0), ("COMPLETED", 0))
    at.equal(at.run(0), at.run(1))
    return "ended for good; submitted again, it went on"


def extended(at: Study) -> str:
    """Two more seeds while the first array runs."""
    at.write("0-1")
    at.options(limit=1)
    at.submit()
    at.training(at.run(0))
    at.write("0-3")
    said = at.submit()
    restarted(at.through(), 0)
    at.equal(*(at.run(seed) for seed in range(4)))
    if at.count(": started") != 4:
        raise Failed("more than four starts")
    (line,) = re.findall(r"^.*left out.*$", said, re.MULTILINE)
    return line.replace(at.jobs[0], "N")


def submitted_twice(at: Study) -> str:
    """Submitted from three terminals at once, and again while it runs."""
    at.write("0-2")
    at.options(limit=1)
    with ThreadPoolExecutor(3) as pool:
        together = [pool.submit(at.submit) for _ in range(3)]
        said = [done.result() for done in together]
    at.training(at.run(0))
    said.append(at.submit())
    restarted(at.through(), 0)
    at.equal(at.run(0), at.run(1), at.run(2))
    if len(at.jobs) != 1 or at.count(": started") != 3:
        raise Failed(f"{len(at.jobs)} arrays: {said}")
    return "one array, three starts"


def user_mistake(at: Study) -> str:
    """A wrong setting in one run of two in a job; requeued; mended and submitted again."""
    wrong = {"seed": 1, "data.path": "nowhere.npz"}
    at.write("0", [wrong], data__path=None)
    text = (at.path / "study.yaml").read_text()
    study = yaml.safe_load(text)
    del study["settings"]["data.path"]
    study["groups"]["good"]["settings"] = {"data.path": str(at.data)}
    (at.path / "study.yaml").write_text(yaml.safe_dump(study))
    at.options(runs_per_gpu=2)
    at.submit()
    good, other = at.run(0, "good"), next(iter([at.runs / "other"]))
    at.training(good)
    until(lambda: at.count("other/.*failed with exit code 2"), "the failure")
    command("scontrol", "requeue", at.tasks()[0])
    restarts = restarted(at.through(("FAILED", 1), ("COMPLETED", 0)))
    if at.count("other/.*: started") != 1:
        raise Failed("the failed run was tried again")
    (folder,) = other.iterdir()
    (at.path / "nowhere.npz").symlink_to(at.data)
    at.submit()
    at.through(("FAILED", 1), ("COMPLETED", 0))
    if found := compare(at.whole / "seed0", good) + compare(at.whole / "seed1", folder):
        raise Failed("; ".join(found[:5]))
    if at.count("good/.*: finished") != 1 or at.count("other/.*: finished") != 1:
        raise Failed("a run finished twice, or not at all")
    return f"tried once, {restarts}; the other run went on"


def terminal_closed(at: Study) -> str:
    """The terminal closes after the submission."""
    at.write("0-1")
    at.options()
    words = f"{shlex.join(SUBMIT)} | tee said; sleep 600"
    child, terminal = pty.fork()
    if not child:
        os.chdir(at.path)
        os.execvp("bash", ["bash", "-c", words])
    until(lambda: "submitted job" in _text(at.path / "said"), "the submission")
    os.close(terminal)  # bash and sleep get SIGHUP
    os.waitpid(child, 0)
    at.noted(_text(at.path / "said"))
    restarted(at.through(), 0)
    at.equal(at.run(0), at.run(1))
    return "the jobs went on"


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def ranks(at: Study) -> str:
    """A run of two devices; `scontrol requeue`."""
    at.write("0", trainer__devices=2)
    at.options()
    at.submit()
    at.training(at.run(0))
    command("scontrol", "requeue", at.tasks()[0])
    restarts = at.through()
    at.equal(at.run(0), whole="ranks")
    return restarted(restarts)


def rank_killed(at: Study) -> str:
    """SIGKILL to a process of a run of two devices."""
    at.write("0", trainer__devices=2)
    at.options()
    at.submit()
    at.training(at.run(0))
    (process,) = at.processes(at.run(0))
    os.kill(process, signal.SIGKILL)
    restarts = at.through()
    at.equal(at.run(0), whole="ranks")
    return restarted(restarts)


def rank_mistake(at: Study) -> str:
    """A wrong setting in a run of two devices."""
    at.write("0", trainer__devices=2, data__path="nowhere.npz")
    at.options()
    at.submit()
    restarted(at.through(("FAILED", 1)), 0)
    if at.count(": started") != 1 or at.count("failed with exit code") != 1:
        raise Failed("it was tried again, or its failure not noted")
    return "tried once, no requeue"


def refused(at: Study) -> str:
    """A partition that does not exist."""
    at.write("0-1")
    at.options(partition="nowhere")
    done = subprocess.run(SUBMIT, cwd=at.path, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    if len(lines) != 1 or "invalid partition" not in lines[0]:
        raise Failed(f"said {lines}")
    left = [p for p in at.runs.rglob("*") if p.is_file()]
    if left:
        raise Failed(f"left over: {left}")
    return f"one line: `{lines[0][:200]}`"


def preempted(at: Study, partition: str) -> str:
    """Preempted by a job that takes precedence."""
    at.write("0-1")
    at.options(partition=partition, runs_per_gpu=2)
    at.submit()
    at.training(at.run(0), at.run(1))
    urgent = ("--partition=urgent", "--ntasks=2", "--time=1", "--output=/dev/null")
    SUBMITTED.append(command("sbatch", "--parsable", *urgent, "--wrap=sleep 3"))
    restarts = at.through()
    at.equal(at.run(0), at.run(1))
    return restarted(restarts)


def preempted_at_once(at: Study) -> str:
    """Preempted (`PreemptMode=REQUEUE`)."""
    return preempted(at, PARTITIONS[0])


def preempted_with_grace(at: Study) -> str:
    """Preempted, with a `GraceTime`."""
    return preempted(at, PARTITIONS[1])


Check = Callable[[Study], str]
CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (uninterrupted, smoke, side_by_side, extended, submitted_twice, terminal_closed)
    + (run_killed, job_killed, requeued, array_requeued, signalled, time_up, cancelled)
    + (user_mistake, ranks, rank_killed, rank_mistake, refused)
}
ALONE: dict[str, Check] = {c.__name__: c for c in (preempted_at_once, preempted_with_grace)}
"""They would preempt the others; and only `started` has the partitions that they need."""


def whole_runs(folder: Path, data: Path) -> Path:
    """Do the runs in one go, without SLURM; returns their folder."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    runs: dict[str, tuple[tuple[object, ...], dict[str, object]]] = {
        f"seed{seed}": (QAM, {"seed": seed}) for seed in range(4)
    }
    both = (*torchrun, "--nproc-per-node=2", ROOT / "train.py")
    runs["ranks"] = (both, {"seed": 0, "trainer.devices": 2})

    def do(name: str) -> None:
        start, own = runs[name]
        settings = {**SETTINGS, "data.path": data, **own, "run_dir": folder / name}
        command(*start, "fit", *(f"--{key}={value}" for key, value in settings.items()))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(do, runs))
    return folder


def check(folder: Path, whole: Path, data: Path, name: str) -> tuple[str, str, str]:
    """Do one check; returns its row of the table."""
    do, at, start = (CHECKS | ALONE)[name], Study(folder / name, whole, data), time.monotonic()
    try:
        row = do.__doc__.rstrip("."), do(at), "equal" if do is not refused else "nothing started"
    except Exception as error:
        row = do.__doc__.rstrip("."), f"{error}".partition("\n")[0], "**failed**"
        print(at.said[-3000:])
    print(f"{name}, {time.monotonic() - start:.0f} s: {'; '.join(row)}", flush=True)
    return row


def main() -> int:
    """Submit, harm, count, compare and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--start", action="store_true", help="a SLURM of one node, as root")
    parser.add_argument("--only", nargs="+", choices=[*CHECKS, *ALONE], help="default: all")
    where = "folder of the table; default: docs, or no table after --only"
    parser.add_argument("--output", type=Path, help=where)
    options = parser.parse_args()
    paths = (Path(__file__).resolve().parent, ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    with contextlib.ExitStack() as stack:
        if options.start:
            stack.enter_context(started())
        elif not sinfo("%T"):
            raise SystemExit("there is no SLURM here; --start starts one")
        stack.callback(lambda: command("scancel", "--quiet", *SUBMITTED) if SUBMITTED else None)
        start = time.monotonic()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        data = folder / "data.npz"
        collect(data)
        (folder / "whole").mkdir()
        do = functools.partial(check, folder, whole_runs(folder / "whole", data), data)
        print(f"in one go: {time.monotonic() - start:.0f} s", flush=True)
        wanted = options.only or [*CHECKS, *(ALONE if options.start else ())]
        with ThreadPoolExecutor(2) as pool:
            rows = list(pool.map(do, [name for name in wanted if name in CHECKS]))
        rows += [do(name) for name in wanted if name in ALONE]
        heads = "| what happened | what became of it | the runs |"
        if output := options.output or (None if options.only else Path("docs")):
            path = output / "slurm_study_table.md"
            write(path, ABOUT, heads, rows, time.monotonic() - start)
    return 0 if all(row[-1] != "**failed**" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
