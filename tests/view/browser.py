"""A page in headless Chromium: what it requested, what it said on its console, how long it took."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Visit:
    """`dom`: the page after its scripts ran; `console`: what it wrote there; `requests`: paths asked of the server."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(page: Path, profile: Path) -> Visit:
    """Open `page`, served over loopback; every host name resolves to that server, so no request goes unseen."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/page.html"
            # The browser's own requests to its maker (the time, updates) name no page that sent them.
            if known or self.headers["Referer"] or self.headers["Origin"]:
                requests.append(self.path)
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.read_bytes() if known else b"")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    assert CHROMIUM is not None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
        command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command += [f"--host-resolver-rules=MAP * 127.0.0.1:{port}", f"--user-data-dir={profile}"]
        command += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000"]
        command += [f"http://127.0.0.1:{port}/page.html"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        server.shutdown()
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return Visit(result.stdout, console, requests)
