"""The record of a session in Redis: its key, its fields and its scripts.

    {kvrelay}:session:ID    hash; expires when the session was not used for its time to live
        capacity            the most characters that a prompt may have
        opener              a name that whoever opened it has made up
        turns, bytes        how many turns there are, and bytes of their tokens
        turn:RID            "KEPT PARENT": the turn's prompt begins with the first KEPT tokens of
                            prompt and answer of the turn PARENT; "0 " if it follows none
        new:RID             the rest of its prompt, as int32 bytes
        answer:RID          its answer, as int32 bytes; absent until it has ended

So a turn has only what it adds, and turns that follow the same one share what came before. All of
a session is one key: its scripts work in a Redis Cluster too. Knows no connection; callers run the
scripts.
"""

from __future__ import annotations

from protocol.redis.ownership import TAG

SESSION_PREFIX = f"{TAG}:session:"

# All scripts have KEYS session and ARGV 1 ttl_ms.
_KEEP = "redis.call('PEXPIRE', KEYS[1], ARGV[1])\n"

# Opens a session. ARGV 2 capacity 3 opener. Returns 0 if somebody else has opened it already.
OPEN = (
    """
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'opener') == ARGV[3] and 1 or 0
end
redis.call('HSET', KEYS[1], 'capacity', ARGV[2], 'opener', ARGV[3], 'turns', 0, 'bytes', 0)
"""
    + _KEEP
    + "return 1"
)

# Reads a turn and all that it follows, itself first. ARGV 2 rid, "" for none. Returns nothing for
# an unknown session, else its capacity, followed by a list of kept, new, answer (nil if it has not
# ended) per turn. The list is empty if the turn is unknown.
READ = """
local capacity = redis.call('HGET', KEYS[1], 'capacity')
if not capacity then return nil end
local found, rid = {}, ARGV[2]
while rid ~= '' do
  local turn = redis.call('HGET', KEYS[1], 'turn:' .. rid)
  if not turn then break end
  local kept, parent = string.match(turn, '^(%d+) (.*)$')
  found[#found + 1] = {kept, redis.call('HGET', KEYS[1], 'new:' .. rid),
                       redis.call('HGET', KEYS[1], 'answer:' .. rid)}
  rid = parent
end
return {capacity, found}
"""

# Begins a turn. ARGV 2 rid 3 parent ("" for none) 4 kept 5 new 6 replace 7 max_turns 8 max_bytes.
# With `replace` 1 the turns that follow `parent` are removed first, or all if there is none; one of
# these may have had the same rid, if it has ended.
# Returns {"ok", rids of removed turns that had not ended …}, or {what stands in its way, …}.
BEGIN = (
    """
local function field(kind, rid) return kind .. ':' .. rid end
local session, rid, parent = KEYS[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', session) == 0 then return {'no session'} end
if parent ~= '' then
  if redis.call('HEXISTS', session, field('turn', parent)) == 0 then return {'no parent'} end
  if redis.call('HEXISTS', session, field('answer', parent)) == 0 then return {'running'} end
end

local removed = {}
if ARGV[6] == '1' then
  local children, all = {}, {}
  local entries = redis.call('HGETALL', session)
  for i = 1, #entries, 2 do
    local name = string.match(entries[i], '^turn:(.*)$')
    if name then
      local above = string.match(entries[i + 1], '^%d+ (.*)$')
      children[above] = children[above] or {}
      table.insert(children[above], name)
    end
  end
  local todo = children[parent] or {}
  while #todo > 0 do
    local name = table.remove(todo)
    removed[#removed + 1] = name
    for _, child in ipairs(children[name] or {}) do table.insert(todo, child) end
  end
end

local num_turns = tonumber(redis.call('HGET', session, 'turns')) - #removed
local num_bytes = tonumber(redis.call('HGET', session, 'bytes')) + #ARGV[5]
local is_known = redis.call('HEXISTS', session, field('turn', rid)) == 1
for _, name in ipairs(removed) do
  -- The end of a turn that runs would be taken for that of the new one.
  if name == rid and redis.call('HEXISTS', session, field('answer', name)) == 1 then
    is_known = false
  end
  num_bytes = num_bytes - redis.call('HSTRLEN', session, field('new', name))
              - redis.call('HSTRLEN', session, field('answer', name))
end
if is_known then return {'known'} end
if num_turns >= tonumber(ARGV[7]) then return {'many turns', tostring(num_turns)} end
if num_bytes > tonumber(ARGV[8]) then return {'many bytes', tostring(num_bytes)} end

local reply = {'ok'}
for _, name in ipairs(removed) do
  if redis.call('HEXISTS', session, field('answer', name)) == 0 then reply[#reply + 1] = name end
  redis.call('HDEL', session, field('turn', name), field('new', name), field('answer', name))
end
redis.call('HSET', session, 'turns', num_turns + 1, 'bytes', num_bytes,
           field('turn', rid), ARGV[4] .. ' ' .. parent, field('new', rid), ARGV[5])
"""
    + _KEEP
    + "return reply"
)

# Ends a turn, unless it has ended. ARGV 2 rid 3 answer. Returns 0 if the turn was removed, or the
# session is closed.
END = (
    """
if redis.call('HEXISTS', KEYS[1], 'turn:' .. ARGV[2]) == 0 then return 0 end
if redis.call('HSETNX', KEYS[1], 'answer:' .. ARGV[2], ARGV[3]) == 0 then return 1 end
redis.call('HINCRBY', KEYS[1], 'bytes', #ARGV[3])
"""
    + _KEEP
    + "return 1"
)

# Forgets a turn that was begun, and refused afterwards. ARGV 2 rid
DISCARD = (
    """
local length = redis.call('HSTRLEN', KEYS[1], 'new:' .. ARGV[2])
if redis.call('HDEL', KEYS[1], 'turn:' .. ARGV[2], 'new:' .. ARGV[2]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'bytes', -length)
redis.call('HINCRBY', KEYS[1], 'turns', -1)
"""
    + _KEEP
    + "return 1"
)
