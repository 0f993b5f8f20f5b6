-- deliver: letters as a taker gets them: an id, and the values of the wire format's fields in their order.
-- NEEDS letters, state, history, values_of, counters_of, size_of, BYTE_BUDGET

-- Bodies of retried letters, read before they are leased so that the byte budget binds: at most `most`, while
-- `bytes` is below the budget. `passed` has also the ids whose entry is gone.
local function read_bodies(ids, most, bytes)
  local entries, passed, gone = {}, {}, {}
  for _, id in ipairs(ids) do
    if #entries == most or bytes >= BYTE_BUDGET then
      break
    end
    local entry = redis.call('XRANGE', letters, id, id)[1]
    passed[#passed + 1] = id
    if entry then
      entries[#entries + 1] = entry
      bytes = bytes + size_of(entry[2])
    else
      gone[#gone + 1] = id
    end
  end
  return entries, passed, gone
end

-- The letters that a lease was granted for.
local function deliver(entries, leased)
  local delivered, n = {}, 0
  for i = 1, #entries do
    local entry = entries[i]
    if leased[entry[1]] then
      n = n + 1
      delivered[n] = { entry[1], values_of(entry[2]) }
      leased[entry[1]] = nil -- once a call: without mark and group's position, one that is due may seem new as well
    end
  end
  return delivered
end

-- The same, each with its counters, its history, and since when it was due.
local function deliver_with_records(entries, leased, dues)
  local delivered = deliver(entries, leased)
  local ids = {}
  for i, letter in ipairs(delivered) do
    ids[i] = letter[1]
  end
  if #ids > 0 then
    local records = redis.call('HMGET', state, unpack(ids))
    local histories = redis.call('HMGET', history, unpack(ids))
    for i, letter in ipairs(delivered) do
      letter[3] = counters_of(records[i])
      letter[4] = histories[i] or ''
      letter[5] = dues[letter[1]] or ''
    end
  end
  return delivered
end
