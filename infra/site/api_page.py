"""The API reference in Markdown, made of an OpenAPI document. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

TAGS = {
    "native": "SGLang's API",
    "openai": "OpenAI's API",
    "agents": "APIs for agents",
    "admin": "For operators",
}
"""The headings of the parts, in their order."""
JSON = "application/json"
HEAD = """# HTTP API

This page is made of the [OpenAPI document](openapi.json) that a coordinator answers at
`/openapi.json` and shows at `/docs`.
[Compatibility](compatibility.md) tells of every key what is done with it.

"""

Node = Mapping[str, Any]
"""A part of the document."""


def api_page(document: Node) -> str:
    """Returns the page. Paths that do the same are told together."""
    lines = [HEAD]
    for tag, heading in TAGS.items():
        lines.append(f"## {heading}\n")
        for names, operation in _operations(document, tag):
            lines += _told(names, operation, document)
    lines.append("## Bodies\n")
    for name, schema in document["components"]["schemas"].items():
        lines += [f"### {name}\n", *_keys(schema)]
    return "\n".join(lines) + "\n"


def _operations(document: Node, tag: str) -> Iterator[tuple[list[str], Node]]:
    """Yields the operations of a tag, each with all methods and paths that lead to it."""
    found: dict[str, tuple[list[str], Node]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if operation["tags"] == [tag]:
                same = f"{operation['summary']}: {operation.get('description')}"
                found.setdefault(same, ([], operation))[0].append(f"{method.upper()} {path}")
    yield from found.values()


def _told(names: list[str], operation: Node, document: Node) -> Iterator[str]:
    """Yields the lines of one operation."""
    yield f"### `{names[0]}`\n"
    if names[1:]:
        yield f"Also {', '.join(f'`{name}`' for name in names[1:])}.\n"
    yield f"{_text(operation.get('description') or operation['summary'])}\n"
    if operation.get("parameters"):
        yield "| in the URL | type | |\n| --- | --- | --- |"
        for one in operation["parameters"]:
            yield f"| `{one['name']}` | {_type(one['schema'])} | {_cell(one)} |"
        yield ""
    content = operation.get("requestBody", {}).get("content", {}).get(JSON)
    if content:
        yield from _body(content)
    codes = ", ".join(operation["responses"])
    yield f"Status codes: {codes}.\n"


def _body(content: Node) -> Iterator[str]:
    schema = content["schema"]
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield f"Its body is a [{name}](#{name.lower()}).\n"
    else:
        yield from _keys(schema)
    examples = [content["example"]] if "example" in content else []
    examples += [one["value"] for one in content.get("examples", {}).values()]
    for example in examples[:1]:
        yield f"```json\n{json.dumps(example, indent=1, ensure_ascii=False)}\n```\n"


def _keys(schema: Node) -> Iterator[str]:
    """Yields a table of the keys of an object."""
    if not schema.get("properties"):
        return
    required = schema.get("required", ())
    yield "| key | type | default | |\n| --- | --- | --- | --- |"
    for name, one in schema["properties"].items():
        default = "required" if name in required else _default(one)
        yield f"| `{name}` | {_type(one)} | {default} | {_cell(one)} |"
    yield ""


def _default(schema: Node) -> str:
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else ""


def _type(schema: Node) -> str:
    """Returns the type of a value in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    choices = schema.get("anyOf") or schema.get("oneOf") or ()
    if choices:
        return " or ".join(dict.fromkeys(_type(choice) for choice in choices))
    kind = schema.get("type", "any")
    if kind == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _cell(schema: Node) -> str:
    return _text(schema.get("description", "")).replace("\n", " ").replace("|", "\\|")


def _text(text: str) -> str:
    """Returns a text that Markdown shows as it is: nothing in it is taken for HTML."""
    return text.replace("<", "&lt;")
