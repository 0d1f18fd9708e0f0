"""A stand-in for the W&B backend on loopback: the real client logs to it, tests look at what arrived.

    with StandIn() as server:
        os.environ.update(server.environment(tmp_path))
        ...
        assert server.run(run_id).rows[-1]["loss"] == 0.5

In tests the fixture `standin` does the first two lines.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from standin.graphql import Backend, Refusal
from standin.store import Json

PAGE = b"<!DOCTYPE html><html><body>Please log in to the network.</body></html>"


@dataclass
class Faults:
    """How the server misbehaves until `clear`. A request that suffers has no effect."""

    status: int | None = None
    """Answer with this HTTP status."""
    close: bool = False
    """Close the connection without an answer."""
    hang: bool = False
    """Answer nothing; the connection is closed when this is False again, or when the server stops."""
    page: bool = False
    """Answer with status 200 and an HTML page, as a proxy's login does."""
    cut: bool = False
    """Announce an answer that is longer than what comes."""
    only: str = ""
    """Spare requests without this in their path: "graphql", "file_stream", "storage"."""
    hits: int = 0
    """How many requests suffered."""
    lost: str = ""
    """The paths and bodies of those with a body."""

    @property
    def any(self) -> bool:
        return bool(self.status or self.close or self.hang or self.page or self.cut)

    def clear(self) -> None:
        self.status, self.only = None, ""
        self.close = self.hang = self.page = self.cut = False


class StandIn(Backend):
    """Listens from `start` to `stop`; started again, it has the same port and still knows what arrived."""

    def __init__(self, entity: str = "tester") -> None:
        super().__init__(entity)
        self.faults = Faults()
        self.requests: list[str] = []
        """The path of every request, with the operation of those to GraphQL."""
        self.gaps: list[str] = []
        """What the stand-in could not answer, and W&B could: a test that ends with any is void."""
        self.lock = threading.Lock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_listening(self) -> bool:
        return self._server is not None

    def environment(self, directory: Path) -> dict[str, str]:
        """Environment variables that lead the client here, with all its files in `directory`."""
        environment = {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "0123456789" * 4,
            "WANDB_ENTITY": self.entity,
            "WANDB_MODE": "online",
            "WANDB_DIR": str(directory),
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_X_DISABLE_STATS": "true",
            # Seconds, a whole number: for others the client takes its own 15, which a test must not wait.
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
            "NO_PROXY": "127.0.0.1",
        }
        for kind in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
            environment[f"WANDB_{kind}_DIR"] = str(directory / f"wandb-{kind.lower()}")
        for kind in ("FILE_STREAM", "FILE_TRANSFER", "GRAPHQL"):
            environment[f"WANDB_X_{kind}_RETRY_WAIT_MIN_SECONDS"] = "0.1"
            environment[f"WANDB_X_{kind}_RETRY_WAIT_MAX_SECONDS"] = "1"
        return environment

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """From here on connections are refused."""
        server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()

    def wait_until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Raises: TimeoutError, when the condition does not come true in time."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} s; the requests were {self.requests}")
            time.sleep(0.02)

    def __enter__(self) -> StandIn:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _handler(server: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        _body = ""

        def do_POST(self) -> None:
            self._body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            body = json.loads(self._body)
            if self.path == "/graphql":
                operation = re.findall(r"(?:query|mutation)\s+(\w+)", body["query"])[0]
                self._reply(lambda: _graphql_answer(server, operation, body.get("variables") or {}), operation)
            else:
                self._reply(lambda: self._take_stream(body))

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self._reply(lambda: self._store(content))

        def do_GET(self) -> None:
            self._reply(self._load)

        def _take_stream(self, body: Json) -> bytes:
            [run_id] = self._named(r"/files/[^/]+/[^/]+/([^/]+)/file_stream")
            server.take_stream(run_id, body)
            return json.dumps({"exitcode": None, "limits": {}}).encode()

        def _store(self, content: bytes) -> bytes:
            kind, owner, name = self._named(r"/storage/(run|artifact)/([^/]+)/(.+)")
            server.stored_files(kind, owner)[name] = content
            return b""

        def _load(self) -> bytes:
            kind, owner, name = self._named(r"/storage/(run|artifact)/([^/]+)/(.+)")
            return server.stored_files(kind, owner)[name]

        def _named(self, pattern: str) -> list[str]:
            """What the groups of the pattern stand for in the path."""
            match = re.fullmatch(pattern, self.path)
            if not match:
                raise NotImplementedError("this path")
            return [unquote(group) for group in match.groups()]

        def _reply(self, answer: Callable[[], bytes], operation: str = "") -> None:
            if self._suffers(operation):
                return
            try:
                with server.lock:
                    content = answer()
            except Exception as error:
                server.gaps.append(f"{self.command} {self.path}: {error!r}")
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _suffers(self, operation: str) -> bool:
            """Whether a fault has ended this request."""
            faults = server.faults
            with server.lock:
                server.requests.append(f"{self.path} {operation}".strip())
                is_hit = faults.only in self.path and faults.any
                faults.hits += is_hit
                faults.lost += f"{self.path} {self._body}\n" if is_hit else ""
            if is_hit and faults.status:
                self.send_error(faults.status)
            elif is_hit and (faults.page or faults.cut):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(PAGE) * (1 + faults.cut)))
                self.end_headers()
                self.wfile.write(PAGE)
                self.close_connection = True
            while is_hit and faults.hang and server.is_listening:
                time.sleep(0.02)
            return is_hit

        def log_message(self, *_: object) -> None:
            """No log of requests: tests look at what arrived."""

    return Handler


def _graphql_answer(server: StandIn, operation: str, variables: Json) -> bytes:
    answer: Json = {"data": None}
    try:
        answer["data"] = server.answer(operation, variables)
    except Refusal as refusal:
        answer["errors"] = [{"message": str(refusal)}]
    except Exception as error:
        # The client gets an answer too: without one it would ask again and again.
        server.gaps.append(f"{operation}: {error!r}")
        answer["errors"] = [{"message": f"a gap in the stand-in: {error!r}"}]
    return json.dumps(answer).encode()
