"""The health port of a node: GET /live and GET /ready, for probes and for the node's peers, and
GET /metrics, for Prometheus."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from protocol.messages import Health
from protocol.telemetry.exposition import CONTENT_TYPE
from protocol.trust.live_proofs import MAX_NONCE_CHARACTERS, PROOF_HEADER, live_proofs
from protocol.trust.secrets import ClusterSecrets

CONNECTION_TIMEOUT_S = 2.0
"""How long a client may take to send its request."""
MAX_CONNECTIONS = 64
"""Connections that are served at once; more are closed as they come."""


class HealthServer(ThreadingHTTPServer):
    """Answers from threads of its own, on a socket that listens already."""

    daemon_threads = True

    def __init__(
        self,
        listening: socket.socket,
        health: Callable[[], Health],
        secrets: ClusterSecrets | None = None,
        metrics: Callable[[], bytes] = bytes,
    ) -> None:
        """`metrics` returns the answer to GET /metrics. With `secrets` an answer to
        `/live?nonce=HEX` has a proof of each, so that peers can tell it from that of somebody
        else."""
        super().__init__(listening.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.health = health
        self.secrets = secrets
        self.metrics = metrics
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def start(self) -> None:
        """Starts to answer. The threads end with the process."""
        threading.Thread(target=self.serve_forever, name="health", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Does nothing: a client that leaves early is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: HealthServer
    timeout = CONNECTION_TIMEOUT_S
    _nonce = ""

    def do_GET(self) -> None:
        health = self.server.health()
        path, _, query = self.path.partition("?")
        self._nonce = query.removeprefix("nonce=")[:MAX_NONCE_CHARACTERS]
        if path == "/live":
            self._answer(200 if health.is_live else 503, msgspec.json.encode(health))
        elif path == "/ready":
            self._answer(200 if health.is_ready else 503, msgspec.json.encode(health))
        elif path == "/metrics":
            self._answer(200, self.server.metrics(), CONTENT_TYPE)
        else:
            self._answer(404, b'{"error":"a node answers /live, /ready and /metrics here"}')

    def _answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self._nonce and self.server.secrets is not None:
            proofs = live_proofs(self.server.secrets, self._nonce, body)
            self.send_header(PROOF_HEADER, ",".join(proofs))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Does nothing: probes come every second."""
