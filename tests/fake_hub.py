"""A hub on the loopback that serves repositories as the Hugging Face hub does to its own client, and notes requests."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Repositories = dict[str, dict[str, dict[str, bytes]]]  # {owner/name: {revision: {file: content}}}


@contextmanager
def serving(repositories: Repositories, unlisted: str = "", cut: str = ""):
    """Yields (address, list of "METHOD path" of the requests so far).

    Args:
        unlisted: the repository whose files are not listed.
        cut: the repository of whose weights half is sent.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            parts = self.path.partition("?")[0].strip("/").split("/")
            self.half = False
            if "tree" in parts and "/".join(parts[2:4]) == unlisted:
                self._answer(403, b"{}", {})
                return
            self.half = self.command == "GET" and "/".join(parts[:2]) == cut and parts[-1] == "model.safetensors"
            if parts[:2] == ["api", "models"] and parts[4:5] == ["tree"]:
                self._list(*self._found("/".join(parts[2:4]), parts[5]))
            elif parts[2:3] == ["resolve"]:
                self._send(*self._found("/".join(parts[:2]), parts[3]), "/".join(parts[4:]))
            else:
                self._answer(404, b"", {})

        do_HEAD = do_GET

        def _found(self, repository, revision):
            """Returns (error code or None, files, commit)."""
            revisions = repositories.get(repository)
            if revisions is None:
                return "RepoNotFound", {}, ""
            commits = {hashlib.sha1(name.encode()).hexdigest(): name for name in revisions}
            revision = commits.get(revision, revision)
            if revision not in revisions:
                return "RevisionNotFound", {}, ""
            return None, revisions[revision], hashlib.sha1(revision.encode()).hexdigest()

        def _list(self, error, files, commit):
            rows = [{"type": "file", "path": name, "size": len(held), "oid": "0"} for name, held in files.items()]
            self._answer(404 if error else 200, json.dumps(rows).encode(), {"X-Error-Code": error} if error else {})

        def _send(self, error, files, commit, name):
            error = error or (None if name in files else "EntryNotFound")
            if error:
                self._answer(404, b"", {"X-Error-Code": error, "X-Repo-Commit": commit})
                return
            etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
            self._answer(200, files[name], {"ETag": etag, "X-Repo-Commit": commit})

        def _answer(self, status, body, headers):
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if self.half else body)
            self.close_connection = self.half

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
