"""A stub of an SGLang server: it computes nothing and gives sglang-router at once what it expects.

.venv/bin/python -m benchmarks.clusters.sglang_worker --port 30001
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re

import uvloop

HOST = "127.0.0.1"
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
MODEL = {"model_path": "stub", "tokenizer_path": "stub", "is_generation": True}
ANSWER = {
    "text": " a",
    "output_ids": [100],
    "meta_info": {
        "id": "0123456789abcdef0123456789abcdef",
        "finish_reason": {"type": "length", "length": 1},
        "prompt_tokens": 32,
        "weight_version": "default",
        "completion_tokens": 1,
        "cached_tokens": 0,
        "e2e_latency": 0.001,
    },
}


def _reply(body: object) -> bytes:
    """Returns a whole HTTP response with `body` as JSON."""
    raw = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


GENERATED, DESCRIBED = _reply(ANSWER), _reply(MODEL)


class Worker(asyncio.Protocol):
    """One connection of the router: any POST /generate gets the same answer, all else the model's
    description."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = LENGTH.search(self._received, 0, head_end)
        if len(self._received) < head_end + 4 + (int(length[1]) if length else 0):
            return
        is_generate = self._received.startswith(b"POST /generate")
        self._received = b""
        self._transport.write(GENERATED if is_generate else DESCRIBED)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Worker, HOST, port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="An instant stub of an SGLang server.")
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
