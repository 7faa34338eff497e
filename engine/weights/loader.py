"""Weights from *.safetensors into a `DecoderModel`: tensor by tensor onto the device, of each no
more than this rank's part, never two copies of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from engine.model.config import ModelConfig
from engine.model.decoder import DecoderModel
from engine.model.families import FAMILIES
from engine.model.linear import Build
from engine.weights import dummy_weights
from engine.weights.fingerprint import weight_files
from engine.weights.pieces import Piece, Table, pieces_of
from protocol.model_directory import ModelDirectoryError, read_json

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""


def load_model(
    path: Path, config: ModelConfig, build: Build, progress: Progress | None = None
) -> DecoderModel:
    """Raises ModelDirectoryError that names what is missing, unknown or of another shape."""
    files = _files_by_name(path)
    model = DecoderModel(config, build)
    table = pieces_of(model, files)
    _check(table, files, path, config)
    report = _Report(table, progress)
    names_by_file: dict[Path, list[str]] = defaultdict(list)
    for name in table:
        names_by_file[files[name]].append(name)
    for file, names in names_by_file.items():
        with _opened(file) as tensors:
            for name in names:
                _copy(tensors.get_slice(name), table[name], name, path)
                report.filled(table[name])
    return model.eval()


def dummy_model(
    config: ModelConfig, build: Build, progress: Progress | None = None
) -> DecoderModel:
    """Random weights, the same for every node with this config."""
    model = DecoderModel(config, build)
    table = pieces_of(model, ())
    report = _Report(table, progress)
    for name, pieces in table.items():
        for piece in pieces:
            dummy_weights.fill(name, piece)
        report.filled(pieces)
    return model.eval()


class _Report:
    """Counts the bytes that are filled."""

    def __init__(self, table: Table, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0
        self._total = sum(piece.target.nbytes for pieces in table.values() for piece in pieces)

    def filled(self, pieces: Iterable[Piece]) -> None:
        self._done += sum(piece.target.nbytes for piece in pieces)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _copy(tensor: Any, pieces: Iterable[Piece], name: str, path: Path) -> None:
    """`tensor` is an open file's; of it only the parts that are wanted are read."""
    shape = tuple(tensor.get_shape())
    for piece in pieces:
        if shape != piece.shape:
            raise ModelDirectoryError(
                f"{name} in {path} is {list(shape)}, config.json asks for {list(piece.shape)}; "
                "config and weights are of different models"
            )
        piece.target.copy_(tensor[piece.part or slice(None)])
        if piece.offset:
            piece.target.add_(piece.offset)


def _check(table: Table, files: dict[str, Path], path: Path, config: ModelConfig) -> None:
    """The checkpoint has what the model needs, and nothing that the model would ignore."""
    if missing := [name for name in table if name not in files]:
        raise ModelDirectoryError(
            f"the *.safetensors in {path} lack {_some(missing)}; fetch the model again"
        )
    unknown = [name for name in files if name not in table and not _is_superfluous(name, config)]
    if unknown:
        raise ModelDirectoryError(
            f"the *.safetensors in {path} hold {_some(unknown)}, which a {config.architecture} "
            "with this config.json does not have; config and weights are of different models"
        )


def _files_by_name(path: Path) -> dict[str, Path]:
    """The file that has each tensor."""
    files: dict[str, Path] = {}
    for file in _files_of_model(path):
        with _opened(file) as tensors:
            files |= dict.fromkeys(tensors.keys(), file)
    return files


def _files_of_model(path: Path) -> list[Path]:
    """Those the index names, or model.safetensors, before whatever else lies there."""
    index = read_json(path / "model.safetensors.index.json")
    if index is not None:
        shards = index.get("weight_map")
        if not isinstance(shards, dict):
            raise ModelDirectoryError(
                f"{path}/model.safetensors.index.json has no weight_map; fetch the model again"
            )
        return [path / str(name) for name in sorted(set(shards.values()))]
    single = path / "model.safetensors"
    return [single] if single.is_file() else weight_files(path)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt", device="cpu") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ModelDirectoryError(
            f"{file} cannot be read ({error}); fetch the model again, and if git did it, "
            "with git lfs pull"
        ) from error


def _is_superfluous(name: str, config: ModelConfig) -> bool:
    """Rotary buffers of old checkpoints; a head that is the embedding anyway; eyes."""
    is_tied_head = name.endswith("lm_head.weight") and config.tie_word_embeddings
    ignored = FAMILIES[config.architecture].ignored_weights
    is_ignored = name.removeprefix("model.").startswith(ignored)
    return is_tied_head or is_ignored or name.endswith("rotary_emb.inv_freq")


def _some(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} more" if others else first
