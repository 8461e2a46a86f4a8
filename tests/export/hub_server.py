"""A stand-in for the Hugging Face hub on loopback: as much of its HTTP as model repositories need.

The real client talks to it, where ``HF_ENDPOINT`` names it.
"""

import base64
import hashlib
import http.server
import json
import re
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

TOKEN = "hf_right"
"""The token that may write, and read what is private."""


@dataclass
class Repository:
    """A model repository: the files of each branch, and those of each commit."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str) -> str:
        """Return the name of a branch's newest commit."""
        files = self.branches[branch]
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[sha] = dict(files)
        return sha


class Hub(http.server.ThreadingHTTPServer):
    """A hub of one owner, ``me``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        """The address, for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_port}"


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
        match = re.fullmatch(r"/(?:api/models/)?([\w.-]+/[\w.-]+)(?:/(\w+)(?:/(.*))?)?", path)
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

    def tree(self, name: str, repository: Repository, sha: str, body: bytes) -> None:
        files = repository.commits[sha].items()
        self.tell([{"type": "file", "path": p, "size": len(x), "oid": "0" * 40} for p, x in files])

    def resolve(self, name: str, repository: Repository, rest: str, body: bytes) -> None:
        sha, _, path = rest.partition("/")
        sha = repository.commit(sha) if sha in repository.branches else sha
        content = repository.commits[sha].get(path)
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
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
