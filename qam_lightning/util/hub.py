"""``hf://owner/name``: places on the Hugging Face hub, and policies that are there."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qam_lightning.util.errors import UserError, reason_of, shown

if TYPE_CHECKING:
    from types import ModuleType

FORM = "hf://owner/name, hf://owner/name@revision or hf://owner/name/folder"
# A `Path` has one slash where the URL has two.
_SCHEME = re.compile(r"hf:/{1,2}")
_PLACE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?(?:/(?P<folder>.*))?")
_KINDS = ("datasets", "models", "spaces", "buckets")


class Address(NamedTuple):
    """A place on the hub: the repository, its revision (None: the newest) and a folder in it."""

    repo: str
    revision: str | None
    folder: str


def address(url: str, kind: str) -> Address | None:
    """Return the parts of an ``hf://`` URL; None if it is not one.

    Args:
        url: the URL.
        kind: ``"datasets"`` or ``"models"``, which may stand before the owner. Other kinds may not.
    """
    scheme = _SCHEME.match(url)
    match = scheme and _PLACE.fullmatch(url[scheme.end() :].removeprefix(f"{kind}/"))
    if not match or match["repo"].partition("/")[0] in _KINDS:
        return None
    revision = match["revision"]
    folder = (match["folder"] or "").strip("/")
    if ".." in folder.split("/"):
        return None
    return Address(match["repo"], revision and revision.replace("%2F", "/"), folder)


def client() -> "ModuleType":
    """Import the hub's own client.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        advice = "pip install 'qam_lightning[hf]'"
        raise UserError(f"hf:// needs the package huggingface_hub: {advice}") from None
    return huggingface_hub


def is_url(source: str | Path) -> bool:
    """Whether a name is, or was meant to be, an ``hf://`` URL."""
    return bool(_SCHEME.match(str(source)))


def policy_folder(source: str | Path, *names: str) -> Path:
    """Return the folder of an exported policy, downloaded first if it is on the hub.

    The returned folder is in the hub client's cache. The client downloads nothing twice.

    Args:
        source: a folder, or an ``hf://`` URL.
        names: the files to download.

    Raises:
        UserError: the URL has another form, the client is not installed, or the hub does not have
            the files.
    """
    if not is_url(source):
        return Path(source).expanduser()
    where = address(str(source), "models")
    url = shown(_SCHEME.sub("hf://", str(source), count=1))
    if where is None:
        raise UserError(f"{url}: is no place on the hub, expected {FORM}")
    hub = client()
    files = [f"{where.folder}/{name}" if where.folder else name for name in names]
    try:
        found = hub.snapshot_download(where.repo, revision=where.revision, allow_patterns=files)
    except Exception as error:  # it raises whatever its libraries do
        raise UserError(f"{url}: cannot be downloaded: {reason_of(error)}") from None
    if lacking := [name for name in files if not (Path(found) / name).is_file()]:
        raise UserError(f"{url}: holds no {lacking[0]}, expected an exported policy")
    return Path(found) / where.folder
