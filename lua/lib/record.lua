-- record: what has happened to a letter: one cmsgpack array in the hash `state`.
-- NEEDS state
-- Elements are only appended, and unknown ones are copied: an older script keeps what a newer one wrote.

local VERSION, FAILURES, CRASHES, RELEASES, REDRIVES, FAILURES_AT_REDRIVE, REASON, PLAN, CRASHES_AT_REDRIVE =
  1, 2, 3, 4, 5, 6, 7, 8, 9

local function unpack_record(packed)
  local record
  if packed then
    local ok, found = pcall(cmsgpack.unpack, packed)
    record = ok and type(found) == 'table' and found
  end
  record = record or { 1 }
  record[VERSION] = record[VERSION] or 1
  record[REASON] = record[REASON] or ''
  record[PLAN] = record[PLAN] or ''
  for _, counter in ipairs({ FAILURES, CRASHES, RELEASES, REDRIVES, FAILURES_AT_REDRIVE, CRASHES_AT_REDRIVE }) do
    record[counter] = tonumber(record[counter]) or 0
  end
  return record
end

local function write_record(id, record)
  redis.call('HSET', state, id, cmsgpack.pack(record))
end

local function read_record(id)
  return unpack_record(redis.call('HGET', state, id))
end

-- The counters as `take` and `scan` answer them: in this order.
local function counters_of(packed)
  if not packed then
    return {}
  end
  local record = unpack_record(packed)
  return {
    record[FAILURES], record[CRASHES], record[RELEASES], record[REDRIVES],
    record[FAILURES_AT_REDRIVE], record[CRASHES_AT_REDRIVE], record[REASON],
  }
end
