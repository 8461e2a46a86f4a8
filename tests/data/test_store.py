"""The store: made once, whole or not at all, from any number of files, and never from bad ones."""

import json
import multiprocessing
import os
import resource
import shutil
import signal

import numpy as np
import pytest

from qam_lightning.cli import main
from qam_lightning.data import convert
from qam_lightning.data.convert import ensure_store
from qam_lightning.data.npz import NpzFile
from qam_lightning.data.source import own
from qam_lightning.data.store import Store
from qam_lightning.util.errors import UserError
from tests.data.test_datamodule import own_file, pendulum
from tests.data.test_npz import LAYOUT, Payload, good_arrays, patched, write


@pytest.fixture
def shards(tmp_path):
    """Three files of one dataset, of different contents."""
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(3):
        np.savez_compressed(folder / f"set-{i:03d}.npz", **good_arrays(seed=i))
    return sorted(folder.iterdir())


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def refused(files, folder, *words):
    """One line with the words; the sources, and a store that was there, stay as they are."""
    before = [path.read_bytes() for path in files]
    store = contents(folder) if folder.exists() else None
    with pytest.raises(UserError) as caught:
        ensure_store(files, folder, LAYOUT)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert [path.read_bytes() for path in files] == before
    assert (contents(folder) if folder.exists() else None) == store
    return message


def assert_holds(store, seeds):
    parts = [good_arrays(seed=seed) for seed in seeds]
    for key, column in LAYOUT.items():
        kept = [a[key] if column.last_rows else a[key][~a["terminals"]] for a in parts]
        np.testing.assert_array_equal(store.arrays[key], np.concatenate(kept))
    np.testing.assert_array_equal(store.ends, np.arange(99, 400 * len(parts), 100))
    assert store.transitions == 396 * len(parts)


def test_shards_become_one_store_that_needs_them_no_more(shards, tmp_path):
    folder = tmp_path / "a.store"
    assert_holds(ensure_store(shards, folder, LAYOUT), range(3))
    assert store_names(tmp_path) == ["a.store", "set"]
    inodes = [path.stat().st_ino for path in folder.iterdir()]
    for path in shards:
        path.unlink()
    assert_holds(ensure_store(shards, folder, LAYOUT), range(3))
    assert [path.stat().st_ino for path in folder.iterdir()] == inodes


def store_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_next_observations_are_not_stored_twice(shards, tmp_path):
    store = ensure_store(shards, tmp_path / "a.store", LAYOUT)
    size = sum(store.arrays[key].nbytes for key in ("observations", "actions", "qpos"))
    assert size == 4 * (1200 * 3 + 1188 * (2 + 4))
    assert {path.suffix for path in store.folder.iterdir()} == {".npy", ".json"}
    actions = np.load(store.folder / "actions.npy", mmap_mode="r")
    np.testing.assert_array_equal(actions, store.arrays["actions"])


def test_a_store_that_is_verified_says_what_is_wrong(shards, tmp_path):
    store = ensure_store(shards, tmp_path / "a.store", LAYOUT)
    assert store.verify(shards) == []
    path = store.folder / "qpos.npy"
    flipped = bytearray(path.read_bytes())
    flipped[400 * 4 * 4 + 130] ^= 1
    path.write_bytes(flipped)
    wrong = Store(store.folder).verify(shards)
    assert wrong == [
        f"{path} fails its checksum",
        f"qpos in {store.folder} differs from {shards[1]}",
    ]
    write(shards[2], **patched("qpos", (3, 3), 9.0))
    assert f"{shards[2]} has changed since the store was made" in Store(store.folder).verify(shards)


def test_a_changed_source_is_converted_again(shards, tmp_path):
    folder = tmp_path / "a.store"
    ensure_store(shards, folder, LAYOUT)
    shutil.copy(shards[0], shards[2])
    assert_holds(ensure_store(shards, folder, LAYOUT), [0, 1, 0])
    more = shards[0].with_name("set-003.npz")
    shutil.copy(shards[1], more)
    assert_holds(ensure_store([*shards, more], folder, LAYOUT), [0, 1, 0, 1])
    assert store_names(tmp_path) == ["a.store", "set"]


def test_a_touched_source_is_not_converted_again(shards, tmp_path):
    folder = tmp_path / "a.store"
    ensure_store(shards, folder, LAYOUT)
    inode = folder.stat().st_ino
    for path in shards:
        os.utime(path, (0, 0))
    ensure_store(shards, folder, LAYOUT)
    assert folder.stat().st_ino == inode


def test_a_changed_source_that_is_bad_leaves_the_good_store(shards, tmp_path):
    folder = tmp_path / "a.store"
    ensure_store(shards, folder, LAYOUT)
    write(shards[1], **patched("observations", (17, 1), np.nan))
    refused(shards, folder, str(shards[1]), "NaN", "row 17")
    shards[1].write_bytes(shards[0].read_bytes()[:5000])
    refused(shards, folder, str(shards[1]), "beginning")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qpos": None}, ["set-001.npz", "no array 'qpos'"]),
        ({"actions": np.zeros((400, 7), np.float32)}, ["set-001.npz", "actions", "7", "2"]),
        (
            {"observations": good_arrays()["observations"].astype(np.float64)},
            ["set-001.npz", "float64", "set-000.npz holds float32", "one dataset"],
        ),
        (patched("actions", (5, 1), -1.5), ["set-001.npz", "actions", "-1.5", "row 5"]),
        ({"terminals": np.zeros(400, bool)}, ["set-001.npz", "no trajectory"]),
        ({"terminals": np.array(True)}, ["set-001.npz", "one dimension"]),
    ],
)
def test_shards_that_disagree_are_named(shards, tmp_path, changes, words):
    write(shards[1], **changes)
    refused(shards, tmp_path / "a.store", *words)
    assert not (tmp_path / "a.store").exists()


def test_a_missing_shard_is_named(shards):
    shards[1].unlink()
    with pytest.raises(UserError, match="000 to 002, 001 is missing"):
        own(str(shards[0].parent))


def test_a_damaged_store_is_explained(shards, tmp_path):
    folder = tmp_path / "a.store"
    ensure_store(shards, folder, LAYOUT)
    actions = folder / "actions.npy"
    whole = actions.read_bytes()
    for damaged in (whole[:-4], whole[:100], b"", b"x" + whole[1:]):
        actions.write_bytes(damaged)
        refused(shards, folder, "cannot be read", f"delete {folder}, and the next run converts")
    actions.unlink()
    refused(shards, folder, "actions.npy", f"delete {folder}")
    actions.write_bytes(whole)
    manifest = json.loads((folder / "manifest.json").read_text())
    lists = manifest | {"source": [1]}
    for damaged in ("{", "[]", "{}", "null", json.dumps(lists), '{"format": 2, "crc32": {}}'):
        (folder / "manifest.json").write_text(damaged)
        refused(shards, folder, f"{folder}/manifest.json: ", "and the next run converts")


def test_a_store_of_another_format_is_made_again_or_left_alone(shards, tmp_path):
    folder = tmp_path / "a.store"
    ensure_store(shards, folder, LAYOUT)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    gone = [path.rename(path.with_suffix(".gone")) for path in shards[1:]]
    with pytest.raises(UserError, match="a.store: has format 1, expected 2; .*bring those back"):
        ensure_store(shards, folder, LAYOUT)
    assert json.loads((folder / "manifest.json").read_text())["format"] == 1
    for path in gone:
        path.rename(path.with_suffix(".npz"))
    assert_holds(ensure_store(shards, folder, LAYOUT), range(3))
    assert store_names(tmp_path) == ["a.store", "set"]


def test_a_store_of_another_environment_is_refused(shards, tmp_path):
    folder = tmp_path / "a.store"
    ensure_store(shards, folder, LAYOUT)
    other = LAYOUT | {"qpos": LAYOUT["qpos"]._replace(columns=9)}
    with pytest.raises(
        UserError, match=r"qpos has rows of shape \(4,\), but the environment's \(9,\)"
    ):
        ensure_store([], folder, other)
    with pytest.raises(UserError, match="holds no rewards"):
        ensure_store([], folder, LAYOUT | {"rewards": LAYOUT["qpos"]})


# -- interruptions -------------------------------------------------------------------------------


def convert_and_die(files, folder, after_blocks):
    """Converts until the given number of blocks was written, then ends without a word."""
    columns = NpzFile.columns
    count = 0

    def counting(self, *args):
        nonlocal count
        for block in columns(self, *args):
            yield block
            count += 1
            if count == after_blocks:
                os.kill(os.getpid(), signal.SIGKILL)

    NpzFile.columns = counting
    ensure_store(files, folder, LAYOUT)


@pytest.mark.parametrize("blocks", [1, 4, 6, 11])
def test_a_killed_conversion_goes_on_where_it_was(shards, tmp_path, blocks, monkeypatch):
    folder = tmp_path / "a.store"
    run = multiprocessing.get_context("fork").Process(
        target=convert_and_die, args=(shards, folder, blocks)
    )
    run.start()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    assert not folder.exists()

    opened = []
    columns = NpzFile.columns
    monkeypatch.setattr(
        NpzFile, "columns", lambda self, *args: opened.append(self.path) or columns(self, *args)
    )
    assert_holds(ensure_store(shards, folder, LAYOUT), range(3))
    assert sorted(set(opened)) == shards[blocks // 4 if blocks % 4 else blocks // 4 - 1 :]
    assert store_names(tmp_path) == ["a.store", "set"]
    assert Store(folder).verify(shards) == []


def test_an_interrupted_conversion_of_other_files_is_not_continued(shards, tmp_path):
    folder = tmp_path / "a.store"
    run = multiprocessing.get_context("fork").Process(
        target=convert_and_die, args=(shards, folder, 6)
    )
    run.start()
    run.join()
    shutil.copy(shards[2], shards[0])
    assert_holds(ensure_store(shards, folder, LAYOUT), [2, 1, 2])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("progress.json", b"[]"),
        ("progress.json", b'{"source": [1], "layout": {}}'),
        ("qpos.npy", b"cut"),
    ],
)
def test_a_damaged_half_of_a_conversion_is_not_continued(shards, tmp_path, name, content):
    folder = tmp_path / "a.store"
    run = multiprocessing.get_context("fork").Process(
        target=convert_and_die, args=(shards, folder, 6)
    )
    run.start()
    run.join()
    (tmp_path / "a.store.tmp" / name).write_bytes(content)
    assert_holds(ensure_store(shards, folder, LAYOUT), range(3))
    assert Store(folder).verify(shards) == []


def convert_with_little_space(files, folder, answers):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
    try:
        ensure_store(files, folder, LAYOUT)
    except UserError as error:
        answers.put(str(error))


def test_a_disk_that_fills_up_is_explained_and_the_work_goes_on_later(shards, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    folder = tmp_path / "a.store"
    run = context.Process(target=convert_with_little_space, args=(shards, folder, answers))
    run.start()
    message = answers.get(timeout=60)
    run.join()
    assert "\n" not in message
    assert "cannot be written" in message and "the work done so far is kept" in message
    assert not folder.exists()
    assert_holds(ensure_store(shards, folder, LAYOUT), range(3))


def test_too_little_space_is_noticed_beforehand(shards, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(shards, tmp_path / "a.store", "1e-06 GB are free", "choose another store")


def test_a_folder_that_cannot_be_written_is_explained(shards, tmp_path):
    refused(shards, shards[0] / "a.store", "cannot be written", "choose another store")


def convert_and_count(files, folder, started, made):
    columns = NpzFile.columns

    def counted(*args):
        with made.get_lock():
            made.value += 1
        return columns(*args)

    NpzFile.columns = counted
    started.wait()
    ensure_store(files, folder, LAYOUT)


def test_two_processes_convert_once(shards, tmp_path):
    context = multiprocessing.get_context("fork")
    started, made = context.Barrier(3), context.Value("i", 0)
    folder = tmp_path / "a.store"
    runs = [
        context.Process(target=convert_and_count, args=(shards, folder, started, made))
        for _ in range(3)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert made.value == len(LAYOUT) * len(shards)
    assert_holds(Store(folder), range(3))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    rows, path = 400_000, tmp_path / "a.npz"
    terminals = np.zeros(rows, bool)
    terminals[999::1000] = True
    wide = LAYOUT | {"observations": LAYOUT["observations"]._replace(columns=100)}
    np.savez(
        path,
        observations=np.zeros((rows, 100), np.float32),  # 160 MB
        actions=np.zeros((rows, 2), np.float32),
        qpos=np.zeros((rows, 4), np.float32),
        button_states=np.zeros((rows, 2), np.int8),
        terminals=terminals,
    )
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    run = context.Process(target=peak_memory, args=(path, tmp_path / "a.store", wide, answers))
    run.start()
    assert answers.get(timeout=120) < 130e6
    run.join()
    assert Store(tmp_path / "a.store").arrays["observations"].shape == (rows, 100)


def peak_memory(path, folder, layout, answers):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ensure_store([path], folder, layout)
    answers.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


# -- what is read from disk is checked whole -------------------------------------------------------

WRONG = (None, True, -1, 1.5, "x", [], {}, [1], {"a": 1}, 10**30, "../x", float("nan"))

GOOD = ("versions", {}), ("name", "x")


def changed_manifests(manifest):
    """The manifest with one thing wrong each."""
    for key in manifest:
        if key not in ("versions", "folder"):  # which may be missing
            yield {k: v for k, v in manifest.items() if k != key}
        for wrong in WRONG:
            if not (key == "folder" and isinstance(wrong, str)) and (key, wrong) != (
                "versions",
                {},
            ):
                yield manifest | {key: wrong}
    for key in ("layout", "crc32"):
        for name in ("../evil", "a/b", "", "observations2"):
            yield manifest | {key: manifest[key] | {name: manifest[key]["actions"]}}
        yield manifest | {key: {k: v for k, v in manifest[key].items() if k != "actions"}}
        for wrong in WRONG:
            yield manifest | {key: manifest[key] | {"actions": wrong}}
    for column in ([3, "float32", False], [2, "float64", False], [2, "float32", True], [2], [-2]):
        yield manifest | {"layout": manifest["layout"] | {"actions": column}}
    first, *rest = manifest["source"]
    for key in first:
        yield manifest | {"source": [{k: v for k, v in first.items() if k != key}, *rest]}
        for wrong in WRONG:
            if not (key == "fingerprint" and isinstance(wrong, str)) and (key, wrong) != (
                "name",
                "x",
            ):
                yield manifest | {"source": [first | {key: wrong}, *rest]}
    yield manifest | {"source": [first]}
    yield manifest | {"unknown": 1}


def test_a_manifest_that_fits_no_store_is_refused(shards, tmp_path):
    folder = tmp_path / "a.store"
    ensure_store(shards, folder, LAYOUT)
    manifest = json.loads((folder / "manifest.json").read_text())
    count = 0
    for changed in changed_manifests(manifest):
        (folder / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(UserError) as caught:
            Store(folder)
        message = str(caught.value)
        assert str(folder) in message and "\n" not in message and len(message) < 700, message
        count += 1
    assert count > 150
    for text in ("", "\0", "[" * 5000, "1" * 5000, '{"format": 2, "format": 2}', "\xff"):
        (folder / "manifest.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="manifest.json: "):
            Store(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert_holds(Store(folder), range(3))


ENDS = np.arange(99, 1200, 100)


@pytest.mark.parametrize(
    "ends",
    [
        np.append(ENDS[:-1], 1299),  # beyond the rows
        ENDS[:-1],
        ENDS + 1,
        ENDS - 1,
        ENDS[::-1],
        np.append(ENDS[:-2], [1199, 1199]),
        np.append(ENDS[:-2], [1198, 1199]),  # a trajectory of one row
        np.append([-1], ENDS[1:]),
        ENDS.astype(np.float64),
        ENDS.astype(np.int32),
        ENDS.astype(">i8"),
        ENDS[:, None],
        ENDS[:0],
        np.array(1199),
        np.full(12, 2**62),
        np.full(12, -(2**62)),
    ],
    ids=range(16),
)
def test_ends_that_do_not_fit_are_refused(shards, tmp_path, ends):
    folder = tmp_path / "a.store"
    ensure_store(shards, folder, LAYOUT)
    np.save(folder / "ends.npy", ends)
    with pytest.raises(UserError, match=f"{folder}: cannot be read: .*; delete {folder}") as caught:
        Store(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1188, 2)),
        np.zeros((1187, 2), np.float32),
        np.zeros((1188, 3), np.float32),
        np.zeros(2376, np.float32),
        np.zeros((1188, 2), ">f4"),
        np.zeros((2, 1188), np.float32).T,
        np.zeros((), np.float32),
        np.zeros((1188, 2), "S4"),
    ],
    ids=range(8),
)
def test_arrays_that_do_not_fit_are_refused(shards, tmp_path, array):
    folder = tmp_path / "a.store"
    ensure_store(shards, folder, LAYOUT)
    np.save(folder / "actions.npy", array)
    with pytest.raises(UserError, match=f"{folder}: cannot be read: actions") as caught:
        Store(folder)
    assert "\n" not in str(caught.value)


def test_a_store_executes_nothing(shards, tmp_path):
    folder, mark = tmp_path / "a.store", tmp_path / "executed"
    ensure_store(shards, folder, LAYOUT)
    objects = np.empty(1188, object)
    objects[:] = Payload(mark)
    np.save(folder / "actions.npy", objects, allow_pickle=True)
    with pytest.raises(UserError, match="Python objects"):
        Store(folder)
    assert not mark.exists()


def test_a_damaged_store_is_not_trained_on(tmp_path, capsys, monkeypatch):
    """Through the front door."""
    monkeypatch.chdir(tmp_path)
    own_file(tmp_path / "x.npz")
    assert main(["data", "info", "--env=Pendulum-v1", "--path=x.npz"]) == 0
    capsys.readouterr()
    ends = np.load("x.store/ends.npy")
    np.save("x.store/ends.npy", ends + 1000)
    assert main(["fit", f"--config={pendulum(tmp_path)}", "--run_dir=r"]) == 2
    assert "x.store: cannot be read: observations is (63, 3)" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "done", "source", "layout", "type", "no JSON"]
)
def test_a_damaged_progress_starts_afresh(shards, tmp_path, monkeypatch, damage):
    folder = tmp_path / "a.store"
    monkeypatch.setattr(convert, "_put_in_place", lambda *paths: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ensure_store(shards, folder, LAYOUT)
    monkeypatch.undo()
    temporary = tmp_path / "a.store.tmp"
    path = temporary / "progress.json"
    progress = json.loads(path.read_text())
    assert progress["done"] == 3
    progress |= {
        "done": {"done": 4},
        "source": {"source": progress["source"][:2]},
        "layout": {"layout": {}},
        "type": {"done": "3"},
    }.get(damage, {})
    path.write_text("{" if damage == "text" else json.dumps(progress))
    actions = (temporary / "actions.npy").read_bytes()
    if damage == "cut":
        (temporary / "actions.npy").write_bytes(actions[:-1])
    if damage == "flipped":  # not noticed here, but by everyone who verifies
        (temporary / "actions.npy").write_bytes(actions[:-1] + bytes([actions[-1] ^ 1]))
        assert ensure_store(shards, folder, LAYOUT).verify(shards)[-1].startswith("actions in ")
    else:
        assert_holds(ensure_store(shards, folder, LAYOUT), range(3))
        assert Store(folder).verify(shards) == []
