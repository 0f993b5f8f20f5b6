-- operate: what every operator's verb on single letters begins with.
-- NEEDS place_of, exists, ensure_group, intake_to_schedule, later

local FIRST, WIDTH = 5, 3 -- id, seen state, seen score
-- include lib/rows.lua

-- Returns place, score when the verb may go on, else nil and the answer for this row: GONE, CHANGED, LEASED, or
-- AHEAD (the intake has not come to it yet: call again).
local function placed_as_seen(at, mark_before, mark, allowed)
  local id, seen, seen_score = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if not exists(id) then
    return nil, 'GONE'
  end
  local place, score = place_of(id, mark)
  if place == 'waiting' then
    return nil, 'AHEAD'
  end
  -- A letter that waited when it was seen was scheduled just now by the intake of this call.
  local by_our_intake = seen == 'waiting' and later(id, mark_before)
  if place ~= seen or (score ~= seen_score and place ~= 'leased') then
    if not by_our_intake then
      return nil, 'CHANGED'
    end
  end
  if not allowed[place] then
    return nil, place == 'leased' and 'LEASED' or 'CHANGED'
  end
  return place, score
end

-- Runs `act(id, place)` for each row that is as the caller saw it. Returns the answers, row by row.
local function operate(allowed, act)
  for at = FIRST, #ARGV, WIDTH do
    if not string.match(ARGV[at], '^%d+%-%d+$') then
      return redis.error_reply('ERR ' .. ARGV[at] .. ' is not the id of a letter')
    end
  end
  local before = ensure_group()
  local furthest
  for at = FIRST, #ARGV, WIDTH do
    if not furthest or later(ARGV[at], furthest) then
      furthest = ARGV[at]
    end
  end
  local mark = before
  if furthest and later(furthest, before) then
    mark = intake_to_schedule(before, 500)
  end
  local answers = {}
  for at = FIRST, #ARGV, WIDTH do
    local place, refusal = placed_as_seen(at, before, mark, allowed)
    if place then
      act(ARGV[at], place)
      answers[#answers + 1] = 'OK'
    else
      answers[#answers + 1] = refusal
    end
  end
  return answers
end
