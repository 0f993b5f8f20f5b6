-- group: the mark, up to which letters were taken in, and the consumer group that follows it.
-- NEEDS letters, meta

-- The error of a reply that says that stream or group is missing; any other error is raised, before a write.
local function is_missing(reply)
  if type(reply) ~= 'table' or not reply.err then
    return false
  end
  if string.find(reply.err, 'NOGROUP', 1, true) or string.find(reply.err, 'no such key', 1, true) then
    return true
  end
  error(reply.err)
end

local function has_group()
  return not is_missing(redis.pcall('XPENDING', letters, 'workers', '-', '+', 1))
end

-- Value of `name` in a flat reply of XINFO.
local function info(flat, name)
  for i = 1, #flat, 2 do
    if flat[i] == name then
      return flat[i + 1]
    end
  end
end

-- Without a mark the group's position counts; without both, the stream's last id: `repair` finds the letters.
local function mark_without_meta(group_exists)
  if group_exists then
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', letters)) do
      if info(group, 'name') == 'workers' then
        return info(group, 'last-delivered-id')
      end
    end
  end
  local stream = redis.pcall('XINFO', 'STREAM', letters)
  return is_missing(stream) and '0-0' or info(stream, 'last-generated-id')
end

-- Returns the mark, and whether the group was missing and had to be made (`repair` should run at once).
local function ensure_group()
  local group_exists = has_group()
  local mark = redis.call('HGET', meta, 'mark')
  if not mark then
    mark = mark_without_meta(group_exists)
    redis.call('HSET', meta, 'mark', mark)
    for name, value in pairs({ format = '1', protocol = ARGV[1], epoch = ARGV[2] }) do
      redis.call('HSETNX', meta, name, value)
    end
  end
  if not group_exists then
    redis.call('XGROUP', 'CREATE', letters, 'workers', mark, 'MKSTREAM')
  end
  return mark, not group_exists
end

-- The mark for readers: nothing is made or written.
local function peek_mark()
  return redis.call('HGET', meta, 'mark') or mark_without_meta(has_group())
end

-- At most `most` entries after `id` (`-`: from the first on), up to the id `to`.
local LAST = '18446744073709551615-18446744073709551615' -- a stranger's; Redis refuses a range that begins after it
local function entries_after(id, to, most)
  if id == LAST then
    return {}
  end
  return redis.call('XRANGE', letters, id == '-' and '-' or '(' .. id, to, 'COUNT', most)
end

-- Whether stream id a is later than b, part by part: the ms part alone may pass 2^53 in a stranger's id.
local function later(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  local function digits_later(x, y)
    if #x ~= #y then
      return #x > #y
    end
    return x > y
  end
  if a_ms ~= b_ms then
    return digits_later(a_ms, b_ms)
  end
  return a_seq ~= b_seq and digits_later(a_seq, b_seq)
end
