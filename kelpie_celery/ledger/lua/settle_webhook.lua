-- Records how sending a webhook went.
-- ARGV: 1 group, 2 id, 3 status, 4 number of the try, 5 what (sent | again | dead | unsent), 6 delay before the next try
--       (s), 7 HTTP status ('' = no answer), 8 what went wrong, in words
-- Returns the state now (waiting | sent | dead | dropped), '' when there is no such webhook.
-- Invariant: it is recorded as sent once, and stays so. Of a try that is not the newest (its lease ran out) only success
-- counts. 'unsent' gives the try back: it was not made.
P = 'kelpie:g:' .. ARGV[1] .. ':'
local id, status, what = ARGV[2], ARGV[3], ARGV[5]
local field, member = 'told:' .. status, id .. ':' .. status
local text = get(id, field)
if not text then return '' end
local entry = cjson.decode(text)
if entry.state ~= 'waiting' or what ~= 'sent' and entry.tries ~= num(ARGV[4]) then return entry.state end
local due = now + num(ARGV[6])
if what == 'unsent' then
  entry.tries = entry.tries - 1
else
  entry.code, entry.error, entry.tried = tonumber(ARGV[7]), ARGV[8], ts(now)
  if what ~= 'again' then entry.state = what end
end
redis.call('HSET', job_key(id), field, cjson.encode(entry))
if entry.state == 'waiting' then
  redis.call('ZADD', P .. 'webhooks', ts(due), member)
else
  redis.call('ZREM', P .. 'webhooks', member)
end
if entry.state == 'dead' then redis.call('ZADD', P .. 'webhooks_dead', ts(now), member) end
return entry.state
