-- Takes webhooks that are due, each for a lease in which nobody else sends it, and counts the try.
-- ARGV: 1 group, 2 limit, 3 lease (s)
-- Returns {{id, status, URL, entry (JSON)} for each}
-- Invariant: workers of the group may write all that is read here, so an entry counts only for a job that is of the group
-- by kelpie:where, which they cannot write; what is no entry at all is dropped.
P = 'kelpie:g:' .. ARGV[1] .. ':'
local out = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. 'webhooks', '-inf', ts(now), 'LIMIT', 0, num(ARGV[2]))) do
  local id, status = string.match(member, '^(.*):(%a+)$')
  local r = id and redis.call('HMGET', job_key(id), 'webhook', 'told:' .. status) or {}
  local read, entry = pcall(cjson.decode, r[2] or '')
  local sound = read and type(entry) == 'table' and entry.state == 'waiting' and type(entry.tries) == 'number'
  if sound and r[1] and redis.call('GET', 'kelpie:where:' .. id) == ARGV[1] then
    entry.tries = entry.tries + 1
    local written = cjson.encode(entry)
    redis.call('HSET', job_key(id), 'told:' .. status, written)
    redis.call('ZADD', P .. 'webhooks', ts(now + num(ARGV[3])), member)
    out[#out + 1] = {id, status, r[1], written}
  else
    redis.call('ZREM', P .. 'webhooks', member)
  end
end
return out
