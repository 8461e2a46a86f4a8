"""How long a batch takes: the store against a plain gather from arrays in memory.

python benchmarks/data.py                                 1M to 100M transitions, resident and cold
python benchmarks/data.py --transitions 300000 --repeats 2000
python benchmarks/data.py --directory /fast/disk --dense

Batches of 256 chunks of 5 steps at the dimensions of cube-quadruple (O = 55, A = 5). The stores are
synthetic: sparse files of the full length, of which every array is zeros. So "resident" measures
look-ups and page tables at the real size, and "cold" (a fresh part of the file for every batch,
after asking the system to forget it) measures page faults on holes, which cost no disk access; with
`--dense` the smallest size is written out in full, and cold batches wait for the disk.

The plain gather is what in-memory implementations do: fancy indexing into numpy arrays of single
transitions, next observations stored apart.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from qam_lightning.data.chunks import ChunkStorage, sample_indices

OBS_DIM, ACTION_DIM, CHUNK, BATCH, EPISODE = 55, 5, 5, 256, 1001
SHAPES = {"observations": (OBS_DIM, "f4"), "actions": (ACTION_DIM, "f4")}
SINGLES = {"rewards": "f4", "masks": "u1"}


def make_arrays(folder: Path, transitions: int, dense: bool) -> dict[str, np.ndarray]:
    """Lay out a store's arrays on disk: holes, or random numbers if ``dense``."""
    episodes = max(1, transitions // (EPISODE - 1))
    counts = {"observations": episodes * EPISODE, "actions": episodes * (EPISODE - 1)}
    shapes = {key: ((counts[key], width), dtype) for key, (width, dtype) in SHAPES.items()}
    shapes |= {key: ((counts["actions"],), dtype) for key, dtype in SINGLES.items()}
    arrays = {"ends": np.arange(1, episodes + 1) * EPISODE - 1}
    for key, (shape, dtype) in shapes.items():
        path = folder / f"{key}-{transitions}"
        with path.open("wb") as file:
            if dense:
                rng = np.random.default_rng(0)
                for start in range(0, shape[0], 1 << 20):
                    rows = min(1 << 20, shape[0] - start)
                    file.write(rng.integers(0, 2, (rows, *shape[1:])).astype(dtype).tobytes())
            file.truncate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        arrays[key] = np.memmap(path, dtype, "r", shape=shape)
    return arrays


def plain_gather(arrays: dict[str, np.ndarray]) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Make the reference: everything in memory, one row a transition, chunks by fancy indexing."""
    rows = np.setdiff1d(np.arange(len(arrays["observations"])), arrays["ends"])
    observations, following = arrays["observations"][rows], arrays["observations"][rows + 1]
    actions, rewards = np.array(arrays["actions"]), np.array(arrays["rewards"])
    masks, ended = np.array(arrays["masks"]), np.isin(rows + 1, arrays["ends"])
    weights = 0.99 ** np.arange(CHUNK)

    def gather(start: np.ndarray) -> list[np.ndarray]:
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


def milliseconds(batch: Callable[[int], object], repeats: int) -> float:
    """Return the median time of a batch."""
    times = []
    for step in range(repeats):
        start = time.perf_counter()
        batch(step)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def forget(folder: Path) -> None:
    """Ask the system to drop the files from its page cache."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def resident_bytes() -> float:
    """Memory of this process beyond mapped files."""
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * resource.getpagesize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [10**6, 10**7, 10**8]
    parser.add_argument("--transitions", type=int, nargs="+", default=sizes)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--directory", type=Path, help="where the files go; a temporary folder")
    parser.add_argument("--dense", action="store_true", help="write the smallest size in full")
    options = parser.parse_args()
    table = Table(title=f"batches of {BATCH} chunks of {CHUNK} (synthetic, O = {OBS_DIM})")
    columns = ("plain gather, ms", "store resident, ms", "chunks/s", "store cold, ms", "memory, MB")
    for heading in ("transitions", *columns):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        folder = Path(name)
        for count in sorted(options.transitions):
            dense = options.dense and count == min(options.transitions)
            table.add_row(f"{count:,}", *measure(folder, count, options.repeats, dense))
    Console().print(table)
    print("load average:", *os.getloadavg())


def measure(folder: Path, transitions: int, repeats: int, dense: bool) -> list[str]:
    """Measure one size; returns the row's cells."""
    arrays = make_arrays(folder, transitions, dense)
    before = resident_bytes()
    storage = ChunkStorage(**arrays, chunk=CHUNK, discount=0.99)

    def batch(step: int, seed: int = 0) -> object:
        return storage.gather(sample_indices(seed, step, BATCH, storage.num_chunks))

    forget(folder)
    cold = milliseconds(lambda step: batch(step, seed=1), max(20, repeats // 20))
    few = max(1, repeats // 20)  # their pages are in memory from the second time on
    for step in range(few):
        batch(step)
    warm = milliseconds(lambda step: batch(step % few), repeats)
    grown = (resident_bytes() - before) / 1e6
    plain = "-"
    if transitions <= 10**6:
        gather = plain_gather(arrays)
        indices = [sample_indices(0, step, BATCH, storage.num_chunks) for step in range(few)]
        plain = f"{milliseconds(lambda step: gather(indices[step % few]), repeats):.3f}"
    return [plain, f"{warm:.3f}", f"{1e3 * BATCH / warm:,.0f}", f"{cold:.3f}", f"{grown:.1f}"]


if __name__ == "__main__":
    main()
