-- generations: which letter a capture key was captured as. Two generations of one hash: the younger takes the new
-- NEEDS meta, dedupe_a, dedupe_b, window, now_ms
-- keys until it is a window old, then the roles change: so a key is remembered for one window, at most for two.

local turn = redis.call('HMGET', meta, 'dedupe_young', 'dedupe_since')
local young, old = dedupe_a, dedupe_b
if turn[1] == 'b' then
  young, old = dedupe_b, dedupe_a
end
local since = tonumber(turn[2]) or now_ms
local age = now_ms - since
local remembered = {} -- capture key → stream id

local function recall_from(generation, keys)
  for i, id in ipairs(redis.call('HMGET', generation, unpack(keys))) do
    remembered[keys[i]] = remembered[keys[i]] or id
  end
end

local function recall(keys)
  if age < 2 * window then
    recall_from(young, keys)
  end
  if age < window then
    recall_from(old, keys)
  end
end
