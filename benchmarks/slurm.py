"""Runs jobs under SLURM, harms them in every way that SLURM knows, and compares how they end.

python benchmarks/slurm.py              under the SLURM of this machine
python benchmarks/slurm.py --start      under one that it starts for itself, on this machine only

Writes docs/slurm_table.md. The jobs are those of docs/endurance.md, to the letter, with settings of
a small run as their arguments. A run that was stopped and continued must end bit-identical to one
that was not. Options for the cluster go into sbatch's variables, e.g. SBATCH_PARTITION. Two tasks
fit on a node; the working directory, where a folder is made for the runs, is shared by all nodes.

--start needs root, two cores and the packages of slurmctld, slurmd and munged (on Debian: slurm-wlm
and munge). It touches nothing outside a temporary folder, and ends with the checks.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import lightning.pytorch as pl
from crash import SETTINGS, collect, compare

from qam_lightning.checkpoints import describe, last_checkpoints
from qam_lightning.util.errors import UserError
from qam_lightning.util.provenance import versions_line

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900.0
"""Seconds after which something that should have happened counts as failed."""
PARTITIONS = "main", "grace", "urgent"
"""Those of `started`: jobs of the last take the place of those of the others, at once or after
SIGTERM and half a minute."""
SMALL = {k: v for k, v in SETTINGS.items() if k != "config"} | {
    "trainer.max_steps": 1500,
    "checkpoints.every_n_steps": 100,
    "evaluation.every_n_steps": 500,
}
ABOUT = [
    "# Under SLURM",
    "",
    "`python benchmarks/slurm.py` submitted the jobs of [What a run survives](endurance.md).",
    "`equal`: the run ended bit-identical to one without SLURM and without interruption, in",
    "weights, targets, optimizer, metrics, random generators, replay, tables and best",
    "checkpoint.",
]
"""The head of the table's page."""
SUBMITTED: list[str] = []


class Slow(pl.Callback):
    """Gives the harm time to come."""

    def __init__(self, seconds: float) -> None:
        """Wait so long after each update."""
        self.seconds = seconds

    def on_train_batch_end(self, *args: object) -> None:
        """Wait."""
        time.sleep(self.seconds)


class Failed(Exception):
    """Something did not happen as it should."""


def command(*words: object, **options: object) -> str:
    """Run a command; returns what it says."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **options)
    if done.returncode:
        raise Failed(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def until(happened: Callable[[], Any], what: str) -> Any:
    """Wait until something happens; returns it."""
    end = time.monotonic() + LIMIT
    while not (found := happened()):
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {LIMIT:.0f} s")
        time.sleep(0.3)
    return found


# -- jobs ------------------------------------------------------------------------------------------


def jobs_of_the_page() -> list[str]:
    """The jobs of the guide: one that resumes itself, and one that starts several runs."""
    page = (ROOT / "docs/endurance.md").read_text()
    return re.findall(r"```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)


class Folder:
    """A folder in which jobs of the guide are submitted, and the uninterrupted runs."""

    def __init__(self, folder: Path, whole: dict[str, Path], data: Path) -> None:
        """Make it."""
        self.path, self.whole, self.data = folder, whole, data
        folder.mkdir()
        (folder / "train.py").symlink_to(ROOT / "train.py")
        for name, text in zip(("job", "several"), jobs_of_the_page(), strict=True):
            (folder / f"{name}.sh").write_text(text)

    def run(self, seed: int = 0) -> Path:
        """The run folder of the guide's job."""
        return self.path / f"runs/cube-triple-{seed}"

    def submit(
        self, *options: str, script: str = "job.sh", slow: float = 0.01, **settings: object
    ) -> str:
        """Submit a job; returns its number."""
        slowly = {"class_path": "slurm.Slow", "init_args": {"seconds": slow}}
        own = arguments(self.data, trainer__callbacks=json.dumps([slowly]), **settings)
        asked = ("--parsable", "--gres=none", "--time=10", *options)
        words = (f"--{key}={value}" for key, value in own.items())
        SUBMITTED.append(command("sbatch", *asked, script, *words, cwd=self.path))
        return SUBMITTED[-1]

    def training(self, job: str, seed: int = 0) -> None:
        """Wait until a job has written a checkpoint of some steps."""

        def saved() -> bool:
            if facts(job)["JobState"] in ("FAILED", "COMPLETED", "CANCELLED"):
                raise Failed(f"ended before its first checkpoint: {self.said}")
            with contextlib.suppress(UserError):  # it was renamed meanwhile
                return any(describe(p).gradient_step for p in last_checkpoints(self.run(seed)))
            return False

        until(saved, "a checkpoint")

    @property
    def said(self) -> str:
        """What all jobs have said so far."""
        return "".join(path.read_text() for path in self.path.glob("slurm-*.out"))

    def stops(self) -> str:
        """Where the run was saved."""
        steps = re.findall(r"stopped at gradient step (\d+)", self.said)
        if not steps:
            raise Failed("nothing was saved")
        return "saved at gradient step " + ", ".join(steps)

    def equal(self, run: Path, whole: str = "0") -> None:
        """Compare a run with one in one go."""
        if found := compare(self.whole[whole], run):
            raise Failed("; ".join(found[:5]))


def arguments(data: Path, **settings: object) -> dict[str, object]:
    """The settings of a small run; ``trainer__devices`` for ``trainer.devices``."""
    own = {key.replace("__", "."): value for key, value in settings.items()}
    return {**SMALL, "data.path": data, **own}


def facts(job: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    words = command("scontrol", "show", "job", "-o", job).splitlines()[0].split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def end(job: str) -> dict[str, str]:
    """Wait for a job's end; returns what SLURM knows of it."""
    moved = set()

    def ended() -> dict[str, str] | None:
        found = facts(job)
        if found["JobState"] in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"):
            # SLURM waits for two minutes; it needs some seconds to forget the job's last life.
            if found["Reason"] == "BeginTime" and found["Restarts"] not in moved:
                moved.add(found["Restarts"])
                command("scontrol", "update", f"job={job}", "StartTime=now+10")
            return None
        return found

    return until(ended, f"the end of job {job}")


def completed(job: str, restarts: int) -> None:
    """Wait for a job to be through after so many restarts."""
    found = end(job)
    seen = found["JobState"], found["ExitCode"], int(found["Restarts"])
    if seen[:2] != ("COMPLETED", "0:0") or seen[2] < restarts or (not restarts and seen[2]):
        raise Failed(f"job ended {seen}, expected {restarts} restarts")


def failed(job: str, state: str, code: int) -> None:
    """Wait for a job that must end so."""
    found = end(job)
    seen = found["JobState"], found["ExitCode"].split(":")[0]
    if seen != (state, str(code)):
        raise Failed(f"job ended {seen}, expected {state} with exit code {code}")


# -- checks ----------------------------------------------------------------------------------------


def uninterrupted(at: Folder) -> str:
    """Nothing happened."""
    completed(at.submit(), 0)
    at.equal(at.run())
    return "exit code 0"


def array(at: Folder) -> str:
    """`sbatch --array=0-1`; SIGUSR1 to one of the two."""
    job = at.submit("--array=0-1")
    for seed in (0, 1):
        at.training(f"{job}_{seed}", seed)
    command("scancel", "--signal=USR1", f"{job}_1")
    completed(f"{job}_1", 1)
    completed(f"{job}_0", 0)
    for seed in (0, 1):
        at.equal(at.run(seed), str(seed))
    return at.stops() + ", requeued; the other went on"


def several(at: Folder) -> str:
    """One `srun -n 2` starts two independent runs."""
    completed(at.submit("--ntasks=2", script="several.sh"), 0)
    for seed in (0, 1):
        at.equal(at.path / f"runs/{seed}", str(seed))
    return "exit code 0"


def time_up(at: Folder) -> str:
    """`--time=2 --signal=USR1@15`."""
    completed(at.submit("--time=2", "--signal=USR1@15", slow=0.08), 1)
    at.equal(at.run())
    return at.stops() + ", requeued"


def requeued(at: Folder) -> str:
    """`scontrol requeue`."""
    job = at.submit()
    at.training(job)
    command("scontrol", "requeue", job)
    completed(job, 1)
    at.equal(at.run())
    return at.stops() + ", requeued"


def terminated(at: Folder) -> str:
    """`scancel --signal=TERM`."""
    job = at.submit()
    at.training(job)
    command("scancel", "--signal=TERM", job)
    completed(job, 1)
    at.equal(at.run())
    return at.stops() + ", requeued"


def hung_up(at: Folder) -> str:
    """`scancel --signal=HUP`."""
    job = at.submit()
    at.training(job)
    command("scancel", "--signal=HUP", job)
    failed(job, "FAILED", 129)
    completed(at.submit(), 0)
    at.equal(at.run())
    return at.stops() + ", exit code 129, submitted again"


def cancelled(at: Folder) -> str:
    """`scancel`."""
    job = at.submit()
    at.training(job)
    command("scancel", job)
    failed(job, "CANCELLED", 0)
    completed(at.submit(), 0)
    at.equal(at.run())
    return at.stops() + ", submitted again"


def a_rank_killed(at: Folder) -> str:
    """SIGKILL to one of two ranks (`srun` with two tasks)."""
    options = ("--ntasks=2", "--ntasks-per-node=2")
    job = at.submit(*options, trainer__devices=2)
    at.training(job)
    pids = command("scontrol", "listpids", f"{job}.0").splitlines()[1:]
    second = [int(pid) for pid, _, _, number, _ in map(str.split, pids) if number == "1"]
    (rank,) = [p for p in second if "train.py" in Path(f"/proc/{p}/cmdline").read_text()]
    os.kill(rank, signal.SIGKILL)
    completed(job, 1)
    at.equal(at.run(), "ranks")
    return "`srun` ended the other, requeued"


def preempted(at: Folder, partition: str) -> str:
    """Preempted by a job that takes precedence."""
    job = at.submit(f"--partition={partition}")
    at.training(job)
    urgent = ("--partition=urgent", "--ntasks=2", "--time=1", "--output=/dev/null")
    command("sbatch", *urgent, "--wrap=sleep 3")
    completed(job, 1)
    at.equal(at.run())
    return at.stops() + ", requeued"


def preempted_at_once(at: Folder) -> str:
    """Preempted (`PreemptMode=REQUEUE`)."""
    return preempted(at, PARTITIONS[0])


def preempted_with_grace(at: Folder) -> str:
    """Preempted, with a `GraceTime`."""
    return preempted(at, PARTITIONS[1])


CHECKS = {
    check.__name__: check
    for check in (uninterrupted, array, several, time_up, requeued, terminated, hung_up, cancelled)
    + (a_rank_killed,)
}
ALONE = {check.__name__: check for check in (preempted_at_once, preempted_with_grace)}
"""They would preempt the others; and only `started` has the partitions that they need."""


def whole_runs(folder: Path, data: Path) -> dict[str, Path]:
    """Do the runs in one go, without SLURM, all at once."""
    plain = (sys.executable, ROOT / "train.py")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    kinds = {
        "0": (plain, {"seed": 0}),
        "1": (plain, {"seed": 1}),
        "ranks": ((*torchrun, "--nproc-per-node=2", ROOT / "train.py"), {"trainer__devices": 2}),
    }
    whole = {name: folder / name for name in kinds}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}

    def do(name: str) -> None:
        start, own = kinds[name]
        settings = {**arguments(data, **own), "run_dir": whole[name]}
        words = (f"--{key}={value}" for key, value in settings.items())
        command(*start, "fit", "--config=cube_triple.yaml", *words, env=environment)

    with ThreadPoolExecutor() as pool:
        list(pool.map(do, kinds))
    return whole


# -- a SLURM of one node ---------------------------------------------------------------------------


@contextlib.contextmanager
def started() -> Iterator[None]:
    """Run a SLURM of one node, this machine, with two cores."""
    host = socket.gethostname().partition(".")[0]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as daemons:
        folder = Path(name)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o600)
        (folder / "slurm.conf").write_text(f"""
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName={PARTITIONS[0]} Nodes={host} Default=YES State=UP PriorityTier=1
PartitionName={PARTITIONS[1]} Nodes={host} State=UP PriorityTier=1 GraceTime=30
PartitionName={PARTITIONS[2]} Nodes={host} State=UP PriorityTier=2
""")
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        files = (f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed"))
        munged = ("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        for daemon in (munged, ("slurmctld", "-D", "-i"), ("slurmd", "-D", "-N", host)):
            path = shutil.which(daemon[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
            if path is None:
                raise SystemExit(f"{daemon[0]} is not installed")
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen([path, *daemon[1:]], start_new_session=True, **quiet)
            daemons.callback(process.wait)
            daemons.callback(process.terminate)
            time.sleep(1)
        until(lambda: "idle" in sinfo("%T"), "an idle node")
        yield


def sinfo(form: str) -> str:
    """Ask SLURM about its nodes; returns nothing if there is no SLURM."""
    with contextlib.suppress(Failed, FileNotFoundError):
        return command("sinfo", "--noheader", "-o", form)
    return ""


# -- the table -------------------------------------------------------------------------------------


def check(folder: Path, whole: dict[str, Path], data: Path, name: str) -> tuple[str, str, str]:
    """Do one check; returns its row of the table."""
    do, at, start = (CHECKS | ALONE)[name], Folder(folder / name, whole, data), time.monotonic()
    try:
        row = do.__doc__.rstrip("."), do(at), "equal"
    except Failed as error:
        row = do.__doc__.rstrip("."), str(error).partition("\n")[0], "**failed**"
        print(at.said[-4000:])
    print(f"{name}, {time.monotonic() - start:.0f} s: {'; '.join(row)}", flush=True)
    return row


def write(
    path: Path, about: list[str], heads: str, rows: list[tuple[str, str, str]], seconds: float
) -> None:
    """Write a table under a title and what it is about."""
    lines = [
        *about,
        "",
        f"{command('sinfo', '--version')}, {seconds:.0f} s, {versions_line()}.",
        "",
        heads,
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def main() -> int:
    """Submit, harm, compare and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--start", action="store_true", help="a SLURM of one node, as root")
    parser.add_argument("--only", nargs="+", choices=[*CHECKS, *ALONE], help="default: all")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the table")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parent)}
    with contextlib.ExitStack() as stack:
        if options.start:
            stack.enter_context(started())
        elif not sinfo("%T"):
            raise SystemExit("there is no SLURM here; --start starts one")
        stack.callback(lambda: command("scancel", "--quiet", *SUBMITTED))
        start = time.monotonic()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd())))
        data = folder / "data.npz"
        collect(data)
        do = functools.partial(check, folder, whole_runs(folder, data), data)
        print(f"in one go: {time.monotonic() - start:.0f} s", flush=True)
        wanted = options.only or [*CHECKS, *(ALONE if options.start else ())]
        with ThreadPoolExecutor(2) as pool:
            rows = list(pool.map(do, [name for name in wanted if name in CHECKS]))
        rows += [do(name) for name in wanted if name in ALONE]
        heads = "| what happened to the job | what became of it | its end |"
        write(options.output / "slurm_table.md", ABOUT, heads, rows, time.monotonic() - start)
    return 0 if all(row[-1] == "equal" for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
