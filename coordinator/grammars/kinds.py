"""`GrammarKind`: the keys under which clients give grammars. Pure."""

from __future__ import annotations

from typing import Literal

GrammarKind = Literal["regex", "json_schema", "ebnf", "structural_tag"]
