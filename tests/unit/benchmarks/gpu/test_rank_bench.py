"""The benchmark of a tensor-parallel model: what each rank measures, its floor, what is told, and
its processes."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.engines.floor import MachineRates, decode_work
from benchmarks.engines.random_model import save_random_model
from benchmarks.engines.shapes import SHAPES
from benchmarks.gpu import rank_steps
from benchmarks.gpu.plan import DecodeCell, GpuPlan, ranks_plan
from benchmarks.gpu.rank_report import RanksReport, rest_s
from benchmarks.gpu.rank_steps import RankFigures, RankRow, RankTask, measure_rank, rank_work
from benchmarks.gpu.ranks import RanksFailed, measure_ranks
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.parallel import TensorParallel
from engine.steps.runner import ModelRunner
from tests.support.bench.tiny_shape import TINY_SIZES
from tests.support.engine.ranks import on_ranks

CPU = torch.device("cpu")
TINY = SHAPES["llama-3-70b"] | TINY_SIZES | {"dtype": "float32"}
PLAN = GpuPlan((16, 40), 1, (DecodeCell((20, 20), 3), DecodeCell((90,), 3)))
OPTIONS = EngineOptions("float32", load_format="dummy")
RATES = MachineRates(1e9, 1e9)
DECODED = RankRow("decode", 8, "2048", 0.010, 0.011, 0.004, 0.003)
FIGURES = RankFigures(
    [RankRow("prefill", 1, "512", 0.040, None, 0.020, 0.010), DECODED],
    RATES,
    "triton",
    2.5,
    1 << 30,
)


@pytest.fixture
def task(tmp_path: Path) -> RankTask:
    save_random_model(tmp_path, TINY)
    return RankTask(tmp_path, OPTIONS, PLAN, chunk_tokens=16)


@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_ranks_measure_every_cell_side_by_side(
    task: RankTask, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_steps, "measure_rates", lambda *_: RATES)
    options = dataclasses.replace(OPTIONS, quantization=quantization)
    task = dataclasses.replace(task, options=options)
    of_ranks = on_ranks(2, lambda parallel: measure_rank(task, CPU, parallel))
    for figures in of_ranks:
        cells = [(row.what, row.batch, row.context) for row in figures.rows]
        expected = [("prefill", 1, "16"), ("prefill", 1, "40")]
        assert cells == [*expected, ("decode", 2, "20"), ("decode", 1, "90")]
        assert all(row.collectives_s > 0 and row.floor_s > 0 for row in figures.rows)
        assert [row.strict_s is None for row in figures.rows] == [True, True, False, False]


def test_a_quick_plan_has_part_of_the_cells_and_one_for_cpus_small_ones() -> None:
    whole, quick, small = ranks_plan(False, True), ranks_plan(True, True), ranks_plan(False, False)
    assert {*quick.decodes} < {*whole.decodes} and {*quick.prompts} < {*whole.prompts}
    assert small.longest < quick.longest < whole.longest


def test_the_floor_of_a_rank_is_that_of_its_part(task: RankTask) -> None:
    def load(parallel: TensorParallel) -> ModelRunner:
        return load_model_runner(task.model, OPTIONS, lambda _: 4, CPU, parallel)

    cell = PLAN.decodes[0]
    for size in (1, 2):
        for runner in on_ranks(size, load):
            whole = decode_work(runner.config, "float32", cell.batch, cell.mean_context)
            part = rank_work(runner, cell, size)
            norms = (2 * runner.config.num_layers + 1) * runner.config.hidden_size * 4
            assert part.weight_bytes == whole.weight_bytes // size + norms
            assert (part.kv_bytes, part.flops) == (whole.kv_bytes // size, whole.flops // size)


def test_what_neither_the_floor_nor_sums_explain_is_told_as_the_rest() -> None:
    assert rest_s(DECODED) == pytest.approx(0.003)
    report = RanksReport({"none": FIGURES, "fp8": FIGURES}, {"num_ranks": 4})
    told = json.loads(json.dumps(report.as_json()))
    assert told["num_ranks"] == 4 and told["forms"].keys() == {"none", "fp8"}
    prefill, decode = told["forms"]["fp8"]["rows"]
    assert (decode["ms"], decode["floor_ms"], decode["collectives_ms"]) == (10.0, 4.0, 3.0)
    assert (decode["vs_floor"], decode["rest_ms"], prefill["strict_ms"]) == (2.5, 3.0, None)
    console = Console(width=120, record=True, file=io.StringIO())
    for table in report.tables():
        console.print(table)
    text = console.export_text()
    assert "--quantization fp8" in text and "1.0 GiB of weights a rank, loaded in 2.5 s" in text


@pytest.mark.verify
def test_ranks_are_processes_and_one_that_fails_says_why(task: RankTask) -> None:
    figures = measure_ranks(task, [CPU, CPU], num_threads=1)
    assert len(figures.rows) == 4
    broken = dataclasses.replace(task, model=task.model / "nowhere")
    with pytest.raises(RanksFailed, match=r"rank \d failed: .*config.json"):
        measure_ranks(broken, [CPU, CPU], num_threads=1)
    with pytest.raises(RanksFailed, match=r"did not measure everything within 0\.01 s"):
        measure_ranks(task, [CPU, CPU], num_threads=1, timeout_s=0.01)
