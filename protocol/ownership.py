"""The shared record of page ownership in Redis: keys, change entries, and the scripts that write.

Per node name (the braces keep one node's keys in one Redis Cluster slot):

    kvrelay:{name}:lease            the incarnation that owns pages now; ends by itself
    kvrelay:{name}:info             NodeInfo as JSON
    kvrelay:{name}:pages:INC        set of owned page hashes, 16 raw bytes each
    kvrelay:{name}:changes:INC      stream of changes with consecutive sequence numbers
    kvrelay:nodes                   set of node names
    kvrelay:coordinators            sorted set: control address by the time its lease ends

Every write goes through a script that first compares the incarnation with the lease (fencing):
a node that was replaced cannot write any more. The pages and stream of a dead node outlive its
lease by a factor of 20, then Redis drops them. One Redis database belongs to one cluster. Knows no
connection; callers run the scripts.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import Node

NODES_KEY = "kvrelay:nodes"
COORDINATORS_KEY = "kvrelay:coordinators"
STREAM_MAX_LENGTH = 10_000
APPLIED, LEASE_MISSING, FENCED = 1, 0, -1

# KEYS lease info pages changes; ARGV incarnation lease_ms info_json
REGISTER = """
local current = redis.call('GET', KEYS[1])
if current and tonumber(current) > tonumber(ARGV[1]) then return -1 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2] * 20)
redis.call('DEL', KEYS[3])
return 1
"""

# KEYS lease info pages changes; ARGV incarnation lease_ms
RENEW = """
local current = redis.call('GET', KEYS[1])
if not current then return 0 end
if current ~= ARGV[1] then return -1 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
for i = 2, 4 do redis.call('PEXPIRE', KEYS[i], ARGV[2] * 20) end
return 1
"""

# KEYS lease info pages changes; ARGV incarnation sequence kind stored removed max_length
APPLY = """
local current = redis.call('GET', KEYS[1])
if not current then return 0 end
if current ~= ARGV[1] then return -1 end
local function each(command, blob)
  local batch = {}
  for i = 1, #blob, 16 do
    batch[#batch + 1] = string.sub(blob, i, i + 15)
    if #batch == 1000 then redis.call(command, KEYS[3], unpack(batch)); batch = {} end
  end
  if #batch > 0 then redis.call(command, KEYS[3], unpack(batch)) end
end
each('SREM', ARGV[5])
each('SADD', ARGV[4])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[6], '*',
           'n', ARGV[2], 'k', ARGV[3], 's', ARGV[4], 'r', ARGV[5])
local ttl_ms = redis.call('PTTL', KEYS[2])
if ttl_ms > 0 then for i = 3, 4 do redis.call('PEXPIRE', KEYS[i], ttl_ms) end end
return 1
"""

# KEYS lease info pages changes; ARGV incarnation. The record of a newer life stays.
RELEASE = """
redis.call('DEL', KEYS[3], KEYS[4])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('DEL', KEYS[1], KEYS[2])
return 1
"""

# KEYS coordinators; ARGV address lease_ms
ANNOUNCE = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms)
redis.call('ZADD', KEYS[1], ms + ARGV[2], ARGV[1])
return 1
"""

# KEYS coordinators
LIST_COORDINATORS = """
local now = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', KEYS[1], now[1] * 1000 + math.floor(now[2] / 1000), '+inf')
"""


@dataclass(frozen=True)
class NodeKeys:
    """The Redis keys of one life of one node."""

    lease: str
    info: str
    pages: str
    changes: str

    @classmethod
    def of(cls, node: Node) -> NodeKeys:
        prefix = f"kvrelay:{{{node.name}}}"
        return cls(
            lease=f"{prefix}:lease",
            info=f"{prefix}:info",
            pages=f"{prefix}:pages:{node.incarnation}",
            changes=f"{prefix}:changes:{node.incarnation}",
        )

    def all(self) -> list[str]:
        return [self.lease, self.info, self.pages, self.changes]


@dataclass(frozen=True)
class Change:
    """One entry of a node's stream. `reload`: the set was rewritten, read it instead."""

    sequence: int
    reload: bool
    stored: bytes
    removed: bytes

    @classmethod
    def from_entry(cls, fields: dict[bytes, bytes]) -> Change:
        return cls(
            sequence=int(fields[b"n"]),
            reload=fields[b"k"] == b"reload",
            stored=fields[b"s"],
            removed=fields[b"r"],
        )
