"""A server of all three APIs whose answers are scripted, to measure with and to fail.

    python -m tests.support.bench.scripted_server PORT PAUSE_S

serves until it is ended, and waits PAUSE_S before each token.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

VOCABULARY = 2048
NUM_CACHED = 3


class ScriptedServer:
    """Answers each POST as the next of `fates` says, "well" when there is none left.

    Fates: well; a status such as "429"; "cut": the connection closes after a token; "short": a
    token too few; "silent": no answer; "error": an error within the stream.
    """

    def __init__(self, pause_s: float = 0.0) -> None:
        self.fates: deque[str] = deque()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        """Paths and bodies, in the order in which they came."""
        self.headers: list[bytes] = []
        self.num_flushes = 0
        self.port = 0
        self._pause_s = pause_s

    async def serve(self, port: int = 0) -> asyncio.AbstractServer:
        server = await asyncio.start_server(self._answer, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        return server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-l")]
            raw = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
            method, path, _ = head.split(b" ", 2)
            self.headers.append(head)
            if method == b"GET" or path == b"/flush_cache":
                self._tell(path.decode(), writer)
            else:
                await self._stream(path.decode(), json.loads(raw), writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _tell(self, path: str, writer: asyncio.StreamWriter) -> None:
        self.num_flushes += path == "/flush_cache"
        info = {"served_model_name": "scripted", "vocab_size": VOCABULARY}
        _write_whole(writer, 200, info)

    async def _stream(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.requests.append((path, body))
        fate = self.fates.popleft() if self.fates else "well"
        if fate.isdigit():
            return _write_whole(writer, int(fate), {"error": {"message": f"refused with {fate}"}})
        if fate == "silent":
            await asyncio.Event().wait()
        params = body.get("sampling_params", body)
        wanted = params.get("max_new_tokens") or params["max_tokens"]
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked"
        writer.write(f"{head}\r\n\r\n".encode())
        prompt_tokens = len(body.get("input_ids") or body.get("prompt") or [0] * 9)
        for event in _events(path, wanted - (fate == "short"), prompt_tokens):
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
            _write_chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
            if fate == "cut":
                return
            if fate == "error":
                error = {"message": "lost", "type": "Unavailable", "code": 503}
                _write_chunk(writer, b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
                break
        _write_chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")


def _events(path: str, num_tokens: int, prompt_tokens: int) -> Iterator[dict[str, Any]]:
    """Yields the events of an answer in the dialect of a path, one token each."""
    if path == "/generate":
        for count in range(1, num_tokens + 1):
            is_last = count == num_tokens
            yield {
                "text": "w " * count,
                "output_ids": list(range(100, 100 + count)),
                "meta_info": {
                    "finish_reason": {"type": "length", "length": count} if is_last else None,
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": count,
                    "cached_tokens": NUM_CACHED,
                },
            }
        return
    is_chat = path.endswith("chat/completions")
    if is_chat:
        yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    for _ in range(num_tokens):
        content = {"delta": {"content": "w "}} if is_chat else {"text": "w "}
        yield {"choices": [{"index": 0, "finish_reason": None, **content}], "usage": None}
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": num_tokens,
        "prompt_tokens_details": {"cached_tokens": NUM_CACHED},
    }
    yield {"choices": [], "usage": usage}


def _write_whole(writer: asyncio.StreamWriter, status: int, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)


def _write_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Serves from a thread of its own."""
    server = ScriptedServer()
    is_ready = threading.Event()
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(stopped.set))
        async with await server.serve():
            is_ready.set()
            await stopped.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()  # answers that would never end

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert is_ready.wait(timeout=30)
    try:
        yield server
    finally:
        stop[0]()
        thread.join()


async def _serve(port: int, pause_s: float) -> None:
    listening = await ScriptedServer(pause_s).serve(port)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
