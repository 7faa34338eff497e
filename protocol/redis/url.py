"""`RedisUrl`: what a Redis URL says: one server, Sentinels or a Cluster, and whether TLS. Pure.

    redis://[user:password@]host[:port][/db]               one server
    unix://[user:password@]/path/to.sock[?db=0]            one server of this host
    redis+sentinel://[user:password@]host[:port],…/service-name[/db]
    redis+cluster://[user:password@]host[:port],…

`rediss` instead of `redis` is the same over TLS. User and password are those of Redis itself; the
Sentinels' own are `?sentinel_username=` and `?sentinel_password=`. `?password_file=` names a file
with the password, which then stands in no command line. Other options are redis-py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

Kind = Literal["server", "sentinel", "cluster"]

KINDS: dict[str, Kind] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
DEFAULT_PORTS: dict[Kind, int] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
OPTIONS = (
    *("db", "username", "password", "password_file", "client_name"),
    *("sentinel_username", "sentinel_password"),
)
TLS_OPTIONS = (
    *("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"),
    *("ssl_cert_reqs", "ssl_check_hostname"),
)


@dataclass(frozen=True)
class RedisUrl:
    """The parts of a Redis URL."""

    kind: Kind
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    """(host, port) of the server, of all Sentinels, or of servers of the Cluster. Empty for a Unix
    socket."""
    service: str
    """The name under which Sentinels know the master; "" without Sentinels."""
    plain: str
    """A URL of the first host alone that redis-py can read, with the same credentials, database
    and options."""
    password_file: str = ""
    """The file that has the password; "" if the URL has it, or there is none."""

    @classmethod
    def parse(cls, url: str) -> RedisUrl:
        """Reads a URL. Raises ValueError with half a sentence on what is wrong, which never quotes
        a password."""
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in KINDS:
            schemes = ", ".join(f"{each}://" for each in KINDS)
            raise ValueError(f"it must begin with one of {schemes}, as redis://localhost:6379/0")
        kind, tls = KINDS[scheme], scheme.startswith("rediss")
        if "#" in rest:
            raise ValueError("a # in it must be written %23")
        rest, mark, query = rest.partition("?")
        _check_options(query, tls, kind)
        query, password_file = _without_password_file(query)
        mark = "?" if query else ""
        address, _, path = rest.partition("/")
        if scheme == "unix":
            if not path:
                raise ValueError("it needs the path of a socket, as unix:///run/redis.sock")
            return cls(kind, tls, (), "", f"{scheme}://{rest}{mark}{query}", password_file)
        credentials, at, netloc = address.rpartition("@")
        hosts = tuple(_host_and_port(part, DEFAULT_PORTS[kind]) for part in netloc.split(","))
        if kind == "server" and len(hosts) > 1:
            raise ValueError("it names several hosts; that needs redis+sentinel or redis+cluster")
        service, db = _service_and_db(kind, path)
        server = f"[{hosts[0][0]}]" if ":" in hosts[0][0] else hosts[0][0]
        plain = (
            f"{'rediss' if tls else 'redis'}://{credentials}{at}{server}:{hosts[0][1]}/{db}"
            f"{mark}{query}"
        )
        return cls(kind, tls, hosts, service, plain, password_file)


def _without_password_file(query: str) -> tuple[str, str]:
    """Returns the options without `password_file`, and its value."""
    pairs = parse_qsl(query, keep_blank_values=True)
    files = [value for name, value in pairs if name == "password_file"]
    if not files:
        return query, ""
    return urlencode([pair for pair in pairs if pair[0] != "password_file"]), files[-1]


def _check_options(query: str, tls: bool, kind: Kind) -> None:
    """Raises ValueError for an option in `query` that is unknown or does not go with the scheme."""
    for name in parse_qs(query, keep_blank_values=True):
        if name.startswith("sentinel_") and kind != "sentinel":
            raise ValueError(f"its option {name} needs redis+sentinel or rediss+sentinel")
        if name in TLS_OPTIONS and not tls:
            raise ValueError(f"its option {name} needs TLS: rediss instead of redis")
        if name not in OPTIONS + TLS_OPTIONS:
            known = ", ".join(OPTIONS + TLS_OPTIONS)
            raise ValueError(f"it has an unknown option; there are {known}")


def _host_and_port(text: str, default_port: int) -> tuple[str, int]:
    """Reads `host`, `host:port` or `[ipv6]:port`. Raises ValueError."""
    try:
        split = urlsplit(f"//{text}")
        host, port = split.hostname, split.port
    except ValueError:
        host, port = None, None
    if not host or port == 0:
        raise ValueError(
            "it needs a host or host:port after ://, and in a password /, ?, # and @ are written "
            "%2F, %3F, %23 and %40"
        )
    return host, port or default_port


def _service_and_db(kind: Kind, path: str) -> tuple[str, str]:
    """Reads the path of a URL: the Sentinels' service name, if any, and the number of the database
    ("0" if there is none). Raises ValueError."""
    service = ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise ValueError("it needs the name of a service, as redis+sentinel://host/mymaster/0")
    db = path.strip("/") or "0"
    if not db.isdecimal():
        raise ValueError("its database must be a whole number, as redis://localhost:6379/0")
    if kind == "cluster" and int(db):
        raise ValueError("a Redis Cluster has only database 0")
    return service, db
