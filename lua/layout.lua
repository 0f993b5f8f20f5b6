#!lua flags=allow-oom
-- layout: read the queue's layout record; the first process makes it, unless it only reads.
--
-- KEYS  1 layout  hash  dlq:{<queue>}:layout
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 shards int, if the record has to be made;  5 lease int ms, likewise; both empty: it is not made
-- GIVES flat names and values: format, shards, home_shards, lease_ms, epoch, created; growing and grown, when it
--       grows or has grown; now. Nothing without a record
-- FAILS UPGRADE
-- COST  O(1)

local layout = KEYS[1]
local shards, lease_ms = ARGV[4], ARGV[5]
-- include lib/clock.lua
-- include lib/protocol.lua

local may_make = shards ~= '' or lease_ms ~= ''
if may_make and not (string.match(shards, '^[1-9]%d*$') and string.match(lease_ms, '^[1-9]%d*$')) then
  return redis.error_reply('ERR layout: ' .. shards .. ' shards with leases of ' .. lease_ms .. ' ms cannot be')
end
if may_make and redis.call('EXISTS', layout) == 0 then
  redis.call('HSET', layout, 'format', '1', 'protocol', ARGV[1], 'shards', shards, 'home_shards', shards,
    'lease_ms', lease_ms, 'epoch', '1', 'created', int(now_ms))
end
local record = redis.call('HGETALL', layout)
if #record == 0 then
  return record
end
record[#record + 1] = 'now'
record[#record + 1] = int(now_ms)
return record
