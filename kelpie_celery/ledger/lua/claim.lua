-- Gives a pending job to one attempt, and to no other.
-- ARGV: 1 id, 2 nonce, 3 machine, 4 worker, 5 shortest lease (s), 6 time of the message received (s, '' = unknown),
--       7 outbox lease (s), 8 ban yield (s), 9 machine counted alive if seen within (s), 10 may run ('1' | '0'),
--       11 worker as its pulse calls it ('' = it has none)
-- Returns {'granted', attempt, lease_s, now, definition, parents, num_failures, created, started, commit pointer,
--          continues, seconds that its commands ran before, result that an earlier attempt could not report ('' = none)}
--       | {'ended', status, result, reason, message}    the caller replays Celery's bookkeeping
--       | {'refused', why} | {'banned', pause_s}
-- Invariant: asked again with the nonce that was granted (the answer was lost), it grants the same attempt again.
local id, nonce, machine = ARGV[1], ARGV[2], ARGV[3]
if not find(id) then return {'refused', 'unknown'} end
local key = job_key(id)
local r = redis.call('HMGET', key, 'status', 'priority', 'heartbeat_s', 'celery_done', 'outbox_until', 'nonce', 'attempt',
  'pending_since', 'bounces')
local status = r[1]
-- A time in the future proves nothing (Redis's clock was put back): as a watermark it would have every job re-published.
if ARGV[6] ~= '' and num(ARGV[6]) <= now then
  local seen = num(redis.call('HGET', P .. 'watermark', r[2] or '0'))
  if seen < num(ARGV[6]) or seen > now then redis.call('HSET', P .. 'watermark', r[2] or '0', ARGV[6]) end
end
if ended(status) then
  if r[4] == '1' then return {'refused', status} end
  -- Further ahead than a lease is long: by a clock that has been put back since.
  if num(r[5]) > now and num(r[5]) <= now + num(ARGV[7]) then return {'refused', 'outbox-busy'} end
  redis.call('HSET', key, 'outbox_until', ts(now + ARGV[7]))
  redis.call('ZADD', P .. 'outbox', ts(now + ARGV[7]), id)
  local e = redis.call('HMGET', key, 'result', 'reason', 'message_text')
  return {'ended', status, e[1] or 'null', e[2] or '', e[3] or ''}
end
local lease_s = math.max(2 * num(r[3]), num(ARGV[5]))
local function grant(attempt)
  local d = redis.call('HMGET', key, 'definition', 'parents', 'num_failures', 'created', 'started', 'commit', 'continues',
    'ran_s', 'finished')
  return {'granted', tostring(attempt), tostring(lease_s), ts(now), d[1], d[2] or '[]', d[3] or '0', d[4], d[5], d[6] or '',
    d[7] or '0', d[8] or '0', d[9] or ''}
end
if status == 'running' and r[6] == nonce then
  -- The caller trusts its lease from this call on, so the ledger must count from it too.
  redis.call('ZADD', P .. 'running', ts(now + lease_s), id)
  redis.call('HSET', key, 'heartbeat_at', ts(now))
  return grant(r[7])
end
if status ~= 'pending' then return {'refused', status} end
if redis.call('ZSCORE', P .. 'delayed', id) then return {'refused', 'delayed'} end
if ARGV[10] ~= '1' then
  -- A worker that ends had this message in hand already: it goes to another one at once.
  publish(id)
  return {'refused', 'no-runner'}
end
local closed = redis.call('HGET', P .. 'scaler', 'closed')
if ARGV[11] ~= '' and (num(redis.call('HGET', P .. 'worker:' .. ARGV[11], 'draining')) > now or num(closed) > now) then
  -- It is about to go: the message, which it had in hand already, goes to another one at once.
  publish(id)
  return {'refused', 'draining'}
end

-- A ban holds while another live machine may take the job and the job has not waited too long.
local ban = redis.call('HGET', key, 'ban:' .. machine)
if ban and num(ban) > now and now - num(r[8]) < num(ARGV[8]) then
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', P .. 'machines', now - num(ARGV[9]), '+inf', 'LIMIT', 0, 100)) do
    if other ~= machine and num(redis.call('HGET', key, 'ban:' .. other)) <= now then
      local pause_s = math.min(5, 0.05 * 2 ^ math.min(num(r[9]), 10))
      redis.call('HINCRBY', key, 'bounces', 1)
      redis.call('ZREM', P .. 'pending', id)
      redis.call('ZREM', P .. 'published:' .. r[2], id)
      redis.call('ZADD', P .. 'delayed', ts(now + pause_s), id)
      return {'banned', tostring(pause_s)}
    end
  end
end

local attempt = redis.call('HINCRBY', key, 'attempt', 1)
account_wait(id)
leave_queue(id)
redis.call('HSET', key, 'status', 'running', 'phase', 'restoring', 'nonce', nonce, 'machine', machine, 'worker', ARGV[4],
  'holder', ARGV[11], 'lease_s', tostring(lease_s), 'heartbeat_at', ts(now), 'attempt_started', ts(now))
redis.call('HSETNX', key, 'started', ts(now))
redis.call('HDEL', key, 'launched_at', 'exited_at', 'reaped', 'released', 'released_as', 'committed_in', 'progress',
  'transfer', 'counted_till', 'settled', 'attempt_commits')
redis.call('ZADD', P .. 'running', ts(now + lease_s), id)
redis.call('RPUSH', P .. 'attempts:' .. id, cjson.encode({n = attempt, nonce = nonce, machine = machine, worker = ARGV[4],
  started = now}))
redis.call('LTRIM', P .. 'attempts:' .. id, -50, -1)
announce(id, 'running', '')
return grant(attempt)
