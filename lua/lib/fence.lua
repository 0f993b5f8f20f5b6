-- fence: which of a caller's leases are still its own: consumer and token both as in the pending list.
-- NEEDS letters, consumer, is_missing

-- One ranged call serves a whole batch, because a consumer's pending entries are its own short list; only a
-- consumer that holds far more than it names is asked id by id.
local function pending_of(ids)
  if #ids == 1 then
    return redis.pcall('XPENDING', letters, 'workers', ids[1], ids[1], 1, consumer)
  end
  local room = 4 * #ids + 100
  local rows = redis.pcall('XPENDING', letters, 'workers', '-', '+', room, consumer)
  if rows.err or #rows < room then
    return rows
  end
  local found = {}
  for _, id in ipairs(ids) do
    found[#found + 1] = redis.call('XPENDING', letters, 'workers', id, id, 1, consumer)[1]
  end
  return found
end

-- Returns id → token of the leases among `ids` that belong to the consumer; none when the group is missing.
local function tokens_held(ids)
  local held = {}
  local rows = pending_of(ids)
  if is_missing(rows) then
    return held
  end
  for _, row in ipairs(rows) do
    held[row[1]] = row[4]
  end
  return held
end
