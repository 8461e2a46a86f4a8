"""A stand-in for the Hugging Face hub on loopback: as much of its HTTP as models and datasets need.

The real client talks to it, where ``HF_ENDPOINT`` names it, or after `serve_client`.
"""

import base64
import hashlib
import http.server
import json
import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

import pytest

TOKEN = "hf_right"
"""The token that may write, and read what is private."""


@dataclass
class Repository:
    """A repository of a model or a dataset: the files of each branch, and those of each commit."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str) -> str:
        """Return the name of a branch's newest commit."""
        files = self.branches[branch]
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[sha] = dict(files)
        return sha

    def files(self, revision: str) -> dict[str, bytes]:
        """Return the files of a branch or a commit."""
        return self.branches.get(revision) or self.commits[revision]


class Hub(http.server.ThreadingHTTPServer):
    """A hub of one owner, ``me``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.drops = 0  # how many responses to break off in the middle

    @property
    def url(self) -> str:
        """The address, for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_port}"

    def serve_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Serve this process's client, as if HF_ENDPOINT had been set before its import."""
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:  # noqa: N802
        self.answer()

    def do_GET(self) -> None:  # noqa: N802
        self.answer()

    def do_POST(self) -> None:  # noqa: N802
        self.answer()

    def answer(self) -> None:
        path = urllib.parse.urlparse(self.path).path
        self.server.requests.append((self.command, urllib.parse.unquote(path)))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/validate-yaml":
            return self.tell({"errors": [], "warnings": []})
        if self.command == "POST" and not allowed:
            return self.refuse(403, "Forbidden: this token may not write")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        place = path.removeprefix("/api").removeprefix("/models").removeprefix("/datasets")
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)(?:/(\w+)(?:/(.*))?)?", place)
        repository = match and self.server.repositories.get(match[1])
        if not repository or (repository.private and not allowed):
            return self.refuse(404, "Repository not found", "RepoNotFound")
        what, rest = match[2] or "revision", urllib.parse.unquote(match[3] or "main")
        getattr(self, what)(match[1], repository, rest, body)

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.repositories[name] = Repository(bool(private))
        self.tell({"url": f"{self.server.url}/{name}"})

    def branch(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        repository.branches.setdefault(branch, {})
        self.tell({})

    def preupload(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {"uploadMode": "regular", "shouldIgnore": False}
        self.tell({"files": [{"path": path, **modes} for path in files]})

    def commit(self, name: str, repository: Repository, branch: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                repository.branches[branch][entry["value"]["path"]] = content
        sha = repository.commit(branch)
        self.tell({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})

    def revision(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        if revision not in repository.branches:
            return self.refuse(404, "Invalid rev id", "RevisionNotFound")
        sha = repository.commit(revision)
        files = [{"rfilename": path} for path in repository.commits[sha]]
        self.tell({"id": name, "sha": sha, "private": repository.private, "siblings": files})

    def tree(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        files = repository.files(revision).items()
        self.tell([{"type": "file", "path": p, "size": len(x), "oid": "0" * 40} for p, x in files])

    def resolve(self, name: str, repository: Repository, rest: str, body: bytes) -> None:
        sha, _, path = rest.partition("/")
        sha = repository.commit(sha) if sha in repository.branches else sha
        content = repository.files(sha).get(path)
        if content is None:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.send(200, content, {"ETag": etag, "X-Repo-Commit": sha})

    def tell(self, content: Any) -> None:
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, words: str, code: str = "") -> None:
        self.send(
            status, b"", {"X-Error-Message": words} | ({"X-Error-Code": code} if code else {})
        )

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        rest = content[start:]
        self.send_response(206 if start else status)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for key, value in {**headers, "Content-Length": str(len(rest))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.server.drops and self.command == "GET" and len(rest) > 1000:
            self.server.drops -= 1
            rest = rest[: len(rest) // 2]
        if self.command != "HEAD":
            self.wfile.write(rest)

    def log_message(self, *_: Any) -> None:
        pass
