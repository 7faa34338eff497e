"""Waits over NCCL, with operations that a test plays: when to give up needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvtransfer.backends.nccl import NcclPair
from kvtransfer.backends.ring import Ring
from kvtransfer.transport import PeerLost

TIMEOUT_S = 0.002


class PlayedGroup:
    """A group whose only receive is complete once `is_done` says so."""

    def __init__(self, is_done: Callable[[], bool]) -> None:
        self.is_completed = is_done

    def recv(self, buffers: list[Any], rank: int, tag: int) -> PlayedGroup:
        return self


def receive(is_done: Callable[[], bool], is_peer_alive: Callable[[], bool]) -> None:
    ring = Ring(1, 8, torch.device("cpu"))
    pair = NcclPair(PlayedGroup(is_done), ring, TIMEOUT_S, is_peer_alive)
    pair.post(8)
    pair.received()


def test_a_peer_that_is_held_up_is_waited_for() -> None:
    asked: list[bool] = []

    def is_alive() -> bool:
        asked.append(True)
        return True

    receive(lambda: len(asked) >= 3, is_alive)
    assert len(asked) == 3, "it is asked once for each deadline"


def test_a_peer_that_nobody_vouches_for_is_lost() -> None:
    with pytest.raises(PeerLost, match="moved nothing"):
        receive(lambda: False, lambda: False)


def test_nobody_is_asked_in_time() -> None:
    def never() -> bool:
        raise AssertionError("asked too early")

    receive(lambda: True, never)
