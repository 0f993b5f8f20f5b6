#!lua flags=no-writes
-- verify: check the invariants over a part of the shard; nothing is written.
--
-- KEYS  1 letters   stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta      hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule  zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 suspects  zset    dlq:{<queue>:<i>.<k>}:suspects  id → due, ms
--       5 held      zset    dlq:{<queue>:<i>.<k>}:held      id → held-at, ms
--       6 parked    zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       7 state     hash    dlq:{<queue>:<i>.<k>}:state
--       8 history   hash    dlq:{<queue>:<i>.<k>}:history
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 cursor text: empty first, then what the last call gave
-- GIVES cursor (empty: the walk is at its end);  violations {kind, id, places};  drift int: letters gone without
--       an end, below 0 letters that strangers added and no worker has seen;  waiting int at most
-- FAILS UPGRADE, LAYOUT
-- COST  O(500 log m): m letters in the shard; bodies of at most 4 MiB and ten entries more

local letters, meta, schedule, suspects, held, parked, state, history =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local cursor = ARGV[4]
-- include lib/guard.lua
-- include lib/clock.lua
-- include lib/shard_time.lua
-- include lib/fields.lua
-- include lib/group.lua
-- include lib/totals.lua
-- include lib/places.lua
-- include lib/walk.lua

local violations = {}
local mark = peek_mark()
local next_cursor = walk_shard(cursor, mark, function(kind, id, places)
  violations[#violations + 1] = { kind, id, table.concat(places, ',') }
end)

-- I3: tokens only grow, so none may be above what the next draw starts from.
local last_token = math.max(tonumber(redis.call('HGET', meta, 'token')) or 0, shard_us)
local pending = redis.pcall('XPENDING', letters, 'workers', '-', '+', 500)
if cursor == '' and not is_missing(pending) then
  for _, row in ipairs(pending) do
    if row[4] > last_token then
      violations[#violations + 1] = { 'token', row[1], int(row[4]) }
    end
  end
end

local known = 0
for _, index in ipairs(INDEXES) do
  known = known + redis.call('ZCARD', index[2])
end
local summary = redis.pcall('XPENDING', letters, 'workers')
if not is_missing(summary) then
  known = known + summary[1]
end
return { next_cursor, violations, drift(), math.max(redis.call('XLEN', letters) - known, 0) }
