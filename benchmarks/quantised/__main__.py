"""Packed weights on a CPU: memory, load time, prompts and decoding beside the float32 form of the
same model and beside llama.cpp on the same GGUF file.

    .venv/bin/python -m benchmarks.quantised [--kinds Q4_K,Q8_0] [--llama-cpp DIRECTORY]

Physics: a step of one sequence reads every weight once, so it can be as many times faster than the
float32 one as the weights are smaller, until unpacking them takes longer than reading them. With
more rows multiplying takes most of the time: in float32 as long as for plain weights, in products
of eight bits several times less. A prompt is nothing but multiplications.

Engines take turns, some runs each, on as many threads; a ratio is the median of those of the
turns, in which both were measured one after the other. That is what counts: rates depend on what
else the machine does. llama.cpp always rounds its inputs to eight bits, and has K and V in float32
as we have. DIRECTORY has its libllama.so; the package llama-cpp-python must be importable.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.engines.cells import LLAMA_CPP, Cell, ComparedEngine
from benchmarks.engines.ours import Ours, num_pages_for
from benchmarks.engines.report import rounded
from benchmarks.machine import machine, versions_of
from benchmarks.quantised.models import CONFIG, Loaded, load, save_config, save_gguf
from engine.options import EngineOptions
from node.config import CPU_CHUNK
from protocol.model.gguf.tensor_types import BLOCK_TYPES

FLOAT32, EXACT, INT8 = "float32", "exact", "int8 activations"
AT_LOAD = ("int4", "int8", "fp8")
"""Forms of `--quantization`; int4 has groups of 128."""
DECODE = (Cell(1, 128, 12), Cell(8, 128, 8))
PREFILL = Cell(1, 512, 0)


def main() -> None:
    """Measures; prints a line per form and, last, a line of JSON."""
    given = _parser().parse_args()
    torch.set_num_threads(given.threads)
    console = Console(width=140)
    with tempfile.TemporaryDirectory() as directory:
        config = save_config(Path(directory) / "plain")
        plain = _ours(config, EngineOptions("float32", load_format="dummy"))
        rows = [_described(FLOAT32, FLOAT32, plain)]
        for kind in given.kinds:
            row = _measure_kind(kind, plain, Path(directory), config, given)
            console.print(_line(row))
            rows.append(row)
    report = {
        "bench": "quantised",
        "machine": machine("torch") | versions_of("llama-cpp-python"),
        "threads": given.threads,
        "turns": given.turns,
        "model": {
            key: CONFIG[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
        },
        "llama.cpp": "measured" if given.llama_cpp else "not there: name it by --llama-cpp",
        "rows": rows,
    }
    if given.out is not None:
        given.out.write_text(json.dumps(report) + "\n", encoding="utf-8")
    print(json.dumps(report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Packed weights beside float32 and llama.cpp.")
    parser.add_argument(
        "--kinds",
        type=lambda text: _kinds(parser, text),
        default=["Q4_K", "Q8_0", "Q6_K", "Q4_0", *AT_LOAD],
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--llama-cpp", type=Path, help="directory of its libraries")
    parser.add_argument("--out", type=Path, help="write the JSON line here, too")
    return parser


def _kinds(parser: argparse.ArgumentParser, text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := set(kinds) - {*BLOCK_TYPES, *AT_LOAD}:
        parser.error(f"--kinds has {', '.join(unknown)}; choose from {','.join(BLOCK_TYPES)},int4…")
    return kinds


def _measure_kind(
    kind: str, plain: Loaded, directory: Path, config: Path, given: argparse.Namespace
) -> dict[str, Any]:
    """Returns what one kind of weights takes and how fast it is, beside the others."""
    if kind in AT_LOAD:
        path = config
        plainly = EngineOptions("float32", load_format="dummy", quantization=kind)
    else:
        path, plainly = save_gguf(directory / f"{kind}.gguf", kind), EngineOptions("float32")
    ours = {EXACT: _ours(path, plainly)}
    if kind != "fp8":
        ours[INT8] = _ours(path, replace(plainly, cpu_int8_activations=True))
    engines: dict[str, ComparedEngine] = {
        FLOAT32: Ours(plain.runner, CPU_CHUNK),
        **{name: Ours(loaded.runner, CPU_CHUNK) for name, loaded in ours.items()},
    }
    if given.llama_cpp is not None and kind not in AT_LOAD:
        engines[LLAMA_CPP] = _llama_cpp(path, given)
    row = _described(kind, EXACT, ours[EXACT])
    row["cells"] = [_measure_cell(engines, cell, given.turns) for cell in (*DECODE, PREFILL)]
    del engines, ours
    gc.collect()
    return row


def _ours(path: Path, options: EngineOptions) -> Loaded:
    return load(path, options, lambda layout: num_pages_for((*DECODE, PREFILL), layout))


def _llama_cpp(path: Path, given: argparse.Namespace) -> ComparedEngine:
    os.environ["LLAMA_CPP_LIB_PATH"] = str(given.llama_cpp)
    if find_spec("llama_cpp") is None:
        raise SystemExit("the package llama_cpp is not there: pip install llama-cpp-python")
    from benchmarks.engines.llamacpp import LlamaCpp  # loads the library

    return LlamaCpp(path, given.threads, CONFIG["vocab_size"])


def _measure_cell(
    engines: Mapping[str, ComparedEngine], cell: Cell, num_turns: int
) -> dict[str, Any]:
    """Lets the engines take turns; returns tokens/s and ratios to the first, and to llama.cpp."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(num_turns):
        for name, engine in engines.items():
            if cell.num_steps:
                seconds[name].append(statistics.median(engine.step_s(cell)))
            else:
                seconds[name].append(engine.prefill_s(cell))
    tokens = cell.batch if cell.num_steps else cell.num_tokens
    return {
        "what": "decode" if cell.num_steps else "prefill",
        "batch": cell.batch,
        "context": cell.context,
        "tok_s": {name: rounded(tokens / statistics.median(s)) for name, s in seconds.items()},
        "vs_float32": _ratios(seconds, FLOAT32),
        "vs_llamacpp": _ratios(seconds, LLAMA_CPP) if LLAMA_CPP in seconds else None,
    }


def _ratios(seconds: Mapping[str, Sequence[float]], to: str) -> dict[str, float | None]:
    """Returns how many times the tokens/s of engine `to` each of the others has."""
    return {
        name: rounded(statistics.median(a / b for a, b in zip(seconds[to], s, strict=True)), 3)
        for name, s in seconds.items()
        if name != to
    }


def _described(kind: str, form: str, loaded: Loaded) -> dict[str, Any]:
    return {
        "kind": kind,
        "form": form,
        "weight_mb": rounded(loaded.weight_bytes / 1e6),
        "load_s": rounded(loaded.load_s),
    }


def _line(row: Mapping[str, Any]) -> str:
    cells = "; ".join(
        f"{cell['what']} {cell['batch']}: {cell['tok_s']} ÷ float32 {cell['vs_float32']} "
        f"÷ llama.cpp {cell['vs_llamacpp']}"
        for cell in row["cells"]
    )
    return f"{row['kind']}: {row['weight_mb']} MB, loaded in {row['load_s']} s; {cells}"


if __name__ == "__main__":
    main()
