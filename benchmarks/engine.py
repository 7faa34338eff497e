"""The engine beside `transformers`, llama.cpp and the floor, in one run on the same weights.

    .venv/bin/python -m benchmarks.engine [--shape NAME | --model embedded|PATH] [--threads N]
    .venv/bin/python -m benchmarks.engine --device cuda --shape llama-3-8b [--peers vllm,sglang]
    .venv/bin/python -m benchmarks.engine --device cuda --shape llama-3-8b \
        --quantization none,int4,int8,fp8
    .venv/bin/python -m benchmarks.engine --device cuda --shape llama-3-70b \
        --tensor-parallel-size 4 --quantization none,fp8

Physics: `benchmarks.engines.floor` says what a step cannot be faster than. Decoding reads all
weights for each step, so a batch is nearly free until either the K and V of its contexts outweigh
the weights or the multiplications outlast the reading; on one CPU core the latter comes early: at
some 60 GFLOP/s and 12 GB/s a float32 weight is multiplied with 10 rows in the time it takes to read
it. A prompt is nothing but multiplications. What an engine adds to that: copies of K and V
(`transformers` grows its cache by copying all of it in every step), one small operation after the
other, and the time between two steps (`benchmarks.engines.loop`).

What is compared is greedy decoding in float32 of sequences of equal length (which spares
`transformers` the padding that it would need otherwise), after all engines have chosen the same
tokens on the same text (`benchmarks.engines.check`). On CUDA (`benchmarks.gpu`) the peers are vLLM
and SGLang, in bfloat16 and with random weights, each on the same card in the same run. With
--tensor-parallel-size, as many ranks compute one model (`benchmarks.gpu.rank_steps`), on CPUs too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.engines.cells import (
    LLAMA_CPP,
    PEERS,
    TRANSFORMERS,
    Cell,
    ComparedEngine,
    Timing,
    cells,
    measure,
)
from benchmarks.engines.check import NUM_PROMPT_TOKENS, random_tokens, require_agreement
from benchmarks.engines.floor import MachineRates, decode_work, measure_rates, prefill_work
from benchmarks.engines.loop import measure_overhead
from benchmarks.engines.ours import Ours, num_pages_for
from benchmarks.engines.report import DeterministicCost, EngineReport, Row, rounded
from benchmarks.engines.shapes import SHAPES, save_model
from benchmarks.gpu.forms import FormsReport, measure_forms
from benchmarks.gpu.measuring import measure_shape
from benchmarks.gpu.peer_process import PEERS as GPU_PEERS
from benchmarks.gpu.plan import forms_plan, ranks_plan, standard_plan
from benchmarks.gpu.rank_report import RanksReport
from benchmarks.gpu.ranks import RanksFailed, measure_each_form
from benchmarks.gpu.report import GpuReport
from benchmarks.machine import machine
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from node.config import CPU_CHUNK, GPU_CHUNK
from node.devices import devices_of
from protocol.config import ConfigError

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "models" / "tiny"
GENERATE_TOKENS = 4096
"""The method `generate` of `transformers` is timed too, in the last cell with at most this many
tokens."""


def main() -> None:
    """Measures on the device that is asked for; prints tables and, last, a line of JSON."""
    parser = _parser()
    given = parser.parse_args()
    peers = list(PEERS) if given.device == "cpu" else []
    if given.peers is not None:
        peers = [name for name in given.peers.split(",") if name]
    _refuse_contradictions(parser, given, peers)
    torch.set_num_threads(given.threads)
    console = Console(width=110)
    report = _report(given, peers, console)
    for table in report.tables():
        console.print(table)
    line = json.dumps(report.as_json())
    if given.out is not None:
        given.out.write_text(line + "\n", encoding="utf-8")
    print(line)


def _refuse_contradictions(
    parser: argparse.ArgumentParser, given: argparse.Namespace, peers: Sequence[str]
) -> None:
    """Ends the program with a sentence if flags contradict one another or this machine."""
    known = tuple(GPU_PEERS) if given.device == "cuda" else PEERS
    if unknown := set(peers) - set(known):
        parser.error(f"no engine {', '.join(sorted(unknown))}; choose from {','.join(known)}")
    if given.device == "cuda" and given.model is not None:
        parser.error("with --device cuda name a --shape, whose weights are random")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; run it on a machine that has one")
    is_split = given.tensor_parallel_size > 1
    if is_split and (given.model is not None or given.peers):
        parser.error("--tensor-parallel-size takes a --shape with random weights, and no --peers")
    if given.device == "cpu" and given.quantization is not None and not is_split:
        parser.error("--quantization is compared on CUDA alone; name --device cuda")
    if given.model not in (None, "embedded") and not Path(given.model).is_dir():
        parser.error(f"{given.model} is no directory; name a model's, or embedded")


def _report(
    given: argparse.Namespace, peers: Sequence[str], console: Console
) -> EngineReport | GpuReport | FormsReport | RanksReport:
    """Measures what the flags ask for."""
    if given.tensor_parallel_size > 1:
        return _measure_ranks(given)
    if given.device == "cuda" and given.quantization is not None:
        return _measure_forms(given, console)
    if given.device == "cuda":
        return _measure_cuda(given, peers, console)
    with tempfile.TemporaryDirectory() as directory:
        return _measure_cpu(given, peers, Path(directory), console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The engine beside others and the floor.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="random weights")
    what.add_argument("--model", help="embedded, or a model directory")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=_positive, default=1, help="of every engine; 1: a node's")
    parser.add_argument(
        "--peers",
        help=f"'' for none; default: {','.join(PEERS)} on the CPU, none of "
        f"{','.join(GPU_PEERS)} on CUDA",
    )
    parser.add_argument("--batches", type=_positives, default=[1, 8, 32])
    parser.add_argument("--contexts", type=_positives, default=[128, 512, 2048, 4096])
    parser.add_argument(
        "--prefill-tokens",
        type=int,
        default=4096,
        help="prompts are computed in cells of at most so many tokens: more take minutes",
    )
    parser.add_argument("--deterministic-cost", action=argparse.BooleanOptionalAction, default=True)
    on_cuda = parser.add_argument_group("with --device cuda")
    on_cuda.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    on_cuda.add_argument("--attention-backend", default="auto")
    on_cuda.add_argument(
        "--chunk-tokens", type=_positive, default=GPU_CHUNK, help="of a prompt in one step"
    )
    on_cuda.add_argument(
        "--peer-path",
        type=_peer_path,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where a peer's packages are, as a PYTHONPATH; default: beside ours",
    )
    on_cuda.add_argument(
        "--quantization",
        type=lambda text: text.split(","),
        metavar="NAMES",
        help="no peers, but the engine with each of these, like none,int4,int8,fp8",
    )
    on_cuda.add_argument(
        "--tensor-parallel-size",
        type=_positive,
        default=1,
        help="no peers, but the engine as so many ranks, with each --quantization; on a CPU, too",
    )
    on_cuda.add_argument("--quick", action="store_true", help="fewer lengths and steps")
    parser.add_argument("--out", type=Path, help="write the JSON line here, too")
    return parser


def _positive(text: str) -> int:
    """Reads a flag's number, which must be 1 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number")
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def _positives(text: str) -> list[int]:
    """Reads a flag's numbers, which commas separate."""
    return [_positive(part) for part in text.split(",")]


def _peer_path(text: str) -> tuple[str, str]:
    """Reads a flag's NAME=PATH."""
    name, equals, path = text.partition("=")
    if name not in GPU_PEERS or not equals:
        names = ", ".join(f"{peer}=/path" for peer in GPU_PEERS)
        raise argparse.ArgumentTypeError(f"{text} is not one of {names}")
    return name, path


def _measure_cuda(given: argparse.Namespace, peers: Sequence[str], console: Console) -> GpuReport:
    """Measures our engine and the peers on the GPU, with random weights of the shape that is asked
    for."""
    options = EngineOptions(
        dtype=given.dtype,
        load_format="dummy",
        attention_backend=given.attention_backend,
    )
    plan = standard_plan(given.quick)
    paths = dict(given.peer_path)
    return measure_shape(given.shape, options, plan, given.chunk_tokens, peers, paths, console)


def _measure_forms(given: argparse.Namespace, console: Console) -> FormsReport:
    """Measures our engine on the GPU with each `--quantization` that is asked for."""
    options = EngineOptions(
        dtype=given.dtype, load_format="dummy", attention_backend=given.attention_backend
    )
    plan = forms_plan(given.quick)
    names = given.quantization
    return measure_forms(given.shape, options, names, plan, given.chunk_tokens, console)


def _measure_ranks(given: argparse.Namespace) -> RanksReport:
    """Measures our engine as several ranks with each `--quantization` that is asked for. Ends the
    program if none can be measured."""
    on_gpu = given.device == "cuda"
    options = EngineOptions(
        dtype=given.dtype if on_gpu else "float32",
        load_format="dummy",
        attention_backend=given.attention_backend,
    )
    names, plan = given.quantization or ["none"], ranks_plan(given.quick, on_gpu)
    size, device, num_threads = given.tensor_parallel_size, given.device, given.threads
    try:
        devices = devices_of(device, size)
        return measure_each_form(
            given.shape, options, names, plan, given.chunk_tokens, devices, num_threads
        )
    except (RanksFailed, ConfigError) as error:
        sys.exit(f"bench-engine: {error}")


def _measure_cpu(
    given: argparse.Namespace, peers: Sequence[str], directory: Path, console: Console
) -> EngineReport:
    """Measures our engine and the `peers` in every cell, a batch size with a context length, after
    all have shown that they compute the same. `directory` takes the models that are written."""
    model = _model_directory(given, directory)
    plan = cells(given.batches, given.contexts)
    runner = _load(model, plan, deterministic=False)
    ours = Ours(runner, CPU_CHUNK)
    engines: list[ComparedEngine] = [
        ours,
        *_peers(peers, model, directory, given.threads, runner, console),
    ]
    _check(engines, model, runner, console)
    rates = measure_rates(torch.float32, runner.device)
    console.print(
        f"copy {rates.copy_bytes_s / 1e9:.1f} GB/s, matmul {rates.matmul_flop_s / 1e9:.1f} GFLOP/s"
    )
    rows = []
    for cell in plan:
        console.print(f"batch {cell.batch}, context {cell.context}: {cell.num_steps} steps")
        with_prefill = cell.num_tokens <= given.prefill_tokens
        timings = {engine.name: measure(engine, cell, with_prefill) for engine in engines}
        rows.append(_row(cell, timings, rates, runner))
    notes = {
        "machine": machine("torch", *_installed("transformers", "llama-cpp-python")),
        "model": given.model or given.shape,
        "threads": given.threads,
        "copy_bytes_s": round(rates.copy_bytes_s),
        "matmul_flop_s": round(rates.matmul_flop_s),
        "attention": runner.attention.name,
        "prefill_left_out": f"cells of more than {given.prefill_tokens} tokens",
    }
    for engine in engines:
        if engine.name == TRANSFORMERS:
            notes["generate_vs_by_hand"] = _generate_ratio(engine, plan)
    costs = []
    if given.deterministic_cost:
        console.print("once more with --deterministic")
        costs = _deterministic_costs(model, [row for row in rows if row.ours.prefill_s is not None])
    return EngineReport(rows, costs, notes)


def _row(cell: Cell, timings: dict[str, Timing], rates: MachineRates, runner: ModelRunner) -> Row:
    """Returns the engines' times in a cell with what they are measured against: the floors of a
    decode step and of a prompt, and our time between two steps."""
    config, dtype = runner.config, runner.layout.dtype
    return Row(
        cell,
        timings,
        decode_work(config, dtype, cell.batch, cell.mean_context).floor_s(rates),
        prefill_work(config, dtype, cell.batch, cell.context).floor_s(rates),
        measure_overhead(runner, cell),
    )


def _model_directory(given: argparse.Namespace, directory: Path) -> Path:
    """Returns the directory of the model to measure; a shape with random weights is written into
    `directory` first."""
    if given.model is not None:
        return EMBEDDED if given.model == "embedded" else Path(given.model)
    model = directory / given.shape
    save_model(given.shape, model)
    return model


def _load(model: Path, plan: Sequence[Cell], deterministic: bool) -> ModelRunner:
    """Returns our engine in float32, with pages for the largest cell of the plan."""
    options = EngineOptions(dtype="float32", deterministic=deterministic)
    return load_model_runner(
        model, options, lambda layout: num_pages_for(plan, layout), torch.device("cpu")
    )


def _peers(
    names: Sequence[str],
    model: Path,
    directory: Path,
    num_threads: int,
    runner: ModelRunner,
    console: Console,
) -> list[ComparedEngine]:
    """Returns the other engines that are named and installed. Those that are not installed are
    mentioned on the console."""

    def transformers() -> ComparedEngine:
        from benchmarks.engines.transformers import Transformers

        return Transformers(model, torch.float32)

    def llama_cpp() -> ComparedEngine:
        from benchmarks.engines.gguf_export import write_gguf
        from benchmarks.engines.llamacpp import LlamaCpp

        target = directory / "model.gguf"
        write_gguf(model, target)
        return LlamaCpp(target, num_threads, runner.config.vocab_size)

    makers: dict[str, tuple[Callable[[], ComparedEngine], Sequence[str]]] = {
        TRANSFORMERS: (transformers, ("transformers",)),
        LLAMA_CPP: (llama_cpp, ("llama_cpp", "gguf")),
    }
    engines = []
    for name in names:
        make, modules = makers[name]
        if missing := [module for module in modules if find_spec(module) is None]:
            console.print(
                f"{name} is left out: {' and '.join(missing)} not installed "
                "(pip install -e '.[bench]')"
            )
        else:
            engines.append(make())
    return engines


def _check(
    engines: Sequence[ComparedEngine], model: Path, runner: ModelRunner, console: Console
) -> None:
    """Stops the benchmark unless all engines choose the same tokens as `transformers`, but for
    ties. Does nothing if there is no other engine."""
    if len(engines) == 1:
        return
    from benchmarks.engines.transformers import Transformers

    tokens = random_tokens(runner.config.vocab_size)
    reference = Transformers(model, torch.float32).logits(tokens)
    for engine in engines:
        found = require_agreement(engine, tokens, reference, NUM_PROMPT_TOKENS)
        console.print(
            f"{engine.name}: {found.num_choices} equal choices, {found.num_ties} by a tie"
        )


def _generate_ratio(engine: Any, plan: Sequence[Cell]) -> dict[str, Any]:
    """Returns how much longer a step takes within `generate` of `transformers` than one that is
    called by hand, as a ratio, with the cell in which it was measured."""
    cell = [plan[0], *(cell for cell in plan if cell.num_tokens <= GENERATE_TOKENS)][-1]
    by_hand = measure(engine, cell, with_prefill=False).step_s
    ratio = engine.generate_step_s(cell) / by_hand
    return {"batch": cell.batch, "context": cell.context, "step_ratio": rounded(ratio)}


def _deterministic_costs(model: Path, rows: Sequence[Row]) -> list[DeterministicCost]:
    """Measures with --deterministic the cells whose prompts were computed, and returns both
    timings of each. The other cells would take minutes and teach little more."""
    if not rows:
        return []
    engine = Ours(_load(model, [row.cell for row in rows], deterministic=True), CPU_CHUNK)
    return [
        DeterministicCost(row.cell, row.ours, measure(engine, row.cell, with_prefill=True))
        for row in rows
    ]


def _installed(*packages: str) -> list[str]:
    """Returns those of `packages` that are installed."""
    found = []
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            continue
        found.append(package)
    return found


if __name__ == "__main__":
    main()
