#!lua flags=no-writes
-- audited: one page of what operators have done, the newest first; nothing is written.
--
-- KEYS  1 audit   stream  dlq:{<queue>}:audit
--       2 layout  hash    dlq:{<queue>}:layout
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 cursor text: empty first, then what the last call gave
--       5 most int: entries wanted
-- GIVES cursor (empty: there are no older ones);  entries {id, fields}
-- FAILS UPGRADE
-- COST  O(n): n entries of at most 6 KiB

local audit, layout = KEYS[1], KEYS[2]
local cursor, most = ARGV[4], tonumber(ARGV[5])
-- include lib/protocol.lua

local before = cursor == '' and '+' or '(' .. cursor
local page = redis.call('XREVRANGE', audit, before, '-', 'COUNT', most)
return { #page == most and page[most][1] or '', page }
