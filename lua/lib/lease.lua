-- lease: put letters into the consumer's pending list, with a token that no lease ever had.
-- NEEDS letters, meta, shard_us, int

-- An idle time that no pending entry reaches: XCLAIM FORCE then makes entries and never takes one over, so a
-- letter that is leased already is left out of the answer.
local NEVER = '1000000000000000'

-- Drawn once a call; grows also when `meta` is lost or a failover rolled it back, because time does.
local function draw_token()
  return int(math.max((tonumber(redis.call('HGET', meta, 'token')) or 0) + 1, shard_us))
end

-- Returns the set of ids that are leased now: not those that were leased before, or whose entry is gone.
local function lease(ids, consumer, token, mark)
  local args = { 'XCLAIM', letters, 'workers', consumer, NEVER }
  local n = 5
  for i = 1, #ids do
    n = n + 1
    args[n] = ids[i]
  end
  for _, option in ipairs({ 'FORCE', 'RETRYCOUNT', token, 'LASTID', mark, 'JUSTID' }) do
    n = n + 1
    args[n] = option
  end
  local leased = {}
  for _, id in ipairs(redis.call(unpack(args))) do
    leased[id] = true
  end
  return leased
end
