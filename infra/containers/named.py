"""Starts kvrelay in a Compose container, a node under the container's name:
`python -m infra.containers.named prefill …`.

A container knows only its id; its name, as `docker compose ps` shows it, is told by the DNS server
of its network. Where nobody tells it, the node has the name that it makes itself.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import sys

TIMEOUT_S = 2.0
POINTER, ONE_QUESTION, RECURSE = 12, 1, 0x0100
"""Numbers of the protocol (RFC 1035): the type PTR, a query with one question, the wish that the
server asks others."""
REFERENCE = 0xC0
"""A label's length from here on, with the byte after it, refers to a name elsewhere."""
RECORD_HEAD_BYTES = 10
"""Type, class, seconds and length, which stand between the name of a record and what it says."""


def question(address: str, number: int) -> bytes:
    """Returns the DNS query for the name of an IPv4 address (RFC 1035, 3.5)."""
    labels = [*reversed(address.split(".")), "in-addr", "arpa"]
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
    header = struct.pack(">6H", number, RECURSE, ONE_QUESTION, 0, 0, 0)
    return header + name + struct.pack(">2H", POINTER, 1)


def first_label(reply: bytes, query: bytes) -> str:
    """Returns the first part of the name in the reply to `query`; "" if there is none."""
    is_ours = len(reply) > len(query) and reply[:2] == query[:2] and reply[3] & 0x0F == 0
    num_answers = struct.unpack_from(">H", reply, 6)[0] if is_ours else 0
    start = _end_of_name(reply, len(query)) + RECORD_HEAD_BYTES
    if not num_answers or len(reply) <= start or reply[start] >= REFERENCE:
        return ""
    label = reply[start + 1 : start + 1 + reply[start]]
    return label.decode("ascii", errors="replace") if len(label) == reply[start] else ""


def _end_of_name(reply: bytes, at: int) -> int:
    """Returns where the name that begins at `at` ends: behind an empty label or a reference."""
    while at < len(reply) and 0 < reply[at] < REFERENCE:
        at += 1 + reply[at]
    is_reference = at < len(reply) and reply[at] >= REFERENCE
    return at + (2 if is_reference else 1)


def nameserver(resolv_conf: str) -> str:
    """Returns the first name server of the text of /etc/resolv.conf; "" if there is none."""
    found = (line.split() for line in resolv_conf.splitlines())
    return next((words[1] for words in found if words[:1] == ["nameserver"] and words[1:]), "")


def own_name() -> str:
    """Returns this container's name; "" if nobody tells it within two seconds."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8") as file:
            server = nameserver(file.read())
        query = question(socket.gethostbyname(socket.gethostname()), random.getrandbits(16))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(TIMEOUT_S)
            asking.sendto(query, (server, 53))
            return first_label(asking.recv(1024), query)
    except OSError:
        return ""


def main(arguments: list[str]) -> None:
    """Becomes the command. Does not return."""
    if name := own_name():
        os.environ.setdefault("KVRELAY_NAME", name)
    os.execvp("kvrelay", ["kvrelay", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
