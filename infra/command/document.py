"""Writes docs/sglang-flags.md: every flag of SGLang, and what `kvrelay up` does with it.

`python -m infra.command.document` writes the file from the parser and the table; a test fails while
it is not what this module would write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from coordinator.config import CoordinatorConfig
from infra.command.foreign_flags import SAME_AS, ForeignFlag, Treatment
from infra.command.sglang_flags import SGLANG_FLAGS
from node.config import NodeConfig

FILE = Path("docs/sglang-flags.md")
SAME = (
    *(
        "model_path",
        "host",
        "port",
        "dtype",
        "quantization",
        "mem_fraction_static",
        "max_running_requests",
    ),
    *("max_queued_requests", "max_total_tokens", "chunked_prefill_size", "page_size", "device"),
    *("tensor_parallel_size", "stream_output", "log_level", "api_key", "served_model_name"),
    *("chat_template", "attention_backend", "load_format", "context_length", "trust_remote_code"),
    "kv_cache_dtype",
)
"""The settings whose flags have SGLang's names and meaning."""
HEADINGS: dict[Treatment, tuple[str, str]] = {
    "translated": ("Of another name here", "Each is a setting of ours."),
    "always": ("Done anyway", "These are accepted without a word."),
    "ignored": ("Without effect", "These change no answer. One line says so at the start."),
    "refused": (
        "Refused",
        "kvrelay cannot do what these ask for, and does not start: it says why.",
    ),
}


def document() -> str:
    """Returns the whole file."""
    lines = [
        "# SGLang's flags",
        "",
        "This file is written by `python -m infra.command.document`. It names every flag of SGLang "
        "0.5.6 and what `kvrelay up` does with it. `python -m kvrelay.launch_server` is that "
        "command by the name that users of SGLang type; `kvrelay coordinator`, `kvrelay prefill` "
        "and `kvrelay decode` read the same flags.",
        "",
        "## The same here",
        "",
        "| flag | other names | values that are read as others |",
        "| --- | --- | --- |",
        *_same(),
    ]
    for treatment, (heading, sentence) in HEADINGS.items():
        lines += ["", f"## {heading}", "", sentence, ""]
        lines += ["| flag | why, and what to use instead |", "| --- | --- |"]
        of_it = [flag for flag in SGLANG_FLAGS if flag.treatment == treatment]
        for note, flags in groupby(of_it, lambda flag: flag.note):
            lines.append(f"| {_names(flags)} | {_shown_note(treatment, note)} |")
    return "\n".join([*lines, ""])


def _same() -> Iterable[str]:
    options = {
        field.name: field
        for config in (NodeConfig, CoordinatorConfig)
        for field in dataclasses.fields(config)
    }
    for name in SAME:
        metadata = options[name].metadata
        others = ", ".join(f"`--{alias}`" for alias in metadata["aliases"])
        read = ", ".join(f"`{given}`: `{ours}`" for given, ours in metadata["synonyms"].items())
        yield f"| `--{name.replace('_', '-')}` | {others} | {read} |"


def _names(flags: Iterable[ForeignFlag]) -> str:
    return ", ".join(_name(flag) for flag in flags)


def _name(flag: ForeignFlag) -> str:
    names = " or ".join(f"`--{name}`" for name in flag.names)
    if not flag.neutral:
        return names
    values = [_shown_value(value) for value in flag.neutral]
    return (
        f"{names} (but {' and '.join(values)} are fine)"
        if len(values) > 1
        else (f"{names} (but {values[0]} is fine)")
    )


def _shown_value(value: str) -> str:
    if not value.startswith(SAME_AS):
        return f"`{value}`"
    return f"that of `--{value.removeprefix(SAME_AS).replace('_', '-')}`"


def _shown_note(treatment: Treatment, note: str) -> str:
    if treatment != "translated":
        return note
    setting, _, value = note.partition(" ")
    flag = "--" + setting.replace("_", "-")
    return f"`{flag}`" if value == "true" else f"`{flag} {value.format('N')}`"


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
