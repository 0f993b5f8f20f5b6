-- guard: refuse a caller that is older than the shard, before anything is written.
-- NEEDS meta
-- Every script's first arguments are the same: script protocol, layout epoch, time. A shard that was written
-- by a later protocol or belongs to a later layout says so, and the caller upgrades or re-reads the layout.

local known = redis.call('HMGET', meta, 'protocol', 'epoch', 'clock', 'lead')
if known[1] and tonumber(known[1]) > tonumber(ARGV[1]) then
  return redis.error_reply('UPGRADE ' .. known[1])
end
if known[2] and tonumber(known[2]) > tonumber(ARGV[2]) then
  return redis.error_reply('LAYOUT ' .. known[2])
end
