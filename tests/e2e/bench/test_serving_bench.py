"""`make bench-serve-gpu` from its flags to its picture, on CPUs: real clusters, a peer that is not
there, and every load for a moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving.loads import DEFAULT_LOADS

pytestmark = pytest.mark.verify
LIMIT_S = 240.0
LAYOUTS = ("1p1d", "mixed")
ROWS = {
    *("alone 512", "alone 2048", "alone 8192", "random@8", "random@14", "shared@20"),
    *("turns first", "turns later", "mixed chats", "mixed long", "full"),
}


def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *words], capture_output=True, text=True, timeout=LIMIT_S
    )


def test_every_load_against_a_pair_of_each_policy(tmp_path: Path) -> None:
    short = ("--device", "cpu", "--seconds", "1.5", "--warm-up-seconds", "0.5")
    ended = run(
        "benchmarks.serving",
        *(*short, "--layouts", ",".join(LAYOUTS), "--loads", ",".join(DEFAULT_LOADS)),
        *("--peer", "sglang-pd", "--results", str(tmp_path), "--log-dir", str(tmp_path / "logs")),
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert "sglang is not installed for" in ended.stderr and "pip install sglang" in ended.stderr
    line = json.loads(ended.stdout.splitlines()[-1])
    assert [pair["layout"] for pair in line["pairs"]] == list(LAYOUTS)
    for pair in line["pairs"]:
        assert (pair["errors"], pair["lost_leases"], pair["missing_nodes"]) == (0, 0, [])
        assert pair["compiles_while_serving"] == 0
        written = json.loads((tmp_path / f"{pair['layout']}.json").read_text())
        rows = written["kvrelay"]["rows"]
        assert rows.keys() == ROWS
        for row, (figures,) in rows.items():
            assert figures["ttft_p50_ms"] > 0 and figures["tokens_per_s"] > 0, row
        assert rows["turns later"][0]["hit_rate"] > 0.5, "a later turn finds the earlier ones"
        assert rows["shared@20"][0]["hit_rate"] > rows["random@8"][0]["hit_rate"]
        assert list((tmp_path / "logs").glob(f"*-{pair['layout']}/coordinator.log"))
    picture = tmp_path / "pairs.svg"
    table = run("benchmarks.serving.table", "--results", str(tmp_path), "--picture", str(picture))
    assert table.returncode == 0 and table.stdout.count("| turns later |") == len(LAYOUTS)
    assert picture.read_text().startswith("<svg")


def test_what_cannot_be_measured_is_told_before_anything_starts(tmp_path: Path) -> None:
    for words, sentence in (
        (("--loads", "random"), "need a rate, as random@8"),
        (("--layouts", "p1"), "write 1p1d"),
        (("--node-flags", "dtype"), "write name=value"),
        (("--peer", "sglang-pd,vllm"), "--peer has 'vllm'; write sglang-dp"),
        (("--peer", "vllm-2p2d"), "needs 4 GPUs; 2 can be used here"),
    ):
        ended = run("benchmarks.serving", "--device", "cpu", "--results", str(tmp_path), *words)
        assert ended.returncode == 1 and sentence in ended.stderr
        assert "Traceback" not in ended.stderr and not ended.stdout
