#!lua flags=allow-oom
-- park: an operator stops the retries of letters; they stay, whole.
--
-- KEYS  1 letters   stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta      hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule  zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 suspects  zset    dlq:{<queue>:<i>.<k>}:suspects  id → due, ms
--       5 held      zset    dlq:{<queue>:<i>.<k>}:held      id → held-at, ms
--       6 parked    zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       7 state     hash    dlq:{<queue>:<i>.<k>}:state
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 reason text
--       5… letters  id text, seen state text, seen score text: as the caller saw them
-- GIVES for each letter OK, CHANGED (not as the caller saw it), LEASED, AHEAD (call again: the intake has not
--       come to it) or GONE
-- FAILS UPGRADE, LAYOUT
-- COST  O(n log m + 500): n letters named, m in the shard

local letters, meta, schedule, suspects, held, parked, state =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local reason = ARGV[4]
-- include lib/guard.lua
-- include lib/clock.lua
-- include lib/shard_time.lua
-- include lib/fields.lua
-- include lib/group.lua
-- include lib/record.lua
-- include lib/totals.lua
-- include lib/intake.lua
-- include lib/places.lua
-- include lib/operate.lua

return operate({ scheduled = true, suspect = true, held = true }, function(id)
  local record = read_record(id)
  record[REASON] = reason
  write_record(id, record)
  redis.call('ZADD', parked, int(now_ms), id)
  redis.call('ZREM', suspects, id)
  redis.call('ZREM', schedule, id)
  redis.call('ZREM', held, id)
  count('parked', 1)
end)
