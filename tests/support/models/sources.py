"""Sources of tensors for tests: one in memory, and the same tensors in files of any number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from engine.weights.safetensors_source import SafetensorsSource
from engine.weights.source import Part, TensorInfo

DTYPES = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "uint8": "U8",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
}


class MemorySource:
    """Implements `TensorSource` for tensors that are there already."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.name = "the tensors in memory"
        self.tensors = {
            name: TensorInfo(tuple(tensor.shape), DTYPES[str(tensor.dtype).removeprefix("torch.")])
            for name, tensor in tensors.items()
        }
        self._tensors = tensors

    def read(self, name: str, part: Part = ()) -> Tensor:
        return self._tensors[name][part]


def saved(path: Path, tensors: Mapping[str, Tensor], num_files: int) -> SafetensorsSource:
    """Writes the tensors into `num_files` files in the new directory `path`, with an index if there
    are several."""
    path.mkdir()
    names = sorted(tensors)
    if num_files == 1:
        save_file(dict(tensors), path / "model.safetensors")
        return SafetensorsSource(path)
    weight_map: dict[str, str] = {}
    for i in range(num_files):
        file = f"model-{i:05}.safetensors"
        save_file({name: tensors[name] for name in names[i::num_files]}, path / file)
        weight_map |= dict.fromkeys(names[i::num_files], file)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return SafetensorsSource(path)
