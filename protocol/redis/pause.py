"""Whether the cluster generates, as Redis knows it: one key, and its scripts.

    {kvrelay}:pause     hash: number → counts the pauses and their ends; mode → "" or the pause's

All coordinators read it now and then. A Redis that came back empty, or from an older copy, has a
smaller number than they know, and is told again. Knows no connection; callers run the scripts.
"""

from __future__ import annotations

from protocol.redis.ownership import TAG

PAUSE_KEY = f"{TAG}:pause"

# Begins a pause, or ends it (mode is ""). KEYS pause; ARGV mode, largest number that the caller
# knows. Returns the number of the new state.
SET_PAUSE = """
local number = tonumber(redis.call('HGET', KEYS[1], 'number') or 0)
number = math.max(number, tonumber(ARGV[2])) + 1
redis.call('HSET', KEYS[1], 'number', number, 'mode', ARGV[1])
return number
"""

# Reads the state. KEYS pause; ARGV the newest number and mode that the caller knows: Redis learns
# them if it knows less. Returns number and mode.
READ_PAUSE = """
if tonumber(redis.call('HGET', KEYS[1], 'number') or 0) < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[1], 'number', ARGV[1], 'mode', ARGV[2])
end
return {tonumber(redis.call('HGET', KEYS[1], 'number') or 0),
        redis.call('HGET', KEYS[1], 'mode') or ''}
"""
