-- Cancels a job, durably, whoever is online.
-- ARGV: 1 id, 2 why (words), 3 retention (s)
-- Returns {'canceled'} it was not running | {'canceling'} its attempt has been told | {status} it had ended | {'unknown'}
-- Invariant: an ended job stays what it is.
local id = ARGV[1]
if not find(id) then return {'unknown'} end
local status = get(id, 'status')
if not status then return {'unknown'} end
if status == 'draft' then
  redis.call('HSET', job_key(id), 'status', 'canceled', 'reason', 'canceled', 'message_text', ARGV[2], 'ended_at', ts(now),
    'celery_done', 1)
  redis.call('EXPIRE', job_key(id), ARGV[3])
  or_later('where:' .. id, 'EXPIRE', 'kelpie:where:' .. id, ARGV[3])
  return {'canceled'}
end
if status == 'running' then
  redis.call('HSETNX', job_key(id), 'cancel', ARGV[2])
  return {'canceling'}
end
if status == 'pending' then
  account_wait(id)
  -- The outbox is due at once: somebody has to tell Celery.
  finish(id, 'canceled', 'canceled', ARGV[2], 'null', 0, ARGV[3])
  return {'canceled'}
end
return {status}
