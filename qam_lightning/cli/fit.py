"""``fit``: train a method. What needs Lightning is in `training`; the help does not."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qam_lightning.cli.compose import Composition, compose
from qam_lightning.cli.dispatch import called
from qam_lightning.cli.help import page
from qam_lightning.cli.reading import flat
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.imports import uncollected
from qam_lightning.util.settings import DERIVED, GROUPS, Setting, settings_of

TEXT = """
Train a method on a domain.

Settings come from configs/base.yaml, then the method's file, then the domain's, then every
--config file in order, then the flags. The keys `method` and `domain` of a file do what the flags
do; `include: FILE` reads another file first. --print_config shows the result, {fit} --method NAME
--model.help a method's settings alone."""

Precision = Literal["highest", "high", "medium"]


def integer(name: str, least: int, most: int, optional: bool = False) -> Callable[[Any], Any]:
    """Return a type of argument: integers from ``least`` to ``most``."""

    def int_(value: Any) -> Any:
        if optional and value is None or isinstance(value, str) and "${" in value:
            return value  # nothing, or not known yet
        found = value
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                found = int(value)
        if type(found) is not int or not least <= found <= most:
            raise UserError(f"{name} is {shown(found)}, expected {least} to {most}")
        return found

    int_.__name__ = "int"
    return int_


def folder(value: Any) -> str:
    """Check the name of a run's folder.

    Raises:
        UserError: it is no text, or names nothing.
    """
    if value is None:
        raise UserError("run_dir is empty; leave it out for the run's own folder below runs")
    if not isinstance(value, str):
        raise UserError(f"run_dir is {shown(value)}, expected the name of a folder, in quotes")
    if not value.strip() or value == "???":
        raise UserError(f"run_dir is '{shown(value)}', expected the name of a folder")
    return value


RUN: dict[str, tuple[Any, Any, str]] = {
    "seed": (integer("seed", 0, 2**32 - 1), 0, "Seed of everything random in a run."),
    "domain": (str, None, "The domain: environment, dataset, task; a file of configs/."),
    "method": (str, None, "The method; a file of configs/methods/."),
    "run_dir": (folder, None, "Folder of the run; nothing in it is overwritten."),
    "pretrained": (
        str | None,
        None,
        "Run folder, checkpoint, exported folder or hf://owner/name, e.g. of --method bc, whose "
        "cloned behaviour to start from.",
    ),
    "ckpt_path": (str, None, "Checkpoint to resume: last, best or a file."),
    "threads": (
        integer("threads", 1, 1024, optional=True),
        None,
        "CPU threads of PyTorch, which chooses if not given.",
    ),
    "matmul_precision": (
        Precision,
        "highest",
        "Precision of float32 matrix products; less than highest is faster on some GPUs.",
    ),
    "tuned_as": (str, None, "Domain whose tuned values the method uses."),
    "tuned": (dict[str, dict[str, Any]], None, "The method's tuned values, by domain."),
}
"""Settings of no class: type, default, help."""

_FILES = {
    "config": Setting("file", "", "A file of yours or of configs/; may be repeated."),
    "task": Setting("int", "", "Short for --data.task."),
    "print_config": Setting("", "", "Print the configuration that results, and exit."),
}


def main(argv: list[str]) -> int:
    """Train a method as the arguments say; return the exit code."""
    if {"-h", "--help", "--model.help"} & set(argv):
        print(_help(argv), end="", flush=True)
        raise SystemExit(0)
    with uncollected():
        from qam_lightning.cli.training import FitCLI

    return FitCLI(argv).fit()


def _help(argv: list[str]) -> str:
    given = compose([word for word in argv if word not in ("-h", "--help", "--model.help")])
    model = _group("model", given.class_path, given)
    title = f"model: {given.class_path.rpartition('.')[2]}"
    if "--model.help" in argv:
        return page(called("fit"), f"Settings of {given.class_path}.", {title: model})
    run = {key: _setting(key, *facts) for key, facts in RUN.items()}
    groups = {group: _group(group, name, given) for group, name in GROUPS.items()}
    text = TEXT.format(fit=called("fit"))
    return page(called("fit"), text, {"run": _FILES | run, title: model, **groups})


def _setting(key: str, kind: Any, default: Any, text: str) -> Setting:
    name = str(kind).replace("typing.", "") if get_origin(kind) else kind.__name__
    return Setting(name, "" if default is None else repr(default), text)


def _group(group: str, name: str, given: Composition) -> dict[str, Setting]:
    """Return a group's settings, with the defaults that the configuration files give."""
    config = OmegaConf.create(given.config)
    found = {}
    for argument, setting in settings_of(name).items():
        if argument in DERIVED.get(group, ()):
            continue
        key = f"{group}.init_args.{argument}" if group == "model" else f"{group}.{argument}"
        if key in flat(given.config):
            try:
                setting = setting._replace(default=repr(OmegaConf.select(config, key)))
            except OmegaConfBaseException:  # it depends on the domain, and none is chosen
                setting = setting._replace(default="by domain")
        found[f"{group}.{argument}"] = setting
    return found
