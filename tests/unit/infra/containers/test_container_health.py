"""Health checks ask one address, and tell why it is not healthy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from infra.containers.healthcheck import main
from infra.ports import free_port


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()
        self.wfile.write(b"the weights are loaded")

    def log_message(self, format: str, *args: object) -> None:
        """Does nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_answer_of_200_is_healthy(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{url}/ready"]) == 0
    assert main([f"{url}/other"]) == 1
    assert "answered 503: the weights are loaded" in capsys.readouterr().err


def test_no_answer_and_no_url_are_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"http://127.0.0.1:{free_port()}/ready"]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert main([]) == 1
    assert "usage" in capsys.readouterr().err
