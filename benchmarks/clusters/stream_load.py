"""A light load of streams: each client reads an answer to its end, then asks for the next one.

Events are counted and not parsed, but for the last ones before and after the measured time, which
tell how far the answers were. Those of a chat do not: as its answers begin at any time, as much is
under way before as after. It prints one JSON line.

    .venv/bin/python -m benchmarks.clusters.stream_load --port 30000 --pids PID [PID]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from dataclasses import dataclass
from typing import Any

import uvloop

from benchmarks.clusters.load import HOST, WARM_UP_S, process_cpu_s

SPREAD_S = 2.5
EVENT = b'data: {"'
LAST_CHUNK = b"[DONE]\n\n\r\n0\r\n\r\n"
"""The end of an answer. Its last five bytes alone may also end a head whose last value ends in
0."""
NUM_TOKENS = re.compile(rb'"completion_tokens":(\d+)')


@dataclass
class Seen:
    """What all clients together have read."""

    answers: int = 0
    events: int = 0
    num_bytes: int = 0
    refused: int = 0


class StreamClient(asyncio.Protocol):
    """One connection, on which a new stream is asked for as soon as the last one has ended."""

    def __init__(self, request: bytes, seen: Seen) -> None:
        self._request = request
        self._seen = seen
        self._tail = b""
        self._data = b""
        """What came last of the present answer."""
        self._begins = True

    @property
    def num_tokens(self) -> int:
        """How many tokens of the present answer have come."""
        *_, last = (b"0", *NUM_TOKENS.findall(self._data))
        return int(last)

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Counts the events; asks again at the end of the stream."""
        seen = self._seen
        if self._begins:
            seen.refused += not data.startswith(b"HTTP/1.1 200")
            self._begins = False
        seen.num_bytes += len(data)
        # An event whose beginning is cut in two is counted by neither half: one in thousands.
        seen.events += data.count(EVENT)
        self._data = data
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        if self._tail == LAST_CHUNK:
            seen.answers += 1
            self._tail, self._data, self._begins = b"", b"", True
            self._transport.write(self._request)


def request_of(num_tokens: int, is_chat: bool) -> bytes:
    """Returns a request for a stream of so many tokens."""
    path = "/v1/chat/completions" if is_chat else "/generate"
    body = json.dumps(_chat(num_tokens) if is_chat else _prompt(num_tokens)).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _prompt(num_tokens: int) -> dict[str, Any]:
    params = {"max_new_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True}
    return {"input_ids": list(range(10, 42)), "sampling_params": params, "stream": True}


def _chat(num_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "My dog is called Bramo. What is my dog called?"}]
    common = {"model": "default", "messages": messages, "stream": True}
    return common | {"max_tokens": num_tokens, "temperature": 0.0, "ignore_eos": True}


async def run(
    port: int, clients: int, seconds: float, num_tokens: int, is_chat: bool, pids: list[int]
) -> dict[str, object]:
    """Puts `clients` clients on the server for a warm-up and `seconds`; returns the figures."""
    loop = asyncio.get_running_loop()
    seen, request = Seen(), request_of(num_tokens, is_chat)
    running = []
    for _ in range(clients):
        _, client = await loop.create_connection(lambda: StreamClient(request, seen), HOST, port)
        running.append(client)
        # So that answers do not all end at once.
        await asyncio.sleep(SPREAD_S / clients)
    await asyncio.sleep(WARM_UP_S)
    tokens_before = sum(client.num_tokens for client in running)
    seen.answers = seen.events = seen.num_bytes = 0
    used = [process_cpu_s(pid) for pid in pids]
    started, own = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    elapsed, own = time.perf_counter() - started, time.process_time() - own
    cpu_s = [process_cpu_s(pid) - before for pid, before in zip(pids, used, strict=True)]
    tokens_after = sum(client.num_tokens for client in running)
    if not seen.answers:
        raise SystemExit("nothing answered")
    tokens = seen.answers * num_tokens + tokens_after - tokens_before
    return {
        "tokens_per_s": tokens / elapsed,
        "events_per_s": seen.events / elapsed,
        "bytes_per_s": seen.num_bytes / elapsed,
        "core_shares": [one / elapsed for one in cpu_s],
        "client_share": own / elapsed,
        "refused": seen.refused,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Streams of answers.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--chat", action="store_true", help="chats instead of /generate")
    parser.add_argument("--pids", type=int, nargs="+", required=True, help="of the coordinators")
    given = parser.parse_args()
    figures = run(given.port, given.clients, given.seconds, given.tokens, given.chat, given.pids)
    print(json.dumps(uvloop.run(figures)))


if __name__ == "__main__":
    main()
