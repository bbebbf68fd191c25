-- Shared by every operation: it is put in front of the operation's own file.
--
-- Time is the server's own (TIME), in seconds as a number; stored with six decimals.
-- Keys (kelpie_celery/ledger/keys.py owns their names, types and lifetimes), P = kelpie:g:<group>:
--   kelpie:where:<id>   string  the group of a job          P job:<id>       hash  the record
--   P attempts:<id>     list    the last 50 attempts (JSON) P pending        zset  priority, then age
--   P running           zset    lease expiry                P delayed        zset  due time
--   P ended             zset    end time                    P outbox         zset  next replay time
--   P published:<0-9>   zset    time of the last message    P watermark      hash  newest message received, by priority
--   P created           zset    creation time               P counts         hash  ended jobs by status
--   P machines          zset    last sign of life           P tick           hash  state of the maintenance
--   P idem:<digest>     string  job id of an idempotency key
-- Queue lists are the broker's (kombu): kelpie.<group> for priority 0, kelpie.<group>:<priority> for the others.

local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
local P = ''

local function ts(x) return string.format('%.6f', x) end
local function num(x) return tonumber(x or '0') or 0 end
local function job_key(id) return P .. 'job:' .. id end
local function get(id, field) return redis.call('HGET', job_key(id), field) end

-- Sets P to the prefix of the job's group; nil when no such job is known.
local function find(id)
  local group = redis.call('GET', 'kelpie:where:' .. id)
  if not group then return nil end
  P = 'kelpie:g:' .. group .. ':'
  return group
end

local function ended(status) return status == 'completed' or status == 'failed' or status == 'canceled' end

-- The fencing check: is this attempt, told by number and nonce, the one that runs the job?
local function owns(id, attempt, nonce)
  local r = redis.call('HMGET', job_key(id), 'status', 'attempt', 'nonce')
  return r[1] == 'running' and r[2] == attempt and r[3] == nonce
end

-- Puts a hint on the queue. The delivery tag carries the time, which is the reconciler's watermark.
local function publish(id)
  local r = redis.call('HMGET', job_key(id), 'message', 'queue', 'priority')
  local at = string.find(r[1], '@KELPIE_TAG@', 1, true)
  local tag = ts(now) .. '.' .. id
  redis.call('LPUSH', r[2], string.sub(r[1], 1, at - 1) .. tag .. string.sub(r[1], at + 12))
  redis.call('ZADD', P .. 'published:' .. r[3], ts(now), id)
end

local function leave_queue(id)
  redis.call('ZREM', P .. 'pending', id)
  redis.call('ZREM', P .. 'delayed', id)
  redis.call('ZREM', P .. 'published:' .. (get(id, 'priority') or '0'), id)
end

-- Makes the job pending, due after delay_s. Publishing is the caller's. Its wait counts from when it is due: a ban must
-- not have yielded by the time that the retry delay is over.
local function enqueue(id, delay_s)
  local priority = num(get(id, 'priority'))
  redis.call('HSET', job_key(id), 'status', 'pending', 'phase', '', 'pending_since', ts(now + math.max(0, delay_s)),
    'bounces', 0)
  if delay_s > 0 then
    redis.call('ZADD', P .. 'delayed', ts(now + delay_s), id)
  else
    redis.call('ZADD', P .. 'pending', ts(priority * 100000000000 + now), id)
  end
end

-- Nobody else claimed the job since the reaper took it from this attempt: the attempt has it back, and was not interrupted.
local function take_back(id, attempt, nonce)
  local r = redis.call('HMGET', job_key(id), 'status', 'attempt', 'nonce', 'reaped', 'lease_s', 'launched_at',
    'heartbeat_at')
  if r[1] ~= 'pending' or r[2] ~= attempt or r[3] ~= nonce or r[4] ~= '1' then return false end
  leave_queue(id)
  redis.call('HSET', job_key(id), 'status', 'running')
  redis.call('HDEL', job_key(id), 'reaped', 'deaths')
  redis.call('HINCRBY', job_key(id), 'num_interruptions', -1)
  -- Counted as its running time when it was reaped; it will be counted whole at its end.
  if r[6] then redis.call('HINCRBYFLOAT', job_key(id), 'ran_s', ts(-math.max(0, num(r[7]) - num(r[6])))) end
  redis.call('ZADD', P .. 'running', ts(now + num(r[5])), id)
  local list = P .. 'attempts:' .. id
  local entry = cjson.decode(redis.call('LINDEX', list, -1))
  entry['ended'], entry['outcome'], entry['reason'], entry['message'] = nil, nil, nil, nil
  redis.call('LSET', list, -1, cjson.encode(entry))
  return true
end

-- Drafts (later steps of a workflow) live as long as a job that refers to them does, and retention_s more. The string
-- that tells a draft's group lives and goes with it.
local function where_of(key) return 'kelpie:where:' .. (string.match(key, ':job:(.*)$') or '') end

local function hold_drafts(list)
  for _, key in ipairs(cjson.decode(list)) do
    if redis.call('HGET', key, 'status') == 'draft' then
      redis.call('HINCRBY', key, 'refs', 1)
      redis.call('PERSIST', key)
      redis.call('PERSIST', where_of(key))
    end
  end
end

local function release_drafts(list, retention_s)
  for _, key in ipairs(cjson.decode(list)) do
    if redis.call('HGET', key, 'status') == 'draft' and redis.call('HINCRBY', key, 'refs', -1) <= 0 then
      redis.call('EXPIRE', key, retention_s)
      redis.call('EXPIRE', where_of(key), retention_s)
    end
  end
end

-- Adds to the job's running time what its attempt ran up to a moment: from the command's start on.
local function add_run(id, till)
  local launched = get(id, 'launched_at')
  if launched then redis.call('HINCRBYFLOAT', job_key(id), 'ran_s', ts(math.max(0, till - num(launched)))) end
end

-- Adds facts to the open entry of the attempts' history.
local function close_attempt(id, outcome, reason, message, extras)
  local key = P .. 'attempts:' .. id
  local last = redis.call('LINDEX', key, -1)
  if not last then return end
  local entry = cjson.decode(last)
  entry['ended'] = now
  entry['outcome'] = outcome
  entry['reason'] = reason
  if message ~= '' then entry['message'] = message end
  if extras ~= '' then
    for name, value in pairs(cjson.decode(extras)) do entry[name] = value end
  end
  redis.call('LSET', key, -1, cjson.encode(entry))
end

-- The one way into an ended state. Celery's own bookkeeping follows through the outbox.
local function finish(id, status, reason, message, result, outbox_s, retention_s)
  leave_queue(id)
  redis.call('ZREM', P .. 'running', id)
  redis.call('HSET', job_key(id), 'status', status, 'phase', '', 'reason', reason, 'message_text', message,
    'result', result, 'ended_at', ts(now), 'outbox_until', ts(now + outbox_s))
  redis.call('HINCRBY', job_key(id), 'endings', 1)
  redis.call('ZADD', P .. 'ended', ts(now), id)
  redis.call('ZADD', P .. 'outbox', ts(now + outbox_s), id)
  redis.call('HINCRBY', P .. 'counts', status, 1)
  local drafts = get(id, 'drafts')
  if drafts then release_drafts(drafts, retention_s) end
end

-- Deletes an ended job: record, history, indexes and its place among the idempotency keys.
local function forget(id)
  local r = redis.call('HMGET', job_key(id), 'status', 'idem')
  if r[1] then redis.call('HINCRBY', P .. 'counts', r[1], -1) end
  if r[2] and redis.call('GET', P .. 'idem:' .. r[2]) == id then redis.call('DEL', P .. 'idem:' .. r[2]) end
  redis.call('DEL', job_key(id), P .. 'attempts:' .. id, 'kelpie:where:' .. id)
  for _, index in ipairs({'ended', 'created', 'outbox'}) do redis.call('ZREM', P .. index, id) end
end
