"""Where a dataset's files are: OGBench's single files and folders of shards, or your own."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ogbench.utils

from qam_lightning.util.errors import ArgumentError, UserError

URL_VARIABLE = "QAM_DATA_URL"
SHARDS = 100
_LARGE = "-100m"
_NUMBER = re.compile(r"-(\d{3,})(?:-val)?\.npz$")

# What can be collected here, by environment and kind of dataset (see generate.py).
MANIPULATION = (
    *(f"cube-{n}" for n in ("single", "double", "triple", "quadruple", "octuple")),
    "scene",
    *(f"puzzle-{n}" for n in ("3x3", "4x4", "4x5", "4x6")),
)
POINT_MAZES = tuple(f"pointmaze-{kind}" for kind in ("medium", "large", "giant", "teleport"))
COLLECTABLE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(MANIPULATION, ("play", "noisy")),
    **dict.fromkeys(POINT_MAZES, ("navigate", "stitch")),
}


class Source(NamedTuple):
    """A dataset's files and the place of the store made from them.

    Attributes:
        files: All source files in order, whether they exist or not.
        store: The store's folder.
        url: Where the files come from; None for one's own.
    """

    files: list[Path]
    store: Path
    url: str | None

    @property
    def missing(self) -> list[Path]:
        """Files to fetch: none once there is a store, which replaces them."""
        if self.store.exists():
            return []
        return [path for path in self.files if not path.exists()]


def dataset_name(env: str, dataset: str) -> str:
    """OGBench's name of a dataset, such as ``scene-play-v0``."""
    return f"{env}-{dataset}-v0"


def default_url() -> str:
    """OGBench's host, unless the environment variable names another."""
    return os.environ.get(URL_VARIABLE) or ogbench.utils.DATASET_URL


def official(
    env: str,
    dataset: str,
    directory: str,
    store: str | None = None,
    base_url: str | None = None,
    validation: bool = False,
) -> Source:
    """Name the files of one of OGBench's datasets.

    Args:
        env: Environment, such as ``scene``.
        dataset: Kind of dataset, such as ``play``; ``play-100m`` is a folder of 100 files.
        directory: Their folder.
        store: Folder for the store; beside the files if not given.
        base_url: Where to download from; see `default_url`.
        validation: Name the validation files instead.
    """
    folder = Path(directory).expanduser()
    name, tail = dataset_name(env, dataset), "-val" if validation else ""
    url = (default_url() if base_url is None else base_url).rstrip("/")
    place = Path(store).expanduser() if store else folder
    if not dataset.endswith(_LARGE):
        return Source([folder / f"{name}{tail}.npz"], place / f"{name}{tail}.store", url)
    stem = dataset_name(env, dataset.removesuffix(_LARGE))
    files = [folder / name / f"{stem}-{i:03d}{tail}.npz" for i in range(SHARDS)]
    return Source(files, place / f"{name}{tail}.store", f"{url}/{name}")


def own(path: str, store: str | None = None, validation: bool = False) -> Source | None:
    """Name the files of a dataset of your own.

    Args:
        path: An npz file, or a folder of them; ``-val.npz`` marks validation files.
        store: Folder for the store; beside the files if not given.
        validation: Name the validation files instead; None if there are none.

    Raises:
        UserError: There is nothing, or a numbered file is missing.
    """
    given = Path(path).expanduser()
    tail = "-val" if validation else ""
    place = Path(store).expanduser() if store else given.parent
    made = place / f"{given.stem if given.suffix == '.npz' else given.name}{tail}.store"
    if given.is_dir():
        found = sorted(p for p in given.glob("*.npz") if p.stem.endswith("-val") == validation)
        _check_numbers(given, found)
    else:
        found = [given.with_name(f"{given.stem}{tail}.npz")]
    exists = made.exists() or (found and found[0].exists())
    if validation and not exists:
        return None
    if not exists:
        what = "holds no npz files" if given.is_dir() else "does not exist"
        problem = f"is {given}, which {what}, expected an npz file or a folder of them"
        raise ArgumentError("ChunkDataModule", "path", problem)
    return Source(found, made, None)


def _check_numbers(folder: Path, files: list[Path]) -> None:
    numbers = [int(match[1]) for path in files if (match := _NUMBER.search(path.name))]
    absent = sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers))
    if absent:
        named = ", ".join(f"{n:03d}" for n in absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise UserError(
            f"{folder}: of the files numbered 000 to {max(numbers):03d}, {named} "
            f"{'is' if len(absent) == 1 else 'are'} missing; fetch the missing ones"
        )
