-- Has a webhook that was not sent tried again at once, with all its tries, or dropped for good.
-- ARGV: 1 id, 2 status, 3 order (retry | drop)
-- Returns the state before (waiting | dead | dropped | sent), '' when there is no such webhook.
-- Invariant: one that was sent stays so.
local id, status = ARGV[1], ARGV[2]
local text = find(id) and get(id, 'told:' .. status)
if not text then return '' end
local entry, member = cjson.decode(text), id .. ':' .. status
local before = entry.state
if before == 'sent' then return before end
redis.call('ZREM', P .. 'webhooks_dead', member)
if ARGV[3] == 'retry' then
  entry.state, entry.tries = 'waiting', 0
  redis.call('ZADD', P .. 'webhooks', ts(now), member)
else
  entry.state = 'dropped'
  redis.call('ZREM', P .. 'webhooks', member)
end
redis.call('HSET', job_key(id), 'told:' .. status, cjson.encode(entry))
return before
