-- places: where a letter is recorded.
-- NEEDS letters, schedule, suspects, held, parked, is_missing, later

-- Strongest first: a script that dies between its writes leaves a letter in two places, and the stronger counts.
local INDEXES = { { 'suspect', suspects }, { 'scheduled', schedule }, { 'held', held }, { 'parked', parked } }

-- Returns state and score of the strongest place; `waiting` past the mark, nil when no index knows the letter.
local function place_of(id, mark)
  local pending = redis.pcall('XPENDING', letters, 'workers', id, id, 1)
  if not is_missing(pending) and #pending > 0 then
    return 'leased', '0', pending[1]
  end
  for _, index in ipairs(INDEXES) do
    local score = redis.call('ZSCORE', index[2], id)
    if score then
      return index[1], score
    end
  end
  if later(id, mark) then
    return 'waiting', '0'
  end
end

local function exists(id)
  return #redis.call('XRANGE', letters, id, id) > 0
end
