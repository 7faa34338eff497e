"""The engine benchmark: its arithmetic, what it exports, what it asks of engines and tells."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import engine
from benchmarks.engines.cells import LLAMA_CPP, OURS, TRANSFORMERS, Cell, Timing, cells, measure
from benchmarks.engines.check import Disagreement, require_agreement
from benchmarks.engines.floor import (
    MachineRates,
    StepWork,
    decode_work,
    layer_weights,
    measure_rates,
    prefill_work,
)
from benchmarks.engines.loop import Overhead, measure_overhead
from benchmarks.engines.ours import Ours, num_pages_for
from benchmarks.engines.random_model import save_random_model
from benchmarks.engines.report import DeterministicCost, EngineReport, Row
from benchmarks.engines.shapes import SHAPES, save_shape
from engine.build import load_model_runner
from engine.model.config import ModelConfig
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from tests.support.bench.tiny_shape import TINY_SIZES

TINY = SHAPES["smollm2-135m"] | TINY_SIZES
CELLS = [Cell(2, 20, 3), Cell(1, 40, 3)]
MANY_PROMPTS = Cell(6, 120, 2)
"""More tokens of prompts than a step ends: SHORT_STEP_TOKENS."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_random_model(path, TINY)
    return path


@pytest.fixture(scope="module")
def runner(model: Path) -> ModelRunner:
    return load_model_runner(
        model,
        EngineOptions(dtype="float32"),
        lambda layout: num_pages_for([*CELLS, MANY_PROMPTS], layout),
        CPU,
    )


# Floors


def test_weights_are_those_of_the_model(runner: ModelRunner) -> None:
    matrices = [p.numel() for p in runner.model.parameters() if p.dim() == 2]
    assert layer_weights(runner.config) + 96 * 32 == sum(matrices)


def test_the_work_of_a_decode_step(runner: ModelRunner) -> None:
    config = runner.config
    weights = layer_weights(config) + 96 * 32
    work = decode_work(config, "float32", batch=3, context=10)
    assert work.weight_bytes == 4 * weights
    assert work.kv_bytes == 3 * 10 * runner.layout.page_bytes // runner.layout.page_size
    assert work.flops == 3 * (2 * weights + 10 * 2 * 4 * 4 * 8)
    assert decode_work(config, "bfloat16", 3, 10).weight_bytes * 2 == work.weight_bytes


def test_a_prompt_costs_what_its_tokens_cost_one_by_one_but_for_their_logits(
    runner: ModelRunner,
) -> None:
    config = runner.config
    one_by_one = sum(decode_work(config, "float32", 2, n).flops for n in range(1, 31))
    logits = 2 * 2 * 96 * 32
    assert prefill_work(config, "float32", 2, 30).flops == one_by_one - 29 * logits


def test_the_floor_is_the_slower_of_reading_and_computing() -> None:
    rates = MachineRates(copy_bytes_s=100.0, matmul_flop_s=1000.0)
    assert StepWork(weight_bytes=300, kv_bytes=100, flops=500).floor_s(rates) == 4.0
    assert StepWork(weight_bytes=300, kv_bytes=100, flops=5000).floor_s(rates) == 5.0


def test_llama_3_8b_is_an_8b_model(tmp_path: Path) -> None:
    save_shape("llama-3-8b", tmp_path)
    config = ModelConfig.from_directory(tmp_path)
    work = decode_work(config, "bfloat16", 128, 2048)
    assert work.weight_bytes / 2 + config.vocab_size * config.hidden_size == pytest.approx(
        8.03e9, rel=1e-3
    )
    assert work.kv_bytes == 128 * 2048 * (128 << 10)


# Cells and engines


class FakeEngine:
    """Computes nothing: its seconds are given, its choices, too."""

    name = "fake"

    def __init__(self, prefill_s: Sequence[float] = (), chosen: Sequence[int] = ()) -> None:
        self.left = list(prefill_s)
        self.chosen = list(chosen)

    def prefill_s(self, cell: Cell) -> float:
        return self.left.pop(0)

    def step_s(self, cell: Cell) -> list[float]:
        return [3.0, 1.0, 2.0]

    def choices(self, tokens: Sequence[int], num_prompt_tokens: int) -> list[int]:
        return self.chosen


def test_cells_go_from_small_to_large_and_take_fewer_steps_then() -> None:
    plan = cells([1, 32], [128, 4096])
    assert [(c.batch, c.context) for c in plan] == [(1, 128), (1, 4096), (32, 128), (32, 4096)]
    assert [c.num_steps for c in plan] == [32, 16, 16, 5]


def test_short_prompts_warm_up_and_long_ones_are_computed_until_time_is_up() -> None:
    short = FakeEngine([9.0, 0.1, 0.3, 0.2, 0.1, 0.2, 7.0])
    assert measure(short, Cell(1, 128, 3), with_prefill=True) == Timing(0.2, 2.0)
    assert short.left == [7.0]
    long = FakeEngine([1.5, 1.0, 7.0])
    assert measure(long, Cell(1, 4096, 3), with_prefill=True) == Timing(1.25, 2.0)
    assert measure(FakeEngine(), Cell(1, 1, 3), with_prefill=False) == Timing(None, 2.0)


def test_other_choices_than_the_likeliest_stop_the_benchmark() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 1.0, 0.9995], [0.0, 0.5, 0.6]])
    assert require_agreement(FakeEngine(chosen=[1, 2]), [5, 5, 5], logits, 2).num_ties == 0
    assert require_agreement(FakeEngine(chosen=[2, 2]), [5, 5, 5], logits, 2).num_ties == 1
    with pytest.raises(Disagreement, match="chooses 1 after 3 tokens"):
        require_agreement(FakeEngine(chosen=[1, 1]), [5, 5, 5], logits, 2)


def test_our_engine_fills_its_cells(runner: ModelRunner) -> None:
    ours = Ours(runner, chunk_tokens=16)
    for cell in CELLS:
        assert len(ours.step_s(cell)) == len(ours.step_ahead_s(cell)) == cell.num_steps
        assert ours.prefill_s(cell) > 0


def test_what_is_chosen_does_not_depend_on_where_the_prompt_ends(runner: ModelRunner) -> None:
    ours, tokens = Ours(runner, chunk_tokens=16), list(range(3, 33))
    assert ours.choices(tokens, 10)[15:] == ours.choices(tokens, 25)


def test_transformers_choose_the_same(model: Path, runner: ModelRunner) -> None:
    from benchmarks.engines.transformers import Transformers

    theirs, tokens = Transformers(model, torch.float32), list(range(3, 33))
    for each in (theirs, Ours(runner, chunk_tokens=16)):
        require_agreement(each, tokens, theirs.logits(tokens), 10)
    assert len(theirs.step_s(CELLS[0])) == CELLS[0].num_steps
    assert theirs.generate_step_s(CELLS[0]) > 0 and theirs.prefill_s(CELLS[0]) > 0


@pytest.mark.parametrize("cell", [CELLS[0], MANY_PROMPTS])
def test_overhead_is_a_share(runner: ModelRunner, cell: Cell) -> None:
    overhead = measure_overhead(runner, cell)
    for share in (overhead.share, overhead.sampled_share, overhead.penalised_share):
        assert 0 < share < 1
    assert len(runner.states) == 0, "the next cell begins with empty states"


def test_rates_are_positive() -> None:
    rates = measure_rates(torch.float32, CPU, copy_bytes=[1 << 12], matmuls=[(8, 8, 8)])
    assert rates.copy_bytes_s > 0 and rates.matmul_flop_s > 0


# GGUF


def test_a_gguf_holds_every_weight_by_llama_cpps_name(model: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from benchmarks.engines.gguf_export import write_gguf

    write_gguf(model, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    shapes = {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in reader.tensors}
    layer = {
        "attn_norm": (32,),
        "ffn_norm": (32,),
        "attn_q": (32, 32),
        "attn_k": (16, 32),
        "attn_v": (16, 32),
        "attn_output": (32, 32),
        "ffn_gate": (48, 32),
        "ffn_up": (48, 32),
        "ffn_down": (32, 48),
    }
    assert shapes == {"token_embd.weight": (96, 32), "output_norm.weight": (32,)} | {
        f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in layer.items()
    }
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.rope.freq_base"] == 100_000.0
    assert fields["tokenizer.ggml.model"] == "no_vocab" and fields["llama.vocab_size"] == 96


def test_rows_of_queries_are_permuted_so_that_rope_turns_the_same_pairs() -> None:
    pytest.importorskip("gguf")
    from benchmarks.engines.gguf_export import interleave_halves

    head_dim, position = 8, 3.0
    angles = position * 10.0 ** -np.arange(head_dim // 2)
    turned = np.exp(1j * angles)
    query = np.random.default_rng(1).normal(size=(2, head_dim))  # two heads
    halves = (query[:, :4] + 1j * query[:, 4:]) * turned  # Hugging Face's rope
    moved = interleave_halves(query.reshape(-1, 1), 2).reshape(2, head_dim)
    neighbours = (moved[:, 0::2] + 1j * moved[:, 1::2]) * turned  # llama.cpp's
    assert np.allclose(halves, neighbours)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "Qwen3ForCausalLM"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "llama3 rope scaling"),
        ({"attention_bias": True}, "attention_bias"),
    ],
)
def test_what_gguf_cannot_hold_yet_is_refused(
    change: dict[str, object], found: str, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    from benchmarks.engines.gguf_export import NoGGUF, write_gguf

    (tmp_path / "config.json").write_text(json.dumps(TINY | change))
    with pytest.raises(NoGGUF, match=found):
        write_gguf(tmp_path, tmp_path / "model.gguf")


# What is told


ROW = Row(
    Cell(8, 512, 16),
    {OURS: Timing(2.0, 0.1), TRANSFORMERS: Timing(3.0, 0.4), LLAMA_CPP: Timing(None, 0.2)},
    step_floor_s=0.05,
    prefill_floor_s=1.0,
    overhead=Overhead(0.04, 0.08, 0.09),
)


def test_ratios_say_how_many_times_our_rate_is_theirs() -> None:
    told = ROW.as_json()
    assert told["decode_tok_s"] == 80.0
    assert (told["decode_vs_transformers"], told["decode_vs_llamacpp"]) == (4.0, 2.0)
    assert (told["prefill_vs_transformers"], told["prefill_vs_llamacpp"]) == (1.5, None)
    assert (told["step_vs_floor"], told["prefill_vs_floor"]) == (2.0, 2.0)
    assert (told["overhead_share"], told["prefill_tok_s"]) == (0.04, 2048.0)


def test_what_was_not_measured_is_null() -> None:
    alone = replace(ROW, timings={OURS: Timing(None, 0.1)}, overhead=None)
    told = alone.as_json()
    missing = {key for key, value in told.items() if value is None}
    assert missing == {
        "decode_vs_transformers",
        "decode_vs_llamacpp",
        "prefill_vs_transformers",
        "prefill_vs_llamacpp",
        "prefill_tok_s",
        "prefill_vs_floor",
        "overhead_share",
        "overhead_share_sampled",
        "overhead_share_penalised",
    }
    Console(quiet=True).print(*EngineReport([alone]).tables())


def test_the_line_has_all_rows_and_what_determinism_costs() -> None:
    cost = DeterministicCost(ROW.cell, Timing(2.0, 0.1), Timing(3.0, 0.12))
    report = EngineReport([ROW], [cost], {"machine": {"cores": 2}})
    told = json.loads(json.dumps(report.as_json()))
    assert (told["bench"], told["machine"], len(told["rows"])) == ("engine", {"cores": 2}, 1)
    (costs,) = told["deterministic"]
    assert (costs["step_vs_plain"], costs["prefill_vs_plain"]) == (1.2, 1.5)
    assert len(report.tables()) == 3


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "vllm"], "no engine vllm; choose from transformers,llama.cpp"),
        (["--device", "cuda", "--peers", "llama.cpp"], "choose from vllm,sglang"),
        (["--peer-path", "vllm"], "vllm is not one of vllm=/path, sglang=/path"),
        (["--shape", "gpt-5"], "invalid choice"),
        (["--batches", "1,0"], "0 is not 1 or more"),
        (["--threads", "two"], "two is not a number"),
        (["--model", "embedded", "--shape", "llama-3-8b"], "not allowed with"),
        (["--model", "embedded", "--device", "cuda"], "--device cuda"),
        (["--model", "/nowhere", "--peers", ""], "/nowhere"),
    ],
)
def test_wrong_arguments_are_explained(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["engine", *arguments])
    with pytest.raises(SystemExit):
        engine.main()
    assert message in capsys.readouterr().err


def test_a_run_ends_with_one_json_line(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(engine, "measure_rates", lambda *_: MachineRates(1e9, 1e9))
    out = tmp_path / "engine.json"
    arguments = ["--model", str(model), "--batches", "1,2", "--contexts", "16", "--out", str(out)]
    arguments += ["--peers", "transformers", "--prefill-tokens", "16"]
    monkeypatch.setattr(sys, "argv", ["engine", *arguments])
    engine.main()
    line = capsys.readouterr().out.splitlines()[-1]
    told = json.loads(line)
    assert out.read_text() == line + "\n"
    assert [(row["batch"], row["context"]) for row in told["rows"]] == [(1, 16), (2, 16)]
    assert [row["prefill_tok_s"] is None for row in told["rows"]] == [False, True]
    assert all(row["decode_vs_transformers"] > 0 for row in told["rows"])
    assert [cost["context"] for cost in told["deterministic"]] == [16]
    assert told["machine"]["transformers"] and told["threads"] == 1
