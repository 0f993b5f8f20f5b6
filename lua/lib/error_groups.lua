-- error_groups: open letters a fingerprint, and when it was first and last seen.
-- NEEDS groups, group_info, count

-- tally: fingerprint → letters that entered; samples: fingerprint → id of one of them.
local function enter_groups(tally, samples, now_ms)
  local new = 0
  for fingerprint, entered in pairs(tally) do
    redis.call('HINCRBY', groups, fingerprint, entered)
    local packed = redis.call('HGET', group_info, fingerprint)
    local ok, group = pcall(cmsgpack.unpack, packed or '')
    if not (packed and ok and type(group) == 'table') then
      group = { now_ms, now_ms, samples[fingerprint], 'open' }
      new = new + 1
    end
    group[2] = now_ms
    redis.call('HSET', group_info, fingerprint, cmsgpack.pack(group))
  end
  count('new_error_groups', new)
end

-- Counts never fall below 0, and a group without letters is forgotten.
local function leave_groups(tally)
  for fingerprint, left in pairs(tally) do
    if redis.call('HEXISTS', groups, fingerprint) == 1
      and redis.call('HINCRBY', groups, fingerprint, -left) <= 0 then
      redis.call('HDEL', groups, fingerprint)
      redis.call('HDEL', group_info, fingerprint)
    end
  end
end
