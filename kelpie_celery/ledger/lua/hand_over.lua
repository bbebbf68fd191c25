-- Leaves Celery's bookkeeping for an ended job to a maintainer with more rights: part of it concerns another group.
-- ARGV: 1 id
-- Returns 1, or 0 when the job has not ended or Celery has been told.
local id = ARGV[1]
if not find(id) or not ended(get(id, 'status')) or get(id, 'celery_done') == '1' then return 0 end
redis.call('ZREM', P .. 'outbox', id)
redis.call('ZADD', P .. 'outbox_left', ts(now), id)
redis.call('HDEL', job_key(id), 'outbox_until')
return 1
