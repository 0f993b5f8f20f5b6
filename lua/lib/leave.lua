-- leave: remove one letter that is not being settled: its entry, then every row that names it.
-- NEEDS letters, schedule, suspects, held, parked, state, history, field, count, leave_groups

-- The entry goes first: rows without an entry are swept up, an entry without rows would be run again.
local function leave(id, total)
  local entry = redis.call('XRANGE', letters, id, id)[1]
  local fingerprint = entry and field(entry[2], 'fingerprint')
  redis.call('XDEL', letters, id)
  count(total, 1)
  for _, key in ipairs({ suspects, schedule, held, parked }) do
    redis.call('ZREM', key, id)
  end
  redis.call('HDEL', state, id)
  redis.call('HDEL', history, id)
  if fingerprint and fingerprint ~= '' then
    leave_groups({ [fingerprint] = 1 })
  end
  redis.call('XACK', letters, 'workers', id)
end
