"""Which files a path names: as written, and what is there instead is said."""

import shutil

import numpy as np
import pytest

from qam_lightning.data.convert import ensure_store
from qam_lightning.data.minari import import_minari
from qam_lightning.data.source import FORMATS, official, own
from qam_lightning.data.store import Store
from qam_lightning.util.errors import ArgumentError, UserError
from tests.data.test_npz import LAYOUT, patched, write


@pytest.mark.parametrize(
    ("path", "file", "store"),
    [
        ("walker", "walker.npz", "walker.store"),
        ("walker.npz", "walker.npz", "walker.store"),
        ("walker.v1", "walker.v1.npz", "walker.v1.store"),
        ("walker.v1.npz", "walker.v1.npz", "walker.v1.store"),
        ("walker.v1.2", "walker.v1.2.npz", "walker.v1.2.store"),
        ("WALKER.NPZ", "WALKER.NPZ", "WALKER.store"),
        ("a.b/walker.v1", "a.b/walker.v1.npz", "a.b/walker.v1.store"),
        ("walker.npz.npz", "walker.npz.npz", "walker.npz.store"),
    ],
)
def test_names_are_taken_as_written(tmp_path, path, file, store):
    (tmp_path / "a.b").mkdir()
    for name in ("walker", "walker.v1", "walker.v1.2", "walker.npz", "a.b/walker.v1", "a.b/walker"):
        (tmp_path / f"{name}.npz").touch()
        (tmp_path / f"{name}-val.npz").touch()
    for name in ("WALKER.NPZ", "WALKER-val.NPZ"):
        (tmp_path / name).touch()
    found = own(str(tmp_path / path))
    assert (found.files, found.store) == ([tmp_path / file], tmp_path / store)
    validation = own(str(tmp_path / path), validation=True)
    stem, end = file[:-4], file[-4:]
    assert validation.files == [tmp_path / f"{stem}-val{end}"]
    assert validation.store == tmp_path / f"{store.removesuffix('.store')}-val.store"


@pytest.mark.parametrize("name", ["walker.v1", "walker.npz.d", "walker"])
def test_a_folder_may_have_dots(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for file in ("b.NPZ", "a.npz", "a-val.npz", "notes.txt"):
        (folder / file).touch()
    found = own(str(folder))
    assert found.files == [folder / "a.npz", folder / "b.NPZ"]
    assert found.store == tmp_path / f"{name}.store"
    assert own(str(folder), validation=True).files == [folder / "a-val.npz"]


def test_the_working_directory_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.npz").touch()
    monkeypatch.chdir(tmp_path / "set")
    assert own(".").store == tmp_path / "set.store"


@pytest.mark.parametrize("end", FORMATS)
def test_other_formats_are_named_as_such(tmp_path, end):
    path = tmp_path / f"walker{end}"
    path.touch()
    for given in (path, tmp_path / "walker", tmp_path / "walker.npz"):
        with pytest.raises(ArgumentError) as caught:
            own(str(given))
        message = str(caught.value)
        assert FORMATS[end] in message and str(given) in message
        assert "expected an npz file or a folder of them; save the arrays" in message
        assert "minari:ID" in message
    assert "does not exist" not in message or path.name in message
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / path.name)
    with pytest.raises(ArgumentError, match="which holds no npz files, but walker"):
        own(str(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "path is '', which cannot be used"),
        (" ", "path is ' ', which cannot be used"),
        ("a\0b", r"path is 'a\\x00b', which cannot be used"),
        ("x" * 5000, "which cannot be used: File name too long"),
        ("~no_such_user/x", "which cannot be used: Could not determine home"),
        ("a\nb", r"path is a\\nb, which does not exist"),
        ("minari:", "path is 'minari:', expected an id such as"),
        ("minari:../../x", "path is 'minari:../../x', expected an id such as"),
        ("minari:/etc/x", "expected an id such as"),
    ],
)
def test_what_can_be_no_path_is_refused(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=words) as caught:
        own(import_minari(path, str(tmp_path)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert list(tmp_path.iterdir()) == []


def test_datasets_of_other_names_do_not_leave_their_folder(tmp_path):
    for dataset in ("../../etc", "play/x", "", "a b"):
        with pytest.raises(ArgumentError, match="expected a kind of dataset"):
            official("scene", dataset, str(tmp_path))


def test_a_store_is_no_dataset(tmp_path):
    ensure_store([write(tmp_path / "a.npz")], tmp_path / "a.store", LAYOUT)
    with pytest.raises(ArgumentError, match="is .*a.store, a store, expected an npz file"):
        own(str(tmp_path / "a.store"))


def test_a_large_number_in_a_name_takes_no_time(tmp_path):
    for number in ("000", "999999999999999"):
        (tmp_path / f"a-{number}.npz").touch()
    with pytest.raises(UserError, match="001, 002, 003, 004, 005, ... are missing"):
        own(str(tmp_path))


# -- one store, one dataset ------------------------------------------------------------------------


def opened(path, store=None):
    source = own(str(path), store and str(store))
    return ensure_store(source.files, source.store, LAYOUT)


def test_two_datasets_never_share_a_store(tmp_path):
    (tmp_path / "b").mkdir()
    write(tmp_path / "walker.npz")
    write(tmp_path / "b" / "walker.npz", **patched("qpos", (3, 1), 0.5))
    mine = opened(tmp_path / "walker", tmp_path / "fast")
    with pytest.raises(ArgumentError) as caught:
        opened(tmp_path / "b" / "walker", tmp_path / "fast")
    message = str(caught.value)
    assert f"which is made from {tmp_path}/walker.npz, other data; choose another store" in message
    assert Store(mine.folder).fingerprint == mine.fingerprint
    # Nor where the file that is asked for is not even there.
    (tmp_path / "b" / "walker.npz").unlink()
    with pytest.raises(ArgumentError, match="choose another store"):
        opened(tmp_path / "b" / "walker", tmp_path / "fast")


def test_a_file_and_a_folder_of_one_name_do_not_share_a_store(tmp_path):
    (tmp_path / "walker").mkdir()
    write(tmp_path / "walker" / "a.npz", **patched("qpos", (3, 1), 0.5))
    write(tmp_path / "walker.npz")
    opened(tmp_path / "walker.npz")
    with pytest.raises(ArgumentError, match="made from .*walker.npz, other data"):
        opened(tmp_path / "walker")
    assert opened(tmp_path / "walker", tmp_path / "fast").folder == tmp_path / "fast/walker.store"


def test_a_copied_dataset_brings_its_store(tmp_path):
    """Also without its npz files, while the original is still there."""
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "walker.npz")
    before = opened(tmp_path / "a" / "walker")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    inode = (tmp_path / "b" / "walker.store").stat().st_ino
    assert opened(tmp_path / "b" / "walker").fingerprint == before.fingerprint
    (tmp_path / "b" / "walker.npz").unlink()
    opened(tmp_path / "b" / "walker")
    assert (tmp_path / "b" / "walker.store").stat().st_ino == inode


# -- the fingerprint -------------------------------------------------------------------------------


def test_a_fingerprint_is_of_the_data_alone(tmp_path):
    one = opened(write(tmp_path / "walker.npz")).fingerprint
    assert len(one) == 16
    again = opened(write(tmp_path / "runner.v1.npz")).fingerprint
    shutil.rmtree(tmp_path / "walker.store")
    assert opened(tmp_path / "walker").fingerprint == again == one
    with np.load(tmp_path / "walker.npz") as file:
        arrays = {key: file[key] for key in file.files}
    (tmp_path / "shards").mkdir()
    for number, cut in enumerate((slice(0, 100), slice(100, 400))):
        np.savez(tmp_path / "shards" / f"{number}.npz", **{k: v[cut] for k, v in arrays.items()})
    assert opened(tmp_path / "shards").fingerprint == one
    assert opened(write(tmp_path / "x.npz", **patched("qpos", (3, 1), 0.5))).fingerprint != one
