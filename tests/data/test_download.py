"""Downloading, from a real server on loopback: resumed, checked, and explained when it fails."""

import errno
import hashlib
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from qam_lightning.cli import main
from qam_lightning.data import download, source
from qam_lightning.data.checksums import RECORD, changed_files
from qam_lightning.util.errors import UserError
from tests.conftest import serving
from tests.data.test_npz import LAYOUT, patched, write


class Server(http.server.ThreadingHTTPServer):
    """Serves a dictionary of files on loopback, on request badly."""

    def __init__(self, contents):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = contents
        self.requests = []  # (path, Range header or None)
        self.drops = 0  # how many responses to break off in the middle
        self.ranges = True  # whether to honour Range headers
        self.answer = ()  # status and words of every answer, instead of a file
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
        if self.server.answer:
            self.send_response(*self.server.answer)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
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
    with serving(Server(contents)) as server:
        yield server


def fetch(server, folder, env="scene", dataset="play"):
    """Fetch a dataset's training and validation files, from a server or from URLs."""
    urls, found = getattr(server, "url", server), []
    for validation in (False, True):
        wanted = source.official(env, dataset, str(folder), None, urls, validation)
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
    assert sorted(folder.iterdir()) == sorted([*paths, folder / RECORD])


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


def partial_of(server, folder):
    return download.partial_of(server.url, folder / "scene-play-v0.npz")


def test_a_later_run_continues_the_partial_file(server, contents, tmp_path):
    partial = partial_of(server, tmp_path)
    partial.write_bytes(contents[TRAIN][:1000])
    assert fetch(server, tmp_path)[0].read_bytes() == contents[TRAIN]
    assert server.requests[0] == (TRAIN, "bytes=1000-")
    assert not partial.exists()


def test_a_complete_partial_file_is_enough(server, contents, tmp_path):
    partial_of(server, tmp_path).write_bytes(contents[TRAIN])
    assert fetch(server, tmp_path)[0].read_bytes() == contents[TRAIN]


def test_a_partial_file_longer_than_the_real_one_is_dropped(server, contents, tmp_path):
    partial_of(server, tmp_path).write_bytes(contents[TRAIN] + b"more")
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
    partial_of(server, tmp_path).write_bytes(b"x" * 1000)
    refused(server, tmp_path)
    assert fetch(server, tmp_path)[0].read_bytes() == contents[TRAIN]


def test_a_missing_file_on_the_server_is_explained(server, tmp_path):
    del server.contents[VAL]
    assert "404" in refused(server, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scene-play-v0.npz", RECORD}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((416,), "HTTP 416 Requested Range Not Satisfiable"),
        ((302,), "HTTP 302 The HTTP server returned a redirect error that would lead to"),
        ((404, "\x1b[31mGone"), "HTTP 404 \\x1b[31mGone;"),
        ((599, ""), "HTTP 599;"),
    ],
)
def test_an_odd_answer_is_told_in_one_line(server, mirror, contents, tmp_path, answer, told):
    server.answer = answer
    assert told in refused(server, tmp_path)
    partial_of(server, tmp_path).write_bytes(contents[TRAIN][:100])
    assert told in refused(server, tmp_path)
    fetch([server.url, mirror.url], tmp_path)
    assert (tmp_path / "scene-play-v0.npz").read_bytes() == contents[TRAIN]


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
    assert len(list(tmp_path.iterdir())) == 3


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


@pytest.mark.parametrize(
    ("urls", "found"),
    [
        ("not a url", "'not a url'"),
        ("", "''"),
        ([], "empty"),
        ("gopher://127.0.0.1/x", "'gopher://127.0.0.1/x'"),
        (["http://127.0.0.1:9", "/home/me/data"], "'/home/me/data'"),
        ("http://127.0.0.1:9,s3://bucket", "'s3://bucket'"),
        (["http://127.0.0.1:9,s3://bucket"], "'s3://bucket'"),
        ("http://127.0.0.1:9/a b", "'http://127.0.0.1:9/a b'"),
        ("http://me:secret@127.0.0.1:9/x", "'http://…@127.0.0.1:9/x', which names a user"),
        ("hf://owner", "'hf://owner'"),
        ("hf://", "'hf://'"),
        ("hf://owner/name@", "'hf://owner/name@'"),
    ],
)
def test_a_senseless_base_url_is_explained(tmp_path, urls, found):
    with pytest.raises(UserError) as caught:
        fetch(urls, tmp_path)
    assert f"base_url is {found}, expected a URL with http, https, ftp or file, or hf://" in str(
        caught.value
    )


def test_the_hosts_can_be_set_by_environment_variable(server, tmp_path, monkeypatch):
    monkeypatch.setenv(source.URL_VARIABLE, f"{server.url}, https://b/c,d/")
    assert source.official("scene", "play", "x").urls == (server.url, "https://b/c,d")
    assert source.official("scene", "play", "x", base_url="http://other/").urls == ("http://other",)
    several = source.official(
        "scene", "play", "x", base_url=[" http://a , file:///my data", "ftp://c"]
    )
    assert several.urls == ("http://a", "file:///my data", "ftp://c")
    monkeypatch.setenv(source.URL_VARIABLE, "nonsense")
    with pytest.raises(UserError, match="^QAM_DATA_URL is 'nonsense', expected a URL"):
        source.official("scene", "play", "x")
    monkeypatch.delenv(source.URL_VARIABLE)
    assert "ogbench" in source.official("scene", "play", "x").urls[0]


# -- several mirrors -------------------------------------------------------------------------------


@pytest.fixture
def mirror(contents):
    """A second server with the same files."""
    with serving(Server(dict(contents))) as server:
        yield server


def test_the_next_mirror_is_asked_where_one_does_not_answer(
    server, mirror, contents, tmp_path, capsys
):
    server.contents = {}
    paths = fetch([NOWHERE.url, server.url, mirror.url], tmp_path)
    assert [path.read_bytes() for path in paths] == list(contents.values())
    first, second, *_ = capsys.readouterr().err.splitlines()
    train = TRAIN.removeprefix("/sets/")
    assert first.startswith(f"cannot download {NOWHERE.url}/{train}: ")
    assert first.endswith(f"refused; trying {server.url}")
    assert (
        second == f"cannot download {server.url}/{train}: HTTP 404 Not Found; trying {mirror.url}"
    )


def test_a_folder_of_this_machine_is_a_mirror_too(contents, tmp_path):
    for name, content in contents.items():
        path = tmp_path / "mirror" / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    urls = f"file://{tmp_path}/nowhere, file://{tmp_path}/mirror/sets"
    paths = fetch(urls, tmp_path / "data")
    assert [path.read_bytes() for path in paths] == list(contents.values())


def test_the_mirror_that_answered_is_asked_first_for_the_next_file(
    server, mirror, contents, tmp_path, monkeypatch
):
    server.contents, mirror.contents = {}, sharded(contents, monkeypatch)
    fetch([server.url, mirror.url], tmp_path, "puzzle-4x4", "play-100m")
    assert len(server.requests) == 4  # a training and a validation file, under two names each


def test_where_all_mirrors_fail_the_error_names_each(server, contents, tmp_path):
    server.contents = {TRAIN: b"<html>moved</html>"}
    with pytest.raises(UserError) as caught:
        fetch([NOWHERE.url, server.url, f"{server.url}/old"], tmp_path)
    message = str(caught.value)
    parts = message.split("; ")
    train = TRAIN.removeprefix("/sets/")
    assert "\n" not in message
    assert parts[0].startswith(f"cannot download {NOWHERE.url}/{train}: ")
    unusable = f"{train} from {server.url} is not usable: cannot be read: it is not an npz file"
    assert parts[1].startswith(unusable)
    assert f"cannot download {server.url}/old/{train}: HTTP 404 Not Found" in parts
    assert parts[-1].startswith("choose another base_url")


def test_bytes_of_two_mirrors_are_never_mixed(server, mirror, contents, tmp_path):
    """The first one stops in the middle, twice; each time the second starts anew."""
    other = write(tmp_path / "other.npz", **patched("qpos", (3, 1), 0.5)).read_bytes()
    folder = tmp_path / "sets"
    folder.mkdir()
    partial_of(server, folder).write_bytes(other[:1000])
    server.contents = {}
    path = fetch([server.url, mirror.url], folder)[0]
    assert path.read_bytes() == contents[TRAIN]
    assert server.requests[0] == (TRAIN, "bytes=1000-")
    assert mirror.requests[0] == (TRAIN, None)
    assert not list(folder.glob("*.part"))


def test_a_mirrors_own_part_is_continued_when_it_answers_again(server, mirror, contents, tmp_path):
    partial_of(server, tmp_path).write_bytes(contents[TRAIN][:1000])
    with pytest.raises(UserError):
        fetch([NOWHERE.url], tmp_path)
    assert fetch([NOWHERE.url, server.url], tmp_path)[0].read_bytes() == contents[TRAIN]
    assert server.requests[0] == (TRAIN, "bytes=1000-")


def test_checksums_are_recorded_once_and_compared_after(server, mirror, contents, tmp_path, capsys):
    paths = fetch(server, tmp_path)
    record = json.loads((tmp_path / RECORD).read_text())
    good, digest = contents[TRAIN], hashlib.sha256(contents[TRAIN]).hexdigest()
    assert record == {path.name: digest for path in paths}
    paths[0].unlink()
    other = write(tmp_path / "other.npz", **patched("qpos", (3, 1), 0.5)).read_bytes()
    server.contents[TRAIN] = other  # sound data, but others
    capsys.readouterr()
    fetch([server.url, mirror.url], tmp_path)
    assert paths[0].read_bytes() == good
    told = capsys.readouterr().err.splitlines()[0]
    assert "is not usable: sha256 is " in told and told.endswith(f"; trying {mirror.url}")
    assert f"expected {digest[:12]}… as in {tmp_path / RECORD}" in told
    paths[0].unlink()
    assert "delete that line" in refused(server, tmp_path)
    assert json.loads((tmp_path / RECORD).read_text()) == record
    (tmp_path / RECORD).unlink()
    assert fetch(server, tmp_path)[0].read_bytes() == other


def test_a_damaged_record_is_told_before_anything_is_downloaded(server, tmp_path):
    (tmp_path / RECORD).write_text('{"scene-play-v0.npz": "abc"}')
    with pytest.raises(UserError, match=f"{RECORD}: .*64 hexadecimal digits; correct it, or"):
        fetch(server, tmp_path)
    assert server.requests == []


@pytest.mark.parametrize("spelled", [str.upper, str.lower])
def test_a_prescribed_checksum_may_be_in_either_case(server, contents, tmp_path, spelled):
    digest = hashlib.sha256(contents[TRAIN]).hexdigest()
    record = {"scene-play-v0.npz": spelled(digest), "scene-play-v0-val.npz": spelled("a" * 64)}
    (tmp_path / RECORD).write_text(json.dumps(record))
    assert f"expected {'a' * 12}… as in {tmp_path / RECORD}" in refused(server, tmp_path)
    assert (tmp_path / "scene-play-v0.npz").read_bytes() == contents[TRAIN]
    assert not (tmp_path / "scene-play-v0-val.npz").exists()


def test_a_file_that_changed_after_its_download_is_found(server, tmp_path):
    paths = fetch(server, tmp_path)
    assert changed_files(paths) == []
    write(paths[1], **patched("qpos", (3, 1), 0.5))
    (found,) = changed_files([*paths, tmp_path / "absent.npz"])
    assert found.startswith(f"{paths[1]}: sha256 is ")


# -- sets of shards --------------------------------------------------------------------------------


SHARD = "puzzle-4x4-play-v0-000.npz"


def sharded(contents, monkeypatch, count=4, env="puzzle-4x4"):
    monkeypatch.setattr(source, "SHARDS", count)
    names = [f"{env}-play-v0-{i:03d}{tail}.npz" for tail in ("", "-val") for i in range(count)]
    return {f"/sets/{env}-play-100m-v0/{name}": contents[TRAIN] for name in names}


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


@pytest.mark.parametrize("env", ["puzzle-4x4", "cube-triple"])
def test_the_first_shards_are_a_dataset_which_shares_the_files(
    server, contents, tmp_path, monkeypatch, env
):
    server.contents = sharded(contents, monkeypatch, env=env)
    monkeypatch.setattr(source, "SUBSET", 2)
    few = fetch(server, tmp_path, env, "play-10m")
    assert [path.name for path in few[:2]] == [f"{env}-play-v0-00{i}.npz" for i in range(2)]
    server.requests.clear()
    many = fetch(server, tmp_path, env, "play-100m")
    assert set(few) < set(many) and len(server.requests) == 4
    stores = [source.official(env, f"play-{n}", str(tmp_path)).store.name for n in ("10m", "100m")]
    assert stores == [f"{env}-play-10m-v0.store", f"{env}-play-100m-v0.store"]


def test_a_host_may_have_the_shards_without_their_folder(server, contents, tmp_path, monkeypatch):
    for path, content in sharded(contents, monkeypatch, 2).items():
        server.contents[path.replace("puzzle-4x4-play-100m-v0/", "")] = content
    server.drops = 1
    paths = fetch(server, tmp_path, "puzzle-4x4", "play-100m")
    assert {path.parent for path in paths} == {tmp_path / "puzzle-4x4-play-100m-v0"}
    assert all(path.read_bytes() == contents[TRAIN] for path in paths)
    asked = [path.removeprefix("/sets/") for path, _ in server.requests[:2]]
    assert asked == [f"puzzle-4x4-play-100m-v0/{SHARD}", SHARD]
    assert server.requests[2][1] == f"bytes={len(contents[TRAIN]) // 2}-"


@pytest.mark.parametrize("inside", ["", "puzzle-4x4-play-100m-v0", "100 million, #1"])
def test_a_folder_may_have_the_shards_in_any_subfolder(contents, tmp_path, monkeypatch, inside):
    mirror = tmp_path / "a mirror"
    for path, content in sharded(contents, monkeypatch, 2).items():
        target = mirror / inside / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    paths = fetch(f"file://{mirror}", tmp_path / "data", "puzzle-4x4", "play-100m")
    assert all(path.read_bytes() == contents[TRAIN] for path in paths)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("", f"found a/{SHARD}, b/{SHARD}, expected one {SHARD}; add the right folder to the URL"),
        ("/a/..", f"found a/{SHARD}, b/{SHARD}, expected one {SHARD}; add the right folder"),
        ("/c", f"found puzzle-4x4-play-v0-001.npz, expected one {SHARD}; choose another base_url"),
        ("/d", "the folder cannot be read: [Errno 2] No such file or directory: "),
        ("/README.md", "the folder cannot be read: [Errno 20] Not a directory: "),
    ],
)
def test_a_folder_without_the_file_is_refused_with_what_it_holds(tmp_path, place, told):
    mirror = tmp_path / "mirror"
    for path in (f"a/{SHARD}", f"b/{SHARD}", f"c/{SHARD.replace('000', '001')}", "README.md"):
        (mirror / path).parent.mkdir(parents=True, exist_ok=True)
        (mirror / path).write_bytes(b"")
    url = f"file://{mirror}{place}"
    with pytest.raises(UserError) as caught:
        fetch(url, tmp_path / "data", "puzzle-4x4", "play-100m")
    expected = f"cannot download {url}/puzzle-4x4-play-100m-v0/{SHARD}: {told}"
    assert str(caught.value).startswith(expected)
    assert not list((tmp_path / "data").rglob("*.*"))


def test_a_host_without_the_file_is_told_under_both_names(server, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch(server, tmp_path, "puzzle-4x4", "play-100m")
    told = f"{server.url}/puzzle-4x4-play-100m-v0/{SHARD}: HTTP 404 Not Found, nor"
    expected = f"cannot download {told} {server.url}/{SHARD}: HTTP 404 Not Found; choose another"
    assert str(caught.value).startswith(expected)


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
