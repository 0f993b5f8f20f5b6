-- walk: go over a shard by cursor, a bounded part a call, and hand over what breaks its invariants.
-- NEEDS letters, state, history, INDEXES, later, is_missing, size_of, entries_after, LAST

local MOST, BYTES = 500, 4 * 1024 * 1024
local PHASES = { 'letters', 'suspect', 'scheduled', 'held', 'parked', 'state', 'history', 'leases' }

-- Every place that records the id, strongest first.
local function places_of(id)
  local found = {}
  local pending = redis.pcall('XPENDING', letters, 'workers', id, id, 1)
  if not is_missing(pending) and #pending > 0 then
    found[1] = 'leased'
  end
  for _, index in ipairs(INDEXES) do
    if redis.call('ZSCORE', index[2], id) then
      found[#found + 1] = index[1]
    end
  end
  return found
end

-- I1: each entry up to the mark is in exactly one place. Past the mark it is in none.
local function walk_letters(work, at, mark, found)
  local last = at
  while work.left > 0 and work.bytes > 0 do
    local entries = entries_after(last, mark, 10)
    for _, entry in ipairs(entries) do
      local places = places_of(entry[1])
      if #places ~= 1 then
        found(#places == 0 and 'orphan' or 'twice', entry[1], places)
      end
      last = entry[1]
      work.left = work.left - 1
      work.bytes = work.bytes - size_of(entry[2])
    end
    if #entries < 10 then
      return nil
    end
  end
  return last
end

-- The entry that a row names; nil also when that is not the id of any entry.
local function entry_of(id)
  if not string.match(id, '^%d+%-%d+$') then
    return nil
  end
  local reply = redis.pcall('XRANGE', letters, id, id)
  if reply.err and not string.find(reply.err, 'Invalid stream ID', 1, true) then
    error(reply.err)
  end
  return reply[1]
end

-- I2: rows of one key name entries that exist. Places past the mark have no business there either; what has
-- happened to a letter stays true when the mark was lost and goes back.
local function walk_rows(work, phase, key, at, mark, found)
  local command = (phase == 'state' or phase == 'history') and 'HSCAN' or 'ZSCAN'
  local cursor = at == '-' and '0' or at
  while work.left > 0 and work.bytes > 0 do
    local reply = redis.call(command, key, cursor, 'COUNT', 10)
    cursor = reply[1]
    for i = 1, #reply[2], 2 do
      local id = reply[2][i]
      local entry = entry_of(id)
      if not entry then
        found('row', id, { phase })
      elseif command == 'ZSCAN' and later(id, mark) then
        found('ahead', id, { phase })
      end
      work.left = work.left - 1
      work.bytes = work.bytes - (entry and size_of(entry[2]) or 0)
    end
    if cursor == '0' then
      return nil
    end
  end
  return cursor
end

local function walk_leases(work, at, found)
  local last = at
  while work.left > 0 and work.bytes > 0 and last ~= LAST do
    local rows = redis.pcall('XPENDING', letters, 'workers', last == '-' and '-' or '(' .. last, '+', 10)
    if is_missing(rows) then
      return nil
    end
    for _, row in ipairs(rows) do
      local entry = redis.call('XRANGE', letters, row[1], row[1])[1]
      if not entry then
        found('row', row[1], { 'leased' })
      end
      last = row[1]
      work.left = work.left - 1
      work.bytes = work.bytes - (entry and size_of(entry[2]) or 0)
    end
    if #rows < 10 then
      return nil
    end
  end
  return last ~= LAST and last or nil
end

-- cursor: empty at first, then what the last call gave. Calls found(kind, id, places) with kind `orphan` (in no
-- place), `twice` (in several), `row` (no such entry) or `ahead` (a row past the mark). Gives the next cursor,
-- empty at the end.
local function walk_shard(cursor, mark, found)
  local keys = { state = state, history = history }
  for _, index in ipairs(INDEXES) do
    keys[index[1]] = index[2]
  end
  local phase, at = string.match(cursor, '^(%a+) (.+)$')
  local work = { left = MOST, bytes = BYTES }
  local reached = phase == nil
  for _, name in ipairs(PHASES) do
    if reached or name == phase then
      local from = reached and '-' or at
      reached = true
      local stopped_at
      if work.left <= 0 or work.bytes <= 0 then
        return name .. ' ' .. from
      elseif name == 'letters' then
        stopped_at = walk_letters(work, from, mark, found)
      elseif name == 'leases' then
        stopped_at = walk_leases(work, from, found)
      else
        stopped_at = walk_rows(work, name, keys[name], from, mark, found)
      end
      if stopped_at then
        return name .. ' ' .. stopped_at
      end
    end
  end
  return ''
end
