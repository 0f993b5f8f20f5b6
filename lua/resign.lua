#!lua flags=allow-oom
-- resign: strike a worker off the roster: it takes no more letters.
--
-- KEYS  1 workers      zset  dlq:{<queue>}:workers      worker → lives until, ms
--       2 worker_info  hash  dlq:{<queue>}:worker_info  worker → what it is, opaque
--       3 layout       hash  dlq:{<queue>}:layout
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 worker text
-- GIVES 1 when it was on the roster, else 0
-- FAILS UPGRADE
-- COST  O(log n): n workers

local workers, worker_info, layout = KEYS[1], KEYS[2], KEYS[3]
local worker = ARGV[4]
-- include lib/protocol.lua

redis.call('HDEL', worker_info, worker)
return redis.call('ZREM', workers, worker)
