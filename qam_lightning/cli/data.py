"""``data info`` and ``data verify``: what a dataset holds, and whether its store is sound."""

from pathlib import Path
from typing import TYPE_CHECKING

from qam_lightning.cli.dispatch import called
from qam_lightning.cli.help import page
from qam_lightning.cli.values import PATHS, joined, plain
from qam_lightning.util.errors import UserError
from qam_lightning.util.imports import uncollected
from qam_lightning.util.settings import GROUPS, Setting, known, settings_of

if TYPE_CHECKING:
    from qam_lightning.data.datamodule import ChunkDataModule

_TRAINING_ONLY = {"horizon", "discount", "sparse", "batch_size", "fraction", "storage"}
_TRAINING_ONLY |= {"prefetch", "seed"}
_PICTURE = Setting("str", "", "Image to write; beside the store if not given.")


def main(argv: list[str]) -> int:
    """Describe or verify a dataset as the arguments say; return the exit code."""
    actions = {"info": info, "verify": verify}
    settings = {k: s for k, s in settings_of(GROUPS["data"]).items() if k not in _TRAINING_ONLY}
    if {"-h", "--help"} & set(argv):
        text = "info: print what a dataset holds, and draw it.\n"
        text += "verify: check its files and its store against their checksums."
        groups = {"dataset": settings, "info": {"picture": _PICTURE}}
        print(page(called("data info|verify"), text, groups), end="", flush=True)
        raise SystemExit(0)
    if not argv or argv[0] not in actions:
        found = f", found '{argv[0]}'" if argv else ""
        raise UserError(f"data: expected {' or '.join(actions)}{found}")
    with uncollected():
        from jsonargparse import ArgumentParser

        from qam_lightning.cli.explain import parsed
        from qam_lightning.data.datamodule import ChunkDataModule

    parser = ArgumentParser(prog=called(f"data {argv[0]}"), exit_on_error=False)
    parser.add_class_arguments(ChunkDataModule, "data", skip=_TRAINING_ONLY)
    if argv[0] == "info":
        parser.add_argument("--picture", type=str, help=_PICTURE.help)
    # The settings are those of a training run, so their prefix may be left out.
    given = [_with_prefix(argument, set(settings)) for argument in joined(argv[1:])]
    given = [plain(flag, known(), [*PATHS, "picture"]) for flag in given]
    options = parsed(parser, given)
    data = ChunkDataModule(**options.pop("data").as_dict())
    return actions[argv[0]](data, **options.as_dict())


def _with_prefix(argument: str, settings: set[str]) -> str:
    flag = argument.removeprefix("--")
    return f"--data.{flag}" if argument != flag and flag.partition("=")[0] in settings else argument


def info(data: "ChunkDataModule", picture: str | None = None) -> int:
    """Print what a dataset holds and draw it; return the exit code.

    Args:
        data: the settings that name the dataset.
        picture: image to write; beside the store if not given.

    Raises:
        UserError: the data can be neither found nor fetched, or the picture not written.
    """
    from qam_lightning.data.describe import describe
    from qam_lightning.evaluation.dataset_picture import draw_dataset

    found = describe(data)
    print("\n".join(found.lines()))
    source = data.source()
    place = source.store.with_suffix(".png") if source else Path(f"{found.name}.png")
    path = Path(picture) if picture else place
    returns = {facts.task: facts.returns for facts in found.tasks}
    try:
        draw_dataset(path, found.lines()[0], found.positions, found.walls, returns)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {reason}; choose --picture") from None
    print(path)
    return 0


def verify(data: "ChunkDataModule") -> int:
    """Check a dataset's stores and downloads against checksums; return the exit code.

    Args:
        data: the settings that name the dataset.

    Raises:
        UserError: there is no store, or one that cannot even be opened.
    """
    from qam_lightning.data.checksums import changed_files
    from qam_lightning.data.labels import damaged_labels
    from qam_lightning.data.store import Store

    wrong = []
    for validation in (False, True):
        source = data.source(validation)
        if source is None or (validation and not source.store.exists()):
            continue
        if not source.store.exists():
            raise UserError(f"{source.store}: does not exist; training or `data info` makes it")
        store = Store(source.store)
        found = changed_files(source.files) + store.verify(source.files) + damaged_labels(store)
        print("\n".join(found) or f"{source.store}: good")
        wrong += found
    return 1 if wrong else 0
