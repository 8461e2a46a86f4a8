"""Datasets from the Hugging Face hub, whose part a server on loopback takes."""

import os
import subprocess
import sys
import time

import pytest

from qam_lightning.data import download, hub, source
from qam_lightning.data.checksums import RECORD
from qam_lightning.util.errors import UserError
from tests.conftest import serving
from tests.data.test_npz import LAYOUT, patched, write
from tests.hub_server import Hub, Repository

TRAIN = "scene-play-v0.npz"


@pytest.fixture
def contents(tmp_path_factory):
    return write(tmp_path_factory.mktemp("served") / "a.npz").read_bytes()


@pytest.fixture
def server(contents, monkeypatch):
    with serving(Hub()) as server:
        server.serve_client(monkeypatch)
        hold(server, {TRAIN: contents})
        yield server


def hold(server, files):
    """Let the only repository hold these files, in two revisions."""
    server.repositories = {"me/sets": Repository(branches={"main": files, "v1.0": files})}


def fetch(urls, folder, env="scene", dataset="play"):
    wanted = source.official(env, dataset, str(folder), None, urls)
    download.fetch(wanted, LAYOUT, env, dataset)
    return wanted.files


def test_a_file_of_a_repository_is_downloaded_checked_and_recorded(server, contents, tmp_path):
    (path,) = fetch("hf://me/sets", tmp_path)
    assert path.read_bytes() == contents
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / RECORD]
    assert any("/resolve/main/" in request for _, request in server.requests)


def test_a_revision_is_asked_for(server, tmp_path):
    fetch("hf://me/sets@v1.0", tmp_path)
    paths = [path for _, path in server.requests]
    assert all("/v1.0" in path for path in paths)


@pytest.mark.parametrize(
    ("env", "dataset", "folder"),
    [
        ("puzzle-4x4", "play", ""),
        ("puzzle-4x4", "play", "puzzle-4x4-play-100m-v0/"),
        ("cube-triple", "play", "large/cube/100m/"),
        ("antmaze-giant", "navigate", ""),
    ],
)
def test_shards_are_found_in_another_structure_of_folders(
    server, contents, tmp_path, monkeypatch, env, dataset, folder
):
    monkeypatch.setattr(source, "SUBSET", 2)
    names = [f"{folder}{env}-{dataset}-v0-{i:03d}.npz" for i in range(4)]
    hold(server, dict.fromkeys(["README.md", *names], contents))
    paths = fetch("hf://me/sets", tmp_path, env, f"{dataset}-10m")
    assert [path.read_bytes() for path in paths] == [contents] * 2
    assert {path.parent.name for path in paths} == {f"{env}-{dataset}-100m-v0"}


FILES = ["a/x.npz", "b/x.npz", "b/y.npz", "set/z.npz", "z.npz", "README.md"]


@pytest.mark.parametrize(
    ("folder", "wanted", "found"),
    [
        ("", "y.npz", "b/y.npz"),
        ("b", "x.npz", "b/x.npz"),
        ("", "set/z.npz", "set/z.npz"),
        ("", "z.npz", "z.npz"),
        ("", "other/y.npz", "b/y.npz"),
    ],
)
def test_which_file_is_meant(folder, wanted, found):
    assert hub.find(FILES, folder, wanted) == found


@pytest.mark.parametrize(
    ("folder", "wanted", "words"),
    [
        ("", "x.npz", "found a/x.npz, b/x.npz, expected one x.npz; add the right folder"),
        ("b", "z.npz", "found b/x.npz, b/y.npz, expected one z.npz"),
        ("", "q.npz", "found a/x.npz, b/x.npz, b/y.npz, set/z.npz, z.npz, expected one q.npz"),
        ("nowhere", "x.npz", "and 1 more, expected one x.npz"),
    ],
)
def test_a_repository_without_the_file_is_refused_with_what_it_holds(folder, wanted, words):
    with pytest.raises(UserError) as caught:
        hub.find(FILES, folder, wanted)
    assert words in str(caught.value)


def test_a_repository_without_the_dataset_is_refused_in_one_line(server, contents, tmp_path):
    hold(server, {"cube.npz": contents, "README.md": b"x"})
    with pytest.raises(UserError) as caught:
        fetch("hf://me/sets", tmp_path)
    expected = f"cannot download hf://me/sets/{TRAIN}: found cube.npz, expected one {TRAIN}; choose"
    assert str(caught.value).startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_a_repository_with_other_contents_is_refused_and_not_kept(server, tmp_path):
    hold(server, {TRAIN: b"<html>moved</html>"})
    with pytest.raises(UserError, match=f"^{TRAIN} from hf://me/sets is not usable: .*not an npz"):
        fetch("hf://me/sets", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_repository_is_told_and_the_next_mirror_asked(
    server, contents, tmp_path, capsys
):
    (path,) = fetch(["hf://me/nothing", "hf://me/sets"], tmp_path)
    assert path.read_bytes() == contents
    told = [line for line in capsys.readouterr().err.splitlines() if "trying hf://me/sets" in line]
    assert len(told) == 1 and told[0].startswith(f"cannot download hf://me/nothing/{TRAIN}: ")


def test_a_hub_that_does_not_answer_is_explained(server, tmp_path, monkeypatch):
    constants = sys.modules["huggingface_hub.constants"]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client tries again and again
    with pytest.raises(UserError, match=f"^cannot download hf://me/sets/{TRAIN}: .*refused"):
        fetch("hf://me/sets", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_repository_whose_checksum_differs_is_refused(server, contents, tmp_path):
    fetch("hf://me/sets", tmp_path)
    (tmp_path / TRAIN).unlink()
    other = write(tmp_path / "other.npz", **patched("qpos", (3, 1), 0.5))
    hold(server, {TRAIN: other.read_bytes()})
    with pytest.raises(UserError, match="is not usable: sha256 is .*, expected "):
        fetch("hf://me/sets", tmp_path)
    assert not (tmp_path / TRAIN).exists()


def test_a_transfer_that_breaks_is_repeated_by_the_client(server, contents, tmp_path):
    server.drops = 1
    (path,) = fetch("hf://me/sets", tmp_path)
    assert path.read_bytes() == contents
    assert [method for method, path in server.requests if TRAIN in path].count("GET") == 2


def test_without_the_client_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs the package huggingface_hub: pip install 'qam_"):
        fetch("hf://me/sets", tmp_path)


@pytest.mark.slow
def test_the_client_is_imported_only_for_the_hub_and_follows_its_variable(
    server, contents, tmp_path
):
    """In a process of its own, whose client reads HF_ENDPOINT."""
    code = (
        "import sys\n"
        "from tests.data.test_hub import fetch\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "fetch('hf://me/sets', sys.argv[1])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")},
        check=True,
    )
    assert (tmp_path / TRAIN).read_bytes() == contents
