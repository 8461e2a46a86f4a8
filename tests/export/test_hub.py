"""Exported folders on the Hugging Face hub, whose part a server on loopback takes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qam_lightning import UserError, load_clone, load_policy
from qam_lightning.cli import main
from qam_lightning.cli.evaluate import locate
from qam_lightning.export.push import push
from qam_lightning.export.write import export
from qam_lightning.methods.base import Method
from qam_lightning.methods.bc import BC
from qam_lightning.methods.qam import QAM
from qam_lightning.runtime import CONFIG, ExportedPolicy
from qam_lightning.util.files import sha256
from qam_lightning.util.hub import address, policy_folder
from tests.conftest import serving
from tests.docs.pages import DOCS, blocks
from tests.export.test_lerobot import TINY
from tests.hub_server import TOKEN, Hub, Repository

constants = pytest.importorskip("huggingface_hub.constants")
STATE = np.array([0.5, 2.0, 1.0], np.float32)
NAMES = {path.name for path in TINY.iterdir()}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Return a hub that this process's client uses, with the right token and an empty cache."""
    with serving(Hub()) as running:
        running.serve_client(monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line with which ``export`` refuses to push the tiny folder."""
    assert main(["export", f"--verify={TINY}", "--episodes=0", *arguments]) == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert not before
    return line


def test_a_pushed_folder_loads_from_the_hub_and_acts_alike(tmp_path: Path) -> None:
    """In a process of its own, whose client reads HF_ENDPOINT."""
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from qam_lightning import load_policy\n"
        "from qam_lightning.cli import main\n"
        "from qam_lightning.runtime import CONFIG, ExportedPolicy\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "arguments = ['--episodes=0', '--push=hf://me/tiny@v1']\n"
        f"assert main(['export', {f'--verify={TINY}'!r}, *arguments]) == 0\n"
        f"state = np.array({STATE.tolist()}, np.float32)\n"
        f"expected = ExportedPolicy({str(TINY)!r}).predict_action_chunk(state)\n"
        "found = ExportedPolicy('hf://me/tiny@v1').predict_action_chunk(state)\n"
        "np.testing.assert_array_equal(found, expected)\n"
        "found = load_policy('hf://me/tiny@v1').sample_chunk(state)\n"
        "np.testing.assert_allclose(found, expected, atol=1e-5)\n"
    )
    with serving(Hub()) as server:
        home = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"pushed to {server.url}/me/tiny/commit/" in done.stdout and ", private" in done.stdout
    assert server.repositories["me/tiny"].branches["v1"] == {
        path.name: path.read_bytes() for path in TINY.iterdir()
    }
    read = {path.rpartition("/")[2] for _, path in server.requests if "/resolve/" in path}
    assert read == {"config.json", "policy.onnx", "model.safetensors"}


def test_only_public_makes_a_repository_public(server: Hub) -> None:
    assert push(TINY, "hf://me/open", public=True).endswith(", public")
    assert not server.repositories["me/open"].private
    assert push(TINY, "hf://me/closed").endswith(", private")
    assert server.repositories["me/closed"].private
    with pytest.raises(UserError, match="everybody may see that repository; add --public"):
        push(TINY, "hf://me/open")
    assert push(TINY, "hf://me/closed", public=True).endswith(", private")  # it stays so


def test_only_the_folders_own_files_are_pushed_and_others_stay(server: Hub, tmp_path: Path) -> None:
    for path in TINY.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "notes.txt").write_text("mine")
    server.repositories["me/many"] = Repository(True, {"main": {"LICENSE": b"MIT"}})
    push(tmp_path, "hf://me/many/cube")
    held = server.repositories["me/many"].branches["main"]
    assert set(held) == {"LICENSE", *(f"cube/{name}" for name in NAMES)}
    assert ExportedPolicy("hf://me/many/cube").config["files"]


def test_a_policy_is_downloaded_once(server: Hub) -> None:
    push(TINY, "hf://me/tiny")
    for _ in range(2):
        ExportedPolicy("hf://me/tiny")
    fetched = [path for method, path in server.requests if method == "GET" and "resolve" in path]
    assert len(fetched) == 2
    assert policy_folder(Path("hf://me/tiny"), CONFIG).is_dir()  # a path has one slash only


def test_the_guides_lines_run(server: Hub) -> None:
    for url in ("hf://owner/name", "hf://owner/name@v1.0"):
        push(TINY, url)
    (block,) = blocks(DOCS / "sharing.md", "python")
    scope: dict[str, Any] = {}
    exec(block, scope)
    found = scope["light"].predict_action_chunk(STATE)
    np.testing.assert_allclose(scope["policy"].sample_chunk(STATE), found, atol=1e-5)


def test_eval_takes_a_place_on_the_hub(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    push(TINY, "hf://me/tiny@v1")
    folder, results = locate(Path("hf://me/tiny@v1"), "last")
    assert results == Path("tiny") and not (folder / "policy.onnx").exists()
    folder, _ = locate(Path("hf://me/tiny@v1"), "last", graph=True)
    assert sha256(folder / "policy.onnx") == sha256(TINY / "policy.onnx")
    assert main(["eval", "hf://me/tiny@v1"]) == 2
    assert "names no environment" in capsys.readouterr().err.splitlines()[-1]
    assert main(["eval", "hf://me"]) == 2
    assert capsys.readouterr().err.startswith("error: hf://me: is no place on the hub, expected")


def test_a_method_starts_from_a_clone_on_the_hub(
    server: Hub, tmp_path: Path, build: Callable[..., Method]
) -> None:
    clone, method = build(BC), build(QAM, tau=1.0)
    facts = {"gradient_step": 1, "env_step": 0, "phase": "offline"}
    facts |= {"environment": {}, "versions": {}}
    export(clone, facts, tmp_path / "clone", formats=())
    push(tmp_path / "clone", "hf://me/clone@v1")
    load_clone(method, "hf://me/clone@v1")
    for name, found in method.behavior.state_dict().items():
        assert torch.equal(found, clone.behavior.state_dict()[name])
    assert method.pretrained is not None and method.pretrained.path == "hf://me/clone@v1"


def test_what_the_hub_has_is_checked_as_a_folder_is(server: Hub) -> None:
    files = {path.name: path.read_bytes() for path in TINY.iterdir()}
    server.repositories["me/other"] = Repository(
        branches={
            "main": files | {"policy.onnx": b"other", "model.safetensors": b"other"},
            "empty": {"README.md": b""},
        }
    )
    for load in (ExportedPolicy, load_policy):
        with pytest.raises(UserError, match="is not the file that config.json names"):
            load("hf://me/other")
        with pytest.raises(UserError, match="^hf://me/other@empty: holds no config.json, expected"):
            load("hf://me/other@empty")
        with pytest.raises(UserError, match="^hf://me/nothing: cannot be downloaded: .*Not Found"):
            load("hf://me/nothing")
        with pytest.raises(UserError, match="^hf://me: is no place on the hub, expected hf://own"):
            load("hf://me")
        with pytest.raises(UserError, match=r"^hf://me/tiny/\.\./x: is no place on the hub"):
            load("hf://me/tiny/../x")


def test_a_refused_push_is_one_line(
    server: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused("--push=hf://me", capsys=capsys)
    assert line.startswith("error: --push is hf://me, expected hf://owner/name")
    line = refused("--push=hf://datasets/me/tiny", capsys=capsys)
    assert line.startswith("error: --push is hf://datasets/me/tiny, expected")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    line = refused("--push=hf://me/tiny", capsys=capsys)
    assert line.startswith(f"error: {TINY}: cannot be pushed to hf://me/tiny: ")
    assert "Forbidden: this token may not write" in line
    monkeypatch.delenv("HF_TOKEN")
    line = refused("--push=hf://me/tiny", capsys=capsys)
    assert (
        line == "error: the hub takes files only with a token; run hf auth login, or set HF_TOKEN"
    )
    assert not server.repositories


def test_without_a_network_the_folder_stays(
    server: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client tries again and again
    line = refused("--push=hf://me/tiny", capsys=capsys)
    assert line.startswith(f"error: {TINY}: cannot be pushed to hf://me/tiny: ")
    assert "refused" in line
    with pytest.raises(UserError, match="^hf://me/tiny: cannot be downloaded: "):
        ExportedPolicy("hf://me/tiny")


def test_a_damaged_folder_is_not_pushed(server: Hub, tmp_path: Path) -> None:
    for path in TINY.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="is not the file that config.json names"):
        push(tmp_path, "hf://me/tiny")
    assert not server.requests


def test_without_the_client_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (ExportedPolicy, load_policy, lambda url: push(TINY, url)):
        with pytest.raises(UserError, match=r"needs the package huggingface_hub: pip install 'qa"):
            use("hf://me/tiny")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("hf://me/tiny", ("me/tiny", None, "")),
        ("hf:/me/tiny", ("me/tiny", None, "")),
        ("hf://models/me/tiny@refs%2Fpr%2F1/a/b/", ("me/tiny", "refs/pr/1", "a/b")),
        ("hf://datasets/me/tiny", None),
        ("hf://me", None),
        ("https://me/tiny", None),
    ],
)
def test_which_place_is_meant(url: str, found: tuple | None) -> None:
    assert address(url, "models") == found
