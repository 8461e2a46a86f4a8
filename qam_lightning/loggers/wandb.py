"""Metrics of a run in Weights & Biases, whose steps are gradient steps.

What is not given here is W&B's to decide: from its environment variables (``WANDB_PROJECT``,
``WANDB_ENTITY``, ``WANDB_MODE``, ``WANDB_RUN_GROUP`` and so on) and its settings file.
"""

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_only

from qam_lightning.loggers.base import RunLogger
from qam_lightning.util.errors import UserError, reason_of, shown
from qam_lightning.util.files import replacing, writing
from qam_lightning.util.provenance import versions
from qam_lightning.util.run_config import configuration

PROJECT = "qam_lightning"
"""Where runs go if neither the user nor W&B's environment names a project."""

_SETTINGS: dict[str, Any] = {
    "silent": True,
    "init_timeout": 30.0,  # seconds
    "finish_timeout": 300.0,  # seconds
    "finish_timeout_raises": True,
}
"""Settings of W&B, where its environment does not choose them."""

_UPLOAD_SECONDS = 300


class WandbLogger(RunLogger):
    """Logs to one Weights & Biases run, also when the training run is resumed.

    The run's id is kept in the run's folder, in ``wandb_run_id``. A killed run that resumes logs
    the rows after its checkpoint again. W&B ignores them online, and shows them twice, at the same
    ``gradient_step``, after ``wandb sync`` of what was recorded offline.

    Training does not depend on W&B. If it cannot start online (no API key, no network, a refusal),
    it records offline. If it fails later, the run goes on without it. Each is told in one line.

    Args:
        run_dir: folder of the run.
        mode: ``"online"`` or ``"offline"``, to be uploaded later with ``wandb sync``; W&B's own,
            ``WANDB_MODE``, if None.
        project: Weights & Biases project; W&B's own, else ``"qam_lightning"``, if None.
        name: name of the run there; W&B's own, else that of the run's folder, if None.
        group: what W&B gathers runs under; W&B's own if None.
        tags: labels of the run; W&B's own if None.
    """

    def __init__(
        self,
        run_dir: str | Path,
        mode: Literal["offline", "online"] | None = None,
        project: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> None:
        super().__init__(run_dir)
        self.mode, self.project = mode, project
        self.group, self.tags = group, tags
        self._name = name
        self._run: Any = None

    @property
    def name(self) -> str:
        """The name of the run."""
        return self._name or self.run_dir.name

    @property
    def experiment(self) -> Any:
        """The ``wandb`` run, None before `begin` and on ranks other than 0."""
        return self._run

    @rank_zero_only
    def begin(self, gradient_step: int | None, config: str = "") -> None:
        """Open the run: only now, since a run that is refused before should leave no trace.

        Raises:
            UserError: W&B refuses its settings, or nothing can be written.
        """
        import wandb  # slow to import, and few runs want it

        try:
            theirs = wandb.setup().settings
            mode = self.mode or theirs.mode
            if mode != theirs.mode and "WANDB_MODE" in os.environ:
                print(f"wandb: mode {mode} was asked for, WANDB_MODE {theirs.mode} does not count")
            options = {
                "project": self.project or theirs.project or PROJECT,
                "name": self._name or theirs.run_name or self.run_dir.name,
                "id": self._identity(theirs.run_id, bool(theirs.sweep_id), gradient_step is None),
                "group": self.group,
                "tags": self.tags,
                "dir": None if "WANDB_DIR" in os.environ else str(self.run_dir),
                "config": {**configuration(config), "versions": versions()},
            }
        except Exception as error:
            raise _cannot_start(error) from error
        if mode in ("online", "run", "shared"):
            try:
                if _logged_in():
                    self._run = _start(mode, options)
                    print(f"wandb: {self._run.url}")
                    return
                problem = "no API key found"
            except Exception as error:  # the network, the server, their library
                problem = reason_of(error)
                _tear_down()  # else the run's id stays in use
            print(f"wandb: {problem}; recording offline, upload later with `wandb sync`")
            mode = "offline"
        try:
            self._run = _start(mode, options)
        except Exception as error:
            raise _cannot_start(error) from error

    def write(self, row: dict[str, Any]) -> None:
        """Log a row at its gradient step."""
        if self._run is not None:
            try:
                self._run.log(row, step=row["gradient_step"])
            except Exception as error:  # say, W&B's own process was killed
                self._give_up(error)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, as failed unless ``status`` is ``"success"``."""
        if self._run is not None:
            try:
                self._run.finish(exit_code=0 if status == "success" else 1)
            except Exception as error:
                self._give_up(error)
        self._run = None

    def _give_up(self, error: Exception) -> None:
        """Go on without W&B."""
        self._run = None
        print(
            f"wandb: {reason_of(error)}; the run goes on without W&B, metrics/ has all rows; "
            "`wandb sync` uploads what W&B recorded"
        )
        _tear_down()

    def _identity(self, theirs: str | None, sweep: bool, new: bool) -> str:
        """The id of this folder's run, kept from now on.

        Args:
            theirs: ``WANDB_RUN_ID``, if it is set.
            sweep: an agent of a sweep has set it, for a run that the server expects.
            new: a run begins; an id that is there is of one that was killed before its first step.
        """
        path = self.run_dir / "wandb_run_id"
        resumed = path.exists() and not new
        kept = path.read_text("utf-8", errors="replace").strip() if resumed else None
        if kept is not None and not re.fullmatch(r"[\w.-]{1,128}", kept, re.ASCII):
            print(f"wandb: {path} holds no run id; what follows is another run of W&B")
            kept = None
        identity = theirs if sweep and theirs else kept or theirs or secrets.token_hex(4)
        if theirs not in (None, identity):
            print(f"wandb: this run is {kept}, see {path}; WANDB_RUN_ID {theirs} does not count")
        if identity != kept:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, alone=True) as temporary:
                temporary.write_text(identity, encoding="utf-8")
        return identity


def upload_report(folder: Path, project: str | None = None, name: str | None = None) -> str:
    """Upload a report's files as an artifact of a W&B run of their own.

    Args:
        folder: the report, with its folders.
        project: Weights & Biases project; W&B's own, else ``"qam_lightning"``, if None.
        name: name of run and artifact; that of the folder if None. An artifact of this name gets
            another version.

    Returns:
        The run's address.

    Raises:
        UserError: there is no such report, W&B cannot be reached or is not to be, or it refuses.
    """
    import wandb

    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(f"{shown(folder, 300)}: holds no report; write one first")
    name = name or folder.resolve().name
    advice = f"the report is in {shown(folder, 300)}"
    try:
        theirs = wandb.setup().settings
        if theirs.mode not in ("online", "run", "shared"):
            raise UserError(f"W&B's mode is {theirs.mode}, and an upload needs online; {advice}")
        if not _logged_in():
            raise UserError(f"W&B has no API key; log in with `wandb login`; {advice}")
        with tempfile.TemporaryDirectory() as own:
            options = {
                "project": project or theirs.project or PROJECT,
                "name": name,
                "id": secrets.token_hex(4),  # WANDB_RUN_ID is for a training run
                "job_type": "report",
                "dir": own,
            }
            run = _start(theirs.mode, options)
            artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:128], "report")
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                artifact.add_file(str(path), path.relative_to(folder).as_posix())
            run.log_artifact(artifact).wait(_UPLOAD_SECONDS)
            run.finish()
            return str(run.url)
    except UserError:
        raise
    except Exception as error:  # the network, the server, their library
        _tear_down()
        raise UserError(f"W&B did not take the report: {reason_of(error)}; {advice}") from error


def _logged_in() -> bool:
    """Return whether W&B has credentials, without a prompt, a message or the network."""
    import wandb

    settings = wandb.setup().settings
    before = settings.mode, settings.silent
    settings.mode, settings.silent = "online", True
    try:
        return wandb.run is not None or wandb.login(prompt=False, verify=False)
    finally:
        settings.mode, settings.silent = before


def _start(mode: Any, options: dict[str, Any]) -> Any:
    """Return a new ``wandb`` run whose charts have gradient steps as their axis."""
    import wandb

    chosen = {k: v for k, v in _SETTINGS.items() if f"WANDB_{k.upper()}" not in os.environ}
    settings = wandb.Settings(**chosen)
    run = wandb.init(mode=mode, resume="allow", settings=settings, **options)
    run.define_metric("gradient_step")
    run.define_metric("env_step")
    run.define_metric("*", step_metric="gradient_step")
    return run


def _tear_down() -> None:
    """End W&B's own process, whatever its state, and with it its exit handler."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def _cannot_start(error: Exception) -> UserError:
    return UserError(f"W&B cannot start a run: {reason_of(error)}; mend that, or train without W&B")
