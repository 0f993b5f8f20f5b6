#!lua flags=allow-oom
-- take: lease what is due, what is new, or what is named.
--
-- KEYS  1 letters   stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta      hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule  zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 suspects  zset    dlq:{<queue>:<i>.<k>}:suspects  id → due, ms
--       5 parked    zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       6 state     hash    dlq:{<queue>:<i>.<k>}:state
--       7 history   hash    dlq:{<queue>:<i>.<k>}:history
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 consumer text;  5 count int: letters wanted
--       6 alone int: 1 when the caller holds nothing: one due suspect comes alone, before all else, also when
--         the count is 0
--       7 seen int: the highest token that the caller was ever given; a failover may set token and clock back
--       8… ids text: take just these, scheduled or parked, due or not (`replay`); none: what is due and new
-- GIVES token; now ms; mark; more 0|1; next due ms or empty; oldest suspect's due ms or empty;
--       remade 0|1: the group was missing; suspect 0|1: the one letter must run alone;
--       new letters {id, values}; retried letters {id, values, counters, history, due ms, empty for those named};
--       due times are by the server's clock, as now is; values are those of the wire format's fields in their order, nil for those that the entry lacks
-- FAILS UPGRADE, LAYOUT
-- COST  O(count log n + 500): n letters in the shard; bodies of at most 5 MiB and eleven entries more
-- Fair: a quarter of the places is kept for new letters while there are any; unused places go to the other kind.

local letters, meta, schedule, suspects, parked, state, history =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local consumer, wanted, alone, seen = ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1', tonumber(ARGV[7])
-- include lib/guard.lua
-- include lib/clock.lua
-- include lib/shard_time.lua
-- include lib/fields.lua
-- include lib/group.lua
-- include lib/record.lua
-- include lib/totals.lua
-- include lib/lease.lua
-- include lib/intake.lua
-- include lib/deliver.lua

if not wanted or not seen then
  return redis.error_reply('ERR take: count or seen is not a number')
end

local mark, remade = ensure_group()
local token = draw_token()
if seen >= tonumber(token) then
  token = int(seen + 1)
end
local walk = { ready = {}, delayed = {}, last = mark, foreign = 0, drained = true, bytes = 0 }

local function named_ids()
  local ids, known = {}, {}
  for i = 8, #ARGV do
    local id = ARGV[i]
    if not known[id] and (redis.call('ZSCORE', schedule, id) or redis.call('ZSCORE', parked, id)) then
      ids[#ids + 1] = id
    end
    known[id] = true
  end
  return ids
end

-- Ids of an index that are due, the longest first; `dues` learns since when.
local dues = {}
local function due_ids(index, most)
  local ids = {}
  local rows = redis.call('ZRANGEBYSCORE', index, '-inf', int(shard_ms), 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #rows, 2 do
    ids[(i + 1) / 2] = rows[i]
    dues[rows[i]] = by_server(rows[i + 1])
  end
  return ids
end

-- Which index gives letters, which of its ids, and whether more are due than are taken.
local source, ids, most, suspect, more_due = schedule, {}, wanted, false, false
if #ARGV >= 8 then
  source = parked
  walk.last = intake_to_schedule(mark, 500)
  ids = named_ids()
else
  if alone then
    ids = due_ids(suspects, 1)
  end
  if #ids > 0 then
    source, suspect, most = suspects, true, 1
  elseif wanted > 0 then
    ids = due_ids(schedule, wanted + 1)
    -- Of fewer than four places the quarter is drawn: taking one by one must not starve the due letters.
    local kept_for_new = wanted >= 4 and math.ceil(wanted / 4) or (tonumber(token) % 4 < wanted and 1 or 0)
    local kept_for_due = math.min(#ids, wanted - kept_for_new)
    walk = walk_new(mark, wanted - kept_for_due, math.max(wanted, 500))
    most = wanted - #walk.ready
  end
end

-- New letters leave a quarter of the byte budget to the due ones, or a backlog of large ones would starve them.
local entries, passed, gone = read_bodies(ids, most, math.min(walk.bytes, 3 / 4 * BYTE_BUDGET))
more_due = #passed < #ids or #gone > 0 -- a row without its entry took a place among those looked at
if walk.last ~= mark or #passed > 0 then
  pass(walk, token)
end

local to_lease, n = {}, 0
for _, list in ipairs({ walk.ready, entries }) do
  for i = 1, #list do
    n = n + 1
    to_lease[n] = list[i][1]
  end
end
notice_time()
if #to_lease > 0 then
  keep_time()
end
local leased = {}
if #to_lease > 0 then
  leased = lease(to_lease, consumer, token, walk.last)
elseif walk.last ~= mark then
  redis.call('XGROUP', 'SETID', letters, 'workers', walk.last)
end
if #passed > 0 then
  -- Also those that were not leased: a lease beats `schedule`, and a row without its entry is of no use.
  redis.call('ZREM', source, unpack(passed))
  if source == parked then
    redis.call('ZREM', schedule, unpack(passed))
  end
end
if #gone > 0 then
  redis.call('HDEL', state, unpack(gone))
  redis.call('HDEL', history, unpack(gone))
end
if walk.drained and #ARGV < 8 and not suspect and wanted > 0 then
  balance()
end

local retried = deliver_with_records(entries, leased, dues)
if suspect and #retried == 0 then
  suspect, more_due = false, true -- its row named no letter to lease, and is gone: there may be more
end
local next_due = redis.call('ZRANGE', schedule, 0, 0, 'WITHSCORES')[2]
local suspect_due = redis.call('ZRANGE', suspects, 0, 0, 'WITHSCORES')[2]
local more = more_due or not walk.drained
return {
  token, int(now_ms), walk.last, more and 1 or 0, next_due and by_server(next_due) or '',
  suspect_due and by_server(suspect_due) or '', remade and 1 or 0, suspect and 1 or 0,
  deliver(walk.ready, leased), retried,
}
