#!lua flags=allow-oom
-- settle: end leases with their outcomes; a lease that is not the caller's any more changes nothing.
--
-- KEYS  1 letters     stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta        hash    dlq:{<queue>:<i>.<k>}:meta
--       3 schedule    zset    dlq:{<queue>:<i>.<k>}:schedule  id → due, ms
--       4 parked      zset    dlq:{<queue>:<i>.<k>}:parked    id → parked-at, ms
--       5 state       hash    dlq:{<queue>:<i>.<k>}:state
--       6 history     hash    dlq:{<queue>:<i>.<k>}:history
--       7 groups      hash    dlq:{<queue>:<i>.<k>}:groups
--       8 group_info  hash    dlq:{<queue>:<i>.<k>}:group_info
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 consumer text
--       5… outcomes  id text, token int, verb (resolve | retry | park | release | discard), delay int ms,
--                    failed 0|1: the handler ran and failed, reason text, history bytes (empty: keep),
--                    fingerprint text: 8 arguments an outcome
-- GIVES for each outcome OK, LOST (the lease is another's, or over) or GONE (no such entry)
-- FAILS UPGRADE, LAYOUT
-- COST  O(n log m): n outcomes, m letters in the shard
-- Order of writes: state record, new index, then entry or PEL last. A script that dies leaves a letter in two
-- places, never in none.

local letters, meta, schedule, parked, state, history, groups, group_info =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local consumer = ARGV[4]
local FIRST, WIDTH = 5, 8
-- include lib/guard.lua
-- include lib/rows.lua
-- include lib/clock.lua
-- include lib/group.lua
-- include lib/record.lua
-- include lib/totals.lua
-- include lib/error_groups.lua
-- include lib/fence.lua

local TOTAL = { resolve = 'resolved', retry = 'retried', park = 'parked', release = 'released', discard = 'discarded' }
local ENDS = { resolve = true, discard = true }

local named = {}
for at = FIRST, #ARGV, WIDTH do
  if not TOTAL[ARGV[at + 2]] then
    return redis.error_reply('ERR settle: unknown verb ' .. ARGV[at + 2])
  end
  named[#named + 1] = ARGV[at]
end
if #named == 0 then
  return {}
end

local held_tokens = tokens_held(named)
local verdicts, accepted, kept = {}, {}, {}
for at = FIRST, #ARGV, WIDTH do
  local id = ARGV[at]
  local verdict = 'OK'
  if not held_tokens[id] or held_tokens[id] ~= tonumber(ARGV[at + 1]) then
    verdict = #redis.call('XRANGE', letters, id, id) > 0 and 'LOST' or 'GONE'
  elseif not ENDS[ARGV[at + 2]] and #redis.call('XRANGE', letters, id, id) == 0 then
    verdict = 'GONE' -- a stranger deleted the entry and left the lease: no row may name it
  else
    held_tokens[id] = nil -- named twice in one call: only the first counts
    accepted[#accepted + 1] = at
    if not ENDS[ARGV[at + 2]] then
      kept[#kept + 1] = id
    end
  end
  verdicts[#verdicts + 1] = verdict
end
if #accepted == 0 then
  return verdicts
end

local packed_records = {}
if #kept > 0 then
  for i, packed in ipairs(redis.call('HMGET', state, unpack(kept))) do
    packed_records[kept[i]] = packed
  end
end

local records, histories, due, newly_parked = {}, {}, {}, {}
local ended, released_leases, tally, totals = { resolve = {}, discard = {} }, {}, {}, {}
local function append(list, first, second)
  list[#list + 1] = first
  list[#list + 1] = second
end
for _, at in ipairs(accepted) do
  local id, verb, packed_history, fingerprint = ARGV[at], ARGV[at + 2], ARGV[at + 6], ARGV[at + 7]
  released_leases[#released_leases + 1] = id
  if ENDS[verb] then
    ended[verb][#ended[verb] + 1] = id
    if fingerprint ~= '' then
      tally[fingerprint] = (tally[fingerprint] or 0) + 1
    end
  else
    totals[TOTAL[verb]] = (totals[TOTAL[verb]] or 0) + 1
    local record = unpack_record(packed_records[id])
    record[FAILURES] = record[FAILURES] + tonumber(ARGV[at + 4])
    if verb == 'release' then
      record[RELEASES] = record[RELEASES] + 1
    else
      record[REASON] = ARGV[at + 5]
    end
    append(records, id, cmsgpack.pack(record))
    if packed_history ~= '' then
      append(histories, id, packed_history)
    end
    if verb == 'park' then
      append(newly_parked, int(now_ms), id)
    else
      append(due, int(now_ms + tonumber(ARGV[at + 3])), id)
    end
  end
end

if #records > 0 then
  redis.call('HSET', state, unpack(records))
end
if #histories > 0 then
  redis.call('HSET', history, unpack(histories))
end
if #due > 0 then
  redis.call('ZADD', schedule, unpack(due))
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
redis.call('XACK', letters, 'workers', unpack(released_leases))
return verdicts
