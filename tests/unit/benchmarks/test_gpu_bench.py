"""The benchmark on a GPU: its plan, its peers in processes of their own, what it tells."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from rich.console import Console

from benchmarks.engines.floor import MachineRates
from benchmarks.engines.random_model import save_random_model
from benchmarks.engines.shapes import SHAPES
from benchmarks.gpu import measuring
from benchmarks.gpu.forms import measure_forms_on
from benchmarks.gpu.measuring import measure_device, num_pages_of_plan
from benchmarks.gpu.peer_process import MissingPeer, PeerTask, PeerTimes, peer_times
from benchmarks.gpu.peers import run_peer, run_peers
from benchmarks.gpu.plan import UNEQUAL, DecodeCell, GpuPlan, standard_plan
from benchmarks.gpu.report import DecodeRow, GpuReport, PrefillRow
from engine.options import EngineOptions
from protocol.layout import KVLayout
from tests.support.bench.tiny_shape import TINY_SIZES

TINY = SHAPES["smollm2-135m"] | TINY_SIZES
PLAN = GpuPlan((16, 40), 1, (DecodeCell((20, 20), 3), DecodeCell((3, 3, 90), 3)))
TASK = PeerTask("/model", "bfloat16", 96, PLAN)
TIMES = PeerTimes("1.2", [0.02, 0.04], [0.001, 0.006])
TELLS = f"print('loading'); print({msgspec.json.encode(TIMES).decode()!r}); print('bye')"


def test_the_plan_has_short_contexts_beside_a_long_one() -> None:
    cell = standard_plan(is_quick=True).decodes[-1]
    assert cell.contexts == UNEQUAL and cell.label == "32 × 300 + 1 × 12000"
    assert [cell.label for cell in PLAN.decodes] == ["20", "2 × 3 + 1 × 90"]
    assert msgspec.json.decode(msgspec.json.encode(TASK), type=PeerTask) == TASK


def test_the_pool_holds_the_largest_part_of_the_plan() -> None:
    layout = KVLayout(16, 2, 2, 8, "float32")
    assert num_pages_of_plan(PLAN, layout) == 1 + 1 + 6
    assert PLAN.longest == 95 and PLAN.largest_batch == 3


def test_a_device_is_measured_in_every_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "measure_rates", lambda *_: MachineRates(1e9, 1e9))
    save_random_model(tmp_path / "tiny", TINY)
    options, quiet = EngineOptions(dtype="float32"), Console(quiet=True)
    report = measure_device(
        tmp_path / "tiny", options, torch.device("cpu"), PLAN, 16, quiet, {"vllm": TIMES}
    )
    assert [row.cell for row in report.decodes] == list(PLAN.decodes)
    assert [row.num_tokens for row in report.prefills] == [16, 40]
    assert report.peers == {"vllm": TIMES}


def test_every_quantisation_is_measured_in_every_cell(tmp_path: Path) -> None:
    save_random_model(tmp_path / "tiny", TINY)
    report = measure_forms_on(
        tmp_path / "tiny",
        EngineOptions(dtype="float32"),
        torch.device("cpu"),
        ["none", "fp8"],
        PLAN,
        16,
        Console(quiet=True),
    )
    told = json.loads(json.dumps(report.as_json()))
    cells = [(row["what"], row["batch"], row["context"]) for row in told["rows"]]
    assert cells == [("prefill", 1, 16), ("prefill", 1, 40), ("decode", 2, 20), ("decode", 3, 90)]
    for row in told["rows"]:
        assert row["vs_first"]["none"] == 1.0 and row["ms"]["fp8"] > 0
    assert told["weights_mib"]["fp8"] < told["weights_mib"]["none"]
    assert report.tables()[0].row_count == len(cells)


class FakeGenerator:
    """Takes one second for each new prompt token and ten for each token of an answer."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.seen: set[tuple[int, ...]] = set()

    def now(self) -> float:
        return self.clock

    def answer(self, prompts: Sequence[list[int]], num_tokens: int) -> None:
        new = {tuple(prompt) for prompt in prompts} - self.seen
        self.seen |= new
        self.clock += sum(map(len, new)) + 10 * num_tokens


def test_a_step_is_a_difference_of_answers_to_cached_prompts() -> None:
    engine = FakeGenerator()
    times = peer_times(engine, TASK, engine.now)
    assert times.prefill_s == [16 + 10, 40 + 10]
    assert times.step_s == [10, 10]


def test_a_peer_tells_its_times_among_other_lines() -> None:
    assert run_peer([sys.executable, "-c", TELLS], "", TASK, 30) == TIMES


@pytest.mark.parametrize(
    ("program", "deadline_s", "reason"),
    [
        ("raise ValueError('no such GPU')", 30, "code 1: ValueError: no such GPU"),
        ("pass", 30, "code 0: it said nothing"),
        ("import time; time.sleep(60)", 0.1, "more than 0 s"),
    ],
)
def test_a_peer_that_fails_is_missing_and_says_why(
    program: str, deadline_s: float, reason: str
) -> None:
    told = run_peer([sys.executable, "-c", program], "", TASK, deadline_s)
    assert isinstance(told, MissingPeer) and reason in told.reason


def test_a_peer_that_is_not_installed_is_missing(tmp_path: Path) -> None:
    told = run_peers(["sglang"], {}, TASK, Console(quiet=True))
    assert told == {"sglang": MissingPeer("sglang is not installed")}


def test_peers_are_told_as_ratios_of_this_run_and_missing_ones_by_their_reason() -> None:
    decodes = [DecodeRow(cell, 0.002, 0.003, 0.001) for cell in PLAN.decodes]
    prefills = [PrefillRow(n, 0.04, 0.03) for n in PLAN.prompts]
    peers = {"vllm": TIMES, "sglang": MissingPeer("sglang is not installed")}
    report = GpuReport(decodes, prefills, peers, {"dtype": "bfloat16"})
    told = json.loads(json.dumps(report.as_json()))
    assert told["peers"]["sglang"] == {"missing": "sglang is not installed"}
    assert [row["peer_step_vs_ours"] for row in told["decode"]] == [{"vllm": 0.5}, {"vllm": 3.0}]
    assert [row["step_vs_floor"] for row in told["decode"]] == [2.0, 2.0]
    assert [row["share_of_matmul_rate"] for row in told["prefill"]] == [0.75, 0.75]
    assert [row["peer_prefill_vs_ours"]["vllm"] for row in told["prefill"]] == [0.5, 1.0]
    console = Console(width=120, record=True, file=io.StringIO())
    for table in report.tables():
        console.print(table)
    assert "sglang is not installed" in console.export_text()
