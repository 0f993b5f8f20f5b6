-- fields: read the flat name-value list of a stream entry by name.
-- NEEDS nothing

-- The wire format's fields in their order, as `add` writes them; another writer's entry may have any, anywhere.
local NAMES = {
  'v', 'event_id', 'type', 'subscription', 'reason', 'error_type', 'error', 'traceback', 'fingerprint', 'failed_at',
  'attempts', 'not_before', 'ordering_key', 'dedupe_key', 'content_type', 'encoding', 'payload', 'headers',
}
local PLACE = {}
for i, name in ipairs(NAMES) do
  PLACE[name] = 2 * i - 1
end

local function field(fields, name)
  local place = PLACE[name]
  if place and fields[place] == name then
    return fields[place + 1]
  end
  for i = 1, #fields, 2 do
    if fields[i] == name then
      return fields[i + 1]
    end
  end
  return false
end

-- Whether the entry is laid out as `add` does it. Unrolled: every letter that is taken passes here.
local function is_ours(f)
  return f[1] == 'v' and f[3] == 'event_id' and f[5] == 'type' and f[7] == 'subscription' and f[9] == 'reason'
    and f[11] == 'error_type' and f[13] == 'error' and f[15] == 'traceback' and f[17] == 'fingerprint'
    and f[19] == 'failed_at' and f[21] == 'attempts' and f[23] == 'not_before' and f[25] == 'ordering_key'
    and f[27] == 'dedupe_key' and f[29] == 'content_type' and f[31] == 'encoding' and f[33] == 'payload'
    and f[35] == 'headers' and #f == 36
end

-- The values of NAMES in their order, false for those that the entry lacks.
local function values_of(f)
  if is_ours(f) then
    return { f[2], f[4], f[6], f[8], f[10], f[12], f[14], f[16], f[18], f[20], f[22], f[24], f[26], f[28], f[30],
      f[32], f[34], f[36] }
  end
  local values = {}
  for i, name in ipairs(NAMES) do
    values[i] = field(f, name)
  end
  return values
end

-- Bytes of an entry, near enough for a budget: in the engine's own entries four fields hold nearly all.
local function size_of(fields)
  if fields[33] == 'payload' and fields[35] == 'headers' and fields[15] == 'traceback' then
    return 300 + #fields[34] + #fields[36] + #fields[16] + #fields[14]
  end
  local bytes = 0
  for i = 1, #fields do
    bytes = bytes + #fields[i]
  end
  return bytes
end
