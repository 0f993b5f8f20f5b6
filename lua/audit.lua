#!lua flags=allow-oom
-- audit: append one entry to the record of what operators do, and drop the oldest beyond its length.
--
-- KEYS  1 audit   stream  dlq:{<queue>}:audit
--       2 layout  hash    dlq:{<queue>}:layout
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 length int: entries to keep, about; 0: all
--       5 call text;  6 phase text: an entry that has both is this one, of an earlier try of the caller's
--       7… fields  name text, value text
-- GIVES the entry's id, whose first part is the server's time, ms
-- FAILS UPGRADE
-- COST  O(n): n fields; now and then the hundred entries of a node go

local audit, layout = KEYS[1], KEYS[2]
local length, call, phase = ARGV[4], ARGV[5], ARGV[6]
local FIRST, WIDTH, LATEST = 7, 2, 5
-- include lib/protocol.lua

if not string.match(length, '^%d+$') or (#ARGV - FIRST + 1) % WIDTH ~= 0 then
  return redis.error_reply('ERR audit: a length of ' .. length .. ' with ' .. #ARGV .. ' arguments cannot be')
end
for _, entry in ipairs(redis.call('XREVRANGE', audit, '+', '-', 'COUNT', LATEST)) do
  if entry[2][1] == 'call' and entry[2][2] == call and entry[2][4] == phase then
    return entry[1]
  end
end
-- First, also when it has nothing to drop: a full Redis 6.2 runs a script to its end once it has written without memory.
if length == '0' then
  redis.call('XTRIM', audit, 'MINID', '0')
else
  redis.call('XTRIM', audit, 'MAXLEN', '~', length)
end
return redis.call('XADD', audit, '*', 'call', call, 'phase', phase, unpack(ARGV, FIRST))
