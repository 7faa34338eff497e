"""`GgufSource`: the tensors of a GGUF model under the names of Hugging Face, and the form of each.

Weights in blocks stay as they lie in the file. What the converter did to others is undone: it
stores the rows of Llama's q and k in the order in which llama.cpp rotates them.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.kernels.gguf_blocks import VALUES, dequantise_blocks
from engine.kernels.packed_weights import BlockKind, BlockWeight
from engine.model.forms.block import BlockForm
from engine.model.linear_form import PLAIN, LinearForm
from engine.weights.gguf.tensor_names import ModuleName, module_of
from engine.weights.source import Part, TensorInfo
from protocol.model.directory import ModelDirectoryError
from protocol.model.gguf.config import architecture_of
from protocol.model.gguf.header import TensorPlace
from protocol.model.gguf.parts import GgufParts, read_parts
from protocol.model.gguf.settings import Settings

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PLAIN_MODULES = ("mlp.gate", "block_sparse_moe.gate")
"""The ends of the names of modules whose weight is never packed: routers."""
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""The projection that a model with fused ones has in place of each."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor of a module lies, and what has to be done to it."""

    place: TensorPlace
    expert: int | None = None
    """Its index among experts that are stored together."""
    num_permuted_heads: int = 0
    """The number of heads whose rows are stored in pairs; 0: rows are in order."""
    is_unpacked: bool = False
    """True if blocks are dequantised when they are read."""

    @property
    def kind(self) -> BlockKind | None:
        """The kind of its blocks; None if it is plain, or will be."""
        if self.is_unpacked:
            return None
        return next((kind for kind in VALUES if kind == self.place.type.name), None)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in which it is read."""
        shape = self.place.shape if self.expert is None else self.place.shape[1:]
        return shape if self.kind is None else (*shape[:-1], self.place.row_bytes)

    def read(self, part: Part) -> Tensor:
        """Returns a part. Raises OSError or ValueError if the file has become shorter."""
        place = self.place
        num_bytes = place.num_bytes
        offset = place.offset
        if self.expert is not None:
            num_bytes //= place.shape[0]
            offset += self.expert * num_bytes
        rows = _mapped(place.file, offset, num_bytes).view(-1, place.row_bytes)
        values = self._values(rows)
        if not self.num_permuted_heads:
            return values[part] if part else values
        rows_of_part, others = (part[0], part[1:]) if part else (slice(None), ())
        chosen = values[self._order(values.shape[0])[rows_of_part]]
        rest = (slice(None), *others)
        return chosen[rest]

    def _values(self, rows: Tensor) -> Tensor:
        kind = next((kind for kind in VALUES if kind == self.place.type.name), None)
        if kind is None:
            return rows.view(DTYPES[self.place.type.name]).view(self.shape)
        values = dequantise_blocks(BlockWeight(rows, kind)) if self.is_unpacked else rows
        return values.view(self.shape)

    def _order(self, num_rows: int) -> Tensor:
        """Returns the row of the file that each row of q or k is: a head's halves alternate
        there."""
        pairs = torch.arange(num_rows).view(self.num_permuted_heads, -1, 2)  # [heads, d / 2, 2]
        return pairs.transpose(1, 2).flatten()


class GgufSource:
    """Implements `TensorSource`."""

    def __init__(self, path: Path) -> None:
        """Reads the headers of all parts. Raises ModelDirectoryError."""
        parts = read_parts(path)
        self.name = f"the tensors of {parts.file}"
        self._stored = _stored_tensors(parts)
        self.tensors = {
            name: TensorInfo(
                one.shape, one.kind or ("F32" if one.is_unpacked else one.place.type.name)
            )
            for name, one in self._stored.items()
        }

    def read(self, name: str, part: Part = ()) -> Tensor:
        """Returns a part of a tensor, as `TensorSource.read` says. It is a view of the file where
        that holds the part as it is."""
        stored = self._stored[name]
        try:
            return stored.read(part)
        except (OSError, ValueError) as error:
            raise ModelDirectoryError(
                f"{stored.place.file} cannot be read ({error}); fetch the model again"
            ) from error

    def form_of(self, name: str) -> LinearForm:
        """Returns the form of the module of this canonical name."""
        block, _, projection = name.rpartition(".")
        fused = f"{block}.{FUSED.get(projection, projection)}"
        for module in (name, fused, *_first_experts(block, projection)):
            if (stored := self._stored.get(f"{module}.blocks")) is not None:
                assert stored.kind is not None
                return BlockForm(stored.kind)
        return PLAIN


def _first_experts(block: str, projection: str) -> list[str]:
    """Returns the names that the first expert of a layer may have."""
    if not block.endswith(".mlp.experts"):
        return []
    layer = block.removesuffix(".mlp.experts")
    short = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}[projection]
    return [
        f"{layer}.mlp.experts.0.{projection}",
        f"{layer}.block_sparse_moe.experts.0.{short}",
    ]


def _stored_tensors(parts: GgufParts) -> dict[str, StoredTensor]:
    """Returns every tensor by its name in Hugging Face format."""
    architecture = architecture_of(parts)
    settings = Settings(parts)
    num_heads = settings.whole("attention.head_count")
    heads = {
        "q_proj": num_heads,
        "k_proj": settings.whole("attention.head_count_kv", num_heads),
    }
    found: dict[str, StoredTensor] = {}
    for name, place in parts.tensors.items():
        module = module_of(name, architecture.model_type)
        if module is None:
            continue
        num_permuted = 0
        if architecture.permutes_heads:
            num_permuted = heads.get(module.module.rpartition(".")[2], 0)
            _require_pairs(parts, name, place, num_permuted)
        found |= _tensors_of(module, place, num_permuted)
    return found


def _tensors_of(
    module: ModuleName, place: TensorPlace, num_permuted: int
) -> dict[str, StoredTensor]:
    """Returns the tensors of a module; of each expert, if it holds those of all."""
    is_unpacked = not place.type.is_plain and (
        module.kind == "bias" or module.module.endswith(PLAIN_MODULES) or len(place.shape) == 1
    )
    is_packed = not place.type.is_plain and not is_unpacked
    kind = "blocks" if is_packed else module.kind
    if not module.is_of_experts:
        stored = StoredTensor(place, None, num_permuted, is_unpacked)
        return {f"{module.module}.{kind}": stored}
    return {
        f"{module.module.format(expert)}.{kind}": StoredTensor(place, expert)
        for expert in range(place.shape[0])
    }


def _require_pairs(parts: GgufParts, name: str, place: TensorPlace, num_heads: int) -> None:
    if num_heads and place.shape[0] % (2 * num_heads):
        raise ModelDirectoryError(
            f"{name} in {parts.file} has {place.shape[0]} rows, which do not divide into "
            f"{num_heads} heads; config and weights are of different models"
        )


def _mapped(file: Path, offset: int, num_bytes: int) -> Tensor:
    """Returns bytes of a file as a tensor that reads them when they are used. The file is closed
    with the last tensor of it; whatever is written stays in memory."""
    begin = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with file.open("rb") as opened:
        data = mmap.mmap(
            opened.fileno(), offset - begin + num_bytes, access=mmap.ACCESS_COPY, offset=begin
        )
    return torch.frombuffer(data, dtype=torch.uint8, count=num_bytes, offset=offset - begin)
