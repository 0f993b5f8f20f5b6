#!lua flags=allow-oom
-- grow: change the queue's shard count: first say so, then, when every shard has adopted the new epoch, make it true.
--
-- KEYS  1 layout  hash  dlq:{<queue>}:layout
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 shards int;  5 step text: begin or end
-- GIVES nothing of its own: OK
-- FAILS UPGRADE; LAYOUT when the record is at that epoch, or another one; GROWING n when it grows to another count
-- COST  O(1)
-- The caller's epoch is the one that the growth leads to. Whoever finds a growth begun may end it: the one that began it may be dead.

local layout = KEYS[1]
local shards, step = ARGV[4], ARGV[5]
-- include lib/clock.lua
-- include lib/protocol.lua

local found = redis.call('HMGET', layout, 'epoch', 'growing')
if not found[1] or tonumber(found[1]) + 1 ~= tonumber(ARGV[2]) then
  return redis.error_reply('LAYOUT ' .. (found[1] or '0'))
end
if found[2] and found[2] ~= shards then
  return redis.error_reply('GROWING ' .. found[2])
end
if step == 'begin' then
  redis.call('HSET', layout, 'growing', shards)
else
  redis.call('HSET', layout, 'shards', shards, 'epoch', ARGV[2], 'grown', int(now_ms))
  redis.call('HDEL', layout, 'growing')
end
return 'OK'
