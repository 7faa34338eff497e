"""`GrammarKind`: the keys under which clients give grammars; and a word that they use. Pure."""

from __future__ import annotations

from typing import Literal

GrammarKind = Literal["regex", "json_schema", "ebnf", "structural_tag"]
ANY_JSON = "$$ANY$$"
"""SGLang's schema for any JSON object."""
