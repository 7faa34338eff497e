"""The formats of JSON schemas: which bind a text, and how. Pure.

Days that their month does not have, and seconds of 60, are left out of dates and times here: what
reads an answer would refuse them, and llguidance lets them in.
"""

from __future__ import annotations

from typing import Any

MONTHS = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
DATE = f"(?:[0-9]{{4}}-{MONTHS}|{LEAP_YEAR}-02-29)"
CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
TIME = rf"{CLOCK}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{CLOCK})"
PATTERNS = {"date": f"^{DATE}$", "time": f"^{TIME}$", "date-time": f"^{DATE}T{TIME}$"}
"""RFC 3339, section 5.6."""
FOLLOWED = frozenset(("email", "hostname", "ipv4", "ipv6", "uri", "uuid", "duration"))
"""llguidance follows these by itself."""
NOT_FOLLOWED = frozenset(
    (
        *("regex", "json-pointer", "relative-json-pointer", "uri-reference", "uri-template"),
        *("iri", "iri-reference", "idn-email", "idn-hostname"),
    )
)
"""The others of JSON Schema's own, which llguidance refuses. Any further format is a note for
readers, which binds nothing: `int32`, `password`, `path`."""


def write_format(schema: dict[str, Any]) -> None:
    """Writes the format of `schema` as its pattern if that can be, and leaves out a note."""
    kind = schema.get("format")
    if not isinstance(kind, str) or kind in FOLLOWED or kind in NOT_FOLLOWED:
        return
    if kind in PATTERNS:
        if "pattern" in schema:
            return
        schema["pattern"] = PATTERNS[kind]
    del schema["format"]
