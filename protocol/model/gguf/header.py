"""Reads the header of one GGUF file: its metadata and where its tensors lie.

The format is described in ggml's docs/gguf.md. Arrays stay where they are until somebody asks for
one: vocabularies have hundreds of thousands of strings, and most readers want a few numbers.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from protocol.model.directory import ModelDirectoryError, unreadable
from protocol.model.gguf.tensor_types import OTHER_NAMES, TENSOR_TYPES, TensorType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
BIG_ENDIAN_VERSIONS = tuple(version << 24 for version in VERSIONS)
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""The formats, in the letters of `struct`, of the types that a value may have."""
STRING, ARRAY = 8, 9
LENGTH = struct.Struct("<Q")
MOST_DIMENSIONS = 4
MOST_NAME_BYTES = 1 << 16
"""No key and no name is longer; whatever is, is the middle of something else."""
DEFAULT_ALIGNMENT = 32
SUPPORTED_TYPES = ", ".join(one.name for one in TENSOR_TYPES.values())


class ArrayPlace(NamedTuple):
    """Where an array of the metadata lies."""

    element_type: int
    length: int
    offset: int
    """In the file, of its first element."""


class TensorPlace(NamedTuple):
    """Where a tensor lies."""

    file: Path
    type: TensorType
    shape: tuple[int, ...]
    """In values, the outermost dimension first: [out, in]."""
    offset: int
    """In the file."""

    @property
    def row_bytes(self) -> int:
        """The size of a run of the last dimension."""
        return self.shape[-1] // self.type.values * self.type.num_bytes

    @property
    def num_bytes(self) -> int:
        """The size of the tensor."""
        return prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True, eq=False)
class Header:
    """The metadata and the tensors of one file. Headers are equal if they are one object, of which
    there is one as long as the file stays the same."""

    file: Path
    metadata: Mapping[str, Any]
    """Numbers, booleans, texts, and an `ArrayPlace` for each array."""
    tensors: Mapping[str, TensorPlace]

    def array(self, key: str) -> list[Any] | None:
        """Returns the elements of an array; None if there is none of this name. Raises
        ModelDirectoryError."""
        place = self.metadata.get(key)
        if not isinstance(place, ArrayPlace):
            return None
        with _mapped(self.file) as data:
            try:
                return _Reader(self.file, data, place.offset).elements(place)
            except (struct.error, UnicodeDecodeError) as error:
                raise damaged(self.file, f"its {key} cannot be read: {error}") from error

    def numbers(self, name: str) -> list[float] | None:
        """Returns the values of a tensor of float32; None if there is none of this name."""
        place = self.tensors.get(name)
        if place is None:
            return None
        if place.type.name != "F32":
            raise damaged(self.file, f"its {name} is {place.type.name} rather than F32")
        with _mapped(self.file) as data:
            return list(struct.unpack_from(f"<{prod(place.shape)}f", data, place.offset))


def read_header(file: Path) -> Header:
    """Returns the header of `file`, which is parsed again only if the file has changed. Raises
    ModelDirectoryError if it is none, or is damaged, or has tensors of types that are not
    supported."""
    try:
        state = file.stat()
    except OSError as error:
        raise unreadable(file, error) from error
    return _parsed(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _parsed(file: Path, modified_ns: int, num_bytes: int) -> Header:
    with _mapped(file) as data:
        return _Reader(file, data).header()


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    try:
        with file.open("rb") as opened:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise unreadable(file, error) from error
    except ValueError as error:  # it is empty
        raise damaged(file, "it is empty") from error
    with data:
        yield data


class _Reader:
    """A place in a file, which moves on as values are read."""

    def __init__(self, file: Path, data: mmap.mmap, offset: int = 0) -> None:
        self._file, self._data, self._offset = file, data, offset

    def header(self) -> Header:
        try:
            num_tensors, num_values = self._begin()
            metadata: dict[str, Any] = {}
            for _ in range(num_values):
                key = self._string(MOST_NAME_BYTES)
                metadata[key] = self._value(self._number("I"))
            tensors = self._tensors(num_tensors, metadata.get("general.alignment"))
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise damaged(self._file, f"its header cannot be read: {error}") from error
        return Header(self._file, metadata, tensors)

    def elements(self, place: ArrayPlace) -> list[Any]:
        """Returns the elements of an array at this place."""
        if place.element_type == STRING:
            return self._strings(place.length)
        letter = NUMBERS[place.element_type]
        return list(struct.unpack_from(f"<{place.length}{letter}", self._data, self._offset))

    def _begin(self) -> tuple[int, int]:
        """Reads what stands before the metadata; returns the numbers of tensors and of values."""
        if self._data[:4] != MAGIC:
            raise ModelDirectoryError(
                f"{self._file} is no GGUF file: it does not begin with GGUF; if git fetched it, "
                "fetch its content with git lfs pull"
            )
        self._offset = len(MAGIC)
        version = self._number("I")
        if version in BIG_ENDIAN_VERSIONS:
            raise ModelDirectoryError(
                f"{self._file} is a GGUF file for machines of the other byte order; use the usual "
                "little-endian file of the model"
            )
        if version not in VERSIONS:
            raise ModelDirectoryError(
                f"{self._file} is GGUF of version {version}; versions 2 and 3 are supported: "
                "convert the model again with a current llama.cpp"
            )
        return self._number("Q"), self._number("Q")

    def _tensors(self, count: int, alignment: Any) -> dict[str, TensorPlace]:
        found = [self._tensor() for _ in range(count)]
        unit = alignment if isinstance(alignment, int) and alignment > 0 else DEFAULT_ALIGNMENT
        begin = -(-self._offset // unit) * unit
        tensors = {}
        for name, place in found:
            moved = place._replace(offset=begin + place.offset)
            end = moved.offset + moved.num_bytes
            if end > len(self._data):
                raise ModelDirectoryError(
                    f"{self._file} is cut off: its {name} ends at byte {end}, and the file has "
                    f"{len(self._data)}; fetch it again"
                )
            if name in tensors:
                raise damaged(self._file, f"it has two tensors called {name}")
            tensors[name] = moved
        self._require_apart(tensors)
        return tensors

    def _require_apart(self, tensors: Mapping[str, TensorPlace]) -> None:
        """Raises ModelDirectoryError if two tensors share bytes: one of them is not where the table
        has it."""
        in_order = sorted(tensors.items(), key=lambda item: item[1].offset)
        for (name, place), (following, next_place) in pairwise(in_order):
            if place.offset + place.num_bytes > next_place.offset:
                raise damaged(self._file, f"its {name} and {following} lie upon each other")

    def _tensor(self) -> tuple[str, TensorPlace]:
        """Reads one entry of the table; its offset is behind the header."""
        name = self._string(MOST_NAME_BYTES)
        num_dimensions = self._number("I")
        if not 1 <= num_dimensions <= MOST_DIMENSIONS:
            raise damaged(self._file, f"its {name} has {num_dimensions} dimensions")
        shape = tuple(reversed([self._number("Q") for _ in range(num_dimensions)]))
        number = self._number("I")
        if number not in TENSOR_TYPES:
            known = OTHER_NAMES.get(number, f"of the unknown type {number}")
            raise ModelDirectoryError(
                f"{self._file} holds {name} as {known}, which is not supported; use a file of "
                f"the types {SUPPORTED_TYPES}, such as Q4_K_M"
            )
        form = TENSOR_TYPES[number]
        if shape[-1] % form.values or 0 in shape:
            raise damaged(
                self._file,
                f"its {name} of {list(shape)} does not divide into blocks of {form.name}",
            )
        return name, TensorPlace(self._file, form, shape, self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(self._letter(kind))
        element_type, count = self._number("I"), self._number("Q")
        place = ArrayPlace(element_type, count, self._offset)
        if element_type == STRING:
            self._skip_strings(count)
        else:
            self._skip(count * struct.calcsize(self._letter(element_type)))
        return place

    def _letter(self, kind: int) -> str:
        if kind not in NUMBERS:
            raise damaged(self._file, f"its metadata has a value of the unknown type {kind}")
        return NUMBERS[kind]

    def _number(self, letter: str) -> Any:
        (value,) = struct.unpack_from(f"<{letter}", self._data, self._offset)
        self._offset += struct.calcsize(letter)
        return value

    def _string(self, most_bytes: int | None = None) -> str:
        (length,) = LENGTH.unpack_from(self._data, self._offset)
        if most_bytes is not None and length > most_bytes:
            raise damaged(self._file, f"a name in it has {length} bytes")
        begin = self._offset + LENGTH.size
        self._offset = begin
        self._skip(length)
        return self._data[begin : self._offset].decode()

    def _strings(self, count: int) -> list[str]:
        data, offset, unpack, size = self._data, self._offset, LENGTH.unpack_from, LENGTH.size
        texts = []
        for _ in range(count):  # written for speed: there are hundreds of thousands
            begin = offset + size
            offset = begin + unpack(data, offset)[0]
            texts.append(data[begin:offset].decode())
        return texts

    def _skip_strings(self, count: int) -> None:
        data, offset, unpack, size = self._data, self._offset, LENGTH.unpack_from, LENGTH.size
        for _ in range(count):  # as fast as it can be, too
            offset += size + unpack(data, offset)[0]
        self._offset = offset
        self._skip(0)

    def _skip(self, num_bytes: int) -> None:
        self._offset += num_bytes
        if self._offset > len(self._data):
            raise damaged(self._file, "it ends within its header")


def damaged(file: Path, reason: str) -> ModelDirectoryError:
    """Returns the error for a file that no program can have written so."""
    return ModelDirectoryError(f"{file} is damaged ({reason}); fetch it again")
