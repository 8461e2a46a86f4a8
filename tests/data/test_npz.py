"""Dataset files: read in blocks, and bad ones are explained and left alone."""

import re

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
        ends = file.ends()
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
