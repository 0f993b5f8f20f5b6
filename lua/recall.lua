#!lua flags=no-writes
-- recall: tell which letters capture keys were captured as; nothing is written.
--
-- KEYS  1 meta      hash  dlq:{<queue>:<i>.<k>}:meta
--       2 dedupe_a  hash  dlq:{<queue>:<i>.<k>}:dedupe_a  capture key → id, producer, producer_ms
--       3 dedupe_b  hash  dlq:{<queue>:<i>.<k>}:dedupe_b  the same, another generation
--       4 dedupe_c  hash  dlq:{<queue>:<i>.<k>}:dedupe_c  the same, another generation
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 window int: ms that a capture key is remembered
--       5 producer word: the process that asks;  6 producer_ms int: the time by its own clock
--       7… keys  text
-- GIVES for each key the id of its letter, or empty
-- FAILS UPGRADE, LAYOUT
-- COST  O(n): n keys

local meta, dedupe_a, dedupe_b, dedupe_c = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local window = tonumber(ARGV[4])
local producer, producer_ms = ARGV[5], tonumber(ARGV[6])
-- include lib/guard.lua
-- include lib/clock.lua
-- include lib/generations.lua

local keys, ids = {}, {}
for i = 7, #ARGV do
  keys[#keys + 1] = ARGV[i]
end
if #keys > 0 then
  recall(keys)
end
for i, key in ipairs(keys) do
  ids[i] = remembered[key] or ''
end
return ids
