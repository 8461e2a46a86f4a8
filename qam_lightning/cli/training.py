"""LightningCLI for ``fit``: from a composed configuration to a trained method."""

import inspect
import logging
import re
import signal
import sys
import warnings
from argparse import ArgumentError as ParserError
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException

from qam_lightning.callbacks.base import ours
from qam_lightning.callbacks.checkpoints import Checkpoints
from qam_lightning.cli.compose import compose
from qam_lightning.cli.dispatch import called
from qam_lightning.cli.explain import (
    explain,
    first_sentence,
    origin,
    refused_by_lightning,
    user_error_in,
)
from qam_lightning.cli.fit import RUN
from qam_lightning.cli.resume import check_folder, check_resume, resume_path
from qam_lightning.cli.trainer import Trainer
from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.methods.base import Method
from qam_lightning.pretrained import load_clone
from qam_lightning.run_folder import Claim
from qam_lightning.util.errors import UserError
from qam_lightning.util.settings import CALLBACKS, GROUPS, is_method, known

for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class FitCLI(LightningCLI):
    """Builds method, data, callbacks and trainer from a command line; `fit` then trains.

    Args:
        argv: arguments of ``fit``.

    Raises:
        UserError: whatever is wrong with them.
    """

    def __init__(self, argv: list[str]) -> None:
        # Denormal numbers in Adam's moments slow a CPU many times over. Threads inherit the setting
        # from the thread that starts them, so it precedes the first parallel operation.
        torch.set_flush_denormal(True)
        _filter_warnings()
        self.given = compose(argv)
        # The texts of the settings take longer to read than all else, and only help shows them.
        for_help = any(".help" in word for word in argv)
        set_parsing_settings(docstring_parse_attribute_docstrings=for_help)
        super().__init__(
            Method,
            ChunkDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            run=False,
            parser_kwargs={
                "prog": called("fit"),
                # The plus resolves ${...} after all files and flags; without it a value that a
                # flag changes would leave stale results behind.
                "parser_mode": "omegaconf+",
                "exit_on_error": False,
                "dump_header": [],
            },
            args=self.given.arguments,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings of no class."""
        for key, (kind, default, text) in RUN.items():
            parser.add_argument(f"--{key}", type=kind, default=default, help=text)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks, in the order in which they act, and what follows from what."""
        for group in CALLBACKS:
            module, _, name = GROUPS[group].rpartition(".")
            parser.add_lightning_class_args(getattr(import_module(module), name), group)
        for key in ("log", "checkpoints", "online"):
            parser.link_arguments("run_dir", f"{key}.run_dir")
        for key in ("data", "model.init_args", "online"):
            parser.link_arguments("seed", f"{key}.seed")
        parser.link_arguments("data.discount", "model.init_args.discount")
        parser.link_arguments("data.spaces", "model.init_args.spaces", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and answer a mistake with one line."""
        try:
            self.config = parser.parse_args(args)
        except (ParserError, OmegaConfBaseException) as error:
            options = {option.lstrip("-") for option in parser._option_string_actions}
            options |= {*known(self.given.class_path), "model.class_path"}
            if not is_method(self.given.class_path):
                options.add("model.init_args")  # the class is the mistake, not its settings
            raise UserError(explain(error, self.given, options)) from error

    def _set_seed(self) -> None:
        pl.seed_everything(self.config.seed, workers=True, verbose=False)

    def before_instantiate_classes(self) -> None:
        """Check the run folder first."""
        self.run_dir = Path(self.config.run_dir)
        self.config.run_dir = str(self.run_dir)
        check_folder(self.config.ckpt_path, self.run_dir)
        torch.set_float32_matmul_precision(self.config.matmul_precision)
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)

    def instantiate_classes(self) -> None:
        """Build everything; a setting that a class refuses is reported in one line."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            # The parser wraps what constructors raise.
            if (user_error := user_error_in(error)) is not None:
                raise user_error from error
            if self.given.class_path not in str(error) and (theirs := refused_by_lightning(error)):
                raise theirs from error
            raise origin(error) from None
        check_complete(type(self.model))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer, and answer Lightning's complaints with one line."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (
            MisconfigurationException,
            ValueError,
            TypeError,
            RuntimeError,
            ImportError,
        ) as error:
            if (user_error := user_error_in(error)) is not None:
                raise user_error from error
            given = self.config.trainer
            raise UserError(
                f"trainer: {first_sentence(str(error))} (accelerator {given.accelerator}, "
                f"devices {given.devices}, strategy {given.strategy}, precision {given.precision})"
            ) from error

    def settings(self) -> str:
        """Return the resolved configuration as YAML, without the checkpoint it resumes from."""
        config = self.config.clone()
        config.ckpt_path = None
        return self.parser.dump(config, skip_none=False)

    def check(self) -> None:
        """Check what needs more than one of the objects.

        Raises:
            UserError: the method cannot be trained as configured.
        """
        if not self.model.offline_phase and not self.config.online.steps:
            raise UserError(
                f"{type(self.model).__name__} has no offline phase: online.steps is 0, expected "
                "more than online.learning_starts; set --online.steps, or choose another --method"
            )

    def start_from_clone(self) -> None:
        """Load the clone that the run is to start from, if there is one.

        Raises:
            UserError: it does not fit the method or the data; or there must be one.
        """
        if self.config.pretrained is not None:
            load_clone(self.model, self.config.pretrained)
        self.model.check_clone(self.datamodule)

    def fit(self) -> int:
        """Train; return the exit code.

        Raises:
            UserError: see `check`; or what is found out only when training begins.
        """
        self.check()
        settings = self.settings()
        for callback in ours(self.trainer):
            callback.config = settings
        # The data may take hours to fetch; nobody else begins in the folder meanwhile.
        early = self.trainer.is_global_zero and not _launched_as_ranks(self.trainer)
        claim = Claim(self.run_dir) if early else None
        try:
            checkpoint = resume_path(self.config.ckpt_path, self.run_dir)
            if checkpoint is not None:
                check_resume(checkpoint, self.model, settings)
            else:
                self.start_from_clone()
                if (clone := self.model.pretrained) and self.trainer.is_global_zero:
                    print(f"starts from {clone.path}, of gradient step {clone.gradient_step:,}")
            with self._plain_errors():
                self.trainer.fit(
                    self.model,
                    datamodule=self.datamodule,
                    ckpt_path=checkpoint,
                    weights_only=True,
                )
        except SIGTERMException:  # Lightning's answer to one that came before training began
            return 128 + signal.SIGTERM
        finally:
            if claim is not None:
                claim.release()
        received = next(c.received_signal for c in ours(self.trainer) if isinstance(c, Checkpoints))
        if received is None:
            return 0
        print(
            f"stopped at gradient step {self.model.gradient_step}; the same command with "
            "--ckpt_path last continues",
            file=sys.stderr,
        )
        return 128 + received

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turn Lightning's and PyTorch's errors into ours, and leave no process behind."""
        try:
            yield
        except BaseException as error:
            # The ranks that this process launched would hang in a collective.
            if self.trainer.strategy.launcher is not None:
                self.trainer.strategy.launcher.kill(signal.SIGKILL)
            if isinstance(error, RuntimeError) and re.search("gloo|NCCL", str(error)):
                raise UserError(
                    "another process of this run has ended; its message says why, and "
                    "--ckpt_path last resumes"
                ) from error
            if isinstance(error, Exception) and (theirs := refused_by_lightning(error)):
                raise theirs from error
            if isinstance(error, torch.OutOfMemoryError):
                advice = "lower data.batch_size or model.width"
                raise UserError(f"out of device memory; {advice}") from error
            if isinstance(error, SystemExit) and not isinstance(error, SIGTERMException):
                raise KeyboardInterrupt from error  # Lightning's answer to Ctrl-C
            raise


def _launched_as_ranks(trainer: pl.Trainer) -> bool:
    """Whether a launcher started all ranks: they would wait for a first one that is refused alone.

    Their callbacks claim the folder, once all can hear of a refusal.
    """
    cluster = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.world_size > 1 and bool(cluster and cluster.creates_processes_externally)


def check_complete(kind: type[Method]) -> None:
    """Check that a class is a whole method.

    Raises:
        UserError: it leaves what `Method` asks of it to subclasses.
    """
    missing = [
        name
        for name in dir(kind)
        if getattr(inspect.getattr_static(kind, name), "__isabstractmethod__", False)
    ]
    if missing:
        raise UserError(
            f"model.class_path is {kind.__module__}.{kind.__name__}, which does not define "
            f"{' and '.join(missing)}; choose a method that does"
        )


def _filter_warnings() -> None:
    """Keep Lightning and OGBench to what a user can act on."""
    for message in (
        ".*ended before the epoch ended.*",  # batches follow from the gradient step
        ".*does not have many workers.*",  # a batch is a look-up in memory
        ".*GPU available but not used.*",
        ".*`srun` command is available.*",  # on every login node
        r"\s*Unable to serialize instance",  # a default of Lightning's callbacks
        ".*isinstance.treespec, LeafSpec.*",  # Lightning's own
        ".*precision lowered by casting.*",  # OGBench's spaces
        ".*DISPLAY environment variable.*",  # nothing is shown in a window
    ):
        warnings.filterwarnings("ignore", message=message)
