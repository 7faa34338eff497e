"""Waits over NCCL, with operations that a test plays: when to give up needs no GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from kvtransfer.backends.nccl import NcclBackend, NcclPair
from kvtransfer.backends.pair import SENDER_RANK
from kvtransfer.backends.ring import Ring
from kvtransfer.transport import PeerLost

TIMEOUT_S = 0.002
SECOND_GPU = torch.device("cuda", 1)


class PlayedGroup:
    """A group whose only receive is complete once `is_done` says so."""

    def __init__(self, is_done: Callable[[], bool]) -> None:
        self.is_completed = is_done

    def recv(self, buffers: list[Any], rank: int, tag: int) -> PlayedGroup:
        return self


def receive(is_done: Callable[[], bool], is_peer_alive: Callable[[], bool]) -> None:
    ring = Ring(1, 8, torch.device("cpu"))
    pair = NcclPair(PlayedGroup(is_done), ring, TIMEOUT_S, is_peer_alive, SECOND_GPU)
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


class UnconnectedGroup:
    """A group whose peer dies while the two connect."""

    Options = SimpleNamespace
    aborted = threading.Event()

    def __init__(self, *_: object) -> None:
        """Takes what a group takes, and connects nothing."""

    def eager_connect_single_device(self, device: torch.device) -> None:
        raise RuntimeError("ncclCommInitRank: remote process exited")

    def abort(self) -> None:
        self.aborted.set()


def test_a_pair_that_could_not_be_made_gives_back_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", UnconnectedGroup, raising=False)
    monkeypatch.setattr(os, "environ", {})  # the backend sets variables for its whole process
    used = []
    monkeypatch.setattr(
        torch.cuda,
        "set_device",
        lambda device: used.append((threading.current_thread().name, device)),
    )
    backend = NcclBackend(SECOND_GPU, TIMEOUT_S)
    with pytest.raises(PeerLost, match="remote process exited"):
        backend.make_pair(HashStore(), SENDER_RANK, 1, 8, lambda: False)
    assert UnconnectedGroup.aborted.wait(10.0)
    assert used == [("pair-making", SECOND_GPU), ("nccl-abort", SECOND_GPU)], (
        "no other GPU's memory"
    )


def test_nobody_is_asked_in_time() -> None:
    def never() -> bool:
        raise AssertionError("asked too early")

    receive(lambda: True, never)


def test_a_pair_is_closed_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    used = threading.Event()
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: device == SECOND_GPU and used.set()
    )
    aborted = threading.Event()
    group = SimpleNamespace(abort=lambda: used.is_set() and aborted.set())
    ring = Ring(1, 8, torch.device("cpu"))
    NcclPair(group, ring, TIMEOUT_S, lambda: True, SECOND_GPU).close()
    assert aborted.wait(10.0)
