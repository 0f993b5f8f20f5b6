-- outcomes: the rows of `settle`: what they ask for, and which of them the caller may still ask for.
-- NEEDS letters, FIRST, WIDTH, tokens_held

local TOTAL = { resolve = 'resolved', retry = 'retried', park = 'parked', release = 'released', discard = 'discarded' }
local ENDS = { resolve = true, discard = true }

-- Returns the ids that are named, row by row, and row → {delay ms, failed, reason} of those that do not end their
-- letter; nil and an error for a row that makes no sense.
local function read_outcomes()
  local named, details = {}, {}
  for at = FIRST, #ARGV, WIDTH do
    local verb = ARGV[at + 2]
    if not TOTAL[verb] then
      return nil, redis.error_reply('ERR settle: unknown verb ' .. verb)
    end
    if not ENDS[verb] then
      local delay, failed, reason = string.match(ARGV[at + 3], '^(%d+) ([01]) (.*)$')
      if not delay then
        return nil, redis.error_reply('ERR settle: detail is not "<delay ms> <failed 0|1> <reason>" of ' .. ARGV[at])
      end
      details[at] = { tonumber(delay), tonumber(failed), reason }
    end
    named[#named + 1] = ARGV[at]
  end
  return named, details
end

-- Returns a verdict for each row, the rows that are accepted, and the ids among them that do not end.
local function judge(named, details)
  local held_tokens = tokens_held(named)
  local verdicts, accepted, kept = {}, {}, {}
  local token_text, token -- letters of one `take` share it
  for i, id in ipairs(named) do
    local at = FIRST + (i - 1) * WIDTH
    if ARGV[at + 1] ~= token_text then
      token_text, token = ARGV[at + 1], tonumber(ARGV[at + 1])
    end
    local verdict = 'OK'
    if not token or held_tokens[id] ~= token then
      verdict = #redis.call('XRANGE', letters, id, id) > 0 and 'LOST' or 'GONE'
    elseif details[at] and #redis.call('XRANGE', letters, id, id) == 0 then
      verdict = 'GONE' -- a stranger deleted the entry and left the lease: no row may name it
    else
      held_tokens[id] = nil -- named twice in one call: only the first counts
      accepted[#accepted + 1] = at
      if details[at] then
        kept[#kept + 1] = id
      end
    end
    verdicts[i] = verdict
  end
  return verdicts, accepted, kept
end
