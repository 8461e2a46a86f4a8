"""Metrics of a run in Weights & Biases, whose steps are gradient steps."""

import netrc
import os
import secrets
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import yaml
from lightning.pytorch.utilities import rank_zero_only

from qam_lightning.loggers.base import RunLogger
from qam_lightning.util.errors import UserError
from qam_lightning.util.provenance import versions


class WandbLogger(RunLogger):
    """Logs to one Weights & Biases run, also when the training run is resumed.

    The run's id is kept in the run's folder. A row that a resumed run logs again falls onto the
    same step. Lightning's ``WandbLogger`` counts rows instead, so these would appear twice.

    Args:
        run_dir: folder of the run.
        mode: ``"online"`` without an API key becomes ``"offline"``, to be uploaded later with
            ``wandb sync``.
        project: Weights & Biases project.
        name: name of the run there; that of the run's folder if None.
    """

    def __init__(
        self,
        run_dir: str | Path,
        mode: Literal["offline", "online"] = "online",
        project: str = "qam_lightning",
        name: str | None = None,
    ) -> None:
        super().__init__(run_dir)
        self.mode, self.project = mode, project
        self._name = name or self.run_dir.name
        self._run: Any = None

    @property
    def name(self) -> str:
        """The name of the run."""
        return self._name

    @property
    def experiment(self) -> Any:
        """The ``wandb`` run, None before `begin` and on ranks other than 0."""
        return self._run

    @rank_zero_only
    def begin(self, gradient_step: int | None, config: str = "") -> None:
        """Open the run: only now, since a run that is refused before should leave no trace.

        Raises:
            UserError: W&B cannot start it.
        """
        import wandb  # slow to import, and few runs want it

        mode = self.mode
        if mode == "online" and not has_api_key():
            print("wandb: no API key found, recording offline; upload later with `wandb sync`")
            mode = "offline"
        identity = self.run_dir / "wandb_run_id"
        if gradient_step is None or not identity.exists():
            self.run_dir.mkdir(parents=True, exist_ok=True)
            identity.write_text(secrets.token_hex(4), encoding="utf-8")
        settings = yaml.safe_load(config) or {}
        try:
            self._run = wandb.init(
                project=self.project,
                name=self.name,
                id=identity.read_text(encoding="utf-8").strip(),
                resume="allow",
                mode=mode,
                dir=str(self.run_dir),
                config={**settings, "versions": versions()},
                settings=wandb.Settings(silent=True),
            )
        except (wandb.errors.Error, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"W&B cannot start a run: {reason}; try mode offline") from error
        self._run.define_metric("gradient_step")
        self._run.define_metric("env_step")
        self._run.define_metric("*", step_metric="gradient_step")

    def write(self, row: dict[str, Any]) -> None:
        """Log a row at its gradient step."""
        if self._run is not None:
            self._run.log(row, step=row["gradient_step"])

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, as failed unless ``status`` is ``"success"``."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=0 if status == "success" else 1)


def has_api_key() -> bool:
    """Return whether W&B would find credentials; asking W&B itself may open a prompt."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(host or ""):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
