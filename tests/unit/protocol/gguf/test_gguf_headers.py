"""Headers of GGUF files are read as the reference package reads them, and damaged ones refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from protocol.model.directory import ModelDirectoryError
from protocol.model.gguf.header import ArrayPlace, read_header
from protocol.model.gguf.parts import is_gguf, model_name, read_parts
from tests.support.gguf.edited_files import raw_file, write_file
from tests.support.gguf.vocabularies import CUTS

METADATA: dict[str, Any] = {
    "a.text": "größer",
    "a.number": 7,
    "a.fraction": 0.5,
    "a.switch": True,
    "a.texts": ["", "one", "zwei " * 50],
    "a.numbers": [1, 2, 3],
}
TENSORS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.arange(8, dtype=np.float16),
}


def test_everything_is_as_the_reference_reads_it(tmp_path: Path) -> None:
    file = write_file(tmp_path / "m.gguf", METADATA, TENSORS)
    header, reference = read_header(file), gguf.GGUFReader(file)
    assert header.metadata["general.architecture"] == "llama"
    for key, value in METADATA.items():
        found = header.array(key) if isinstance(value, list) else header.metadata[key]
        assert found == value == reference.fields[key].contents()
    assert [one.name for one in reference.tensors] == list(header.tensors)
    for one in reference.tensors:
        place = header.tensors[one.name]
        assert (place.type.name, place.offset) == (one.tensor_type.name, one.data_offset)
        assert list(place.shape) == list(reversed(one.shape)) and place.num_bytes == one.n_bytes
    assert header.numbers("matrix") == list(range(12))
    assert header.array("a.number") is None and header.numbers("nothing") is None


@pytest.mark.parametrize("name", ["phi-3", "qwen2"])
def test_vocabularies_are_as_the_reference_reads_them(name: str) -> None:
    file = CUTS / f"{name}.gguf"
    header, reference = read_header(file), gguf.GGUFReader(file)
    arrays = [key for key, value in header.metadata.items() if isinstance(value, ArrayPlace)]
    assert len(arrays) >= 3
    for key in arrays:
        assert header.array(key) == reference.fields[key].contents()


def test_a_header_is_read_again_only_if_the_file_changed(tmp_path: Path) -> None:
    file = write_file(tmp_path / "m.gguf", {"a.number": 1})
    first = read_header(file)
    assert read_header(file) is first
    write_file(file, {"a.number": 2, "a.more": 3})
    assert read_header(file).metadata["a.number"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, "is GGUF of version 1; versions 2 and 3 are supported: convert"),
        ({"version": 4}, "is GGUF of version 4"),
        ({"version": 3 << 24}, "the other byte order; use the usual little-endian"),
        ({"num_bytes": 255}, r"is cut off: its w ends at byte \d+, and the file has \d+; fetch it"),
        ({"offset": 32}, "is cut off"),
        ({"kind": 16}, r"holds w as IQ2_XXS, which is not supported; use .* Q4_K, .*Q4_K_M"),
        ({"kind": 35}, "holds w as TQ2_0"),
        ({"kind": 99}, "holds w as of the unknown type 99"),
        ({"kind": 12}, r"its w of \[2, 32\] does not divide into blocks of Q4_K"),
        ({"shape": (0, 32)}, "does not divide"),
        ({"shape": (1, 1, 1, 1, 1)}, "its w has 5 dimensions"),
    ],
)
def test_what_is_wrong_is_told(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    raw_file(tmp_path / "good.gguf")
    assert set(read_header(tmp_path / "good.gguf").tensors) == {"w"}
    with pytest.raises(ModelDirectoryError, match=message):
        read_header(raw_file(tmp_path / "bad.gguf", **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com", "does not begin with GGUF.*git lfs pull"),
        (b"GGUF\x03\0\0\0", "header cannot be read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "header cannot be read"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 40), "a name in it has"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77), "unknown type 77"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 1 << 62), "ends within"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQQ", 3, 0, 1, 1, b"k", 9, 8, 9, 1 << 62), "cannot be"),
    ],
)
def test_a_damaged_header_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelDirectoryError, match=message):
        read_header(file)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = write_file(tmp_path / "m.gguf", METADATA, TENSORS).read_bytes()
    file = tmp_path / "cut.gguf"
    end = read_header(tmp_path / "m.gguf").tensors["half"]
    last = end.offset + end.num_bytes
    for length in [*range(1, 60), *range(60, last, 23), last - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(ModelDirectoryError):
            read_header(file)
    file.write_bytes(whole[:last])
    assert len(read_header(file).tensors) == 2


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    file = write_file(tmp_path / "m.gguf", METADATA, TENSORS)
    begin = read_header(file).tensors["half"].offset - read_header(file).tensors["matrix"].offset
    entry = struct.pack("<IQIQ", 1, 8, 1, begin)  # of 8 values in F16
    assert file.read_bytes().count(b"half" + entry) == 1
    moved = struct.pack("<IQIQ", 1, 8, 1, begin - 32)
    file.write_bytes(file.read_bytes().replace(b"half" + entry, b"half" + moved))
    with pytest.raises(ModelDirectoryError, match="its matrix and half lie upon each other"):
        read_header(file)


def test_an_array_of_texts_that_are_none_is_refused(tmp_path: Path) -> None:
    file = write_file(tmp_path / "m.gguf", METADATA, TENSORS)
    file.write_bytes(file.read_bytes().replace(b"zwei", b"zwe\xff"))
    with pytest.raises(ModelDirectoryError, match=r"its a\.texts cannot be read: 'utf-8' codec"):
        read_header(file).array("a.texts")


def write_set(folder: Path, count: int = 3, counted: int | None = None) -> list[Path]:
    """A model in parts, of which the first has the metadata and each has a tensor."""
    files = []
    for number in range(count):
        split = {"split.no": number, "split.count": count}
        if number == 0:
            split |= {"split.tensors.count": counted or count, "llama.block_count": 9}
        file = folder / f"m-{number + 1:05}-of-{count:05}.gguf"
        files.append(write_file(file, split, {f"t{number}": np.ones(4, dtype=np.float32)}))
    return files


def test_a_split_set_is_one_model_whichever_part_is_named(tmp_path: Path) -> None:
    files = write_set(tmp_path)
    for path in (*files, tmp_path):
        parts = read_parts(path)
        assert parts.file == files[0] and parts.metadata["llama.block_count"] == 9
        assert [place.file for place in parts.tensors.values()] == files
        assert parts.numbers("t2") == [1, 1, 1, 1]
    assert model_name(files[1]) == "m" and model_name(Path("q.Q4_0.gguf")) == "q.Q4_0"


def test_an_incomplete_set_is_refused_where_weights_are_needed(tmp_path: Path) -> None:
    files = write_set(tmp_path)
    files[1].unlink()
    with pytest.raises(ModelDirectoryError, match="one of 3 parts, and m-00002-of-"):
        read_parts(files[0])
    assert list(read_parts(files[0], needs_all=False).tensors) == ["t0"]
    files[0].unlink()
    with pytest.raises(ModelDirectoryError, match=r"m-00001-of-00003\.gguf is not beside it"):
        read_parts(files[2], needs_all=False)


def test_parts_of_other_sets_and_renamed_parts_are_refused(tmp_path: Path) -> None:
    files = write_set(tmp_path, counted=4)
    with pytest.raises(ModelDirectoryError, match="have 3 tensors, and the model has 4"):
        read_parts(tmp_path)
    write_set(tmp_path)
    second = files[1].read_bytes()
    files[1].write_bytes(files[2].read_bytes())
    files[2].write_bytes(second)
    with pytest.raises(ModelDirectoryError, match="it is part 3 rather than 2"):
        read_parts(tmp_path)
    files[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelDirectoryError, match="is a part of 3, and its name does not end in"):
        read_parts(tmp_path / "renamed.gguf")


def test_what_is_a_model_in_gguf(tmp_path: Path) -> None:
    assert not is_gguf(tmp_path)
    one = write_file(tmp_path / "one.gguf", {})
    write_file(tmp_path / "mmproj-one.gguf", {})
    assert is_gguf(one) and is_gguf(tmp_path) and read_parts(tmp_path).file == one
    write_file(tmp_path / "two.gguf", {})
    with pytest.raises(ModelDirectoryError, match=r"has 2 models \(one.gguf, two.gguf\); name"):
        read_parts(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not is_gguf(tmp_path)
    with pytest.raises(ModelDirectoryError, match=r"there is no file .*none\.gguf"):
        read_parts(tmp_path / "none.gguf")
