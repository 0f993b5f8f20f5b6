#!lua flags=allow-oom
-- reclaim: take letters back from leases that ran out. It never leases: each goes to `suspects`, to run alone,
-- or is parked as stalled.
--
-- KEYS  1 letters   stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta      hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule  zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 suspects  zset    dlq:{<queue>:<i>.<k>}:suspects  id → due, ms
--       5 parked    zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       6 state     hash    dlq:{<queue>:<i>.<k>}:state
--       7 history   hash    dlq:{<queue>:<i>.<k>}:history
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 cursor text: 0-0 first, then what the last call gave
--       5 lease int ms;  6 max_crashes int
--       7 until int ms of the server's time, or 0 for any: a call that comes later takes nothing back, since one
--         that waited in the socket of a server that hung finds leases that nobody could renew meanwhile
-- GIVES cursor (0-0: the walk is at its end);  ids that are suspects now;  ids that were parked;  now ms;  lead ms: by how much the shard's
--       time is ahead of the server's, whose clock was set back
-- FAILS UPGRADE, LAYOUT
-- COST  O(1000): XAUTOCLAIM looks at most at ten times its COUNT of 100 leases

local letters, meta, schedule, suspects, parked, state, history =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local cursor, lease_ms, max_crashes, valid_until = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
-- include lib/guard.lua
-- include lib/clock.lua
-- include lib/shard_time.lua
-- include lib/group.lua
-- include lib/record.lua
-- include lib/totals.lua

if not (max_crashes and valid_until) then
  return redis.error_reply('ERR reclaim: max_crashes or until is not a number')
end
if valid_until > 0 and now_ms > valid_until then
  return { '0-0', {}, {}, int(now_ms), lead_ms }
end

-- A lease of before the clock was set back began in the future: it would not run out until the clock is there again.
-- It begins now; it looks as young as one that does.
if lead_ms > 0 then
  local rows = redis.pcall('XPENDING', letters, 'workers', cursor, '+', 1000)
  local young = {}
  for _, row in ipairs(is_missing(rows) and {} or rows) do
    if row[3] == 0 then
      young[row[2]] = young[row[2]] or { 'XCLAIM', letters, 'workers', row[2], '0' }
      table.insert(young[row[2]], row[1])
    end
  end
  for _, claim in pairs(young) do
    claim[#claim + 1] = 'JUSTID' -- leaves the delivery count alone: it holds the token
    redis.call(unpack(claim))
  end
end

-- The heir of dead leases. No worker has this name, so a settle of theirs is refused from here on; a script
-- that dies here leaves leases that run out again.
local reply = redis.pcall('XAUTOCLAIM', letters, 'workers', 'reclaimer', lease_ms, cursor, 'COUNT', 100, 'JUSTID')
if is_missing(reply) then
  return { '0-0', {}, {}, int(now_ms), lead_ms }
end
notice_time()
if #reply[2] > 0 then
  keep_time()
end

local suspected, stalled, done, mark = {}, {}, {}, peek_mark()
for _, id in ipairs(reply[2]) do
  done[#done + 1] = id
  -- Past the mark it was a stranger's lease: the intake has yet to come there, and no row may be before it.
  -- Redis 6.2 answers ids whose entry is gone, too.
  if not later(id, mark) and #redis.call('XRANGE', letters, id, id) > 0 then
    local record = read_record(id)
    record[CRASHES] = record[CRASHES] + 1
    if record[CRASHES] - record[CRASHES_AT_REDRIVE] >= max_crashes then
      record[REASON] = 'stalled'
      stalled[#stalled + 1] = id
      write_record(id, record)
      redis.call('ZADD', parked, int(now_ms), id)
    else
      suspected[#suspected + 1] = id
      write_record(id, record)
      redis.call('ZADD', suspects, int(shard_ms), id)
    end
  end
end
count('crashed', #suspected + #stalled)
count('parked', #stalled)
for _, id in ipairs(reply[3] or {}) do -- entries that a stranger deleted: Redis dropped their leases itself
  redis.call('HDEL', state, id)
  redis.call('HDEL', history, id)
end
if #done > 0 then
  -- A `settle` or `take` that died may have left them there, and `schedule` would let a suspect run among others.
  redis.call('ZREM', schedule, unpack(done))
  redis.call('XACK', letters, 'workers', unpack(done))
end
return { reply[1], suspected, stalled, int(now_ms), lead_ms }
