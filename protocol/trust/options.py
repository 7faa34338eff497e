"""`TrustOptions`: the settings that say whom a process lets in. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.config import option, require
from protocol.trust.keys import MAKE_ONE

LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


@dataclass(frozen=True)
class TrustOptions:
    """The flags of every process that listens for others of its cluster."""

    cluster_secret: tuple[str, ...] = option(
        (),
        "what only processes of this cluster know; the first is used, others are accepted too",
        is_secret=True,
    )
    cluster_secret_file: str = option(
        "", "file with such secrets, one a line; it is read again when it changes"
    )
    insecure: bool = option(
        False, "listen to others than this host without a cluster secret: they can do anything"
    )

    @property
    def has_secret(self) -> bool:
        """True if peers must prove that they know a secret."""
        return bool(self.cluster_secret or self.cluster_secret_file)

    def require_trust(self, hosts: Sequence[str]) -> None:
        """Raises ConfigError if this process would listen on one of `hosts` to others than this
        host, and anybody there could do anything."""
        open_hosts = [host for host in hosts if not is_loopback(host)]
        require(
            self.has_secret or self.insecure or not open_hosts,
            f"--host {' '.join(open_hosts)} would let in anybody who reaches this process; give "
            f"all processes of the cluster the same --cluster-secret-file ({MAKE_ONE}), or say "
            "--insecure on a network of your own",
        )

    def insecure_warning(self, host: str) -> str:
        """Returns a sentence for the log if `insecure` opens this process to others; "" if not."""
        if self.has_secret or is_loopback(host):
            return ""
        return (
            f"--insecure: whoever reaches {host} can read prompts, answer for nodes and stop them; "
            "a --cluster-secret-file would keep them out"
        )


def is_loopback(host: str) -> bool:
    """Returns True if only processes of this host can connect to what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK_NAMES
