"""Downloading, from a real server on loopback: resumed, checked, and explained when it fails."""

import errno
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest

from qam_lightning.cli import main
from qam_lightning.data import download, source
from qam_lightning.util.errors import UserError
from tests.data.test_npz import LAYOUT, patched, write


class Server(http.server.ThreadingHTTPServer):
    """Serves a dictionary of files on loopback, on request badly."""

    def __init__(self, contents):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = contents
        self.requests = []  # (path, Range header or None)
        self.drops = 0  # how many responses to break off in the middle
        self.ranges = True  # whether to honour Range headers
        self.lie = 0  # how much more to announce than is sent

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/sets"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):  # noqa: N802
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        content = self.server.contents.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if wanted and self.server.ranges:
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            start = 0
            self.send_response(200)
        rest = content[start:]
        self.send_header("Content-Length", str(len(rest) + self.server.lie))
        self.end_headers()
        if self.server.drops:
            self.server.drops -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


TRAIN, VAL = "/sets/scene-play-v0.npz", "/sets/scene-play-v0-val.npz"


@pytest.fixture
def contents(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("served") / "a.npz")
    return {TRAIN: path.read_bytes(), VAL: path.read_bytes()}


@pytest.fixture
def server(contents):
    with Server(contents) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, folder, env="scene", dataset="play"):
    """Fetch a dataset's training and validation files."""
    found = []
    for validation in (False, True):
        wanted = source.official(env, dataset, str(folder), None, server.url, validation)
        download.fetch(wanted, LAYOUT, env, dataset)
        found += wanted.files
    return found


def refused(server, folder):
    with pytest.raises(UserError) as caught:
        fetch(server, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert server.url in message
    assert "choose another base_url" in message
    assert "`qam generate --env scene --dataset play`" in message
    return message


def test_both_files_are_downloaded_once(server, contents, tmp_path):
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        paths = fetch(server, folder)
    assert [path.read_bytes() for path in paths] == list(contents.values())
    assert server.requests == [(TRAIN, None), (VAL, None)]
    assert sorted(folder.iterdir()) == sorted(paths)


def test_an_interrupted_transfer_goes_on_where_it_stopped(server, contents, tmp_path):
    server.drops = 3
    paths = fetch(server, tmp_path)
    assert paths[0].read_bytes() == contents[TRAIN]
    size = len(contents[TRAIN])
    starts = [None if r is None else int(r[6:-1]) for path, r in server.requests if path == TRAIN]
    assert starts[0] is None
    assert len(starts) == 4
    assert starts[1] == size // 2
    assert starts[1:] == sorted(starts[1:])


class Full:
    """A disk that takes the beginning of a file."""

    def __init__(self, file, space):
        self._file, self._space = file, space

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, block):
        taken = self._file.write(block[: self._space])
        self._space -= taken
        if taken < len(block):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_is_explained_and_the_transfer_goes_on_later(
    server, contents, tmp_path, monkeypatch
):
    transfer = download._transfer
    monkeypatch.setattr(download, "_transfer", lambda u, f, n: transfer(u, Full(f, 3000), n))
    with pytest.raises(UserError) as caught:
        fetch(server, tmp_path)
    train = tmp_path / "scene-play-v0.npz"
    assert f"{train}, which cannot be written: No space left on device; free some" in str(
        caught.value
    )
    assert str(caught.value).endswith("choose another directory")
    monkeypatch.undo()
    server.requests.clear()
    assert fetch(server, tmp_path)[0].read_bytes() == contents[TRAIN]
    assert server.requests[0] == (TRAIN, "bytes=3000-")


def test_a_folder_that_cannot_be_written_is_explained(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: .*choose another directory"):
        fetch(server, tmp_path / "file")
    assert server.requests == []


def test_a_later_run_continues_the_partial_file(server, contents, tmp_path):
    partial = tmp_path / "scene-play-v0.npz.part"
    partial.write_bytes(contents[TRAIN][:1000])
    assert fetch(server, tmp_path)[0].read_bytes() == contents[TRAIN]
    assert server.requests[0] == (TRAIN, "bytes=1000-")
    assert not partial.exists()


def test_a_complete_partial_file_is_enough(server, contents, tmp_path):
    (tmp_path / "scene-play-v0.npz.part").write_bytes(contents[TRAIN])
    assert fetch(server, tmp_path)[0].read_bytes() == contents[TRAIN]


def test_a_partial_file_longer_than_the_real_one_is_dropped(server, contents, tmp_path):
    (tmp_path / "scene-play-v0.npz.part").write_bytes(contents[TRAIN] + b"more")
    assert fetch(server, tmp_path)[0].read_bytes() == contents[TRAIN]


def test_a_server_without_ranges_starts_again(server, contents, tmp_path):
    server.ranges = False
    server.drops = 1
    assert fetch(server, tmp_path)[0].read_bytes() == contents[TRAIN]


def test_a_download_that_is_not_the_dataset_is_refused_and_not_kept(server, tmp_path):
    server.contents[TRAIN] = b"<html>moved</html>"
    assert "not an npz" in refused(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qpos": None}, "no array 'qpos'"),
        (
            {"actions": np.zeros((400, 7), np.float32)},
            "actions has shape (400, 7), expected",
        ),
        ({"observations": np.zeros((400, 3), "<U4")}, "observations holds <U4"),
        (patched("observations", (17, 1), np.nan), "NaN"),
    ],
)
def test_a_download_of_wrong_contents_is_refused_and_not_kept(server, tmp_path, changes, words):
    server.contents[TRAIN] = write(tmp_path / "a.npz", **changes).read_bytes()
    assert words in refused(server, tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []


def test_a_damaged_resumption_is_refused_and_the_next_run_starts_afresh(server, contents, tmp_path):
    (tmp_path / "scene-play-v0.npz.part").write_bytes(b"x" * 1000)
    refused(server, tmp_path)
    assert fetch(server, tmp_path)[0].read_bytes() == contents[TRAIN]


def test_a_missing_file_on_the_server_is_explained(server, tmp_path):
    del server.contents[VAL]
    assert "404" in refused(server, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scene-play-v0.npz"]


def test_an_unreachable_host_is_explained(contents, tmp_path):
    with Server(contents) as closed:
        pass
    assert "refused" in refused(closed, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_started_at_once_download_once(server, contents, tmp_path):
    threads = [threading.Thread(target=fetch, args=(server, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(server.requests) == sorted([(TRAIN, None), (VAL, None)])
    assert (tmp_path / "scene-play-v0.npz").read_bytes() == contents[TRAIN]
    assert len(list(tmp_path.iterdir())) == 2


class Address:
    """Stands for a server that nobody runs."""

    def __init__(self, url):
        self.url = url


NOWHERE = Address("http://127.0.0.1:9/sets")


def test_existing_files_need_no_server(tmp_path):
    for name in ("antmaze-large-navigate-v0.npz", "antmaze-large-navigate-v0-val.npz"):
        (tmp_path / name).write_bytes(b"anything")
    fetch(NOWHERE, tmp_path, "antmaze-large", "navigate")


def test_a_store_needs_no_files(tmp_path):
    for name in ("scene-play-v0.store", "scene-play-v0-val.store"):
        (tmp_path / name).mkdir()
    fetch(NOWHERE, tmp_path)


def test_no_collection_is_offered_where_there_is_none(tmp_path):
    with pytest.raises(UserError, match="put the file into") as caught:
        fetch(NOWHERE, tmp_path, "antmaze-large", "navigate")
    assert "generate" not in str(caught.value)


@pytest.mark.parametrize("url", ["not a url", "", "ftp://127.0.0.1:9/x"])
def test_a_senseless_base_url_is_explained(tmp_path, url):
    with pytest.raises(UserError, match="cannot download"):
        fetch(Address(url), tmp_path)


def test_the_host_can_be_set_by_environment_variable(server, contents, tmp_path, monkeypatch):
    monkeypatch.setenv(source.URL_VARIABLE, server.url)
    assert source.official("scene", "play", "x").url == server.url
    assert source.official("scene", "play", "x", base_url="http://other/").url == "http://other"
    monkeypatch.delenv(source.URL_VARIABLE)
    assert "ogbench" in source.official("scene", "play", "x").url


def sharded(contents, monkeypatch, count=4):
    monkeypatch.setattr(source, "SHARDS", count)
    names = [f"puzzle-4x4-play-v0-{i:03d}{tail}.npz" for tail in ("", "-val") for i in range(count)]
    return {f"/sets/puzzle-4x4-play-100m-v0/{name}": contents[TRAIN] for name in names}


def test_a_folder_of_shards_is_downloaded_through_interruptions(
    server, contents, tmp_path, monkeypatch
):
    server.contents = sharded(contents, monkeypatch)
    server.drops = 5
    paths = fetch(server, tmp_path, "puzzle-4x4", "play-100m")
    assert len(paths) == 8
    assert {path.parent for path in paths} == {tmp_path / "puzzle-4x4-play-100m-v0"}
    assert all(path.read_bytes() == contents[TRAIN] for path in paths)
    assert len(server.requests) == 8 + 5


def test_a_missing_shard_is_explained_and_the_next_run_fetches_only_the_rest(
    server, contents, tmp_path, monkeypatch
):
    server.contents = sharded(contents, monkeypatch)
    lost = "/sets/puzzle-4x4-play-100m-v0/puzzle-4x4-play-v0-002.npz"
    kept = server.contents.pop(lost)
    with pytest.raises(UserError, match=r"v0-002.npz: HTTP 404 .*; choose another base_url"):
        fetch(server, tmp_path, "puzzle-4x4", "play-100m")
    server.contents[lost] = kept
    server.requests.clear()
    fetch(server, tmp_path, "puzzle-4x4", "play-100m")
    assert [path for path, _ in server.requests][:2] == [lost, lost.replace("002", "003")]


def test_a_size_stated_too_small_leaves_no_cut_file(server, contents, tmp_path):
    server.lie = -100
    assert "beginning" in refused(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_size_stated_too_large_is_asked_about_again(server, contents, tmp_path):
    server.lie = 100
    assert fetch(server, tmp_path)[0].read_bytes() == contents[TRAIN]
    end = f"bytes={len(contents[TRAIN])}-"
    assert [wanted for _, wanted in server.requests] == [None, end, None, end]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder nobody can write to")
@pytest.mark.parametrize("home", ["/proc/nobody", "/dev/null"])
def test_an_unwritable_home_is_said_to_be_so(monkeypatch, capsys, home, tmp_path):
    """Through the front door; nothing is asked of the network."""
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(download, "_transfer", None)
    for command in (["data", "info", "--env=pointmaze-medium", "--dataset=navigate"],
                    ["fit", "--domain=pointmaze-medium", f"--run_dir={tmp_path}/r"]):  # fmt: skip
        assert main(command) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: data.directory leads to {home}/.ogbench/data/")
        assert "which cannot be written: " in message
        assert message.endswith("; choose another directory\n") and message.count("\n") == 1
    assert main(["generate", "--env=pointmaze-medium", "--dataset=navigate", "--episodes=1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: directory leads to {home}/.ogbench/data/pointmaze-medium")
    assert "which cannot be written: " in message
