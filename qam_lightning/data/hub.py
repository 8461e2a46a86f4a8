"""``hf://owner/name``: files of a dataset repository on the Hugging Face hub."""

import shutil
from pathlib import Path

from qam_lightning.util.errors import UserError, reason_of, shown
from qam_lightning.util.hub import Address, client


def download(where: Address, wanted: str, place: Path) -> Path:
    """Download a file with the hub's own client.

    Args:
        where: The repository.
        wanted: The file as OGBench's host has it, perhaps in a folder. The repository may have
            it in any folder.
        place: Folder to download to; its former contents are deleted.

    Returns:
        The file, somewhere in ``place``.

    Raises:
        UserError: The client is not installed, or there is no such file, or there are several.
        OSError: The hub does not answer or has no such repository, or the disk is full.
    """
    hub = client()
    repo, revision, folder = where
    shutil.rmtree(place, ignore_errors=True)
    try:
        files = hub.HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
        name = find(files, folder, wanted)
        return Path(
            hub.hf_hub_download(repo, name, repo_type="dataset", revision=revision, local_dir=place)
        )
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ConnectionError(reason_of(error)) from None


def find(files: list[str], folder: str, wanted: str) -> str:
    """Return the file of a place that is the wanted one.

    Args:
        files: All files there with their folders.
        folder: Only files in this folder count; all if empty.
        wanted: The name, perhaps with the folder in which OGBench's host has it. In another folder,
            a file of that name is taken if it is the only one.

    Raises:
        UserError: There is none, or there are several.
    """
    prefix = f"{folder}/" if folder else ""
    inside = [file for file in files if file.startswith(prefix)]
    if prefix + wanted in inside:
        return prefix + wanted
    name = wanted.rpartition("/")[2]
    named = [file for file in inside if file.rpartition("/")[2] == name]
    if len(named) == 1:
        return named[0]
    expected = f"expected one {name}"
    if named:
        raise UserError(f"found {_some(named)}, {expected}; add the right folder to the URL")
    npz = [file for file in inside if file.endswith(".npz")]
    raise UserError(f"found {_some(npz or inside or files)}, {expected}")


def _some(names: list[str], most: int = 5) -> str:
    listed = ", ".join(shown(name, 100) for name in sorted(names)[:most])
    rest = len(names) - most
    return f"{listed} and {rest} more" if rest > 0 else listed or "no files"
