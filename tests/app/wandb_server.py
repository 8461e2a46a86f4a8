"""An HTTP server that stands in for W&B's: it keeps runs as W&B's client sends them."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

PROJECT = {"id": "project", "name": "", "entity": {"id": "entity", "name": "me"}}

COMMITTED = {
    "__typename": "Artifact",
    "artifactSequence": {"__typename": "ArtifactSequence", "name": "a", "project": None},
    "artifactType": {"name": "report"},
    **{"versionIndex": 0, "description": None, "metadata": None, "historyStep": None},
    **{"ttlDurationSeconds": 0, "ttlIsInherited": False, "tags": [], "aliases": []},
    **{"state": "COMMITTED", "size": 1, "digest": "d", "commitHash": None, "fileCount": 1},
    **{"createdAt": "2026-01-01T00:00:00", "updatedAt": None},
}
"""What a client that waits for an artifact asks for in the end."""


class WandbServer(ThreadingHTTPServer):
    """Knows the requests of a run: its start, its state before a resume, its rows, its files.

    It also knows those of a sweep and its agents, which it tells what to try.

    Attributes:
        runs: id -> ``config`` (values), ``history`` (rows in order) and ``sent`` (all else that
            describes the run: ``project``, ``displayName``, ``groupName`` ...).
        artifacts: name -> ``type``, and ``files`` by path, of those that were committed.
        sweeps: name -> the sweep's file.
        choices: what agents of sweeps are to try, values by parameter; each is tried once.
        refusing: an HTTP status to answer everything with, 0 for none.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.choices: list[dict[str, Any]] = []
        self.tried = 0
        self.refusing = 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        if operation == "Viewer":
            teams: dict[str, Any] = {"edges": []}
            return {"viewer": {"id": "u", "entity": "me", "flags": "{}", "teams": teams}}
        if operation == "RunResumeStatus":
            return {"model": PROJECT | {"bucket": self.bucket(values["name"])}}
        if operation == "UpsertBucket":
            run = self.runs.setdefault(values["name"], {"history": [], "config": {}, "sent": {}})
            config = json.loads(values.pop("config") or "{}")
            run["config"] |= {key: entry["value"] for key, entry in config.items()}
            run["sent"] |= {key: value for key, value in values.items() if value is not None}
            bucket = {**(self.bucket(values["name"]) or {}), "project": PROJECT}
            return {"upsertBucket": {"bucket": bucket, "inserted": not run["history"]}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": self.url} for name in values["files"]]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        return self.answer_sweep(operation, values) or self.answer_artifact(operation, values)

    def answer_sweep(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        """What ``wandb sweep`` and ``wandb agent`` ask; runs are named trial0, trial1 ..."""
        if operation == "UpsertSweep":
            name = f"sweep{len(self.sweeps)}"
            self.sweeps[name] = yaml.safe_load(values["config"])
            made = {"name": name, "project": PROJECT | {"name": values["projectName"]}}
            return {"upsertSweep": {"sweep": made, "configValidationWarnings": []}}
        if operation == "SweepWithRuns":
            text = yaml.safe_dump(self.sweeps[values["sweep"]])
            return {"project": {"sweep": {"id": "s", "config": text, "runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": values["sweep"]}}}
        if operation == "Heartbeat":
            commands: list[dict[str, Any]] = []
            if not json.loads(values["runState"]):
                commands = [self.next_trial(values["id"])]
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}
        return {}

    def next_trial(self, sweep: str) -> dict[str, Any]:
        """What an agent without a run is told to do."""
        if len(self.choices) == self.tried:
            return {"type": "exit"}
        name, chosen = f"trial{self.tried}", self.choices[self.tried]
        self.tried += 1
        arguments = {key: {"value": value} for key, value in chosen.items()}
        program = self.sweeps[sweep]["program"]
        return {"type": "run", "run_id": name, "program": program, "args": arguments}

    def answer_artifact(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        """What creating an artifact asks, in this order; its id is its name."""
        sent = values.get("input", values)
        if operation == "ArtifactType":  # of an earlier version
            return {"project": None}
        if operation == "CreateArtifact":
            name = sent["artifactCollectionName"]
            self.pending = {"type": sent["artifactTypeName"]}
            made = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if operation == "CreateArtifactFiles":
            nodes = [
                {
                    "storagePath": file["name"],
                    **{"uploadUrl": f"{self.url}/upload/{file['name']}", "uploadHeaders": []},
                    **{"uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}},
                }
                for file in sent["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": x} for x in nodes]}}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            place = {"id": "file", "uploadUrl": f"{self.url}/manifest", "uploadHeaders": []}
            key = operation[0].lower() + operation[1:]
            return {key: {"artifactManifest": {"id": "manifest", "file": place}}}
        if operation == "CommitArtifact":
            name = sent["artifactID"]
            files = {k.removeprefix("/upload/"): x for k, x in self.uploads.items()}
            self.artifacts[name] = self.pending | {"files": files}
            return {"commitArtifact": {"artifact": {"id": name, "digest": "d"}}}
        if operation == "ArtifactByID":
            return {"artifact": COMMITTED | {"id": values["id"]}}
        return {}

    def bucket(self, name: str) -> dict[str, Any] | None:
        """A run as a client that resumes it sees it."""
        if name not in self.runs:
            return None
        run = self.runs[name]
        return {
            **{"id": name, "name": name, "displayName": run["sent"].get("displayName")},
            **{"summaryMetrics": "{}", "eventsTail": "[]", "wandbConfig": '{"t": 1}', "tags": []},
            **{"logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(run["history"])},
            "historyTail": json.dumps([json.dumps(row) for row in run["history"][-1:]]),
            "config": json.dumps({key: {"value": x} for key, x in run["config"].items()}),
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            pass

    def log_message(self, *args: Any) -> None: ...

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content: dict[str, Any] = {}
        if self.server.refusing:
            pass
        elif self.path.endswith("/graphql"):
            query = json.loads(body)
            values = query.get("variables") or {}
            named = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
            operation = query.get("operationName") or (named[1] if named else "")
            content = {"data": self.server.answer(operation, values)}
        elif self.path.startswith("/upload/"):
            self.server.uploads[self.path] = body
        elif self.path.endswith("/file_stream"):
            history = self.server.runs[self.path.split("/")[-2]]["history"]
            files = json.loads(body).get("files", {})
            rows = files.get("wandb-history.jsonl", {"offset": len(history), "content": []})
            history[rows["offset"] :] = [json.loads(line) for line in rows["content"]]
        text = json.dumps(content).encode()
        self.send_response(self.server.refusing or 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = answer
