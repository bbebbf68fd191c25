-- Writes a job's record, makes it pending and publishes its hint, all at once; a draft becomes a job.
-- KEYS: none beyond those of _common.lua
-- ARGV: 1 id, 2 group, 3 definition (JSON; '' = the draft's), 4 message (kombu JSON with @KELPIE_TAG@), 5 queue list,
--       6 priority, 7 heartbeat_interval (s), 8 max_failures, 9 parents' results (JSON), 10 delay (s),
--       11 idempotency digest ('' = none), 12 definition digest, 13 drafts held (JSON list of keys, '' = none), 14 name,
--       15 nonce of this submission ('' = none), 16 URL of its webhook ('' = none)
-- Returns {'created' | 'exists' | 'conflict', id, status} | {'no_definition'}: neither given nor held as a draft
-- Invariant: a job is created once; a second submit of its id or its idempotency key publishes nothing. Asked again with
-- the same nonce (the answer was lost), it answers 'created' again.
local id, group = ARGV[1], ARGV[2]
local known = find(id)
local status = known and get(id, 'status')
if status and status ~= 'draft' then
  -- A draft that was canceled, and that Celery reaches now: it ends like any job, so that Celery hears of it.
  if status == 'canceled' and not get(id, 'message') then
    redis.call('PERSIST', job_key(id))
    redis.call('PERSIST', 'kelpie:where:' .. id)
    redis.call('HSET', job_key(id), 'message', ARGV[4], 'queue', ARGV[5], 'priority', ARGV[6], 'digest', ARGV[12],
      'name', ARGV[14], 'max_failures', ARGV[8], 'attempt', 0)
    if ARGV[16] ~= '' then redis.call('HSET', job_key(id), 'webhook', ARGV[16]) end
    redis.call('HDEL', job_key(id), 'celery_done')
    redis.call('ZADD', P .. 'created', ts(now), id)
    finish(id, 'canceled', 'canceled', get(id, 'message_text'), 'null', 0, 0)
    return {'exists', id, status}
  end
  local mine = ARGV[15] ~= '' and get(id, 'submission') == ARGV[15]
  return {mine and 'created' or 'exists', id, status}
end
P = 'kelpie:g:' .. group .. ':'
if ARGV[3] == '' and not get(id, 'definition') then return {'no_definition'} end
if ARGV[11] ~= '' then
  local other = redis.call('GET', P .. 'idem:' .. ARGV[11])
  if other then
    local r = redis.call('HMGET', job_key(other), 'status', 'digest')
    if r[1] then return {r[2] == ARGV[12] and 'exists' or 'conflict', other, r[1]} end
  end
end
-- What the caller's Redis user may not do ends the call here, before anything of the job is written. A worker that may
-- not add a group submits to its own, which is known.
if ARGV[13] ~= '' then keep_drafts(ARGV[13]) end
if known ~= group or redis.call('TTL', 'kelpie:where:' .. id) >= 0 then redis.call('SET', 'kelpie:where:' .. id, group) end
refused('SADD', 'kelpie:groups', group)
if ARGV[11] ~= '' then
  redis.call('SET', P .. 'idem:' .. ARGV[11], id)
  redis.call('HSET', job_key(id), 'idem', ARGV[11])
end
redis.call('PERSIST', job_key(id))
if ARGV[3] ~= '' then redis.call('HSET', job_key(id), 'definition', ARGV[3]) end
redis.call('HSET', job_key(id), 'message', ARGV[4], 'queue', ARGV[5], 'priority', ARGV[6], 'heartbeat_s', ARGV[7],
  'max_failures', ARGV[8], 'created', ts(now), 'attempt', 0, 'digest', ARGV[12], 'name', ARGV[14])
if ARGV[15] ~= '' then redis.call('HSET', job_key(id), 'submission', ARGV[15]) end
if ARGV[16] ~= '' then redis.call('HSET', job_key(id), 'webhook', ARGV[16]) end
if ARGV[9] ~= '[]' then redis.call('HSET', job_key(id), 'parents', ARGV[9]) end
if ARGV[13] ~= '' then
  redis.call('HSET', job_key(id), 'drafts', ARGV[13])
  hold_drafts(ARGV[13])
end
redis.call('ZADD', P .. 'created', ts(now), id)
enqueue(id, num(ARGV[10]))
if num(ARGV[10]) <= 0 then publish(id) end
return {'created', id, 'pending'}
