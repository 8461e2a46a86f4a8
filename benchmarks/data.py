"""How long a batch takes: the store against a plain gather from arrays in memory.

python benchmarks/data.py                                    1M to 100M transitions: two minutes
python benchmarks/data.py --transitions 300000 --repeats 200
python benchmarks/data.py --directory /fast/disk

Batches of 256 chunks of 5 steps at the dimensions of cube-quadruple (O = 55, A = 5), indices drawn
anew. The machine may be busy with something else, so all candidates take turns, one batch each, and
the ratio is the median of the ratios to the plain gather in the same round.

Resident: synthetic sparse files of the full length, of which every array is zeros. Each of 200
batches was made once before, so its pages are in memory, and look-ups and page tables are those of
the real size. The plain gather is what in-memory implementations do: fancy indexing into numpy
arrays of single transitions, next observations stored apart.

Cold: a file of random numbers, written in full, that the system was asked to forget; every batch
waits for the disk. Once read as a dataset that fits into memory, once as one that does not.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from qam_lightning.data.chunks import ChunkStorage
from qam_lightning.data.sampler import sample_indices
from qam_lightning.data.store import read_singly
from qam_lightning.util.memory import PHYSICAL_MEMORY
from qam_lightning.util.provenance import versions_line

OBS_DIM, ACTION_DIM, CHUNK, BATCH, EPISODE, DISTINCT = 55, 5, 5, 256, 1001, 200
COLUMNS = {
    "observations": ((OBS_DIM,), "f4"),
    "actions": ((ACTION_DIM,), "f4"),
    "rewards": ((), "f4"),
    "masks": ((), "u1"),
}
Arrays = dict[str, np.ndarray]
MakeBatch = Callable[[int], object]


def make_arrays(folder: Path, transitions: int, dense: bool = False) -> Arrays:
    """Map a store's arrays, laid out on disk the first time: holes, or random bits if dense."""
    episodes = max(1, transitions // (EPISODE - 1))
    arrays = {"ends": np.arange(1, episodes + 1) * EPISODE - 1}
    for key, (width, dtype) in COLUMNS.items():
        path = folder / f"{key}-{transitions}{'-dense' * dense}"
        shape = (episodes * (EPISODE - (key != "observations")), *width)
        if not path.exists():
            with path.open("wb") as file:
                if dense:
                    write_bits(file, shape, dtype)
                file.truncate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        arrays[key] = np.memmap(path, dtype, "r", shape=shape)
    return arrays


def write_bits(file, shape: tuple[int, ...], dtype: str) -> None:
    """Write an array of random zeros and ones."""
    rng = np.random.default_rng(0)
    for start in range(0, shape[0], 1 << 18):
        rows = min(1 << 18, shape[0] - start)
        file.write(rng.integers(0, 2, (rows, *shape[1:]), np.uint8).astype(dtype).tobytes())
    os.fsync(file.fileno())


def plain_gather(arrays: Arrays) -> MakeBatch:
    """Make the reference: everything in memory, one row a transition, chunks by fancy indexing."""
    rows = np.setdiff1d(np.arange(len(arrays["observations"])), arrays["ends"])
    observations, following = arrays["observations"][rows], arrays["observations"][rows + 1]
    actions, rewards, masks = (np.array(arrays[k]) for k in ("actions", "rewards", "masks"))
    ended = np.isin(rows + 1, arrays["ends"])
    weights, count = 0.99 ** np.arange(CHUNK), len(actions) - CHUNK + 1

    def gather(step: int) -> object:
        start = sample_indices(0, step, BATCH, count)
        steps = start[:, None] + np.arange(CHUNK)
        over = np.cumsum(ended[steps], 1) - ended[steps] > 0
        last = steps[np.arange(len(steps)), (~over).sum(1) - 1]
        return [
            observations[start],
            actions[steps].reshape(len(start), -1),
            (np.where(over, 0, rewards[steps]) * weights).sum(1),
            following[last],
            np.where(over, 1, masks[steps]).min(1),
            (~over[:, -1]).astype(np.float32),
        ]

    return gather


def store_gather(arrays: Arrays, memory: bool = False) -> MakeBatch:
    """Make a batch from the store, as training does."""
    device = "cpu" if memory else None
    storage = ChunkStorage(**arrays, horizon=CHUNK, discount=0.99, device=device)
    return lambda step: storage.gather(sample_indices(0, step, BATCH, storage.num_chunks))


def anonymous_memory() -> float:
    """Memory of this process in MB, mapped files not counted."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def resident(folder: Path, sizes: list[int], repeats: int) -> Table:
    """Compare all sizes with the plain gather from the smallest one's arrays."""
    made: dict[str, tuple[int, MakeBatch, float]] = {}

    def add(name: str, size: int, make: Callable[[Arrays], MakeBatch]) -> None:
        arrays = make_arrays(folder, size)
        if sum(array.nbytes for array in arrays.values()) > PHYSICAL_MEMORY / 2:
            read_singly(arrays[key] for key in COLUMNS)
        before = anonymous_memory()
        batch = make(arrays)
        for step in range(DISTINCT):
            batch(step)
        made[f"{name} {size}"] = (size, batch, anonymous_memory() - before)

    store_gather(make_arrays(folder, 10_000))(0)  # what every process needs once
    add("plain gather", sizes[0], plain_gather)
    add("storage: memory", sizes[0], lambda arrays: store_gather(arrays, memory=True))
    for size in sizes:
        add("storage: disk", size, store_gather)

    times = np.zeros((repeats, len(made)))
    for round_, (i, (_, batch, _)) in itertools.product(range(repeats), enumerate(made.values())):
        start = time.perf_counter()
        batch(round_ % DISTINCT)
        times[round_, i] = 1e3 * (time.perf_counter() - start)

    headings = ("resident", "transitions", "ms", "ratio to plain", "chunks/s", "memory, MB")
    table = make_table(*headings)
    ratios = np.median(times / times[:, :1], axis=0)
    for (name, (size, _, memory)), ms, ratio in zip(
        made.items(), np.median(times, axis=0), ratios, strict=True
    ):
        speed = f"{1e3 * BATCH / ms:,.0f}"
        row = (name.rpartition(" ")[0], f"{size:,}", f"{ms:.3f}", f"{ratio:.2f}", speed)
        table.add_row(*row, f"{memory:,.0f}")
    return table


def cold(folder: Path, size: int, batches: int) -> Table:
    """Time the first batches from a file that is not in memory."""
    make_arrays(folder, size, dense=True)
    table = make_table("cold", "transitions", "threads", "ms", "read, MB a batch")
    for single, threads in itertools.product((False, True), (1, 4)):
        for path in folder.glob("*-dense"):
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
        arrays = make_arrays(folder, size, dense=True)
        if single:
            read_singly(arrays[key] for key in COLUMNS)
        batch = store_gather(arrays)
        before, start = bytes_read(), time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(batch, range(batches)))
        ms = 1e3 * (time.perf_counter() - start) / batches
        name = "exceeds memory" if single else "fits memory"
        read = (bytes_read() - before) / batches / 1e6
        table.add_row(name, f"{size:,}", f"{threads}", f"{ms:.1f}", f"{read:.1f}")
        del arrays, batch  # what is mapped is not forgotten
    return table


def bytes_read() -> int:
    """Bytes that this process has had read from disk."""
    return int(Path("/proc/self/io").read_text().partition("\nread_bytes:")[2].split()[0])


def make_table(*headings: str) -> Table:
    """Make a table with a name and numbers in each row."""
    table = Table(title=f"batches of {BATCH} chunks of {CHUNK} (O = {OBS_DIM}, A = {ACTION_DIM})")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = [10**6, 10**7, 10**8]
    parser.add_argument("--transitions", type=int, nargs="+", default=sizes)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--cold", type=int, default=2 * 10**6, help="transitions of the cold file")
    parser.add_argument("--directory", type=Path, help="where the files go; a temporary folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        Console().print(resident(Path(name), sorted(options.transitions), options.repeats))
        Console().print(cold(Path(name), options.cold, batches=20))
    print(versions_line())
    print("load average:", *os.getloadavg())


if __name__ == "__main__":
    main()
