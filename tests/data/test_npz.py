"""Dataset files: read in blocks, and bad ones are explained and left alone."""

import os
import pickle
import re
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qam_lightning.data.npz import Column, NpzFile, check_npz
from qam_lightning.util.errors import UserError

LAYOUT = {
    "observations": Column(3, "float32", True),
    "actions": Column(2, "float32"),
    "qpos": Column(4, "float32"),
    "button_states": Column(2, "int8"),
}


def good_arrays(rows=400, seed=0):
    rng = np.random.default_rng(seed)
    terminals = np.zeros(rows, bool)
    terminals[99::100] = True
    return {
        "observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "terminals": terminals,
        "qpos": rng.normal(size=(rows, 4)).astype(np.float32),
        "qvel": rng.normal(size=(rows, 4)).astype(np.float32),
        "button_states": rng.integers(0, 2, (rows, 2)),
    }


def write(path, **changes):
    arrays = good_arrays() | changes
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def patched(key, row, value):
    array = good_arrays()[key].copy()
    array[row] = value
    return {key: array}


def assert_refused(path, words):
    """The reader refuses in one line that names the file and the words, and changes nothing."""
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        check_npz(path, LAYOUT)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message
    assert path.read_bytes() == before


def read(path):
    """Every array as the store would get it."""
    with NpzFile(path) as file:
        ends = file.ends(LAYOUT)
        kept = {k: np.concatenate(list(file.columns(k, c, ends))) for k, c in LAYOUT.items()}
        return kept | {"ends": ends}


def assert_read(path):
    arrays, found = good_arrays(), read(path)
    transitions = ~arrays["terminals"]
    np.testing.assert_array_equal(found["ends"], [99, 199, 299, 399])
    for key, column in LAYOUT.items():
        expected = arrays[key] if column.last_rows else arrays[key][transitions]
        np.testing.assert_array_equal(found[key], expected)
        assert found[key].dtype == column.dtype


@pytest.mark.parametrize("block", [1, 7, 100, 400, 1000])
def test_a_good_file_is_read_as_it_is_whatever_the_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr("qam_lightning.data.npz.BLOCK_ROWS", block)
    assert_read(write(tmp_path / "a.npz"))


def test_other_number_types_and_orders_are_converted(tmp_path):
    arrays = good_arrays()
    path = write(
        tmp_path / "a.npz",
        observations=arrays["observations"].astype(np.float64),
        terminals=arrays["terminals"].astype(np.float32),
        button_states=arrays["button_states"].astype(np.uint8),
        qpos=np.asfortranarray(arrays["qpos"]),
    )
    assert_read(path)
    np.savez(tmp_path / "b.npz", **arrays)  # not compressed
    assert_read(tmp_path / "b.npz")


def test_a_fingerprint_tells_contents_apart_but_not_names(tmp_path):
    def fingerprint(path):
        with NpzFile(path) as file:
            return file.fingerprint()

    one = fingerprint(write(tmp_path / "a.npz"))
    assert fingerprint(write(tmp_path / "b.npz")) == one
    assert fingerprint(write(tmp_path / "b.npz", **patched("qpos", (3, 1), 0.5))) != one


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qpos": None}, ["no array 'qpos'", "observations"]),
        ({"button_states": None}, ["no array 'button_states'"]),
        ({"observations": np.zeros((400, 5), np.float32)}, ["observations", "5", "3"]),
        ({"actions": np.zeros((400, 7), np.float32)}, ["actions", "7", "2"]),
        ({"actions": np.zeros(400, np.float32)}, ["actions", "(400,)", "2"]),
        ({"qpos": np.zeros((399, 4), np.float32)}, ["qpos", "399", "400"]),
        (patched("observations", (17, 1), np.nan), ["observations", "NaN", "row 17"]),
        (patched("qpos", (33, 0), np.inf), ["qpos", "infinity", "row 33"]),
        (
            {"qpos": np.where(np.arange(400)[:, None] == 9, 1e300, np.zeros((400, 4)))},
            ["qpos", "infinity as float32", "row 9"],
        ),
        (patched("actions", (5, 1), -1.5), ["actions", "1.5", "row 5"]),
        ({"observations": np.zeros((400, 3), "<U4")}, ["observations", "<U4"]),
        ({"observations": np.full((400, 3), None)}, ["observations", "object"]),
        ({"button_states": np.zeros((400, 2))}, ["button_states", "float64", "integers"]),
        (patched("button_states", (8, 0), 300), ["button_states", "300", "row 8", "small"]),
        ({"terminals": np.zeros(400, bool)}, ["terminals", "no trajectory"]),
        ({"terminals": np.full(400, 2)}, ["terminals", "0 and 1"]),
        ({"terminals": np.zeros((400, 1), bool)}, ["terminals", "(400, 1)"]),
        ({"terminals": np.array(True)}, ["terminals", "()"]),
        (patched("terminals", 399, False), ["399", "299"]),
        (patched("terminals", 100, True), ["row 100", "1 row"]),
        ({k: v[:0] for k, v in good_arrays().items()}, ["terminals"]),
    ],
)
def test_wrong_contents_are_refused(tmp_path, changes, words):
    assert_refused(write(tmp_path / "a.npz", **changes), words)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = write(tmp_path / "a.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else keep])
    assert_refused(path, ["beginning"])


def test_a_flipped_bit_is_noticed(tmp_path):
    path = write(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    assert_refused(path, [])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_flipped_bit_in_the_directory_ends_in_a_traceback(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, **good_arrays())
    content = path.read_bytes()
    for place in range(content.index(b"PK\x01\x02"), len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            check_npz(path, LAYOUT)  # some bits, such as those of dates, do not matter
        except UserError as error:
            assert "\n" not in str(error)


def test_something_else_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("<html>Not found</html>")
    assert_refused(path, ["not an npz"])
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").rename(path)
    assert_refused(path, ["not an npz"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "a.npz")) + ": does not exist"):
        check_npz(tmp_path / "a.npz", LAYOUT)


# -- shapes and types ----------------------------------------------------------------------------

FLAT = {"rewards": Column(0, "float32"), "masks": Column(0, "uint8")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": np.zeros(400)}, "actions has shape (400,), expected (400, 2)"),
        ({"actions": np.zeros(800)}, "actions has shape (800,), expected (400, 2); reshape it"),
        ({"actions": np.zeros((400, 2, 1))}, "actions has shape (400, 2, 1), expected (400, 2); "),
        ({"actions": np.zeros(())}, "actions has shape (), expected (400, 2)"),
        ({"actions": np.zeros((2, 400))}, "actions has shape (2, 400), expected (400, 2)"),
        ({"observations": np.zeros((400, 1, 3))}, "shape (400, 1, 3), expected (400, 3); reshape"),
        ({"observations": np.zeros((399, 3))}, "(400, 3), as terminals has 400 rows"),
        ({"rewards": np.zeros((400, 1))}, "rewards has shape (400, 1), expected (400,); reshape"),
        ({"rewards": np.zeros(())}, "rewards has shape (), expected (400,)"),
        ({"rewards": np.zeros((1, 400))}, "rewards has shape (1, 400), expected (400,)"),
        ({"masks": np.ones((400, 1))}, "masks has shape (400, 1), expected (400,); reshape it"),
        ({"masks": np.ones(())}, "masks has shape (), expected (400,)"),
        ({"terminals": np.ones((400, 1))}, "terminals has shape (400, 1), expected (400,)"),
        ({"terminals": np.ones(())}, "terminals has shape (), expected "),
        ({"rewards": np.zeros(400, complex)}, "rewards holds complex128, expected numbers"),
        ({"rewards": np.zeros(400, "M8[s]")}, "rewards holds datetime64[s], expected numbers"),
        ({"rewards": np.zeros(400, "f4,i4")}, "rewards holds [('f0', '<f4'), ('f1', '<i4')], exp"),
    ],
)
def test_the_shape_found_and_the_shape_expected_are_said(tmp_path, changes, words):
    flat = {"rewards": np.zeros(400), "masks": np.ones(400)}
    path = write(tmp_path / "a.npz", **flat | changes)
    with pytest.raises(UserError) as caught:
        check_npz(path, LAYOUT | FLAT)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["int8", "int32", "int64", "uint16", "bool", "float16", ">f4", ">i8"]
)
def test_numbers_of_other_types_are_taken(tmp_path, kind):
    rewards = np.tile([0, 1], 200).astype(kind)
    path = write(tmp_path / "a.npz", rewards=rewards, masks=rewards)
    with NpzFile(path) as file:
        ends = file.ends(FLAT)
        kept = {key: np.concatenate(list(file.columns(key, FLAT[key], ends))) for key in FLAT}
    expected = rewards[~good_arrays()["terminals"]]
    np.testing.assert_array_equal(kept["rewards"], expected.astype(np.float32))
    np.testing.assert_array_equal(kept["masks"], expected.astype(np.uint8))
    assert kept["rewards"].dtype == np.float32


# -- files made to do harm -------------------------------------------------------------------------


def member(shape, dtype="<f4", fortran=False, data=b"", version=1):
    """A member of an npz file: a header that may claim anything, and what follows."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': {fortran}, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def archive(path, **members):
    """A file of good arrays, some replaced by raw members."""
    write(path, **dict.fromkeys(members))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        for key, content in members.items():
            file.writestr(f"{key}.npy", content)
    return path


HUGE = 1 << 26
HARMFUL = {
    "declares little, inflates to much": member((400, 3), fortran=True, data=bytes(HUGE)),
    "the same by rows": member((400, 3), data=bytes(HUGE)),
    "declares much, holds little": member((10**12, 3), fortran=True, data=bytes(4800)),
    "much by rows": member((10**12, 3), data=bytes(4800)),
    "overflows": member((2**62, 8), data=bytes(4800)),
    "negative": member((-400, -3), data=bytes(4800)),
    "one negative": member((400, -3), data=bytes(4800)),
    "no numbers": member(("a", 3), data=bytes(4800)),
    "subarray": member((400,), dtype=("<f4", (3,)), data=bytes(4800)),
    "huge type": member((400, 3), dtype="V1000000000", data=bytes(4800)),
    "unknown type": member((400, 3), dtype="<q9", data=bytes(4800)),
    "header of 64 MB": b"\x93NUMPY\x02\x00" + HUGE.to_bytes(4, "little") + b" " * HUGE,
    "deep header": b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000,
    "other version": b"\x93NUMPY\x09\x00" + bytes(4000),
    "no array": b"import os",
    "empty": b"",
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_what_a_header_claims_takes_no_memory(tmp_path, kind):
    path = archive(tmp_path / "a.npz", observations=HARMFUL[kind])
    tracemalloc.start()
    assert_refused(path, ["observations"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


def test_a_fortran_array_beyond_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("qam_lightning.data.npz.memory_limit", lambda: 10_000)
    path = write(tmp_path / "a.npz", qpos=np.asfortranarray(good_arrays()["qpos"]))
    assert_refused(path, ["qpos", "Fortran order", "1.28e-05 GB", "np.ascontiguousarray"])


def test_wide_rows_are_read_in_small_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("qam_lightning.data.npz.BLOCK_BYTES", 40)
    assert_read(write(tmp_path / "a.npz"))


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_executed(tmp_path):
    mark = tmp_path / "executed"
    objects = np.empty(400, object)
    objects[:] = Payload(mark)
    np.savez(tmp_path / "a.npz", **good_arrays() | {"qpos": objects})
    assert_refused(tmp_path / "a.npz", ["qpos holds Python objects"])
    raw = archive(tmp_path / "b.npz", qpos=pickle.dumps(Payload(mark)))
    assert_refused(raw, ["qpos"])
    raw = archive(tmp_path / "c.npz", qpos=member((400, 4), "|O", data=pickle.dumps(Payload(mark))))
    assert_refused(raw, ["qpos"])
    (tmp_path / "d.npz").write_bytes(pickle.dumps(Payload(mark)))
    assert_refused(tmp_path / "d.npz", ["not an npz"])
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["../evil.npy", "/tmp/evil.npy", "a/../../evil.npy", "..\\evil.npy"]
)
def test_names_in_a_file_lead_nowhere(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.npz")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"x")
    assert_read(path)  # what nobody asks for is not even unpacked
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "a.npz"]


def test_an_array_that_is_there_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("qpos.npy", member((400, 4), data=bytes(6400)))
    assert_refused(path, ["qpos.npy twice"])


def test_a_folder_or_a_pipe_is_no_file(tmp_path):
    (tmp_path / "a.npz").mkdir()
    os.mkfifo(tmp_path / "b.npz")
    for name in ("a.npz", "b.npz"):
        with pytest.raises(UserError, match=f"{name}: is no file"):
            check_npz(tmp_path / name, LAYOUT)


def test_many_short_trajectories_are_refused_at_the_first(tmp_path):
    path = write(tmp_path / "a.npz", terminals=np.ones(400, bool))
    assert_refused(path, ["row 0 has 1 row"])
