-- generations: which letter a capture key was captured as. Three generations of one hash: the youngest takes new keys
-- NEEDS dedupe_a, dedupe_b, dedupe_c, window, now_ms, producer, producer_ms
-- until it is half a window old; then the oldest is emptied, and is the youngest. So a key is remembered for one window,
-- at most for one and a half, by the server's clock. Under BEGAN, which is no capture key, each says since when.
-- That clock may jump: a primary dies with the reply to a capture, and its replica is half an hour ahead. So a key
-- keeps by whom it was captured, and when by the clock of that process, which nobody sets: its own repeat within a
-- window is known while the key is there, which is until the third turn. One of them may be a jump's.

local BEGAN = ''
local generations = { { name = dedupe_a }, { name = dedupe_b }, { name = dedupe_c } } -- youngest first, once recalled
local remembered = {} -- capture key → stream id

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
      if captured and not remembered[key] then
        local id, by, at = string.match(captured, '^(%S+) (%S+) (%d+)$')
        if is_recent or by == producer and math.abs(producer_ms - at) < window then
          remembered[key] = id
        end
      end
    end
  end
end
