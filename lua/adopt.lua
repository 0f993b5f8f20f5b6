#!lua flags=allow-oom
-- adopt: make the caller's layout epoch the shard's own: earlier callers are refused from now on.
--
-- KEYS  1 letters  stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta     hash    dlq:{<queue>:<i>.<k>}:meta
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
-- GIVES the epoch
-- FAILS UPGRADE, LAYOUT
-- COST  O(1)

local letters, meta = KEYS[1], KEYS[2]
-- include lib/guard.lua

if redis.call('HEXISTS', meta, 'mark') == 0 and redis.call('EXISTS', letters) == 0 then
  redis.call('HSET', meta, 'format', '1', 'protocol', ARGV[1], 'epoch', ARGV[2], 'mark', '0-0')
else
  redis.call('HSET', meta, 'epoch', ARGV[2])
end
return ARGV[2]
