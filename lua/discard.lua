#!lua flags=allow-oom
-- discard: an operator removes letters for good; a leased one too, whose handler then settles nothing.
--
-- KEYS  1 letters   stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta      hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule  zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 suspects  zset    dlq:{<queue>:<i>.<k>}:suspects  id → due, ms
--       5 held      zset    dlq:{<queue>:<i>.<k>}:held      id → held-at, ms
--       6 parked    zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       7 state       hash    dlq:{<queue>:<i>.<k>}:state
--       8 history     hash    dlq:{<queue>:<i>.<k>}:history
--       9 groups      hash    dlq:{<queue>:<i>.<k>}:groups
--       10 group_info hash    dlq:{<queue>:<i>.<k>}:group_info
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 why text, reserved
--       5… letters  id text, seen state text, seen score text: as the caller saw them
-- GIVES for each letter OK, CHANGED (not as the caller saw it), AHEAD (call again: the intake has not come to
--       it) or GONE
-- FAILS UPGRADE, LAYOUT
-- COST  O(n log m + 500): n letters named, m in the shard

local letters, meta, schedule, suspects, held, parked, state, history, groups, group_info =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
-- include lib/guard.lua
-- include lib/clock.lua
-- include lib/shard_time.lua
-- include lib/fields.lua
-- include lib/group.lua
-- include lib/totals.lua
-- include lib/error_groups.lua
-- include lib/intake.lua
-- include lib/places.lua
-- include lib/leave.lua
-- include lib/operate.lua

return operate({ leased = true, suspect = true, scheduled = true, held = true, parked = true }, function(id)
  leave(id, 'discarded')
end)
