"""Small GGUF files with anything in them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LLAMA: dict[str, Any] = {
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def write_file(
    file: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray] | None = None,
    architecture: str = "llama",
) -> Path:
    """Writes a file with these settings; None leaves one out."""
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def raw_file(
    file: Path,
    version: int = 3,
    shape: Sequence[int] = (2, 32),
    kind: int = 0,
    offset: int = 0,
    num_bytes: int = 256,
    alignment: int = 32,
) -> Path:
    """Writes a file with one tensor `w` and no metadata, byte by byte."""
    name = b"w"
    header = b"GGUF" + struct.pack("<IQQ", version, 1, 0)
    header += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
    header += struct.pack(f"<{len(shape)}QIQ", *reversed(shape), kind, offset)
    padding = -len(header) % alignment
    file.write_bytes(header + bytes(padding + num_bytes))
    return file
