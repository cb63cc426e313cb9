"""A server on loopback that speaks the Hub's file protocol, as far as huggingface_hub asks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 2000  # bytes from which on a file is redirected to another address, as the Hub does


@dataclass
class Repo:
    """``status``, with the Hub's error code, is what every request for it gets."""

    files: dict[str, bytes] = field(default_factory=dict)
    status: tuple[int, str] | None = None
    commit: str = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """``repos`` by name, ``plain`` files by path; ``requests`` counts GETs of a file's body.

    ``cut``: file -> how many bytes of the body the next answers hold, one entry an answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.plain: dict[str, bytes] = {}
        self.cut: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str | None]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def add(self, name: str, files: dict[str, bytes]) -> Repo:
        """A repository with these files, by their paths in it."""
        self.repos[name] = Repo(files)
        return self.repos[name]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Silence."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != "Bearer right":
            return self._refuse(401, "")
        if path == "/api/repos/create":
            name = "/".join(filter(None, (json.loads(content).get("organization"), json.loads(content)["name"])))
            self.server.repos.setdefault(name, Repo())
            return self._json({"url": f"{self.server.url}/{name}", "name": name})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            wanted = [file["path"] for file in json.loads(content)["files"]]
            return self._json({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in wanted]})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    file = line["value"]
                    self.server.repos[found[1]].files[file["path"]] = base64.b64decode(file["content"])
            return self._json({"commitUrl": f"{self.server.url}/{found[1]}/commit/abc", "commitOid": "abc"})
        return self._refuse(404, "")

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/cdn/"):
            repo, _, file = path.removeprefix("/cdn/").partition("//")
            return self._send(file, self.server.repos[repo].files[file], body)
        if path.lstrip("/") in self.server.plain:
            return self._send(path.lstrip("/"), self.server.plain[path.lstrip("/")], body)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(*found.groups(), body=body)
        return self._refuse(404, "RepoNotFound")

    def _resolve(self, name: str, revision: str, file: str, body: bool) -> None:
        repo = self.server.repos.get(name)
        if repo is None:
            return self._refuse(404, "RepoNotFound")
        if repo.status is not None:
            return self._refuse(*repo.status)
        if revision not in ("main", repo.commit):
            return self._refuse(404, "RevisionNotFound")
        if file not in repo.files:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": repo.commit})
        content = repo.files[file]
        known = {"X-Repo-Commit": repo.commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if len(content) < LARGE:
            return self._send(file, content, body, known)
        known |= {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        self.send_response(302)
        elsewhere = f"http://localhost:{self.server.server_port}/cdn/{name}//{file}"  # another host, as the Hub's
        for header, value in (known | {"Location": elsewhere, "Content-Length": "0"}).items():
            self.send_header(header, value)
        self.end_headers()
        return None

    def _send(self, file: str, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        wanted, start = self.headers.get("Range"), 0
        if body:
            self.server.requests.append((file, wanted))
        if wanted and (found := re.match(r"bytes=(\d+)-", wanted)):
            start = int(found[1])
            if start >= len(content):
                return self._refuse(416, "")
        self.send_response(206 if start else 200)
        for header, value in (
            (headers or {}) | {"Content-Length": str(len(content) - start), "Accept-Ranges": "bytes"}
        ).items():
            self.send_header(header, value)
        self.end_headers()
        if not body:
            return None
        cut = self.server.cut.get(file)
        self.wfile.write(content[start : start + cut.pop(0)] if cut else content[start:])
        self.close_connection = True
        return None

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for header, value in ((headers or {}) | {"X-Error-Code": code, "Content-Length": "0"}).items():
            self.send_header(header, value)
        self.end_headers()

    def _json(self, content: Any) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)
