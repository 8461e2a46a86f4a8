"""Lightning's trainer with the settings that make sense here."""

from collections.abc import Iterable

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector

from qam_lightning.util.errors import require


class _Connector(_CheckpointConnector):
    """Resumes from what it is told to, not from an ``hpc_ckpt_*.ckpt`` in the working directory."""

    _hpc_resume_path = None


class Trainer(pl.Trainer):
    """A trainer that leaves checkpoints, evaluation and progress to our callbacks.

    Args:
        max_steps: Gradient steps of the offline phase, at least 1.
        accelerator: Where to train: auto, cpu, gpu, ...
        devices: How many devices, or which, on each node.
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
            use_distributed_sampler=False,  # our batches are functions of step and rank
        )
        self._checkpoint_connector = _Connector(self)
        cluster = self._accelerator_connector.cluster_environment
        if isinstance(cluster, SLURMEnvironment):
            cluster.auto_requeue = False  # it would put checkpoints into the working directory
