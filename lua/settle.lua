#!lua flags=allow-oom
-- settle: end leases with their outcomes; a lease that is not the caller's any more changes nothing.
--
-- KEYS  1 letters     stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta        hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule    zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 suspects    zset    dlq:{<queue>:<i>.<k>}:suspects  id → due, ms
--       5 parked      zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       6 state       hash    dlq:{<queue>:<i>.<k>}:state
--       7 history     hash    dlq:{<queue>:<i>.<k>}:history
--       8 groups      hash    dlq:{<queue>:<i>.<k>}:groups
--       9 group_info  hash    dlq:{<queue>:<i>.<k>}:group_info
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 consumer text
--       5… outcomes  id text, token int, verb (resolve | retry | park | release | discard), detail text (of a
--                    letter that ends its fingerprint, else "<delay ms> <failed 0|1> <reason>": failed when the
--                    handler ran and failed), history bytes (empty: keep): 5 arguments an outcome
-- GIVES for each outcome OK, LOST (the lease is another's, or over) or GONE (no such entry)
-- FAILS UPGRADE, LAYOUT
-- COST  O(n log m): n outcomes, m letters in the shard
-- Order of writes: state record, new index, then entry or PEL last. A script that dies leaves a letter in two
-- places, never in none.

local letters, meta, schedule, suspects, parked, state, history, groups, group_info =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local consumer = ARGV[4]
local FIRST, WIDTH = 5, 5
-- include lib/guard.lua
-- include lib/rows.lua
-- include lib/clock.lua
-- include lib/shard_time.lua
-- include lib/group.lua
-- include lib/record.lua
-- include lib/totals.lua
-- include lib/error_groups.lua
-- include lib/fence.lua
-- include lib/outcomes.lua

local named, details = read_outcomes()
if not named then
  return details
elseif #named == 0 then
  return {}
end
local verdicts, accepted, kept = judge(named, details)
if #accepted == 0 then
  return verdicts
end

local packed_records = {}
if #kept > 0 then
  for i, packed in ipairs(redis.call('HMGET', state, unpack(kept))) do
    packed_records[kept[i]] = packed
  end
end

local records, histories, due, due_alone, newly_parked = {}, {}, {}, {}, {}
local ended, settled, tally, totals = { resolve = {}, discard = {} }, {}, {}, {}
local function append(list, first, second)
  list[#list + 1] = first
  list[#list + 1] = second
end
for i, at in ipairs(accepted) do
  local id, verb, detail = ARGV[at], ARGV[at + 2], details[at]
  settled[i] = id
  if not detail then
    local ids, fingerprint = ended[verb], ARGV[at + 3]
    ids[#ids + 1] = id
    if fingerprint ~= '' then
      tally[fingerprint] = (tally[fingerprint] or 0) + 1
    end
  else
    local delay, failed, reason = unpack(detail)
    totals[TOTAL[verb]] = (totals[TOTAL[verb]] or 0) + 1
    local record = unpack_record(packed_records[id])
    record[FAILURES] = record[FAILURES] + failed
    if verb == 'release' then
      record[RELEASES] = record[RELEASES] + 1
    else
      record[REASON] = reason
    end
    append(records, id, cmsgpack.pack(record))
    if ARGV[at + 4] ~= '' then
      append(histories, id, ARGV[at + 4])
    end
    if verb == 'park' then
      append(newly_parked, int(now_ms), id)
    elseif verb == 'release' and record[CRASHES] > record[CRASHES_AT_REDRIVE] then
      append(due_alone, int(shard_ms + delay), id) -- a suspect that was not started is still one
    else
      append(due, int(shard_ms + delay), id)
    end
  end
end

if #records > 0 then
  redis.call('HSET', state, unpack(records))
end
if #histories > 0 then
  redis.call('HSET', history, unpack(histories))
end
if #due > 0 or #due_alone > 0 then
  keep_time()
end
if #due > 0 then
  redis.call('ZADD', schedule, unpack(due))
end
if #due_alone > 0 then
  redis.call('ZADD', suspects, unpack(due_alone))
end
if #newly_parked > 0 then
  redis.call('ZADD', parked, unpack(newly_parked))
end
for verb, ids in pairs(ended) do
  if #ids > 0 then
    -- Counted by what is deleted: a lease may outlive its entry, and nobody ends a letter twice.
    count(TOTAL[verb], redis.call('XDEL', letters, unpack(ids)))
    redis.call('HDEL', state, unpack(ids))
    redis.call('HDEL', history, unpack(ids))
  end
end
for name, by in pairs(totals) do
  count(name, by)
end
leave_groups(tally)
redis.call('XACK', letters, 'workers', unpack(settled))
return verdicts
