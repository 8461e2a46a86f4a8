"""Files: what is read back comes from the disk, and what a kill left of one goes."""

import ctypes
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from qam_lightning.callbacks import checkpoint_files
from qam_lightning.callbacks.checkpoint_files import SafeFile
from qam_lightning.util import files
from qam_lightning.util.files import checksum, sync

PROT_READ = MAP_SHARED = 1


def cached(path: Path) -> float:
    """Return the share of a file's pages that the system holds in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size, page = path.stat().st_size, os.sysconf("SC_PAGE_SIZE")
    with path.open("rb") as file:
        number = ctypes.c_int(file.fileno())
        start = ctypes.c_void_p(
            libc.mmap(None, ctypes.c_size_t(size), PROT_READ, MAP_SHARED, number, ctypes.c_long(0))
        )
    resident = ctypes.create_string_buffer(-(-size // page))
    assert libc.mincore(start, ctypes.c_size_t(size), resident) == 0, os.strerror(
        ctypes.get_errno()
    )
    libc.munmap(start, ctypes.c_size_t(size))
    return sum(byte & 1 for byte in resident.raw) / len(resident.raw)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file of 64 MB, much more than is read ahead, that is on disk, and in memory too."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(64_000_000))
    sync(path)
    assert cached(path) == 1.0
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path):
        pytest.skip("this file system keeps files in memory")
    path.read_bytes()
    return path


def test_a_checksum_from_disk_reads_the_disk(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[float] = []
    original = zlib.crc32

    def first_block(*arguments: object) -> int:  # what is in memory when reading begins
        before.append(cached(written))
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("qam_lightning.util.files.zlib.crc32", first_block)
    expected = original(written.read_bytes())
    assert checksum(written) == expected and before[0] == 1.0
    before.clear()
    assert checksum(written, from_disk=True) == expected
    assert before[0] < 1.0  # the first block, and what the system read ahead


def test_a_checkpoint_is_flushed_before_it_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    original = os.fsync

    def fsync(number: int) -> None:
        calls.append("fsync")
        original(number)

    def read_back(path: Path, from_disk: bool) -> int:
        calls.append(f"read back {from_disk}")
        return -1

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(checkpoint_files, "checksum", read_back)
    with pytest.raises(OSError, match="other bytes than were written"):
        SafeFile().save_checkpoint({"state_dict": {}}, tmp_path / "x.ckpt")
    assert calls == ["fsync", "read back True"]


WRITES = """
import pathlib, sys, time
from qam_lightning.util import files
with getattr(files, sys.argv[1])(pathlib.Path(sys.argv[2])) as temporary:
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("writer", ["replacing", "appearing"])
def test_the_next_writer_removes_what_a_kill_left_and_nothing_of_the_living(
    writer: str, tmp_path: Path
) -> None:
    path = tmp_path / "policy[1]"

    def write() -> None:
        with getattr(files, writer)(path) as temporary:
            if writer == "replacing":
                temporary.write_text("whole")
        assert path.exists()
        path.unlink() if path.is_file() else path.rmdir()

    processes = [
        subprocess.Popen([sys.executable, "-c", WRITES, writer, path], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        write()
        assert len(list(tmp_path.iterdir())) == 2
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait()
        write()
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    write()
    assert not list(tmp_path.iterdir())
