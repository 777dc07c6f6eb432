"""A Hugging Face hub on loopback: the part of its protocol that `huggingface_hub` speaks, over files in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

#: From this size on, files are kept as the hub keeps large ones: by SHA-256, behind a redirect.
LARGE = 1024
TOKEN = "hf_loopback"


class Repository:
    """Revisions of one repository: {commit: {path: content}}, and branches by name."""

    def __init__(self, files: dict[str, bytes] | None = None, **access: bool) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.private, self.gated = access.get("private", False), access.get("gated", False)
        self.commit(files or {})

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Makes `files` what the branch holds."""
        text = f"{len(self.commits)}{branch}{sorted(files)}"
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name], self.branches[branch] = dict(files), name
        return name

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        name = self.branches.get(revision, revision)
        return (name, self.commits[name]) if name in self.commits else None


class Hub:
    """What the server holds and what it was asked. cut: {path: bytes after which the first answers break off}."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.datasets: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.cut: dict[str, int] = {}
        self.writers: set[str] = {TOKEN}
        self.readers: set[str] = set()
        self.status: int | None = None
        self.url = ""
        #: Large files come from another host than the hub itself.
        self.store = ""

    def add(self, name: str, source: Path | dict[str, bytes], branch: str = "main", **access: bool) -> str:
        """A repository of a folder's files, or another branch of it; returns the commit."""
        files = source if isinstance(source, dict) else read_folder(source)
        if name not in self.repositories:
            self.repositories[name] = Repository(files, **access)
        return self.repositories[name].commit(files, branch)

    def fetched(self) -> list[str]:
        """Paths whose content was sent, each once."""
        found = [
            re.fullmatch(r"GET /(?:[^/]+/[^/]+/resolve/[^/]+|blob/\w+)/(.+)", line) for line in self.asked
        ]
        return sorted({match[1] for match in found if match})


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub on a port of its own while the block runs."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.store = f"http://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def etag(content: bytes) -> str:
    """As the hub has it: SHA-256 of a large file, git's own hash of another."""
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    # Requests

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = (
            self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        )
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{method} {path}")
        if self.hub.status is not None:
            self._fail(self.hub.status, "", "out of order")
            return
        for pattern, name in (
            (r"GET /api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)(/revision/(?P<rev>.+))?", "info"),
            (
                r"GET /api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)/?(?P<under>.*)",
                "tree",
            ),
            (r"(GET|HEAD) /blob/(?P<oid>\w+)/(?P<path>.+)", "blob"),
            (
                r"(GET|HEAD) /((?P<kind>dataset)s/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)",
                "resolve",
            ),
            (r"POST /api/repos/create", "create"),
            (r"POST /api/validate-yaml", "validate"),
            (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<rev>.+)", "preupload"),
            (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<rev>.+)", "branch"),
            (r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<rev>.+)", "commit"),
            (r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs"),
            (r"PUT /upload/(?P<oid>\w+)", "upload"),
        ):
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                getattr(self, f"_{name}")(match.groupdict(), body)
                return
        self._fail(404, "", f"no such place: {method} {path}")

    def _chunks(self) -> bytes:
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    # Answers

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _opened(self, named: dict[str, str | None]) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files) of what a request names, or an answer that says why not."""
        held = self.hub.datasets if named.get("kind") == "dataset" else self.hub.repositories
        repository = held.get(str(named["repo"]))
        if self._token() not in ("", *self.hub.writers, *self.hub.readers):
            self._fail(401, "", "Invalid credentials in Authorization header")
            return None
        if repository is None or (repository.private and not self._token()):
            # The hub does not tell a stranger which of the two it is.
            self._fail(401 if not self._token() else 404, "RepoNotFound", "Repository not found")
            return None
        if repository.gated and not self._token():
            self._fail(401, "GatedRepo", "Access to this model is restricted")
            return None
        found = repository.at(named["rev"] or "main")
        if found is None:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {named['rev']}")
        return found

    def _writer(self) -> bool:
        if self._token() in self.hub.writers:
            return True
        self._fail(401 if not self._token() else 403, "", "You need to be logged in with write access")
        return False

    # Reading

    def _info(self, named: dict[str, Any], _: bytes) -> None:
        opened = self._opened(named)
        if opened is not None:
            commit, files = opened
            listed = [self._sibling(path, content) for path, content in sorted(files.items())]
            held = self.hub.datasets if named["kind"] == "dataset" else self.hub.repositories
            private = held[named["repo"]].private
            self._json(
                {"id": named["repo"], "sha": commit, "siblings": listed, "tags": [], "private": private}
            )

    def _sibling(self, path: str, content: bytes) -> dict[str, Any]:
        found = {"rfilename": path, "size": len(content), "blobId": etag(content)}
        if len(content) >= LARGE:
            found["lfs"] = {"sha256": etag(content), "size": len(content), "pointerSize": 130}
        return found

    def _tree(self, named: dict[str, Any], _: bytes) -> None:
        opened = self._opened(named)
        if opened is None:
            return
        listed = []
        for path, content in sorted(opened[1].items()):
            if named["under"] not in ("", path.rpartition("/")[0]):
                continue
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": etag(content)}
            if len(content) >= LARGE:
                entry["lfs"] = {"oid": etag(content), "size": len(content), "pointerSize": 130}
            listed.append(entry)
        self._json(listed)

    def _resolve(self, named: dict[str, Any], _: bytes) -> None:
        opened = self._opened(named)
        if opened is None:
            return
        commit, files = opened
        if named["path"] not in files:
            self._fail(404, "EntryNotFound", "Entry not found")
            return
        content = files[named["path"]]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag(content)}"'}
        if len(content) >= LARGE:
            self.hub.blobs[etag(content)] = content
            headers |= {
                "X-Linked-Etag": f'"{etag(content)}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.store}/blob/{etag(content)}/{named['path']}",
            }
            self._send(302, b"", headers)
        else:
            self._content(content, named["path"], headers)

    def _blob(self, named: dict[str, Any], _: bytes) -> None:
        self._content(self.hub.blobs[named["oid"]], named["path"], {"ETag": f'"{named["oid"]}"'})

    def _content(self, content: bytes, path: str, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status, total = 200, len(content)
        if asked:
            self.hub.ranges.append(f"{path}: {self.headers['Range']}")
            start, end = int(asked[1]), min(int(asked[2] or total), total - 1)
            content, status = content[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{total}"
        stop = self.hub.cut.pop(path, None) if self.command == "GET" else None
        if stop is None:
            self._send(status, content, headers)
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:stop])
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    # Writing

    def _create(self, _: dict[str, Any], body: bytes) -> None:
        if not self._writer():
            return
        asked = json.loads(body)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if name in self.hub.repositories:
            known = {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            self._send(409, json.dumps(known).encode())
            return
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository({".gitattributes": b""}, private=private)
        self._json({"url": f"{self.hub.url}/{name}"})

    def _validate(self, _: dict[str, Any], body: bytes) -> None:
        head = json.loads(body)["content"].split("---")
        if len(head) < 3 or not re.search(r"^license: \S+$", head[1], re.MULTILINE):
            self._send(400, json.dumps({"errors": [{"message": "license is missing"}]}).encode())
            return
        self._json({"errors": [], "warnings": []})

    def _preupload(self, named: dict[str, Any], body: bytes) -> None:
        if not self._writer() or self._opened(named) is None:
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _branch(self, named: dict[str, Any], body: bytes) -> None:
        if not self._writer():
            return
        repository = self.hub.repositories[named["repo"]]
        if named["rev"] in repository.branches:
            self._fail(409, "", "Reference already exists")
            return
        repository.branches[named["rev"]] = repository.branches["main"]
        self._json({})

    def _lfs(self, _: dict[str, Any], body: bytes) -> None:
        if not self._writer():
            return
        objects = []
        for entry in json.loads(body)["objects"]:
            here = {"href": f"{self.hub.store}/upload/{entry['oid']}", "header": {}}
            known = entry["oid"] in self.hub.blobs
            objects.append({**entry, **({} if known else {"actions": {"upload": here}})})
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, named: dict[str, Any], body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == named["oid"]
        self.hub.blobs[named["oid"]] = body
        self._send(200, b"")

    def _commit(self, named: dict[str, Any], body: bytes) -> None:
        if not self._writer():
            return
        repository = self.hub.repositories[named["repo"]]
        files = dict(repository.commits[repository.branches[named["rev"]]])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            elif entry["key"] == "deletedFolder":
                files = {path: data for path, data in files.items() if not path.startswith(value["path"])}
        commit = repository.commit(files, named["rev"])
        self._json({"commitUrl": f"{self.hub.url}/{named['repo']}/commit/{commit}", "commitOid": commit})
