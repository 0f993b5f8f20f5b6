-- generations: which letter a capture key was captured as. Two generations of one hash: the younger takes the new
-- NEEDS dedupe_a, dedupe_b, window, now_ms, producer, producer_ms
-- keys until it is a window old, then it is the other's turn, which is emptied for that: so a key is remembered for
-- one window, at most for two, by the server's clock. Under BEGAN, which is no capture key, each says since when.
-- That clock may jump: a primary dies with the reply to a capture, and its replica is half an hour ahead. So a key
-- keeps by whom it was captured, and when by the clock of that process, which nobody sets: its own repeat within a
-- window is known while the key is there, until the second turn after its capture, whatever the server's clock says.

local BEGAN = ''
local young, old = { name = dedupe_a }, { name = dedupe_b }
local remembered = {} -- capture key → stream id

local function recall_from(generation, keys)
  local is_recent = generation.began and now_ms - generation.began < 2 * window
  for i, key in ipairs(keys) do
    local captured = generation.captured[i + 1]
    if captured and not remembered[key] then
      local id, by, at = string.match(captured, '^(%S+) (%S+) (%d+)$')
      if is_recent or by == producer and producer_ms - at < window then
        remembered[key] = id
      end
    end
  end
end

local function recall(keys)
  for _, generation in ipairs({ young, old }) do
    generation.captured = redis.call('HMGET', generation.name, BEGAN, unpack(keys))
    generation.began = tonumber(generation.captured[1])
  end
  if old.began and old.began > (young.began or 0) then
    young, old = old, young
  end
  recall_from(young, keys)
  recall_from(old, keys)
end
