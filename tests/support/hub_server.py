"""A server that speaks so much of the Hugging Face Hub's protocol as `huggingface_hub` needs to download."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Commits and the branches that lead to them.

    Attributes:
        commits: digest -> name -> content.
        branches: name -> digest.
        closed: status and code of the hub's error with which files are refused to those who give no `token`.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    closed: tuple[int, str] | None = None
    token: str = "hf_let_me_in"

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit of these files; its digest."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[digest] = files
        self.branches[branch] = digest
        return digest


class Hub:
    """What stands on the hub, by `ORGANISATION/NAME`, and (method, path) of every request.

    `then` says what happens once the content of a file was asked for.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.then: dict[str, Callable[[], object]] = {}
        self.status: int | None = None  # with which every request is answered
        self.endpoint = ""

    def add(self, name: str, files: dict[str, bytes], **more: Any) -> str:
        """A repository with one commit; its digest."""
        self.repositories[name] = Repository(**more)
        return self.repositories[name].commit(files)

    def fetched(self) -> list[str]:
        """The files whose content was asked for, sorted."""
        return sorted(path.split("/resolve/")[1].split("/", 1)[1] for method, path in self.asked
                      if method == "GET" and "/resolve/" in path)  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        if self.hub.status is not None:
            return self._send(self.hub.status, b"{}")
        about = path.startswith("/api/models/")
        words = path.removeprefix("/api/models").strip("/").split("/")
        repository = self.hub.repositories.get("/".join(words[:2]))
        if repository is None:
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        kind, rest = (words[2], "/".join(words[3:])) if len(words) > 2 else ("revision", "main")
        if kind not in ("revision", "resolve"):
            return self._send(404, b"{}")
        known = sorted([*repository.branches, *repository.commits], key=len, reverse=True)
        revision = next((one for one in known if rest == one or rest.startswith(f"{one}/")), None)
        if revision is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        digest = repository.branches.get(revision, revision)
        files = repository.commits[digest]
        if about:
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            return self._send(
                200, json.dumps({"id": "/".join(words[:2]), "sha": digest, "siblings": siblings}).encode()
            )
        if repository.closed and self.headers.get("Authorization") != f"Bearer {repository.token}":
            status, code = repository.closed
            return self._send(status, b"{}", {"X-Error-Code": code} if code else {})
        name = rest[len(revision) + 1 :]
        content = files.get(name)
        if self.command == "GET":
            self.hub.then.pop(name, lambda: None)()
        if content is None:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": digest})
        tag = hashlib.sha1(content).hexdigest()
        return self._send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": digest, "Accept-Ranges": "bytes"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on this machine; its `endpoint` is what HF_ENDPOINT is set to."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
