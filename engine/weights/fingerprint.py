"""`model_fingerprint`: equal for copies of one model, different for any other weights.

Nodes share KV if their fingerprints are equal, so a difference that this file misses would let one
model attend to the keys and values of another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from math import prod
from typing import Any

import torch
from torch import Tensor

from engine.weights.source import Part, TensorSource

IGNORED_KEYS = ("_name_or_path", "transformers_version")
SAMPLE_ELEMENTS = 512
MAX_SAMPLES_PER_TENSOR = 16
MIN_SAMPLES_PER_TENSOR = 2
SAMPLES_OF_A_MODEL = 16_384
"""The number of samples that a model's tensors share, if each gets its least number: a local disk
takes about a second for them, however large the tensors are."""


def model_fingerprint(
    config: Mapping[str, Any], source: TensorSource | None, variant: str = ""
) -> str:
    """Returns 16 bytes in hex over config.json and over every tensor of `source`.

    Each tensor's name, shape and dtype are hashed, and samples of its values rather than all of
    them: a node must start in seconds on 100 GB. Small tensors are hashed whole; samples of larger
    ones are evenly spread and have about 512 elements. So another fingerprint is certain if all
    values of any one tensor are different, and missed with a chance of 1e-11 or less if a twentieth
    of them are, here and there. A change of a few rows of a large tensor alone can be missed.

    How the tensors are spread over files does not matter. `variant` names what else decides about
    the KV. `source` is None for dummy weights, which follow from the config.
    """
    digest = blake2b(digest_size=16, person=b"kvrelay-model")
    kept = {key: value for key, value in config.items() if key not in IGNORED_KEYS}
    digest.update(json.dumps([kept, variant, source is None], sort_keys=True).encode())
    if source is not None:
        # In the source's order for speed; sorted, as another set of files has another order.
        tensors = {name: _tensor_digest(name, source) for name in source.tensors}
        for name in sorted(tensors):
            digest.update(tensors[name])
    return digest.hexdigest()


def _tensor_digest(name: str, source: TensorSource) -> bytes:
    info = source.tensors[name]
    digest = blake2b(digest_size=16)
    digest.update(json.dumps([name, info.shape, info.dtype]).encode())
    share = SAMPLES_OF_A_MODEL // len(source.tensors)
    num_samples = min(max(share, MIN_SAMPLES_PER_TENSOR), MAX_SAMPLES_PER_TENSOR)
    for part in sample_parts(info.shape, num_samples):
        digest.update(_bytes_of(source.read(name, part)))
    return digest.digest()


def sample_parts(shape: tuple[int, ...], num_samples: int) -> Iterator[Part]:
    """Yields the parts of a tensor that are hashed: all of it if that is no more than the samples
    would be, else `num_samples` blocks, from the first element to the last.

    A block is a run within a row, or some rows where rows are short.
    """
    size = prod(shape)
    if size <= num_samples * SAMPLE_ELEMENTS:
        yield ()
        return
    rows_of_block = max(1, SAMPLE_ELEMENTS // shape[-1])
    lengths = ([1] * len(shape) + [rows_of_block, SAMPLE_ELEMENTS])[-len(shape) :]
    for i in range(num_samples):
        place = i * (size - 1) // (num_samples - 1)
        part = []
        for dimension, length in zip(reversed(shape), reversed(lengths), strict=True):
            place, index = divmod(place, dimension)
            begin = max(0, min(index, dimension - length))
            part.append(slice(begin, min(begin + length, dimension)))
        yield tuple(reversed(part))


def _bytes_of(values: Tensor) -> bytes:
    return values.contiguous().flatten().view(torch.uint8).numpy().tobytes()
