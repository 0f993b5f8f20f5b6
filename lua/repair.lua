#!lua flags=allow-oom
-- repair: put back what a stranger, a lost index or a script that died has left in no place or in two.
--
-- KEYS  1 letters   stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta      hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule  zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 suspects  zset    dlq:{<queue>:<i>.<k>}:suspects  id → due, ms
--       5 held      zset    dlq:{<queue>:<i>.<k>}:held      id → held-at, ms
--       6 parked    zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       7 state     hash    dlq:{<queue>:<i>.<k>}:state
--       8 history   hash    dlq:{<queue>:<i>.<k>}:history
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 cursor text: empty first, then what the last call gave
--       5 idle int ms: consumers that hold nothing and have been idle for longer are removed
-- GIVES cursor (empty: the walk is at its end);  ids sent to schedule, orphaned;  ids taken out of a weaker
--       place;  rows removed int;  mark;  remade 0|1: the group was missing
-- FAILS UPGRADE, LAYOUT
-- COST  O(500 log m + consumers): m letters in the shard; bodies of at most 4 MiB and ten entries more

local letters, meta, schedule, suspects, held, parked, state, history =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local cursor, idle_ms = ARGV[4], tonumber(ARGV[5])
-- include lib/guard.lua
-- include lib/clock.lua
-- include lib/fields.lua
-- include lib/group.lua
-- include lib/totals.lua
-- include lib/places.lua
-- include lib/walk.lua

if not idle_ms then
  return redis.error_reply('ERR repair: idle is not a number')
end

local KEY_OF = { suspect = suspects, scheduled = schedule, held = held, parked = parked }
if tonumber(known[2] or '0') < tonumber(ARGV[2]) then
  redis.call('HSET', meta, 'epoch', ARGV[2]) -- a failover took it back: callers of the earlier layout would go on here
end
local mark, remade = ensure_group()
local orphaned, doubled, rows_removed = {}, {}, 0

local function remove_row(place, id)
  if KEY_OF[place] then
    redis.call('ZREM', KEY_OF[place], id)
  elseif place == 'leased' then
    redis.call('XACK', letters, 'workers', id)
  else
    redis.call('HDEL', place == 'state' and state or history, id)
  end
end

local function mend(kind, id, places)
  if kind == 'orphan' then
    redis.call('ZADD', schedule, int(now_ms), id)
    orphaned[#orphaned + 1] = id
  elseif kind == 'twice' then
    for i = 2, #places do
      remove_row(places[i], id)
    end
    doubled[#doubled + 1] = id
  else -- `row`, or `ahead`: the mark was set back, the intake will come to the letter again and lease it
    remove_row(places[1], id)
    rows_removed = rows_removed + 1
  end
end

-- XGROUP DELCONSUMER forgets pending entries, so it is asked and done in one script.
local function remove_idle_consumers()
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', letters, 'workers')) do
    if info(consumer, 'pending') == 0 and info(consumer, 'idle') > idle_ms then
      redis.call('XGROUP', 'DELCONSUMER', letters, 'workers', info(consumer, 'name'))
    end
  end
end

local next_cursor = walk_shard(cursor, mark, mend)
count('orphaned', #orphaned)
if next_cursor == '' then
  remove_idle_consumers()
  balance(#entries_after(mark, '+', 1) > 0)
end
return { next_cursor, orphaned, doubled, rows_removed, mark, remade and 1 or 0 }
