#!lua flags=no-writes
-- scan: one page of open letters that match a filter, oldest capture first; nothing is written.
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
--       4 cursor text: - first, then what the last call gave
--       5 most int: letters wanted
--       6 whole 0|1: with bodies, or only what a table shows
--       7… conditions  name text, value text: `state`, or a field of the wire format; values of one name are
--                      alternatives, different names must all match
-- GIVES cursor (empty: the walk is at its end);  now ms;  letters {id, state, score, fields, counters, history};
--       lead ms: by how much scores that are due times are ahead of the server's clock
-- FAILS UPGRADE, LAYOUT
-- COST  O(500 log m): m letters in the shard; bodies of at most 4 MiB and ten entries more

local letters, meta, schedule, suspects, held, parked, state, history =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local last, most, whole = ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1'
local FIRST, WIDTH, MOST, BYTES = 7, 2, 500, 4 * 1024 * 1024
-- include lib/guard.lua
-- include lib/clock.lua
-- include lib/shard_time.lua
-- include lib/fields.lua
-- include lib/group.lua
-- include lib/record.lua
-- include lib/places.lua

local conditions = {}
for at = FIRST, #ARGV, WIDTH do
  conditions[ARGV[at]] = conditions[ARGV[at]] or {}
  conditions[ARGV[at]][ARGV[at + 1]] = true
end

local function matches(entry, place)
  for name, allowed in pairs(conditions) do
    local value = place
    if name ~= 'state' then
      value = field(entry[2], name) or ''
    end
    if not allowed[value] then
      return false
    end
  end
  return true
end

local LONG = { payload = true, traceback = true }
local function shown(fields)
  if whole then
    return fields
  end
  local short = {}
  for i = 1, #fields, 2 do
    if not LONG[fields[i]] then
      short[#short + 1] = fields[i]
      short[#short + 1] = fields[i + 1]
    end
  end
  return short
end

local mark = peek_mark()
local page, looked, bytes, at_end = {}, 0, 0, false
while #page < most and looked < MOST and bytes < BYTES and not at_end do
  local entries = entries_after(last, '+', 10)
  at_end = #entries < 10
  for _, entry in ipairs(entries) do
    if #page == most then
      at_end = false
      break
    end
    local id = entry[1]
    -- An orphan that `repair` has yet to find is shown as scheduled, where it will be.
    local place, score = place_of(id, mark)
    if matches(entry, place or 'scheduled') then
      page[#page + 1] = {
        id, place or 'scheduled', score or '0', shown(entry[2]),
        counters_of(redis.call('HGET', state, id)), redis.call('HGET', history, id) or '',
      }
    end
    last, looked, bytes = id, looked + 1, bytes + size_of(entry[2])
  end
end
return { at_end and '' or last, int(now_ms), page, lead_ms }
