"""The command line: configuration files and flags in, a training run or a dataset out."""

import logging
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException

from qam_lightning.callbacks.checkpoints import Checkpoints
from qam_lightning.callbacks.evaluation import Evaluate
from qam_lightning.callbacks.metrics import MetricsLogger
from qam_lightning.callbacks.online import Online
from qam_lightning.callbacks.progress import Progress
from qam_lightning.checkpoints import (
    check_newest,
    checkpoint_path,
    describe,
    last_checkpoints,
    newest,
)
from qam_lightning.data.datamodule import OGBenchData
from qam_lightning.data.generate import generate
from qam_lightning.explain import closest, explain, first_sentence, user_error_in
from qam_lightning.inspection import info, verify
from qam_lightning.methods.base import Method
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import replacing, writing
from qam_lightning.util.provenance import mismatches

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
METHODS = CONFIGS / "methods"
DEFAULT_METHOD = "qam"
TRAINING_ONLY = {
    "horizon",
    "discount",
    "sparse",
    "batch_size",
    "fraction",
    "keep",
    "prefetch",
    "seed",
}

USAGE = """usage: python train.py <command> [options]

commands:
  fit       train a method on a domain
  generate  collect a dataset with OGBench's scripted oracles
  data      info: what a dataset holds, and a picture of it; verify: check its store

examples:
  python train.py fit --config cube_triple.yaml
  python train.py fit --domain scene --task 3 --method qam_fql --seed 1
  python train.py fit --config cube_triple.yaml --ckpt_path last
  python train.py generate --env scene --episodes 100 --directory datasets
  python train.py data info --env scene --directory datasets

`python train.py <command> --help` lists a command's options; `fit --print_config` shows the
configuration that a command line results in."""

FIT_HELP = """Train a method on a domain.

Settings come from configs/base.yaml, then the method's file, then every other --config file in
order (looked up here, then in configs/), then the flags. Shorthands: --domain NAME for --config
NAME.yaml, --method NAME for --config methods/NAME.yaml, --task N for --data.task N, --model.KEY for
--model.init_args.KEY. `fit --method NAME --model.help` lists a method's settings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``train.py``.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit status: 0, 2 for a mistake of the user's, 128 + n after signal n.
    """
    # Denormal numbers in Adam's moments slow a CPU many times over. Threads inherit the setting
    # from the thread that starts them, so it comes before the first parallel operation.
    torch.set_flush_denormal(True)
    _quiet()
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], int]] = {
        "fit": fit,
        "generate": collect,
        "data": inspect_data,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    try:
        if arguments[0] not in commands:
            raise UserError(f"unknown command '{arguments[0]}'; expected {', '.join(commands)}")
        return commands[arguments[0]](arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print("error: out of device memory; lower data.batch_size or model.width", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without permission
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def fit(argv: list[str]) -> int:
    """Trains a method as the arguments say; returns the exit status."""
    cli = FitCLI(argv)
    return cli.fit()


def collect(argv: list[str]) -> int:
    """Collects a dataset as the arguments say; returns the exit status."""
    parser = ArgumentParser(prog="train.py generate", exit_on_error=False)
    parser.add_function_arguments(generate)
    try:
        settings = parser.parse_args(argv)
    except ArgumentError as error:
        raise UserError(explain(error, parser, argv)) from error
    for path in generate(**settings.as_dict()):
        print(path)
    return 0


def inspect_data(argv: list[str]) -> int:
    """Describes or verifies a dataset as the arguments say; returns the exit status."""
    actions = {"info": info, "verify": verify}
    if not argv or argv[0] not in actions:
        found = f", found '{argv[0]}'" if argv else ""
        raise UserError(f"data: expected {' or '.join(actions)}{found}")
    parser = ArgumentParser(prog=f"train.py data {argv[0]}", exit_on_error=False)
    parser.add_class_arguments(OGBenchData, "data", skip=TRAINING_ONLY)
    if argv[0] == "info":
        parser.add_argument("--picture", type=str, help="Image to write.")
    # The settings are those of a training run, so their prefix may be left out.
    given = [_with_prefix(argument, parser) for argument in argv[1:]]
    try:
        settings = parser.parse_args(given)
    except ArgumentError as error:
        raise UserError(explain(error, parser, given)) from error
    data = OGBenchData(**settings.pop("data").as_dict())
    return actions[argv[0]](data, **settings.as_dict())


def _with_prefix(argument: str, parser: ArgumentParser) -> str:
    flag, equals, value = argument.partition("=")
    longer = f"--data.{flag.removeprefix('--')}"
    return longer + equals + value if longer in parser._option_string_actions else argument


# -- fit -----------------------------------------------------------------------------------------


class Trainer(pl.Trainer):
    """Lightning's trainer with the settings that make sense here.

    Logging, checkpoints, evaluation and progress are the callbacks' business; the data have no
    sampler that Lightning could replace.
    """

    def __init__(
        self,
        max_steps: int,
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "32-true",
        deterministic: bool = False,
        callbacks: list[pl.Callback] | None = None,
        logger: Logger | list[Logger] | None = None,
    ) -> None:
        """Sets up Lightning's trainer.

        Args:
            max_steps: Gradient steps on the dataset alone; training ends there, unless it goes on
                online.
            accelerator: Where to train: auto, cpu, gpu, ...
            devices: How many devices, or which, on each node.
            num_nodes: How many nodes, started by torchrun or SLURM.
            strategy: How several devices work together.
            precision: Number format, e.g. 32-true or bf16-mixed.
            deterministic: Use deterministic kernels only.
            callbacks: Further callbacks.
            logger: Further loggers.
        """
        if max_steps < 1:
            raise UserError(f"trainer.max_steps is {max_steps}, expected at least 1")
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
            logger=logger or False,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        cluster = self._accelerator_connector.cluster_environment
        if isinstance(cluster, SLURMEnvironment):
            cluster.auto_requeue = False  # it would put checkpoints into the working directory


class FitCLI(LightningCLI):
    """Parses a configuration into method, data, callbacks and trainer, and trains."""

    def __init__(self, argv: list[str]) -> None:
        """Parses and builds everything; `fit` then trains.

        Args:
            argv: Arguments of ``train.py fit``.

        Raises:
            UserError: Whatever is wrong with them.
        """
        arguments, defaults = expand(argv)
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(
            Method,
            OGBenchData,
            trainer_class=Trainer,
            subclass_mode_model=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            run=False,
            parser_kwargs={
                "prog": "train.py fit",
                "description": FIT_HELP,
                # The plus resolves ${...} after all files and flags; without it a value that a
                # later file changes would leave stale results behind.
                "parser_mode": "omegaconf+",
                "exit_on_error": False,
                "default_config_files": [str(path) for path in defaults],
                "dump_header": [],
            },
            args=arguments,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the settings that belong to no class."""
        add = parser.add_argument
        add("--seed", type=int, default=0, help="Seed of everything random in a run.")
        add("--domain", type=str, help="Name of the domain.")
        add("--tuned_as", type=str, help="Domain whose tuned values to use.")
        add("--method", type=str, help="Name of the method, used for the run folder.")
        add("--run_dir", type=str, help="Folder of the run.")
        add("--ckpt_path", type=str, help="Checkpoint to resume: last, best or a file.")
        add("--threads", type=int, help="CPU threads of torch; its own choice if not given.")
        precision = Literal["highest", "high", "medium"]
        add(
            "--matmul_precision",
            type=precision,
            default="highest",
            help="Precision of float32 matrix products; less than highest is faster on some GPUs.",
        )
        add("--tuned", type=dict[str, dict[str, Any]], help="The method's values, by domain.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the callbacks, in the order in which they act, and what follows from what."""
        parser.add_lightning_class_args(MetricsLogger, "log")
        parser.add_lightning_class_args(Evaluate, "evaluation")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(Progress, "progress")
        parser.add_lightning_class_args(Online, "online")
        for key in ("log", "checkpoints", "online"):
            parser.link_arguments("run_dir", f"{key}.run_dir")
        for key in ("data", "model.init_args", "online"):
            parser.link_arguments("seed", f"{key}.seed")
        parser.link_arguments("data.discount", "model.init_args.discount")
        parser.link_arguments("data.spaces", "model.init_args.spaces", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, turning parser errors into one line."""
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, OmegaConfBaseException) as error:
            message = explain(error, parser, args)
            if message == "no domain chosen":
                message += f": add --config NAME.yaml with NAME from {', '.join(_domains())}"
            raise UserError(message) from error

    def _set_seed(self) -> None:
        if not 0 <= self.config.seed < 2**32:
            raise UserError(f"seed is {self.config.seed}, expected 0 to 4294967295")
        pl.seed_everything(self.config.seed, workers=True, verbose=False)

    def before_instantiate_classes(self) -> None:
        """Checks the run folder first: it is quick, and the most common mistake."""
        self.run_dir = Path(self.config.run_dir)
        self.checkpoint = resume_path(self.config.ckpt_path, self.run_dir)
        torch.set_float32_matmul_precision(self.config.matmul_precision)
        if self.config.threads is not None:
            if self.config.threads < 1:
                raise UserError(f"threads is {self.config.threads}, expected at least 1")
            torch.set_num_threads(self.config.threads)

    def instantiate_classes(self) -> None:
        """Builds everything; a setting that a class refuses is reported in one line."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            # The parser wraps what constructors raise.
            raise (user_error_in(error) or error) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Builds the trainer, turning Lightning's complaints into one line."""
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            given = self.config.trainer
            raise UserError(
                f"trainer: {first_sentence(str(error))} (accelerator {given.accelerator}, "
                f"devices {given.devices}, strategy {given.strategy}, precision {given.precision})"
            ) from error

    def settings(self) -> str:
        """The resolved configuration as YAML, without the checkpoint it resumes from."""
        config = self.config.clone()
        config.ckpt_path = None
        return self.parser.dump(config, skip_none=False)

    def fit(self) -> int:
        """Trains; returns the exit status.

        Raises:
            UserError: The method cannot be trained as configured.
        """
        if not self.model.offline_phase and not self.config.online.steps:
            raise UserError(
                f"{type(self.model).__name__} has no offline phase, it learns from its own "
                "environment steps only; set --online.steps, or choose another --method to train "
                "on a dataset"
            )
        settings = self.settings()
        if self.checkpoint is not None:
            check_resume(self.checkpoint, self.model, settings)
        self.trainer.callbacks.insert(0, Settings(self.run_dir / "config.yaml", settings))  # type: ignore[attr-defined]
        try:
            self._train()
        except MisconfigurationException as error:
            raise UserError(f"trainer: {first_sentence(str(error))}") from error
        except SIGTERMException:  # Lightning's answer to one that came before training began
            return 128 + signal.SIGTERM
        except SystemExit as error:  # and to an interrupt that could not wait
            raise KeyboardInterrupt from error
        received = next(
            callback.received_signal
            for callback in self.trainer.callbacks  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints)
        )
        if received is None:
            return 0
        print(
            f"stopped at gradient step {self.model.gradient_step}; the same command with "
            "--ckpt_path last continues",
            file=sys.stderr,
        )
        return 128 + received

    def _train(self) -> None:
        """Trains; where this process fails, those that it started would wait for it, and end."""
        try:
            self.trainer.fit(
                self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint, weights_only=True
            )
        except BaseException:
            if self.trainer.strategy.launcher is not None:
                self.trainer.strategy.launcher.kill(signal.SIGKILL)
            raise


# -- arguments -----------------------------------------------------------------------------------


def expand(argv: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Resolves shorthands and configuration names.

    The chosen method's file is loaded right after the base, wherever it was named, so that nothing
    of another method's file is left over and that domains, the user's files and flags can set the
    method's own values. A file of the user's that names a class takes that place too. Of several
    shipped domains' files only the last is loaded.

    Args:
        argv: Arguments of ``train.py fit`` as the user wrote them.

    Returns:
        Arguments for the parser, in which every ``--config`` is an absolute path, and the files to
        load before them.

    Raises:
        UserError: A name that no configuration file has, or a file that is not YAML.
    """
    arguments: list[str] = []
    methods: list[Path] = []
    own: list[Path] = []
    domains: list[str] = []
    rest = iter(argv)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-c", "--domain", "--method", "--task"):
            arguments.append(argument)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("-"):
            raise UserError(f"{flag} needs a value; see --help")
        if flag == "--task":
            arguments.append(f"--data.task={value}")
            continue
        kind = "config" if flag == "-c" else flag.removeprefix("--")
        path = find_config(value, kind)
        if path.parent == METHODS:
            methods.append(path)
            continue
        content = read_config(path)
        if _is_domain(path, content):
            # Nothing of an earlier domain's file is left over, such as its discount.
            arguments = [a for a in arguments if a not in domains]
            domains.append(f"--config={path}")
        arguments.append(f"--config={path}")
        if _names_class(content):
            own.append(path)
    method = (methods[-1:] or own[:1] or [METHODS / f"{DEFAULT_METHOD}.yaml"])[0]
    if arguments[-1:] == ["--model.help"]:  # the parser would describe the base class
        arguments.append(read_config(method)["model"]["class_path"])
    return arguments, [CONFIGS / "base.yaml", method]


def find_config(name: str, kind: str = "config") -> Path:
    """Finds a configuration file.

    Args:
        name: What the user wrote: a path, or the name of a shipped file with or without ``.yaml``.
        kind: ``"config"`` looks in the working directory first, then in ``configs``; ``"domain"``
            and ``"method"`` only where the shipped files of that kind are.

    Raises:
        UserError: There is no such file; names the closest ones.
    """
    folder = METHODS if kind == "method" else CONFIGS
    if kind == "config":
        candidates = [base / n for base in (Path(), folder) for n in (name, f"{name}.yaml")]
    else:
        candidates = [folder / f"{name.replace('-', '_')}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    shipped = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))
    where = f" (searched {Path.cwd()} and {folder})"
    if kind != "config":
        shipped, where = [Path(p).stem for p in shipped if p != "base.yaml" and "/" not in p], ""
    raise UserError(f"no {kind} named '{name}'{where}; {closest(name, shipped, 3)}")


def read_config(path: Path) -> dict[str, Any]:
    """Reads a configuration file, without interpreting it.

    Raises:
        UserError: It is not YAML, or does not hold keys and values.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}, line {line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML text file") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{path}: expected keys with values, found {type(content).__name__}")
    return content or {}


def _names_class(config: dict[str, Any]) -> bool:
    """Whether a configuration chooses the method's class."""
    model = config.get("model")
    return isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)


def _is_domain(path: Path, config: dict[str, Any]) -> bool:
    """Whether a configuration is a shipped domain's own, not a recipe that uses the domain."""
    return path.parent == CONFIGS and config.get("domain") == path.stem.replace("_", "-")


def _domains() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "base")


# -- run folder ----------------------------------------------------------------------------------


def resume_path(wanted: str | None, run_dir: Path) -> Path | None:
    """Decides what to resume from, protecting the checkpoints of other runs.

    Args:
        wanted: ``"last"``, ``"best"``, a path, or None for a new run.
        run_dir: Folder of the run.

    Raises:
        UserError: The checkpoint does not exist, the folder holds another run's checkpoints, or its
            own run has got further.
    """
    best = checkpoint_path(run_dir, "best")
    held = [*last_checkpoints(run_dir), *([best] if best.exists() else [])]
    if wanted is None:
        if held and getattr(rank_zero_only, "rank", 0) == 0:
            raise UserError(
                f"{run_dir} already holds a run; continue it with --ckpt_path last, or choose "
                "another --run_dir"
            )
        return None
    if wanted == "last":
        if not last_checkpoints(run_dir):
            path = checkpoint_path(run_dir, "last")
            raise UserError(f"--ckpt_path last: there is no {path}; leave it out to start anew")
        return newest(run_dir)
    path = best if wanted == "best" else Path(wanted)
    if not path.is_file():
        raise UserError(f"--ckpt_path {wanted}: no such file; expected last, best or a checkpoint")
    if held and run_dir.resolve() not in path.resolve().parents:
        raise UserError(
            f"{run_dir} already holds a run, and {path} is not part of it; choose another --run_dir"
        )
    check_newest(path, run_dir)
    return path


def check_resume(path: Path, model: torch.nn.Module, settings: str) -> None:
    """Checks that a checkpoint fits, and says which settings and versions changed since.

    Raises:
        UserError: The checkpoint is of another method or of other network sizes.
    """
    found = describe(path)
    method = f"{type(model).__module__}.{type(model).__qualname__}"
    if found.method != method:
        raise UserError(f"{path} holds {found.method}, but the configuration asks for {method}")
    stored = found.shapes
    built = {name: list(x.shape) for name, x in model.state_dict().items()}
    changes = changed(yaml.safe_load(found.config) or {}, yaml.safe_load(settings))
    if stored != built:
        name = next(n for n in sorted({*stored, *built}) if stored.get(n) != built.get(n))
        because = "; ".join(c for c in changes if c.startswith(("model.", "data."))) or name
        raise UserError(f"{path} holds networks of other sizes ({because}); undo that to resume")
    for line in [f"changed since the checkpoint: {c}" for c in changes] + [
        f"{path}: {difference}" for difference in mismatches(found.versions)
    ]:
        rank_zero_only(print)(line)


def changed(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lists the settings that differ, as ``key: old -> new``."""
    lines: list[str] = []
    for key in [*old, *(k for k in new if k not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += changed(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


class Settings(pl.Callback):
    """Saves the configuration once nothing has refused the run."""

    def __init__(self, path: Path, text: str) -> None:
        """Notes what to write where."""
        self._path, self._text = path, text

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file, with its folders.

        Raises:
            UserError: It cannot be written.
        """
        if trainer.is_global_zero:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path, alone=True) as temporary:
                temporary.write_text(self._text, encoding="utf-8")


def _quiet() -> None:
    """Keeps Lightning to what a user can act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*ended before the epoch ended.*",  # batches follow from the gradient step
        ".*does not have many workers.*",  # a batch is a look-up in memory
        ".*GPU available but not used.*",
        ".*isinstance.treespec, LeafSpec.*",  # Lightning's own
        ".*precision lowered by casting.*",  # OGBench's spaces
        ".*DISPLAY environment variable.*",  # nothing is shown in a window
    ):
        warnings.filterwarnings("ignore", message=message)
