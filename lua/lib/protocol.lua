-- protocol: refuse a caller that is too old for the queue, before anything is written.
-- NEEDS layout

local protocol = redis.call('HGET', layout, 'protocol')
if protocol and tonumber(protocol) > tonumber(ARGV[1]) then
  return redis.error_reply('UPGRADE ' .. protocol)
end
