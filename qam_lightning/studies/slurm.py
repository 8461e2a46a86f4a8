"""Runs of a study under SLURM: one job array for all that is missing.

submitit writes the array's script, submits it, and calls `slurm_job.work` on the nodes. Three
things are our own:

* The script requeues the job's own task. submitit handles one signal, ignores SIGTERM, and counts
  only the requeues that follow a time limit.
* A file beside the script, written before the job exists, says which task has which runs. So a
  second submission sees what the first one left in the queue.
* Runs of several processes are started by ``srun`` from one process that watches over them.
"""

import contextlib
import io
import math
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from qam_lightning.cli.reading import read_text, read_yaml
from qam_lightning.studies.slurm_job import TASKS, TIME_IS_UP, Entry, Task, read_tasks, work
from qam_lightning.studies.study import Study
from qam_lightning.util.arguments import closest
from qam_lightning.util.devices import device_count, is_counted
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.files import locked, save_json, writing
from qam_lightning.util.schema import Checked, Schema, Text, validated

if TYPE_CHECKING:
    from qam_lightning.studies.plan import Planned

FOLDER = ".slurm"
"""The folder, in the study's, of job scripts, their logs, and `TASKS`."""

REQUEUES = 100

_WARNING = TIME_IS_UP.name.removeprefix("SIG")

_SCRIPT = f"""\
status=$?
if [ $status -gt 128 ] && [ ${{SLURM_RESTART_COUNT:-0}} -lt {REQUEUES} ]; then
    # The number of the job alone could mean all tasks of the array.
    task=${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
    scontrol requeue ${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}$task
fi
exit $status"""

_OURS = (
    *("array", "error", "job-name", "no-requeue", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "parsable", "requeue", "test-only", "wait", "wrap"),
)
"""Parameters of sbatch that follow from the study."""
_NAMED = {
    "cpus-per-task": "cpus",
    "gpus-per-node": "gpus",
    "mem": "memory",
    "signal": "warning",
    **{name: name for name in ("account", "partition", "time")},
}
"""Parameters of sbatch that have an option of their own."""


def _word(text: str) -> str:
    if not re.fullmatch(r"\S+", text):
        raise ValueError("a name")
    return text


def _memory(text: str) -> str:
    if not re.fullmatch(r"\d+[KMGT]?", text):
        raise ValueError("a size such as 32G")
    return text


Positive = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]


class SlurmOptions(Schema):
    """What a study's jobs ask of the cluster.

    Attributes:
        partition: of the cluster; its default one if None.
        account: that pays.
        time: minutes of a job. A job that needs longer is requeued, and goes on.
        warning: seconds before the time is up in which runs are saved; leave time for an
            evaluation.
        gpus: GPUs of a job on each node. By default one for each device of a run, none if its
            ``trainer.accelerator`` is ``cpu``.
        cpus: cores of a job, for each device of a run that has several.
        memory: of a job on each node, e.g. ``32G``.
        limit: how many jobs run at a time.
        runs_per_gpu: how many runs share a job's GPU; without GPUs, how many share a job.
        extra: further parameters of sbatch, e.g. ``{qos: long, constraint: a100}``.
    """

    partition: Annotated[Text, Checked(_word)] | None = None
    account: Annotated[Text, Checked(_word)] | None = None
    time: Positive = 720
    warning: Positive = 300
    gpus: Annotated[int, Field(ge=0, le=1000, strict=True)] | None = None
    cpus: Positive | None = None
    memory: Annotated[Text, Checked(_memory)] | None = None
    limit: Positive | None = None
    runs_per_gpu: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1
    extra: dict[str, str | int | bool] = {}


def read_options(path: Path | None, given: Mapping[str, Any] | None = None) -> SlurmOptions:
    """Read a YAML file with options.

    Args:
        path: the file, None for the defaults.
        given: options that override those of the file.

    Raises:
        UserError: it cannot be read, or an option is unknown or out of range.
    """
    content: dict[str, Any] = {}
    if path is not None:
        content = _content(path)
        _options(content, str(path))
    return _options({**content, **(given or {})}, "slurm")


def _content(path: Path) -> dict[str, Any]:
    text = read_text(path, "options of jobs")
    # YAML 1.1 would read 12:00:00 as a number to base 60.
    if clock := re.search(r"^time\s*:\s*(\d+(:\d+)+)", text, re.MULTILINE):
        raise UserError(f"{path}: time is {clock[1]}, expected minutes")
    content = read_yaml(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {', '.join(SlurmOptions.model_fields)}")
    return content


def _options(content: Mapping[str, Any], where: str) -> SlurmOptions:
    known = list(SlurmOptions.model_fields)
    for key in content:
        if key not in known:
            raise UserError(f"{where}: unknown option '{shown(key)}'; {closest(str(key), known)}")
    options = validated(SlurmOptions, dict(content), where, "the options", "mend it")
    for key in options.extra:
        name = key.replace("_", "-").lstrip("-")
        if name in _NAMED:
            raise UserError(f"{where}: extra.{shown(key)} is the option {_NAMED[name]}")
        if name in _OURS:
            raise UserError(f"{where}: extra.{shown(key)} follows from the study; remove it")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise UserError(f"{where}: extra: '{shown(key)}' is no parameter of sbatch")
    if options.warning >= 60 * options.time:
        found = f"warning is {options.warning} s, and time {options.time} min"
        raise UserError(f"{where}: {found}; expected a warning before the time is up")
    return options


# -- what is submitted -----------------------------------------------------------------------------


class Shape(NamedTuple):
    """What a job asks for.

    Attributes:
        nodes: ``trainer.num_nodes``.
        devices: ``trainer.devices``, of each node.
        gpus: of each node.
    """

    nodes: int
    devices: int
    gpus: int

    @property
    def several(self) -> bool:
        """Whether a run is several processes."""
        return self.nodes * self.devices > 1

    def slots(self, options: SlurmOptions) -> int:
        """How many runs a job has at a time."""
        return 1 if self.several else options.runs_per_gpu * max(1, self.gpus)


def shape_of(planned: "Planned", options: SlurmOptions) -> Shape:
    """Return what a run's job asks for.

    Raises:
        UserError: its settings do not say how many processes it is, or options contradict them.
    """
    run, nodes, devices = planned.run, planned.nodes, _count(planned)
    cpu = planned.settings["trainer"]["accelerator"] == "cpu"
    shape = Shape(nodes, devices, (0 if cpu else devices) if options.gpus is None else options.gpus)
    if shape.several and options.runs_per_gpu > 1:
        raise UserError(
            f"{run.name}: runs_per_gpu is {options.runs_per_gpu}, but the run has {nodes} node(s) "
            f"with {devices} device(s); only runs of one device share a job"
        )
    if shape.several and shape.gpus not in (0, devices):
        raise UserError(
            f"{run.name}: gpus is {shape.gpus}, but the run has {devices} device(s) on each node; "
            "leave gpus out"
        )
    return shape


def _count(planned: "Planned") -> int:
    """Return how many devices a run has on each node. The numbers of these are SLURM's choice."""
    count = device_count(planned.devices)
    if count is None or not is_counted(planned.devices):
        raise UserError(
            f"{planned.run.name}: trainer.devices is {shown(planned.devices)}; a job needs how "
            "many, at least 1, because SLURM chooses which"
        )
    return count


def tasks_of(
    planned: "Sequence[Planned]", options: SlurmOptions, longest: int
) -> dict[Shape, list[Task]]:
    """Deal runs to the tasks of one array for each shape.

    Args:
        planned: the runs.
        options: of the jobs.
        longest: how many tasks an array may have. If the runs are more than fit side by side, a
            task has some that run one after another.

    Raises:
        UserError: see `shape_of`.
    """
    by_shape: dict[Shape, list[Planned]] = {}
    for item in planned:
        by_shape.setdefault(shape_of(item, options), []).append(item)
    arrays = {}
    for shape, those in by_shape.items():
        slots = shape.slots(options)
        size = slots * math.ceil(len(those) / (slots * longest))
        dealt = [those[first : first + size] for first in range(0, len(those), size)]
        arrays[shape] = [
            Task(
                entries=[_entry(item) for item in part],
                slots=slots,
                ranks=shape.several,
            )
            for part in dealt
        ]
    return arrays


def _entry(planned: "Planned") -> Entry:
    run = {**planned.run._asdict(), "run_dir": str(planned.run.run_dir)}
    return Entry(**run, length=planned.state.length)


# -- the queue -------------------------------------------------------------------------------------


def queued(study: Study) -> dict[str, str]:
    """Return the runs that jobs of this study hold, pending or running: `Run.name` -> job.

    A run that has failed since its job was submitted is not held: the job does not try it again.

    Raises:
        UserError: SLURM does not answer.
    """
    return _held(_jobs(study))


class _Queued(NamedTuple):
    """A job in the queue.

    Attributes:
        tasks: the `TASKS` file of its array.
        name: what SLURM calls it, e.g. ``12_3``; ``12`` if the array has no other task.
        number: of its task.
    """

    tasks: Path
    name: str
    number: int


def _jobs(study: Study) -> list[_Queued]:
    """Return the jobs of this study in the queue.

    Raises:
        UserError: SLURM does not answer.
    """
    files = {f"{study.name}-{path.parent.name}": path for path in _files(study)}
    if not files:
        return []
    form = "%F|%K|%j"  # number of the array, of the task, name
    asked = ("squeue", "--noheader", "--array", f"--format={form}", f"--name={','.join(files)}")
    jobs = []
    for line in _answer(*asked).splitlines():
        array, number, name = line.strip().split("|", 2)
        several = number.isdecimal()
        called = f"{array}_{number}" if several else array
        jobs.append(_Queued(files[name], called, int(number) if several else 0))
    return jobs


def _held(jobs: Sequence[_Queued]) -> dict[str, str]:
    held = {}
    for job in jobs:
        submitted = job.tasks.stat().st_mtime
        for entry in read_tasks(job.tasks)[job.number].entries:
            if not entry.failed_since(submitted):
                held[entry.run.name] = job.name
    return held


def _files(study: Study) -> list[Path]:
    return sorted((study.folder / FOLDER).glob(f"*/{TASKS}"))


def _clear(study: Study, jobs: Sequence[_Queued]) -> None:
    """Delete the folders of arrays that have left the queue and whose runs are all finished."""
    for path in set(_files(study)) - {job.tasks for job in jobs}:
        with contextlib.suppress(UserError):  # a damaged file, or a damaged run: somebody may look
            entries = [entry for task in read_tasks(path) for entry in task.entries]
            if all(entry.state().kind == "finished" for entry in entries):
                shutil.rmtree(path.parent, ignore_errors=True)


def _answer(*words: str) -> str:
    """Ask SLURM.

    Raises:
        UserError: it is not there, or refuses.
    """
    if shutil.which(words[0]) is None:
        raise UserError(
            f"there is no SLURM on this machine: {words[0]} is not found; submit on a machine "
            "that has it, or run the study here"
        )
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(_one_line(done.stderr) or f"{words[0]} ended with {done.returncode}")
    return done.stdout


def _one_line(said: str) -> str:
    lines = [re.sub(r"^\w+: error: ", "", line.strip()) for line in said.splitlines()]
    return shown("; ".join(filter(None, lines)), 500)


def _longest_array() -> int:
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _answer("scontrol", "show", "config"), re.M)
    return max(1, int(found[1]) - 1) if found else 1000


# -- submission ------------------------------------------------------------------------------------


def submit(study: Study, planned: "Sequence[Planned]", options: SlurmOptions) -> list[str]:
    """Submit the given runs of a study, but for those that its jobs in the queue hold already.

    What earlier arrays of finished runs have left in `FOLDER` is deleted. The jobs need no
    terminal. They requeue themselves until their runs have finished or failed.

    Args:
        study: the study.
        planned: runs that are to start, or to go on.
        options: of the jobs.

    Returns:
        The numbers of the job arrays, one for each `Shape`; none if all runs are held.

    Raises:
        UserError: SLURM or submitit is not there, or refuses. Then no job of this call remains.
    """
    _import_submitit()
    longest = _longest_array()
    folder = study.folder.absolute() / FOLDER
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    jobs: list[str] = []
    with locked(folder / "lock"):  # another terminal may be submitting
        queue = _jobs(study)
        _clear(study, queue)
        held = _held(queue)
        _tell([held[item.run.name] for item in planned if item.run.name in held])
        missing = [item for item in planned if item.run.name not in held]
        arrays = tasks_of(missing, options, longest)
        try:
            for shape, tasks in arrays.items():
                jobs.append(_submit_array(study, shape, tasks, options))
        except UserError:
            if jobs:
                _answer("scancel", *jobs)
            raise
    return jobs


def _tell(jobs: Sequence[str]) -> None:
    """Say how many runs are left out, and whose they are."""
    if jobs:
        arrays = dict.fromkeys(job.partition("_")[0] for job in jobs)
        print(f"{len(jobs)} run(s) left out: in the queue already, job {', '.join(arrays)}")


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError("submitit is not installed; pip install 'qam_lightning[slurm]'") from None
    return submitit


def _submit_array(study: Study, shape: Shape, tasks: list[Task], options: SlurmOptions) -> str:
    """Submit one array; return its number."""
    submitit, name = _import_submitit(), uuid.uuid4().hex[:8]
    folder = study.folder.absolute() / FOLDER / name
    path = folder / TASKS
    with writing(path):
        folder.mkdir()
    save_json(path, [task.model_dump() for task in tasks])  # before any of them may be in the queue
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(
        **_parameters(shape, options),
        job_name=f"{study.name}-{name}",
        array_parallelism=options.limit or len(tasks),
    )
    said = io.StringIO()  # submitit repeats what sbatch says
    try:
        with _outside_jobs(), writing(folder), contextlib.redirect_stderr(said):
            first, *_ = executor.map_array(work, [str(path)] * len(tasks), range(len(tasks)))
    except submitit.core.utils.FailedJobError as error:
        shutil.rmtree(folder, ignore_errors=True)
        why = _one_line(str(error))
        # This is all that SLURM says where there are no GPUs, or only GPUs with a type.
        asked = "generic resource" in why and shape.gpus
        advice = "; --slurm.gpus 0 asks for none" if asked else ""
        raise UserError(f"SLURM refuses the job: {why}{advice}") from None
    return first.job_id.partition("_")[0]


def _parameters(shape: Shape, options: SlurmOptions) -> dict[str, Any]:
    """Return submitit's parameters of an array."""
    extra = {key: value for key, value in options.extra.items() if value is not False}
    return {
        "partition": options.partition,
        "account": options.account,
        "time": options.time,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.devices,
        "gpus_per_node": shape.gpus or None,
        "cpus_per_task": options.cpus,
        "mem": options.memory,
        # From SLURM 22.05 on, srun does not take this from sbatch.
        "setup": ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"] if options.cpus else [],
        "use_srun": not shape.several,  # else the runs themselves are started by srun
        "teardown": _SCRIPT.splitlines(),
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own, which SLURM may not know
        # submitit would ask for SIGUSR2, which ends a run at once.
        "additional_parameters": {
            "signal": f"{_WARNING}@{options.warning}",
            "requeue": True,
            **extra,
        },
    }


@contextlib.contextmanager
def _outside_jobs() -> Iterator[None]:
    """Hide the variables of a job that this process may belong to: sbatch would pass them on."""
    hidden = {k: v for k, v in os.environ.items() if k.startswith("SLURM_") and k != "SLURM_CONF"}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
