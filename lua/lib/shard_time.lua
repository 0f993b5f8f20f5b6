-- shard_time: shard_ms, by which letters are due: the server's time, but a clock that is set back does not take it along.
-- NEEDS meta, known, now_us, int
-- A failover to a server that is behind, or a step back, would make what is due wait until the clock is there again.
-- So the shard goes on from the latest time it has seen, ahead of the server by `lead` µs, and gives the lead back by
-- letting 7/8 of the time pass, as adjtime(3) slews a clock.

local RECORD_US = 100000 -- a write for each call would cost more than it tells
local latest, lead = tonumber(known[3]) or 0, tonumber(known[4]) or 0
local shard_us = now_us + lead
local was_set_back = shard_us < latest
if was_set_back then
  shard_us = latest
else
  shard_us = shard_us - math.min(lead, math.floor((shard_us - latest) / 8))
end
local shard_ms = math.floor(shard_us / 1000)
local lead_ms = math.floor((shard_us - now_us) / 1000)

-- A due time by the server's clock, as replies tell it: whoever reads them hears of shards whose times differ.
local function by_server(due)
  return lead_ms == 0 and due or int(tonumber(due) - lead_ms)
end

-- Called by what writes a due time or grants a lease.
local function keep_time()
  if was_set_back or shard_us >= latest + RECORD_US then
    redis.call('HSET', meta, 'clock', int(shard_us), 'lead', int(shard_us - now_us))
    was_set_back, latest = false, shard_us
  end
end

-- Called by what is called often and mostly finds nothing: a clock that is set back is noticed by what it falls short of.
local QUIET_US = 5000000
local function notice_time()
  if was_set_back or shard_us >= latest + QUIET_US then
    keep_time()
  end
end
