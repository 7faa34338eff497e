"""The record of page ownership in Redis: its keys, its change entries and its scripts.

    {kvrelay}:nodes                     set of node names
    {kvrelay}:draining                  hash: node name → the incarnation that gets no new requests,
                                        "keep" if none of that name does, "0" if all do; its field
                                        "" is "0" once a mark was removed, so that a Redis that
                                        has lost all of them can be told from one without any
    {kvrelay}:node:NAME:lease           the incarnation that owns pages now; expires by itself
    {kvrelay}:node:NAME:info            NodeInfo as JSON
    {kvrelay}:node:NAME:sequence        number of the last change; absent while the set is rewritten
    {kvrelay}:node:NAME:pages:INC       set of owned page hashes, 16 raw bytes each
    {kvrelay}:node:NAME:changes:INC     stream of changes with consecutive sequence numbers

The braces are a hash tag: in a Redis Cluster all keys lie in one slot, so that scripts over several
keys and one XREAD over the streams of all nodes work there too. The price is that one master holds
them all, as a plain Redis would; a Cluster is of use here for its failover.

Every write goes through a script that first compares the incarnation with the lease (fencing):
a node that was replaced cannot write any more. An older incarnation may have the lease when Redis
came back empty and it registered first: the newer one is answered LOST, and registers over it.
Changes must follow one another: a Redis that lost some (a failover to a replica that lagged)
answers LOST, and the node writes its whole set again. The pages and stream of a dead node outlive
its lease by a factor of 20, then Redis drops them. One Redis database belongs to one cluster. Knows
no connection; callers run the scripts.

At every moment the set of a node is prefix-closed, that is, it has all pages before each of its
pages: a change is applied whole, in one script, and a rewrite adds parents before children.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import Node

TAG = "{kvrelay}"
NODES_KEY = f"{TAG}:nodes"
DRAINING_KEY = f"{TAG}:draining"
KEEPS_DRAINING = "keep"
"""The mark of a node that drains whatever its incarnation."""
DOES_NOT_DRAIN = "0"
NODE_PREFIX = f"{TAG}:node:"
HASHES_PER_CHANGE = 1_000
"""The most hashes in one change. A writer joins changes that wait up to this, and cuts longer ones,
so that no script keeps Redis from others for long."""
STREAM_MAX_LENGTH = 4_000
"""Entries of a stream that are kept for coordinators that lag behind. With HASHES_PER_CHANGE that
is at most 64 MB per node."""
APPLIED, LOST, FENCED = 1, 0, -1
"""What the scripts of a node return. APPLIED: it is written. LOST: the lease or the change before
is not there, so the node must write its whole record again. FENCED: a newer incarnation has taken
the name, and this one must write nothing more."""

# All scripts of one node have KEYS lease info sequence pages changes, as `NodeKeys.all`, and ARGV
# 1 incarnation 2 lease_ms. They are made of the parts that follow.

# Returns LOST without a lease and FENCED under another incarnation's.
_GUARD = """
local current = redis.call('GET', KEYS[1])
if not current then return 0 end
if tonumber(current) > tonumber(ARGV[1]) then return -1 end
if current ~= ARGV[1] then return 0 end
"""
# Renews the lease and, for 20 times as long, the rest of the record.
_KEEP = """
redis.call('PEXPIRE', KEYS[1], ARGV[2])
for i = 2, 5 do redis.call('PEXPIRE', KEYS[i], ARGV[2] * 20) end
return 1
"""
# Defines each(command, blob), which gives the hashes in `blob` to SADD or SREM of the node's set.
# 1,000 at a time, as Lua's unpack has a limit.
_EACH = """
local function each(command, blob)
  local batch = {}
  for i = 1, #blob, 16 do
    batch[#batch + 1] = string.sub(blob, i, i + 15)
    if #batch == 1000 then redis.call(command, KEYS[4], unpack(batch)); batch = {} end
  end
  if #batch > 0 then redis.call(command, KEYS[4], unpack(batch)) end
end
"""
# Adds an entry to the stream. ARGV 3 max_length 4 sequence 5 kind 6 stored 7 removed
_ENTER = """
redis.call('SET', KEYS[3], ARGV[4])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[3], '*',
           'n', ARGV[4], 'k', ARGV[5], 's', ARGV[6], 'r', ARGV[7])
"""

# Takes the name for this incarnation, unless a newer one has it, and begins a rewrite: the set is
# emptied. ARGV 3 info_json
REGISTER = """
local current = redis.call('GET', KEYS[1])
if current and tonumber(current) > tonumber(ARGV[1]) then return -1 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2] * 20)
redis.call('UNLINK', KEYS[3], KEYS[4])
return 1
"""

# Adds one part of a rewrite to the set, without an entry in the stream. ARGV 3 stored
FILL = _GUARD + _EACH + "each('SADD', ARGV[3])" + _KEEP

# Ends a rewrite with an entry of kind `reload`, which tells coordinators to read the whole set.
# ARGV 3 to 7: `Change.args`
COMPLETE = _GUARD + _ENTER + _KEEP

# Applies a change, whose number must follow that of the last one. ARGV 3 to 7: `Change.args`.
# Removes before it stores: a page may have left and come back within one joined change.
APPLY = (
    _GUARD
    + "if tonumber(redis.call('GET', KEYS[3]) or -1) ~= ARGV[4] - 1 then return 0 end"
    + _EACH
    + "each('SREM', ARGV[7]) each('SADD', ARGV[6])"
    + _ENTER
    + _KEEP
)

# Renews the lease if the last change is the one that the node believes. ARGV 3 its number
RENEW = (
    _GUARD
    + "if tonumber(redis.call('GET', KEYS[3]) or -1) ~= tonumber(ARGV[3]) then return 0 end"
    + _KEEP
)

# Renews the lease, whatever was written last: for who knows only that the node lives.
KEEP = _GUARD + _KEEP

# Ends the record of this incarnation when it stops; that of a newer one stays.
RELEASE = """
redis.call('UNLINK', KEYS[4], KEYS[5])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
return 1
"""

# Marks a node as draining, by its own wish. A mark that holds for all processes of its name says
# more, and that of a newer one is not this node's; one that makes no sense is replaced. KEYS
# draining; ARGV name incarnation
MARK_DRAINING = """
local mark = redis.call('HGET', KEYS[1], ARGV[1])
if mark ~= 'keep' and (tonumber(mark or 0) or 0) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
return 1
"""

# Removes the mark of an incarnation that has ended, or the marks of all that ever were would be
# read with each look for nodes. KEYS draining; ARGV name incarnation
FORGET_MARK = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HSET', KEYS[1], '', '0')
end
return 1
"""

# Reads a set in parts. KEYS pages; ARGV cursor count. Returns the next cursor and some hashes,
# joined into one blob: the Python client takes far longer for a list.
SCAN = """
local reply = redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
return {reply[1], table.concat(reply[2])}
"""

# Finds the owners of a prompt. KEYS nodes; ARGV node_prefix hashes. Returns name, incarnation and
# depth (how many leading pages it owns) for each node with depth > 0. A binary search finds the
# depth, as the sets are prefix-closed. The names of the other keys are made here, which a Cluster
# allows only because the hash tag keeps them in the slot of KEYS[1].
MATCH = """
local num_pages = #ARGV[2] / 16
local function hash(page) return string.sub(ARGV[2], page * 16 - 15, page * 16) end
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local incarnation = redis.call('GET', ARGV[1] .. name .. ':lease')
  if incarnation then
    local pages = ARGV[1] .. name .. ':pages:' .. incarnation
    -- Owned sets are prefix-closed: page `depth` is owned, page `last + 1` is not.
    local depth, last = 0, num_pages
    while depth < last do
      local middle = math.ceil((depth + last) / 2)
      if redis.call('SISMEMBER', pages, hash(middle)) == 1 then
        depth = middle
      else
        last = middle - 1
      end
    end
    -- A set that is not prefix-closed would mislead the search: look at every page of the result.
    local first = 1
    while first <= depth do
      local batch = {}
      for page = first, math.min(first + 999, depth) do batch[#batch + 1] = hash(page) end
      for i, is_owned in ipairs(redis.call('SMISMEMBER', pages, unpack(batch))) do
        if is_owned == 0 then depth = first + i - 2; break end
      end
      first = first + 1000
    end
    if depth > 0 then
      found[#found + 1] = name
      found[#found + 1] = incarnation
      found[#found + 1] = depth
    end
  end
end
return found
"""

# Lists all nodes. KEYS nodes; ARGV node_prefix. Returns name, lease, info, sequence per node, nil
# for what is not there. A name without info is that of a node that is long gone; it is removed.
LIST_NODES = """
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local info = redis.call('GET', ARGV[1] .. name .. ':info')
  if info then
    found[#found + 1] = name
    found[#found + 1] = redis.call('GET', ARGV[1] .. name .. ':lease')
    found[#found + 1] = info
    found[#found + 1] = redis.call('GET', ARGV[1] .. name .. ':sequence')
  else
    redis.call('SREM', KEYS[1], name)
  end
end
return found
"""

# Lists what coordinators have to know of all nodes, twice a second: of a thousand nodes that is a
# tenth of what LIST_NODES returns. KEYS nodes; ARGV node_prefix. Returns name, lease and sequence
# per node, nil for what is not there, and removes the names of nodes that are long gone.
LIST_LEASES = """
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local lease = redis.call('GET', ARGV[1] .. name .. ':lease')
  if lease or redis.call('EXISTS', ARGV[1] .. name .. ':info') == 1 then
    found[#found + 1] = name
    found[#found + 1] = lease
    found[#found + 1] = lease and redis.call('GET', ARGV[1] .. name .. ':sequence')
  else
    redis.call('SREM', KEYS[1], name)
  end
end
return found
"""


def text_of(raw: bytes) -> str:
    """Returns a name or an address that was read from Redis. What is no text becomes one that
    nobody has."""
    return raw.decode(errors="replace")


@dataclass(frozen=True)
class NodeKeys:
    """The Redis keys of one incarnation of a node."""

    lease: str
    info: str
    sequence: str
    pages: str
    changes: str

    @classmethod
    def of(cls, node: Node) -> NodeKeys:
        """Returns the keys of `node`."""
        prefix = NODE_PREFIX + node.name
        return cls(
            lease=f"{prefix}:lease",
            info=f"{prefix}:info",
            sequence=f"{prefix}:sequence",
            pages=f"{prefix}:pages:{node.incarnation}",
            changes=f"{prefix}:changes:{node.incarnation}",
        )

    def all(self) -> list[str]:
        """Returns the keys in the order in which the scripts take them."""
        return [self.lease, self.info, self.sequence, self.pages, self.changes]


@dataclass(frozen=True)
class Change:
    """One entry of a node's stream of changes."""

    sequence: int
    """The number of the change; each is one more than the one before."""
    reload: bool
    """True if the whole set was written anew, and must be read to know it."""
    stored: bytes
    """The hashes of pages that the node owns now, joined."""
    removed: bytes
    """The hashes of pages that the node no longer owns, joined. They left before `stored` came."""

    @classmethod
    def from_entry(cls, fields: dict[bytes, bytes]) -> Change:
        """Returns the change in an entry, as XREAD gives its fields. Raises ValueError if no node
        can have written it."""
        if missing := {b"n", b"k", b"s", b"r"} - fields.keys():
            raise ValueError(f"an entry lacks {b', '.join(sorted(missing))!r}")
        return cls(
            sequence=int(fields[b"n"]),
            reload=fields[b"k"] == b"reload",
            stored=fields[b"s"],
            removed=fields[b"r"],
        )

    def args(self) -> list[int | str | bytes]:
        """Returns the arguments 3 to 7 of the scripts APPLY and COMPLETE."""
        kind = "reload" if self.reload else "change"
        return [STREAM_MAX_LENGTH, self.sequence, kind, self.stored, self.removed]
