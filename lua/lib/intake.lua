-- intake: walk from the mark over new letters, without moving it yet.
-- NEEDS letters, meta, schedule, shard_ms, keep_time, int, field, size_of, count, entries_after

local BYTE_BUDGET = 4 * 1024 * 1024 -- of bodies in one call
local STEP = 10 -- entries a read: at most ten bodies are read beyond the budget

-- Returns a walk: `ready` entries (at most `want`) and `delayed` {due, id, …} among at most `limit` entries,
-- `last` id passed, `foreign` entries that `add` did not write, and whether the stream was walked to its end.
local function walk_new(mark, want, limit)
  local ready, delayed, last, foreign, drained, bytes = {}, {}, mark, 0, false, 0
  local passed, found = 0, 0
  while found < want and passed < limit and bytes < BYTE_BUDGET and not drained do
    local entries = entries_after(last, '+', STEP)
    drained = #entries < STEP
    for i = 1, #entries do
      if found == want or passed == limit then
        drained = false
        break
      end
      local entry = entries[i]
      local fields = entry[2]
      local not_before = tonumber(field(fields, 'not_before'))
      if not_before and not_before > shard_ms and not_before < math.huge then
        delayed[#delayed + 1] = int(not_before)
        delayed[#delayed + 1] = entry[1]
      else
        found = found + 1
        ready[found] = entry
      end
      if fields[1] ~= 'v' and not field(fields, 'v') then
        foreign = foreign + 1
      end
      bytes = bytes + size_of(fields)
      passed = passed + 1
      last = entry[1]
    end
  end
  return { ready = ready, delayed = delayed, last = last, foreign = foreign, drained = drained, bytes = bytes }
end

-- Move the mark over what was walked. The mark moves first: a script that dies here leaves letters that are in
-- no index, and `repair` finds those; letters in the PEL beyond the mark would be leased twice.
local function pass(walk, token)
  redis.call('HSET', meta, 'mark', walk.last, 'token', token)
  count('captured', walk.foreign)
  keep_time()
  if #walk.delayed > 0 then
    redis.call('ZADD', schedule, unpack(walk.delayed))
  end
end

-- For operators' verbs: run the intake past the letters they name, so that an id is never claimed ahead of the
-- mark. All that is passed goes to `schedule`. Returns the new mark.
local function intake_to_schedule(mark, limit)
  local walk = walk_new(mark, limit, limit)
  for _, entry in ipairs(walk.ready) do
    walk.delayed[#walk.delayed + 1] = int(shard_ms)
    walk.delayed[#walk.delayed + 1] = entry[1]
  end
  if walk.last ~= mark then
    pass(walk, redis.call('HGET', meta, 'token') or '0')
    redis.call('XGROUP', 'SETID', letters, 'workers', walk.last)
  end
  return walk.last
end
