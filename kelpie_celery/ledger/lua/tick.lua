-- Bounded maintenance of one group: reap, promote, reconcile, expire; and which ended jobs Celery has not heard of.
-- ARGV: 1 group, 2 limit of entries a step, 3 least time between two ticks (s), 4 uptime of the server (s),
--       5 caller knows of an outage or a clock jump ('1' | '0'), 6 caller has just started ('1' | '0'),
--       7 retention (s), 8 slack of the watermark (s), 9 an empty list proves a loss after (s),
--       10 deaths that poison, 11 window after the command's start (s), 12 outbox lease (s)
-- Returns {'busy'} | {'ok', now, promoted, republished, expired, how many were reaped, their ids..., ids for the outbox...}
-- Invariants: nothing is reaped for one lease after a restart, an outage or a jump of TIME (amnesty): its holder could
-- not renew, and is given the time to. An outage that only the caller saw, while others did maintenance, counts for
-- nothing: in a large group somebody always comes back from one, and the dead must be reaped none the less.
P = 'kelpie:g:' .. ARGV[1] .. ':'
local limit, uptime_s = num(ARGV[2]), num(ARGV[4])
-- Callers with one limit share one turn, so that many small ticks do not keep out the large ones.
local turn = 'last:' .. ARGV[2]
local state = redis.call('HMGET', P .. 'tick', 'last', 'amnesty_from', 'hold_from', 'gap_s', turn)
local since_s = now - num(state[5])
if since_s >= 0 and since_s < num(ARGV[3]) then return {'busy'} end
local gap_s = state[1] and now - num(state[1]) or 0
local amnesty_from, hold_from = math.min(num(state[2]), now), math.min(num(state[3]), now)
-- A caller that has just started cannot tell an outage from a group that nobody served: when nobody looked for a while,
-- live holders are given a moment to renew first. To one that was here before it is an outage, whatever it noticed (a
-- tick that was under way when the server froze knows of none). Twice the last gap: where ticks are always rare, they
-- reap all the same.
local unusual = gap_s > 10 and gap_s > 2 * num(state[4]) + 5
if gap_s > 10 and ARGV[6] == '1' then
  hold_from = now
  redis.call('HSET', P .. 'tick', 'hold_from', ts(now))
end
if ARGV[6] ~= '1' and unusual
  or ARGV[5] == '1' and (not state[1] or gap_s > 5 or gap_s < 0 or now - hold_from < 10) then
  amnesty_from = now
  redis.call('HSET', P .. 'tick', 'amnesty_from', ts(now))
end
redis.call('HSET', P .. 'tick', 'last', ts(now), turn, ts(now), 'gap_s', ts(gap_s))

-- The server's clock was put back: what is due by the old one would wait for as long as it jumped.
if gap_s < -5 then
  for _, name in ipairs({'delayed', 'outbox', 'outbox_left', 'webhooks', 'leftover'}) do
    local rows = redis.call('ZRANGEBYSCORE', P .. name, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 10000)
    for i = 1, #rows, 2 do redis.call('ZADD', P .. name, ts(tonumber(rows[i + 1]) + gap_s), rows[i]) end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'running', ts(now), '+inf', 'LIMIT', 0, 10000)) do
    local latest = now + num(get(id, 'lease_s'))
    if num(redis.call('ZSCORE', P .. 'running', id)) > latest then redis.call('ZADD', P .. 'running', ts(latest), id) end
  end
  for priority = 0, 9 do
    local index = P .. 'published:' .. priority
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, ts(now), '+inf', 'LIMIT', 0, 10000)) do
      redis.call('ZADD', index, ts(now), id)
    end
  end
end

-- A silent death counts towards poison when it came soon after the command's start and without a new commit.
local function poisoned(id, r)
  local launched, heartbeat, attempt, committed_in, machine = r[2], num(r[3]), r[4], r[5], r[6]
  -- Nor is it the command that ends a worker which only uploads.
  if not launched or get(id, 'exited_at') then return false end
  if heartbeat - num(launched) > num(ARGV[11]) or committed_in == attempt then
    redis.call('HDEL', job_key(id), 'deaths')
    return false
  end
  local deaths, here = cjson.decode(get(id, 'deaths') or '[]'), 0
  for _, m in ipairs(deaths) do if m == machine then here = here + 1 end end
  if here < num(ARGV[10]) then  -- more can never count: the list stays short
    deaths[#deaths + 1] = machine
    redis.call('HSET', job_key(id), 'deaths', cjson.encode(deaths))
  end
  -- Where there are several machines, one bad machine must not condemn the job: each counts its share only.
  local several = math.max(1, math.min(num(ARGV[10]), redis.call('ZCOUNT', P .. 'machines', now - 3600, '+inf')))
  local share, by, total = math.ceil(num(ARGV[10]) / several), {}, 0
  for _, m in ipairs(deaths) do
    by[m] = (by[m] or 0) + 1
    if by[m] <= share then total = total + 1 end
  end
  return total >= num(ARGV[10])
end

local reaped = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'running', '-inf', ts(now), 'LIMIT', 0, limit)) do
  local r = redis.call('HMGET', job_key(id), 'lease_s', 'launched_at', 'heartbeat_at', 'attempt', 'committed_in',
    'machine', 'cancel', 'status')
  local lease_s = num(r[1])
  local patience = math.max(now - uptime_s + lease_s, amnesty_from + lease_s, hold_from + math.min(10, lease_s))
  if r[8] ~= 'running' then
    redis.call('ZREM', P .. 'running', id)
  elseif patience > now then
    -- Written down, so that those who are spared do not stand before others in the next bounded look.
    redis.call('ZADD', P .. 'running', ts(patience), id)
  else
    reaped[#reaped + 1] = id
    local text = 'machine ' .. (r[6] or '?') .. ' was not heard of for ' .. tostring(lease_s) .. ' s'
    local sums = close_attempt(id, 'interruption', 'lease_expired', text, '', num(r[3]))
    add_run(id, num(r[3]))
    redis.call('HINCRBY', job_key(id), 'num_interruptions', 1)
    redis.call('ZREM', P .. 'running', id)
    if r[7] then
      finish(id, 'canceled', 'canceled', r[7], 'null', 0, num(ARGV[7]))
    elseif poisoned(id, r) then
      finish(id, 'failed', 'poisoned', 'the job ended its worker without a goodbye ' .. ARGV[10] ..
        ' times in a row, each soon after its start and without a new checkpoint; look at its memory use', 'null', 0,
        num(ARGV[7]))
    else
      enqueue(id, 0)
      -- What was counted, should the attempt have its job back.
      local settled = {hour = math.floor(now / 3600), sums = sums}
      redis.call('HSET', job_key(id), 'reaped', 1, 'settled', cjson.encode(settled))
      publish(id)
    end
  end
end

local promoted = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'delayed', '-inf', ts(now), 'LIMIT', 0, limit)) do
  redis.call('ZREM', P .. 'delayed', id)
  local r = redis.call('HMGET', job_key(id), 'priority', 'pending_since', 'status')
  if r[3] == 'pending' then
    redis.call('ZADD', P .. 'pending', ts(num(r[1]) * 100000000000 + num(r[2])), id)
    publish(id)
    promoted = promoted + 1
  end
end

-- Lists are FIFO for one priority: what was published before the newest message that anybody received, and is still
-- pending, has been lost. An empty list proves the same of all that is old enough to be no race.
local republished = 0
for priority = 0, 9 do
  local index = P .. 'published:' .. priority
  if republished < limit and redis.call('EXISTS', index) == 1 then
    local list = 'kelpie.' .. ARGV[1] .. (priority > 0 and (':' .. priority) or '')
    local newest = num(redis.call('HGET', P .. 'watermark', priority))
    local before = (newest <= now and newest or 0) - num(ARGV[8])
    if redis.call('LLEN', list) == 0 then before = math.max(before, now - num(ARGV[9])) end
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', ts(before), 'LIMIT', 0, limit)) do
      if get(id, 'status') == 'pending' then
        publish(id)
        republished = republished + 1
      else
        redis.call('ZREM', index, id)
      end
    end
  end
end

local expired = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'ended', '-inf', ts(now - num(ARGV[7])), 'LIMIT', 0, limit)) do
  forget(id)
  expired = expired + 1
end
redis.call('ZREMRANGEBYSCORE', P .. 'machines', '-inf', ts(now - 604800))
redis.call('ZREMRANGEBYSCORE', P .. 'succeeded', '-inf', ts(now - 604800))
-- A worker that is silent for an hour has gone. Not sooner: it might come back, and must know then that it drains.
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', P .. 'workers', '-inf', ts(now - 3600), 'LIMIT', 0, limit)) do
  redis.call('ZREM', P .. 'workers', worker)
  redis.call('DEL', P .. 'worker:' .. worker)
end

-- What the group's workers could not do, done by the first caller who may. They are not to be trusted: a place is only
-- forgotten when no record is there, and a draft goes retention_s later at the earliest.
for _, what in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leftover', '-inf', ts(now), 'LIMIT', 0, limit)) do
  local id, key = string.match(what, '^where:(.+)$'), string.match(what, '^draft:[^:]*:(kelpie:g:[^:]+:job:.+)$')
  local group = id and redis.call('GET', 'kelpie:where:' .. id)
  local record = key or group and 'kelpie:g:' .. group .. ':job:' .. id
  if record and refused('HGET', record, 'status') then break end
  local ttl_s = group and redis.call('TTL', record) or -1
  if ttl_s == -2 and refused('DEL', 'kelpie:where:' .. id) then break end
  if ttl_s >= 0 and refused('EXPIRE', 'kelpie:where:' .. id, ttl_s) then break end
  if key then release_draft(key, num(ARGV[7])) end
  redis.call('ZREM', P .. 'leftover', what)
end

local out = {'ok', ts(now), promoted, republished, expired, #reaped}
for _, id in ipairs(reaped) do out[#out + 1] = id end
local function take_outbox(name)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. name, '-inf', ts(now), 'LIMIT', 0, limit)) do
    -- Not again before a lease has passed: the caller replays it now. What keeps failing must not spin.
    redis.call('ZADD', P .. name, ts(now + num(ARGV[12])), id)
    out[#out + 1] = id
  end
end
take_outbox('outbox')
-- Whoever may read the scaling rules is no group's worker.
if redis.call('EXISTS', P .. 'outbox_left') == 1 and not refused('EXISTS', 'kelpie:rules') then take_outbox('outbox_left') end
return out
