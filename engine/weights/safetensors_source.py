"""`SafetensorsSource`: the tensors of a model directory's *.safetensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.weights.source import Part, TensorInfo
from protocol.model.directory import ModelDirectoryError, read_json

INDEX = "model.safetensors.index.json"


class SafetensorsSource:
    """Implements `TensorSource`. It keeps one file open, the one that was read last."""

    def __init__(self, path: Path) -> None:
        """Reads the headers of all files. Raises ModelDirectoryError."""
        self.name = f"the *.safetensors in {path}"
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[str, Path] = {}
        self._open: tuple[Path, Any] | None = None
        index = _index_of(path)
        for file in _files_of_model(path, index):
            with _explained(file):
                opened = self._opened(file)
                for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                    if name in self._files and not self._is_better(name, file, index):
                        continue
                    stored = opened.get_slice(name)
                    self.tensors[name] = TensorInfo(tuple(stored.get_shape()), stored.get_dtype())
                    self._files[name] = file

    def _is_better(self, name: str, file: Path, index: Mapping[str, str]) -> bool:
        """Says whether the index has a tensor in `file`, of the two that hold it. Raises
        ModelDirectoryError if the index does not tell."""
        other = self._files[name]
        if index.get(name) not in (file.name, other.name):
            raise ModelDirectoryError(
                f"{other} and {file.name} both hold {name}, and no {INDEX} "
                "says which of them counts; remove the file that is not the model's"
            )
        return index[name] == file.name

    def read(self, name: str, part: Part = ()) -> Tensor:
        """Returns a part of a tensor, as `TensorSource.read` says. Raises ModelDirectoryError."""
        file = self._files[name]
        with _explained(file):
            opened = self._opened(file)
            tensor: Tensor = opened.get_slice(name)[part] if part else opened.get_tensor(name)
            return tensor

    def _opened(self, file: Path) -> Any:
        if self._open is None or self._open[0] != file:
            self._open = None  # close the other one first: an open file keeps its pages mapped
            self._open = file, safe_open(file, framework="pt", device="cpu")
        return self._open[1]


def _index_of(path: Path) -> dict[str, str]:
    """Returns the name of the file of each tensor, as the index has it; empty if there is none.
    Raises ModelDirectoryError."""
    index = read_json(path / INDEX)
    if index is None:
        return {}
    files = index.get("weight_map")
    if (
        not isinstance(files, dict)
        or not files
        or not all(isinstance(name, str) for name in files.values())
    ):
        raise ModelDirectoryError(
            f"{path}/{INDEX} has no weight_map with a file for each tensor; fetch the model again"
        )
    return files


def _files_of_model(path: Path, index: Mapping[str, str]) -> list[Path]:
    """Returns the files that the index names; without an index, model.safetensors alone; without
    that, every *.safetensors. Directories may hold other forms of the same weights beside them."""
    if index:
        return [path / name for name in sorted(set(index.values()))]
    single = path / "model.safetensors"
    files = [single] if single.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelDirectoryError(
            f"{path} has no *.safetensors; convert the weights, for instance with transformers' "
            "save_pretrained"
        )
    return files


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelDirectoryError(
            f"{file} cannot be read ({error}); fetch the model again, and if git did it, "
            "with git lfs pull"
        ) from error
