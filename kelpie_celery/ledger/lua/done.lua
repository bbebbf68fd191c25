-- Celery's bookkeeping for an ended job (result, links, chain, chord) is done: closes its outbox.
-- ARGV: 1 id
-- Returns 1, or 0 when the job has not ended.
local id = ARGV[1]
if not find(id) or not ended(get(id, 'status')) then return 0 end
redis.call('HSET', job_key(id), 'celery_done', 1)
redis.call('HDEL', job_key(id), 'outbox_until')
redis.call('ZREM', P .. 'outbox', id)
redis.call('ZREM', P .. 'outbox_left', id)
return 1
