"""Where a dataset's files are and come from: OGBench's files and folders of shards, or your own."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import ogbench.utils

from qam_lightning.util.errors import ArgumentError, UserError, shown
from qam_lightning.util.files import locked
from qam_lightning.util.hub import FORM, address

T = TypeVar("T")

URL_VARIABLE = "QAM_DATA_URL"
SHARDS = 100
SUBSET = 10  # of the shards, which are a dataset of their own, too
_LARGE = re.compile(r"(?P<kind>.+)-(?P<size>100m|10m)")
_NUMBER = re.compile(r"-(\d{3,})(?:-val)?\.npz$", re.IGNORECASE)
# Other formats in which such data come, by the end of the name.
FORMATS = {
    **dict.fromkeys((".hdf5", ".h5", ".he5"), "an HDF5 file"),
    **dict.fromkeys((".pkl", ".pickle", ".p"), "a pickle"),
    **dict.fromkeys((".pt", ".pth"), "a file of PyTorch's"),
    **dict.fromkeys((".arrow", ".feather"), "an Arrow file"),
    **dict.fromkeys((".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z"), "a compressed archive"),
    ".zip": "a zip archive",
    ".npy": "a single array of numpy's",
    ".csv": "a table of text",
    ".json": "a JSON file",
    ".jsonl": "a JSON file",
    ".mat": "a MATLAB file",
    ".parquet": "a Parquet file",
    ".tfrecord": "a file of TensorFlow's",
    ".zarr": "a Zarr folder",
}

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
        urls: Where the files come from, in the order in which to ask; empty for one's own.
        folder: The files' folder there; empty if they are in none.
    """

    files: list[Path]
    store: Path
    urls: tuple[str, ...] = ()
    folder: str = ""

    @property
    def missing(self) -> list[Path]:
        """Files to fetch: none once there is a store, which replaces them."""
        if self.store.exists():
            return []
        return [path for path in self.files if not path.exists()]


def dataset_name(env: str, dataset: str) -> str:
    """OGBench's name of a dataset, such as ``scene-play-v0``."""
    return f"{env}-{dataset}-v0"


def base_urls(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the places to download from, in order.

    Args:
        given: One URL or several, as a list or with commas between them. If None, those of the
            environment variable QAM_DATA_URL, or OGBench's host.

    Raises:
        UserError: There is none, or one of a kind that is not known.
    """
    from_variable = given is None
    if given is None:
        given = os.environ.get(URL_VARIABLE) or ogbench.utils.DATASET_URL
    texts = [given] if isinstance(given, str) else given
    # A comma may be part of a URL, so only one before another URL divides.
    urls = [url.strip() for text in texts for url in re.split(r",(?=\s*[\w+.-]+://)", str(text))]
    wrong = [url for url in urls if not _is_url(url)]
    if wrong or not urls:
        found = "is empty"
        if wrong:
            named, users = re.subn(r"(?<=://)[^/@]*@", "…@", wrong[0])
            found = f"is '{shown(named)}'" + (", which names a user" if users else "")
        problem = f"{found}, expected a URL with http, https, ftp or file, or {FORM}"
        if from_variable:
            raise UserError(f"{URL_VARIABLE} {problem}")
        raise ArgumentError("ChunkDataModule", "base_url", problem)
    return tuple(url.rstrip("/") for url in urls)


def _is_url(text: str) -> bool:
    known = re.match(r"(https?|ftp)://[^\s/@]+(/\S*)?$|file://.", text)
    return bool(address(text, "datasets") or known)


def official(
    env: str,
    dataset: str,
    directory: str,
    store: str | None = None,
    base_url: str | Sequence[str] | None = None,
    validation: bool = False,
) -> Source:
    """Name the files of one of OGBench's datasets.

    Args:
        env: Environment, such as ``scene``.
        dataset: Kind of dataset, such as ``play``; ``play-100m`` is a folder of 100 files,
            ``play-10m`` the first ten of them.
        directory: Their folder.
        store: Folder for the store; beside the files if not given.
        base_url: Where to download from; see `base_urls`.
        validation: Name the validation files instead.

    Raises:
        UserError: An argument that is no name, place or URL.
    """
    if not re.fullmatch(r"[\w-]+", dataset):  # it becomes part of a file's name
        problem = f"is '{shown(dataset)}', expected a kind of dataset such as play or navigate"
        raise ArgumentError("ChunkDataModule", "dataset", problem)
    folder = place("ChunkDataModule", "directory", directory)
    name, tail = dataset_name(env, dataset), "-val" if validation else ""
    urls = base_urls(base_url)
    made = place("ChunkDataModule", "store", store) if store else folder
    large = _LARGE.fullmatch(dataset)
    if large is None:
        return Source([folder / f"{name}{tail}.npz"], made / f"{name}{tail}.store", urls)
    stem = dataset_name(env, large["kind"])
    shared = dataset_name(env, f"{large['kind']}-100m")
    count = SHARDS if large["size"] == "100m" else SUBSET
    files = [folder / shared / f"{stem}-{i:03d}{tail}.npz" for i in range(count)]
    return Source(files, made / f"{name}{tail}.store", urls, shared)


def own(path: str, store: str | None = None, validation: bool = False) -> Source | None:
    """Name the files of a dataset of your own.

    Args:
        path: An npz file, whose ``.npz`` may be left out, or a folder of them; ``-val.npz`` marks
            validation files.
        store: Folder for the store; beside the files if not given.
        validation: Name the validation files instead; None if there are none.

    Raises:
        UserError: There is nothing, or something else, or a numbered file is missing.
    """
    given = place("ChunkDataModule", "path", path)
    if not given.name.strip("."):  # such as ".", which names no store
        given = Path(os.path.realpath(given))
    tail = "-val" if validation else ""
    if given.is_dir():
        stem = given.name
        npz = [file for file in given.iterdir() if file.suffix.lower() == ".npz"]
        found = sorted(f for f in npz if f.stem.endswith("-val") == validation)
        _check_numbers(given, found)
    else:
        end = given.suffix if given.suffix.lower() == ".npz" else ".npz"
        stem = given.name.removesuffix(end)
        found = [given.with_name(f"{stem}{tail}{end}")]
    folder = place("ChunkDataModule", "store", store) if store else given.parent
    made = folder / f"{stem}{tail}.store"
    other = given.is_file() and given.suffix.lower() != ".npz"
    if not other and (made.exists() or (found and found[0].exists())):
        return Source(found, made)
    if validation:
        return None
    found_there, advice = _instead(given)
    expected = "expected an npz file or a folder of them"
    problem = f"is {shown(given)}, {found_there}, {expected}{advice}"
    raise ArgumentError("ChunkDataModule", "path", problem)


def _instead(given: Path) -> tuple[str, str]:
    """Say what there is instead of npz files, and what to do."""
    if (given / "manifest.json").exists():
        return "a store", "; give what the store was made from, which need not exist any more"
    advice = (
        "; save the arrays with np.savez, or give minari:ID for a dataset of Minari's, "
        "or the whole name of robomimic's FILE.hdf5"
    )
    if given.is_file():
        return FORMATS.get(given.suffix.lower(), "a file of another name"), advice
    near = given if given.is_dir() else given.parent
    others = sorted(
        file
        for file in (near.iterdir() if near.is_dir() else ())
        if file.suffix.lower() in FORMATS
        and (given.is_dir() or file.stem == given.name.removesuffix(".npz"))
    )
    found = "which holds no npz files" if given.is_dir() else "which does not exist"
    if not others:
        return found, ""
    return f"{found}, but {shown(others[0].name)}, {FORMATS[others[0].suffix.lower()]}", advice


def place(owner: str, argument: str, given: str | Path) -> Path:
    """Return the path that a user names, its ``~`` expanded.

    Args:
        owner: The class or function that takes the argument.
        argument: The argument.
        given: Its value.

    Raises:
        ArgumentError: It can be no path.
    """
    text = str(given)
    try:
        if not text.strip() or "\0" in text:
            raise ValueError("no path")
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        problem = f"is '{shown(text)}', which cannot be used: {reason}"
        raise ArgumentError(owner, argument, problem) from None
    return path


@contextlib.contextmanager
def making(path: Path, argument: str, owner: str = "ChunkDataModule") -> Iterator[None]:
    """Tell why data cannot be written, and what to do.

    Args:
        path: The file or folder.
        argument: The argument that chooses another folder.
        owner: The class or function that takes the argument.

    Raises:
        ArgumentError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        advice = f"choose another {argument}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = f"free some space and repeat, the work done so far is kept; or {advice}"
        reason = error.strerror or error
        problem = f"leads to {path}, which cannot be written: {reason}; {advice}"
        raise ArgumentError(owner, argument, problem) from None


@contextlib.contextmanager
def making_alone(path: Path, argument: str) -> Iterator[None]:
    """Let one process at a time make a file or folder, in a folder that is made if need be.

    Args:
        path: The file or folder; whoever had to wait should look whether it is there now.
        argument: The argument of `ChunkDataModule` that chooses another folder.

    Raises:
        ArgumentError: It cannot be written.
    """
    with making(path, argument):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.lock")):
            yield


def made_once(path: Path, argument: str, found: Callable[[], T | None], make: Callable[[], T]) -> T:
    """Return what ``found`` returns; where that is false, make it first, in one process at a time.

    Args:
        path: The file or folder; see `making_alone`.
        argument: The argument of `ChunkDataModule` that chooses another folder.
        found: Looks for it; also after another process has made it meanwhile.
        make: Makes and returns it.

    Raises:
        ArgumentError: It cannot be written.
    """
    if there := found():
        return there
    with making_alone(path, argument):
        return found() or make()


def _check_numbers(folder: Path, files: list[Path]) -> None:
    numbers = {int(match[1]) for path in files if (match := _NUMBER.search(path.name))}
    last = max(numbers, default=-1)
    # A number in a name may be large, so not all below it are counted.
    absent = [n for n in range(min(last, len(numbers) + 6)) if n not in numbers]
    if absent:
        named = ", ".join(f"{n:03d}" for n in absent[:5]) + (", ..." if absent[5:] else "")
        raise UserError(
            f"{folder}: of the files numbered 000 to {last:03d}, {named} "
            f"{'is' if len(absent) == 1 else 'are'} missing; fetch the missing ones"
        )
