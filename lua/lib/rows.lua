-- rows: refuse a call whose last row of arguments is torn, before anything is written.
-- NEEDS FIRST, WIDTH

if #ARGV < FIRST - 1 or (#ARGV - FIRST + 1) % WIDTH ~= 0 then
  return redis.error_reply('ERR arguments from ' .. FIRST .. ' come in rows of ' .. WIDTH .. ', not ' .. #ARGV .. ' in all')
end
