"""Ranks find each other through a meeting point whose port was never anyone else's."""

from __future__ import annotations

import socket
import threading

import pytest
import torch

from engine.parallel import SOLO, MeetingPoint, TensorParallel, connect

CPU = torch.device("cpu")
DEADLINE_S = 30.0


def test_ranks_meet_and_add_up() -> None:
    meeting_point = MeetingPoint("127.0.0.1", DEADLINE_S)
    ranks: dict[int, TensorParallel] = {}

    def join(rank: int) -> None:
        ranks[rank] = connect(rank, 2, CPU, meeting_point.address, DEADLINE_S)

    sums: dict[int, list[float]] = {}
    largest: dict[int, list[float]] = {}

    def add(rank: int) -> None:
        sums[rank] = ranks[rank].all_reduce(torch.tensor([rank + 1.0, 10.0])).tolist()
        largest[rank] = ranks[rank].all_max(torch.tensor([rank + 1.0, -rank])).tolist()

    for work in (join, add):
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert sums == {0: [3.0, 20.0], 1: [3.0, 20.0]}
    assert largest == {0: [2.0, 0.0], 1: [2.0, 0.0]}


def test_many_meeting_points_are_open_at_once_each_at_an_address_of_its_own() -> None:
    """The port is bound when its number becomes known, so that nobody can take it in between."""
    points = [MeetingPoint("127.0.0.1", DEADLINE_S) for _ in range(20)]
    assert len({point.address for point in points}) == len(points)
    for point in points:
        host, _, port = point.address.rpartition(":")
        with socket.socket() as other, pytest.raises(OSError):
            other.bind((host, int(port)))


def test_a_meeting_point_listens_on_its_own_address_alone() -> None:
    point = MeetingPoint("127.0.0.1", DEADLINE_S)
    port = int(point.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)), socket.socket() as elsewhere:
        assert elsewhere.connect_ex(("127.0.0.2", port)) != 0, "loopback has more than one address"


def test_one_rank_needs_no_meeting() -> None:
    assert connect(0, 1, CPU, "nowhere:1", DEADLINE_S) is SOLO
