#!lua
-- add: capture letters, each once by its capture key.
--
-- KEYS  1 letters     stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta        hash    dlq:{<queue>:<i>.<k>}:meta
--       3 dedupe_a    hash    dlq:{<queue>:<i>.<k>}:dedupe_a  capture key → id, producer, producer_ms
--       4 dedupe_b    hash    dlq:{<queue>:<i>.<k>}:dedupe_b  the same, another generation
--       5 dedupe_c    hash    dlq:{<queue>:<i>.<k>}:dedupe_c  the same, another generation
--       6 groups      hash    dlq:{<queue>:<i>.<k>}:groups
--       7 group_info  hash    dlq:{<queue>:<i>.<k>}:group_info
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 limit int: letters the shard may hold, 0 for any number
--       5 window int: ms that a capture key is remembered, 0 for not at all
--       6 producer word: the process that captures;  7 producer_ms int: the time by its own clock, which nobody sets
--       8… letters  capture key text, delay int ms, then the values of the wire format's fields in their
--                   order, without `v` and `not_before` (16): 18 arguments a letter
-- GIVES for each letter its id (the first one's, when the capture key is known), or FULL
-- FAILS UPGRADE, LAYOUT; OOM from the server, before anything is written
-- COST  O(n): n letters
-- The first write is an XADD: on Redis 6.2 only that makes a full server refuse the script.

local letters, meta, dedupe_a, dedupe_b, dedupe_c, groups, group_info =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local limit, window = tonumber(ARGV[4]), tonumber(ARGV[5])
local producer, producer_ms = ARGV[6], tonumber(ARGV[7])
local FIRST, WIDTH = 8, 18
-- include lib/guard.lua
-- include lib/rows.lua
-- include lib/clock.lua
-- include lib/shard_time.lua
-- include lib/totals.lua
-- include lib/error_groups.lua

for at = FIRST, #ARGV, WIDTH do
  if not string.match(ARGV[at + 1], '^%d+$') then
    return redis.error_reply('ERR add: a delay is ' .. ARGV[at + 1] .. ', not a number of ms')
  end
end

local fresh_shard = redis.call('HEXISTS', meta, 'mark') == 0 and redis.call('EXISTS', letters) == 0

-- include lib/generations.lua

if window > 0 and #ARGV >= FIRST then
  local keys = {}
  for at = FIRST, #ARGV, WIDTH do
    keys[#keys + 1] = ARGV[at]
  end
  recall(keys)
end

-- Numbers are printed once a batch, not once a letter.
local now_text, due_texts = int(now_ms), {}
local function due_after(delay)
  due_texts[delay] = due_texts[delay] or int(shard_ms + tonumber(delay))
  return due_texts[delay]
end

local room = limit > 0 and limit - redis.call('XLEN', letters) or math.huge
local captured_by = ' ' .. producer .. ' ' .. int(producer_ms)
local ids, new_keys, tally, samples, added, repeated = {}, {}, {}, {}, 0, 0
for at = FIRST, #ARGV, WIDTH do
  local key = ARGV[at]
  local id = window > 0 and remembered[key]
  if id then
    repeated = repeated + 1 -- counted, so a repeat writes: a WAIT that follows it covers the first capture
  elseif added >= room then
    id = 'FULL'
  else
    local failed_at = ARGV[at + 10] ~= '' and ARGV[at + 10] or now_text
    id = redis.call('XADD', letters, '*', 'v', '1', 'event_id', ARGV[at + 2], 'type', ARGV[at + 3],
      'subscription', ARGV[at + 4], 'reason', ARGV[at + 5], 'error_type', ARGV[at + 6], 'error', ARGV[at + 7],
      'traceback', ARGV[at + 8], 'fingerprint', ARGV[at + 9], 'failed_at', failed_at,
      'attempts', ARGV[at + 11], 'not_before', due_after(ARGV[at + 1]),
      'ordering_key', ARGV[at + 12], 'dedupe_key', ARGV[at + 13], 'content_type', ARGV[at + 14],
      'encoding', ARGV[at + 15], 'payload', ARGV[at + 16], 'headers', ARGV[at + 17])
    added = added + 1
    remembered[key] = id
    new_keys[#new_keys + 1] = key
    new_keys[#new_keys + 1] = id .. captured_by
    local fingerprint = ARGV[at + 9]
    if fingerprint ~= '' then
      tally[fingerprint] = (tally[fingerprint] or 0) + 1
      samples[fingerprint] = samples[fingerprint] or id
    end
  end
  ids[#ids + 1] = id
end
if added == 0 then
  if repeated > 0 then
    begin_by_now()
    count('repeated', repeated)
  end
  return ids
end

-- The capture keys directly after the letters: were one lost, a repeat would be captured twice.
if window > 0 then
  local youngest, oldest = generations[1], generations[#generations]
  if now_ms - youngest.began >= window / 2 then
    redis.call('UNLINK', oldest.name)
    youngest = oldest
    new_keys[#new_keys + 1] = BEGAN
    new_keys[#new_keys + 1] = now_text
  end
  redis.call('HSET', youngest.name, unpack(new_keys))
  begin_by_now()
end
if fresh_shard then
  redis.call('HSET', meta, 'format', '1', 'protocol', ARGV[1], 'epoch', ARGV[2], 'mark', '0-0')
end
keep_time()
count('captured', added)
count('repeated', repeated)
enter_groups(tally, samples, now_ms)
return ids
