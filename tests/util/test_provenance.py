"""What outputs say of the software that made them."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from qam_lightning.util import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str | None]]:
    """``asked(root)``: the commit told by a package that lies in this folder."""

    def commit(root: Path) -> str | None:
        file = root / "qam_lightning/__init__.py"
        monkeypatch.setattr(provenance.qam_lightning, "__file__", str(file))
        provenance.git_commit.cache_clear()
        return provenance.git_commit()

    yield commit
    provenance.git_commit.cache_clear()


def package(root: Path) -> Path:
    """A folder with a package in it."""
    (root / "qam_lightning").mkdir(parents=True)
    (root / "qam_lightning/__init__.py").write_text("")
    return root


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one commit."""
    root = package(tmp_path / "checkout")
    (root / ".gitignore").write_text("__pycache__\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "one")
    return root


def test_versions_are_told_and_compared() -> None:
    now = provenance.versions()
    names = "python qam_lightning torch lightning ogbench mujoco gymnasium numpy"
    assert set(now) - {"commit"} == set(names.split())
    assert now["torch"] == version("torch")
    assert f"torch {version('torch')}, " in provenance.versions_line()
    assert provenance.mismatches(now) == []
    assert provenance.mismatches({**now, "numpy": "0.1", "gymnasium": "0.1", "other": "1"}) == []
    (line,) = provenance.mismatches({**now, "mujoco": "3.9.0"})
    assert "3.9.0" in line and now["mujoco"] in line


def test_the_commit_and_whether_files_differ(checkout: Path, asked: Callable) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert asked(checkout) == commit == provenance.versions()["commit"]
    assert provenance.versions_line().endswith(f", commit {commit}")
    (checkout / "notes.txt").write_text("beside the code")
    (checkout / "qam_lightning/__pycache__").mkdir()
    (checkout / "qam_lightning/__pycache__/x.pyc").write_text("ignored")
    assert asked(checkout) == commit
    added = checkout / "qam_lightning/mine.py"
    added.write_text("a method that no commit has")
    assert asked(checkout) == f"{commit}-dirty"
    added.unlink()
    (checkout / "qam_lightning/__init__.py").write_text("changed = True")
    assert asked(checkout) == f"{commit}-dirty"


def test_no_commit_without_a_repository_a_commit_or_git(
    tmp_path: Path, checkout: Path, asked: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(package(tmp_path / "plain")) is None and "commit" not in provenance.versions()
    empty = package(tmp_path / "empty")
    git(empty, "init", "--quiet")
    git(empty, "add", ".")
    assert asked(empty) is None
    (tmp_path / "broken").mkdir()
    broken = package(tmp_path / "broken/root")
    (broken / ".git").write_text("gitdir: /nowhere")
    assert asked(broken) is None
    monkeypatch.setenv("PATH", "")
    assert asked(checkout) is None


def test_an_installed_package_does_not_tell_the_commit_of_a_repository_around_it(
    checkout: Path, asked: Callable
) -> None:
    (checkout / ".gitignore").write_text("site\n.venv\n")
    assert asked(package(checkout / ".venv/lib/site-packages")) is None
    target = checkout / "target"  # pip install --target . in a repository of its own
    git(package(target), "init", "--quiet")
    (target / "theirs.py").write_text("")
    git(target, "add", "theirs.py")
    git(target, "commit", "--quiet", "--message", "theirs")
    assert asked(target) is None


def test_worktrees_submodules_and_shallow_clones(
    tmp_path: Path, checkout: Path, asked: Callable
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    git(checkout, "worktree", "add", "--quiet", str(tmp_path / "worktree"))
    assert asked(tmp_path / "worktree") == commit
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{checkout}", "shallow")
    assert asked(tmp_path / "shallow") == commit
    git(tmp_path, "init", "--quiet", "outer")
    git(tmp_path / "outer", "submodule", "--quiet", "add", str(checkout), "inner")
    assert asked(tmp_path / "outer/inner") == commit


def test_a_link_to_the_package_leads_to_its_repository(
    tmp_path: Path, checkout: Path, asked: Callable
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/qam_lightning").symlink_to(checkout / "qam_lightning")
    assert asked(tmp_path / "elsewhere") == git(checkout, "rev-parse", "HEAD")


def test_gits_variables_do_not_lead_to_another_repository(
    tmp_path: Path, checkout: Path, asked: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as in a hook of another repository."""
    git(tmp_path, "init", "--quiet", "other")
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert asked(checkout) == commit


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_checkout_of_another_user(checkout: Path, asked: Callable) -> None:
    """As in a container that runs as root; git itself refuses it."""
    commit = git(checkout, "rev-parse", "HEAD")
    shutil.chown(checkout, 65534)
    shutil.chown(checkout / ".git", 65534)
    with pytest.raises(subprocess.CalledProcessError):
        git(checkout, "rev-parse", "HEAD")
    assert asked(checkout) == commit
