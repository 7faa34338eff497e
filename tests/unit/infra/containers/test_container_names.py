"""A container asks the name server of its network how it is called."""

from __future__ import annotations

import struct

import pytest

from infra.containers.named import first_label, nameserver, question

QUERY = question("172.18.0.5", 7)
NAME = b"\x11kvrelay-prefill-1\x0fkvrelay_default\0"


def reply(
    query: bytes, name: bytes, answers: int = 1, code: int = 0, whose: bytes = b"\xc0\x0c"
) -> bytes:
    """What a name server answers: the question again, and a record of the name. `whose` is the
    record's own name, by default a reference to that of the question."""
    header = query[:2] + struct.pack(">5H", 0x8180 | code, 1, answers, 0, 0)
    record = whose + struct.pack(">2HIH", 12, 1, 600, len(name)) + name
    return header + query[12:] + (record if answers else b"")


def test_the_question_names_the_address_backwards() -> None:
    assert QUERY[:2] == struct.pack(">H", 7)
    assert QUERY[12:] == b"\x015\x010\x0218\x03172\x07in-addr\x04arpa\0\0\x0c\0\x01"


def test_the_first_part_of_the_answer_is_the_name() -> None:
    assert first_label(reply(QUERY, NAME), QUERY) == "kvrelay-prefill-1"


def test_docker_writes_the_address_in_full_once_more() -> None:
    written = reply(QUERY, NAME, whose=QUERY[12:-4])
    assert first_label(written, QUERY) == "kvrelay-prefill-1"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        QUERY,
        reply(QUERY, NAME, answers=0, code=3),
        reply(QUERY, NAME, code=3),
        reply(question("172.18.0.5", 8), NAME),
        reply(QUERY, b"\xc0\x0c"),
        reply(QUERY, b""),
    ],
)
def test_any_other_answer_names_nobody(answer: bytes) -> None:
    assert first_label(answer, QUERY) == ""


@pytest.mark.parametrize("length", range(len(reply(QUERY, NAME))))
def test_an_answer_that_is_cut_off_does_no_harm(length: int) -> None:
    name = first_label(reply(QUERY, NAME)[:length], QUERY)
    assert name in ("", "kvrelay-prefill-1")


def test_the_first_name_server_is_asked() -> None:
    assert nameserver(
        "# made by docker\nsearch x\nnameserver 127.0.0.11\nnameserver 1.1.1.1\n"
    ) == ("127.0.0.11")
    assert nameserver("nameserver\n") == ""
