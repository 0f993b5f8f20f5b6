#!lua
-- layout: read the queue's layout record; the first process makes it.
--
-- KEYS  1 layout  hash  dlq:{<queue>}:layout
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 shards int, if the record has to be made;  5 lease int ms, likewise
-- GIVES flat names and values: format, shards, home_shards, lease_ms, epoch, created
-- FAILS UPGRADE
-- COST  O(1)

local layout = KEYS[1]
local shards, lease_ms = ARGV[4], ARGV[5]
-- include lib/clock.lua
-- include lib/protocol.lua

if not (string.match(shards, '^[1-9]%d*$') and string.match(lease_ms, '^[1-9]%d*$')) then
  return redis.error_reply('ERR layout: ' .. shards .. ' shards with leases of ' .. lease_ms .. ' ms cannot be')
end
if redis.call('EXISTS', layout) == 0 then
  redis.call('HSET', layout, 'format', '1', 'protocol', ARGV[1], 'shards', shards, 'home_shards', shards,
    'lease_ms', lease_ms, 'epoch', '1', 'created', int(now_ms))
end
return redis.call('HGETALL', layout)
