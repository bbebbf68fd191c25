-- Ends an attempt and decides what becomes of its job.
-- ARGV: 1 id, 2 attempt, 3 nonce, 4 outcome (completed | failure | interruption | continue | canceled), 5 reason,
--       6 message, 7 result (JSON; of a completed job), 8 facts for the history (JSON object, '' = none),
--       9 delay before a retry (s), 10 final ('1' = a failure that is not retried), 11 outbox lease (s),
--       12 retention (s), 13 ban time of the machine after a failure (s, 0 = none)
-- Returns {status of the job now, num_failures} | {'cancel'} | {'stale', status}
--   'cancel': completion is refused because a cancel was accepted before; end it as canceled.
-- Invariant: takes effect once; asked again by the same attempt (the answer was lost), it answers the same, unless the
-- job has moved on since: then nothing may be told of it that Celery would take for the latest news.
local id, attempt, nonce, outcome = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not find(id) then return {'stale', 'unknown'} end
local key = job_key(id)
if not owns(id, attempt, nonce) and not take_back(id, attempt, nonce) then
  local r = redis.call('HMGET', key, 'released', 'released_as', 'num_failures', 'status')
  if r[1] == nonce and r[2] == r[4] then return {r[2], r[3] or '0'} end
  return {'stale', r[4]}
end
local cancel = redis.call('HGET', key, 'cancel')
if cancel and outcome == 'completed' then return {'cancel'} end
local outbox_s, retention_s = num(ARGV[11]), num(ARGV[12])
close_attempt(id, outcome, ARGV[5], ARGV[6], ARGV[8])
add_run(id, now)
redis.call('HDEL', key, 'deaths')

local function answer(status)
  redis.call('HSET', key, 'released', nonce, 'released_as', status)
  return {status, get(id, 'num_failures') or '0'}
end
if outcome == 'completed' then
  redis.call('HINCRBY', key, 'completions', 1)
  finish(id, 'completed', '', '', ARGV[7], outbox_s, retention_s)
  return answer('completed')
end
if outcome == 'canceled' or cancel then
  finish(id, 'canceled', 'canceled', cancel or ARGV[6], 'null', outbox_s, retention_s)
  return answer('canceled')
end
if outcome == 'failure' then
  local failures = redis.call('HINCRBY', key, 'num_failures', 1)
  redis.call('HSET', key, 'reason', ARGV[5], 'message_text', ARGV[6])
  if num(ARGV[13]) > 0 then redis.call('HSET', key, 'ban:' .. get(id, 'machine'), ts(now + num(ARGV[13]))) end
  if ARGV[10] == '1' or failures >= num(get(id, 'max_failures')) then
    finish(id, 'failed', ARGV[5], ARGV[6], 'null', outbox_s, retention_s)
    return answer('failed')
  end
elseif outcome == 'interruption' then
  redis.call('HINCRBY', key, 'num_interruptions', 1)
else
  redis.call('HINCRBY', key, 'continues', 1)
end
redis.call('ZREM', P .. 'running', id)
enqueue(id, num(ARGV[9]))
-- The hint goes out by publish.lua once Celery has recorded the retry. Should that never come, the reconciler finds
-- this entry: published long ago, and in no list.
if num(ARGV[9]) <= 0 then redis.call('ZADD', P .. 'published:' .. get(id, 'priority'), ts(now), id) end
return answer('pending')
