"""``sha256.json``: checksums of the files of a folder, from when each was first downloaded."""

from pathlib import Path

from qam_lightning.util.errors import UserError
from qam_lightning.util.files import locked, save_json, sha256
from qam_lightning.util.schema import Sha256, Text, read_json

RECORD = "sha256.json"
Sums = dict[Text, Sha256]
"""SHA-256 of every file by name."""


def recorded(path: Path) -> str | None:
    """Return the checksum of a file at its first download; None if there is none.

    Raises:
        UserError: The record in the file's folder is damaged.
    """
    return _sums(path.with_name(RECORD)).get(path.name)


def record(path: Path, digest: str) -> None:
    """Note a file's checksum in its folder."""
    file = path.with_name(RECORD)
    with locked(path.with_name(f"{RECORD}.lock")):
        save_json(file, _sums(file) | {path.name: digest}, alone=True)


def check_sum(digest: str, path: Path) -> None:
    """Compare a checksum with what is recorded for ``path``, if anything is.

    Raises:
        UserError: They differ.
    """
    expected = recorded(path)
    if expected and digest != expected:
        raise UserError(
            f"sha256 is {digest[:12]}…, expected {expected[:12]}… as in {path.with_name(RECORD)}; "
            "if the data were replaced on purpose, delete that line"
        )


def changed_files(files: list[Path]) -> list[str]:
    """One line for each file that exists and is not what was downloaded first."""
    wrong = []
    for path in files:
        try:
            if path.exists() and recorded(path):
                check_sum(sha256(path), path)
        except UserError as error:
            wrong.append(f"{path}: {error}")
    return wrong


def _sums(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    return read_json(Sums, file, "checksums", "correct it, or delete it if you prescribed none")
