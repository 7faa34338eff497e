"""Finds the files of a GGUF model, one or a split set, and reads them as one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.model.directory import ModelDirectoryError
from protocol.model.gguf.header import Header, TensorPlace, read_header
from protocol.model.gguf.metadata_types import require_types

SUFFIX = ".gguf"
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""Matches the name of a part of a split set, whose first number is 1."""
NO_MODEL = ("mmproj", "imatrix")
"""Begin the names of files that lie beside models and are none."""


@dataclass(frozen=True)
class GgufParts:
    """A model's headers. The first one has the metadata, and all of them have tensors."""

    headers: tuple[Header, ...]

    @property
    def file(self) -> Path:
        """The only file, or the first part: what error messages name."""
        return self.headers[0].file

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata of the model."""
        return self.headers[0].metadata

    @property
    def tensors(self) -> dict[str, TensorPlace]:
        """Every tensor of every part, in the order in which they lie."""
        return {name: place for header in self.headers for name, place in header.tensors.items()}

    def array(self, key: str) -> list[Any] | None:
        """Returns an array of the metadata; None if there is none of this name."""
        return self.headers[0].array(key)

    def numbers(self, name: str) -> list[float] | None:
        """Returns the values of a tensor of float32; None if there is none of this name."""
        found = (header.numbers(name) for header in self.headers if name in header.tensors)
        return next(found, None)


def is_gguf(path: Path) -> bool:
    """Says whether `path` is a model in GGUF: a file that is called so, or a directory that has
    such files and no *.safetensors."""
    if path.suffix == SUFFIX:
        return not path.is_dir()
    return path.is_dir() and bool(_models_in(path)) and not any(path.glob("*.safetensors"))


def read_parts(path: Path, needs_all: bool = True) -> GgufParts:
    """Reads the model at `path`, a file, any part of a split set, or a directory with one of them.

    Unless it needs all, the parts behind the first may be missing: what is not a tensor is in the
    first. Raises ModelDirectoryError.
    """
    file = _only_model_in(path) if path.is_dir() else path
    if not file.is_file():
        raise ModelDirectoryError(f"there is no file {file}; --model-path must name one that is")
    files = part_files(file)
    missing = [one for one in files if not one.is_file()]
    if missing and (needs_all or missing[0] == files[0]):
        raise ModelDirectoryError(
            f"{file} is one of {len(files)} parts, and {missing[0].name} is not beside it; fetch "
            "all parts into one directory"
        )
    first = read_header(files[0])
    require_types(first)
    count = first.metadata.get("split.count", 1)
    if count not in (0, len(files)):
        raise ModelDirectoryError(
            f"{files[0]} is a part of {count}, and its name does not end in "
            f"-00001-of-{count:05}{SUFFIX}; give all parts the names that they were published with"
        )
    if missing:
        return GgufParts((first,))
    headers = (first, *map(read_header, files[1:]))
    for header in headers[1:]:
        require_types(header)
    _require_order(headers)
    return GgufParts(headers)


def part_files(file: Path) -> list[Path]:
    """Returns the files of the set that `file` is a part of, first to last; itself if it is no
    part."""
    match = PART.fullmatch(file.name)
    if match is None:
        return [file]
    count = int(match["count"])
    return [
        file.with_name(f"{match['stem']}-{number:05}-of-{count:05}{SUFFIX}")
        for number in range(1, count + 1)
    ]


def model_name(file: Path) -> str:
    """Returns what a model is called after its file, or after a part of it."""
    match = PART.fullmatch(file.name)
    return match["stem"] if match else file.stem


def _require_order(headers: tuple[Header, ...]) -> None:
    """Raises ModelDirectoryError if a part says that it is another one, or if parts are missing
    that the first one counts."""
    for index, header in enumerate(headers):
        number = header.metadata.get("split.no", index)
        if number != index:
            raise ModelDirectoryError(
                f"{header.file} says that it is part {number + 1} rather than {index + 1}; give "
                "all parts the names that they were published with"
            )
    names = [name for header in headers for name in header.tensors]
    wanted = headers[0].metadata.get("split.tensors.count", len(names))
    if len(headers) > 1 and (wanted != len(names) or len(set(names)) != len(names)):
        raise ModelDirectoryError(
            f"the parts of {headers[0].file} have {len(set(names))} tensors, and the model has "
            f"{wanted}; fetch all parts again, from one place"
        )


def _only_model_in(directory: Path) -> Path:
    models = _models_in(directory)
    if len(models) > 1:
        raise ModelDirectoryError(
            f"{directory} has {len(models)} models ({', '.join(one.name for one in models[:4])}"
            f"{', …' if len(models) > 4 else ''}); name the file of one of them in --model-path"
        )
    return models[0]


def _models_in(directory: Path) -> list[Path]:
    """Returns the first file of every model in a directory."""
    files = [one for one in directory.glob(f"*{SUFFIX}") if not one.name.startswith(NO_MODEL)]
    return sorted({part_files(file)[0] for file in files})
