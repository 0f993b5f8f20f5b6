#!lua flags=no-writes
-- roster: list the workers that live; nothing is written.
--
-- KEYS  1 workers      zset  dlq:{<queue>}:workers      worker → lives until, ms
--       2 worker_info  hash  dlq:{<queue>}:worker_info  worker → what it is, opaque
--       3 layout       hash  dlq:{<queue>}:layout
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
-- GIVES rows: worker, lives until (ms), info (empty: not known)
-- FAILS UPGRADE
-- COST  O(n): n workers

local workers, worker_info, layout = KEYS[1], KEYS[2], KEYS[3]
-- include lib/clock.lua
-- include lib/protocol.lua

local rows = redis.call('ZRANGEBYSCORE', workers, int(now_ms), '+inf', 'WITHSCORES')
local reply = {}
for i = 1, #rows, 2 do
  reply[#reply + 1] = {rows[i], rows[i + 1], redis.call('HGET', worker_info, rows[i]) or ''}
end
return reply
