"""Schemas by the keyword that they are about; `json_schemas.json` says where they are from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

FILE = Path(__file__).with_suffix(".json")
UNSUPPORTED = {
    "contains": 2,
    "dependent": 3,
    "format": 4,  # json-pointer, idn-email, iri, regex
    "if": 2,
    "not": 3,
    "oneOf": 1,  # of alternatives that overlap
    "propertyNames": 1,
    "unevaluated": 2,
    "uniqueItems": 2,
}
"""How many schemas of a group llguidance cannot follow: these are refused."""


def schemas_by_group() -> dict[str, list[Any]]:
    groups = json.loads(FILE.read_text(encoding="utf-8"))
    del groups["origin"]
    return dict(groups)


def is_valid(schema: Any, text: str) -> bool:
    """Returns whether `text` is a document that the schema accepts."""
    try:
        document = json.loads(text)
    except ValueError:
        return False
    return bool(jsonschema.Draft202012Validator(schema).is_valid(document))
