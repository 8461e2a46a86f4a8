"""Lightning's trainer with the settings that make sense here."""

from collections.abc import Iterable

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.utilities import rank_zero_only

from qam_lightning.util.devices import check_precision, device_count, is_counted
from qam_lightning.util.errors import require


class Alone(LightningEnvironment):
    """A run of one process, whatever a launcher's variables say.

    ``srun`` and ``torchrun`` may have started several such runs, one for each seed; ``RANK`` and
    ``LOCAL_RANK`` may be left over.
    """

    creates_processes_externally = True  # type: ignore[assignment]  # there is none to launch

    def local_rank(self) -> int:
        """Return 0: the first device is meant."""
        return 0

    def node_rank(self) -> int:
        """Return 0."""
        return 0


class _Connector(_CheckpointConnector):
    """Resumes from what it is told to, not from an ``hpc_ckpt_*.ckpt`` in the working directory."""

    _hpc_resume_path = None


class Trainer(pl.Trainer):
    """A trainer that leaves checkpoints, evaluation and progress to our callbacks.

    Args:
        max_steps: Gradient steps of the offline phase, at least 1.
        accelerator: Where to train: auto, cpu, gpu, ...
        devices: How many devices, or which, on each node. One on one node is a run of its own,
            also where a launcher started several processes.
        num_nodes: How many nodes, started by torchrun or SLURM.
        strategy: How several devices work together.
        precision: Number format, e.g. 32-true or bf16-mixed.
        deterministic: Use deterministic kernels only.
        logger: Lightning loggers that get the metrics besides the CSV files, e.g.
            TensorBoardLogger.
        callbacks: Further callbacks.
    """

    def __init__(
        self,
        max_steps: int = 1_000_000,
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "32-true",
        deterministic: bool = False,
        logger: Logger | list[Logger] | None = None,
        callbacks: list[pl.Callback] | None = None,
    ) -> None:
        require(max_steps >= 1, Trainer, "max_steps", max_steps, "at least 1")
        # PyTorch would run out of memory, or end the process.
        require(num_nodes <= 10_000, Trainer, "num_nodes", num_nodes, "1 to 10,000")
        few = not is_counted(devices) or int(devices) <= 1000  # type: ignore[arg-type]
        require(few, Trainer, "devices", devices, "1 to 1,000")
        check_precision(precision)
        # They copy this process, or its objects, where ours start the program anew on every rank.
        copies = any(word in strategy for word in ("spawn", "fork", "notebook"))
        require(not copies, Trainer, "strategy", strategy, "auto or ddp")
        super().__init__(
            max_steps=max_steps,
            max_epochs=-1,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
            deterministic=deterministic,
            callbacks=callbacks,
            logger=list(logger) if isinstance(logger, Iterable) else logger or False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            plugins=[Alone()] if num_nodes == 1 and device_count(devices) == 1 else None,
            use_distributed_sampler=False,  # our batches are functions of step and rank
        )
        self._checkpoint_connector = _Connector(self)
        cluster = self._accelerator_connector.cluster_environment
        if isinstance(cluster, SLURMEnvironment):
            cluster.auto_requeue = False  # it would put checkpoints into the working directory
        # Until now it followed the environment.
        rank_zero_only.rank = self.global_rank  # type: ignore[attr-defined]
