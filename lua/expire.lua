#!lua flags=allow-oom
-- expire: remove letters that have been parked for longer than retention allows.
--
-- KEYS  1 letters     stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta        hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule    zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 suspects    zset    dlq:{<queue>:<i>.<k>}:suspects  id → due, ms
--       5 held        zset    dlq:{<queue>:<i>.<k>}:held      id → held-at, ms
--       6 parked      zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       7 state       hash    dlq:{<queue>:<i>.<k>}:state
--       8 history     hash    dlq:{<queue>:<i>.<k>}:history
--       9 groups      hash    dlq:{<queue>:<i>.<k>}:groups
--       10 group_info hash    dlq:{<queue>:<i>.<k>}:group_info
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 retention int ms, since parked-at
-- GIVES ids that expired, at most 100: call again while there are 100
-- FAILS UPGRADE, LAYOUT
-- COST  O(100 log m): m letters in the shard

local letters, meta, schedule, suspects, held, parked, state, history, groups, group_info =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local retention_ms = tonumber(ARGV[4])
-- include lib/guard.lua
-- include lib/clock.lua
-- include lib/fields.lua
-- include lib/group.lua
-- include lib/totals.lua
-- include lib/error_groups.lua
-- include lib/places.lua
-- include lib/leave.lua

local mark = peek_mark()
local expired = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', parked, '-inf', int(now_ms - retention_ms), 'LIMIT', 0, 100)) do
  if not exists(id) then
    redis.call('ZREM', parked, id)
  elseif place_of(id, mark) == 'parked' then
    leave(id, 'expired')
    expired[#expired + 1] = id
  else
    redis.call('ZREM', parked, id) -- a stronger place has it: a script died between its writes
  end
end
return expired
