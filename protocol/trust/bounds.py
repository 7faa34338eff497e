"""Types of the fields of messages, with the bounds within which a value is believed. Pure.

msgspec checks them while it decodes, and refuses NaN and infinity with them. They are wide: they
keep out what would break a receiver, and are no limits of the product.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""A number of things, or of bytes."""
PositiveCount = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
Size = Annotated[int, Meta(ge=1, le=1 << 20)]
"""One side of a tensor."""
MAX_TOKEN_ID = (1 << 31) - 1
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Incarnation = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""Nanoseconds since 1970; whoever hears one compares it with the clock too (`checks`)."""
Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
MAX_LEASE_S = 1e6
LeaseSeconds = Annotated[float, Meta(gt=0.0, le=MAX_LEASE_S)]
Rate = Annotated[float, Meta(ge=0.0, le=1e18)]
"""Tokens or bytes a second."""
Real = Annotated[float, Meta(ge=-3.5e38, le=3.5e38)]
"""Any finite number that a float32 holds."""
MAX_NAME_CHARACTERS = 512
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARACTERS)]
Address = Annotated[str, Meta(max_length=512)]
"""host:port, with what `protocol.channel` adds for control addresses; "" if there is none."""
Key = Annotated[str, Meta(max_length=512)]
"""A short word that is compared with another one; "" if there is none."""
Digest = Annotated[bytes, Meta(min_length=1, max_length=64)]
DataAddresses = Annotated[tuple[Address, ...], Meta(max_length=256)]
"""The addresses of the ranks of a node."""
