"""What was compiled is counted, and is kept where the node is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engine.compile_cache import DIRECTORIES, cache_directory, name_cache
from engine.compile_counts import CompileCounter, flash4_compiles, hooked
from engine.kernels.native.build import load_library, num_native_builds
from tests.support.engine.native import compiled, little_source


def test_the_sum_of_all_kinds() -> None:
    counts = [1, 20]
    counter = CompileCounter([lambda: counts[0], lambda: counts[1]])
    assert counter.total == 21
    counts[0] += 1
    assert counter.total == 22
    assert CompileCounter().total == 0


def test_triton_tells_of_each_kernel_and_another_hook_still_hears_it() -> None:
    heard: list[dict[str, Any]] = []
    runtime = SimpleNamespace(jit_post_compile_hook=lambda **news: heard.append(news))
    count, later = hooked(runtime), hooked(runtime)
    assert count() == later() == 0
    runtime.jit_post_compile_hook(key="a", already_compiled=False)
    runtime.jit_post_compile_hook(key="b", already_compiled=False)
    assert count() == later() == 2
    assert [news["key"] for news in heard] == ["a", "b"]
    alone = SimpleNamespace(jit_post_compile_hook=None)
    count = hooked(alone)
    alone.jit_post_compile_hook(key="c")
    assert count() == 1


@pytest.mark.parametrize(
    "kept", [{"k1": 1, "k2": 2}, SimpleNamespace(cache={"k1": 1, "k2": 2})], ids=["dict", "object"]
)
def test_variants_of_flash_attn_4(kept: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flash_attn.cute.interface", raising=False)
    assert flash4_compiles() == 0
    interface = ModuleType("flash_attn.cute.interface")
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", interface)
    assert flash4_compiles() == 0, "a version that does not tell"
    interface._flash_attn_fwd = SimpleNamespace(compile_cache=kept)  # type: ignore[attr-defined]
    assert flash4_compiles() == 2


def test_native_kernels_are_compiled_once_for_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled()
    little_source(tmp_path / "source", monkeypatch)
    before = num_native_builds()
    load_library(tmp_path)
    assert num_native_builds() == before + 1
    load_library(tmp_path)
    assert num_native_builds() == before + 1


def test_where_compiled_things_are_kept(tmp_path: Path) -> None:
    assert cache_directory(str(tmp_path)) == tmp_path
    assert cache_directory("", {"XDG_CACHE_HOME": "/x"}) == Path("/x/kvrelay")
    assert cache_directory("", {}) == Path.home() / ".cache/kvrelay"
    environment = {"TRITON_CACHE_DIR": "/mine"}
    name_cache(tmp_path, environment)
    assert environment["TRITON_CACHE_DIR"] == "/mine", "what the user set stays"
    assert all(environment[name] for name in DIRECTORIES)
    others = [environment[name] for name in DIRECTORIES if name != "TRITON_CACHE_DIR"]
    assert len(set(others)) == len(others)
    assert all(Path(place).parent == tmp_path for place in others)
