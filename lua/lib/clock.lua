-- clock: now_us and now_ms, read once: from the caller (tests pass a time in), else from the server.
-- NEEDS nothing

local function int(number)
  return string.format('%.0f', number) -- `..` would print 16 digits as 1.7e+15
end

local now_us = tonumber(ARGV[3])
if not now_us then
  local time = redis.call('TIME')
  now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local now_ms = math.floor(now_us / 1000)
