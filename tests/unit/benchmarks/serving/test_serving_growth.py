"""How systems grow with their GPUs, as files of several runs tell it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving.growth import measurements_of, table_of
from benchmarks.serving.pairs import Pair
from protocol.config import ConfigError


def measured(tokens_per_s: float) -> dict[str, Any]:
    figures = {
        "tokens_per_s": tokens_per_s,
        "ttft_mean_ms": 50.0,
        "ttft_p99_ms": 120.0,
        "itl_p99_ms": 9.5,
    }
    return {"version": "1", "rows": {"full": [figures], "alone 512": [figures]}}


def pair(
    layout: str, num_gpus: int, tokens_per_s: float, peer: str = "", theirs: float = 0.0
) -> Pair:
    return {
        "layout": layout,
        "peer": peer or None,
        "machine": {"gpus": ["a card, driver 1"] * num_gpus},
        "model": "m",
        "seconds": 5.0,
        "scale": {"traffic": num_gpus / 2},
        "kvrelay": measured(tokens_per_s),
        "peer_measured": measured(theirs) if peer else None,
    }


def table(*pairs: Pair) -> list[str]:
    found = (measurements_of(one) for one in pairs)
    return table_of(itertools.chain.from_iterable(found)).splitlines()[2:]


def test_a_system_is_compared_with_its_smallest_measurement() -> None:
    lines = table(
        pair("4p4d", 8, 3800.0, "sglang-pd-router", 3000.0),
        pair("1p1d", 2, 1000.0, "sglang-1p1d-router", 1000.0),
        pair("2d", 2, 1.0),
        pair("mixed", 4, 1.0, "sglang-pd", 1.0),
    )
    assert lines[:4] == [
        "| full | kvrelay 1p1d | 2 | 1,000 | 1.00 | 50.0 | 120 | 9.5 |",
        "| full | kvrelay 1p1d | 8 | 3,800 | 0.95 | 50.0 | 120 | 9.5 |",
        "| full | sglang 1p1d behind its router | 2 | 1,000 | 1.00 | 50.0 | 120 | 9.5 |",
        "| full | sglang 1p1d behind its router | 8 | 3,000 | 0.75 | 50.0 | 120 | 9.5 |",
    ]
    assert [line.split(" | ")[4] for line in lines[4:]] == ["–"] * 4, "one request at a time"


def test_replicas_and_ranks_grow_apart() -> None:
    names = [
        [one.system for one in measurements_of(pair(layout, 8, 1.0, peer, 1.0))]
        for layout, peer in (("8d", "vllm-dp"), ("tp4+4", "vllm-tp4"), ("2p6d", "vllm-tp2+4"))
    ]
    assert names == [
        ["kvrelay replicas", "vllm replicas"],
        ["kvrelay 1p1d of 4 ranks", "vllm replicas of 4 ranks"],
        ["kvrelay 1p3d", "vllm of 2+4 ranks"],
    ]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="no system of these files"):
        table(pair("1p1d", 2, 1.0), pair("mixed", 4, 1.0))
    with pytest.raises(
        ConfigError, match="kvrelay 1p1d had 1 times the load on 2 GPUs and 1 times"
    ):
        table(pair("1p1d", 2, 1.0), pair("2p2d", 4, 1.0) | {"scale": {"traffic": 1.0}})
    with pytest.raises(ConfigError, match="same model, length, version and cards"):
        table(pair("1p1d", 2, 1.0), pair("2p2d", 4, 1.0) | {"model": "other"})


def test_files_are_read_and_a_sentence_tells_what_is_wrong(tmp_path: Path) -> None:
    files = []
    for layout, num_gpus in (("1p1d", 2), ("2p2d", 4)):
        path = tmp_path / f"{layout}.json"
        path.write_text(json.dumps(pair(layout, num_gpus, 1000.0 * num_gpus)))
        files.append(str(path))
    command = [sys.executable, "-m", "benchmarks.serving.growth"]
    ended = subprocess.run([*command, *files], capture_output=True, text=True, timeout=60)
    assert "| full | kvrelay 1p1d | 4 | 4,000 | 1.00 |" in ended.stdout
    ended = subprocess.run([*command, files[0]], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.startswith("growth: no system of these files")
