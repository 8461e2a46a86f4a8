"""Choose a command, run it, and turn errors into one line and an exit code."""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from qam_lightning.util.arguments import answered
from qam_lightning.util.errors import ArgumentError, UserError, shown

COMMANDS = {
    "fit": "train a method on a domain",
    "eval": "roll out a trained policy and report its success rate",
    "export": "write a trained policy as a folder that needs no PyTorch, or verify one",
    "generate": "collect a dataset with OGBench's scripted oracles",
    "data": "info: what a dataset holds, and a picture of it; verify: check its store",
    "study": "many runs from one file: run, status, report, list",
    "laboratory": "compare every method's policy with the optimum where it is known",
}
_MODULES = {"eval": "evaluate"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit code: 0, 2 for a user's mistake, 1 for an exception that nobody foresaw, 128 + n
        after signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        return answered(lambda: _print_usage(0 if arguments else 2))
    return answered(lambda: _command(arguments[0])(arguments[1:]), _spoken)


def _print_usage(code: int) -> int:
    print(usage())
    return code


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        raise UserError(f"unknown command '{shown(name)}'; expected {', '.join(COMMANDS)}")
    return importlib.import_module(f"qam_lightning.cli.{_MODULES.get(name, name)}").main


def _spoken(error: ArgumentError) -> str:
    from qam_lightning.cli.explain import spoken  # it needs OmegaConf, which help does not

    return spoken(error)


def program() -> str:
    """Return how the user called the program, e.g. ``python train.py`` or ``qam``."""
    name = Path(sys.argv[0]).name
    if name in ("train.py", "eval.py"):
        return "python train.py"
    return "python -m qam_lightning" if name == "__main__.py" else "qam"


def called(command: str) -> str:
    """Return how the user calls a command, e.g. ``python eval.py`` or ``qam fit``."""
    if command == "eval" and program() == "python train.py":
        return "python eval.py"
    return f"{program()} {command}"


def usage() -> str:
    """Return the overview of all commands."""
    lines = [f"  {name:<10}  {what}" for name, what in COMMANDS.items()]
    me = program()
    return f"""usage: {me} <command> [options]

commands:
{chr(10).join(lines)}

examples:
  {me} fit --config cube_triple.yaml
  {me} fit --domain scene --task 3 --method qam_fql --seed 1
  {me} fit --config cube_triple.yaml --ckpt_path last
  {called("eval")} runs/cube-triple-task2-qam-seed0
  {me} generate --env scene --episodes 100 --directory datasets
  {me} data info --env scene --directory datasets

`{me} <command> --help` lists a command's options; `fit --print_config` shows the configuration
that a command line results in."""
