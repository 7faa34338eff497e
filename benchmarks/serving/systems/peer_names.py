"""How a peer is named: its package, its servers, and whether its own router stands before them.

sglang-dp       a server for each GPU
sglang-tp4      servers of four ranks each, as many as there is room for
sglang-pd       half of the GPUs have prefill servers, the other half decode servers
sglang-1p3d     so many prefill and decode servers
sglang-tp2+2    one prefill and one decode server, of so many ranks
…-router        any of these behind the router of the package

vllm-… likewise. Without its router a peer has the client in place of one, which knows more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from protocol.config import ConfigError

PACKAGES = ("sglang", "vllm")
_MANY = r"[1-9]\d?"
_NAME = re.compile(
    rf"(?P<package>{'|'.join(PACKAGES)})-"
    rf"(?:dp|(?P<pd>pd)|tp(?P<each>{_MANY})|(?P<prefill>{_MANY})p(?P<decode>{_MANY})d"
    rf"|tp(?P<prefill_ranks>{_MANY})\+(?P<decode_ranks>{_MANY}))"
    r"(?P<router>-router)?"
)


@dataclass(frozen=True)
class Peer:
    """Which servers there are, and of which package."""

    name: str
    package: str
    ranks: tuple[int, ...]
    """How many GPUs each server has."""
    num_prefill: int = 0
    """So many of the servers, the first ones, compute prompts for the others; 0: each does all."""
    has_router: bool = False

    @classmethod
    def parse(cls, name: str, num_gpus: int) -> Peer:
        """Reads the name of a peer that is to run on so many GPUs. Raises ConfigError."""
        found = _NAME.fullmatch(name)
        if not found:
            raise ConfigError(
                f"--peer has {name!r}; write sglang-dp (a server for each GPU), sglang-tp4 "
                "(servers of four ranks), sglang-pd (half prefill, half decode servers), "
                "sglang-1p3d, or sglang-tp2+2 (ranks of a prefill and of a decode server), vllm-… "
                "likewise, and -router after it for the package's router"
            )
        num_prefill, ranks = _servers(found, num_gpus)
        if sum(ranks) > num_gpus:
            raise ConfigError(f"--peer {name} needs {sum(ranks)} GPUs; {num_gpus} can be used here")
        return cls(name, found["package"], ranks, num_prefill, bool(found["router"]))

    @property
    def first_gpus(self) -> tuple[int, ...]:
        """The first GPU of each server; its others follow."""
        return tuple(sum(self.ranks[:server]) for server in range(len(self.ranks)))

    def role(self, server: int) -> str:
        """Returns what a server does: `prefill`, `decode`, or nothing if it does everything."""
        if not self.num_prefill:
            return ""
        return "prefill" if server < self.num_prefill else "decode"


def _servers(found: re.Match[str], num_gpus: int) -> tuple[int, tuple[int, ...]]:
    """Returns how many servers compute prompts for others, and the ranks of each server."""
    if found["pd"]:
        return max(1, num_gpus // 2), (1,) * max(2, num_gpus)
    if found["each"]:
        ranks = int(found["each"])
        return 0, (ranks,) * max(1, num_gpus // ranks)
    if found["prefill"]:
        num_prefill = int(found["prefill"])
        return num_prefill, (1,) * (num_prefill + int(found["decode"]))
    if found["prefill_ranks"]:
        return 1, (int(found["prefill_ranks"]), int(found["decode_ranks"]))
    return 0, (1,) * num_gpus
