"""Products with packed weights on one GPU, beside those of the vendor's library with plain weights.

    python -m benchmarks.gpu.packed_kernels [--out FILE]

Physics: a product of few rows reads its weight once, so four bits could be four times as fast as 16
until multiplications outlast the reading: for a packed weight, values must also become numbers
first. Times are those of a whole linear layer: rounding of inputs and sums of splits are within.
Calls are recorded in a CUDA graph, over several layers, so that nothing comes from the cache and
the host does not count. Llama-3-8B's shape in bfloat16; weights are such as `--quantization` makes.
gemlite, where it is installed, multiplies four bits beside ours, tuned on the spot. A first run
compiles for a minute; another takes some seconds, or minutes with gemlite.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.engines.floor import measure_rates
from benchmarks.engines.report import rounded
from benchmarks.gpu.kernels import CUDA, DTYPE, LAYERS, LINEARS, replayed_seconds
from benchmarks.machine import machine
from engine.dependent_launch import launches_dependently
from engine.kernels.packed_weights import Fp8Weight, IntegerWeight

ROWS = (1, 8, 16, 32, 64, 128, 512, 2048)
MOST_ROWS_OF_GEMLITE = 64
GROUP_SIZE = 128
BITS = {"bfloat16": 16.0, "int4": 4.19, "int8": 8.0, "fp8": 8.0, "fp8 blocks": 8.25}
"""Bits of each weight, with its share of scales and zeros."""
Product = Callable[[Tensor], Tensor]


def main() -> None:
    """Measures on the first CUDA device; prints a table and, last, a line of JSON."""
    parser = argparse.ArgumentParser(description="Packed products of a layer on one GPU.")
    parser.add_argument("--out", type=Path, help="write the JSON line here, too")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; run it on a machine that has one")
    copy_bytes_s = measure_rates(DTYPE, CUDA).copy_bytes_s
    torch.cuda.empty_cache()
    with torch.inference_mode():
        rows = [row for name in LINEARS for row in _measure(name, copy_bytes_s)]
    table = Table(title="µs of a product, by rows", box=box.SIMPLE)
    for heading in ("weight", "form", "read", *map(str, ROWS)):
        table.add_column(heading)
    for row in rows:
        times = (row["us"].get(str(count), "") for count in ROWS)
        table.add_row(row["weight"], row["form"], str(row["read_us"]), *map(str, times))
    Console(width=120).print(table)
    gpu = {"gpu": torch.cuda.get_device_name(CUDA), "copy_bytes_s": round(copy_bytes_s)}
    line = json.dumps(
        {"bench": "packed-kernels", "machine": machine("torch", "triton") | gpu, "rows": rows}
    )
    if given.out is not None:
        given.out.write_text(line + "\n", encoding="utf-8")
    print(line)


def _measure(name: str, copy_bytes_s: float) -> list[dict[str, Any]]:
    """Measures one weight of a layer in every form, each `LAYERS` times in turn. "read_us" is how
    long a copy of as many bytes takes, which a read alone may undercut."""
    from engine.kernels.triton_kernels import TritonKernels

    kernels = TritonKernels(launches_dependently(CUDA))
    num_out, num_in = LINEARS[name]
    found = []
    for form, bits in BITS.items():
        if form == "bfloat16":
            plain = torch.randn(LAYERS, num_out, num_in, device=CUDA, dtype=DTYPE)
            products: list[Product] = [partial(F.linear, weight=weight) for weight in plain]
        else:
            weights = [_weight(form, num_out, num_in) for _ in range(LAYERS)]
            products = [partial(kernels.packed_linear, weight=w, bias=None) for w in weights]
        times = {str(rows): _us(products, rows, num_in) for rows in ROWS}
        read_us = rounded(num_out * num_in * bits / 8 / copy_bytes_s * 1e6)
        found.append({"weight": name, "form": form, "read_us": read_us, "us": times})
    if find_spec("gemlite") is not None:
        rows_of_few = [rows for rows in ROWS if rows <= MOST_ROWS_OF_GEMLITE]
        products = [_gemlite(num_out, num_in) for _ in range(LAYERS)]
        times = {str(rows): _us(products, rows, num_in) for rows in rows_of_few}
        found.append({"weight": name, "form": "int4, gemlite", "read_us": None, "us": times})
    return found


def _us(products: list[Product], num_rows: int, num_in: int) -> float | None:
    x = torch.randn(num_rows, num_in, device=CUDA, dtype=DTYPE)
    return rounded(replayed_seconds([partial(product, x) for product in products]) * 1e6)


def _weight(form: str, num_out: int, num_in: int) -> IntegerWeight | Fp8Weight:
    num_groups = num_in // GROUP_SIZE
    if form.startswith("fp8"):
        values = torch.randn(num_out, num_in, device=CUDA).to(torch.float8_e4m3fn)
        if form == "fp8":
            return Fp8Weight(values, torch.rand(num_out, 1, device=CUDA), "token")
        return Fp8Weight(values, torch.rand(num_out, num_groups, device=CUDA), "block")
    if form == "int8":
        numbers = torch.randint(-128, 128, (num_out, num_in), dtype=torch.int8, device=CUDA)
        return IntegerWeight(numbers, torch.rand(num_out, 1, device=CUDA))
    scales = torch.rand(num_out, num_groups, device=CUDA).half()
    nibbles = torch.randint(0, 256, (num_out, num_in // 2), dtype=torch.uint8, device=CUDA)
    zeros = torch.randint(0, 16, (num_out, num_groups), dtype=torch.uint8, device=CUDA)
    return IntegerWeight(nibbles, scales, zeros)


def _gemlite(num_out: int, num_in: int) -> Product:
    from gemlite.helper import A16W4_HQQ_INT

    values = torch.randint(0, 16, (num_out, num_in), dtype=torch.uint8, device=CUDA)
    scales = torch.rand(num_out, num_in // GROUP_SIZE, device=CUDA).to(DTYPE)
    zeros = torch.full_like(scales, 8.0)
    layer: Product = A16W4_HQQ_INT(device="cuda:0", dtype=DTYPE).from_weights(values, scales, zeros)
    return layer


if __name__ == "__main__":
    main()
