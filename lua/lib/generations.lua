-- generations: which letter a capture key was captured as. Three generations of one hash: the youngest takes new keys
-- NEEDS dedupe_a, dedupe_b, dedupe_c, window, now_ms, int, producer, producer_ms
-- until it is half a window old; then the oldest is emptied, and is the youngest. So a key is remembered for one window,
-- at most for one and a half, by the server's clock. Under BEGAN, which is no capture key, each says since when.
-- That clock may jump: a primary dies with the reply to a capture, and its replica is half an hour ahead. So a key
-- keeps by whom it was captured, and when by the clock of that process, which nobody sets: of its own repeats that one
-- alone tells, while the key is there, which is until the third turn. One of them may be a jump's.

local BEGAN = ''
local generations = { { name = dedupe_a }, { name = dedupe_b }, { name = dedupe_c } } -- youngest first, once recalled
local remembered = {} -- capture key → stream id; false when its last capture is forgotten

local function recall(keys)
  for _, generation in ipairs(generations) do
    generation.captured = redis.call('HMGET', generation.name, BEGAN, unpack(keys))
    generation.began = tonumber(string.match(generation.captured[1] or '', '^%d+$')) or 0
  end
  table.sort(generations, function(one, other)
    return one.began > other.began or one.began == other.began and one.name > other.name
  end)
  for _, generation in ipairs(generations) do
    local is_recent = now_ms - generation.began < 1.5 * window
    for i, key in ipairs(keys) do
      local captured = generation.captured[i + 1]
      if captured and remembered[key] == nil then
        local id, by, at = string.match(captured, '^(%S+) (%S+) (%d+)$')
        local is_known = is_recent
        if by == producer then
          is_known = math.abs(producer_ms - at) < window
        end
        remembered[key] = is_known and id or false
      end
    end
  end
end

-- Called by what writes. A clock that was set back, perhaps by a year, would make the generations last until it is there
-- again: they begin in turn, up to now. The youngest is written last: a script that dies before leaves it the youngest.
local function begin_by_now()
  if generations[1].began <= now_ms then
    return
  end
  for i = #generations, 1, -1 do
    local generation, latest = generations[i], now_ms - (i - 1) * window / 2
    if generation.began > latest then
      redis.call('HSET', generation.name, BEGAN, int(math.max(latest, 1)))
    end
  end
end
