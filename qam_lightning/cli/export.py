"""``export``: write a trained policy as a folder that acts without PyTorch, or verify one."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qam_lightning.cli.dispatch import called
from qam_lightning.export import EPISODES, FORMATS
from qam_lightning.util.arguments import Parser, answered, at_least, path, takes_imports
from qam_lightning.util.errors import ArgumentError, UserError
from qam_lightning.util.imports import uncollected

if TYPE_CHECKING:
    from qam_lightning.export.check import Comparison


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog=called("export"),
        description="Write the policy of a finished run as a folder: weights (safetensors), an "
        "ONNX graph from observation and noise to actions, a description and a model card. The "
        "graph is compared with the policy before the folder appears; --verify repeats that.",
    )
    add = parser.add_argument
    add(
        "source", type=path, nargs="?", metavar="RUN_OR_CHECKPOINT", help="run folder or .ckpt file"
    )
    add("--output", type=path, metavar="FOLDER", help="the folder to write; it must not exist")
    add("--verify", type=path, metavar="FOLDER", help="compare an exported folder with its weights")
    add("--checkpoint", choices=("last", "best"), default="last", help="which one of a run folder")
    add(
        "--best_of_n",
        type=at_least(1),
        metavar="N",
        help="act with the best of N samples by the critic; default: as trained",
    )
    add(
        "--formats",
        choices=FORMATS,
        nargs="+",
        default=["onnx"],
        help="graphs to write; pt2 is torch.export's; default: onnx",
    )
    add(
        "--episodes",
        type=at_least(0),
        default=EPISODES,
        metavar="N",
        help="episodes to compare success in, 0 for none; default: %(default)s",
    )
    add(
        "--push",
        metavar="URL",
        help="upload the folder to hf://owner/name or hf://owner/name@branch on the Hugging Face "
        "hub; a repository that is not there yet is made, for its owner alone",
    )
    add("--public", action="store_true", help="the whole world may see what is pushed")
    takes_imports(parser)
    options = parser.parse_args(arguments)
    if options.verify is None and (options.source is None or options.output is None):
        parser.error("expected RUN_OR_CHECKPOINT and --output FOLDER, or --verify FOLDER")
    if options.verify is not None and (options.source or options.output):
        parser.error("--verify FOLDER takes neither a run nor --output")
    for name in ("checkpoint", "best_of_n", "formats"):
        if options.verify is not None and getattr(options, name) != parser.get_default(name):
            parser.error(f"--verify FOLDER takes no --{name}: the folder holds one policy")
    if options.public and options.push is None:
        parser.error("--public goes with --push")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse(arguments)
    return answered(lambda: _export(options), _flag)


def _flag(error: ArgumentError) -> str:
    flag = "--" if error.name in ("output", "formats", "best_of_n", "episodes", "push") else ""
    return f"{flag}{error.name} {error.problem}"


def _export(options: argparse.Namespace) -> int:
    from qam_lightning.cli.evaluate import import_modules

    with uncollected():
        import torch

        from qam_lightning.checkpoints import load_method, run_of
        from qam_lightning.export.check import verify
        from qam_lightning.export.push import check_push
        from qam_lightning.export.write import export

    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    import_modules(options.modules)
    if options.push is not None:
        check_push(options.push)
    if options.verify is not None:
        print(_told(verify(options.verify, options.episodes)))
        _push(options, options.verify)
        return 0
    source = _checkpoint(options.source, options.checkpoint)
    acting = {} if options.best_of_n is None else {"best_of_n": options.best_of_n}
    method, metadata = load_method(source, **acting)
    sizes = options.formats, options.episodes
    checked = export(method, metadata, options.output, run_of(source), *sizes)
    print(f"wrote {options.output}" + (f"; {_told(checked)}" if checked else ""))
    _push(options, options.output)
    return 0


def _push(options: argparse.Namespace, folder: Path) -> None:
    from qam_lightning.export.push import push

    if options.push is not None:
        print(f"pushed to {push(folder, options.push, options.public)}")


def _checkpoint(source: Path, which: str) -> Path:
    """Return the checkpoint of a source.

    Raises:
        UserError: the source is a run that is not finished, or an exported folder.
    """
    from qam_lightning.checkpoints import check_finished, checkpoint_path, last_checkpoints
    from qam_lightning.export.folder import is_exported

    if is_exported(source):
        raise UserError(f"{source}: is an exported folder already; --verify checks it")
    if not source.is_dir():
        return source
    if last := last_checkpoints(source):  # if there is none, loading says so
        check_finished(source, last[0])
    return checkpoint_path(source, which)


def _told(checked: "Comparison") -> str:
    words = f"actions differ by at most {checked.difference:.1g}"
    if checked.successes is None:
        return f"{words}; no episodes were compared"
    return (
        f"{words}; success is equal in each of {checked.episodes} episodes "
        f"({checked.successes} succeeded)"
    )
