#!lua flags=allow-oom
-- enlist: say that a worker lives, forget those that have not said so in time, and name those that do.
--
-- KEYS  1 workers      zset  dlq:{<queue>}:workers      worker → lives until, ms
--       2 worker_info  hash  dlq:{<queue>}:worker_info  worker → what it is, opaque
--       3 layout       hash  dlq:{<queue>}:layout
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 worker text;  5 ttl int ms;  6 info text
-- GIVES the layout's epoch (empty: there is no record), names of the workers that live
-- FAILS UPGRADE
-- COST  O(n log n): n workers

local workers, worker_info, layout = KEYS[1], KEYS[2], KEYS[3]
local worker, ttl_ms, info = ARGV[4], tonumber(ARGV[5]), ARGV[6]
-- include lib/clock.lua
-- include lib/protocol.lua

redis.call('ZADD', workers, int(now_ms + ttl_ms), worker)
redis.call('HSET', worker_info, worker, info)
-- Who would live for far longer than a worker says of itself is a stranger's row, or one from before a failover set
-- the clock back: its shards would be served by nobody. One that does live says so again.
for _, range in ipairs({ { '-inf', '(' .. int(now_ms) }, { '(' .. int(now_ms + 2 * ttl_ms), '+inf' } }) do
  local gone = redis.call('ZRANGEBYSCORE', workers, range[1], range[2], 'LIMIT', 0, 1000)
  if #gone > 0 then
    redis.call('HDEL', worker_info, unpack(gone))
    redis.call('ZREM', workers, unpack(gone))
  end
end
return {redis.call('HGET', layout, 'epoch') or '', redis.call('ZRANGE', workers, 0, -1)}
