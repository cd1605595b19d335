"""A real HTTP server that answers as the Hugging Face hub does, for models in folders."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REFUSALS = {
    "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}),
    "private": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "missing": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "no-token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "down": (503, {"Retry-After": "0"}),
}
_NO_REVISION = (404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
_NO_FILE = (404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})


@dataclass
class Hub:
    """Models `nobody/NAME`: those of REFUSALS are refused so, others are of `folders`, by revision.

    A revision's commit is `commit_of` it, and names it too.
    """

    folders: dict[str, dict[str, Path]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def environment(self, cache: Path) -> dict[str, str]:
        """That of a process that takes this for the hub."""
        noise = ("HF_", "TRANSFORMERS_", "SNAKEMAKE_", "PYTEST_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(noise)}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(cache), "NO_COLOR": "1"}


def commit_of(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.hub, http.daemon_threads = hub, True
    hub.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        http.shutdown()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub: Hub = self.server.hub
        path = self.path.partition("?")[0]
        hub.requests.append(f"{self.command} {path}")
        if path == "/":
            return self._send(200, {}, b"<html>")
        parts = re.fullmatch(
            "(?:/api/models)?/nobody/([^/]+)/?(resolve|revision|tree)?/?([^/]*)/?(.*)", path
        )
        name, kind, revision, file = parts.groups() if parts else ("missing", "", "", "")
        if name not in hub.folders:
            return self._send(*REFUSALS.get(name, REFUSALS["missing"]), b"")
        found = {commit_of(r): (commit_of(r), path) for r, path in hub.folders[name].items()}
        found |= {r: found[commit_of(r)] for r in hub.folders[name]}
        if (revision or "main") not in found:
            return self._send(*_NO_REVISION, b"")
        self._answer(kind, file, *found[revision or "main"])

    def _answer(self, kind: str | None, name: str, commit: str, folder: Path):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        paths = [str(file.relative_to(folder)) for file in files]
        if kind == "tree" and not name:
            body = [
                {"type": "file", "path": path, "size": f.stat().st_size, "oid": _etag(f)}
                for path, f in zip(paths, files, strict=True)
            ]
        elif not name:
            body = {"id": "", "sha": commit, "siblings": [{"rfilename": path} for path in paths]}
        elif not (folder / name).is_file():
            return self._send(_NO_FILE[0], {**_NO_FILE[1], "X-Repo-Commit": commit}, b"")
        else:
            headers = {"ETag": f'"{_etag(folder / name)}"', "X-Repo-Commit": commit}
            return self._send(200, headers, (folder / name).read_bytes())
        self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
