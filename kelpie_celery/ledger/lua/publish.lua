-- Publishes the hint of a job that an attempt has just given back.
-- ARGV: 1 id, 2 attempt
-- Returns 1 when a hint went out, 0 when there is nothing to publish (delayed, claimed or ended meanwhile).
local id = ARGV[1]
if not find(id) then return 0 end
local r = redis.call('HMGET', job_key(id), 'status', 'attempt')
-- It ended before Celery recorded the retry, and whoever waits on a RETRY that follows REVOKED or FAILURE waits in vain:
-- tell Celery again. (SUCCESS is final in Celery's result store.)
if r[1] == 'canceled' or r[1] == 'failed' then
  redis.call('HDEL', job_key(id), 'celery_done', 'outbox_until')
  redis.call('ZADD', P .. 'outbox', ts(now), id)
  return 0
end
if r[1] ~= 'pending' or r[2] ~= ARGV[2] or redis.call('ZSCORE', P .. 'delayed', id) then return 0 end
publish(id)
return 1
