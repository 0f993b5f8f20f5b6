-- totals: the shard's books, kept in `meta` by the script that makes each change true.
-- NEEDS letters, meta

local function count(name, by)
  if by ~= 0 then
    redis.call('HINCRBY', meta, name, by)
  end
end

-- Letters that should be here by the books, less those that are: above 0, letters are gone without an end.
local function drift()
  local totals = redis.call('HMGET', meta, 'captured', 'resolved', 'discarded', 'expired', 'lost_externally')
  local expected = tonumber(totals[1]) or 0
  for i = 2, 5 do
    expected = expected - (tonumber(totals[i]) or 0)
  end
  return expected - redis.call('XLEN', letters)
end

-- Book what strangers did to the stream. A stranger's XADD is counted when the mark passes it: while letters
-- wait, only what is missing is certain.
local function balance(some_wait)
  local missing = drift()
  count('lost_externally', math.max(missing, 0))
  if not some_wait then
    count('captured', math.max(-missing, 0))
  end
end
