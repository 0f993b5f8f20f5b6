#!lua
-- reschedule: an operator sends letters back to the workers: parked, held or scheduled ones, now or later.
--
-- KEYS  1 letters   stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta      hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule  zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 suspects  zset    dlq:{<queue>:<i>.<k>}:suspects  id → due, ms
--       5 held      zset    dlq:{<queue>:<i>.<k>}:held      id → held-at, ms
--       6 parked    zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       7 state     hash    dlq:{<queue>:<i>.<k>}:state
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 delay int ms
--       5… letters  id text, seen state text, seen score text: as the caller saw them
-- GIVES for each letter OK, CHANGED (not as the caller saw it), LEASED, AHEAD (call again: the intake has not
--       come to it) or GONE
-- FAILS UPGRADE, LAYOUT; OOM from the server, before anything is written
-- COST  O(n log m + 500): n letters named, m in the shard

local letters, meta, schedule, suspects, held, parked, state =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local delay_ms = tonumber(ARGV[4])
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

if not string.match(ARGV[4], '^%d+$') then
  return redis.error_reply('ERR reschedule: the delay is ' .. ARGV[4] .. ', not a number of ms')
end
local due = int(shard_ms + delay_ms)

-- A redrive starts a new budget of retries and crashes; what happened before stays counted.
local function redrive(id)
  local record = read_record(id)
  record[REDRIVES] = record[REDRIVES] + 1
  record[FAILURES_AT_REDRIVE] = record[FAILURES]
  record[CRASHES_AT_REDRIVE] = record[CRASHES]
  write_record(id, record)
  count('redriven', 1)
end

return operate({ parked = true, held = true, scheduled = true, suspect = true }, function(id, place)
  keep_time()
  if place == 'suspect' then
    redis.call('ZADD', suspects, due, id) -- it still has to run alone
    return
  end
  if place == 'parked' then
    redrive(id)
  end
  redis.call('ZADD', schedule, due, id)
  redis.call('ZREM', held, id)
  redis.call('ZREM', parked, id)
end)
