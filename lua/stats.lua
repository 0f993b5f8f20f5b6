#!lua flags=no-writes
-- stats: what a shard holds and what it has done; nothing is written.
--
-- KEYS  1 letters   stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta      hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule  zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 suspects  zset    dlq:{<queue>:<i>.<k>}:suspects  id → due, ms
--       5 held      zset    dlq:{<queue>:<i>.<k>}:held      id → held-at, ms
--       6 parked    zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       7 groups    hash    dlq:{<queue>:<i>.<k>}:groups
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
-- GIVES flat names and values: open, leased, scheduled, suspect, held, parked, consumers, error_groups, oldest
--       (id or empty), next_due, suspect_due and waiting_due (of the first letter that waits: ms or empty), now,
--       lead_ms, then `meta` as it is
-- FAILS UPGRADE, LAYOUT
-- COST  O(consumers + 40)

local letters, meta, schedule, suspects, held, parked, groups =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
-- include lib/guard.lua
-- include lib/clock.lua
-- include lib/shard_time.lua
-- include lib/fields.lua
-- include lib/group.lua

local leased, consumers = 0, 0
local summary = redis.pcall('XPENDING', letters, 'workers')
if not is_missing(summary) then
  leased, consumers = summary[1], summary[4] and #summary[4] or 0
end
local waiting = entries_after(peek_mark(), '+', 1)[1]
local not_before = waiting and tonumber(field(waiting[2], 'not_before'))
local waiting_due = ''
if not_before and not_before > 0 and not_before < math.huge then
  waiting_due = by_server(int(not_before))
elseif waiting then
  waiting_due = string.match(waiting[1], '^%d+') -- a stranger's
end
local function first_due(index)
  local due = redis.call('ZRANGE', index, 0, 0, 'WITHSCORES')[2]
  return due and by_server(due) or ''
end
local oldest = redis.call('XRANGE', letters, '-', '+', 'COUNT', 1)[1]
local reply = {
  'open', redis.call('XLEN', letters), 'leased', leased,
  'scheduled', redis.call('ZCARD', schedule), 'suspect', redis.call('ZCARD', suspects),
  'held', redis.call('ZCARD', held), 'parked', redis.call('ZCARD', parked),
  'consumers', consumers, 'error_groups', redis.call('HLEN', groups),
  'oldest', oldest and oldest[1] or '',
  'next_due', first_due(schedule),
  'suspect_due', first_due(suspects),
  'waiting_due', waiting_due,
  'now', int(now_ms),
  'lead_ms', int(lead_ms),
}
-- In `meta` the total of letters that were parked once has the name of the state: it is answered as parked_total.
local totals = redis.call('HGETALL', meta)
for i = 1, #totals, 2 do
  reply[#reply + 1] = totals[i] == 'parked' and 'parked_total' or totals[i]
  reply[#reply + 1] = totals[i + 1]
end
return reply
