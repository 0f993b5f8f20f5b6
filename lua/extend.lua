#!lua flags=allow-oom
-- extend: keep the leases that the caller still holds, and name those it has forgotten.
--
-- KEYS  1 letters  stream  dlq:{<queue>:<i>.<k>}:letters   group `workers`
--       2 meta     hash    dlq:{<queue>:<i>.<k>}:meta
-- ARGV  1 protocol int;  2 epoch int;  3 clock µs, or empty: the server's time
--       4 consumer text
--       5… leases  id text, token int
-- GIVES lost ids; forgotten {id, token, …}: leased to this consumer, but not named: a `take` whose reply was
--       lost, or one that is on its way
-- FAILS UPGRADE, LAYOUT
-- COST  O(n log m): n leases of the consumer, m leases in the shard

local letters, meta = KEYS[1], KEYS[2]
local consumer = ARGV[4]
local FIRST, WIDTH, MOST_FORGOTTEN = 5, 2, 100
-- include lib/guard.lua
-- include lib/rows.lua
-- include lib/clock.lua
-- include lib/shard_time.lua
-- include lib/group.lua
-- include lib/fence.lua

local named, lost, kept, forgotten = {}, {}, {}, {}
for at = FIRST, #ARGV, WIDTH do
  named[#named + 1] = ARGV[at]
end
local held_tokens = #named > 0 and tokens_held(named) or {}
local is_named = {}
for at = FIRST, #ARGV, WIDTH do
  is_named[ARGV[at]] = true
  if held_tokens[ARGV[at]] and held_tokens[ARGV[at]] == tonumber(ARGV[at + 1]) then
    kept[#kept + 1] = ARGV[at]
  else
    lost[#lost + 1] = ARGV[at]
  end
end

-- JUSTID leaves the delivery count alone: it holds the token.
local CHUNK = 1000
for first = 1, #kept, CHUNK do
  local args = { 'XCLAIM', letters, 'workers', consumer, '0' }
  for i = first, math.min(first + CHUNK - 1, #kept) do
    args[#args + 1] = kept[i]
  end
  args[#args + 1] = 'JUSTID'
  redis.call(unpack(args))
end

if #kept > 0 then
  keep_time() -- after them: Redis 6.2 refuses a script on a full server whose first write is an HSET
end

local pending = redis.pcall('XPENDING', letters, 'workers', '-', '+', #named + MOST_FORGOTTEN, consumer)
if not is_missing(pending) then
  local mark = #pending > 0 and peek_mark()
  for _, row in ipairs(pending) do
    -- Past the mark it is no lease of `take`, but a stranger's read in this consumer's name: let it run out.
    if not is_named[row[1]] and not later(row[1], mark) then
      forgotten[#forgotten + 1] = row[1]
      forgotten[#forgotten + 1] = int(row[4])
    end
  end
end
return { lost, forgotten }
