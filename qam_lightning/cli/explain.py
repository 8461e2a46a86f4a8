"""One line for every mistake: the key, what was found, what is expected, where it stands."""

import difflib
import re
import traceback
from argparse import ArgumentError as ParserError
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf.errors import OmegaConfBaseException

from qam_lightning.cli.compose import Composition, domains
from qam_lightning.cli.reading import flat
from qam_lightning.cli.values import joined
from qam_lightning.util.errors import ArgumentError, UserError, shown
from qam_lightning.util.settings import GROUPS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

RENAMED = {
    # Before version 0.2.
    "data.chunk": "data.horizon",
    "data.keep": "data.storage",
    "online.start": "online.learning_starts",
    "online.mix": "online.sampling",
    "online.envs": "online.num_envs",
    "online.ahead": "online.async_env",
    "evaluation.every": "evaluation.every_n_steps",
    "checkpoints.every": "checkpoints.every_n_steps",
    "checkpoints.keep": "checkpoints.keep_last",
    "log.every": "log.every_n_steps",
    "progress.every": "progress.every_seconds",
    "ema.rate": "model.target_rate",
    "model.ensemble": "model.num_critics",
    "model.clip": "model.grad_clip",
    "model.clip_mode": "model.grad_clip_mode",
    "model.decay_steps": "model.lr_decay_steps",
}
"""Spelling before version 0.2 -> today's."""

ALIASES = {
    "lr": "model.learning_rate",
    "gamma": "data.discount",
    "batch": "data.batch_size",
    "env": "domain (or data.env)",
    "env_name": "domain (or data.env)",
    "dataset_name": "data.dataset",
    "epochs": "trainer.max_steps (training counts gradient steps)",
    "max_epochs": "trainer.max_steps (training counts gradient steps)",
    "steps": "trainer.max_steps (offline) or --online.steps",
    "num_steps": "trainer.max_steps (offline) or --online.steps",
    "gpu": "trainer.accelerator=gpu and --trainer.devices",
    "gpus": "trainer.accelerator=gpu and --trainer.devices",
    "device": "trainer.accelerator",
    "ensemble": "model.num_critics",
    "ensemble_size": "model.num_critics",
    "chunk": "data.horizon",
    "chunk_size": "data.horizon",
    "polyak": "model.target_rate",
    "ema": "model.target_rate",
    "hidden_dim": "model.width",
    "layers": "model.depth",
    "temperature": "model.tau",
    "resume": "ckpt_path=last",
    "resume_from": "ckpt_path",
    "checkpoint": "ckpt_path",
    "output": "run_dir",
    "out": "run_dir",
    "log_dir": "run_dir",
    "save_dir": "run_dir",
    "workers": "evaluation.workers",
    "num_workers": "data.prefetch (for batches) or --evaluation.workers",
    "eval_every": "evaluation.every_n_steps",
    "eval_freq": "evaluation.every_n_steps",
    "eval_episodes": "evaluation.episodes",
}
"""Spelling of other programs -> the key here."""

_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>"
    r"|Problem with given class_path|Expected a path but|Subclass types expect"
    r"|^\W*(a class path \(str\)|a dict with)"
)
_GIVEN = re.compile(r"Given value: (.*)")


def spoken(error: ArgumentError) -> str:
    """Say which setting an argument is, e.g. ``model.tau is -1.0, expected at least 0``."""
    if isinstance(error.owner, type):
        names = [kind.__name__ for kind in error.owner.__mro__]
        if error.owner.__module__.startswith(("qam_lightning.methods.", "qam_lightning.nets.")):
            names.append("Method")
    else:
        names = [error.owner]
    groups = {path.rpartition(".")[2]: group for group, path in GROUPS.items()}
    groups |= {"Method": "model", "make_env": "data"}
    prefix = next((f"{groups[name]}." for name in names if name in groups), "")
    found, _, parts = error.problem.partition(", expected env ")
    if error.name == "env" and parts:  # the name of a dataset
        flags = " ".join(_flags(f"env {parts}", prefix))
        return f"{prefix}env {found}; use {flags}"
    return f"{prefix}{error.name} {error.problem}"


def _flags(parts: str, prefix: str) -> Iterator[str]:
    """Yield the flags of an environment, a dataset and a task."""
    for name, value in re.findall(r"(env|dataset|task) ([\w-]+)", parts):
        if name == "task":
            if prefix:  # else it is `generate`, which collects for all tasks
                yield f"--task {value}"
        else:
            yield f"--{prefix}{name} {value}"


def parsed(parser: "ArgumentParser", given: list[str]) -> "Namespace":
    """Parse the flags of a command that reads no configuration file.

    Raises:
        UserError: in the words of `explain`.
    """
    try:
        return parser.parse_args(given)
    except ParserError as error:
        flags = {option.lstrip("-") for option in parser._option_string_actions}
        raise UserError(explain(error, Composition({}, given, {}), flags)) from error


def explain(error: Exception, given: Composition, options: Iterable[str]) -> str:
    """Say in one line what is wrong with a configuration.

    Args:
        error: what the parser or the interpolation raised.
        given: the files and flags.
        options: all keys that the parser accepts.
    """
    if unknown := _unknown_key(given, options):
        return unknown
    if isinstance(error, OmegaConfBaseException):
        return _interpolation(str(error))
    return mistyped(error, given)


def mistyped(error: Exception, given: Composition | None = None) -> str:
    """Shorten what the parser says of a value of the wrong type."""
    text = str(error)
    lines = [line.strip(" -") for line in text.splitlines() if not _NOISE.search(line)]
    shorter = [line for line in lines if line != "Expected a <class 'list'>"]
    if any(not line.startswith("Parser key") for line in shorter):
        lines = shorter
    message = " ".join(line for line in lines if line).replace('"', "'")
    keys = re.match(r"((?:Parser key '[\w.]+':\s*)*)", message)[0]  # type: ignore[index]
    parts = [key for key in re.findall(r"'([\w.]+)'", keys) if key != "config"]
    key = ".".join(parts).replace("init_args.", "")
    message = re.sub(r"<class '([\w.]+)'>", r"\1", message[len(keys) :])
    message = re.sub(r"typing\.Literal\[([^]]*)\]", r"one of \1", message)
    message = re.sub(r"Expected an? (.*?)\. Got value:", r"expected \1, found", message)
    # A value that may also be left out is answered in other words than one that may not.
    one = re.fullmatch(r"Expected an? (one of .+|[\w.]+)", message)
    if one and (found := _GIVEN.search(text)):
        message = f"expected {one[1]}, found {found[1]}"
    if message in ("expected float, found inf", "expected float, found -inf"):  # words, to YAML
        message += "; infinity is written .inf"
    message = shown(message, 300) if not message.endswith("found") else f"{message} ''"
    return f"{key}: {message}{_place(key, given)}" if key else message


def user_error_in(error: BaseException) -> UserError | None:
    """Return the user error that an exception was raised from, if there is one."""
    return next((e for e in _causes(error) if isinstance(e, UserError)), None)


def origin(error: BaseException) -> BaseException:
    """Return the exception that was there first."""
    return _causes(error)[-1]


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def refused_by_lightning(error: BaseException) -> UserError | None:
    """Word what Lightning's own callbacks and loggers refuse; None if it is none of theirs.

    They refuse with exceptions of many types: a metric that is not there, a package that is not
    installed.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # slow

    if isinstance(error, MisconfigurationException):
        return UserError(f"trainer: {first_sentence(str(error))}")
    if isinstance(error, ValueError) and str(error).startswith("Does not validate against any"):
        return UserError(f"trainer: {mistyped(error)}")  # wrapped by the parser
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [frame.f_globals.get("__name__", "") for frame in frames]
    for frame, module in reversed(list(zip(frames, modules, strict=True))):
        if module.startswith("qam_lightning.callbacks"):
            return None
        if module.startswith(("lightning.pytorch.callbacks.", "lightning.pytorch.loggers.")):
            name = type(frame.f_locals.get("self")).__name__
            return UserError(f"trainer: {name}: {first_sentence(str(error))}")
    return None


def first_sentence(text: str) -> str:
    """Return the first sentence of a long message, without its full stop."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "failed")
    return line.split(". ")[0].rstrip(".!")


def _interpolation(text: str) -> str:
    first, *rest = text.splitlines()
    key = next((line.split(":", 1)[1].strip() for line in rest if "full_key" in line), "config")
    key = key.replace("init_args.", "")
    if any(sign in first for sign in ("${domain}", "${tuned_as}", "tuned.None")):
        return f"no domain chosen: add --domain NAME with NAME from {', '.join(domains())}"
    if missing := re.search(r"'tuned\.([^'.]+)(\.[^']+)?'", first):
        return f"{key}: the method has no tuned value for '{missing[1]}'; give one with --{key}"
    return f"{key}: {first}"


def _unknown_key(given: Composition, options: Iterable[str]) -> str | None:
    """Say which key is unknown, and what is close to it; None if all are known."""
    keys = {option for option in options if not option.endswith(".help")}
    sections = {key[:i] for key in keys for i, sign in enumerate(key) if sign == "."}
    values = keys - sections  # some hold mappings, whose keys are not known here
    given = given._replace(flags=joined(given.flags))
    for argument in (*(f"--{key}=" for key in flat(given.config)), *given.flags):
        name, equals, _ = argument.partition("=")
        key = name.lstrip("-").removesuffix("+")
        if not argument.startswith("-") or not key:
            return f"unexpected argument '{shown(argument)}'"
        if not argument.startswith("--"):
            return f"unexpected argument '{shown(argument)}'; a flag begins with two dashes"
        short = key.replace("init_args.", "").removesuffix(".init_args")
        if key.startswith("model.") and "model.init_args" in keys:
            continue
        if short not in keys | sections and not any(short.startswith(f"{v}.") for v in values):
            return f"unknown key '{shown(short)}'{_place(key, given)}; {_hint(short, keys)}"
        if not equals and key != "print_config":
            return f"{key} needs a value; one that begins with a dash is written --{key}=VALUE"
    return None


def _hint(key: str, keys: set[str]) -> str:
    if key in RENAMED:
        return f"it is {RENAMED[key]} now"
    leaf = key.rpartition(".")[2]
    if leaf in ALIASES:
        return f"use --{ALIASES[leaf]}"
    close: Sequence[str] = difflib.get_close_matches(key, sorted(keys), n=1, cutoff=0.8)
    if not close:  # perhaps only the group is missing or wrong
        by_leaf = {option.rpartition(".")[2]: option for option in sorted(keys)}
        close = [by_leaf[m] for m in difflib.get_close_matches(leaf, sorted(by_leaf), n=1)]
    if close:
        return f"did you mean {close[0]}?"
    return "--print_config shows all keys" if "print_config" in keys else "see --help"


def _place(key: str, given: Composition | None) -> str:
    """Name the file that a key stands in, unless a flag gives it."""
    if given is None:
        return ""
    if any(
        flag.partition("=")[0].lstrip("-").replace("init_args.", "") == key for flag in given.flags
    ):
        return ""
    files = {place.replace("init_args.", ""): path for place, path in given.places.items()}
    path: Path | None = files.get(key.replace("init_args.", ""))
    return f" (in {path})" if path else ""
