"""Dataset files: bad ones are explained and left alone, missing ones are downloaded."""

import http.server
import re
import threading

import numpy as np
import pytest

from qam_lightning.data import files
from qam_lightning.errors import UserError

SIZES = {"observations": 3, "actions": 2, "qpos": 4, "button_states": 2}


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
        files.load_arrays(path, SIZES)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message
    assert path.read_bytes() == before


def test_a_good_file_is_read_as_it_is(tmp_path):
    arrays = files.load_arrays(write(tmp_path / "a.npz"), SIZES)
    assert arrays.keys() == SIZES.keys() | {"terminals"}
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, good_arrays()[key])
        assert array.dtype == good_arrays()[key].dtype


def test_other_number_types_are_converted(tmp_path):
    arrays = good_arrays()
    path = write(
        tmp_path / "a.npz",
        observations=arrays["observations"].astype(np.float64),
        terminals=arrays["terminals"].astype(np.float32),
        button_states=arrays["button_states"].astype(np.uint8),
    )
    for key, array in files.load_arrays(path, SIZES).items():
        np.testing.assert_array_equal(array, arrays[key])
        assert array.dtype == arrays[key].dtype


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
        (patched("actions", (5, 1), -1.5), ["actions", "1.5", "row 5"]),
        ({"observations": np.zeros((400, 3), "<U4")}, ["observations", "<U4"]),
        ({"observations": np.full((400, 3), None)}, ["cannot be read", "allow_pickle=False"]),
        ({"button_states": np.zeros((400, 2))}, ["button_states", "float64", "integers"]),
        ({"terminals": np.zeros(400, bool)}, ["terminals", "no trajectory"]),
        ({"terminals": np.full(400, 2)}, ["terminals", "0 and 1"]),
        ({"terminals": np.zeros((400, 1), bool)}, ["terminals", "(400, 1)"]),
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


def test_something_else_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("<html>Not found</html>")
    assert_refused(path, ["not an npz"])
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").rename(path)
    assert_refused(path, ["not an npz"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "a.npz")) + " does not exist"):
        files.load_arrays(tmp_path / "a.npz", SIZES)


class Server(http.server.ThreadingHTTPServer):
    """Serves a dictionary of files on loopback, on request badly."""

    def __init__(self, contents):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = contents
        self.requests = []  # (path, Range header or None)
        self.drops = 0  # how many responses to break off in the middle
        self.ranges = True  # whether to honour Range headers

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
        self.send_header("Content-Length", str(len(rest)))
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


def fetch(server, folder):
    return files.fetch("scene", "play", str(folder), server.url, SIZES)


def refused(server, folder):
    with pytest.raises(UserError) as caught:
        fetch(server, folder)
    message = str(caught.value)
    assert "\n" not in message
    assert server.url in message
    assert "--data.base_url" in message
    assert "python train.py generate --env scene --dataset play" in message
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


def test_existing_files_need_no_server(tmp_path):
    for name in ("antmaze-large-navigate-v0.npz", "antmaze-large-navigate-v0-val.npz"):
        (tmp_path / name).write_bytes(b"anything")
    files.fetch("antmaze-large", "navigate", str(tmp_path), "http://127.0.0.1:9", SIZES)


def test_no_collection_is_offered_where_there_is_none(tmp_path):
    with pytest.raises(UserError, match="put the file into") as caught:
        files.fetch("antmaze-large", "navigate", str(tmp_path), "http://127.0.0.1:9", SIZES)
    assert "generate" not in str(caught.value)


@pytest.mark.parametrize("url", ["not a url", "", "ftp://127.0.0.1:9/x"])
def test_a_senseless_base_url_is_explained(tmp_path, url):
    with pytest.raises(UserError, match="cannot download"):
        files.fetch("scene", "play", str(tmp_path), url, SIZES)


def test_folders_of_shards_are_refused(tmp_path):
    with pytest.raises(UserError, match="play-100m.*not supported yet"):
        files.fetch("puzzle-4x4", "play-100m", str(tmp_path), "http://127.0.0.1:9", SIZES)
