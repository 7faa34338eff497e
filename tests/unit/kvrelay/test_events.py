"""Streams are read to the byte, however their bytes are cut."""

from __future__ import annotations

import json

import msgspec
import pytest

from kvrelay.errors import (
    AnswerTimedOut,
    ClientError,
    ClusterBusy,
    ClusterFault,
    ClusterUnavailable,
    InvalidCall,
)
from kvrelay.events import ChatEventReader, GeneratedEventReader

TEXTS = ["line\u2028and\u2029line\x85", 'an "error" is a word', "\n\n", "héé\U0001f600"]


def stream_of(texts: list[str], end: str = "\n\n") -> bytes:
    events = [{"text": "".join(texts[: i + 1]), "output_ids": [0] * i} for i in range(len(texts))]
    payloads = [msgspec.json.encode(event).decode() for event in events]
    lines = [": a comment", "event: update", *(f"data: {payload}" for payload in payloads)]
    return end.join([*lines, "data: [DONE]", ""]).encode()


@pytest.mark.parametrize("num_bytes", [1, 2, 7, 10_000])
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_every_update_comes_once_and_whole(num_bytes: int, end: str) -> None:
    data = stream_of(TEXTS, end)
    reader = GeneratedEventReader()
    assert not reader.is_finished
    updates = []
    for begin in range(0, len(data), num_bytes):
        updates += reader.feed(data[begin : begin + num_bytes])
    assert [update.text for update in updates] == [
        "".join(TEXTS[: i + 1]) for i in range(len(TEXTS))
    ]
    assert reader.is_finished


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [
        ("rate_limit_exceeded", "requests", ClusterBusy),
        ("service_unavailable", "server_error", ClusterUnavailable),
        ("timeout", "server_error", AnswerTimedOut),
        (None, "invalid_request_error", InvalidCall),
        (None, "server_error", ClusterFault),
    ],
)
def test_names_of_openais_errors_mean_the_same_as_their_status(
    code: str | None, kind: str, expected: type[ClientError]
) -> None:
    event = json.dumps({"error": {"message": "no", "type": kind, "param": None, "code": code}})
    with pytest.raises(expected, match="no"):
        list(ChatEventReader().feed(f"data: {event}\n\n".encode()))


def test_an_error_ends_a_stream_with_what_it_means() -> None:
    event = b'data: {"error": {"message": "too many", "code": 429, "param": "n"}}\n\n'
    for reader in (GeneratedEventReader(), ChatEventReader()):
        with pytest.raises(ClusterBusy, match="too many") as raised:
            list(reader.feed(event))
        assert raised.value.param == "n"
