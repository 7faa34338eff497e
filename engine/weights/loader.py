"""Fills a `DecoderModel` from a `TensorSource`: tensor by tensor onto the device, of each no more
than this rank's part, so that there are never two copies of all weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from engine.model.config import ModelConfig
from engine.model.decoder import DecoderModel
from engine.model.families import FAMILIES
from engine.model.linear import Build
from engine.weights import dummy_weights
from engine.weights.pieces import Piece, Table, pieces_of
from engine.weights.source import TensorSource
from protocol.model.directory import ModelDirectoryError

log = logging.getLogger(__name__)

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
"""The ends of the names of the two tensors that may be one."""
ROWS_AT_ONCE = 4096
SUPERFLUOUS = ("rotary_emb.inv_freq", ".k_scale", ".v_scale", ".kv_scale", ".q_scale")
"""The ends of the names of tensors that no layer holds. The scales of K and V are of FP8 pages."""
FP8_NAN = 0x7F
"""The bits of NaN in float8_e4m3fn, but for its sign."""

Progress = Callable[[int, int], None]
"""A function that is told (bytes done, bytes in all)."""


def load_model(
    source: TensorSource, config: ModelConfig, build: Build, progress: Progress | None = None
) -> DecoderModel:
    """Makes a model and fills it with this rank's part of `source`.

    Raises ModelDirectoryError that names what is missing, unknown, of another shape or dtype, or no
    numbers.
    """
    config = _without_false_tie(config, source)
    # First without memory: a wrong size in config.json may ask for more than there is.
    skeleton = DecoderModel(config, replace(build, device=torch.device("meta")))
    _check(pieces_of(skeleton, source.tensors), source, config)
    model = DecoderModel(config, build)
    table = pieces_of(model, source.tensors)
    report = _Report(table, progress)
    for name in source.tensors:  # in this order, as it is the fastest
        for piece in table.get(name, ()):
            _fill(piece, source.read(name, piece.part), name, source)
        report.filled(table.get(name, ()))
    return model.eval()


def dummy_model(
    config: ModelConfig, build: Build, progress: Progress | None = None
) -> DecoderModel:
    """Makes a model with random weights, which are the same on every node with this config."""
    model = DecoderModel(config, build)
    table = pieces_of(model, ())
    report = _Report(table, progress)
    for name, pieces in table.items():
        dummy_weights.fill(name, table)
        report.filled(pieces)
    return model.eval()


class _Report:
    """Counts the bytes that are filled and tells `progress`."""

    def __init__(self, table: Table, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self._total = sum(piece.target.nbytes for pieces in table.values() for piece in pieces)

    def filled(self, pieces: Iterable[Piece]) -> None:
        self._done += sum(piece.target.nbytes for piece in pieces)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _fill(piece: Piece, values: Tensor, name: str, source: TensorSource) -> None:
    if piece.picks:
        values = values[..., list(piece.picks)]
    is_rounding = _is_plain(values) and _is_plain(piece.target)
    if not is_rounding and values.dtype != piece.target.dtype:
        # copy_ would convert them all the same, to weights that mean something else.
        raise ModelDirectoryError(
            f"{name} in {source.name} is {_name(values)}, the configuration asks for "
            f"{_name(piece.target)}; config and weights are of different models"
        )
    piece.target.copy_(values)
    if piece.offset:
        piece.target.add_(piece.offset)
    if not _has_numbers(piece.target):
        raise ModelDirectoryError(
            f"{name} in {source.name} holds NaN or infinity in {_name(piece.target)}; the file is "
            "damaged, or its values need a --dtype of a larger range"
        )


def _has_numbers(values: Tensor) -> bool:
    """Says whether all of `values` are finite. The least and the largest tell: either is NaN if any
    is. That reads memory ten times as fast as isfinite, and as fast as nothing else."""
    if values.numel() == 0 or not values.is_floating_point():
        return True
    if values.dtype == torch.float8_e4m3fn:  # which has no infinity, and two NaNs
        return bool(values.view(torch.uint8).bitwise_and(FP8_NAN).max() < FP8_NAN)
    least, largest = values.aminmax()
    return bool(torch.isfinite(least) & torch.isfinite(largest))


def _without_false_tie(config: ModelConfig, source: TensorSource) -> ModelConfig:
    """Returns `config` untied where the checkpoint has a head that is not the embedding: then
    config.json is wrong about it, as transformers finds too."""
    heads = [name for name in source.tensors if name.endswith(HEAD)]
    embeddings = [name for name in source.tensors if name.endswith(EMBEDDING)]
    if not config.tie_word_embeddings or not heads or not embeddings:
        return config
    if _are_equal(heads[0], embeddings[0], source):
        return config
    log.warning(
        "config.json has tie_word_embeddings, but %s differs from %s; each is used as it is",
        heads[0],
        embeddings[0],
    )
    return replace(config, tie_word_embeddings=False)


def _are_equal(first: str, second: str, source: TensorSource) -> bool:
    shape = source.tensors[first].shape
    if shape != source.tensors[second].shape:
        return False
    rows = [slice(begin, begin + ROWS_AT_ONCE) for begin in range(0, shape[0], ROWS_AT_ONCE)]
    return all(bool((source.read(first, (r,)) == source.read(second, (r,))).all()) for r in rows)


def _check(table: Table, source: TensorSource, config: ModelConfig) -> None:
    """Raises ModelDirectoryError unless the checkpoint has all that the model needs, in its shapes,
    and nothing that the model would ignore."""
    if missing := [name for name in table if name not in source.tensors]:
        raise ModelDirectoryError(f"{source.name} lack {_some(missing)}; fetch the model again")
    names = [name for name in source.tensors if name not in table]
    names = [name for name in names if not _is_superfluous(name, config)]
    if unknown := [name for name in names if not _is_empty_bias(name, source)]:
        raise ModelDirectoryError(
            f"{source.name} hold {_some(unknown)}, which a {config.architecture} "
            "with this configuration does not have; config and weights are of different models"
        )
    for name, pieces in table.items():
        shape = source.tensors[name].shape
        for piece in pieces:
            if shape != piece.shape:
                raise ModelDirectoryError(
                    f"{name} in {source.name} is {list(shape)}, the configuration asks for "
                    f"{list(piece.shape)}; config and weights are of different models"
                )


def _is_superfluous(name: str, config: ModelConfig) -> bool:
    """Says whether a tensor may be ignored: rotary buffers of old checkpoints, scales of FP8 pages,
    a head that is the embedding anyway, the parts of a model that see."""
    is_tied_head = name.endswith("lm_head.weight") and config.tie_word_embeddings
    ignored = FAMILIES[config.architecture].ignored_weights
    is_ignored = name.removeprefix("model.").startswith(ignored)
    return is_tied_head or is_ignored or name.endswith(SUPERFLUOUS)


def _is_empty_bias(name: str, source: TensorSource) -> bool:
    """Says whether a tensor is a bias of zeros, which some producers of GPTQ give every layer."""
    return name.endswith("_proj.bias") and not source.read(name).any()


def _some(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} more" if others else first


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_plain(tensor: Tensor) -> bool:
    """Says whether elements are the weights themselves; eight bits need a scale beside them."""
    return tensor.is_floating_point() and tensor.itemsize > 1
