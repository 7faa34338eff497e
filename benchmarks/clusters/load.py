"""A light HTTP load generator: it keeps connections open and builds request bytes beforehand.

Each client sends its next request when it has read the answer to the last one (closed loop).
Answers are parsed only as far as their end and their status need it. It prints one JSON line.

    .venv/bin/python -m benchmarks.clusters.load --port 30000 --pid PID_OF_THE_SERVER --case text
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

HOST = "127.0.0.1"
NUM_BODIES = 256
WARM_UP_S = 1.0
SENTENCE = (
    "the old man went to sea and saw a small bird over green water then he said I know my way "
    "home because light of that star is still with me tonight"
)
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass
class Samples:
    """What all clients together have seen."""

    latencies: list[float] = field(default_factory=list)
    """Seconds from each request to its answer; emptied after the warm-up."""
    refused: int = 0
    """How many answers had another status than 200."""
    last_answer: bytes = b""


class Client(asyncio.Protocol):
    """One connection, on which a new request is sent as soon as the last one is answered."""

    def __init__(self, requests: Iterator[bytes], samples: Samples) -> None:
        self._requests = requests
        self._samples = samples
        self._answer = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Notes the answer when it is complete, and sends the next request."""
        self._answer = self._answer + data if self._answer else data
        if not _is_whole(self._answer):
            return
        samples = self._samples
        samples.latencies.append(time.perf_counter() - self._sent_at)
        samples.refused += not self._answer.startswith(b"HTTP/1.1 200")
        samples.last_answer, self._answer = self._answer, b""
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(next(self._requests))


def _is_whole(answer: bytes) -> bool:
    """Returns True if the bytes are a complete HTTP response: of its Content-Length, or chunked up
    to the last chunk."""
    head_end = answer.find(b"\r\n\r\n")
    if head_end < 0:
        return False
    length = LENGTH.search(answer, 0, head_end)
    if length is None:
        return answer.endswith(b"0\r\n\r\n")
    return len(answer) >= head_end + 4 + int(length[1])


def requests_of(case: str) -> list[bytes]:
    """Returns the bytes of NUM_BODIES different requests: texts of about 32 tokens of the embedded
    model for the case `text`, lists of 512 token ids for `ids`."""
    chance = random.Random(0)
    words = SENTENCE.split()
    requests = []
    for _ in range(NUM_BODIES):
        prompt: dict[str, object]
        if case == "text":
            prompt = {"text": " ".join(chance.choices(words, k=18))}
        else:
            prompt = {"input_ids": [chance.randrange(10, 2000) for _ in range(512)]}
        params = {"max_new_tokens": 1, "temperature": 0.0}
        body = json.dumps(prompt | {"sampling_params": params}).encode()
        head = (
            f"POST /generate HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests


def process_cpu_s(pid: int) -> float:
    """Returns the CPU seconds, user and system, that all threads of a process have used so far."""
    # The id that clock_getcpuclockid(3) gives. /proc/PID/stat counts by ticks of 10 ms, and misses
    # what is done in between: a process that works for 5 ms at every step.
    return time.clock_gettime((~pid << 3) | 2)


def core_busy_s(core: int) -> float:
    """Returns for how many seconds a core has not been idle so far, whoever used it."""
    line = next(
        x for x in Path("/proc/stat").read_text().splitlines() if x.startswith(f"cpu{core} ")
    )
    ticks = [int(number) for number in line.split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Watched:
    """The process under test and its core."""

    pid: int
    core: int

    def used(self) -> tuple[float, float]:
        """Returns the CPU seconds of the process and the busy seconds of its core, so far."""
        return process_cpu_s(self.pid), core_busy_s(self.core)


async def run(
    port: int, clients: int, seconds: float, case: str, watched: Watched
) -> dict[str, object]:
    """Puts `clients` clients on the server for a warm-up and `seconds`; returns the figures."""
    loop = asyncio.get_running_loop()
    requests = itertools.cycle(requests_of(case))
    samples = Samples()
    for _ in range(clients):
        await loop.create_connection(lambda: Client(requests, samples), HOST, port)
    await asyncio.sleep(WARM_UP_S)
    samples.latencies.clear()
    used, busy = watched.used()
    started, own = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    elapsed, own = time.perf_counter() - started, time.process_time() - own
    used_now, busy_now = watched.used()
    used, busy = used_now - used, busy_now - busy
    latencies = sorted(samples.latencies)
    if not latencies:
        raise SystemExit("nothing answered")
    return {
        "requests_per_s": round(len(latencies) / elapsed, 1),
        "p50_ms": round(latencies[len(latencies) // 2] * 1e3, 3),
        "p99_ms": round(latencies[len(latencies) * 99 // 100] * 1e3, 3),
        "refused": samples.refused,
        "cpu_us_per_request": round(used / len(latencies) * 1e6, 1),
        "core_share": round(used / elapsed, 3),
        "core_share_of_others": round((busy - used) / elapsed, 3),
        "client_share": round(own / elapsed, 3),
        "answer": samples.last_answer.partition(b"\r\n\r\n")[2].decode(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Load on POST /generate.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--case", choices=("text", "ids"), default="text")
    parser.add_argument("--pid", type=int, required=True, help="of the process under test")
    parser.add_argument("--core", type=int, default=0, help="its core")
    given = parser.parse_args()
    watched = Watched(given.pid, given.core)
    print(
        json.dumps(uvloop.run(run(given.port, given.clients, given.seconds, given.case, watched)))
    )


if __name__ == "__main__":
    main()
