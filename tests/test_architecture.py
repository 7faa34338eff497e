"""The direction of imports and the pure files, as docs/architecture.md states them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT: dict[str, set[str]] = {
    "protocol": set(),
    "engine": {"protocol"},
    "kvtransfer": {"protocol"},
    "coordinator": {"protocol"},
    "kvrelay": {"protocol"},
    "node": {"protocol", "engine", "kvtransfer"},
    "prefill": {"protocol", "engine", "kvtransfer", "node"},
    "decode": {"protocol", "engine", "kvtransfer", "node"},
    "infra": {"protocol", "coordinator", "prefill", "decode", "node", "kvrelay"},
}
MAY_IMPORT["benchmarks"] = set(MAY_IMPORT)
"""They measure everything; nothing but tests imports them."""
MAY_IMPORT_TOO = {"kvrelay/launch_server.py": {"infra"}}
"""Single files that may import more than their package: this one only has the name that users of
SGLang type for a command, and nothing of the client imports it."""
FLOORS = {
    "engine": (
        "cache",
        "batches",
        "attention kernels sampling",
        "model",
        "weights steps",
    ),
    "kvtransfer": ("pages backends", "links"),
    "node": ("load ownership metrics", "liveness", "core", "shell", "ranks"),
    "coordinator": (
        "events ownership grammars admission timelines",
        "routing conversation",
        "answers",
        "metrics tracing",
        "leaving",
        "core",
        "sessions peers live",
        "http",
    ),
    "kvrelay": ("language bench",),
}
"""The rooms of a package, floor by floor: a room imports those of lower floors only; those on its
own floor are strangers to it. Files beside the rooms are what all rooms share, and what puts them
together."""
PURE_ROOMS = (
    "node/core",
    "node/load",
    "node/metrics",
    "node/ownership",
    "coordinator/conversation",
    "coordinator/conversation/calls",
    "coordinator/admission",
    "coordinator/core",
    "coordinator/events",
    "coordinator/grammars",
    "coordinator/live",
    "coordinator/routing",
    "coordinator/routing/prices",
    "coordinator/metrics",
    "coordinator/timelines",
    "protocol/model/gguf",
    "protocol/timelines",
)
"""Folders in which every file is pure."""
PURE = (
    *sorted(
        str(path.relative_to(ROOT)) for room in PURE_ROOMS for path in (ROOT / room).glob("*.py")
    ),
    "protocol/admission.py",
    "protocol/config.py",
    "protocol/counters.py",
    "protocol/errors.py",
    "protocol/hashing.py",
    "protocol/ids.py",
    "protocol/layout.py",
    "protocol/messages.py",
    "protocol/model/directory.py",
    "protocol/model/first_qwen.py",
    "protocol/model/files.py",
    "protocol/model/hugging_face.py",
    "protocol/telemetry/familiar.py",
    "protocol/telemetry/metric.py",
    "protocol/model/numbers.py",
    "protocol/model/tiktoken_ranks.py",
    "protocol/model/tokenizer_content.py",
    "protocol/model/tokenizer_files.py",
    "protocol/namespace.py",
    "protocol/prompt_logprobs.py",
    "protocol/sampling.py",
    "protocol/trust/bounds.py",
    "protocol/trust/checks.py",
    "protocol/trust/keys.py",
    "protocol/trust/options.py",
    "protocol/trust/versions.py",
    "protocol/redis/coordinators.py",
    "protocol/redis/ownership.py",
    "protocol/redis/url.py",
    "engine/attention/token_pieces.py",
    "engine/errors.py",
    "engine/kernels/activation.py",
    "engine/model/config.py",
    "engine/model/families.py",
    "engine/model/foreign_keys.py",
    "engine/model/quantisation.py",
    "engine/model/rope_config.py",
    "engine/model/split.py",
    "engine/cache/beginnings.py",
    "engine/cache/page_pool.py",
    "engine/cache/prefix_cache.py",
    "engine/cache/radix.py",
    "engine/batches/sequence.py",
    "engine/batches/step.py",
    "engine/sampling/grammar_words.py",
    "kvtransfer/transport.py",
    "kvtransfer/pages/frame_plan.py",
    "kvtransfer/pages/layout.py",
    "engine/options.py",
    "node/config.py",
    "node/liveness/condition.py",
    "node/model_check.py",
    "node/ranks/wire/commands.py",
    "node/ranks/history.py",
    "node/ranks/merging.py",
    "node/ranks/wire/slices.py",
    "node/shell/acquaintances.py",
    "node/shell/runner.py",
    "node/shell/steps.py",
    "prefill/handovers.py",
    "prefill/sending.py",
    "decode/answers.py",
    "decode/outbox.py",
    "decode/own_answer.py",
    "decode/receiving.py",
    "decode/running.py",
    "coordinator/config.py",
    "coordinator/leaving/farewell.py",
    "coordinator/answers/answer.py",
    "coordinator/tracing/kept_traces.py",
    "coordinator/tracing/trace.py",
    "coordinator/answers/detokenizer.py",
    "coordinator/answers/request.py",
    "coordinator/leaving/resume_token.py",
    "coordinator/leaving/taking_over.py",
    "coordinator/answers/stop_regex.py",
    "coordinator/answers/token_pieces.py",
    "coordinator/answers/totals.py",
    "coordinator/http/errors.py",
    "coordinator/http/anthropic/body.py",
    "coordinator/http/anthropic/content.py",
    "coordinator/http/anthropic/errors.py",
    "coordinator/http/anthropic/keys.py",
    "coordinator/http/anthropic/tools.py",
    "coordinator/http/responses/body.py",
    "coordinator/http/responses/errors.py",
    "coordinator/http/responses/items.py",
    "coordinator/http/responses/keys.py",
    "coordinator/http/responses/tools.py",
    "coordinator/http/error_forms.py",
    "coordinator/http/chat/messages.py",
    "coordinator/http/chat/request.py",
    "coordinator/http/chat/usage.py",
    "coordinator/http/openai/chats/body.py",
    "coordinator/http/openai/common.py",
    "coordinator/http/openai/completions/body.py",
    "coordinator/http/openai/completions/logprobs.py",
    "coordinator/http/openai/errors.py",
    "coordinator/http/openai/formats.py",
    "coordinator/http/openai/heads.py",
    "coordinator/http/openai/keys.py",
    "coordinator/http/openai/chats/logprobs.py",
    "coordinator/http/openai/chats/tools.py",
    "coordinator/http/checking.py",
    "coordinator/http/native/events.py",
    "coordinator/http/native/input_logprobs.py",
    "coordinator/http/native/keys.py",
    "coordinator/http/native/sampling_params.py",
    "coordinator/http/native/schema.py",
    "coordinator/http/native/sglang.py",
    "coordinator/http/sessions/params.py",
    "coordinator/http/wire/events.py",
    "coordinator/sessions/turns.py",
    "protocol/redis/pause.py",
    "protocol/redis/sessions.py",
    "coordinator/ownership/index.py",
    "coordinator/ownership/mirror.py",
    "coordinator/peers/counts.py",
    "coordinator/peers/found_requests.py",
    "infra/command/foreign_flags.py",
    "infra/command/sglang_flags.py",
    "infra/gpus/assignment.py",
    "infra/worker_lives.py",
    "kvrelay/bench/dialects.py",
    "kvrelay/bench/results/percentiles.py",
    "kvrelay/bench/results/picture.py",
    "kvrelay/bench/results/record.py",
    "kvrelay/bench/results/slo.py",
    "kvrelay/bench/results/statistics.py",
    "kvrelay/bench/workloads/dialogue.py",
    "kvrelay/bench/workloads/synthetic.py",
    "kvrelay/answers.py",
    "kvrelay/calls.py",
    "kvrelay/connection.py",
    "kvrelay/errors.py",
    "kvrelay/events.py",
    "kvrelay/resuming.py",
    "kvrelay/retries.py",
    "kvrelay/language/backend.py",
    "kvrelay/language/expressions.py",
    "kvrelay/language/role_markers.py",
    "kvrelay/language/scoring.py",
    "kvrelay/language/transcript.py",
    "kvrelay/language/value_types.py",
)
MAX_FILES = 13
"""A folder with more of them, beside its `__init__`, is no longer looked through."""
IMPURE = {"torch", "zmq", "redis", "asyncio", "time", "random", "socket", "threading", "secrets"}


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file."""
    names: set[str] = set()
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            names.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{path}: imports are absolute"
            module = statement.module or ""
            for alias in statement.names:  # `from package import file` names a file
                file = f"{module}.{alias.name}"
                is_file = (ROOT / file.replace(".", "/")).with_suffix(".py").exists()
                names.add(file if is_file else module)
    return names


def top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_table(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        ours = {top(name) for name in imports_of(path)} & MAY_IMPORT.keys()
        own = MAY_IMPORT_TOO.get(str(path.relative_to(ROOT)), set())
        forbidden = ours - MAY_IMPORT[package] - {package} - own
        assert not forbidden, f"{path.relative_to(ROOT)} must not import {sorted(forbidden)}"


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_only_rooms_of_lower_floors(package: str) -> None:
    floors = {room: i for i, rooms in enumerate(FLOORS[package]) for room in rooms.split()}
    found = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert found == floors.keys(), "every room has its floor"
    for room, floor in floors.items():
        for path in sorted((ROOT / package / room).rglob("*.py")):
            parts = [name.split(".") for name in imports_of(path) if top(name) == package]
            others = {part[1] for part in parts if len(part) > 2 and part[1] in floors} - {room}
            above = {other for other in others if floors[other] >= floor}
            assert not above, f"{path.relative_to(ROOT)} must not import {sorted(above)}"


def test_no_class_name_comes_twice_in_the_product() -> None:
    places: dict[str, list[str]] = {}
    for package in MAY_IMPORT.keys() - {"benchmarks"}:
        for path in sorted((ROOT / package).rglob("*.py")):
            for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(statement, ast.ClassDef):
                    name = statement.name.lstrip("_")
                    places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@pytest.mark.parametrize("file", PURE)
def test_pure_files_import_nothing_that_acts(file: str) -> None:
    found = {top(name) for name in imports_of(ROOT / file)} & IMPURE
    assert not found, f"{file} is pure and must not import {sorted(found)}"


@pytest.mark.parametrize("file", PURE)
def test_pure_files_import_only_pure_files_of_ours(file: str) -> None:
    for name in imports_of(ROOT / file):
        if top(name) in MAY_IMPORT:
            target = name.replace(".", "/") + ".py"
            assert target in PURE, f"{file} is pure and imports {target}, which is not"


def test_the_core_of_a_node_knows_nothing_of_its_shell() -> None:
    for path in sorted((ROOT / "node/core").glob("*.py")):
        outside = [n for n in imports_of(path) if n.startswith("node.")]
        assert all(name.startswith(("node.core.", "node.load.")) for name in outside), path


def test_a_simulator_can_run_the_shell_of_a_node_without_torch() -> None:
    """Whatever the shell imports, and whatever that imports."""
    seen: set[str] = set()
    waiting = ["node.shell.shell"]
    while waiting:
        module = waiting.pop()
        file = (ROOT / module.replace(".", "/")).with_suffix(".py")
        if module in seen or not file.exists():
            continue
        seen.add(module)
        assert "torch" not in {top(name) for name in imports_of(file)}, module
        waiting += imports_of(file)
    assert "node.core.core" in seen and "node.shell.steps" in seen


@pytest.mark.parametrize("package", ["protocol", "coordinator", "kvrelay"])
def test_no_torch_outside_of_nodes(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        assert "torch" not in {top(name) for name in imports_of(path)}, path


def test_no_import_cycles_between_files() -> None:
    files = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    edges = {
        module: {name for name in imports_of(path) if name in modules}
        for module, path in modules.items()
    }
    finished: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"import cycle: {' -> '.join([*above, module])}"
        if module not in finished:
            for name in edges[module]:
                visit(name, (*above, module))
            finished.add(module)

    for module in edges:
        visit(module, ())


def test_no_test_imports_from_a_test() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        of_tests = {name for name in imports_of(path) if re.search(r"\b(test_\w+|conftest)$", name)}
        assert not of_tests, f"{path.relative_to(ROOT)}: what tests share lives in tests/support"


def test_property_tests_live_in_their_own_folder() -> None:
    """`make verify` looks at them with many more examples. Strategies may be in tests/support."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.is_relative_to(ROOT / "tests/property"):
            continue
        found = {
            alias.name
            for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(statement, ast.ImportFrom) and top(statement.module or "") == "hypothesis"
            for alias in statement.names
        } & {"given", "RuleBasedStateMachine"}
        assert not found, f"{path.relative_to(ROOT)}: {found} belongs into tests/property"


@pytest.mark.parametrize("top_folder", [*MAY_IMPORT, "tests"])
def test_no_folder_has_more_files_than_one_looks_through(top_folder: str) -> None:
    folders = {path.parent for path in (ROOT / top_folder).rglob("*.py")}
    for folder in sorted(folders):
        count = len({path.name for path in folder.glob("*.py")} - {"__init__.py"})
        assert count <= MAX_FILES, f"{folder.relative_to(ROOT)} has {count} files: split it"


def test_no_two_test_files_have_one_name() -> None:
    """pytest takes files of one name in two folders for the same module."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
