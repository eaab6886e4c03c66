"""Google Cloud Storage on loopback, as much of its JSON API as gcsfs asks for to read objects."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextmanager
def google_store(bucket: str, folder: Path) -> Iterator[str]:
    """Yields the address, for STORAGE_EMULATOR_HOST, of a server whose bucket holds the files of a folder."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            name = unquote(parts.path.rpartition(f"/storage/v1/b/{bucket}/o/")[2])
            file = folder / name
            if name.startswith("/") or not file.is_file():
                self.answer(404, b"{}")
            else:
                data = file.read_bytes()
                self.answer(200, data if "alt=media" in parts.query else facts(name, data))

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def facts(name: str, data: bytes) -> bytes:
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        known = {"bucket": bucket, "name": name, "size": str(len(data)), "generation": "1", "md5Hash": md5}
        return json.dumps({"kind": "storage#object"} | known).encode()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
